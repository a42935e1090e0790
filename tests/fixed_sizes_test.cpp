// tests/fixed_sizes_test.cpp: calls whose sizes the operands' types tell: the bits of the same call on dynamic
// matrices, without an allocation. With options: fixed_options_test.cpp.
// SPDX-License-Identifier: MIT
#include "support/allocations.h"

#include <attn/attention.h>
#include <gtest/gtest.h>

#include <limits>

#include "support/fixed_sizes.h"
#include "support/random.h"

namespace {

using support::allocations_in;
using support::Dynamic;
using support::kCol;
using support::kRow;
using support::Operands;
using support::same_bits;
using support::Sizes;

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

}  // namespace
