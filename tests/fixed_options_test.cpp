// tests/fixed_options_test.cpp: calls whose sizes the operands' types tell, with options, masks, several sequences, narrow
// storage and some dynamic sizes: the bits of the same call on dynamic matrices.
// SPDX-License-Identifier: MIT
#include <attn/attention.h>
#include <gtest/gtest.h>

#include <limits>

#include "support/fixed_sizes.h"
#include "support/random.h"

namespace {

using support::Dynamic;
using support::kCol;
using support::kRow;
using support::Operands;
using support::same_bits;
using support::Sizes;

using Middling = Sizes<float, 13, 35, 9, 41, kRow, kCol, kRow, kCol>;

TEST(FixedSizesWithOptions, GiveTheBitsOfDynamicOnes) {
  Operands<Middling> x;
  const Eigen::Matrix<float, 13, 41> R = support::uniform<float>(13, 41, 4);
  const Eigen::Matrix<float, 13, 35> B = support::uniform<float>(13, 35, 5);
  const Dynamic<float> Q = x.Q, K = x.K, V = x.V;
  Dynamic<float> expected;
  Eigen::VectorXf l, expected_l, m, expected_m;
  attn::attention(Q, K, V, attn::into(expected), attn::residual(R), attn::bias(B),
                  attn::softcap(2.0f), attn::scale(0.7f), attn::save_logsumexp(expected_l),
                  attn::save_max_logit(expected_m));
  attn::attention(x.Q, x.K, x.V, attn::into(x.Y), attn::residual(R), attn::bias(B),
                  attn::softcap(2.0f), attn::scale(0.7f), attn::save_logsumexp(l),
                  attn::save_max_logit(m));
  EXPECT_TRUE(same_bits(x.Y, expected));
  EXPECT_TRUE(same_bits(l, expected_l));
  EXPECT_TRUE(same_bits(m, expected_m));
}

TEST(FixedSizesWithOptions, HideScoresOfMinusInfinity) {
  Operands<Middling> x;
  Eigen::Matrix<float, 13, 35> B = Eigen::Matrix<float, 13, 35>::Zero();
  B.rightCols(30).setConstant(-std::numeric_limits<float>::infinity());
  B.row(4).setConstant(-std::numeric_limits<float>::infinity());
  const Dynamic<float> Q = x.Q, K = x.K, V = x.V;
  for (const float value : {1.0f, std::numeric_limits<float>::quiet_NaN()}) {
    x.V(20, 3) = value;
    const Dynamic<float> hidden = x.V, expected = attn::attention(Q, K, hidden, attn::bias(B));
    attn::attention(x.Q, x.K, x.V, attn::into(x.Y), attn::bias(B));
    EXPECT_TRUE(same_bits(x.Y, expected));
    EXPECT_TRUE(x.Y.row(4).isZero(0));
    EXPECT_TRUE(x.Y.allFinite());
  }
}

TEST(FixedSizesWithOptions, MaskedOrInSeveralSequences) {
  Operands<Middling> x;
  const Dynamic<float> Q = x.Q, K = x.K, V = x.V;
  attn::attention(x.Q, x.K, x.V, attn::into(x.Y), attn::causal_from(5));
  EXPECT_TRUE(same_bits(x.Y, attn::attention(Q, K, V, attn::causal_from(5))));
  attn::attention(x.Q, x.K, x.V, attn::into(x.Y), attn::sequences({0, 6, 13}, {0, 30, 35}));
  EXPECT_TRUE(same_bits(x.Y, attn::attention(Q, K, V, attn::sequences({0, 6, 13}, {0, 30, 35}))));
}

TEST(FixedSizesWithOptions, InPlaceOfTheQuery) {
  using Square = Sizes<float, 16, 16, 32, 32, kRow, kRow, kRow, kRow>;
  Operands<Square> x;
  const auto expected = attn::attention(x.Q, x.K, x.V);
  attn::attention(x.Q, x.K, x.V, attn::into(x.Q));
  EXPECT_TRUE(same_bits(x.Q, expected));
}

TEST(FixedSizesWithOptions, StoredInBfloat16) {
  using Narrow = Eigen::Matrix<Eigen::bfloat16, 12, 10>;
  const Narrow Q = support::uniform<float>(12, 10, 1).cast<Eigen::bfloat16>(),
               K = support::uniform<float>(12, 10, 2).cast<Eigen::bfloat16>(),
               V = support::uniform<float>(12, 10, 3).cast<Eigen::bfloat16>();
  const Dynamic<Eigen::bfloat16> q = Q, k = K, v = V;
  EXPECT_TRUE(same_bits(attn::attention(Q, K, V), attn::attention(q, k, v)));
}

TEST(MixedSizes, GiveTheBitsOfDynamicOnes) {
  Operands<Middling> x;
  const Dynamic<float> Q = x.Q, K = x.K, V = x.V, expected = attn::attention(Q, K, V);
  const Eigen::Matrix<float, Eigen::Dynamic, 9> some_rows = x.Q;
  EXPECT_TRUE(same_bits(attn::attention(some_rows, x.K, x.V), expected));
  EXPECT_TRUE(same_bits(attn::attention(x.Q, K, x.V), expected));
  EXPECT_TRUE(same_bits(attn::attention(x.Q, x.K, V), expected));
  EXPECT_TRUE(
      same_bits(attn::attention(x.Q.eval(), 1.0f * x.K, x.V.block<35, 41>(0, 0)), expected));
}

}  // namespace
