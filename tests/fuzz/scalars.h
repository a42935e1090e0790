// tests/fuzz/scalars.h: attention, its gradients and the cache in half, bfloat16 and double. The
// narrow ones are storage: what float gives for the same numbers, rounded once, whatever they are.
// Double is held to the oracle and to rows alone.
// SPDX-License-Identifier: MIT
#pragma once

#include "gradients.h"

namespace fuzz {

/// Numbers of one scalar as those of another: narrow ones by the scalar's own conversion.
template <class To, class From>
Matrix<To> converted(const Matrix<From>& x) {
  Matrix<To> y(x.rows(), x.cols());
  for (Index n = 0; n < x.size(); ++n) y.data()[n] = static_cast<To>(x.data()[n]);
  return y;
}

/// What both passes of a call give, the log-sum-exp in the scalar that it computes in.
template <class Scalar>
struct Passes {
  Matrix<Scalar> Y, query, key, value;
  Matrix<attn::compute_t<Scalar>> logsumexp;
};

/// Causal, so that one type of mask serves all scalars.
template <class Scalar>
Passes<Scalar> passes(const Case& c, Index offset, const Matrix<Scalar>& Q, const Matrix<Scalar>& K,
                      const Matrix<Scalar>& V, const Matrix<Scalar>& dY, Draw& draw) {
  const Placed<Scalar> q(Q, draw), k(K, draw), v(V, draw), dy(dY, draw),
      y(dY.rows(), dY.cols(), draw), dq(Q.rows(), Q.cols(), draw), dk(K.rows(), K.cols(), draw),
      dv(V.rows(), V.cols(), draw);
  const auto of = [](const auto& m, Index heads) { return attn::heads(m.view(), heads); };
  const auto call =
      attn::options(attn::sequences(c.queries, c.keys), attn::query_offset(offset), attn::causal());
  Passes<Scalar> p;
  attn::AttentionState<attn::compute_t<Scalar>> state;
  attn::attention(of(q, c.heads), of(k, c.kv_heads), of(v, c.kv_heads), attn::into(of(y, c.heads)),
                  attn::save_logsumexp(p.logsumexp), attn::save_state(state), call);
  attn::attention_backward(of(q, c.heads), of(k, c.kv_heads), of(v, c.kv_heads), of(dy, c.heads),
                           state, attn::dquery(of(dq, c.heads)), attn::dkey(of(dk, c.kv_heads)),
                           attn::dvalue(of(dv, c.kv_heads)), call);
  EXPECT_TRUE(y.gaps_stand() && dq.gaps_stand() && dk.gaps_stand() && dv.gaps_stand());
  return {y.numbers(), dq.numbers(), dk.numbers(), dv.numbers(), std::move(p.logsumexp)};
}

/// A cache of narrow numbers gives what its rows give as float.
template <class Stored>
void expect_cache(const Case& c, const Matrix<float>& Q, const Matrix<Stored>& K,
                  const Matrix<Stored>& V, Draw& draw) {
  const Index keys = K.rows(), rows = std::min(Q.rows(), keys);
  if (rows == 0) return;
  attn::KeyValueCache<Stored> held(
      attn::KeyValueCacheOptions(keys + draw(0, 3), c.kv_heads, K.cols() / c.kv_heads)
          .value_dim(V.cols() / c.kv_heads));
  const Index first = draw(0, keys);
  held.append(K.topRows(first), V.topRows(first));
  held.append(K.bottomRows(keys - first), V.bottomRows(keys - first));
  const Matrix<float> q = Q.topRows(rows);
  Matrix<float> of_cache, of_rows;
  attn::attention(attn::heads(q, c.heads), held, attn::into(of_cache));
  attn::attention(attn::heads(q, c.heads), attn::heads(converted<float>(K), c.kv_heads),
                  attn::heads(converted<float>(V), c.kv_heads), attn::into(of_rows), attn::causal(),
                  attn::query_offset(keys - rows));
  EXPECT_TRUE(same(of_cache, of_rows)) << "the cache";
}

template <class Stored>
void narrow(const Call& x, const Matrix<float>& dY, Draw& draw) {
  const auto Q = converted<Stored>(x.Q), K = converted<Stored>(x.K), V = converted<Stored>(x.V),
             D = converted<Stored>(dY);
  const auto q = converted<float>(Q), k = converted<float>(K), v = converted<float>(V);
  const auto stored = passes<Stored>(x.c, x.offset, Q, K, V, D, draw);
  const auto wide = passes<float>(x.c, x.offset, q, k, v, converted<float>(D), draw);
  EXPECT_TRUE(same(stored.Y, converted<Stored>(wide.Y))) << "Y";
  EXPECT_TRUE(same(stored.logsumexp, wide.logsumexp)) << "log-sum-exp";
  EXPECT_TRUE(same(stored.query, converted<Stored>(wide.query))) << "by the queries";
  EXPECT_TRUE(same(stored.key, converted<Stored>(wide.key))) << "by the keys";
  EXPECT_TRUE(same(stored.value, converted<Stored>(wide.value))) << "by the values";
  if (x.c.sequences() == 1) expect_cache(x.c, q, K, V, draw);
}

inline void doubles(const Call& x, const Matrix<float>& dY, Draw& draw) {
  const auto Q = converted<double>(x.Q), K = converted<double>(x.K), V = converted<double>(x.V),
             D = converted<double>(dY);
  const auto p = passes<double>(x.c, x.offset, Q, K, V, D, draw);
  if (x.ordinary() && Q.allFinite() && K.allFinite() && V.allFinite() && D.allFinite()) {
    ReferenceOptions asked = x.reference();
    asked.visible = [&x](Index, Index, Index i, Index j) { return j <= i + x.offset; };
    asked.save_scores = true;
    const auto forward = reference_attention(Q, K, V, asked);
    const auto backward = reference_gradient(Q, K, V, D, asked);
    const long double unit = 4e-14L * (1 + largest(forward.masked));
    EXPECT_TRUE(agrees(p.Y, forward.output, unit * largest(V)));
    EXPECT_TRUE(agrees(p.logsumexp, forward.logsumexp, unit));
    const long double by_weight = static_cast<long double>(x.value_dim()) * largest(V) * largest(D);
    EXPECT_TRUE(
        agrees(p.query, backward.query, unit * (largest(backward.query) + by_weight * largest(K))));
    EXPECT_TRUE(
        agrees(p.key, backward.key, unit * (largest(backward.key) + by_weight * largest(Q))));
    EXPECT_TRUE(agrees(p.value, backward.value, unit * (largest(backward.value) + largest(D))));
  }
  const Rows r = x.some_rows(draw);
  const Index first = x.c.queries[at(r.sequence)] + r.begin, keys = x.c.key_length(r.sequence);
  const auto alone = passes<double>(
      {{0, r.size()}, {0, keys}, x.c.heads, x.c.kv_heads}, x.offset + r.begin,
      some_rows(Q, first, r.size()), some_rows(K, x.first_key(r.sequence), keys),
      some_rows(V, x.first_key(r.sequence), keys), some_rows(D, first, r.size()), draw);
  EXPECT_TRUE(same(alone.Y, some_rows(p.Y, first, r.size()))) << "Y alone";
  EXPECT_TRUE(same(alone.logsumexp, some_rows(p.logsumexp, first, r.size()))) << "alone";
  EXPECT_TRUE(same(alone.query, some_rows(p.query, first, r.size()))) << "by queries alone";
}

inline void scalars(const std::uint8_t* bytes, std::size_t size) {
  Draw draw(bytes, size);
  const Index scalar = draw(0, 4);
  const Call x(draw);
  const Loss loss(x, draw);
  if (scalar < 2) {
    narrow<Eigen::bfloat16>(x, loss.dY, draw);
  } else if (scalar < 4) {
    narrow<Eigen::half>(x, loss.dY, draw);
  } else {
    doubles(x, loss.dY, draw);
  }
}

}  // namespace fuzz
