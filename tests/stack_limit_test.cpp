// tests/stack_limit_test.cpp: an EIGEN_STACK_ALLOCATION_LIMIT of 0 is no limit, as Eigen reads it: scratch of fixed sizes lies
// on the stack, however large.
// SPDX-License-Identifier: MIT
// build: -Og
#define EIGEN_STACK_ALLOCATION_LIMIT 0
#include "support/allocations.h"

#include <attn/attn.h>

#include "support/matrix_matchers.h"
#include "support/random.h"

namespace {

using support::allocations_in;

// Its scratch takes twice as much as Eigen's own limit, 128 KiB.
using Keys = Eigen::Matrix<float, 600, 16>;
using Queries = Eigen::Matrix<float, 600, 16>;

TEST(StackLimit, OfZeroIsNone) {
  EXPECT_TRUE(attn::detail::fits_stack(std::int64_t(1) << 40));
  const Queries Q = support::uniform<float>(600, 16, 1);
  const Keys K = support::uniform<float>(600, 16, 2);
  Queries Y;
  EXPECT_EQ(allocations_in([&] { attn::attention(Q, K, K, attn::into(Y)); }), 0);
  const Eigen::MatrixXf q = Q, k = K;
  EXPECT_TRUE(support::same_bits(Y, Eigen::MatrixXf(attn::attention(q, k, k))));
}

TEST(StackLimit, OfZeroIsNoneForALayerNeither) {
  const Eigen::Matrix<float, 300, 32> X = support::uniform<float>(300, 32, 1);
  Eigen::Matrix<float, 300, 32> Y;
  attn::Linear<float, 32, 32> linear;
  EXPECT_EQ(allocations_in([&] { linear(X, attn::into(Y)); }), 0);
}

}  // namespace
