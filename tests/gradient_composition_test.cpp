// tests/gradient_composition_test.cpp: gradients by everything that enters a call of masks and scores
// drawn at random, over batches drawn at random, where what nobody looks at holds no numbers.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "support/gradient_case.h"
#include "support/random_composition.h"
#include "support/threads.h"

namespace {

using Eigen::Index;
using Eigen::MatrixXf;
using Eigen::VectorXf;
using namespace support;

/// NaN, which equals nothing, as a number that nothing else here is.
template <class Derived>
auto told(const Eigen::DenseBase<Derived>& x) {
  using Scalar = typename Derived::Scalar;
  return x.derived().unaryExpr([](Scalar a) { return std::isnan(a) ? Scalar(1e9f) : a; }).eval();
}
/// Equal up to rounding, and NaN in the same places.
template <class Derived>
::testing::AssertionResult near_or_nan(const Eigen::DenseBase<Derived>& actual,
                                       const Reference& expected) {
  long double largest = 0;
  for (Index n = 0; n < expected.size(); ++n) {
    const long double x = std::abs(expected.data()[n]);
    if (x > largest) largest = x;
  }
  return near(told(actual), told(expected), 4e-6L * (1 + largest));
}
/// One number for each head, each a sum over pairs whose absolute values sum up to `of`.
void expect_near_sums(const VectorXf& actual, const std::vector<long double>& expected,
                      const std::vector<long double>& of, const char* name) {
  ASSERT_EQ(actual.size(), Index(expected.size())) << name;
  for (Index h = 0; h < actual.size(); ++h) {
    if (std::isnan(expected[at(h)])) {
      EXPECT_TRUE(std::isnan(actual[h])) << name << " of head " << h;
    } else {
      EXPECT_NEAR(actual[h], double(expected[at(h)]), 2e-6 * double(1 + of[at(h)]))
          << name << " of head " << h;
    }
  }
}

/// A call drawn at random: operands without numbers wherever nobody looks, and its oracle.
class Drawn {
 public:
  Composition mask;
  Index offset;
  Scores scores;
  GradientCase<float> x;
  DynamicMatrix<float> dl;  ///< ∂loss/∂logsumexp
  ReferenceOptions options;
  GradientInputs inputs;

  Drawn(const Case& c, Draw& draw)
      : mask(compose(c, draw, draw(0, 3))),
        offset(draw.one_in(3) ? 0 : draw(-20, 250)),
        scores(c, draw),
        x(c, 2 * draw(1, 5), draw(1, 20), draw.seed()),
        dl(uniform<float>(c.queries.back(), c.heads, draw.seed())),
        options(x.reference()) {
    options.visible = [this](Index b, Index h, Index i, Index j) {
      return mask.rule({b, h, i, i + offset, j, x.queries[at(b)] + i});
    };
    inputs.logsumexp = widened(dl);
  }
  Drawn(const Drawn&) = delete;

  /// No numbers in keys, queries and biases that nobody looks at; in one call of three NaN in the
  /// open. Asked for once the options are complete.
  void poison(Draw& draw) {
    std::vector<bool> queries(at(x.Q.rows())), keys(at(x.K.rows()));
    Bools biases = Bools::Constant(scores.bias.rows(), scores.bias.cols(), false);
    for (Index b = 0; b < x.sequences(); ++b) {
      const Index first = x.keys.size() == 2 ? 0 : x.keys[at(b)];
      for (Index h = 0; h < x.heads; ++h) {
        for (Index i = 0; i < x.query_length(b); ++i) {
          for (Index j = 0; j < x.key_length(b); ++j) {
            if (!options.visible(b, h, i, j)) continue;
            biases(scores.one_row ? 0 : i, scores.one_column ? 0 : j) = true;
            const bool hidden = (options.bias && std::isinf(options.bias(b, h, i, j))) ||
                                (options.modify && std::isinf(options.modify(0, b, h, i, j)));
            if (!hidden) queries[at(x.queries[at(b)] + i)] = keys[at(first + j)] = true;
          }
        }
      }
    }
    const auto any = [&] {
      return draw.one_in(2) ? kNaN<float> : draw.one_in(2) ? kInfinity<float> : -kInfinity<float>;
    };
    for (Index i = 0; i < x.Q.rows(); ++i) {
      if (queries[at(i)]) continue;
      x.Q.row(i).setConstant(any());
      x.dY.row(i).setConstant(any());
    }
    for (Index j = 0; j < x.K.rows(); ++j) {
      if (keys[at(j)]) continue;
      x.K.row(j).setConstant(any());
      x.V.row(j).setConstant(any());
    }
    for (Index n = 0; n < biases.size(); ++n) {
      if (!biases.data()[n]) scores.bias.data()[n] = kNaN<float>;
    }
    for (auto* operand : {&x.K, &x.V, &x.Q, &x.dY}) {
      if (operand->size() > 0 && draw.one_in(12))
        (*operand)(draw(0, operand->rows() - 1), draw(0, operand->cols() - 1)) = kNaN<float>;
    }
  }

  /// Attends and takes back with these options, serial and by threads.
  template <class Options, class... Asked>
  Training<float> train(const Options& asked, Asked&&... gradients) {
    const auto call = attn::options(mask.mask, attn::query_offset(offset), asked);
    Training<float> g;
    g.forward(x, call);
    Threads pool;
    Training<float> by_threads = g;
    by_threads.backward(x, call, attn::dlogsumexp(dl), attn::on(pool, 3), gradients...);
    g.backward(x, call, attn::dlogsumexp(dl), gradients...);
    expect_same_bits_or_nan(by_threads.query, g.query);
    expect_same_bits_or_nan(by_threads.key, g.key);
    expect_same_bits_or_nan(by_threads.value, g.value);
    return g;
  }
  static void expect_same_bits_or_nan(const DynamicMatrix<float>& a,
                                      const DynamicMatrix<float>& b) {
    EXPECT_TRUE(same_bits(told(a), told(b)));
  }
  void expect_operands(const Training<float>& g, const ReferenceGradient& expected) const {
    EXPECT_TRUE(near_or_nan(g.query, expected.query)) << "of the queries";
    EXPECT_TRUE(near_or_nan(g.key, expected.key)) << "of the keys";
    EXPECT_TRUE(near_or_nan(g.value, expected.value)) << "of the values";
  }
  void expect_bias(const MatrixXf& gradient, const ReferenceGradient& expected) const {
    EXPECT_TRUE(near_or_nan(gradient, bias_gradient(expected.added, options, scores.bias.rows(), 1,
                                                    scores.one_column ? 1 : scores.bias.cols())))
        << "of the bias";
  }
  /// Σ of absolute values of what each head's pairs give, times their distance.
  std::vector<long double> absolute(const Reference& pairs, bool by_distance) const {
    std::vector<long double> sums(at(x.heads), 0);
    for_each_pair(pairs, options, [&](Index, Index i, Index, Index h, Index j, long double d) {
      const auto distance = static_cast<long double>(std::abs(i + offset - j));
      sums[at(h)] += std::abs(d) * (by_distance ? distance : 1);
    });
    return sums;
  }
};

void expect_softcap_alibi_bias_sink_and_score(Drawn& d, Draw& draw) {
  const Scores& scores = d.scores;
  const Index offset = d.offset;
  const auto slope = static_cast<long double>(scores.slope);
  d.options.softcap = static_cast<long double>(scores.cap);
  d.options.bias = [&](Index, Index h, Index i, Index j) {
    return scores.bias_of(i, j) - static_cast<long double>(scores.slopes[h]) *
                                      static_cast<long double>(std::abs(i + offset - j));
  };
  d.options.modify = [&](long double s, Index, Index h, Index i, Index j) {
    const auto distance = static_cast<long double>(i + offset - j);
    if (distance == static_cast<long double>(scores.muted)) return -HUGE_VALL;
    return distance > 3 ? s * 0.5L + slope * static_cast<long double>(h)
                        : s + std::tanh(s) - slope * distance;
  };
  d.inputs.slope = [&](long double s, Index, Index, Index i, Index j) {
    const long double t = std::tanh(s);
    return i + offset - j > 3 ? 0.5L : 2 - t * t;
  };
  d.options.sinks.assign(scores.sinks.begin(), scores.sinks.end());
  d.poison(draw);

  MatrixXf dB;
  VectorXf dalibi, dsink;
  float dscale = 0;
  const auto g = d.train(
      attn::options(attn::softcap(scores.cap), attn::alibi(scores.slopes), attn::bias(scores.bias),
                    attn::sink(scores.sinks),
                    attn::score([slope = scores.slope, muted = scores.muted](auto s, auto a) {
                      const auto distance = a.query - a.key;
                      return select(distance == muted, -kInfinity<float>,
                                    select(distance > 3, s * 0.5f + slope * a.head,
                                           s + tanh(s) - slope * distance));
                    })),
      attn::dbias(dB), attn::dalibi(dalibi), attn::dsink(dsink), attn::dscale(dscale));
  const auto expected = reference_gradient(d.x.Q, d.x.K, d.x.V, d.x.dY, d.options, d.inputs);
  d.expect_operands(g, expected);
  d.expect_bias(dB, expected);
  expect_near_sums(
      dalibi, alibi_gradient(expected.added, d.options, [&](Index, Index i) { return i + offset; }),
      d.absolute(expected.added, true), "alibi");
  std::vector<long double> rows(at(d.x.heads), static_cast<long double>(d.x.Q.rows()));
  expect_near_sums(dsink, expected.sinks, rows, "sink");
  if (std::isnan(expected.scale)) {
    EXPECT_TRUE(std::isnan(dscale));
  } else {
    EXPECT_NEAR(dscale, double(expected.scale), 4e-6 * double(1 + d.x.Q.rows()));
  }
}

void expect_scale_rotary_dropout_and_residual(Drawn& d, Draw& draw) {
  const bool interleaved = draw.one_in(2);
  const std::uint32_t part = draw.one_in(3) ? 0 : std::uint32_t(draw(0, 60000));  // of 65536
  const auto dropout = attn::dropout(part / 65536., draw.seed(), draw.seed());
  d.options.dropped = part / 65536.L;
  d.options.keeps = [=, offset = d.offset](Index b, Index h, Index i, Index j) {
    return attn::keeps(dropout, {b, h, i + offset, j});
  };
  d.options.scale = static_cast<long double>(draw.one_in(5) ? 0 : d.scores.factor);
  d.options.bias = [&](Index, Index, Index i, Index j) { return d.scores.bias_of(i, j); };
  d.poison(draw);
  const auto X = uniform<float>(d.x.Q.rows(), d.x.heads * d.x.value_dim, draw.seed());

  MatrixXf dB;
  const auto g = d.train(
      attn::options(
          attn::scale(static_cast<float>(*d.options.scale)), attn::bias(d.scores.bias),
          attn::rotary(interleaved ? attn::pairing::interleaved : attn::pairing::half_split),
          attn::residual(X), dropout),
      attn::dbias(dB));
  std::vector<Index> queries, keys;
  for (Index b = 0; b < d.x.sequences(); ++b) {
    for (Index i = 0; i < d.x.query_length(b); ++i) queries.push_back(i + d.offset);
    if (b > 0 && d.x.keys.size() == 2) continue;
    for (Index j = 0; j < d.x.key_length(b); ++j) keys.push_back(j);
  }
  const ReferenceRotary rotary{interleaved};
  ReferenceGradient expected =
      reference_gradient(reference_rotary(widened(d.x.Q), d.x.heads, queries, rotary),
                         reference_rotary(widened(d.x.K), d.x.kv_heads, keys, rotary),
                         widened(d.x.V), widened(d.x.dY), d.options, d.inputs);
  expected.query = turned_back(expected.query, d.x.heads, queries, rotary);
  expected.key = turned_back(expected.key, d.x.kv_heads, keys, rotary);
  d.expect_operands(g, expected);
  d.expect_bias(dB, expected);
}

TEST(GradientComposition, OfMasksAndScoresIsTheFormula) {
  for (std::uint32_t seed = 1; seed <= 500; ++seed) {
    Draw draw(seed);
    const Case c = random_case(draw);
    Drawn d(c, draw);
    SCOPED_TRACE(testing::Message()
                 << "seed " << seed << ": " << d.mask.text << ", offset " << d.offset << ", "
                 << c.sequences() << " sequences of up to " << c.longest_query() << " x "
                 << c.longest_key() << ", heads " << c.heads << " on " << c.kv_heads);
    if (draw.one_in(2)) {
      expect_softcap_alibi_bias_sink_and_score(d, draw);
    } else {
      expect_scale_rotary_dropout_and_residual(d, draw);
    }
    if (testing::Test::HasFailure()) break;  // one is enough to read
  }
}

}  // namespace
