// examples/08_translate/main.cpp: learns to translate numbers from Chinese to English, and is
// tested on those that it has not seen: an encoder–decoder with cross-attention, which writes word
// by word over a key/value cache.
// SPDX-License-Identifier: MIT
//
//   08_translate                     trains, or takes an earlier run's weights; tests on 1000 numbers
//   08_translate 7654321 三百零五     translates yours as well: up to 9999999, or in Chinese
//     --train, --quick, --threads=N, --pictures=DIR: ../training/program.h
//
// Exits with 0 where at least 99.5 % of the numbers are translated without a wrong word (with
// --quick: 90 %).
#include <algorithm>
#include <cstdio>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "../training/sequence_program.h"
#include "numerals.h"

namespace {

using training::Engine;
using training::Index;
using training::Pair;
using training::SequenceData;

constexpr Index kSteps = 1500, kQuickSteps = 500, kTested = 1000;
constexpr double kAccuracy = 0.995, kQuickAccuracy = 0.9;

// ---- Numbers -----------------------------------------------------------------------------------

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

/// The characters of what a user has typed, with 二 for 两; a number in digits is written out.
numerals::Words chinese_of(const std::string& text) {
  if (text.find_first_not_of("0123456789") == std::string::npos) {
    if (text.size() > 7) throw std::invalid_argument(text + " is too large: 9999999 is the last");
    return numerals::chinese(std::stoi(text));
  }
  numerals::Words characters = training::split_characters(text);
  std::replace(characters.begin(), characters.end(), std::string("两"), std::string("二"));
  return characters;
}

training::Shown make_shown(const SequenceData& data, const std::vector<std::string>& texts) {
  training::Shown shown{{}, "", "character"};
  const auto add = [&](const std::string& text) {
    shown.sources.push_back(data.source_words.ids(chinese_of(text)));
  };
  for (const char* number : {"345678", "10050", "1000000"}) add(number);  // two are held out
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
