// tests/linear_gradient_reference_test.cpp: the gradients of a linear layer by its weight, bias and
// input are those of the layers' oracle, through every activation, far out too.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <type_traits>
#include <utility>
#include <vector>

#include "support/error_of.h"
#include "support/gradient_case.h"
#include "support/random_linear.h"
#include "support/reference_layer_gradient.h"
#include "support/scalar_names.h"
#include "support/special_values.h"

namespace {

using attn::LinearOptions;
using Eigen::Index;
using support::DynamicMatrix;
using support::kInfinity;
using support::kNaN;
using support::near_gradient;
using support::Reference;
using support::same_bits;
using support::uniform;
using support::widened;

template <class Scalar>
struct Case {
  using Matrix = DynamicMatrix<Scalar>;
  attn::Linear<Scalar> linear;
  Matrix X, dY;

  Case(const LinearOptions& options, Index rows, std::uint32_t seed = 1)
      : linear(support::random_linear<Scalar>(options, seed)),
        X(uniform<Scalar>(rows, options.in_features(), seed + 10, 2)),
        dY(uniform<Scalar>(rows, options.out_features(), seed + 11)) {}
};
template <class Scalar>
struct Trained {
  attn::LinearState<Scalar> state;
  attn::LinearGradients<Scalar> weights;
  DynamicMatrix<Scalar> Y, input;
};
/// Both passes with the options of one call.
template <class Scalar, class Call, class... Asked>
Trained<Scalar> trained(Case<Scalar>& x, const Call& call, const Asked&... asked) {
  Trained<Scalar> g{{}, attn::LinearGradients<Scalar>(x.linear.options()), {}, {}};
  x.linear(x.X, attn::into(g.Y), attn::save_state(g.state), call);
  x.linear.backward(x.X, x.dY, g.state, call, attn::dweights(g.weights), attn::dinput(g.input),
                    asked...);
  return g;
}
template <class Scalar>
void expect_same(const Trained<Scalar>& a, const Trained<Scalar>& b) {
  EXPECT_TRUE(same_bits(a.input, b.input)) << "by the input";
  EXPECT_TRUE(same_bits(a.weights.kernel(), b.weights.kernel())) << "by the weight";
  EXPECT_TRUE(same_bits(a.weights.bias(), b.weights.bias())) << "by the bias";
}

template <class Scalar>
class LinearGradientReference : public ::testing::Test {
 protected:
  template <class Call, class Slope>
  static void expect_formula(Case<Scalar> x, const Call& call, const Slope& slope,
                             bool residual = false) {
    const LinearOptions& options = x.linear.options();
    SCOPED_TRACE(testing::Message() << x.X.rows() << " rows of " << options.in_features() << " to "
                                    << options.out_features());
    const auto g = trained(x, call);
    const auto weights = x.linear.weights();
    auto expected = support::reference_linear_gradient(
        widened(x.X), widened(weights.kernel()), widened(weights.bias()), widened(x.dY), slope);
    if (residual) expected.input += widened(x.dY);
    EXPECT_TRUE(near_gradient<Scalar>(g.input, expected.input)) << "by the input";
    EXPECT_TRUE(near_gradient<Scalar>(g.weights.kernel(), expected.weight)) << "by the weight";
    ASSERT_EQ(g.weights.bias().size(), expected.bias.size());
    if (expected.bias.size() > 0) {
      EXPECT_TRUE(near_gradient<Scalar>(g.weights.bias(), expected.bias)) << "by the bias";
    }
  }
};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(LinearGradientReference, Scalars, support::ScalarNames);

TYPED_TEST(LinearGradientReference, IsTheFormulaAtEveryBound) {
  using Size = attn::kernel::TileSize<TypeParam>;
  constexpr Index R = Size::rows, P = Size::panel, D = Size::depth;
  for (const Index in : {Index(1), D - 1, D, D + 1, P + 1}) {
    for (const Index out : {Index(1), P - 1, P, P + 1, 2 * P + 1}) {
      for (const Index rows :
           {Index(0), Index(1), R - 1, R, R + 1, Index(95), Index(96), Index(97), Index(193)}) {
        if (in < 1 || out < 1) continue;
        this->expect_formula({LinearOptions(in, out).bias(), rows}, attn::options(),
                             support::unchanged_slope);
      }
    }
  }
  this->expect_formula({LinearOptions(40, 50), 500}, attn::options(), support::unchanged_slope);
}
TYPED_TEST(LinearGradientReference, IsTheFormulaThroughEveryActivation) {
  for (const Index rows : {1, 29, 130}) {
    const Case<TypeParam> x(LinearOptions(21, 45).bias(), rows), plain(LinearOptions(21, 45), rows),
        square(LinearOptions(37, 37).bias(), rows);
    const auto R = uniform<TypeParam>(rows, 45, 5);
    const auto residual = attn::residual(R);
    this->expect_formula(x, attn::options(attn::relu(), residual), support::relu_slope);
    this->expect_formula(x, attn::options(attn::gelu(), residual), support::gelu_slope);
    this->expect_formula(x, attn::options(attn::gelu_tanh(), residual), support::gelu_tanh_slope);
    this->expect_formula(x, attn::options(attn::silu(), residual), support::silu_slope);
    this->expect_formula(plain, attn::options(attn::silu(), residual), support::silu_slope);
    this->expect_formula(square, attn::options(attn::silu(), attn::residual()), support::silu_slope,
                         true);
    this->expect_formula(square, attn::residual(), support::unchanged_slope, true);
  }
}
// Far out, where slopes are 0 and 1 but for a little: whatever an activation computes on the way
// must not overflow.
TYPED_TEST(LinearGradientReference, IsFiniteFarOut) {
  Case<TypeParam> x(LinearOptions(1, 1), 12);
  x.linear.edit([](auto& w) { w.kernel()(0) = 1; });
  x.X.col(0) << -1e30f, -300, -100, -20, -6, -0.f, 0, 1e-30f, 6, 20, 300, 1e30f;
  const double tolerance = std::is_same_v<TypeParam, float> ? 1e-6 : 1e-14;
  const auto expect = [&](const auto& activation, auto slope) {
    const auto g = trained(x, activation);
    for (Index i = 0; i < 12; ++i) {
      const auto z = static_cast<long double>(x.X(i, 0));
      const long double exact = (z < -1e4L  ? 0
                                 : z > 1e4L ? 1
                                            : slope(z)) *
                                static_cast<long double>(x.dY(i, 0));
      EXPECT_NEAR(double(g.input(i, 0)), double(exact), tolerance) << "at " << x.X(i, 0);
    }
  };
  expect(attn::relu(), support::relu_slope);
  expect(attn::gelu(), support::gelu_slope);
  expect(attn::gelu_tanh(), support::gelu_tanh_slope);
  expect(attn::silu(), support::silu_slope);
}
TYPED_TEST(LinearGradientReference, NeedsNoStateWithoutAnActivation) {
  Case<TypeParam> x(LinearOptions(37, 37).bias(), 100);
  auto g = trained(x, attn::residual()), without = g;
  without.input.setZero();
  without.weights.kernel().setZero();
  x.linear.backward(x.X, x.dY, attn::residual(), attn::dweights(without.weights),
                    attn::dinput(without.input));
  expect_same(without, g);
}

// A row without a gradient has no part in the sums, whatever it holds.
TEST(LinearGradientIsolation, OfWhatRowsHoldWhereTheGradientIsZero) {
  Case<float> x(LinearOptions(30, 50).bias(), 130);
  x.dY.row(40).setZero();
  x.dY.bottomRows(20).setZero();
  const auto clean = trained(x, attn::options());
  Case<float> y = x;
  y.X.row(40).setConstant(kNaN<float>);
  y.X.bottomRows(20).setConstant(kInfinity<float>);
  expect_same(trained(y, attn::options()), clean);
}

TEST(LinearGradientState, ThatWasMovedFromIsEmpty) {
  Case<float> x(LinearOptions(30, 50).bias(), 13);
  auto g = trained(x, attn::gelu());
  const attn::LinearState<float> moved = std::move(g.state);
  EXPECT_TRUE(g.state.empty());
  EXPECT_EQ(
      support::error_of(
          [&] { x.linear.backward(x.X, x.dY, g.state, attn::gelu(), attn::dinput(g.input)); }),
      "attn::Linear::backward: the state is empty: give save_state(state) to the forward call");
}

}  // namespace
