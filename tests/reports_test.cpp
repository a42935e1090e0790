// tests/reports_test.cpp: the match reports of examples/09_summarise: their summaries are what a
// reader finds in them who knows nothing of the writer; and what is held out.
// build: -Og
// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "../examples/09_summarise/reports.h"

namespace {

using reports::Report;
using reports::Words;

bool has(const Words& list, const std::string& word) {
  return std::find(list.begin(), list.end(), word) != list.end();
}
Words those_in(const Words& list, const Words& text) {
  Words found;
  for (const std::string& word : text) {
    if (has(list, word)) found.push_back(word);
  }
  return found;
}
std::vector<Words> sentences(const Words& text) {
  std::vector<Words> all(1);
  for (const std::string& word : text) {
    if (word == ".") {
      all.emplace_back();
    } else {
      all.back().push_back(word);
    }
  }
  EXPECT_TRUE(all.back().empty()) << "a report ends with a stop";
  all.pop_back();
  return all;
}

/// The summary by the words that tell: of the sentence that is of no other year and no other match.
Words read(const Words& text) {
  static const Words goals = {"0", "1", "2", "3", "4", "5"};
  for (const Words& sentence : sentences(text)) {
    const Words teams = those_in(reports::teams(), sentence), score = those_in(goals, sentence),
                days = those_in(reports::days(), sentence);
    if (teams.empty() || days.empty()) continue;
    const bool loser_first = has(sentence, "lost") || has(sentence, "fans");
    return {days[0],  ":",     teams[loser_first ? 1 : 0], "beat", teams[loser_first ? 0 : 1],
            score[0], score[1]};
  }
  return {};
}

template <class F>
void for_many(const F& f) {
  training::Engine engine(7);
  for (int n = 0; n < 3000; ++n) {
    f(reports::draw_for_training(engine), false);
    f(reports::draw_held_out(engine), true);
  }
}

TEST(Reports, AreReadAsTheirSummaries) {
  for_many([](const Report& report, bool) { ASSERT_EQ(read(report.text), report.summary); });
}

TEST(Reports, SummariesAreTheResult) {
  for_many([](const Report& report, bool) {
    const Words& summary = report.summary;
    ASSERT_EQ(summary.size(), 7u);
    EXPECT_EQ(summary[2], reports::teams()[std::size_t(report.result.winner)]);
    EXPECT_EQ(summary[4], reports::teams()[std::size_t(report.result.loser)]);
    EXPECT_EQ(summary[5], std::to_string(report.result.won));
    EXPECT_EQ(summary[6], std::to_string(report.result.lost));
    EXPECT_GT(report.result.won, report.result.lost);
  });
}

/// Pairs of teams that stand in one sentence, in the order of the alphabet.
std::set<std::pair<std::string, std::string>> pairs_of(const Report& report) {
  std::set<std::pair<std::string, std::string>> pairs;
  for (const Words& sentence : sentences(report.text)) {
    Words teams = those_in(reports::teams(), sentence);
    if (teams.empty()) continue;
    EXPECT_EQ(teams.size(), 2u);
    std::sort(teams.begin(), teams.end());
    EXPECT_NE(teams[0], teams[1]);
    pairs.insert({teams[0], teams[1]});
  }
  return pairs;
}

TEST(Reports, OfTrainingSpeakOfNoPairThatIsHeldOut) {
  std::set<std::pair<std::string, std::string>> trained_on, held_out;
  for_many([&](const Report& report, bool is_held_out) {
    if (is_held_out) {
      const Words& summary = report.summary;
      held_out.insert(std::minmax(summary[2], summary[4]));
    } else {
      trained_on.merge(pairs_of(report));
    }
  });
  EXPECT_EQ(trained_on.size() + held_out.size(), 120u) << "pairs of 16 teams";
  EXPECT_EQ(held_out.size(), 24u);
  for (const auto& pair : held_out) EXPECT_EQ(trained_on.count(pair), 0u) << pair.first;
}

TEST(Reports, TellTheResultInEachWayAndPlaceAmongTheRest) {
  std::set<std::string> verbs;
  std::set<std::size_t> places, lengths;
  for_many([&](const Report& report, bool) {
    const auto all = sentences(report.text);
    lengths.insert(all.size());
    for (std::size_t place = 0; place < all.size(); ++place) {
      if (read([&] {
            Words alone = all[place];
            alone.emplace_back(".");
            return alone;
          }())
              .empty())
        continue;
      places.insert(place);
      for (const char* verb : {"beat", "lost", "saw", "overcame"}) {
        if (has(all[place], verb)) verbs.insert(verb);
      }
    }
  });
  EXPECT_EQ(verbs.size(), 4u);
  EXPECT_EQ(places, (std::set<std::size_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(lengths, (std::set<std::size_t>{1, 2, 3, 4, 5}));
}

TEST(Reports, OfOneSeedAreTheSame) {
  const auto first = [](unsigned seed) {
    training::Engine engine(seed);
    return reports::draw_for_training(engine).text;
  };
  EXPECT_EQ(first(3), first(3));
  EXPECT_NE(first(3), first(4));
}

}  // namespace
