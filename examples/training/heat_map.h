// examples/training/heat_map.h: which words attend to which: in the terminal, and as a picture.
// SPDX-License-Identifier: MIT
//
//            t
//            h w
//            e as          a row is a word that attends, a column one that is attended to;
//      the   ░░▓▓          the darkest is the largest weight of all
//      was   ██··
#pragma once

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "../support/svg.h"
#include "types.h"
#include "words.h"

namespace training {

using examples::Svg;

struct HeatMap {
  std::vector<std::string> rows, columns;  ///< words: of queries, of keys
  Matrix<float> weights;                   ///< [rows, columns], 0 or more

  float largest() const { return std::max(weights.maxCoeff(), 1e-30f); }
};

inline void print(const HeatMap& map) {
  std::size_t margin = 0;
  for (const std::string& word : map.rows) margin = std::max(margin, width_on_screen(word));
  // Words downwards over the columns, a character in each line, the last ones in one line.
  std::size_t lines = 0;
  for (const std::string& word : map.columns)
    lines = std::max(lines, split_characters(word).size());
  for (std::size_t line = 0; line < lines; ++line) {
    std::string text(margin + 2, ' ');
    for (const std::string& word : map.columns) {
      const auto characters = split_characters(word);
      const std::size_t above = lines - characters.size();
      const std::string character = line < above ? " " : characters[line - above];
      text += character + (width_on_screen(character) == 1 ? " " : "");
    }
    std::printf("  %s\n", text.c_str());
  }
  static const std::vector<std::string> shades = {"  ", "··", "░░", "▒▒", "▓▓", "██"};
  for (Index i = 0; i < map.weights.rows(); ++i) {
    const std::string& word = map.rows[std::size_t(i)];
    std::string text(margin - width_on_screen(word), ' ');
    text += word + "  ";
    for (Index j = 0; j < map.weights.cols(); ++j)
      text += shades[std::size_t(map.weights(i, j) / map.largest() * 5 + 0.5f)];
    std::printf("  %s\n", text.c_str());
  }
}

inline Svg draw(const HeatMap& map, const std::string& title) {
  constexpr double cell = 24, letter = 8, slope = 0.8;  // a word at 55° rises by 0.8 of its length
  const auto longest = [](const std::vector<std::string>& words) {
    std::size_t width = 0;
    for (const std::string& word : words) width = std::max(width, width_on_screen(word));
    return letter * double(width);
  };
  const double left = longest(map.rows) + 20, top = slope * longest(map.columns) + 50;
  const double right = left + cell * double(map.columns.size());
  const double width =
      std::max(right + longest(map.columns) * 0.6, letter * double(title.size())) + 10;
  Svg svg(width, top + cell * double(map.rows.size()) + 15);
  svg.text(10, 22, title);
  for (std::size_t j = 0; j < map.columns.size(); ++j)
    svg.text(left + cell * (double(j) + 0.6), top - 6, map.columns[j], "start", -55);
  for (std::size_t i = 0; i < map.rows.size(); ++i) {
    const double y = top + cell * double(i);
    svg.text(left - 6, y + 0.7 * cell, map.rows[i], "end");
    for (std::size_t j = 0; j < map.columns.size(); ++j) {
      const float part = map.weights(Index(i), Index(j)) / map.largest();
      const auto mixed = [&](int full) {
        return std::to_string(255 + int(part * float(full - 255)));
      };
      svg.rectangle(left + cell * double(j), y, cell - 1, cell - 1,
                    "rgb(" + mixed(8) + ',' + mixed(48) + ',' + mixed(107) + ')');
    }
  }
  return svg;
}

}  // namespace training
