// examples/07_classify/main.cpp: learns whether a sentence praises a film, from 8000 of them: a
// transformer encoder with mean pooling, beside a bag of words that cannot know.
// SPDX-License-Identifier: MIT
//
//   07_classify                                       trains, or takes an earlier run's weights
//   07_classify "the camera was anything but dull"    classifies yours as well
//
// Its options: ../training/program.h. Exits with 0 where the accuracies are what they should be.
#include <cstdio>
#include <set>
#include <string>
#include <vector>

#include "../training/adam.h"
#include "../training/cross_entropy.h"
#include "../training/loss_curve.h"
#include "../training/program.h"
#include "../training/progress.h"
#include "classifier.h"
#include "grammar.h"

namespace {

using film::BagOfWords;
using film::Classifier;
using film::Matrix;
using film::Mode;
using film::Sentence;
using training::Batch;
using training::Engine;
using training::Index;

// ---- Sentences ----------------------------------------------------------------------------------

struct Data {
  training::Vocabulary vocabulary = film::vocabulary();
  std::vector<Sentence> train, held_out;
};

std::vector<Sentence> distinct_sentences(Engine& engine, std::size_t count, bool held_out) {
  std::set<std::vector<std::string>> seen;
  std::vector<Sentence> sentences;
  while (sentences.size() < count) {
    Sentence sentence = film::random_sentence(engine, held_out);
    if (seen.insert(sentence.words).second) sentences.push_back(std::move(sentence));
  }
  return sentences;
}

/// Nothing of a held-out sentence, not even a thing with its adjective, is in a training sentence.
void check_disjoint(const Data& data) {
  std::set<std::vector<std::string>> sentences;
  std::set<std::pair<std::size_t, std::size_t>> pairs;
  for (const Sentence& sentence : data.train) {
    sentences.insert(sentence.words);
    pairs.insert(sentence.pairs.begin(), sentence.pairs.end());
  }
  std::set<std::pair<std::size_t, std::size_t>> held_out;
  for (const Sentence& sentence : data.held_out) {
    if (sentences.count(sentence.words) != 0)
      throw std::logic_error("a held-out sentence was trained on");
    for (const auto& pair : sentence.pairs) {
      if (pairs.count(pair) != 0) throw std::logic_error("a held-out clause was trained on");
      held_out.insert(pair);
    }
  }
  std::printf(
      "%d sentences to train on, %d held out, all different; %d pairs of thing and adjective in "
      "the "
      "first, %d others in the second\n",
      int(data.train.size()), int(data.held_out.size()), int(pairs.size()), int(held_out.size()));
}

Data make_data() {
  Engine engine(2017);
  Data data;
  data.train = distinct_sentences(engine, 8000, false);
  data.held_out = distinct_sentences(engine, 1000, true);
  check_disjoint(data);
  return data;
}

/// `size` sentences of a list from `first` on, which begins anew behind its end.
struct Labelled {
  Batch batch;
  std::vector<int> labels;

  Labelled(const Data& data, const std::vector<Sentence>& list, std::size_t first,
           std::size_t size) {
    for (std::size_t n = first; n < first + size; ++n) {
      const Sentence& sentence = list[n % list.size()];
      batch.add(data.vocabulary.ids(sentence.words));
      labels.push_back(sentence.praises);
    }
  }
};

// ---- Training and testing -----------------------------------------------------------------------

constexpr std::size_t kBatch = 32;

/// One step; its loss is the mean over the batch.
template <class Model>
training::Judged train_step(Model& model, training::Adam<float>& adam, const Labelled& examples,
                            const Mode& mode) {
  Matrix dlogits;
  const training::Judged judged =
      training::cross_entropy(model.forward(examples.batch, mode), examples.labels, dlogits);
  model.backward(examples.batch, dlogits, mode);
  adam.step(model);
  return judged;
}

/// The losses of all steps.
template <class Model>
std::vector<double> train(Model& model, const Data& data, Index steps, int threads,
                          int lines = 10) {
  training::AdamOptions options;
  options.steps = steps, options.rate = 3e-3;
  training::Adam<float> adam(options);
  training::Progress progress(steps, lines);
  Mode mode{0.05, 0, threads};
  for (; Index(mode.step) < steps; ++mode.step) {
    const Labelled examples(data, data.train, std::size_t(mode.step) * kBatch, kBatch);
    progress.after_step(train_step(model, adam, examples, mode), examples.batch.tokens());
  }
  std::printf("  %.1f s\n", progress.seconds());
  return progress.losses();
}

/// On the held-out sentences, also of each kind.
template <class Model>
double test(const char* name, Model& model, const Data& data) {
  std::vector<int> correct(film::kKinds.size()), count(film::kKinds.size());
  int all = 0;
  for (std::size_t first = 0; first < data.held_out.size(); first += 100) {
    const Labelled examples(data, data.held_out, first, 100);
    const Matrix& logits = model.forward(examples.batch);
    for (std::size_t n = 0; n < 100; ++n) {
      const bool praises = logits(Index(n), 1) > logits(Index(n), 0);
      const Sentence& sentence = data.held_out[first + n];
      const int right = praises == sentence.praises;
      correct[sentence.kind] += right, ++count[sentence.kind], all += right;
    }
  }
  const double accuracy = double(all) / double(data.held_out.size());
  std::printf("  %-13s %5.1f %%  ", name, 100 * accuracy);
  for (std::size_t kind = 0; kind < count.size(); ++kind)
    std::printf("   %s %.1f", film::kKinds[kind].c_str(), 100.0 * correct[kind] / count[kind]);
  std::printf("\n");
  return accuracy;
}

/// Ten steps by one worker and by two: the same losses to the last bit.
bool same_bits_in_parallel(const Data& data) {
  std::vector<double> losses[2];
  for (const int workers : {1, 2}) {
    Engine engine(7);
    Classifier model(data.vocabulary.size(), 2, engine);
    training::Adam<float> adam({});
    for (std::size_t step = 0; step < 10; ++step) {
      const Labelled examples(data, data.train, step * kBatch, kBatch);
      const Mode mode{0.1, step, workers};
      losses[workers - 1].push_back(train_step(model, adam, examples, mode).loss);
    }
  }
  return training::same_losses(losses[0], losses[1]);
}

// ---- The program --------------------------------------------------------------------------------

void classify(Classifier& model, const Data& data, const std::string& text) {
  Batch batch;
  batch.add(data.vocabulary.ids(training::split_words(text)));
  const Matrix p = attn::softmax(model.forward(batch));
  std::printf("  %5.1f %%  %s\n", 100 * double(p(0, 1)), text.c_str());
}

training::HeatMap attention_of(Classifier& model, const Data& data, const std::string& text) {
  Batch batch;
  const auto words = training::split_words(text);
  batch.add(data.vocabulary.ids(words));
  return {words, words, model.attention(batch, 0)};
}

int run(const training::ProgramOptions& options) {
  const Data data = make_data();
  Engine engine(42);
  Classifier model(data.vocabulary.size(), 2, engine);
  std::printf("\nAn encoder of %d weights\n", int(training::parameter_count(model)));
  const std::vector<double> losses = training::train_or_restore(model, options, [&] {
    return train(model, data, options.quick ? 1500 : 2500, options.threads);
  });
  BagOfWords bag(data.vocabulary.size(), 2);
  std::printf("\nA bag of words\n");
  const std::vector<double> bag_losses = train(bag, data, 2500, 1, 2);

  std::printf("\nHeld-out sentences: accuracy, and that of each kind\n");
  const double accuracy = test("encoder", model, data);
  const double bag_accuracy = test("bag of words", bag, data);
  const bool same = same_bits_in_parallel(data);

  const std::string shown = "the plot was not dull but few found the music gripping";
  std::printf("\nPraise, in the eyes of the encoder\n");
  classify(model, data, shown);
  for (const std::string& sentence : options.texts) classify(model, data, sentence);
  std::printf("\nWhat each word attends to in the first block, on the mean of its heads\n");
  const training::HeatMap map = attention_of(model, data, shown);
  training::print(map);

  training::draw(map, "What each word attends to").save(options.picture("attention"));
  if (!losses.empty()) {
    training::draw_losses({{"encoder", losses}, {"bag of words", bag_losses}}, "Loss")
        .save(options.picture("loss"));
  }

  const double wanted = options.quick ? 0.9 : 0.99;
  const bool good = accuracy >= wanted && bag_accuracy <= 0.75 && same;
  if (!good)
    std::printf("\nThe encoder should have %.0f %%, the bag at most 75 %%\n", 100 * wanted);
  return good ? 0 : 1;
}

}  // namespace

int main(int count, char** arguments) { return training::run_with_options(count, arguments, run); }
