// examples/08_translate/main.cpp: learns to translate numbers from Chinese to English, and is tested on those that it has
// not seen: an encoder–decoder with cross-attention, which writes word by word over a key/value cache.
// SPDX-License-Identifier: MIT
//
//   08_translate                       trains, or takes the weights of an earlier run; tests on 1000 held-out numbers
//   08_translate 7654321 三百零五       translates yours as well, below 10 000 000, in digits or in Chinese
//     --train, --quick, --threads=N, --pictures=DIR          see ../training/program.h
//
// Exits with 0 where at least 99.5 % of the numbers are translated without a wrong word (with --quick: 90 %).
#include <cstdio>
#include <exception>
#include <set>
#include <string>
#include <vector>

#include "../training/loss_curve.h"
#include "../training/program.h"
#include "../training/sequence_task.h"
#include "numerals.h"

namespace {

using training::Engine;
using training::Index;
using training::Pair;
using training::SequenceData;
using Model = training::EncoderDecoder<float>;

constexpr Index kSteps = 1000, kQuickSteps = 300, kTested = 1000;
constexpr double kAccuracy = 0.995, kQuickAccuracy = 0.9;

// ---- Numbers --------------------------------------------------------------------------------------

Pair pair_of(const SequenceData& data, int number) {
  return {data.source_words.ids(numerals::chinese(number)),
          data.target_words.ids(numerals::english(number))};
}

SequenceData make_data(Index steps) {
  SequenceData data;
  for (const std::string& character : numerals::chinese_characters())
    data.source_words.add(character);
  data.target_words = training::vocabulary_with_end(numerals::english_words());

  Engine engine(2017);
  std::set<int> trained_on, held_out;
  for (Index n = 0; n < steps * training::kPairsAtOnce; ++n) {
    const int number = numerals::draw_for_training(engine);
    trained_on.insert(number);
    data.train.push_back(pair_of(data, number));
  }
  while (Index(held_out.size()) < kTested) held_out.insert(numerals::draw_held_out(engine));
  for (const int number : held_out) data.held_out.push_back(pair_of(data, number));
  training::check_disjoint(data);
  std::printf("%d numbers to train on; %d others from %d to %d are held out\n",
              int(trained_on.size()), int(held_out.size()), *held_out.begin(), *held_out.rbegin());
  return data;
}

/// The characters of what a user has typed; a number's in digits are written out.
numerals::Words chinese_of(const std::string& text) {
  if (text.find_first_not_of("0123456789") != std::string::npos)
    return training::split_characters(text);
  if (text.size() > 7) throw std::invalid_argument(text + " is too large: 9999999 is the last");
  return numerals::chinese(std::stoi(text));
}

// ---- The program ----------------------------------------------------------------------------------

Pair translated(Model& model, const SequenceData& data, const std::string& text) {
  const training::Sequence source = data.source_words.ids(chinese_of(text));
  return {source, training::decode_greedily(model, training::Batch({source}))[0]};
}
void print_translated(Model& model, const SequenceData& data, const std::string& text) {
  const Pair pair = translated(model, data, text);
  std::printf("  %-8s %s\n           %s\n", text.c_str(),
              training::join(data.source_words.words(pair.source), "").c_str(),
              training::join(data.target_words.words(pair.target)).c_str());
}

int run(const training::ProgramOptions& options) {
  const SequenceData data = make_data(options.quick ? kQuickSteps : kSteps);
  Engine engine(42);
  Model model({data.source_words.size(), data.target_words.size()}, engine);
  const bool same = training::same_bits_in_parallel(model, data.train);

  std::printf("\nAn encoder-decoder of %d weights\n", int(training::parameter_count(model)));
  model.workers = options.threads;
  const std::vector<double> losses = training::train_or_restore(
      model, options, [&] { return training::train(model, data.train); });
  const bool good =
      training::passes(model, data.held_out, options.quick ? kQuickAccuracy : kAccuracy);

  std::printf("\nIn the words of the model\n");
  for (const char* number : {"345678", "1001000", "10050"}) print_translated(model, data, number);
  for (const std::string& text : options.texts) print_translated(model, data, text);
  std::printf(
      "\nWhich character each word attends to, in the last block on the mean of its heads\n");
  const training::HeatMap map =
      training::attention_to_source(model, data, translated(model, data, "345678"));
  training::print(map);
  training::draw(map, "Which character each word attends to").save(options.picture("attention"));
  if (!losses.empty())
    training::draw_losses({{"translation", losses}}, "Loss").save(options.picture("loss"));
  return good && same ? 0 : 1;
}

}  // namespace

int main(int count, char** arguments) {
  try {
    return run(training::parse_options(count, arguments));
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
}
