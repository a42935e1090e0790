// tests/gradient_autodiff_test.cpp: two engines of one kind hold each other: derivatives of the
// forward pass of Eigen::AutoDiffScalar, and the backward pass; and through the backward pass of
// AutoDiffScalar, second derivatives.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <unsupported/Eigen/AutoDiff>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random.h"

namespace {

using Eigen::Index;
using support::near;
using support::uniform;
template <class Scalar>
using Matrix = support::DynamicMatrix<Scalar>;
template <class Scalar>
using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;
using Dual = Eigen::AutoDiffScalar<Eigen::VectorXd>;

/// Two heads on one, and what enters beside the operands.
template <class Scalar>
struct Problem {
  Matrix<Scalar> Q, K, V, B, dY;
  Vector<Scalar> slopes, logits;
  Scalar scale;

  /// The options of both calls. Their slopes differ from pair to pair.
  auto options() const {
    return attn::options(attn::causal(attn::align::lower_right), attn::softcap(1.5), attn::bias(B),
                         attn::alibi(slopes), attn::sink(logits), attn::scale(scale),
                         attn::score([](auto s, auto at) {
                           return select(at.query > at.key, s + exp(0.5 * s), s * tanh(s));
                         }));
  }
};
Problem<double> problem() {
  Problem<double> x;
  x.Q = uniform<double>(5, 4, 1);
  x.K = uniform<double>(7, 2, 2);
  x.V = uniform<double>(7, 3, 3);
  x.B = uniform<double>(5, 7, 4);
  x.dY = uniform<double>(5, 6, 5);
  x.slopes = Vector<double>(uniform<double>(2, 1, 6));
  x.logits = Vector<double>(uniform<double>(2, 1, 7));
  x.scale = 0.8;
  return x;
}

template <class Scalar>
struct Gradient {
  Matrix<Scalar> Q, K, V, B;
  Vector<Scalar> slopes, logits;
  Scalar scale = Scalar(0);
};
template <class Scalar>
Gradient<Scalar> gradient(const Problem<Scalar>& x) {
  const auto q = attn::heads(x.Q, 2);
  const auto options = x.options();
  attn::AttentionState<Scalar> state;
  Matrix<Scalar> Y;
  attn::attention(q, x.K, x.V, options, attn::into(Y), attn::save_state(state));
  Gradient<Scalar> g;
  attn::attention_backward(q, x.K, x.V, x.dY, state, options, attn::dquery(g.Q), attn::dkey(g.K),
                           attn::dvalue(g.V), attn::dbias(g.B), attn::dalibi(g.slopes),
                           attn::dsink(g.logits), attn::dscale(g.scale));
  return g;
}
/// The numbers of a gradient as one list, in the order of numbers().
template <class Scalar>
std::vector<Scalar> listed(const Gradient<Scalar>& g) {
  std::vector<Scalar> list;
  for (const auto* m : {&g.Q, &g.K, &g.V, &g.B})
    list.insert(list.end(), m->data(), m->data() + m->size());
  for (const auto* v : {&g.slopes, &g.logits})
    list.insert(list.end(), v->data(), v->data() + v->size());
  list.push_back(g.scale);
  return list;
}
template <class Scalar>
std::vector<Scalar*> numbers(Problem<Scalar>& x) {
  std::vector<Scalar*> list;
  for (auto* m : {&x.Q, &x.K, &x.V, &x.B})
    for (Index n = 0; n < m->size(); ++n) list.push_back(m->data() + n);
  for (auto* v : {&x.slopes, &x.logits})
    for (Index n = 0; n < v->size(); ++n) list.push_back(v->data() + n);
  list.push_back(&x.scale);
  return list;
}

Problem<Dual> lifted(const Problem<double>& x) {
  const auto lift = [](const auto& from) {
    return from.unaryExpr([](double a) { return Dual(a); }).eval();
  };
  Problem<Dual> y;
  y.Q = lift(x.Q);
  y.K = lift(x.K);
  y.V = lift(x.V);
  y.B = lift(x.B);
  y.dY = lift(x.dY);
  y.slopes = lift(x.slopes);
  y.logits = lift(x.logits);
  y.scale = Dual(x.scale);
  return y;
}

// The loss is Σ dY ∘ Y: its derivatives by the forward pass.
TEST(GradientOfDoubles, IsThatOfTheForwardPassOfAutoDiffScalars) {
  const Problem<double> x = problem();
  const std::vector<double> actual = listed(gradient(x));
  Problem<Dual> duals = lifted(x);
  const auto variables = numbers(duals);
  for (std::size_t n = 0; n < variables.size(); ++n)
    *variables[n] = Dual(variables[n]->value(), int(variables.size()), int(n));
  const Matrix<Dual> Y =
      attn::attention(attn::heads(duals.Q, 2), duals.K, duals.V, duals.options());
  Eigen::VectorXd expected = Eigen::VectorXd::Zero(Index(variables.size()));
  for (Index n = 0; n < Y.size(); ++n) expected += x.dY.data()[n] * Y.data()[n].derivatives();
  ASSERT_EQ(actual.size(), variables.size());
  for (std::size_t n = 0; n < actual.size(); ++n)
    EXPECT_NEAR(actual[n], expected[Index(n)], 1e-13) << n;
}

// The derivative of all gradients along one direction, by differences of gradients.
TEST(GradientOfAutoDiffScalars, CarriesSecondDerivatives) {
  const Problem<double> x = problem();
  Problem<Dual> duals = lifted(x);
  const auto variables = numbers(duals);
  const Matrix<double> direction = uniform<double>(1, Index(variables.size()), 9);
  for (std::size_t n = 0; n < variables.size(); ++n)
    variables[n]->derivatives() = Eigen::VectorXd::Constant(1, direction(0, Index(n)));
  const std::vector<Dual> actual = listed(gradient(duals));

  constexpr double kStep = 0x1p-18;
  const auto moved = [&](double step) {
    Problem<double> y = x;
    const auto list = numbers(y);
    for (std::size_t n = 0; n < list.size(); ++n) *list[n] += step * direction(0, Index(n));
    return listed(gradient(y));
  };
  const auto above = moved(kStep), below = moved(-kStep), values = listed(gradient(x));
  for (std::size_t n = 0; n < actual.size(); ++n) {
    EXPECT_NEAR(actual[n].value(), values[n], 1e-14) << n;
    const auto& slope = actual[n].derivatives();  // empty: a constant
    EXPECT_NEAR(slope.size() == 0 ? 0.0 : slope[0], (above[n] - below[n]) / (2 * kStep), 1e-8) << n;
  }
}

}  // namespace
