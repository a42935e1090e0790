// examples/04_custom_mask_and_score.cpp: a mask and scores of one's own in a few lines each, and the weights that come of them,
// as heat maps in the terminal and in an SVG file beside the program (or where its argument says).
// SPDX-License-Identifier: MIT
#include <attn/attn.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

using Eigen::Index;
using Eigen::MatrixXf;

/// T5's relative position bias (Raffel et al. 2020, arXiv:1910.10683): a learned number for each bucket of distances and head.
/// Half of the buckets look ahead; of each half, the first are single distances, the others grow with the logarithm.
struct RelativeBuckets {
  MatrixXf learned;  // buckets × heads
  float max_distance = 128;

  Index bucket(Index distance) const {  // key − query
    const Index half = learned.rows() / 2, exact = half / 2, n = std::abs(distance);
    const float far = std::log(float(n) / float(exact)) / std::log(max_distance / float(exact));
    const Index reached = n < exact ? n : exact + Index(far * float(half - exact));
    return (distance > 0 ? half : 0) + std::min(reached, half - 1);
  }
  float operator()(float s, attn::At at) const {  // one signature: called one key at a time
    return s + learned(bucket(at.key - at.query), at.head);
  }
};

/// One row for each query, a darker cell for a larger weight; "." is a weight of exactly zero.
void draw(const std::string& title, const MatrixXf& weights) {
  const std::vector<std::string> shades{"░░", "▒▒", "▓▓", "██"};
  std::cout << title << '\n';
  for (Index i = 0; i < weights.rows(); ++i) {
    for (Index j = 0; j < weights.cols(); ++j) {
      const float w = weights(i, j);
      std::cout << (w == 0 ? " ." : shades[std::size_t(std::min(3.0f, 4 * std::sqrt(w)))]);
    }
    std::cout << '\n';
  }
  std::cout << '\n';
}

/// The maps side by side, as squares of SVG.
void write_svg(const std::string& path, const std::vector<std::string>& titles,
               const std::vector<MatrixXf>& maps) {
  const Index cell = 14, size = maps[0].rows() * cell, gap = 40;
  std::ofstream svg(path);
  svg << "<svg xmlns='http://www.w3.org/2000/svg' font-family='sans-serif' font-size='13' width='"
      << Index(maps.size()) * (size + gap) + gap << "' height='" << size + 2 * gap << "'>\n";
  for (std::size_t m = 0; m < maps.size(); ++m) {
    const Index left = gap + Index(m) * (size + gap);
    svg << "<text x='" << left << "' y='" << gap - 10 << "'>" << titles[m] << "</text>\n";
    for (Index i = 0; i < maps[m].rows(); ++i) {
      for (Index j = 0; j < maps[m].cols(); ++j) {
        const int shade = int(255 * (1 - std::sqrt(maps[m](i, j))));
        svg << "<rect x='" << left + j * cell << "' y='" << gap + i * cell << "' width='" << cell
            << "' height='" << cell << "' stroke='#ddd' fill='rgb(" << shade << ',' << shade
            << ",255)'/>\n";
      }
    }
  }
  svg << "</svg>\n";
  std::cout << (svg ? "written: " : "not written: ") << path << '\n';
}

int main(int, char** argv) {
  const Index n = 24;
  MatrixXf X(n, 8);  // a toy melody: a note each beat, a theme of 8 beats that comes back
  for (Index i = 0; i < n; ++i) {
    for (Index c = 0; c < 8; ++c) X(i, c) = std::sin(0.9f * float((i % 8) * (c + 1)));
  }
  std::vector<std::string> titles;
  std::vector<MatrixXf> maps;
  const auto show = [&](const std::string& title, const auto&... options) {
    MatrixXf Y, W;
    attn::attention(X, X, X, attn::into(Y), attn::save_weights(W), options...);
    draw(title, W);
    titles.push_back(title);
    maps.push_back(W);
  };

  // A score: notes listen to what lies one beat, one bar (4 beats), two bars back, and forget slowly. The lambda is generic, so it
  // is called with the lanes of several keys at once.
  std::vector<float> echo(std::size_t(n), 0.f);
  for (std::size_t d = 0; d < echo.size(); ++d)
    echo[d] = (d % 8 == 0 ? 3.f : d % 4 == 0 ? 2.f : d == 1 ? 1.f : 0.f) - 0.1f * float(d);
  show("score: beats and bars", attn::causal(),
       attn::score([&](auto s, auto at) { return s + lookup(echo, at.query - at.key); }));

  // A mask: three documents packed in one sequence.
  const std::vector<int> document{0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1,
                                  1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2};
  const auto same_document = attn::mask([&](Index query, Index key) {
    return document[std::size_t(query)] == document[std::size_t(key)];
  });
  show("mask: documents, causal", same_document && attn::causal());
  show("the same, built in", attn::segments(document) && attn::causal());

  // Another score, with a table for each head: T5's buckets.
  RelativeBuckets buckets{MatrixXf(16, 1)};
  for (Index b = 0; b < 16; ++b) buckets.learned(b, 0) = 2 * std::cos(1.3f * float(b));
  show("score: T5 buckets", attn::score(buckets));

  const auto beside =
      std::filesystem::path(argv[0]).replace_filename("04_custom_mask_and_score.svg");
  write_svg(argv[1] != nullptr ? argv[1] : beside.string(), titles, maps);
}
