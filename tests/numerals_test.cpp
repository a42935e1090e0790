// tests/numerals_test.cpp: the numbers of examples/08_translate: cases counted by hand, a reader of
// each language that knows nothing of the writer, and what is held out.
// build: -Og
// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "../examples/08_translate/numerals.h"

namespace {

using numerals::Words;

std::string joined(const Words& words, const char* between) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : between) + word;
  return text;
}
std::string chinese(int number) { return joined(numerals::chinese(number), ""); }
std::string english(int number) { return joined(numerals::english(number), " "); }

struct Case {
  int number;
  const char *chinese, *english;
};
const Case kCases[] = {
    {0, "零", "zero"},
    {2, "二", "two"},
    {10, "十", "ten"},
    {11, "十一", "eleven"},
    {20, "二十", "twenty"},
    {99, "九十九", "ninety nine"},
    {100, "一百", "one hundred"},
    {101, "一百零一", "one hundred one"},
    {110, "一百一十", "one hundred ten"},
    {112, "一百一十二", "one hundred twelve"},
    {1000, "一千", "one thousand"},
    {1005, "一千零五", "one thousand five"},
    {1010, "一千零一十", "one thousand ten"},
    {1100, "一千一百", "one thousand one hundred"},
    {2002, "二千零二", "two thousand two"},
    {10000, "一万", "ten thousand"},
    {10001, "一万零一", "ten thousand one"},
    {10050, "一万零五十", "ten thousand fifty"},
    {10200, "一万零二百", "ten thousand two hundred"},
    {13000, "一万三千", "thirteen thousand"},
    {30405, "三万零四百零五", "thirty thousand four hundred five"},
    {100000, "十万", "one hundred thousand"},
    {100010, "十万零一十", "one hundred thousand ten"},
    {120000, "十二万", "one hundred twenty thousand"},
    {345678, "三十四万五千六百七十八",
     "three hundred forty five thousand six hundred seventy eight"},
    {1000000, "一百万", "one million"},
    {1000100, "一百万零一百", "one million one hundred"},
    {1001000, "一百万一千", "one million one thousand"},
    {1120000, "一百一十二万", "one million one hundred twenty thousand"},
    {3050607, "三百零五万零六百零七", "three million fifty thousand six hundred seven"},
    {9999999, "九百九十九万九千九百九十九",
     "nine million nine hundred ninety nine thousand nine hundred ninety nine"}};

TEST(Numerals, AreThoseWrittenByHand) {
  for (const Case& x : kCases) {
    EXPECT_EQ(chinese(x.number), x.chinese);
    EXPECT_EQ(english(x.number), x.english);
  }
}

/// Reads by adding up: a unit multiplies what has come since the last larger one.
int value_of(const Words& words, const std::map<std::string, int>& digits,
             const std::map<std::string, int>& units, const std::map<std::string, int>& sections) {
  int total = 0, section = 0, digit = 0;
  for (const std::string& word : words) {
    if (digits.count(word) > 0) {
      digit += digits.at(word);
    } else if (units.count(word) > 0) {
      section += (digit == 0 ? 1 : digit) * units.at(word);
      digit = 0;
    } else {
      total += (section + digit) * sections.at(word);
      section = digit = 0;
    }
  }
  return total + section + digit;
}
int chinese_value(const Words& words) {
  static const std::map<std::string, int> digits = {{"零", 0}, {"一", 1}, {"二", 2}, {"三", 3},
                                                    {"四", 4}, {"五", 5}, {"六", 6}, {"七", 7},
                                                    {"八", 8}, {"九", 9}};
  return value_of(words, digits, {{"十", 10}, {"百", 100}, {"千", 1000}}, {{"万", 10000}});
}
int english_value(const Words& words) {
  static const std::map<std::string, int> digits = {
      {"zero", 0},     {"one", 1},      {"two", 2},        {"three", 3},     {"four", 4},
      {"five", 5},     {"six", 6},      {"seven", 7},      {"eight", 8},     {"nine", 9},
      {"ten", 10},     {"eleven", 11},  {"twelve", 12},    {"thirteen", 13}, {"fourteen", 14},
      {"fifteen", 15}, {"sixteen", 16}, {"seventeen", 17}, {"eighteen", 18}, {"nineteen", 19},
      {"twenty", 20},  {"thirty", 30},  {"forty", 40},     {"fifty", 50},    {"sixty", 60},
      {"seventy", 70}, {"eighty", 80},  {"ninety", 90}};
  return value_of(words, digits, {{"hundred", 100}}, {{"thousand", 1000}, {"million", 1000000}});
}

/// Each number below 20 000, then every 997th: all forms of the sections, at both of their ends.
template <class F>
void for_many(const F& f) {
  for (int n = 0; n < numerals::kNumbers; n += n < 20000 ? 1 : 997) f(n);
  f(numerals::kNumbers - 1);
}

TEST(Numerals, AreReadBackAsTheNumber) {
  for_many([](int n) {
    ASSERT_EQ(chinese_value(numerals::chinese(n)), n) << chinese(n);
    ASSERT_EQ(english_value(numerals::english(n)), n) << english(n);
  });
}

TEST(Numerals, AreOfTheCharactersAndWordsListed) {
  const Words &characters = numerals::chinese_characters(), &words = numerals::english_words();
  const std::set<std::string> known_characters(characters.begin(), characters.end());
  const std::set<std::string> known_words(words.begin(), words.end());
  EXPECT_EQ(known_characters.size(), 14u);
  EXPECT_EQ(known_words.size(), words.size());
  std::set<std::string> seen_characters, seen_words;
  for_many([&](int n) {
    for (const std::string& c : numerals::chinese(n)) seen_characters.insert(c);
    for (const std::string& word : numerals::english(n)) seen_words.insert(word);
  });
  EXPECT_EQ(seen_characters, known_characters);
  EXPECT_EQ(seen_words, known_words);
}

TEST(Numerals, HaveZerosWhereTheHeaderSaysSo) {
  for_many([](int n) {
    const std::string text = chinese(n);
    EXPECT_EQ(text.find("零零"), std::string::npos) << text;
    EXPECT_EQ(text.find("零万"), std::string::npos) << text;
    EXPECT_TRUE(n == 0 || text.rfind("零") != text.size() - 3) << text;
    EXPECT_EQ(text.find("万零") != std::string::npos,
              n > 10000 && n % 10000 > 0 && n % 10000 < 1000)
        << text;
  });
}

TEST(Numerals, ATenthFromOneHundredOnIsHeldOut) {
  int held_out = 0;
  for (int n = 0; n < numerals::kNumbers; ++n) held_out += numerals::held_out(n) ? 1 : 0;
  EXPECT_NEAR(held_out, numerals::kNumbers / 10, 3000);
  for (int n = 0; n < 100; ++n) EXPECT_FALSE(numerals::held_out(n));
}

TEST(Numerals, AreDrawnFromEveryLengthOnTheirSideOfTheSplit) {
  training::Engine engine(1);
  std::map<std::size_t, int> lengths;
  for (int i = 0; i < 7000; ++i) {
    const int n = numerals::draw_for_training(engine);
    EXPECT_FALSE(numerals::held_out(n));
    ++lengths[std::to_string(n).size()];
    EXPECT_TRUE(numerals::held_out(numerals::draw_held_out(engine)));
  }
  for (std::size_t digits = 1; digits <= 7; ++digits) EXPECT_GT(lengths[digits], 600) << digits;
  EXPECT_EQ(lengths.size(), 7u);
}

}  // namespace
