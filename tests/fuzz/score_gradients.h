// tests/fuzz/score_gradients.h: the backward pass of attention with all that makes a score, and
// dropout: the gradients by the operands and by what modifies scores, against the oracle and against
// itself.
// SPDX-License-Identifier: MIT
#pragma once

#include <numeric>

#include "gradients.h"

namespace fuzz {

inline Taken take(const Operands& x, const Modified& m, const attn::detail::Dropout& drop,
                  const Loss& loss, const AnyMask& mask, Draw& draw) {
  Taken g;
  take(g, x, loss, draw, attn::options(attn::query_offset(x.offset), mask, m.options(), drop),
       attn::dbias(g.bias), attn::dalibi(g.slopes), attn::dsink(g.sinks), attn::dscale(g.scale));
  return g;
}

/// One number for each head, each a sum of terms that sum up to `of` by their absolute values.
inline void expect_sums(const Eigen::VectorXf& actual, const std::vector<long double>& expected,
                        const std::vector<long double>& of, long double unit) {
  ASSERT_EQ(actual.size(), Index(expected.size()));
  for (Index h = 0; h < actual.size(); ++h)
    EXPECT_TRUE(agrees(actual.segment(h, 1), Reference::Constant(1, 1, expected[at(h)]),
                       unit * (1 + of[at(h)])))
        << "head " << h;
}

/// Gradients by what modifies scores.
inline void expect_modifiers(const Taken& g, const ReferenceGradient& expected, const Call& x,
                             const Modified& m, const ReferenceOptions& asked, long double unit) {
  const Index rows = m.bias.rows(), keys = m.bias.cols();
  const Reference absolute = expected.added.cwiseAbs();
  EXPECT_TRUE(agrees(g.bias, bias_gradient(expected.added, asked, rows, 1, keys),
                     unit * (1 + largest(bias_gradient(absolute, asked, rows, 1, keys)))))
      << "by the bias";
  const auto position = [&x](Index, Index i) { return i + x.offset; };
  std::vector<long double> all(at(x.c.heads), 0);
  for_each_pair(absolute, asked, [&](Index, Index i, Index, Index h, Index j, long double a) {
    if (!std::isnan(a))
      all[at(h)] += a * static_cast<long double>(1 + std::abs(position(0, i) - j));
  });
  expect_sums(g.slopes, alibi_gradient(expected.added, asked, position), all, unit);
  expect_sums(g.sinks, expected.sinks, all, unit * static_cast<long double>(1 + x.Q.rows()));
  const long double product = std::sqrt(static_cast<long double>(x.key_dim())) * largest(x.Q) *
                              largest(x.K),
                    sum = std::accumulate(all.begin(), all.end(), 0.0L);
  EXPECT_TRUE(agrees(Eigen::VectorXf::Constant(1, g.scale),
                     Reference::Constant(1, 1, expected.scale), unit * (1 + product * sum)))
      << "by the scale";
}

inline void score_gradients(const std::uint8_t* bytes, std::size_t size) {
  Draw draw(bytes, size);
  Call x(draw);
  const Modified m(x, draw);
  Loss loss(x, draw);
  const std::uint32_t dropped = draw(0, 2) < 2 ? 0 : std::uint32_t(draw(0, 60000));  // of 65536
  const auto drop = attn::dropout(dropped / 65536., draw.seed());
  // Of a row without numbers that drops all its pairs the library gives NaN, the oracle 0.
  const bool ordinary =
      spoil(x, loss, draw) && (dropped == 0 || (x.Q.allFinite() && x.K.allFinite()));
  const Taken g = take(x, m, drop, loss, x.mask.mask, draw);
  if (ordinary) {
    ReferenceOptions asked = x.reference();
    asked.save_scores = true;
    m.ask(asked, x.offset);
    asked.dropped = dropped / 65536.L;
    asked.keeps = [&](Index b, Index h, Index i, Index j) {
      return attn::keeps(drop, {b, h, i + x.offset, j});
    };
    const auto slope = [&](long double, Index, Index, Index i, Index j) {
      return i + x.offset - j > 3 ? 0.5L : 1;
    };
    const GradientInputs inputs{slope, widened(loss.dl)};
    const auto forward = reference_attention(x.Q, x.K, x.V, asked);
    const auto expected = reference_gradient(x.Q, x.K, x.V, loss.dY, asked, inputs);
    const long double scores = largest(forward.masked) / (1 - asked.dropped);
    expect_oracle(g, forward, expected, x, loss, scores);
    const long double by_weight = largest(loss.dl) + largest(loss.dY) * largest(x.V) *
                                                         static_cast<long double>(x.value_dim());
    expect_modifiers(g, expected, x, m, asked, 4e-6L * (1 + scores) * (1 + by_weight));
  }
  expect_same(take(x.again(draw), m, drop, loss, x.mask.mask, draw), g);
  const Rows r = x.some_rows(draw);
  // Which pairs fall depends on the number of their sequence.
  if (r.size() == 0 || (dropped > 0 && r.sequence > 0)) return;
  expect_same_rows(take(x.part(r, draw), m.part(x, r), drop, loss.part(x, r), x.part_mask(r), draw),
                   g, x, r);
}

}  // namespace fuzz
