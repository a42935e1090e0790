// tests/residual_test.cpp: x + Output, alone and as an option of attention.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <limits>
#include <type_traits>

#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/scalar_names.h"

namespace {

using Eigen::bfloat16;
using Eigen::half;
using Eigen::Index;
using Eigen::MatrixXf;
using support::numbers;
using support::same_bits;
template <class Scalar, int Order = Eigen::ColMajor>
using MatrixOf = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Order>;

// ---- residual_add ---------------------------------------------------------------------------

TEST(ResidualAdd, IsTheSum) {
  Eigen::Matrix<float, 1, 3> x(1, 2, 3), y(3, 4, 5), sum(4, 6, 8);
  EXPECT_TRUE(same_bits(attn::residual_add(x, y), sum));
  const MatrixXf a = numbers(21, 13, 1), b = numbers(21, 13, 2), expected = a + b;
  EXPECT_TRUE(same_bits(attn::residual_add(a, b), expected));
}

TEST(ResidualAdd, ReturnsTheTypeOfY) {
  const Eigen::Matrix<half, 2, 2, Eigen::RowMajor> y = numbers(2, 2, 1).cast<half>();
  const MatrixXf x = numbers(2, 2, 2);
  const auto sum = attn::residual_add(x, y);
  static_assert(
      std::is_same_v<std::decay_t<decltype(sum)>, Eigen::Matrix<half, 2, 2, Eigen::RowMajor>>);
  const Eigen::Matrix<half, 2, 2> expected = (x + y.cast<float>()).cast<half>();
  EXPECT_TRUE(same_bits(sum, expected));
}

TEST(ResidualAdd, OfTwoNumbersIsNotMistakenForSizes) {
  const Eigen::Vector2f x(10, 20), y(1, 2), sum(11, 22);
  EXPECT_TRUE(same_bits(attn::residual_add(x, y), sum));
}

TEST(ResidualAdd, WritesIntoAnyMatrix) {
  const MatrixXf x = numbers(5, 7, 1), y = numbers(5, 7, 2), expected = x + y;
  MatrixXf resized;
  attn::residual_add(x, y, attn::into(resized));
  EXPECT_TRUE(same_bits(resized, expected));
  MatrixOf<float, Eigen::RowMajor> big = MatrixXf::Constant(9, 9, 4);
  attn::residual_add(x, y, attn::into(big.block(2, 1, 5, 7)));
  EXPECT_TRUE(same_bits(big.block(2, 1, 5, 7), expected));
  EXPECT_EQ((big.array() == 4.f).count(), 81 - 35);
  MatrixXf turned(7, 5);
  attn::residual_add(x, y, attn::into(turned.transpose()));
  EXPECT_TRUE(same_bits(turned.transpose(), expected));
}

TEST(ResidualAdd, MixesStorageOrdersAndExpressions) {
  const MatrixXf x = numbers(5, 7, 1), y = numbers(5, 7, 2), expected = 2 * x + y;
  const MatrixOf<float, Eigen::RowMajor> rows = y;
  EXPECT_TRUE(same_bits(attn::residual_add(2 * x, rows), expected));
  EXPECT_TRUE(same_bits(attn::residual_add(2 * x.array(), y), expected));
  const MatrixXf turned = y.transpose();
  EXPECT_TRUE(same_bits(attn::residual_add(2 * x, turned.transpose()), expected));
}

TEST(ResidualAdd, WorksInPlace) {
  const MatrixXf x = numbers(5, 7, 1), y = numbers(5, 7, 2), expected = x + y;
  MatrixXf into_x = x, into_y = y, twice = x;
  attn::residual_add(into_x, y, attn::into(into_x));
  EXPECT_TRUE(same_bits(into_x, expected));
  attn::residual_add(x, into_y, attn::into(into_y));
  EXPECT_TRUE(same_bits(into_y, expected));
  attn::residual_add(twice, twice, attn::into(twice));
  EXPECT_TRUE(same_bits(twice, MatrixXf(2 * x)));
}

template <class Storage>
class ResidualAddOf : public ::testing::Test {};
using StorageTypes = ::testing::Types<half, bfloat16>;
TYPED_TEST_SUITE(ResidualAddOf, StorageTypes, support::ScalarNames);

TYPED_TEST(ResidualAddOf, SixteenBitsRoundsOnce) {
  // x + y + nothing else: a sum in float that is rounded at the end only.
  const MatrixOf<TypeParam> x = numbers(40, 9, 1).cast<TypeParam>(),
                            y = numbers(40, 9, 2).cast<TypeParam>();
  const MatrixOf<TypeParam> expected =
      (x.template cast<float>() + y.template cast<float>()).template cast<TypeParam>();
  EXPECT_TRUE(same_bits(attn::residual_add(x, y), expected));
  MatrixXf wide;
  attn::residual_add(x, y, attn::into(wide));
  const MatrixXf wide_expected = x.template cast<float>() + y.template cast<float>();
  EXPECT_TRUE(same_bits(wide, wide_expected));
}

// ---- The option -----------------------------------------------------------------------------

struct Operands {
  MatrixXf Q = numbers(37, 8, 1), K = numbers(70, 8, 2), V = numbers(70, 5, 3),
           X = numbers(37, 5, 4);
};

TEST(ResidualOption, HasTheBitsOfResidualAdd) {
  const Operands in;
  const MatrixXf expected = attn::residual_add(in.X, attn::attention(in.Q, in.K, in.V));
  EXPECT_TRUE(same_bits(attn::attention(in.Q, in.K, in.V, attn::residual(in.X)), expected));
}

TEST(ResidualOption, TakesAnyMatrix) {
  const Operands in;
  const MatrixXf expected = attn::attention(in.Q, in.K, in.V, attn::residual(in.X));
  const MatrixOf<float, Eigen::RowMajor> rows = in.X;
  const MatrixXf turned = in.X.transpose(), half_of = 0.5f * in.X;
  MatrixXf big = MatrixXf::Constant(50, 20, 9);
  big.block(3, 4, 37, 5) = in.X;
  EXPECT_TRUE(same_bits(attn::attention(in.Q, in.K, in.V, attn::residual(rows)), expected));
  EXPECT_TRUE(
      same_bits(attn::attention(in.Q, in.K, in.V, attn::residual(turned.transpose())), expected));
  EXPECT_TRUE(same_bits(attn::attention(in.Q, in.K, in.V, attn::residual(big.block(3, 4, 37, 5))),
                        expected));
  EXPECT_TRUE(same_bits(attn::attention(in.Q, in.K, in.V, attn::residual(2 * half_of)), expected));
  EXPECT_TRUE(same_bits(
      attn::attention(in.Q, in.K, in.V, attn::residual(attn::bhld(rows.data(), 1, 1, 37, 5))),
      expected));
}

TEST(ResidualOption, OfHeadsLiesLikeTheOutput) {
  const MatrixXf Q = numbers(12, 8, 1), K = numbers(12, 8, 2), V = numbers(12, 6, 3),
                 X = numbers(12, 6, 4);
  const auto attend = [&](const auto& option) -> MatrixXf {
    return attn::attention(attn::heads(Q, 2), attn::heads(K, 2), attn::heads(V, 2),
                           attn::sequence_length(4), option);
  };
  const MatrixXf without = attn::attention(attn::heads(Q, 2), attn::heads(K, 2), attn::heads(V, 2),
                                           attn::sequence_length(4));
  const MatrixXf expected = X + without;
  EXPECT_TRUE(same_bits(attend(attn::residual(X)), expected));
  EXPECT_TRUE(same_bits(attend(attn::residual(attn::heads(X, 2))), expected));
  // [B, L, H, d] memory is the rows of a row-major matrix.
  const MatrixOf<float, Eigen::RowMajor> rows = X;
  EXPECT_TRUE(same_bits(attend(attn::residual(attn::blhd(rows.data(), 3, 4, 2, 3))), expected));
}

TEST(ResidualOption, IsAddedInTheComputeTypeBeforeTheOneRounding) {
  const Operands in;
  MatrixOf<half> Y;
  attn::attention(in.Q, in.K, in.V, attn::residual(in.X), attn::into(Y));
  const MatrixOf<half> once = (in.X + attn::attention(in.Q, in.K, in.V)).template cast<half>();
  EXPECT_TRUE(same_bits(Y, once));
  const MatrixOf<half> rounded = attn::attention(in.Q, in.K, in.V).cast<half>();
  const MatrixOf<half> twice = (in.X + rounded.cast<float>()).cast<half>();
  EXPECT_FALSE(same_bits(Y, twice)) << "this input cannot tell one rounding from two";
}

TEST(ResidualOption, MayBeStoredOtherwise) {
  const Operands in;
  const MatrixOf<bfloat16> X = in.X.cast<bfloat16>();
  const MatrixXf expected = X.cast<float>() + attn::attention(in.Q, in.K, in.V);
  EXPECT_TRUE(same_bits(attn::attention(in.Q, in.K, in.V, attn::residual(X)), expected));
}

TEST(ResidualOption, IsWhatARowWithoutKeysGives) {
  const Operands in;
  const MatrixXf Y = attn::attention(in.Q, in.K, in.V, attn::residual(in.X), attn::causal_from(-5));
  EXPECT_TRUE(same_bits(Y.topRows(5), in.X.topRows(5)));
  EXPECT_FALSE(same_bits(Y.row(5), in.X.row(5)));
}

TEST(ResidualOption, DoesNotTouchTheLogsumexp) {
  const Operands in;
  MatrixXf with, without;
  (void)attn::attention(in.Q, in.K, in.V, attn::residual(in.X), attn::save_logsumexp(with));
  (void)attn::attention(in.Q, in.K, in.V, attn::save_logsumexp(without));
  EXPECT_TRUE(same_bits(with, without));
}

}  // namespace
