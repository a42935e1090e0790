// examples/09_summarise/reports.h: match reports of a few sentences, their summaries of one line,
// and which matches are held out of training.
// SPDX-License-Identifier: MIT
//
//   report     it rained all evening . last year Oslo beat Rome 2 to 0 .
//              Paris lost 3 to 1 against Rome on Sunday .
//   summary    Sunday : Rome beat Paris 3 1
//
// A report tells its result in one of four ways, and around it, in any order, what a summary leaves
// out: last year's result (in the same four ways), the weather, the crowd, the next match; each of
// them may be missing. So teams, days and numbers stand in other places too, and only words near
// them tell which of them count.
#pragma once

#include <string>
#include <vector>

#include "../training/random.h"
#include "../training/words.h"

namespace reports {

using training::Engine;
using training::one_of;
using training::split_words;
using Words = std::vector<std::string>;

inline const Words& teams() {
  static const Words all = split_words(
      "Athens Berlin Dublin Geneva Kyiv Lisbon London Madrid Oslo Paris Prague Riga Rome Turin "
      "Vienna Warsaw");
  return all;
}
inline const Words& days() {
  static const Words all = split_words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday");
  return all;
}
constexpr int kMostGoals = 5;

/// Numbers of teams; the winner's goals first.
struct Result {
  int winner, loser, won, lost;
};
struct Report {
  Words text, summary;
  Result result, last_year;  ///< the text may leave last year's out
};

// ---- What is trained on and what is held out ---------------------------------------------------

/// A fifth of the pairs of teams, whichever of the two has won: no report of the training speaks of
/// both together, in its result or in last year's. So a summary of their match cannot be
/// remembered: its names have to be read.
inline bool held_out(int a, int b) { return (a + b) % 5 == 1; }

// ---- Writing reports ---------------------------------------------------------------------------

// One draw a statement: arguments are evaluated in any order.

/// A result of two teams that allowed(a, b) accepts.
template <class Allowed>
Result draw_result(Engine& engine, const Allowed& allowed) {
  const auto below = [&](std::size_t n) { return int(training::below(engine, n)); };
  Result result{};
  do {
    result.winner = below(teams().size());
    result.loser = below(teams().size());
  } while (result.winner == result.loser || !allowed(result.winner, result.loser));
  result.won = 1 + below(kMostGoals);
  result.lost = below(std::size_t(result.won));
  return result;
}

inline const std::string& team(int n) { return teams()[std::size_t(n)]; }

inline std::string tell(Engine& engine, const Result& result, const std::string& when) {
  const std::string winner = team(result.winner), loser = team(result.loser),
                    score = std::to_string(result.won) + " to " + std::to_string(result.lost);
  return one_of<std::string>(
      engine, {when + ' ' + winner + " beat " + loser + ' ' + score,
               loser + " lost " + score + " against " + winner + ' ' + when,
               when + " the fans of " + loser + " saw " + winner + " win " + score,
               score + " was the score when " + winner + " overcame " + loser + ' ' + when});
}
inline std::string tell_weather(Engine& engine) {
  static const Words skies = {"it rained", "the sun shone", "snow fell", "a cold wind blew"};
  static const Words times = {" all day", " all evening", " before the match"};
  const std::string& sky = one_of(engine, skies);
  return sky + one_of(engine, times);
}
inline std::string tell_crowd(Engine& engine) {
  static const Words crowds = {" thousand people came", " thousand fans sang"};
  const std::size_t thousands = 2 + training::below(engine, kMostGoals - 1);
  return std::to_string(thousands) + one_of(engine, crowds);
}

inline Report write(Engine& engine, const Result& result, const Result& last_year) {
  const auto even = [&] { return training::chance(engine, 0.5); };
  const std::string day = one_of(engine, days());
  Words sentences = {tell(engine, result, "on " + day)};
  if (training::chance(engine, 0.75)) sentences.push_back(tell(engine, last_year, "last year"));
  if (even()) sentences.push_back(tell_weather(engine));
  if (even()) sentences.push_back(tell_crowd(engine));
  if (even()) sentences.push_back("they meet again on " + one_of(engine, days()));
  training::shuffle(engine, sentences);

  std::string text;
  for (const std::string& sentence : sentences) text += sentence + " . ";
  const std::string summary = day + " : " + team(result.winner) + " beat " + team(result.loser) +
                              ' ' + std::to_string(result.won) + ' ' + std::to_string(result.lost);
  return {split_words(text), split_words(summary), result, last_year};
}

/// Of a match that is not held out, nor is last year's.
inline Report draw_for_training(Engine& engine) {
  const auto trained_on = [](int a, int b) { return !held_out(a, b); };
  const Result result = draw_result(engine, trained_on);
  const Result last_year = draw_result(engine, trained_on);
  return write(engine, result, last_year);
}
/// Of a match that is held out; last year's is any.
inline Report draw_held_out(Engine& engine) {
  const Result result = draw_result(engine, held_out);
  const Result last_year = draw_result(engine, [](int, int) { return true; });
  return write(engine, result, last_year);
}

}  // namespace reports
