// tests/fixed_sizes_test.cpp: calls whose sizes the operands' types tell: the bits of the same call on dynamic
// matrices, without an allocation.
// SPDX-License-Identifier: MIT
#include "support/allocations.h"

#include <attn/attention.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <type_traits>

#include "support/random.h"

namespace {

using Eigen::Index;
using support::allocations_in;

template <class Scalar>
using Dynamic = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>;

template <class A, class B>
::testing::AssertionResult same_bits(const A& a, const B& b) {
  if (a.rows() != b.rows() || a.cols() != b.cols()) return ::testing::AssertionFailure() << "sizes";
  for (Index i = 0; i < a.rows(); ++i) {
    for (Index c = 0; c < a.cols(); ++c) {
      const auto x = a(i, c);
      const auto y = b(i, c);
      if (std::memcmp(&x, &y, sizeof x) != 0 && !(x != x && y != y))
        return ::testing::AssertionFailure() << "(" << i << ", " << c << "): " << x << ", " << y;
    }
  }
  return ::testing::AssertionSuccess();
}

/// Sizes and storage orders of a call. (No column-major rows, no row-major columns.)
template <class Scalar_, int Rows, int Keys, int KeyDim, int ValueDim, int QueryOrder, int KeyOrder,
          int ValueOrder, int OutputOrder>
struct Sizes {
  using Scalar = Scalar_;
  using Q = Eigen::Matrix<Scalar, Rows, KeyDim, QueryOrder>;
  using K = Eigen::Matrix<Scalar, Keys, KeyDim, KeyOrder>;
  using V = Eigen::Matrix<Scalar, Keys, ValueDim, ValueOrder>;
  using Y = Eigen::Matrix<Scalar, Rows, ValueDim, OutputOrder>;
};
constexpr int kRow = Eigen::RowMajor, kCol = Eigen::ColMajor;

template <class Sizes_>
struct Operands {
  typename Sizes_::Q Q = support::uniform<typename Sizes_::Scalar>(Sizes_::Q::RowsAtCompileTime,
                                                                   Sizes_::Q::ColsAtCompileTime, 1);
  typename Sizes_::K K = support::uniform<typename Sizes_::Scalar>(Sizes_::K::RowsAtCompileTime,
                                                                   Sizes_::K::ColsAtCompileTime, 2);
  typename Sizes_::V V = support::uniform<typename Sizes_::Scalar>(Sizes_::V::RowsAtCompileTime,
                                                                   Sizes_::V::ColsAtCompileTime, 3);
  typename Sizes_::Y Y = Sizes_::Y::Zero();
};

template <class Sizes_>
class FixedSizes : public ::testing::Test {};
using AllSizes = ::testing::Types<
    Sizes<float, 8, 8, 8, 8, kCol, kCol, kCol, kCol>,      // smaller than a packet of AVX-512
    Sizes<float, 16, 16, 32, 32, kRow, kRow, kRow, kRow>,  // whole packets
    Sizes<float, 13, 35, 9, 41, kRow, kCol, kRow, kCol>,   // nothing whole, several panels
    Sizes<float, 64, 33, 5, 17, kCol, kRow, kCol, kRow>,   // several strips, two runs of keys
    Sizes<float, 1, 3, 4, 2, kRow, kRow, kRow, kRow>,      // one row
    Sizes<double, 17, 11, 6, 12, kCol, kRow, kRow, kRow>,  // doubles
    Sizes<double, 5, 6, 4, 3, kRow, kRow, kRow, kRow>>;    // half a depth step of keys is left
TYPED_TEST_SUITE(FixedSizes, AllSizes);

TYPED_TEST(FixedSizes, GiveTheBitsOfDynamicOnes) {
  using Scalar = typename TypeParam::Scalar;
  Operands<TypeParam> x;
  const Dynamic<Scalar> Q = x.Q, K = x.K, V = x.V, expected = attn::attention(Q, K, V);
  EXPECT_EQ(allocations_in([&] { attn::attention(x.Q, x.K, x.V, attn::into(x.Y)); }), 0);
  EXPECT_TRUE(same_bits(x.Y, expected));
}

TYPED_TEST(FixedSizes, AndWithValuesThatAreNotFinite) {
  using Scalar = typename TypeParam::Scalar;
  const Scalar infinity = std::numeric_limits<Scalar>::infinity();
  Operands<TypeParam> x;
  x.V(1, 0) = infinity;
  x.V(2, 1) = -infinity;
  x.K(2, 0) = -infinity;  // a key of which some rows see nothing
  const Dynamic<Scalar> Q = x.Q, K = x.K, V = x.V, expected = attn::attention(Q, K, V);
  EXPECT_EQ(allocations_in([&] { attn::attention(x.Q, x.K, x.V, attn::into(x.Y)); }), 0);
  EXPECT_TRUE(same_bits(x.Y, expected));
}

// By columns a bias goes through a table of the strip, which is as high here as no dynamic one.
TYPED_TEST(FixedSizes, WithABiasInEitherOrder) {
  using Scalar = typename TypeParam::Scalar;
  constexpr int kRows = TypeParam::Q::RowsAtCompileTime, kKeys = TypeParam::K::RowsAtCompileTime;
  Operands<TypeParam> x;
  const Dynamic<Scalar> Q = x.Q, K = x.K, V = x.V, B = support::uniform<Scalar>(kRows, kKeys, 4);
  const Dynamic<Scalar> expected = attn::attention(Q, K, V, attn::bias(B));
  const Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> by_rows = B;
  attn::attention(x.Q, x.K, x.V, attn::into(x.Y), attn::bias(B));
  EXPECT_TRUE(same_bits(x.Y, expected));
  x.Y.setZero();
  attn::attention(x.Q, x.K, x.V, attn::into(x.Y), attn::bias(by_rows));
  EXPECT_TRUE(same_bits(x.Y, expected));
}

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
