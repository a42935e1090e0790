// tests/gradient_test.cpp: the gradients by queries, keys and values are the oracle's, at every size
// and in every batch.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "support/gradient_case.h"
#include "support/scalar_names.h"
#include "support/textbook.h"

namespace {

using Eigen::Index;
using support::GradientCase;
using support::near_gradient;
using support::Reference;
using support::reference_gradient;
using support::Training;

template <class Scalar>
class Gradient : public ::testing::Test {
 protected:
  using Case = GradientCase<Scalar>;
  static constexpr Index W = attn::detail::Simd<Scalar>::width;

  static void expect_formula(const Case& x) {
    SCOPED_TRACE(testing::Message() << x.Q.rows() << " x " << x.K.rows() << " of " << x.key_dim
                                    << " and " << x.value_dim);
    expect_gradients(support::trained(x), reference_gradient(x.Q, x.K, x.V, x.dY, x.reference()));
  }
  static std::vector<Index> features() {
    std::vector<Index> features = {1, 2 * W - 1, 2 * W, 2 * W + 1, W, W + 1, 59, 64};
    if (W > 1) features.push_back(W - 1);
    return features;
  }
  static std::vector<Index> lengths() {
    std::vector<Index> lengths = {1, 2, 3};
    for (const Index bound : {W, 2 * W, Index(6), Index(12), Index(96), Index(192), Index(256)})
      for (const Index n : {bound - 1, bound, bound + 1}) lengths.push_back(std::max<Index>(n, 1));
    return lengths;
  }
};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Gradient, Scalars, support::ScalarNames);

// Two queries, two keys, one feature, scale 1: by hand.
//   s = (0, 1; 0, 0),  P = (1 − p, p; ½, ½),  p = e / (1 + e);  dY = (1; 1), v = (0; 1)
//   dP = (0, 1; 0, 1),  δ = (p; ½),  dS = (−p(1 − p), p(1 − p); −¼, ¼)
TYPED_TEST(Gradient, IsWhatOneFindsByHand) {
  GradientCase<TypeParam> x(2, 2, 1, 1);
  x.Q << 1, 0;
  x.K << 0, 1;
  x.V << 0, 1;
  x.dY << 1, 1;
  const auto g = support::trained(x);  // scale: 1/√1
  const TypeParam p = TypeParam(0.73105857863000487925L), s = p * (1 - p);
  typename GradientCase<TypeParam>::Matrix dQ(2, 1), dK(2, 1), dV(2, 1);
  dQ << s, TypeParam(0.25);
  dK << -s, s;
  dV << 1 - p + TypeParam(0.5), p + TypeParam(0.5);
  EXPECT_TRUE(support::near(g.query, dQ, 3e-7));
  EXPECT_TRUE(support::near(g.key, dK, 3e-7));
  EXPECT_TRUE(support::near(g.value, dV, 3e-7));
}

TYPED_TEST(Gradient, IsTheFormulaForEveryNumberOfQueries) {
  Index d = 0;
  for (const Index queries : this->lengths()) {
    ++d;
    this->expect_formula({queries, 37, 1 + d % 19, 1 + d % 7});
  }
  for (const Index queries : {959, 960, 961, 1100}) this->expect_formula({queries, 19, 3, 5});
}
TYPED_TEST(Gradient, IsTheFormulaForEveryNumberOfKeys) {
  Index d = 0;
  for (const Index keys : this->lengths()) {
    ++d;
    this->expect_formula({29, keys, 1 + d % 19, 1 + d % 7});
  }
  for (const Index keys : {511, 512, 513, 1025}) this->expect_formula({13, keys, 3, 5});
}
TYPED_TEST(Gradient, IsTheFormulaForEveryNumberOfFeatures) {
  for (const Index d : this->features()) {
    this->expect_formula({14, 35, d, 3});
    this->expect_formula({14, 35, 3, d});
  }
  this->expect_formula({113, 203, 59, 59});
  this->expect_formula({113, 203, 59, 41});
  this->expect_formula({15, 300, 131, 140});  // a block of fewer keys
  this->expect_formula({15, 150, 300, 20});
}
TYPED_TEST(Gradient, IsTheFormulaForEveryBatchAndHeads) {
  for (const support::BatchCase& batch : std::vector<support::BatchCase>{
           {{0, 21}, {0, 70}, 3, 3},
           {{0, 110}, {0, 270}, 6, 2},
           {{0, 33}, {0, 40}, 8, 1},
           {{0, 5, 5, 45}, {0, 5, 5, 45}, 4, 2},
           {{0, 5, 17, 18, 148}, {0, 9, 9, 75, 350}, 6, 2},  // one sequence without keys
           {{0, 3, 20, 120}, {0, 33}, 2, 1},                 // keys that serve all sequences
           {{0, 100, 203}, {0, 300}, 4, 4}}) {
    this->expect_formula({batch, 5, 3});
    this->expect_formula({batch, 16, 8});
  }
}

TYPED_TEST(Gradient, OfNothingIsNothing) {
  for (const auto& [queries, keys] : {std::pair<Index, Index>{0, 7}, {7, 0}, {0, 0}}) {
    using Matrix = support::DynamicMatrix<TypeParam>;
    const auto g = support::trained(GradientCase<TypeParam>(queries, keys, 4, 3));
    EXPECT_TRUE(support::same_bits(g.query, Matrix(Matrix::Zero(queries, 4))));
    EXPECT_TRUE(support::same_bits(g.key, Matrix(Matrix::Zero(keys, 4))));
    EXPECT_TRUE(support::same_bits(g.value, Matrix(Matrix::Zero(keys, 3))));
  }
}

TYPED_TEST(Gradient, ErrsByTwiceWhatTheFormulaByHandErrsByAtMost) {
  const long double epsilon = std::numeric_limits<TypeParam>::epsilon();
  for (const auto& [queries, keys, d] : {std::tuple<Index, Index, Index>{113, 203, 59},
                                         {256, 256, 64},
                                         {40, 700, 32},
                                         {700, 40, 32}}) {
    const GradientCase<TypeParam> x(queries, keys, d, d);
    const auto g = support::trained(x);
    const auto h = support::textbook_gradient(x.Q, x.K, x.V, x.dY);
    const auto expected = reference_gradient(x.Q, x.K, x.V, x.dY, x.reference());
    SCOPED_TRACE(testing::Message() << queries << " x " << keys);
    const auto expect_as_good = [&](const auto& ours, const auto& theirs, const Reference& exact) {
      EXPECT_LE(double(support::worst_error(ours, exact)),
                double(2 * support::worst_error(theirs, exact) +
                       2 * epsilon * exact.cwiseAbs().maxCoeff()));
    };
    expect_as_good(g.query, h.query, expected.query);
    expect_as_good(g.key, h.key, expected.key);
    expect_as_good(g.value, h.value, expected.value);
  }
}

TYPED_TEST(Gradient, IsZeroWhereValuesHaveNoFeatures) {
  using Matrix = typename Training<TypeParam>::Matrix;
  GradientCase<TypeParam> x(5, 7, 3, 1);
  x.V.resize(7, 0);
  x.dY.resize(5, 0);
  const auto g = support::trained(x);
  EXPECT_EQ(g.query, Matrix::Zero(5, 3));
  EXPECT_EQ(g.key, Matrix::Zero(7, 3));
  EXPECT_EQ(g.value.cols(), 0);
}

// accumulate() adds to what is there, rounded once.
TYPED_TEST(Gradient, IsAddedToWhatIsThere) {
  const GradientCase<TypeParam> x({{0, 5, 17, 118}, {0, 9, 9, 275}, 6, 2}, 11, 7);
  auto g = support::trained(x);
  Training<TypeParam> sum = g;
  sum.query = support::uniform<TypeParam>(x.Q.rows(), x.Q.cols(), 11);
  sum.key = support::uniform<TypeParam>(x.K.rows(), x.K.cols(), 12);
  sum.value = support::uniform<TypeParam>(x.V.rows(), x.V.cols(), 13);
  g.query += sum.query;
  g.key += sum.key;
  g.value += sum.value;
  sum.backward(x, attn::accumulate());
  expect_same_gradients(sum, g);
}

}  // namespace
