// examples/09_summarise/main.cpp: learns to tell a match report in one line, and is tested on
// matches of teams that it has not seen together: names are read, not remembered. Shows which words
// of the report the summary attended to.
// SPDX-License-Identifier: MIT
//
//   09_summarise                     trains, or takes an earlier run's weights; tests on 1000 reports
//   09_summarise "it rained all day . Oslo lost 3 to 1 against Riga on Monday ."     yours as well
//     --train, --quick, --threads=N, --pictures=DIR: ../training/program.h
//
// Exits with 0 where at least 98 % of the summaries have no wrong word (with --quick: 80 %).
#include <algorithm>
#include <cstdio>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../training/sequence_program.h"
#include "reports.h"

namespace {

using reports::Report;
using reports::Result;
using training::Engine;
using training::Index;
using training::Pair;
using training::SequenceData;

constexpr Index kSteps = 600, kQuickSteps = 400, kTested = 1000;
constexpr double kAccuracy = 0.98, kQuickAccuracy = 0.8;
/// Of a pair of teams that is held out.
const char* const kShown =
    "it rained all evening . last year Oslo beat Rome 2 to 0 . "
    "Paris lost 3 to 1 against Rome on Sunday .";

// ---- Reports -----------------------------------------------------------------------------------

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

training::Shown make_shown(const SequenceData& data, const std::vector<std::string>& texts) {
  training::Shown shown{{}, " ", "word"};
  const auto add = [&](const std::string& text) {
    shown.sources.push_back(data.source_words.ids(training::split_words(text)));
  };
  add(kShown);
  for (const std::string& text : texts) add(text);
  return shown;
}

int run(const training::ProgramOptions& options) {
  const SequenceData data = make_data(options.quick ? kQuickSteps : kSteps);
  const double accuracy = options.quick ? kQuickAccuracy : kAccuracy;
  return training::run_program(data, make_shown(data, options.texts), accuracy, options) ? 0 : 1;
}

}  // namespace

int main(int count, char** arguments) { return training::run_with_options(count, arguments, run); }
