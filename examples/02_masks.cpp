// examples/02_masks.cpp: who sees whom: causal, window and padding on one sentence, the weights as
// heat maps in the terminal.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>

#include <cmath>
#include <iostream>
#include <string>
#include <vector>

const std::vector<std::string> words{"the", "cat", "sat", "on", "the", "mat", "<pad>", "<pad>"};

/// One row for each query, a darker cell for a larger weight; "." is a weight of exactly zero.
void draw(const std::string& title, const Eigen::MatrixXf& weights) {
  const std::vector<std::string> shades{"░░", "▒▒", "▓▓", "██"};
  std::cout << title << '\n';
  for (Eigen::Index i = 0; i < weights.rows(); ++i) {
    const std::string& word = words[std::size_t(i)];
    std::cout << std::string(8 - word.size(), ' ') << word << "  ";
    for (Eigen::Index j = 0; j < weights.cols(); ++j) {
      const float w = weights(i, j);
      std::cout << (w == 0 ? " ." : shades[std::size_t(std::min(3.0f, 4 * std::sqrt(w)))]);
    }
    std::cout << '\n';
  }
  std::cout << '\n';
}

int main() {
  // A toy embedding: words near each other, and equal words, are alike.
  const auto n = Eigen::Index(words.size());
  Eigen::MatrixXf X(n, 8);
  for (Eigen::Index i = 0; i < n; ++i) {
    for (Eigen::Index c = 0; c < 8; ++c)
      X(i, c) = 2 * std::cos(0.5f * float(i * (c + 1)) / 2 + float(words[std::size_t(i)][0] % 3));
  }
  // Attention returns weighted sums of the value rows; with the identity as values, that is the
  // weights themselves.
  const Eigen::MatrixXf I = Eigen::MatrixXf::Identity(n, n);

  draw("no mask: everybody sees everybody, padding included", attn::attention(X, X, I));
  draw("key_lengths(6): the padding is hidden", attn::attention(X, X, I, attn::key_lengths(6)));
  draw("causal(): nobody sees the future", attn::attention(X, X, I, attn::causal()));
  draw("causal() && window(2, 0): only the last two words and oneself",
       attn::attention(X, X, I, attn::causal() && attn::window(2, 0)));
  draw(
      "causal() && !window(0, 0) && key_lengths(6): the past without oneself; the first row sees "
      "nobody and gives zeros",
      attn::attention(X, X, I, attn::causal() && !attn::window(0, 0) && attn::key_lengths(6)));
}
