// tests/linear_test.cpp: the linear layer against an oracle of plain loops: shapes, activations, operands, threads.
// SPDX-License-Identifier: MIT
#include <attn/linear.h>
#include <gtest/gtest.h>

#include <type_traits>

#include "support/matrix_matchers.h"
#include "support/random_linear.h"
#include "support/scalar_names.h"
#include "support/threads.h"

namespace {

using attn::Linear;
using attn::LinearOptions;
using Eigen::Index;
using Eigen::MatrixXf;
using support::DynamicMatrix;
using support::near;
using support::random_linear;
using support::Reference;
using support::reference_linear;
using support::same_bits;
using support::uniform;
using support::widened;

/// Absolute, on unit-scale weights and inputs in [−1, 1], up to 512 features.
template <class Scalar>
constexpr double kTolerance = std::is_same_v<attn::compute_t<Scalar>, float> ? 1e-6
                              : std::is_same_v<Scalar, double>               ? 1e-14
                                                                             : 1e-17;

template <class Scalar>
class LinearOf : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, long double>;
TYPED_TEST_SUITE(LinearOf, Scalars, support::ScalarNames);

// ---- Shapes ---------------------------------------------------------------------------------

TYPED_TEST(LinearOf, AgreesWithTheOracleAtEveryTileBound) {
  using Size = attn::kernel::TileSize<TypeParam>;
  constexpr Index R = Size::rows, P = Size::panel, D = Size::depth, Run = Size::projection_run;
  for (const Index in : {Index(1), D - 1, D, D + 1, Run - 1, Run, Run + 1, 2 * Run + 3}) {
    for (const Index out : {Index(1), P - 1, P, P + 1, 2 * P + 1}) {
      auto linear = random_linear<TypeParam>(LinearOptions(in, out).bias());
      for (const Index rows : {Index(0), Index(1), R - 1, R, R + 1, 2 * R + 1}) {
        const auto X = uniform<TypeParam>(rows, in, 4);
        const DynamicMatrix<TypeParam> Y = linear(X);
        EXPECT_TRUE(near(Y, reference_linear(linear.weights(), X, support::unchanged),
                         kTolerance<TypeParam>))
            << rows << " rows of " << in << " to " << out;
      }
    }
  }
}

TYPED_TEST(LinearOf, AgreesWithTheOracleBeyondAPieceOfRows) {
  const Index piece = attn::kernel::TileSize<TypeParam>::max_piece_rows;
  auto linear = random_linear<TypeParam>(LinearOptions(40, 70));
  for (const Index rows : {piece - 1, piece, piece + 1, 2 * piece + 7}) {
    const auto X = uniform<TypeParam>(rows, 40, 4);
    EXPECT_TRUE(near(linear(X), reference_linear(linear.weights(), X, support::unchanged),
                     kTolerance<TypeParam>))
        << rows << " rows";
  }
}

// ---- Activations and residuals ----------------------------------------------------------------

TYPED_TEST(LinearOf, AppliesTheActivationAndThenAddsTheResidual) {
  auto linear = random_linear<TypeParam>(LinearOptions(37, 45).bias());
  const auto X = uniform<TypeParam>(29, 37, 4, 2), R = uniform<TypeParam>(29, 45, 5);
  const auto agrees = [&](const DynamicMatrix<TypeParam>& Y, auto formula) {
    return near(Y, reference_linear(linear.weights(), X, formula, widened(R)),
                4 * kTolerance<TypeParam>);
  };
  const auto r = attn::residual(R);
  EXPECT_TRUE(agrees(linear(X, r), support::unchanged));
  EXPECT_TRUE(agrees(linear(X, attn::relu(), r), support::relu_of));
  EXPECT_TRUE(agrees(linear(X, r, attn::gelu()), support::gelu_of));
  EXPECT_TRUE(agrees(linear(X, attn::gelu_tanh(), r), support::gelu_tanh_of));
  EXPECT_TRUE(agrees(linear(X, attn::silu(), r), support::silu_of));
  const TypeParam slope(0.125);
  const auto leaky = attn::activation([=](auto x) { return max(x, 0) + slope * min(x, 0); });
  const auto leaky_of = [&](long double x) {
    return x > 0 ? x : static_cast<long double>(slope) * x;
  };
  EXPECT_TRUE(agrees(linear(X, leaky, r), leaky_of));
  const auto one_by_one =
      attn::activation([=](TypeParam x) { return x > TypeParam(0) ? x : TypeParam(slope * x); });
  EXPECT_TRUE(agrees(linear(X, one_by_one, r), leaky_of));
}

}  // namespace
