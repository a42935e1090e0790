// examples/08_translate/numerals.h: the numbers 0 … 9 999 999 in Chinese characters and in English
// words, and which of them are held out of training.
// SPDX-License-Identifier: MIT
//
//   345678    三十四万五千六百七十八    three hundred forty five thousand six hundred seventy eight
//
// Chinese counts in sections of four digits, English in sections of three: 万 (10⁴) falls between
// thousand and million, so that a translation is no matter of word for word. As written here:
//   10 … 19   at the beginning without 一: 十二, 十二万; behind other characters with it: 一百一十二
//   零        one for a run of zeros between other digits, where it does not end the section of 万:
//             一千零五, 一万零五十, but 一百万一千
//   二        always, where speech has 两 before 百, 千, 万
// English has neither "and" nor hyphens.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../training/random.h"
#include "../training/words.h"

namespace numerals {

using training::Engine;
using Words = std::vector<std::string>;

constexpr int kNumbers = 10'000'000;  ///< 0 … 9 999 999

/// Every character, every word that a numeral is made of.
inline const Words& chinese_characters() {
  static const Words all = training::split_characters("零一二三四五六七八九十百千万");
  return all;
}
inline const Words& english_words() {
  static const Words all = {
      "zero",    "one",       "two",      "three",    "four",    "five",     "six",      "seven",
      "eight",   "nine",      "ten",      "eleven",   "twelve",  "thirteen", "fourteen", "fifteen",
      "sixteen", "seventeen", "eighteen", "nineteen", "twenty",  "thirty",   "forty",    "fifty",
      "sixty",   "seventy",   "eighty",   "ninety",   "hundred", "thousand", "million"};
  return all;
}

inline Words chinese(int number) {
  const Words& digits = chinese_characters();
  if (number == 0) return {digits[0]};
  static const Words units =
      training::split_characters("千百十");  // the fourth digit of a section has none
  Words text;
  bool zeros = false;  // since the last character
  const auto write_section = [&](int section) {
    for (int place = 0, unit = 1000; place < 4; ++place, unit /= 10) {
      const int digit = section / unit % 10;
      if (digit == 0) {
        zeros = true;
        continue;
      }
      if (zeros && !text.empty()) text.push_back(digits[0]);
      zeros = false;
      if (!(digit == 1 && unit == 10 && text.empty())) text.push_back(digits[std::size_t(digit)]);
      if (unit > 1) text.push_back(units[std::size_t(place)]);
    }
  };
  if (number >= 10'000) {
    write_section(number / 10'000);
    text.push_back(digits.back());  // 万
    zeros = false;
  }
  write_section(number % 10'000);
  return text;
}

inline Words english(int number) {
  const Words& words = english_words();
  if (number == 0) return {words[0]};
  Words text;
  const auto write_section = [&](int section, const char* unit) {
    if (section == 0) return;
    const int hundreds = section / 100, rest = section % 100;
    if (hundreds > 0) text.insert(text.end(), {words[std::size_t(hundreds)], "hundred"});
    if (rest >= 20) text.push_back(words[std::size_t(18 + rest / 10)]);
    const int last = rest < 20 ? rest : rest % 10;
    if (last > 0) text.push_back(words[std::size_t(last)]);
    if (*unit != '\0') text.emplace_back(unit);
  };
  write_section(number / 1'000'000, "million");
  write_section(number / 1000 % 1000, "thousand");
  write_section(number % 1000, "");
  return text;
}

// ---- What is trained on and what is held out ---------------------------------------------------

/// A tenth of the numbers from 100 on, by a hash of the number (the finaliser of MurmurHash3).
/// Those below 100 are all trained on: they are the words of the languages, and a test of them
/// would be one of what was seen.
inline bool held_out(int number) {
  std::uint32_t hash = std::uint32_t(number);
  hash = (hash ^ hash >> 16) * 0x85EBCA6Bu;
  hash = (hash ^ hash >> 13) * 0xC2B2AE35u;
  hash ^= hash >> 16;
  return number >= 100 && hash % 10 == 7;
}

/// A number of 1 to 7 digits, of which the first 1 to all are drawn, a fifth of them 0, and the
/// others are 0. Of numbers drawn evenly nearly all would have seven digits and few zeros: short
/// and round ones, which people write, would be neither learnt nor tested.
inline int draw(Engine& engine) {
  const std::size_t digits = 1 + training::below(engine, 7);
  const std::size_t drawn = 1 + training::below(engine, digits);
  int number = 0;
  for (std::size_t n = 0; n < digits; ++n) {
    const bool zero = n >= drawn || training::chance(engine, 0.2);
    number = 10 * number + (zero ? 0 : 1 + int(training::below(engine, 9)));
  }
  return number;
}
inline int draw_for_training(Engine& engine) {
  int number = draw(engine);
  while (held_out(number)) number = draw(engine);
  return number;
}
inline int draw_held_out(Engine& engine) {
  int number = draw(engine);
  while (!held_out(number)) number = draw(engine);
  return number;
}

}  // namespace numerals
