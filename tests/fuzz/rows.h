// tests/fuzz/rows.h: what works row by row: softmax and its logarithms, rotary positions, merge;
// against plain loops, a row alone, by columns and in place.
// SPDX-License-Identifier: MIT
#pragma once

#include "../support/reference_rotary.h"
#include "call.h"

namespace fuzz {

/// Scores of rows under a mask; where it hides them they hold anything.
struct SoftmaxTrial {
  Draw& draw;
  Case c;
  Composition mask;
  Kind kind;
  Matrix<float> S;

  explicit SoftmaxTrial(Draw& d)
      : draw(d), c(drawn_case(d)), mask(compose(c, d, d(0, 1))), kind(fuzz::kind(d)) {
    S = matrix<float>(c.queries.back(), c.keys.back(), kind, draw);
    S *= float(draw(1, 20));
    Numbers number(Kind::special, draw.seed());
    for (Index n = 0; n < S.size(); ++n)
      if (!sees(n / S.cols(), n % S.cols())) S.data()[n] = float(number());
  }
  static Case drawn_case(Draw& draw) {
    Case c;
    // Now and then rows that do not fit the scratch, 32 KiB.
    c.keys = {0, draw(0, 255) == 255 ? draw(8180, 8300) : count(draw)};
    c.queries = {0, std::min(count(draw) % 40, 1 + 2000 / (1 + c.keys.back()))};
    return c;
  }
  bool sees(Index i, Index j) const { return mask.rule({0, 0, i, i, j, i}); }

  void operator()() const {
    const Placed<float> s(S, draw), p(S.rows(), S.cols(), draw);
    attn::softmax(s.view(), mask.mask, attn::into(p.view()));
    EXPECT_TRUE(p.gaps_stand());
    const Matrix<float> P = p.numbers(), logs = attn::log_softmax(s.view(), mask.mask);
    const Matrix<float> l = attn::logsumexp(s.view(), mask.mask);
    if (kind != Kind::special && kind != Kind::huge) expect_oracle(P, logs, l);
    attn::softmax(s.view(), mask.mask, attn::into(s.view()));
    EXPECT_TRUE(same(s.numbers(), P)) << "in place";

    // One row under its mask as a matrix, and the same without a mask, by columns.
    if (S.rows() == 0) return;
    const Index i = draw(0, S.rows() - 1);
    Bools seen(1, S.cols());
    for (Index j = 0; j < S.cols(); ++j) seen(0, j) = sees(i, j);
    const Matrix<float> row = S.row(i), kept = seen.select(row, -kInfinity<float>);
    EXPECT_TRUE(same(attn::softmax(row, attn::keep(seen)), P.row(i))) << "a row alone";
    EXPECT_TRUE(same(attn::logsumexp(row, attn::keep(seen)), l.row(i))) << "a row alone";
    const Placed<float> t(Matrix<float>(kept.transpose()), draw);
    EXPECT_TRUE(same(attn::softmax(t.view(), attn::colwise()).transpose(), P.row(i))) << "a column";
  }

 private:
  void expect_oracle(const Matrix<float>& P, const Matrix<float>& logs,
                     const Matrix<float>& l) const {
    Reference weights = Reference::Zero(S.rows(), S.cols()), exact_logs = weights,
              sums = Reference::Zero(S.rows(), 1);
    for (Index i = 0; i < S.rows(); ++i) {
      long double most = -HUGE_VALL, sum = 0;
      for (Index j = 0; j < S.cols(); ++j)
        if (sees(i, j)) most = std::max(most, static_cast<long double>(S(i, j)));
      for (Index j = 0; j < S.cols(); ++j)
        if (sees(i, j)) sum += std::exp(static_cast<long double>(S(i, j)) - most);
      sums(i, 0) = sum > 0 ? most + std::log(sum) : -HUGE_VALL;
      for (Index j = 0; j < S.cols(); ++j) {
        exact_logs(i, j) = sees(i, j) ? static_cast<long double>(S(i, j)) - sums(i, 0) : -HUGE_VALL;
        weights(i, j) = std::exp(exact_logs(i, j));
      }
    }
    const long double unit = 1e-6L * (1 + largest(exact_logs));
    EXPECT_TRUE(agrees(P, weights, unit)) << "softmax";
    EXPECT_TRUE(agrees(logs, exact_logs, unit)) << "log-softmax";
    EXPECT_TRUE(agrees(l, sums, unit)) << "log-sum-exp";
  }
};

/// Rows turned, by the oracle; the option of attention turns queries and keys by the same bits.
inline void rotary(Draw& draw) {
  const Index H = draw(1, 3), d = 2 * draw(1, 24), n = 2 * draw(1, d / 2), rows = count(draw) % 50,
              keys = count(draw), offset = draw(-10, 300);
  const Kind kinds[2] = {kind(draw), kind(draw)};
  const auto Q = matrix<float>(rows, H * d, kinds[0], draw),
             K = matrix<float>(keys, H * d, kinds[1], draw),
             V = matrix<float>(keys, H * 3, Kind::uniform, draw);
  const bool interleaved = draw(0, 1) == 1;
  static constexpr double kBases[] = {10000, 1, 500000, 0.5};
  const double base = kBases[draw(0, 3)];
  const auto turn =
      attn::rotary(interleaved ? attn::pairing::interleaved : attn::pairing::half_split, base)
          .dims(n);
  const Placed<float> q(Q, draw), k(K, draw), y(rows, H * d, draw);
  attn::rotate(attn::heads(q.view(), H), turn, attn::into(attn::heads(y.view(), H)),
               attn::query_offset(offset));
  EXPECT_TRUE(y.gaps_stand());
  const Matrix<float> turned = y.numbers(),
                      turned_keys = attn::rotate(attn::heads(k.view(), H), turn);
  if (kinds[0] != Kind::special && kinds[0] != Kind::huge) {
    const auto expected = reference_rotary(widened(Q), H, counted(rows, offset),
                                           {interleaved, static_cast<long double>(base), n});
    EXPECT_TRUE(agrees(turned, expected, 1e-6L * largest(Q)));
  }
  const Index first = draw(0, rows), some = draw(0, rows - first);
  const Matrix<float> part = some_rows(Q, first, some);
  EXPECT_TRUE(same(attn::rotate(attn::heads(part, H), turn, attn::query_offset(offset + first)),
                   some_rows(turned, first, some)))
      << "some rows";
  const auto call = attn::options(attn::query_offset(offset), attn::causal());
  Matrix<float> before, inside;
  attn::attention(attn::heads(turned, H), attn::heads(turned_keys, H), attn::heads(V, H),
                  attn::into(before), call);
  attn::attention(attn::heads(q.view(), H), attn::heads(k.view(), H), attn::heads(V, H),
                  attn::into(inside), call, turn);
  EXPECT_TRUE(same(inside, before)) << "as an option";
}

/// Two parts of the keys, merged, are what one call gives to rounding; a part without keys is none.
inline void merge(Draw& draw) {
  Call x(draw);
  const Index b = 0, keys = x.c.key_length(b), half = draw(0, keys), H = x.c.heads;
  const Matrix<float> Q = some_rows(x.Q, 0, x.c.query_length(b)),
                      K = matrix<float>(keys, x.K.cols(), Kind::uniform, draw),
                      V = matrix<float>(keys, x.V.cols(), Kind::uniform, draw);
  const auto part = [&](Index first, Index rows, Matrix<float>& l) {
    Matrix<float> y;
    attn::attention(attn::heads(Q, H), attn::heads(some_rows(K, first, rows), x.c.kv_heads),
                    attn::heads(some_rows(V, first, rows), x.c.kv_heads), attn::into(y),
                    attn::save_logsumexp(l));
    return y;
  };
  Matrix<float> la, lb, l, lm, Y;
  const Matrix<float> A = part(0, half, la), B = part(half, keys - half, lb),
                      whole = part(0, keys, l);
  attn::merge(A, la, B, lb, attn::into(Y), attn::save_logsumexp(lm));
  if (x.kinds[0] == Kind::special || x.kinds[0] == Kind::huge) return;
  EXPECT_TRUE(agrees(Y, widened(whole), 4e-6L * (1 + largest(l)))) << "merged";
  EXPECT_TRUE(agrees(lm, widened(l), 4e-6L * (1 + largest(l)))) << "merged";
}

inline void rows(const std::uint8_t* bytes, std::size_t size) {
  Draw draw(bytes, size);
  const Index what = draw(0, 7);
  if (what < 4) {
    SoftmaxTrial{draw}();
  } else if (what < 7) {
    rotary(draw);
  } else {
    merge(draw);
  }
}

}  // namespace fuzz
