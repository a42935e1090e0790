// examples/09_summarise/reports.h: match reports of a few sentences, their summaries of one line, and which matches are
// held out of training.
// SPDX-License-Identifier: MIT
//
//   it rained all evening . last year Oslo beat Rome 2 to 0 . Paris lost 3 to 1 against Rome on Sunday .      report
//   Sunday : Rome beat Paris 3 1                                                                              summary
//
// A report tells its result in one of four ways, and around it, in any order, what a summary leaves out: last year's
// result (in the same four ways), the weather, the crowd, the next match; each of them may be missing. So teams, days and
// numbers stand in other places too, and only words near them tell which of them count.
#pragma once

#include <cstdint>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace reports {

using Words = std::vector<std::string>;

inline Words split(const std::string& text) {
  Words words;
  std::istringstream stream(text);
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

inline const Words& teams() {
  static const Words all = split(
      "Athens Berlin Dublin Geneva Kyiv Lisbon London Madrid Oslo Paris Prague Riga Rome Turin "
      "Vienna Warsaw");
  return all;
}
inline const Words& days() {
  static const Words all = split("Monday Tuesday Wednesday Thursday Friday Saturday Sunday");
  return all;
}
constexpr int kMostGoals = 5;

/// Numbers of teams; the winner's goals first.
struct Result {
  int winner, loser, won, lost;
};
struct Report {
  Words text, summary;
  Result result;
};

// ---- What is trained on and what is held out ------------------------------------------------------

/// A fifth of the pairs of teams, whichever of the two has won: no report of the training speaks of both together, in its
/// result or in last year's. So a summary of their match cannot be remembered: its names have to be read.
inline bool held_out(int a, int b) { return (a + b) % 5 == 0; }

// ---- Writing reports ------------------------------------------------------------------------------

/// Draws reports, from a seed the same ones everywhere: with bits of the engine alone, one draw a statement.
class Writer {
 public:
  explicit Writer(std::uint64_t seed) : engine_(seed) {}

  /// Of a match that is not held out, nor is last year's.
  Report for_training() {
    const auto trained_on = [](int a, int b) { return !held_out(a, b); };
    const Result result = draw_result(trained_on), last_year = draw_result(trained_on);
    return write(result, last_year);
  }
  /// Of a match that is held out; last year's is any.
  Report of_held_out() {
    const Result result = draw_result(held_out);
    const Result last_year = draw_result([](int, int) { return true; });
    return write(result, last_year);
  }

 private:
  template <class Allowed>
  Result draw_result(const Allowed& allowed) {
    Result result{};
    do {
      result.winner = below(int(teams().size()));
      result.loser = below(int(teams().size()));
    } while (result.winner == result.loser || !allowed(result.winner, result.loser));
    result.won = 1 + below(kMostGoals);
    result.lost = below(result.won);
    return result;
  }

  Report write(const Result& result, const Result& last_year) {
    const std::string& day = one_of(days());
    Words sentences = {told(result, "on " + day)};
    if (below(4) > 0) sentences.push_back(told(last_year, "last year"));
    if (below(2) > 0) sentences.push_back(weather());
    if (below(2) > 0) sentences.push_back(crowd());
    if (below(2) > 0) sentences.push_back("they meet again on " + one_of(days()));
    for (std::size_t n = sentences.size(); n > 1; --n)
      std::swap(sentences[n - 1], sentences[std::size_t(below(int(n)))]);

    std::string text;
    for (const std::string& sentence : sentences) text += sentence + " . ";
    const std::string summary = day + " : " + team(result.winner) + " beat " + team(result.loser) +
                                ' ' + std::to_string(result.won) + ' ' +
                                std::to_string(result.lost);
    return {split(text), split(summary), result};
  }

  std::string told(const Result& result, const std::string& when) {
    const std::string &winner = team(result.winner), &loser = team(result.loser),
                      score = std::to_string(result.won) + " to " + std::to_string(result.lost);
    switch (below(4)) {
      case 0:
        return when + ' ' + winner + " beat " + loser + ' ' + score;
      case 1:
        return loser + " lost " + score + " against " + winner + ' ' + when;
      case 2:
        return when + " the fans of " + loser + " saw " + winner + " win " + score;
      default:
        return score + " was the score when " + winner + " overcame " + loser + ' ' + when;
    }
  }
  std::string weather() {
    static const Words skies = {"it rained", "the sun shone", "snow fell", "a cold wind blew"};
    static const Words times = {" all day", " all evening", " before the match"};
    const std::string& sky = one_of(skies);
    return sky + one_of(times);
  }
  std::string crowd() {
    const std::string number = std::to_string(2 + below(kMostGoals - 1));
    return number + (below(2) > 0 ? " thousand people came" : " thousand fans sang");
  }

  static const std::string& team(int n) { return teams()[std::size_t(n)]; }
  const std::string& one_of(const Words& list) {
    return list[std::size_t(below(int(list.size())))];
  }
  int below(int n) { return int(engine_() % std::uint64_t(n)); }

  std::mt19937_64 engine_;
};

}  // namespace reports
