// examples/09_summarise/main.cpp: learns to tell a match report in one line, and is tested on matches of teams that it has
// not seen together: names are read, not remembered. Shows which words of the report the summary attended to.
// SPDX-License-Identifier: MIT
//
//   09_summarise                       trains, or takes the weights of an earlier run; tests on 1000 held-out reports
//   09_summarise "last year Rome beat Oslo 2 to 1 . Paris lost 3 to 1 against Rome on Sunday ."     summarises yours as well
//     --train, --quick, --threads=N, --pictures=DIR          see ../training/program.h
//
// Exits with 0 where at least 98 % of the summaries have no wrong word (with --quick: 50 %).
#include <cstdio>
#include <exception>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "../training/loss_curve.h"
#include "../training/program.h"
#include "../training/sequence_task.h"
#include "reports.h"

namespace {

using reports::Report;
using reports::Result;
using training::Engine;
using training::Index;
using training::Pair;
using training::SequenceData;
using Model = training::EncoderDecoder<float>;

constexpr Index kSteps = 600, kQuickSteps = 300, kTested = 1000;
constexpr double kAccuracy = 0.98, kQuickAccuracy = 0.5;

// ---- Reports --------------------------------------------------------------------------------------

std::pair<int, int> teams_of(const Result& result) {
  return std::minmax({result.winner, result.loser});
}

SequenceData make_data(Index steps) {
  Engine engine(2017);
  std::vector<Report> train, held_out;
  for (Index n = 0; n < steps * training::kPairsAtOnce; ++n)
    train.push_back(reports::draw_for_training(engine));
  for (Index n = 0; n < kTested; ++n) held_out.push_back(reports::draw_held_out(engine));

  // The words are those of the reports that are trained on.
  SequenceData data;
  data.target_words = training::vocabulary_with_end({});
  std::set<std::pair<int, int>> trained_on, tested;
  for (const Report& report : train) {
    for (const std::string& word : report.text) data.source_words.add(word);
    for (const std::string& word : report.summary) data.target_words.add(word);
    trained_on.insert({teams_of(report.result), teams_of(report.last_year)});
  }
  const auto pair_of = [&](const Report& report) {
    return Pair{data.source_words.ids(report.text), data.target_words.ids(report.summary)};
  };
  for (const Report& report : train) data.train.push_back(pair_of(report));
  for (const Report& report : held_out) {
    data.held_out.push_back(pair_of(report));
    tested.insert(teams_of(report.result));
  }

  training::check_disjoint(data);
  for (const auto& teams : tested) {
    if (trained_on.count(teams) > 0) throw std::logic_error("held-out teams were trained on");
  }
  std::printf("%d reports to train on, of %d pairs of teams; %d of %d other pairs are held out\n",
              int(train.size()), int(trained_on.size()), int(held_out.size()), int(tested.size()));
  return data;
}

// ---- The program ----------------------------------------------------------------------------------

Pair summarised(Model& model, const SequenceData& data, const std::string& text) {
  const training::Sequence source = data.source_words.ids(training::split_words(text));
  return {source, training::decode_greedily(model, training::Batch({source}))[0]};
}
void print_summarised(Model& model, const SequenceData& data, const std::string& text) {
  const Pair pair = summarised(model, data, text);
  std::printf("  %s\n    %s\n", text.c_str(),
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

  const std::string shown =
      "it rained all evening . last year Oslo beat Rome 2 to 0 . Paris lost 3 to 1 against Rome on "
      "Sunday .";
  std::printf("\nIn the words of the model\n");
  print_summarised(model, data, shown);
  for (const std::string& text : options.texts) print_summarised(model, data, text);
  std::printf(
      "\nWhich words each word of the summary attends to, in the last block on the mean of its "
      "heads\n");
  const training::HeatMap map =
      training::attention_to_source(model, data, summarised(model, data, shown));
  training::print(map);
  training::draw(map, "Which words each word of the summary attends to")
      .save(options.picture("attention"));
  if (!losses.empty())
    training::draw_losses({{"summaries", losses}}, "Loss").save(options.picture("loss"));
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
