// tests/linear_bits_test.cpp: a row of a linear layer, and of a whole encoder block, has the same bits alone, in a batch, padded or
// ragged. By several threads: parallel_test.cpp.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <vector>

#include "support/matrix_matchers.h"
#include "support/random_layer.h"
#include "support/random_linear.h"

namespace {

using attn::Linear;
using attn::LinearOptions;
using attn::MultiHeadAttention;
using attn::MultiHeadOptions;
using Eigen::Index;
using support::random_linear;
using support::same_bits;
using support::uniform;
using Matrix = support::DynamicMatrix<float>;

TEST(LinearBits, ARowIsTheSameInEveryBatch) {
  auto linear = random_linear<float>(LinearOptions(200, 150).bias());
  const auto X = uniform<float>(210, 200, 1), R = uniform<float>(210, 150, 2);
  const Matrix all = linear(X, attn::gelu(), attn::residual(R));
  for (const Index rows : {1, 2, 11, 12, 13, 97}) {
    for (const Index first : {Index(0), Index(5), 210 - rows}) {
      const auto x = X.middleRows(first, rows), r = R.middleRows(first, rows);
      EXPECT_TRUE(
          same_bits(linear(x, attn::gelu(), attn::residual(r)), all.middleRows(first, rows)))
          << rows << " rows from " << first;
    }
  }
}

template <class T>
struct LinearStored : testing::Test {};
using Storages = testing::Types<float, double, Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(LinearStored, Storages, );

/// Panels of weights go by in groups, features in runs: neither shows in the bits.
TYPED_TEST(LinearStored, AColumnIsTheSameInEveryLayer) {
  using T = TypeParam;
  using Values = support::DynamicMatrix<T>;
  using Size = attn::kernel::TileSize<attn::compute_t<T>>;
  constexpr Index kPanel = Size::panel, columns = 9 * kPanel + 3;
  // With so many, what is read next is asked for.
  constexpr Index kAsking = Size::asked_weights / columns + 30;
  for (const Index inputs : {Index(1), Index(64), Index(70), kAsking}) {
    auto wide = random_linear<T>(LinearOptions(inputs, columns).bias());
    const Values W = wide.weights().kernel(), b = wide.weights().bias();
    for (const Index rows : {1, 3, 12, 13, 97}) {
      const auto X = uniform<T>(rows, inputs, 1);
      const Values all = wide(X);
      for (const Index begin : {Index(0), Index(1), kPanel, 3 * kPanel + 2, 8 * kPanel}) {
        for (const Index count : {Index(1), kPanel, 4 * kPanel, columns - begin}) {
          const Index n = std::min(count, columns - begin);
          Linear<T> part(LinearOptions(inputs, n).bias());
          part.set(W.middleCols(begin, n), b.middleCols(begin, n));
          EXPECT_TRUE(same_bits(Values(part(X)), Values(all.middleCols(begin, n))))
              << rows << " x " << inputs << ", columns " << begin << " + " << n;
        }
      }
    }
  }
}

TEST(LinearBits, FixedSizesChangeNone) {
  Linear<float, 24, 40> fixed(LinearOptions(24, 40).bias());
  auto linear = random_linear<float>(LinearOptions(24, 40).bias());
  fixed.set(linear.weights().kernel(), linear.weights().bias());
  const Eigen::Matrix<float, 7, 24> X = uniform<float>(7, 24, 1);
  const Eigen::Matrix<float, 7, 40> Y = fixed(X, attn::gelu());
  EXPECT_TRUE(same_bits(Matrix(Y), Matrix(linear(X, attn::gelu()))));
  EXPECT_TRUE(same_bits(Matrix(fixed(Matrix(X), attn::gelu())), Matrix(Y)));
  EXPECT_TRUE(same_bits(fixed.weights().kernel(), linear.weights().kernel()));
}

/// A pre-norm encoder block; layer norm row by row in Eigen.
struct Block {
  static constexpr Index kWidth = 48;
  MultiHeadAttention<float> mha =
      support::random_layer<float>(MultiHeadOptions(kWidth, 4).in_bias().out_bias());
  Linear<float> up = random_linear<float>(LinearOptions(kWidth, 150).bias(), 3);
  Linear<float> down = random_linear<float>(LinearOptions(150, kWidth).bias(), 5);

  static Matrix norm(const Matrix& X) {
    Matrix Y(X.rows(), X.cols());
    for (Index i = 0; i < X.rows(); ++i) {
      const auto centred = X.row(i).array() - X.row(i).mean();
      Y.row(i) = centred / std::sqrt(centred.square().mean() + 1e-5f);
    }
    return Y;
  }
  template <class... Options>
  Matrix operator()(const Matrix& X, const Options&... options) {
    const Matrix H = mha(norm(X), attn::residual(X), options...);
    return down(up(norm(H), attn::gelu()), attn::residual(H));
  }
};

TEST(LinearBits, ASentenceIsTheSameAloneThroughABlock) {
  Block block;
  const std::vector<Index> lengths{17, 1, 30, 9};
  const Index longest = 30, sentences = 4;
  std::vector<Index> offsets{0};
  for (const Index length : lengths) offsets.push_back(offsets.back() + length);
  const auto ragged = uniform<float>(offsets.back(), Block::kWidth, 1);
  Matrix padded = uniform<float>(sentences * longest, Block::kWidth, 2);
  for (Index b = 0; b < sentences; ++b) {
    const auto n = std::size_t(b);
    padded.middleRows(b * longest, lengths[n]) = ragged.middleRows(offsets[n], lengths[n]);
  }
  const Matrix of_ragged = block(ragged, attn::sequences(offsets));
  const Matrix of_padded =
      block(padded, attn::sequence_length(longest), attn::key_lengths(lengths));
  for (Index b = 0; b < sentences; ++b) {
    const auto n = std::size_t(b);
    const Matrix alone = block(Matrix(ragged.middleRows(offsets[n], lengths[n])));
    EXPECT_TRUE(same_bits(of_ragged.middleRows(offsets[n], lengths[n]), alone)) << "sentence " << b;
    EXPECT_TRUE(same_bits(of_padded.middleRows(b * longest, lengths[n]), alone))
        << "sentence " << b;
  }
}

}  // namespace
