// tests/autodiff_test.cpp: attention of Eigen::AutoDiffScalar: its derivatives are those of the oracle's differences.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>

#include <unsupported/Eigen/AutoDiff>
#include <cmath>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random.h"

namespace {

using Eigen::Index;
using support::DynamicMatrix;
using support::near;
using support::reference_attention;
using support::ReferenceOptions;
using support::uniform;

/// Values of a problem in double, and which of its entries the derivatives are taken by.
struct Problem {
  DynamicMatrix<double> Q = uniform<double>(5, 2, 1), K = uniform<double>(7, 2, 2),
                        V = uniform<double>(7, 2, 3), B = uniform<double>(5, 7, 4);
  Index entries() const { return Q.size() + K.size() + V.size(); }
  /// Entry n of Q, K and V as one row-major list.
  double& entry(Index n) {
    if (n < Q.size()) return Q.data()[n];
    if (n < Q.size() + K.size()) return K.data()[n - Q.size()];
    return V.data()[n - Q.size() - K.size()];
  }
};

enum class Options { none, all };

ReferenceOptions reference_options(const Problem& x, Options options) {
  ReferenceOptions reference;
  if (options == Options::all) {
    reference.visible = [](Index, Index, Index i, Index j) { return j <= i + 2; };
    reference.softcap = 1.5L;
    reference.bias = [&x](Index, Index, Index i, Index j) {
      return static_cast<long double>(x.B(i, j)) -
             0.25L * std::abs(static_cast<long double>(i + 2 - j));
    };
    reference.modify = [](long double s, Index, Index, Index i, Index j) {
      return i + 2 > j ? s + std::exp(0.5L * s) : s * std::tanh(s);
    };
    reference.sinks = {0.5L};
  }
  return reference;
}

/// Central differences of the oracle's output (with the residual Q under Options::all) by entry n.
support::Reference difference(Problem x, Index n, Options options) {
  constexpr double kStep = 0x1p-17;
  const double center = x.entry(n);
  const auto output = [&](double at) {
    x.entry(n) = at;
    support::Reference y = reference_attention(x.Q, x.K, x.V, reference_options(x, options)).output;
    if (options == Options::all) y += support::widened(x.Q);
    return y;
  };
  return (output(center + kStep) - output(center - kStep)) / (2.0L * kStep);
}

/// The problem with entry n as variable number `at` of `count`, for each pair in `variables`.
template <class Dual>
struct DualProblem {
  DynamicMatrix<Dual> Q, K, V, B;
  DualProblem(const Problem& x, const std::vector<Index>& variables) {
    const auto lift = [&](const DynamicMatrix<double>& from, Index first) {
      DynamicMatrix<Dual> to(from.rows(), from.cols());
      for (Index e = 0; e < from.size(); ++e) {
        to.data()[e] = Dual(from.data()[e]);
        for (std::size_t at = 0; at < variables.size(); ++at) {
          if (variables[at] == first + e)
            to.data()[e] = Dual(from.data()[e], int(variables.size()), int(at));
        }
      }
      return to;
    };
    Q = lift(x.Q, 0);
    K = lift(x.K, x.Q.size());
    V = lift(x.V, x.Q.size() + x.K.size());
    B = lift(x.B, x.entries());
  }
};

template <class Dual>
DynamicMatrix<Dual> attend(const DualProblem<Dual>& x, Options options) {
  if (options == Options::none) return attn::attention(x.Q, x.K, x.V);
  return attn::attention(x.Q, x.K, x.V, attn::causal(attn::align::lower_right), attn::softcap(1.5),
                         attn::bias(x.B), attn::residual(x.Q), attn::alibi(0.25), attn::sink(0.5),
                         attn::score([](auto s, auto at) {
                           return select(at.query > at.key, s + exp(0.5 * s), s * tanh(s));
                         }));
}

template <class Dual>
void check_derivatives(const Problem& x, const std::vector<Index>& variables, Options options) {
  const DynamicMatrix<Dual> Y = attend(DualProblem<Dual>(x, variables), options);
  support::Reference expected =
      reference_attention(x.Q, x.K, x.V, reference_options(x, options)).output;
  if (options == Options::all) expected += support::widened(x.Q);
  const auto values = Y.unaryExpr([](const Dual& y) { return y.value(); }).eval();
  EXPECT_TRUE(near(values.template cast<double>(), expected, 1e-13));
  for (std::size_t at = 0; at < variables.size(); ++at) {
    DynamicMatrix<double> slopes(Y.rows(), Y.cols());
    for (Index e = 0; e < Y.size(); ++e) {
      const auto& slope = Y.data()[e].derivatives();
      slopes.data()[e] =
          slope.size() == 0 ? 0.0 : slope(static_cast<Index>(at));  // empty: a constant
    }
    EXPECT_TRUE(near(slopes, difference(x, variables[at], options), 1e-8))
        << "by entry " << variables[at];
  }
}

TEST(AutoDiffScalar, OfAFixedNumberOfVariablesCarriesTheirDerivatives) {
  using Dual = Eigen::AutoDiffScalar<Eigen::Vector2d>;
  for (const std::vector<Index>& variables :
       {std::vector<Index>{0, 9}, {3, 10}, {11, 23}, {24, 37}, {8, 30}}) {
    check_derivatives<Dual>(Problem(), variables, Options::none);
    check_derivatives<Dual>(Problem(), variables, Options::all);
  }
}

TEST(AutoDiffScalar, OfAnyNumberOfVariablesCarriesThemAll) {
  using Dual = Eigen::AutoDiffScalar<Eigen::VectorXd>;
  std::vector<Index> variables;
  for (Index n = 0; n < Problem().entries(); ++n) variables.push_back(n);
  check_derivatives<Dual>(Problem(), variables, Options::none);
  check_derivatives<Dual>(Problem(), variables, Options::all);
}

// An expression refers to its operands, which may be gone when the option is used: options hold what it evaluates to.
TEST(AutoDiffScalar, OfAnExpressionIsEvaluatedByOptions) {
  using Dual = Eigen::AutoDiffScalar<Eigen::VectorXd>;
  const auto number = [](double x) { return Dual(x, 1, 0); };
  auto scale = attn::scale(number(3) * 0.5);
  auto softcap = attn::softcap(number(4) + number(5));
  auto alibi = attn::alibi(number(7) * number(2));
  auto sink = attn::sink(number(1) - 3.);
  static_assert(std::is_same_v<decltype(scale.value), Dual> &&
                std::is_same_v<decltype(softcap.cap), Dual>);
  EXPECT_EQ(scale.value.derivatives()(0), 0.5);
  EXPECT_EQ(softcap.cap.derivatives()(0), 2);
  EXPECT_EQ(Dual(alibi.slopes[0]).derivatives()(0), 9);
  EXPECT_EQ(Dual(sink.logits[0]).value(), -2);
}

TEST(AutoDiffScalar, LeavesARowWithoutKeysAtZero) {
  using Dual = Eigen::AutoDiffScalar<Eigen::Vector2d>;
  const DualProblem<Dual> x(Problem(), {0, 9});
  const DynamicMatrix<Dual> Y = attn::attention(x.Q, x.K, x.V, attn::key_lengths(0));
  for (Index e = 0; e < Y.size(); ++e) {
    EXPECT_EQ(Y.data()[e].value(), 0.0);
    EXPECT_TRUE(Y.data()[e].derivatives().isZero(0));
  }
}

}  // namespace
