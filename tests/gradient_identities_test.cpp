// tests/gradient_identities_test.cpp: what holds of every gradient, whatever the size: also where no
// oracle of plain loops could follow.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "support/any_mask.h"
#include "support/gradient_case.h"

namespace {

using Eigen::Index;
using Eigen::MatrixXd;
using support::AnyMask;
using support::GradientCase;
using support::near;
using Case = GradientCase<float>;
using Matrix = Case::Matrix;

/// Of several sizes, with the mask told at run time.
struct Example {
  Case x;
  AnyMask mask;
  support::Training<float> g;  ///< trained once, for all tests

  Example(Case operands, AnyMask by) : x(std::move(operands)), mask(std::move(by)), g(trained(x)) {}
  support::Training<float> trained(const Case& operands) const {
    return support::trained(operands, mask);
  }
};
const std::vector<Example>& examples() {
  static const std::vector<Example> examples = {
      {Case(113, 203, 59, 41), AnyMask(attn::window(-1, -1))},
      {Case({{0, 300, 431}, {0, 300, 700}, 6, 2}, 24, 16), AnyMask(attn::window(90, 200))},
      {Case({{0, 700}, {0, 700}, 4, 1}, 64, 64), AnyMask(attn::causal())},
      {Case(4096, 4096, 64, 48), AnyMask(attn::causal())},
      {Case(4096, 4096, 32, 16), AnyMask(!attn::window(100, 3000))}};
  return examples;
}

/// |a − b| is little beside the sum of absolute values that a is made of.
void expect_equal_sums(double a, double b, double absolute, const char* what) {
  EXPECT_LE(std::abs(a - b), 1e-6 * absolute) << what << ": " << a << " and " << b;
}

// The weights of a row do not change where a vector is added to all keys.
TEST(GradientIdentities, KeysOfASequenceShiftedTogetherChangeNothing) {
  for (const Example& example : examples()) {
    const Case& x = example.x;
    const MatrixXd dK = example.g.key.cast<double>();
    for (Index b = 0; b < x.sequences(); ++b) {
      const auto of_sequence = dK.middleRows(x.keys[std::size_t(b)], x.key_length(b));
      for (Index c = 0; c < dK.cols(); ++c) {
        expect_equal_sums(of_sequence.col(c).sum(), 0, of_sequence.col(c).cwiseAbs().sum(),
                          "a column of dK");
      }
    }
  }
}
// They sum to 1 in each row that sees a key.
TEST(GradientIdentities, ValuesShiftedTogetherShiftTheOutput) {
  for (const Example& example : examples()) {
    const Case& x = example.x;
    const auto& g = example.g;
    const MatrixXd dV = g.value.cast<double>(), dY = x.dY.cast<double>();
    const Index group = x.heads / x.kv_heads;
    for (Index b = 0; b < x.sequences(); ++b) {
      const auto values = dV.middleRows(x.keys[std::size_t(b)], x.key_length(b));
      for (Index h = 0; h < x.kv_heads; ++h) {
        for (Index c = 0; c < x.value_dim; ++c) {
          double expected = 0, absolute = 0;
          for (Index i = x.queries[std::size_t(b)]; i < x.queries[std::size_t(b) + 1]; ++i) {
            for (Index n = h * group; n < (h + 1) * group; ++n) {
              if (g.Y.row(i).segment(n * x.value_dim, x.value_dim).isZero(0)) continue;
              expected += dY(i, n * x.value_dim + c);
              absolute += std::abs(dY(i, n * x.value_dim + c));
            }
          }
          expect_equal_sums(values.col(h * x.value_dim + c).sum(), expected, absolute,
                            "a column of dV");
        }
      }
    }
  }
}
// Both are Σ score · its gradient.
TEST(GradientIdentities, QueriesAndKeysGrowAlike) {
  for (const Example& example : examples()) {
    const auto& g = example.g;
    const MatrixXd q = g.query.cast<double>().cwiseProduct(example.x.Q.cast<double>()),
                   k = g.key.cast<double>().cwiseProduct(example.x.K.cast<double>());
    expect_equal_sums(q.sum(), k.sum(), q.cwiseAbs().sum(), "dQ · Q and dK · K");
  }
}
TEST(GradientIdentities, AreLinearInTheOutputsGradient) {
  for (const Example& example : examples()) {
    const auto& g = example.g;
    Case other = example.x;
    other.dY *= -0.25f;  // exact
    const auto scaled = example.trained(other);
    EXPECT_TRUE(near(scaled.query, Matrix(-0.25f * g.query), 0));
    EXPECT_TRUE(near(scaled.key, Matrix(-0.25f * g.key), 0));
    EXPECT_TRUE(near(scaled.value, Matrix(-0.25f * g.value), 0));
    other.dY = support::uniform<float>(other.dY.rows(), other.dY.cols(), 9);
    const auto second = example.trained(other);
    other.dY += example.x.dY;
    const auto sum = example.trained(other);
    EXPECT_TRUE(near(sum.query, Matrix(g.query + second.query), 4e-6));
    EXPECT_TRUE(near(sum.key, Matrix(g.key + second.key), 4e-6));
    EXPECT_TRUE(near(sum.value, Matrix(g.value + second.value), 1e-5));
  }
}
// A sequence's keys in another order.
TEST(GradientIdentities, KeysAndValuesInAnotherOrderHaveTheirGradientsThere) {
  const Example example = {Case({{0, 300}, {0, 700}, 4, 2}, 24, 16), AnyMask(attn::window(-1, -1))};
  const auto& g = example.g;
  Case reversed = example.x;
  reversed.K = example.x.K.colwise().reverse();
  reversed.V = example.x.V.colwise().reverse();
  const auto r = example.trained(reversed);
  EXPECT_TRUE(near(r.query, g.query, 1e-6));
  EXPECT_TRUE(near(Matrix(r.key.colwise().reverse()), g.key, 1e-6));
  EXPECT_TRUE(near(Matrix(r.value.colwise().reverse()), g.value, 4e-6));
}

// Dropout scales what stays so that the mean over all masks is the gradient without it. (That of the
// values: their gradient is linear in the mask.)
TEST(GradientIdentities, TheMeanOverManySeedsIsTheGradientWithoutDropout) {
  const Case x(12, 20, 8, 6);
  const MatrixXd without = support::trained(x).value.cast<double>();
  constexpr int kSeeds = 4096;
  MatrixXd sum = MatrixXd::Zero(20, 6), squares = sum;
  for (int seed = 0; seed < kSeeds; ++seed) {
    const MatrixXd g =
        support::trained(x, attn::dropout(0.25, std::uint64_t(seed))).value.cast<double>();
    sum += g;
    squares += g.cwiseAbs2();
  }
  const MatrixXd mean = sum / kSeeds;
  // Five standard deviations of the mean: one of 120 numbers lies beyond it once in 15000 runs.
  const MatrixXd most = 5 * ((squares / kSeeds - mean.cwiseAbs2()) / kSeeds).cwiseSqrt();
  EXPECT_TRUE(((mean - without).cwiseAbs().array() <= most.array()).all()) << mean - without;
  EXPECT_GT(most.minCoeff(), 0);
}

}  // namespace
