// tests/linear_gradient_test.cpp: the linear layer's backward pass against plain loops in long double, themselves held to differences.
// SPDX-License-Identifier: MIT
#include <attn/layout.h>
#include <attn/linear_gradient.h>
#include <gtest/gtest.h>

#include <cmath>
#include <utility>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random_linear.h"
#include "support/scalar_names.h"
#include "support/special_values.h"

namespace {

using attn::Linear;
using attn::LinearGradients;
using attn::LinearOptions;
using attn::LinearState;
using Eigen::Index;
using Eigen::MatrixXf;
using support::DynamicMatrix;
using support::near;
using support::random_linear;
using support::Reference;
using support::same_bits;
using support::uniform;
using support::widened;

using Function = long double (*)(long double);

// ---- The oracle -------------------------------------------------------------------------------

struct Gradients {
  Reference input, weight, bias;
};
/// Of the loss Σ dY ∘ act(X·W + b), by the slope of act.
template <class Weights, class X, class OutputGradient>
Gradients reference_gradients(const Weights& w, const X& x, const OutputGradient& dy,
                              Function slope) {
  const Reference X_ = widened(x), W = widened(w.kernel()), b = widened(w.bias()), dY = widened(dy);
  const Index rows = X_.rows(), in = W.rows(), out = W.cols();
  Gradients g{Reference::Zero(rows, in), Reference::Zero(in, out), Reference::Zero(1, b.size())};
  for (Index i = 0; i < rows; ++i) {
    for (Index n = 0; n < out; ++n) {
      long double z = b.size() == 0 ? 0 : b(0, n);
      for (Index c = 0; c < in; ++c) z += X_(i, c) * W(c, n);
      const long double dz = dY(i, n) * slope(z);
      for (Index c = 0; c < in; ++c) {
        g.input(i, c) += dz * W(c, n);
        g.weight(c, n) += X_(i, c) * dz;
      }
      if (b.size() != 0) g.bias(0, n) += dz;
    }
  }
  return g;
}

long double one(long double) { return 1; }
long double relu_slope(long double x) { return x > 0 ? 1 : 0; }
long double gelu_slope(long double x) {
  return std::erfc(-x * 0.707106781186547524400844362104849039L) / 2 +
         x * 0.398942280401432677939946059934381868L * std::exp(-x * x / 2);
}
long double gelu_tanh_slope(long double x) {
  const long double a = 0.797884560802865355879892119868763737L, b = 0.044715L;
  const long double t = std::tanh(a * (x + b * x * x * x));
  return (1 + t) / 2 + x / 2 * (1 - t * t) * a * (1 + 3 * b * x * x);
}
long double silu_slope(long double x) {
  const long double s = 1 / (1 + std::exp(-x));
  return s + x * s * (1 - s);
}

TEST(LinearGradientOracle, AgreesWithDifferences) {
  struct Case {
    Function act, slope;
  };
  for (const Case& c : {Case{support::gelu_of, gelu_slope}, Case{support::silu_of, silu_slope},
                        Case{support::gelu_tanh_of, gelu_tanh_slope}}) {
    auto linear = random_linear<long double>(LinearOptions(3, 4).bias());
    const auto X = uniform<long double>(5, 3, 4), dY = uniform<long double>(5, 4, 5);
    auto w = attn::LinearWeights<long double>(linear.weights());
    const Gradients g = reference_gradients(w, X, dY, c.slope);
    const long double h = 0x1p-21L;
    const auto loss = [&](const auto& x) {
      return (support::reference_linear(w, x, c.act).array() * widened(dY).array()).sum();
    };
    const auto check = [&](long double& number, const auto& x, long double gradient) {
      const long double before = number;
      number = before + h;
      const long double above = loss(x);
      number = before - h;
      const long double below = loss(x);
      number = before;
      EXPECT_NEAR(static_cast<double>((above - below) / (2 * h)), static_cast<double>(gradient),
                  1e-10);
    };
    auto x = X;
    for (Index i = 0; i < x.rows(); ++i) {
      for (Index k = 0; k < x.cols(); ++k) check(x(i, k), x, g.input(i, k));
    }
    for (Index k = 0; k < 3; ++k) {
      for (Index n = 0; n < 4; ++n) check(w.kernel()(k, n), x, g.weight(k, n));
    }
    for (Index n = 0; n < 4; ++n) check(w.bias()(n), x, g.bias(0, n));
  }
}

/// |error| ≤ tolerance · (1 + the largest of the oracle).
template <class Scalar>
constexpr long double kTolerance = std::is_same_v<Scalar, float>    ? 1e-6L
                                   : std::is_same_v<Scalar, double> ? 1e-14L
                                                                    : 1e-17L;
template <class Scalar, class Actual>
::testing::AssertionResult agrees(const Actual& actual, const Reference& expected) {
  const long double most = expected.size() == 0 ? 0 : expected.cwiseAbs().maxCoeff();
  return near(actual, expected, kTolerance<Scalar> * (1 + most));
}
template <class Scalar, class Weights, class Input>
void expect_agree(const Weights& g, const Input& dX, const Gradients& expected) {
  EXPECT_TRUE(agrees<Scalar>(dX, expected.input)) << "input";
  EXPECT_TRUE(agrees<Scalar>(g.kernel(), expected.weight)) << "weight";
  EXPECT_TRUE(agrees<Scalar>(g.bias(), expected.bias)) << "bias";
}

// ---- Shapes and activations -----------------------------------------------------------------

template <class Scalar>
class LinearGradientOf : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, long double>;
TYPED_TEST_SUITE(LinearGradientOf, Scalars, support::ScalarNames);

TYPED_TEST(LinearGradientOf, AgreesWithTheOracleAtEveryTileBound) {
  using Size = attn::kernel::TileSize<TypeParam>;
  constexpr Index R = Size::rows, P = Size::panel, W = Size::width, Run = Size::gradient_rows;
  const Index widths[] = {1, W - 1, W + 1, P, P + 1, 2 * P + 3}, most = 2 * P + 3;
  LinearState<TypeParam> state;
  DynamicMatrix<TypeParam> dX;
  for (const Index rows : {Index(0), Index(1), R + 1, Run - 1, Run, Run + 1, 2 * Run + 5}) {
    for (const Index in : widths) {
      const Index out = rows % 2 == 0 ? most + 1 - in : in;
      if (in < 1 || out < 1) continue;
      auto linear = random_linear<TypeParam>(LinearOptions(in, out).bias());
      LinearGradients<TypeParam> g(linear.options());
      const auto X = uniform<TypeParam>(rows, in, 4, 2), dY = uniform<TypeParam>(rows, out, 5);
      (void)linear(X, attn::gelu(), attn::save_state(state));
      linear.backward(X, dY, state, attn::gelu(), attn::dweights(g), attn::dinput(dX));
      SCOPED_TRACE(::testing::Message() << rows << " rows of " << in << " to " << out);
      expect_agree<TypeParam>(g, dX, reference_gradients(linear.weights(), X, dY, gelu_slope));
    }
  }
}

TEST(LinearGradient, AgreesWithTheOracleBeyondABlockOfWeights) {
  const Index block = attn::kernel::TileSize<float>::weight_block;
  for (const LinearOptions& sizes :
       {LinearOptions(block + 5, 70).bias(), LinearOptions(37, block + 1).bias()}) {
    auto linear = random_linear<float>(sizes);
    LinearGradients<float> g(sizes);
    const auto X = uniform<float>(131, sizes.in_features(), 4),
               dY = uniform<float>(131, sizes.out_features(), 5);
    MatrixXf dX;
    linear.backward(X, dY, attn::dweights(g), attn::dinput(dX));
    expect_agree<float>(g, dX, reference_gradients(linear.weights(), X, dY, one));
    const MatrixXf once = g.bias();
    linear.backward(X, dY, attn::dweights(g), attn::accumulate());
    EXPECT_TRUE(support::same_bits(MatrixXf(g.bias()), MatrixXf(2 * once)));
  }
}

TYPED_TEST(LinearGradientOf, GoesThroughEveryActivation) {
  const LinearOptions sizes = LinearOptions(37, 45).bias();
  auto linear = random_linear<TypeParam>(sizes);
  const auto X = uniform<TypeParam>(103, 37, 4, 2), dY = uniform<TypeParam>(103, 45, 5);
  const auto check = [&](Function slope, const auto&... activation) {
    LinearState<TypeParam> state;
    LinearGradients<TypeParam> g(sizes);
    Eigen::Matrix<TypeParam, Eigen::Dynamic, Eigen::Dynamic> dX;
    (void)linear(X, activation..., attn::save_state(state));
    linear.backward(X, dY, state, activation..., attn::dweights(g), attn::dinput(dX));
    expect_agree<TypeParam>(g, dX, reference_gradients(linear.weights(), X, dY, slope));
  };
  check(one);
  check(relu_slope, attn::relu());
  check(gelu_slope, attn::gelu());
  check(gelu_tanh_slope, attn::gelu_tanh());
  check(silu_slope, attn::silu());
  const Function of_own = [](long double x) { return x > 0 ? 2 * x : 0.125L; };
  check(of_own, attn::activation([](auto x) { return select(x > 0, x * x, 0.125 * x); }));
  check(of_own, attn::activation([](TypeParam x) { return x > 0 ? x * x : TypeParam(x / 8); },
                                 [](TypeParam x) { return x > 0 ? 2 * x : TypeParam(0.125); }));
}

// ---- What is asked for, residuals and sums ----------------------------------------------------

class LinearGradientCalls : public ::testing::Test {
 protected:
  LinearGradientCalls() {
    (void)linear(X, attn::silu(), attn::save_state(state));
    linear.backward(X, dY, state, attn::silu(), attn::dweights(g), attn::dinput(dX));
  }

  Linear<float> linear = random_linear<float>(LinearOptions(40, 40).bias());
  DynamicMatrix<float> X = uniform<float>(107, 40, 4), dY = uniform<float>(107, 40, 5);
  LinearState<float> state;
  LinearGradients<float> g{linear.options()};
  DynamicMatrix<float> dX;
};

TEST_F(LinearGradientCalls, ComputeWhatIsAskedForAlone) {
  LinearGradients<float> alone(linear.options());
  linear.backward(X, dY, state, attn::silu(), attn::dweights(alone));
  EXPECT_TRUE(same_bits(alone.kernel(), g.kernel()));
  EXPECT_TRUE(same_bits(alone.bias(), g.bias()));
  DynamicMatrix<float> input;
  linear.backward(X, dY, state, attn::silu(), attn::dinput(input));
  EXPECT_TRUE(same_bits(input, dX));

  auto without = random_linear<float>(LinearOptions(40, 40));  // a bias
  LinearGradients<float> of_weight(without.options());
  without.backward(X, dY, attn::dweights(of_weight));
  const Gradients expected = reference_gradients(without.weights(), X, dY, one);
  EXPECT_TRUE(agrees<float>(of_weight.kernel(), expected.weight));
  EXPECT_EQ(of_weight.bias().size(), 0);
}

TEST_F(LinearGradientCalls, AResidualHasTheOutputsGradient) {
  DynamicMatrix<float> added, beside;
  linear.backward(X, dY, state, attn::silu(), attn::residual(), attn::dinput(added));
  EXPECT_TRUE(same_bits(added, DynamicMatrix<float>(dX + dY)));
  linear.backward(X, dY, state, attn::silu(), attn::residual(X), attn::dinput(beside));
  EXPECT_TRUE(same_bits(beside, dX));
}

TEST_F(LinearGradientCalls, AddToWhatStandsThere) {
  const auto old = uniform<float>(107, 40, 6);
  DynamicMatrix<float> sum = old;
  LinearGradients<float> sums(linear.options());
  sums.kernel() = uniform<float>(40, 40, 7);
  sums.bias() = uniform<float>(1, 40, 8);
  const auto before = sums;
  linear.backward(X, dY, state, attn::silu(), attn::accumulate(), attn::dweights(sums),
                  attn::dinput(sum));
  EXPECT_TRUE(same_bits(sum, DynamicMatrix<float>(old + dX)));
  EXPECT_TRUE(same_bits(sums.kernel(), MatrixXf(before.kernel() + g.kernel())));
  EXPECT_TRUE(same_bits(sums.bias(), Eigen::RowVectorXf(before.bias() + g.bias())));

  // By columns, and with the residual: old + (gradient + dY).
  MatrixXf by_columns = old;
  linear.backward(X, dY, state, attn::silu(), attn::residual(), attn::accumulate(),
                  attn::dinput(by_columns));
  EXPECT_TRUE(same_bits(by_columns, MatrixXf(old + (dX + dY))));
}

TEST_F(LinearGradientCalls, TakeTheOptionsOfBothPassesAsOneValue) {
  const auto options = attn::options(attn::silu(), attn::residual());
  const DynamicMatrix<float> Y = linear(X, options, attn::save_state(state));
  EXPECT_TRUE(same_bits(Y, DynamicMatrix<float>(linear(X, attn::silu(), attn::residual()))));
  DynamicMatrix<float> added;
  linear.backward(X, dY, state, options, attn::dinput(added));
  EXPECT_TRUE(same_bits(added, DynamicMatrix<float>(dX + dY)));
}

TEST_F(LinearGradientCalls, AreZeroWithoutRows) {
  const MatrixXf none(0, 40);
  MatrixXf of_none = MatrixXf::Ones(3, 3);
  linear.backward(none, none, attn::dweights(g), attn::dinput(of_none));
  EXPECT_EQ(g.kernel().norm() + g.bias().norm(), 0.0f);
  EXPECT_EQ(of_none.rows(), 0);
  g.kernel().setOnes();
  linear.backward(none, none, attn::dweights(g), attn::accumulate());
  EXPECT_TRUE((g.kernel().array() == 1).all());
}

// A row that the loss does not see may hold anything; NaN stays where it is.
TEST_F(LinearGradientCalls, KeepNaNInItsRow) {
  const float nan = support::kNaN<float>;
  X.row(50).setConstant(nan);
  dY.row(50).setZero();
  LinearGradients<float> of_others(linear.options());
  (void)linear(X, attn::relu(), attn::save_state(state));
  linear.backward(X, dY, attn::dweights(of_others));
  X.row(50).setZero();
  LinearGradients<float> expected(linear.options());
  linear.backward(X, dY, attn::dweights(expected));
  EXPECT_TRUE(agrees<float>(of_others.kernel(), widened(expected.kernel())));

  dY(50, 3) = nan;
  DynamicMatrix<float> input;
  linear.backward(X, dY, attn::dinput(input));
  EXPECT_TRUE(input.row(50).array().isNaN().all());
  EXPECT_FALSE(input.topRows(50).array().isNaN().any());
  EXPECT_FALSE(input.bottomRows(56).array().isNaN().any());
}

// ---- The state ----------------------------------------------------------------------------------

TEST_F(LinearGradientCalls, FillingTheStateChangesNoBit) {
  EXPECT_EQ(state.rows(), 107);
  EXPECT_EQ(state.out_features(), 40);
  const DynamicMatrix<float> R = uniform<float>(107, 40, 9);
  for (const int threads : {1, 3}) {
    EXPECT_TRUE(
        same_bits(DynamicMatrix<float>(linear(X, attn::gelu(), attn::residual(R),
                                              attn::save_state(state), attn::parallel(threads))),
                  DynamicMatrix<float>(linear(X, attn::gelu(), attn::residual(R)))));
  }
}

TEST_F(LinearGradientCalls, AStateIsARegularValue) {
  LinearState<float> copied = state, other;
  EXPECT_TRUE(other.empty());
  (void)linear(X.topRows(3), attn::silu(), attn::save_state(state));
  DynamicMatrix<float> of_copy;
  linear.backward(X, dY, copied, attn::silu(), attn::dinput(of_copy));
  EXPECT_TRUE(same_bits(of_copy, dX));
  other = std::move(copied);
  EXPECT_TRUE(copied.empty());  // NOLINT: what was moved from
  linear.backward(X, dY, other, attn::silu(), attn::dinput(of_copy));
  EXPECT_TRUE(same_bits(of_copy, dX));
}

// ---- Operands -----------------------------------------------------------------------------------

TEST_F(LinearGradientCalls, TakeEveryOrderStrideAndExpression) {
  const auto check = [&](const auto& weights, const auto& input) {
    EXPECT_TRUE(same_bits(weights.kernel(), g.kernel()));
    EXPECT_TRUE(same_bits(weights.bias(), g.bias()));
    EXPECT_TRUE(same_bits(DynamicMatrix<float>(input), dX));
  };
  LinearGradients<float> of(linear.options());
  MatrixXf input;
  const MatrixXf columns = X, gradient_columns = dY;
  linear.backward(columns, gradient_columns, state, attn::silu(), attn::dweights(of),
                  attn::dinput(input));
  check(of, input);
  linear.backward(X * 1.f, dY * 1.f, state, attn::silu(), attn::dweights(of), attn::dinput(input));
  check(of, input);
  MatrixXf wide = MatrixXf::Constant(120, 130, 7.f);
  wide.block(1, 2, 107, 40) = X;
  wide.block(1, 45, 107, 40) = dY;
  linear.backward(wide.block(1, 2, 107, 40), wide.block(1, 45, 107, 40), state, attn::silu(),
                  attn::dweights(of), attn::dinput(wide.block(3, 88, 107, 40)));
  check(of, wide.block(3, 88, 107, 40));
  EXPECT_EQ(wide.col(87).minCoeff() + wide.col(128).minCoeff(), 14.0f);
  using Strided = Eigen::Map<MatrixXf, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>>;
  std::vector<float> memory(107 * 40 * 6, 7.f);
  Strided sparse(memory.data(), 107, 40, {107 * 3, 2});
  sparse = dY;
  linear.backward(X, sparse, state, attn::silu(), attn::dweights(of), attn::dinput(input));
  check(of, input);
}

TEST(LinearGradient, TakesStridedViewsOfOtherFrameworks) {
  constexpr Index L = 41, B = 3, in = 8, out = 10;
  auto linear = random_linear<float>(LinearOptions(in, out).bias());
  const auto X = uniform<float>(L * B, in, 4), dY = uniform<float>(L * B, out, 5);  // [L, B, ...]
  const auto stacked = [&](const auto& time_major) {
    DynamicMatrix<float> rows(L * B, time_major.cols());
    for (Index b = 0; b < B; ++b) {
      for (Index i = 0; i < L; ++i) rows.row(b * L + i) = time_major.row(i * B + b);
    }
    return rows;
  };
  LinearState<float> state;
  LinearGradients<float> expected(linear.options()), g(linear.options());
  DynamicMatrix<float> dX_expected, dX(L * B, in), by_rows;
  const DynamicMatrix<float> rows = stacked(X), gradient_rows = stacked(dY);
  (void)linear(rows, attn::gelu(), attn::save_state(state));
  linear.backward(rows, gradient_rows, state, attn::gelu(), attn::dweights(expected),
                  attn::dinput(dX_expected));
  const auto view = attn::lbhd(X.data(), L, B, 1, in);
  DynamicMatrix<float> Y(L * B, out);
  linear(view, attn::gelu(), attn::save_state(state), attn::into(Y));
  linear.backward(view, attn::lbhd(dY.data(), L, B, 1, out), state, attn::gelu(), attn::dweights(g),
                  attn::dinput(attn::lbhd(dX.data(), L, B, 1, in)));
  EXPECT_TRUE(same_bits(g.kernel(), expected.kernel()));
  EXPECT_TRUE(same_bits(g.bias(), expected.bias()));
  EXPECT_TRUE(same_bits(stacked(dX), dX_expected));
  linear.backward(view, gradient_rows, state, attn::gelu(), attn::dinput(by_rows));
  EXPECT_TRUE(same_bits(by_rows, dX_expected));
}

// Each sequence by columns, some behind the other.
TEST(LinearGradient, TakesViewsWhoseRowsLieTogether) {
  constexpr Index L = 27, B = 3, in = 8, out = 21;
  auto linear = random_linear<float>(LinearOptions(in, out).bias());
  const auto X = uniform<float>(L * B, in, 4), dY = uniform<float>(L * B, out, 5);
  std::vector<float> memory(std::size_t(L * B * out));
  for (Index b = 0; b < B; ++b)
    Eigen::Map<MatrixXf>(memory.data() + b * L * out, L, out) = dY.middleRows(b * L, L);
  const attn::TensorView<const float> view{memory.data(), B, 1, L, out, L * out, 0, 1, L};
  LinearState<float> state;
  LinearGradients<float> g(linear.options()), expected(linear.options());
  (void)linear(X, attn::gelu(), attn::save_state(state));
  linear.backward(X, dY, state, attn::gelu(), attn::dweights(expected));
  const attn::TensorView<const float> sequences{X.data(), B, 1, L, in, L * in, 0, in, 1};
  linear.backward(sequences, view, state, attn::gelu(), attn::dweights(g));
  EXPECT_TRUE(same_bits(g.kernel(), expected.kernel()));
  EXPECT_TRUE(same_bits(g.bias(), expected.bias()));
}

// ---- Narrow storage -----------------------------------------------------------------------------

template <class Stored>
class NarrowLinearGradient : public ::testing::Test {};
using NarrowScalars = ::testing::Types<Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(NarrowLinearGradient, NarrowScalars, support::ScalarNames);

TYPED_TEST(NarrowLinearGradient, ComputesInFloatAndRoundsOnce) {
  using Narrow = DynamicMatrix<TypeParam>;
  const LinearOptions sizes = LinearOptions(37, 45).bias();
  auto linear = random_linear<TypeParam>(sizes);
  const Narrow X = uniform<TypeParam>(103, 37, 4), dY = uniform<TypeParam>(103, 45, 5);
  LinearState<float> state;
  LinearGradients<TypeParam> g(sizes);
  static_assert(std::is_same_v<decltype(g), attn::LinearWeights<float>>);
  DynamicMatrix<float> wide;
  (void)linear(X, attn::gelu(), attn::save_state(state));
  linear.backward(X, dY, state, attn::gelu(), attn::dweights(g), attn::dinput(wide));
  expect_agree<float>(g, wide, reference_gradients(linear.weights(), X, dY, gelu_slope));

  const Narrow old = uniform<TypeParam>(103, 37, 6);
  Narrow dX, sum = old;
  linear.backward(X, dY, state, attn::gelu(), attn::dinput(dX));
  EXPECT_TRUE(same_bits(dX, Narrow(wide.cast<TypeParam>())));
  linear.backward(X, dY, state, attn::gelu(), attn::accumulate(), attn::dinput(sum));
  EXPECT_TRUE(
      same_bits(sum, Narrow((old.template cast<float>() + wide).template cast<TypeParam>())));
}

// A row that has no part in the loss may hold anything, also where a slope of NaN stands between.
TEST(LinearGradient, RowsWithoutPartInTheLossMayHoldNan) {
  auto linear = random_linear<float>(LinearOptions(6, 37).bias());
  MatrixXf X = MatrixXf::Random(9, 6), dY = MatrixXf::Random(9, 37);
  dY.row(3).setZero();
  LinearState<float> state;
  LinearGradients<float> expected(linear.options()), g(linear.options());
  (void)linear(X, attn::gelu(), attn::save_state(state));
  linear.backward(X, dY, state, attn::gelu(), attn::dweights(expected));
  X.row(3).setConstant(std::nanf(""));
  (void)linear(X, attn::gelu(), attn::save_state(state));
  linear.backward(X, dY, state, attn::gelu(), attn::dweights(g));
  EXPECT_TRUE(same_bits(g.kernel(), expected.kernel()));
  EXPECT_TRUE(same_bits(g.bias(), expected.bias()));
}

}  // namespace
