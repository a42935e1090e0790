// tests/fuzz/attention.h: attention under masks of all kinds, with its outputs, against the oracle
// and against itself: some rows of one sequence alone, laid out otherwise, their mask asked pair by
// pair, other numbers wherever they do not look.
// SPDX-License-Identifier: MIT
#pragma once

#include "call.h"

namespace fuzz {

struct Attended {
  Matrix<float> Y, logsumexp, largest, entropy, weights, scores;

  /// What rows [begin, end) of sequence b have here; weights and scores of as many keys as it has.
  Attended rows(const Call& x, const Rows& r) const {
    const auto part = [&](const Matrix<float>& of) -> Matrix<float> {
      return some_rows(of, x.c.queries[at(r.sequence)] + r.begin, r.size());
    };
    const auto pairs = [&](const Matrix<float>& of) -> Matrix<float> {
      const Matrix<float> all = part(of);
      const Index keys = x.c.key_length(r.sequence), longest = x.c.longest_key();
      Matrix<float> some(all.rows(), of.size() > 0 ? x.c.heads * keys : 0);
      for (Index h = 0; some.size() > 0 && h < x.c.heads; ++h)
        some.middleCols(h * keys, keys) = all.middleCols(h * longest, keys);
      return some;
    };
    return {part(Y), part(logsumexp), part(largest), part(entropy), pairs(weights), pairs(scores)};
  }
};

inline void expect_same(const Attended& a, const Attended& b) {
  EXPECT_TRUE(same(a.Y, b.Y)) << "Y";
  if (a.logsumexp.size() == 0 || b.logsumexp.size() == 0) return;
  EXPECT_TRUE(same(a.logsumexp, b.logsumexp)) << "log-sum-exp";
  EXPECT_TRUE(same(a.largest, b.largest)) << "largest score";
  EXPECT_TRUE(same(a.entropy, b.entropy)) << "entropy";
  if (a.weights.size() == 0 || b.weights.size() == 0) return;
  EXPECT_TRUE(same(a.weights, b.weights)) << "weights";
  EXPECT_TRUE(same(a.scores, b.scores)) << "scores";
}

/// Against the oracle. What rounding a score costs grows with it.
inline void expect_oracle(const Attended& y, const ReferenceResult& expected, const Operands& x) {
  const long double scores = 1 + largest(y.scores) + largest(expected.logsumexp),
                    tolerance = 2e-6L * scores;
  EXPECT_TRUE(agrees(y.Y, expected.output, tolerance * std::max(1e-30L, largest(x.V)))) << "Y";
  if (y.logsumexp.size() == 0) return;
  EXPECT_TRUE(agrees(y.logsumexp, expected.logsumexp, tolerance)) << "log-sum-exp";
  if (y.weights.size() > 0) {
    EXPECT_TRUE(agrees(y.weights, expected.weights, tolerance)) << "weights";
    EXPECT_TRUE(agrees(y.scores, expected.masked, tolerance)) << "scores";
  }
  for (Index i = 0; i < y.largest.rows(); ++i) {
    for (Index h = 0; h < y.largest.cols(); ++h) {
      const long double l = expected.logsumexp(i, h);
      if (std::isnan(l)) continue;  // both are NaN then, which the oracle's maximum is not always
      // A row without keys has its sink alone.
      const bool none = std::isinf(expected.max_logit(i, h)) && expected.max_logit(i, h) < 0;
      EXPECT_TRUE(agrees(y.largest.block(i, h, 1, 1),
                         Reference::Constant(1, 1, none ? l : expected.max_logit(i, h)), tolerance))
          << "largest score";
      EXPECT_TRUE(agrees(y.entropy.block(i, h, 1, 1), expected.entropy.block(i, h, 1, 1),
                         tolerance * (1 + scores)))
          << "entropy";
    }
  }
}

/// Y alone, in memory laid out by the draw.
template <class... Options>
Attended attend_alone(const Operands& x, Draw& draw, const Options&... options) {
  const Placed<float> q(x.Q, draw), k(x.K, draw), v(x.V, draw),
      y(x.Q.rows(), x.c.heads * x.value_dim(), draw);
  attn::attention(attn::heads(q.view(), x.c.heads), attn::heads(k.view(), x.c.kv_heads),
                  attn::heads(v.view(), x.c.kv_heads), attn::into(attn::heads(y.view(), x.c.heads)),
                  attn::sequences(x.c.queries, x.c.keys), options...);
  EXPECT_TRUE(y.gaps_stand());
  return {y.numbers(), {}, {}, {}, {}, {}};
}
/// With all that is saved beside it.
template <class... Options>
Attended attend(const Operands& x, Draw& draw, const Options&... options) {
  Attended saved;
  const Placed<float> l(x.Q.rows(), x.c.heads, draw);
  saved.Y = attend_alone(x, draw, attn::query_offset(x.offset), attn::save_logsumexp(l.view()),
                         attn::save_max_logit(saved.largest), attn::save_entropy(saved.entropy),
                         attn::save_weights(saved.weights),
                         attn::save_scores(saved.scores, attn::stage::masked), options...)
                .Y;
  EXPECT_TRUE(l.gaps_stand());
  saved.logsumexp = l.numbers();
  return saved;
}

inline void attention(const std::uint8_t* bytes, std::size_t size) {
  Draw draw(bytes, size);
  const Call x(draw);
  const Attended y = attend(x, draw, x.mask.mask);
  if (x.ordinary()) {
    ReferenceOptions asked = x.reference();
    asked.save_weights = asked.save_scores = true;
    expect_oracle(y, reference_attention(x.Q, x.K, x.V, asked), x);
  }
  const Rows r = x.some_rows(draw);
  const Operands part = x.part(r, draw);
  expect_same(attend(part, draw, x.part_mask(r)), y.rows(x, r));
  // And by itself, with nothing but its queries.
  expect_same(attend_alone(part, draw, attn::query_offset(part.offset), x.part_mask(r)),
              y.rows(x, r));
}

/// No mask, no option: the smallest calls have paths of their own.
inline void plain(const std::uint8_t* bytes, std::size_t size) {
  Draw draw(bytes, size);
  Call x(draw);
  Matrix<float>* const operands[] = {&x.Q, &x.K, &x.V};
  for (int n = 0; n < 3; ++n)
    *operands[n] = matrix<float>(operands[n]->rows(), operands[n]->cols(), x.kinds[n], draw);
  const Attended y = attend_alone(x, draw);
  ReferenceOptions asked = x.reference();
  asked.visible = {};
  if (x.ordinary()) {
    const auto expected = reference_attention(x.Q, x.K, x.V, asked);
    expect_oracle(y, expected, x);
  }
  const Rows r = x.some_rows(draw);
  Operands part = x.part(r, draw);
  part.K = some_rows(x.K, x.first_key(r.sequence), part.K.rows());
  part.V = some_rows(x.V, x.first_key(r.sequence), part.V.rows());
  expect_same(attend_alone(part, draw), y.rows(x, r));
}

}  // namespace fuzz
