// tests/linear_test.cpp: the linear layer against an oracle of plain loops: shapes, activations, operands, threads.
// SPDX-License-Identifier: MIT
#include <attn/layout.h>
#include <attn/linear.h>
#include <gtest/gtest.h>

#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random_linear.h"
#include "support/scalar_names.h"

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

TEST(Linear, AddsItsInputWhereWidthsAgree) {
  auto linear = random_linear<float>(LinearOptions(37, 37).bias());
  const auto X = uniform<float>(29, 37, 4);
  const DynamicMatrix<float> Y = linear(X, attn::silu(), attn::residual());
  EXPECT_TRUE(same_bits(Y, DynamicMatrix<float>(linear(X, attn::silu(), attn::residual(X)))));
  EXPECT_TRUE(same_bits(Y, DynamicMatrix<float>(linear(X, attn::silu()) + X)));
}

TEST(Linear, TakesTheResidualInPlace) {
  auto linear = random_linear<float>(LinearOptions(37, 45).bias());
  const auto X = uniform<float>(29, 37, 4), R = uniform<float>(29, 45, 5);
  const auto expected = linear(X, attn::gelu(), attn::residual(R));
  DynamicMatrix<float> row_major = R;
  linear(X, attn::gelu(), attn::residual(row_major), attn::into(row_major));
  EXPECT_TRUE(same_bits(row_major, expected));
  MatrixXf column_major = R;
  linear(X, attn::gelu(), attn::residual(column_major), attn::into(column_major),
         attn::parallel(2));
  EXPECT_TRUE(same_bits(column_major, expected));
}

// A functor called with one number at a time never sees what pads a tile.
TEST(Linear, CallsAFunctorForTheNumbersOfTheResultOnly) {
  auto linear = random_linear<float>(LinearOptions(5, 19));
  long calls = 0;
  const auto count = [&calls](float x) {
    ++calls;
    return x;
  };
  const auto Y = linear(uniform<float>(7, 5, 4), attn::activation(count));
  EXPECT_EQ(calls, Y.size());
}

// Errors that all point one way do not show in random numbers: what the documentation bounds.
TEST(Linear, KeepsItsWordOnLongSums) {
  const double bounds[] = {1e-6, 2e-6, 4e-6};
  int n = 0;
  for (const Index in : {512, 4096, 16384}) {
    auto linear = random_linear<float>(LinearOptions(in, 33).bias());
    const auto X = uniform<float>(13, in, 4);
    const auto weights = linear.weights();
    EXPECT_TRUE(near(linear(X), reference_linear(weights, X, support::unchanged), bounds[n++]))
        << in << " features";

    const Reference sizes =
        support::project(widened(X).cwiseAbs(), widened(weights.kernel()).cwiseAbs(),
                         widened(weights.bias()).cwiseAbs());
    const auto positive = X.cwiseAbs();
    linear.edit([](auto& w) {
      w.kernel() = w.kernel().cwiseAbs().eval();
      w.bias() = w.bias().cwiseAbs().eval();
    });
    const Reference Y = widened(linear(positive));
    const long double share = (65 + static_cast<long double>(in) / 64) * 0x1p-24L;
    EXPECT_TRUE(((Y - sizes).array().abs() <= share * sizes.array()).all()) << in << " features";
  }
}

// ---- Operands -----------------------------------------------------------------------------------

TEST(Linear, TakesEveryOrderStrideAndExpression) {
  auto linear = random_linear<float>(LinearOptions(37, 45).bias());
  const DynamicMatrix<float> X = uniform<float>(29, 37, 4), R = uniform<float>(29, 45, 5);
  const DynamicMatrix<float> expected = linear(X, attn::gelu(), attn::residual(R));
  const auto check = [&](const auto& Y) { EXPECT_TRUE(same_bits(Y, expected)); };

  const MatrixXf by_columns = X;
  check(linear(by_columns, attn::gelu(), attn::residual(R)));
  check(linear(X * 1.f, attn::gelu(), attn::residual(R + 0 * R)));
  MatrixXf Y;
  linear(by_columns, attn::into(Y), attn::gelu(), attn::residual(MatrixXf(R)));
  check(Y);
  DynamicMatrix<float> wide = DynamicMatrix<float>::Zero(31, 97);
  wide.block(1, 3, 29, 37) = X;
  linear(wide.block(1, 3, 29, 37), attn::into(wide.block(1, 50, 29, 45)), attn::gelu(),
         attn::residual(R));
  check(wide.block(1, 50, 29, 45));
  EXPECT_EQ(wide.col(49).cwiseAbs().sum() + wide.col(95).cwiseAbs().sum(), 0);
  using Strided = Eigen::Map<MatrixXf, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>>;
  std::vector<float> memory(29 * 2 * 45 * 3, 7.f), residual(memory);
  Strided sparse(memory.data(), 29, 45, {29 * 2 * 3, 2});
  Strided sparse_residual(residual.data(), 29, 45, {2, 45 * 2});
  sparse_residual = R;
  linear(X.reverse().reverse(), attn::into(sparse), attn::gelu(), attn::residual(sparse_residual));
  check(sparse);
}

TEST(Linear, TakesStridedViewsOfOtherFrameworks) {
  constexpr Index L = 9, B = 3, in = 8, out = 10;
  auto linear = random_linear<float>(LinearOptions(in, out).bias());
  const auto X = uniform<float>(L * B, in, 4);  // time-major, [L, B, features]
  const auto expected = linear(X, attn::relu());
  DynamicMatrix<float> Y(L * B, out);
  linear(attn::lbhd(X.data(), L, B, 1, in), attn::into(attn::lbhd(Y.data(), L, B, 1, out)),
         attn::relu());
  EXPECT_TRUE(same_bits(Y, expected));
  MatrixXf stacked;  // the sequences one behind the other
  linear(attn::lbhd(X.data(), L, B, 1, in), attn::into(stacked), attn::relu());
  for (Index b = 0; b < B; ++b) {
    for (Index i = 0; i < L; ++i)
      EXPECT_TRUE(same_bits(stacked.row(b * L + i), expected.row(i * B + b)));
  }
}

template <class Scalar>
class NarrowLinear : public ::testing::Test {};
using NarrowScalars = ::testing::Types<Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(NarrowLinear, NarrowScalars, support::ScalarNames);

TYPED_TEST(NarrowLinear, WidensWeightsAndOperandsAndRoundsOnce) {
  auto narrow = random_linear<TypeParam>(LinearOptions(133, 45).bias());
  Linear<float> wide(LinearOptions(133, 45).bias());
  const auto weights = narrow.weights();
  wide.set(weights.kernel(), weights.bias());
  for (const Index rows : {1, 5, 40}) {
    const auto X = uniform<float>(rows, 133, 4), R = uniform<float>(rows, 45, 5);
    const auto expected = wide(X, attn::silu(), attn::residual(R));
    EXPECT_TRUE(same_bits(narrow(X, attn::silu(), attn::residual(R)), expected)) << rows << " rows";

    const DynamicMatrix<TypeParam> x = X.template cast<TypeParam>(),
                                   r = R.template cast<TypeParam>();
    const DynamicMatrix<float> of_narrow =
        wide(x.template cast<float>(), attn::silu(), attn::residual(r.template cast<float>()));
    const DynamicMatrix<TypeParam> rounded = narrow(x, attn::silu(), attn::residual(r));
    EXPECT_TRUE(same_bits(rounded, of_narrow.template cast<TypeParam>())) << rows << " rows";
  }
}

// ---- Weights --------------------------------------------------------------------------------------

TEST(LinearWeights, ComeBackAsTheyWereSet) {
  const auto W = uniform<float>(37, 45, 1);
  const Eigen::VectorXf b = uniform<float>(45, 1, 2);
  Linear<float> linear(LinearOptions(37, 45).bias());
  EXPECT_TRUE(same_bits(linear.weights().kernel(), MatrixXf::Zero(37, 45)));
  linear.set(W, b);
  EXPECT_TRUE(same_bits(linear.weights().kernel(), W));
  EXPECT_TRUE(same_bits(linear.weights().bias(), b.transpose()));
  const DynamicMatrix<float> pytorch = W.transpose();
  linear.set(Eigen::Map<const DynamicMatrix<float>>(pytorch.data(), 45, 37).transpose() * 2.f);
  EXPECT_TRUE(same_bits(linear.weights().kernel(), 2.f * W));
  EXPECT_TRUE(same_bits(linear.weights().bias(), b.transpose()));
  linear.edit([](auto& w) { w.bias().setOnes(); });
  EXPECT_TRUE(same_bits(linear.weights().kernel(), 2.f * W));
  EXPECT_TRUE(same_bits(linear.weights().bias(), Eigen::RowVectorXf::Ones(45)));
  linear.set(W.cast<double>(), b.cast<double>().transpose());
  EXPECT_TRUE(same_bits(linear.weights().kernel(), W));
}

TEST(LinearWeights, StayWhereAnEditIsRefusedOrThrows) {
  auto linear = random_linear<float>(LinearOptions(3, 4).bias());
  const auto before = linear.weights();
  EXPECT_THROW(linear.edit([](auto& w) { w.kernel().resize(4, 4); }), std::invalid_argument);
  EXPECT_THROW(linear.edit([](auto& w) {
    w.kernel().setZero();
    throw std::runtime_error("on purpose");
  }),
               std::runtime_error);
  EXPECT_THROW(linear.set(MatrixXf::Zero(3, 4), MatrixXf::Zero(2, 2)), std::invalid_argument);
  EXPECT_TRUE(same_bits(linear.weights().kernel(), before.kernel()));
  EXPECT_TRUE(same_bits(linear.weights().bias(), before.bias()));
}

TEST(Linear, IsARegularValue) {
  auto linear = random_linear<float>(LinearOptions(3, 4).bias());
  const auto X = uniform<float>(5, 3, 4);
  const DynamicMatrix<float> Y = linear(X);
  auto copy = linear, other = random_linear<float>(LinearOptions(7, 9));
  linear.edit([](auto& w) { w.kernel().setZero(); });
  EXPECT_TRUE(same_bits(copy(X), Y));
  other = copy;
  EXPECT_TRUE(same_bits(other(X), Y));
  other = std::move(copy);
  EXPECT_TRUE(same_bits(other(X), Y));
  EXPECT_THROW((void)copy(X), std::invalid_argument);
  copy = other;
  EXPECT_TRUE(same_bits(copy(X), Y));
}

}  // namespace
