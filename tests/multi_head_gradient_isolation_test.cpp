// tests/multi_head_gradient_isolation_test.cpp: tokens that have no part in the loss change no bit
// of the layer's gradients, whatever they hold; NaN in one that has shows where the formula says.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "support/any_mask.h"
#include "support/layer_gradient_case.h"
#include "support/special_values.h"

namespace {

using attn::MultiHeadOptions;
using Eigen::Index;
using support::AnyMask;
using support::BatchCase;
using support::Inputs;
using support::kInfinity;
using support::kNaN;
using support::Reference;
using support::same_bits;
using support::trained_layer;
using Case = support::LayerCase<float>;
using Matrix = Case::Matrix;
using Training = support::LayerTraining<float>;

template <Inputs given>
Training attend(Case& x, const AnyMask& mask, Index offset = 0) {
  return trained_layer<given>(x, attn::options(mask, attn::query_offset(offset)));
}
const auto kShape = MultiHeadOptions(12, 4).kv_heads(2).value_dim(5).biases();

// Padding behind the keys: garbage in memory, as an encoder leaves it.
TEST(MultiHeadGradientIsolation, OfKeysBehindTheirLengths) {
  const std::vector<Index> lengths = {30, 0, 7, 64};
  const AnyMask mask(attn::key_lengths(lengths));
  Case x(kShape.key_features(10).value_features(9),
         BatchCase{{0, 20, 33, 73, 80}, {0, 64, 128, 192, 256}});
  const auto clean = attend<Inputs::three>(x, mask);
  for (const float poison : {kNaN<float>, kInfinity<float>, -3e38f}) {
    SCOPED_TRACE(testing::Message() << "poison " << poison);
    Case y = x;
    for (Index b = 0; b < 4; ++b) {
      for (Matrix* of : {&y.Xk, &y.Xv}) {
        of->middleRows(64 * b + lengths[std::size_t(b)], 64 - lengths[std::size_t(b)])
            .setConstant(poison);
      }
    }
    const auto g = attend<Inputs::three>(y, mask);
    EXPECT_TRUE(same_bits(g.Y, clean.Y));
    expect_same_gradients(g, clean);
  }
}
// The same of one input for keys and values, and of all three.
TEST(MultiHeadGradientIsolation, OfTokensThatNeitherSeeNorAreSeen) {
  // Tokens 10 … 14 and 90 … 99 are padding: in segments of their own, which no key has.
  std::vector<int> queries(100, 0), keys(100, 0);
  std::vector<Index> padding;
  for (Index i = 0; i < 100; ++i) {
    if ((i < 10 || i > 14) && i < 90) continue;
    queries[std::size_t(i)] = 1;
    keys[std::size_t(i)] = 2;
    padding.push_back(i);
  }
  const AnyMask mask(attn::segments(queries, keys));
  Case x(kShape, 100);
  for (const Index i : padding) {
    x.Xq.row(i).setZero();
    x.Xk.row(i).setZero();
  }
  const auto clean = attend<Inputs::one>(x, mask), two = attend<Inputs::two>(x, mask);
  for (const Index i : padding)
    EXPECT_TRUE(same_bits(Matrix(clean.query.row(i)), Matrix(Matrix::Zero(1, 12)))) << i;
  for (const float poison : {kNaN<float>, kInfinity<float>, -3e38f}) {
    SCOPED_TRACE(testing::Message() << "poison " << poison);
    Case y = x;
    for (const Index i : padding) {
      y.Xq.row(i).setConstant(poison);
      y.Xk.row(i).setConstant(poison);
    }
    expect_same_gradients(attend<Inputs::one>(y, mask), clean);
    expect_same_gradients(attend<Inputs::two>(y, mask), two);
  }
}
// A row that sees no key: its output is the bias, which alone it gives a gradient.
TEST(MultiHeadGradientIsolation, OfQueriesThatSeeNoKeyIsThatOfTheOutputBias) {
  Case x(kShape, 50);
  const AnyMask causal(attn::causal());
  const auto g = attend<Inputs::one>(x, causal, -20);
  auto call = x.reference();
  call.attention.visible = [](Index, Index, Index i, Index j) { return j <= i - 20; };
  expect_gradients(g, expected_gradient(x, Inputs::one, call), Inputs::one);
  for (Index i = 0; i < 20; ++i)
    EXPECT_TRUE(same_bits(Matrix(g.Y.row(i)), Matrix(x.mha.weights().output_bias))) << i;
  Case without = x;
  without.dY.topRows(20).setZero();
  const auto h = attend<Inputs::one>(without, causal, -20);
  EXPECT_TRUE(same_bits(g.query, h.query));
  EXPECT_TRUE(same_bits(g.weights.query, h.weights.query));
  EXPECT_TRUE(same_bits(g.weights.key, h.weights.key));
  EXPECT_TRUE(same_bits(g.weights.value, h.weights.value));
  EXPECT_TRUE(same_bits(g.weights.output, h.weights.output));
  EXPECT_TRUE(same_bits(g.weights.value_bias, h.weights.value_bias));
  EXPECT_FALSE(same_bits(g.weights.output_bias, h.weights.output_bias));
}

/// Where the oracle has NaN, so has the gradient; elsewhere it has the bits of the clean call.
void expect_pattern(const char* name, const Eigen::Ref<const Matrix>& actual,
                    const Eigen::Ref<const Matrix>& clean, const Reference& expected) {
  ASSERT_EQ(actual.rows(), expected.rows());
  ASSERT_EQ(actual.cols(), expected.cols());
  for (Index i = 0; i < actual.rows(); ++i) {
    for (Index c = 0; c < actual.cols(); ++c) {
      const bool nan = std::isnan(expected(i, c));
      ASSERT_TRUE(nan ? std::isnan(actual(i, c))
                      : support::same_bits_of<float>(actual(i, c), clean(i, c)))
          << name << " (" << i << ", " << c << ") is " << actual(i, c) << ", expected "
          << (nan ? kNaN<float> : clean(i, c));
    }
  }
}
// NaN in a token that is seen: in the rows that it reaches, and no others.
TEST(MultiHeadGradientIsolation, OfWhatSomeSee) {
  const AnyMask mask(attn::window(3, 2));
  const auto visible = [](Index, Index, Index i, Index j) { return i - 3 <= j && j <= i + 2; };
  Case x(kShape, 120);
  const auto clean = attend<Inputs::three>(x, mask);
  for (int operand = 0; operand < 4; ++operand) {
    for (const Index row : {0, 50, 95, 96, 119}) {
      SCOPED_TRACE(testing::Message() << "operand " << operand << ", row " << row);
      Case y = x;
      (operand == 0   ? y.Xq
       : operand == 1 ? y.Xk
       : operand == 2 ? y.Xv
                      : y.dY)(row, 3) = kNaN<float>;
      const auto g = attend<Inputs::three>(y, mask);
      auto call = y.reference();
      call.attention.visible = visible;
      const auto expected = expected_gradient(y, Inputs::three, call);
      expect_pattern("Xq", g.query, clean.query, expected.query);
      expect_pattern("Xk", g.key, clean.key, expected.key);
      expect_pattern("Xv", g.value, clean.value, expected.value);
    }
  }
}

// The end of the input: no queries, no keys, sequences without either.
TEST(MultiHeadGradientIsolation, OfSequencesWithoutKeysOrQueriesAreZeros) {
  Case x(kShape, BatchCase{{0, 6, 6, 13, 20}, {0, 9, 17, 17, 30}});
  const auto g = attend<Inputs::three>(x, AnyMask(attn::key_lengths({9, 8, 0, 0})));
  EXPECT_TRUE(same_bits(Matrix(g.query.bottomRows(14)), Matrix(Matrix::Zero(14, 12))));
  EXPECT_TRUE(same_bits(Matrix(g.key.bottomRows(21)), Matrix(Matrix::Zero(21, 12))));
  EXPECT_TRUE(same_bits(Matrix(g.value.bottomRows(21)), Matrix(Matrix::Zero(21, 12))));
  auto call = x.reference();
  call.attention.visible = [](Index b, Index, Index, Index) { return b == 0; };
  expect_gradients(g, expected_gradient(x, Inputs::three, call), Inputs::three);
}

}  // namespace
