// examples/03_multi_head.cpp: a multi-head layer with a mask and a residual: the program of a widespread text, done right.
// SPDX-License-Identifier: MIT
//
// The text's layer projects to d_k columns, where num_heads heads of d_k features need num_heads * d_k; it transposes both q and k
// whole, so that q * k^T lacks its transpose and mixes up tokens, heads and features; and its reshape to (-1, num_heads, d_k) folds
// batch and tokens into one dimension. Here heads lie side by side in columns, and a batch is sequences stacked in rows.
#include <attn/attn.h>

#include <iostream>
#include <random>

int main() {
  const Eigen::Index tokens = 10, d_model = 64, num_heads = 8, d_k = 8, d_v = 8;
  std::mt19937 engine(42);
  const auto uniform = [&] { return static_cast<float>(engine() >> 8) * 0x1p-24f; };  // [0, 1)

  attn::MultiHeadAttention<float> multi_head_attention(
      attn::MultiHeadOptions(d_model, num_heads).key_dim(d_k).value_dim(d_v));
  multi_head_attention.edit([&](auto& weights) { attn::glorot_uniform(weights, engine); });

  const auto random = [&] { return Eigen::MatrixXf::NullaryExpr(tokens, d_model, uniform).eval(); };
  const Eigen::MatrixXf q = random(), k = random(), v = random();
  // 1 means hidden: the text adds mask * -1e9 to the scores. Here what is hidden contributes nothing at all.
  const Eigen::MatrixXf mask =
      Eigen::MatrixXf::NullaryExpr(tokens, tokens, [&] { return uniform() < 0.5f ? 0.0f : 1.0f; });

  Eigen::MatrixXf weights;  // of all heads, side by side
  Eigen::MatrixXf output;
  multi_head_attention(q, k, v, attn::hide(mask.array() > 0), attn::residual(),
                       attn::save_weights(weights), attn::into(output));

  const Eigen::IOFormat format(4, 0, " ", "\n", "  ");
  std::cout << "q + MultiHeadAttention(q, k, v): " << output.rows() << " x " << output.cols()
            << ", the first features of each token\n"
            << output.leftCols(8).format(format) << "\n\nWhat the first head attends to\n"
            << weights.leftCols(tokens).format(format) << '\n';
}
