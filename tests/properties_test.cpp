// tests/properties_test.cpp: what holds for attention whatever the numbers.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/reference_attention.h"
#include "support/scalar_names.h"

namespace {

using Eigen::Index;
using support::near;
using support::same_bits;
using support::uniform;

template <class Scalar>
using MatrixOf = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>;

template <class Scalar>
class Property : public ::testing::Test {
 protected:
  static constexpr double kRounding = 8 * double(std::numeric_limits<Scalar>::epsilon());

  static MatrixOf<Scalar> attend(const MatrixOf<Scalar>& Q, const MatrixOf<Scalar>& K,
                                 const MatrixOf<Scalar>& V) {
    return attn::attention(Q, K, V);
  }
};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Property, Scalars, support::ScalarNames);

TYPED_TEST(Property, WeightsSumToOne) {
  using Matrix = MatrixOf<TypeParam>;
  for (const Index keys : {1, 2, 15, 33, 256, 257, 1000}) {
    const Matrix Q = uniform<TypeParam>(19, 9, 1, 2), K = uniform<TypeParam>(keys, 9, 2, 2);
    const Matrix Y = this->attend(Q, K, Matrix::Ones(keys, 3));
    EXPECT_TRUE(near(Y, Matrix::Ones(19, 3), this->kRounding)) << keys;
  }
}

TYPED_TEST(Property, WeightsOfTheIdentityArePositiveAndSumToOne) {
  using Matrix = MatrixOf<TypeParam>;
  const Matrix Q = uniform<TypeParam>(19, 9, 1, 2), K = uniform<TypeParam>(300, 9, 2, 2);
  const Matrix P = this->attend(Q, K, Matrix::Identity(300, 300));
  EXPECT_GT(P.minCoeff(), 0);
  EXPECT_TRUE(near(P.rowwise().sum(), Matrix::Ones(19, 1), this->kRounding));
}

TYPED_TEST(Property, OutputsLieWithinTheValues) {
  using Matrix = MatrixOf<TypeParam>;
  const Matrix Q = uniform<TypeParam>(19, 9, 1, 8), K = uniform<TypeParam>(300, 9, 2, 8),
               V = uniform<TypeParam>(300, 4, 3, 2);
  const Matrix Y = this->attend(Q, K, V);
  for (Index c = 0; c < 4; ++c) {
    EXPECT_LE(double(Y.col(c).maxCoeff()), double(V.col(c).maxCoeff()) + this->kRounding);
    EXPECT_GE(double(Y.col(c).minCoeff()), double(V.col(c).minCoeff()) - this->kRounding);
  }
}

TYPED_TEST(Property, TheOrderOfTheKeysDoesNotMatter) {
  using Matrix = MatrixOf<TypeParam>;
  const Index keys = 700;
  const Matrix Q = uniform<TypeParam>(19, 9, 1, 2), K = uniform<TypeParam>(keys, 9, 2, 2),
               V = uniform<TypeParam>(keys, 4, 3, 2);
  std::vector<Index> order(keys);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(4));
  Matrix K_shuffled(keys, 9), V_shuffled(keys, 4);
  for (Index j = 0; j < keys; ++j) {
    K_shuffled.row(j) = K.row(order[std::size_t(j)]);
    V_shuffled.row(j) = V.row(order[std::size_t(j)]);
  }
  EXPECT_TRUE(
      near(this->attend(Q, K_shuffled, V_shuffled), this->attend(Q, K, V), this->kRounding));
}

TYPED_TEST(Property, ShiftingAllScoresOfARowChangesOnlyTheLogsumexp) {
  using Matrix = MatrixOf<TypeParam>;
  const Matrix Q = uniform<TypeParam>(19, 9, 1, 2), K = uniform<TypeParam>(300, 9, 2, 2),
               V = uniform<TypeParam>(300, 4, 3, 2);
  Matrix B(19, 300), l, shifted_l;
  for (Index i = 0; i < 19; ++i) B.row(i).setConstant(TypeParam(4 * i - 30));
  const Matrix Y =
      attn::attention(Q, K, V, attn::bias(Matrix::Zero(19, 300)), attn::save_logsumexp(l));
  const Matrix shifted = attn::attention(Q, K, V, attn::bias(B), attn::save_logsumexp(shifted_l));
  EXPECT_TRUE(near(shifted, Y, 8 * this->kRounding));
  EXPECT_TRUE(near(shifted_l, l + B.col(0), 16 * this->kRounding));
}

TYPED_TEST(Property, RepeatedKeysAndValuesChangeNothing) {
  using Matrix = MatrixOf<TypeParam>;
  const Matrix Q = uniform<TypeParam>(19, 9, 1, 2), K = uniform<TypeParam>(150, 9, 2, 2),
               V = uniform<TypeParam>(150, 4, 3, 2);
  const Matrix K_thrice = K.replicate(3, 1), V_thrice = V.replicate(3, 1);
  Matrix l, l_thrice;
  const Matrix once = attn::attention(Q, K, V, attn::save_logsumexp(l));
  const Matrix thrice = attn::attention(Q, K_thrice, V_thrice, attn::save_logsumexp(l_thrice));
  EXPECT_TRUE(near(thrice, once, this->kRounding));
  EXPECT_TRUE(near(l_thrice.array() - l.array(), Matrix::Constant(19, 1, std::log(TypeParam(3))),
                   4 * this->kRounding));
}

TYPED_TEST(Property, EqualKeysWeighAllValuesAlike) {
  using Matrix = MatrixOf<TypeParam>;
  const Matrix Q = uniform<TypeParam>(19, 9, 1, 2),
               K = uniform<TypeParam>(1, 9, 2, 2).replicate(300, 1),
               V = uniform<TypeParam>(300, 4, 3, 2);
  EXPECT_TRUE(near(this->attend(Q, K, V), V.colwise().mean().replicate(19, 1), this->kRounding));
}

TYPED_TEST(Property, IsLinearInTheValues) {
  using Matrix = MatrixOf<TypeParam>;
  const Matrix Q = uniform<TypeParam>(19, 9, 1, 2), K = uniform<TypeParam>(300, 9, 2, 2),
               V = uniform<TypeParam>(300, 4, 3, 2), W = uniform<TypeParam>(300, 4, 4, 2);
  EXPECT_TRUE(same_bits(this->attend(Q, K, 4 * V), Matrix(4 * this->attend(Q, K, V))));
  EXPECT_TRUE(near(this->attend(Q, K, V + W), this->attend(Q, K, V) + this->attend(Q, K, W),
                   2 * this->kRounding));
}

TYPED_TEST(Property, ValueFeaturesDoNotSeeEachOther) {
  using Matrix = MatrixOf<TypeParam>;
  const Matrix Q = uniform<TypeParam>(19, 9, 1, 2), K = uniform<TypeParam>(300, 9, 2, 2),
               V = uniform<TypeParam>(300, 37, 3, 2);
  const Matrix Y = this->attend(Q, K, V);
  for (const Index c : {0, 15, 16, 36}) {
    EXPECT_TRUE(same_bits(this->attend(Q, K, V.col(c)), Y.col(c))) << c;
  }
}

TYPED_TEST(Property, ManyBlocksOfKeysAreOne) {
  using Matrix = MatrixOf<TypeParam>;
  for (const Index keys : {255, 256, 257, 511, 513, 1300}) {
    // Scores that grow along the keys move the maximum in every block.
    const Matrix Q = uniform<TypeParam>(7, 9, 1, 2);
    Matrix K = uniform<TypeParam>(keys, 9, 2, 2);
    const Matrix V = uniform<TypeParam>(keys, 4, 3);
    for (Index j = 0; j < keys; ++j) K.row(j) *= TypeParam(4 * double(j) / double(keys));
    Matrix l;
    const Matrix Y = attn::attention(Q, K, V, attn::save_logsumexp(l));
    const auto expected = support::reference_attention(Q, K, V);
    EXPECT_TRUE(near(Y, expected.output, 4 * this->kRounding)) << keys;
    EXPECT_TRUE(near(l, expected.logsumexp, 32 * this->kRounding)) << keys;
  }
}

TYPED_TEST(Property, ADominantKeyGivesItsValue) {
  using Matrix = MatrixOf<TypeParam>;
  const Matrix Q = Matrix::Constant(5, 4, 100), V = uniform<TypeParam>(600, 3, 3, 2);
  Matrix K = Matrix::Zero(600, 4);
  for (const Index j : {0, 255, 256, 599}) {
    K.setZero();
    K.row(j).setConstant(100);
    EXPECT_TRUE(same_bits(this->attend(Q, K, V), V.row(j).replicate(5, 1).eval())) << j;
  }
}

TYPED_TEST(Property, TwoHalvesMergeByTheirLogsumexp) {
  using Matrix = MatrixOf<TypeParam>;
  const Index keys = 500, split = 217;
  const Matrix Q = uniform<TypeParam>(19, 9, 1, 2), K = uniform<TypeParam>(keys, 9, 2, 2),
               V = uniform<TypeParam>(keys, 4, 3, 2);
  Matrix la, lb, l;
  const Matrix whole = attn::attention(Q, K, V, attn::save_logsumexp(l));
  const Matrix a = attn::attention(Q, K.topRows(split), V.topRows(split), attn::save_logsumexp(la));
  const Matrix b = attn::attention(Q, K.bottomRows(keys - split), V.bottomRows(keys - split),
                                   attn::save_logsumexp(lb));
  for (Index i = 0; i < 19; ++i) {
    using std::exp;
    using std::log;
    const double x = double(la(i, 0)), y = double(lb(i, 0)), top = std::max(x, y);
    const double sum = top + log(exp(x - top) + exp(y - top));
    EXPECT_NEAR(double(l(i, 0)), sum, 8 * this->kRounding);
    const Matrix merged = a.row(i) * TypeParam(exp(x - sum)) + b.row(i) * TypeParam(exp(y - sum));
    EXPECT_TRUE(near(whole.row(i), merged, 2 * this->kRounding));
  }
}

TYPED_TEST(Property, DecodingIsTheLastRowOfTheWhole) {
  using Matrix = MatrixOf<TypeParam>;
  const Matrix Q = uniform<TypeParam>(40, 9, 1, 2), K = uniform<TypeParam>(300, 9, 2, 2),
               V = uniform<TypeParam>(300, 4, 3, 2);
  const Matrix whole = attn::attention(Q, K, V, attn::causal(attn::align::lower_right));
  const Matrix last = Q.row(39);
  EXPECT_TRUE(same_bits(attn::attention(last, K, V, attn::causal(attn::align::lower_right)),
                        whole.row(39)));
  EXPECT_TRUE(same_bits(this->attend(last, K, V), whole.row(39)));
}

TYPED_TEST(Property, EmptyInputsGiveEmptyOrZeroOutputs) {
  using Matrix = MatrixOf<TypeParam>;
  const Matrix Q = uniform<TypeParam>(4, 9, 1, 2), none(0, 9), no_values(0, 3);
  EXPECT_EQ(
      this->attend(none, uniform<TypeParam>(5, 9, 2, 2), uniform<TypeParam>(5, 3, 3, 2)).rows(), 0);
  EXPECT_TRUE(same_bits(this->attend(Q, none, no_values), Matrix::Zero(4, 3).eval()));
  const Matrix Y = this->attend(Q, uniform<TypeParam>(5, 9, 2, 2), Matrix(5, 0));
  EXPECT_EQ(Y.rows(), 4);
  EXPECT_EQ(Y.cols(), 0);
}

}  // namespace
