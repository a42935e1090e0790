// tests/reference_gradient_test.cpp: the oracle of the backward pass is the slope of that of the
// forward pass, by everything that enters.
// SPDX-License-Identifier: MIT
// build: -Og
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/reference_gradient.h"

namespace {

using support::GradientInputs;
using support::Index;
using support::Reference;
using support::ReferenceGradient;
using support::ReferenceOptions;
using support::ReferenceRotary;

Reference random(Index rows, Index cols, std::uint32_t seed) {
  return support::uniform<long double>(rows, cols, seed);
}
std::size_t at(Index i) { return static_cast<std::size_t>(i); }

/// What a loss is taken of: operands, what enters beside them, the batch, the loss's own numbers.
struct Problem {
  std::vector<Index> queries = {0, 3, 3, 5}, keys = {0, 4, 7, 7};
  Index heads = 4, kv_heads = 2, d_k = 4, d_v = 3;
  Reference Q = random(5, 16, 1), K = random(7, 8, 2), V = random(7, 6, 3);
  Reference output = random(5, 12, 4), logsumexp;  ///< the loss is Σ output ∘ Y + Σ logsumexp ∘ LSE
  Reference bias;                                  ///< [rows, bias_heads · bias_keys]
  Index bias_heads = 1, bias_keys = 1;
  std::vector<long double> slopes;  ///< of linear biases
  long double table[3] = {0.7L, -0.4L, 1.1L};
  bool uses_table = false, uses_rotary = false;
  ReferenceRotary rotary;
  ReferenceOptions options;

  Index longest() const {
    Index most = 0;
    for (Index b = 0; b + 1 < Index(keys.size()); ++b)
      most = std::max(most, keys[at(b) + 1] - keys[at(b)]);
    return most;
  }

  /// The forward call's options, over the numbers as they stand.
  ReferenceOptions call() const {
    ReferenceOptions call = options;
    call.heads = heads;
    call.kv_heads = kv_heads;
    call.query_offsets = queries;
    call.key_offsets = keys;
    if (bias.size() > 0 || !slopes.empty()) {
      call.bias = [this](Index b, Index h, Index i, Index j) {
        long double sum = 0;
        if (bias.size() > 0) {
          const Index token = queries[at(b)] + i, row = bias.rows() == 1          ? 0
                                                        : bias.rows() == Q.rows() ? token
                                                                                  : i;
          sum += bias(row, (bias_heads == 1 ? 0 : h * bias_keys) + (bias_keys == 1 ? 0 : j));
        }
        if (!slopes.empty()) sum -= slopes[at(h)] * std::abs(static_cast<long double>(i + 2 - j));
        return sum;
      };
    }
    if (uses_table) {
      call.modify = [this](long double s, Index, Index h, Index i, Index j) {
        return std::sin(s) * table[(i + j) % 3] + table[h % 3];
      };
    }
    return call;
  }
  Reference turned(const Reference& x, Index count) const {
    if (!uses_rotary) return x;
    return support::reference_rotary(x, count, support::counted(x.rows(), 3), rotary);
  }
  long double loss() const {
    const auto y = support::reference_attention(turned(Q, heads), turned(K, kv_heads), V, call());
    long double sum = 0;
    for (Index i = 0; i < logsumexp.size(); ++i) {
      const long double l = y.logsumexp.data()[i];
      if (std::isfinite(l)) sum += logsumexp.data()[i] * l;
    }
    return sum + y.output.cwiseProduct(output).sum();
  }
  ReferenceGradient gradient() const {
    GradientInputs inputs;
    inputs.logsumexp = logsumexp;
    if (uses_table) {
      inputs.slope = [this](long double s, Index, Index, Index i, Index j) {
        return std::cos(s) * table[(i + j) % 3];
      };
    }
    ReferenceGradient g = support::reference_gradient(turned(Q, heads), turned(K, kv_heads), V,
                                                      output, call(), inputs);
    if (uses_rotary) {
      g.query = support::turned_back(g.query, heads, support::counted(Q.rows(), 3), rotary);
      g.key = support::turned_back(g.key, kv_heads, support::counted(K.rows(), 3), rotary);
    }
    return g;
  }
};

/// The central difference of the loss by one number that it refers to.
long double difference(Problem& x, long double& number) {
  constexpr long double kStep = 0x1p-21L;
  const long double center = number;
  number = center + kStep;
  const long double above = x.loss();
  number = center - kStep;
  const long double below = x.loss();
  number = center;
  return (above - below) / (2 * kStep);
}
constexpr long double kTolerance = 1e-10L;

void expect_slope(Problem& x, long double& number, long double gradient, const char* name,
                  Index n = 0) {
  EXPECT_NEAR(static_cast<double>(difference(x, number) - gradient), 0, double(kTolerance))
      << "by number " << n << " of " << name;
}
void expect_slopes(Problem& x, Reference& of, const Reference& gradient, const char* name) {
  ASSERT_EQ(of.rows(), gradient.rows());
  ASSERT_EQ(of.cols(), gradient.cols());
  for (Index n = 0; n < of.size(); ++n) expect_slope(x, of.data()[n], gradient.data()[n], name, n);
}

/// By everything that the problem has.
void expect_gradients(Problem& x) {
  const ReferenceGradient g = x.gradient();
  expect_slopes(x, x.Q, g.query, "Q");
  expect_slopes(x, x.K, g.key, "K");
  expect_slopes(x, x.V, g.value, "V");
  const ReferenceOptions call = x.call();
  if (x.bias.size() > 0) {
    const Index rows = x.bias.rows();
    expect_slopes(x, x.bias, support::bias_gradient(g.added, call, rows, x.bias_heads, x.bias_keys),
                  "bias");
  }
  if (!x.slopes.empty()) {
    const auto slopes =
        support::alibi_gradient(g.added, call, [](Index, Index i) { return i + 2; });
    for (std::size_t h = 0; h < slopes.size(); ++h)
      expect_slope(x, x.slopes[h], slopes[h], "slopes", Index(h));
  }
  ASSERT_EQ(g.sinks.size(), x.options.sinks.size());
  for (std::size_t h = 0; h < g.sinks.size(); ++h)
    expect_slope(x, x.options.sinks[h], g.sinks[h], "sinks", Index(h));
  if (x.options.scale) expect_slope(x, *x.options.scale, g.scale, "scale");
  if (x.uses_table) {
    // A parameter of the functor: Σ ∂loss/∂f · ∂f/∂parameter. Its scores are saved as they come out
    // of it, so sin(s) is what it was times and plus.
    ReferenceOptions asked = call;
    asked.save_scores = true;
    const auto y =
        support::reference_attention(x.turned(x.Q, x.heads), x.turned(x.K, x.kv_heads), x.V, asked);
    long double slopes[3] = {};
    support::for_each_pair(
        g.modified, call, [&](Index, Index i, Index token, Index h, Index j, long double ds) {
          if (ds == 0) return;
          slopes[h % 3] += ds;
          slopes[(i + j) % 3] +=
              ds * (y.biased(token, h * x.longest() + j) - x.table[h % 3]) / x.table[(i + j) % 3];
        });
    for (Index n = 0; n < 3; ++n) expect_slope(x, x.table[n], slopes[n], "table", n);
  }
}

TEST(ReferenceGradient, IsTheSlopeByQueriesKeysAndValues) {
  Problem x;
  expect_gradients(x);
  x.options.scale = -0.8L;
  expect_gradients(x);
  x.options.scale = 0;
  expect_gradients(x);
}
TEST(ReferenceGradient, IsTheSlopeUnderAMask) {
  Problem x;
  x.options.visible = [](Index, Index h, Index i, Index j) { return j <= i && (i + h) % 3 != 1; };
  expect_gradients(x);
}
TEST(ReferenceGradient, IsTheSlopeOverKeysThatServeEverySequence) {
  Problem x;
  x.keys = {0, 7};
  expect_gradients(x);
  x.queries = {0, 5};
  expect_gradients(x);
}
TEST(ReferenceGradient, IsTheSlopeByABiasOfEveryShape) {
  Problem x;
  std::uint32_t seed = 5;
  for (const Index rows : {1, 3, 5}) {
    for (const Index heads : {1, 4}) {
      for (const Index keys : {1, 4}) {
        x.bias_heads = heads;
        x.bias_keys = keys;
        x.bias = random(rows, heads * keys, seed++);
        expect_gradients(x);
      }
    }
  }
}
TEST(ReferenceGradient, IsTheSlopeByWhatModifiesScores) {
  Problem x;
  x.options.softcap = 0.6L;
  x.options.scale = 1.3L;
  expect_gradients(x);
  x.slopes = {0.1L, -0.2L, 0.3L, 0.05L};
  expect_gradients(x);
  x.uses_table = true;
  expect_gradients(x);
  x.uses_rotary = true;
  expect_gradients(x);
  x.rotary = {true, 50, 2};
  expect_gradients(x);
}
TEST(ReferenceGradient, IsTheSlopeByTheLogitsOfSinks) {
  Problem x;
  x.options.sinks = {0.4L, -1, 2, 0};
  expect_gradients(x);
  // A row that sees no key has the sink's logit for its log-sum-exp.
  x.logsumexp = random(5, 4, 9);
  x.options.visible = [](Index b, Index, Index i, Index j) { return b == 0 && i > 0 && j > 0; };
  expect_gradients(x);
}
TEST(ReferenceGradient, IsTheSlopeOfALossOfTheLogsumexpToo) {
  Problem x;
  x.logsumexp = random(5, 4, 9);
  expect_gradients(x);
}
TEST(ReferenceGradient, IsTheSlopeUnderDropout) {
  Problem x;
  x.options.keeps = [](Index b, Index h, Index i, Index j) {
    return (3 * b + h + i + 2 * j) % 5 != 0;
  };
  x.options.dropped = 0.2L;
  expect_gradients(x);
  x.logsumexp = random(5, 4, 9);
  x.options.sinks = {0.4L, -1, 2, 0};
  expect_gradients(x);
  x.options.keeps = [](Index, Index, Index i, Index) { return i != 1; };  // a whole row falls
  expect_gradients(x);
}
TEST(ReferenceGradient, IsTheSlopeByAllAtOnce) {
  Problem x;
  x.options.visible = [](Index, Index h, Index i, Index j) { return j <= i + 1 || h == 2; };
  x.options.softcap = 1.6L;
  x.options.scale = -0.9L;
  x.options.sinks = {0.4L, -1, 2, 0};
  x.bias = random(3, 4, 5);
  x.bias_keys = 4;
  x.slopes = {0.1L, -0.2L, 0.3L, 0.05L};
  x.uses_table = x.uses_rotary = true;
  x.logsumexp = random(5, 4, 9);
  x.options.keeps = [](Index b, Index h, Index i, Index j) {
    return (3 * b + h + i + 2 * j) % 5 != 0;
  };
  x.options.dropped = 0.2L;
  expect_gradients(x);
}

TEST(ReferenceGradient, LooksAtNothingHidden) {
  Problem x;
  x.options.visible = [](Index b, Index, Index i, Index j) { return b == 0 && i < 2 && j != 1; };
  const ReferenceGradient clean = x.gradient();
  const long double none = std::nanl("");
  x.K.row(1).setConstant(none);
  x.V.row(1).setConstant(none);
  x.Q.bottomRows(3).setConstant(none);
  x.output.bottomRows(3).setConstant(none);
  const ReferenceGradient g = x.gradient();
  EXPECT_TRUE(support::near(g.query, clean.query, 0));
  EXPECT_TRUE(support::near(g.key, clean.key, 0));
  EXPECT_TRUE(support::near(g.value, clean.value, 0));
  // A dropped pair's value neither.
  x.options.keeps = [](Index, Index, Index, Index j) { return j != 2; };
  x.options.dropped = 0.5L;
  const ReferenceGradient dropped = x.gradient();
  x.V.row(2).setConstant(none);
  EXPECT_TRUE(support::near(x.gradient().query, dropped.query, 0));
  EXPECT_TRUE(support::near(x.gradient().key, dropped.key, 0));
}

}  // namespace
