// tests/fuzz/gradients.h: the backward pass under masks of all kinds, bare and with all that makes a
// score, against the oracle and against itself: some rows alone, a sequence alone, by other threads,
// laid out otherwise, other numbers wherever nobody looks.
// SPDX-License-Identifier: MIT
#pragma once

#include "../support/reference_gradient.h"
#include "scores.h"

namespace fuzz {

/// A loss by its gradients: by the output and by the log-sum-exp.
struct Loss {
  Matrix<float> dY, dl;
  Kind kind;

  Loss(const Call& x, Draw& draw)
      : dl(matrix<float>(x.Q.rows(), x.c.heads, Kind::uniform, draw)), kind(fuzz::kind(draw)) {
    dY = matrix<float>(x.Q.rows(), x.c.heads * x.value_dim(), kind, draw);
  }
  Loss(Matrix<float> by_output, Matrix<float> by_logsumexp)
      : dY(std::move(by_output)), dl(std::move(by_logsumexp)), kind(Kind::uniform) {}
  Loss part(const Call& x, const Rows& r) const {
    const Index first = x.c.queries[at(r.sequence)] + r.begin;
    return {some_rows(dY, first, r.size()), some_rows(dl, first, r.size())};
  }
};

struct Taken {
  Matrix<float> Y, query, key, value, bias;
  Eigen::VectorXf slopes, sinks;
  float scale = 0;
};

/// Both passes; the gradients in memory laid out by the draw, the backward pass now and then by
/// several threads.
template <class Call, class... Asked>
void take(Taken& g, const Operands& x, const Loss& loss, Draw& draw, const Call& call,
          const Asked&... asked) {
  const Index H = x.c.heads, G = x.c.kv_heads;
  const Placed<float> q(x.Q, draw), k(x.K, draw), v(x.V, draw), dy(loss.dY, draw),
      dq(x.Q.rows(), x.Q.cols(), draw), dk(x.K.rows(), x.K.cols(), draw),
      dv(x.V.rows(), x.V.cols(), draw);
  const auto batch = attn::sequences(x.c.queries, x.c.keys);
  attn::AttentionState<float> state;
  Threads pool;
  attn::attention(attn::heads(q.view(), H), attn::heads(k.view(), G), attn::heads(v.view(), G),
                  attn::into(g.Y), batch, attn::save_state(state), call);
  attn::attention_backward(
      attn::heads(q.view(), H), attn::heads(k.view(), G), attn::heads(v.view(), G),
      attn::heads(dy.view(), H), state, batch, attn::dquery(attn::heads(dq.view(), H)),
      attn::dkey(attn::heads(dk.view(), G)), attn::dvalue(attn::heads(dv.view(), G)),
      attn::dlogsumexp(loss.dl), attn::on(pool, 1 + 2 * (draw(0, 7) / 7)), call, asked...);
  EXPECT_TRUE(dq.gaps_stand() && dk.gaps_stand() && dv.gaps_stand());
  g.query = dq.numbers();
  g.key = dk.numbers();
  g.value = dv.numbers();
}

/// All of a call once more, or of one of its sequences alone.
inline void expect_same(const Taken& a, const Taken& b) {
  EXPECT_TRUE(same(a.Y, b.Y)) << "Y";
  EXPECT_TRUE(same(a.query, b.query)) << "by the queries";
  EXPECT_TRUE(same(a.key, b.key)) << "by the keys";
  EXPECT_TRUE(same(a.value, b.value)) << "by the values";
  EXPECT_TRUE(same(a.bias, b.bias)) << "by the bias";
  EXPECT_TRUE(same(a.slopes, b.slopes)) << "by the slopes";
  EXPECT_TRUE(same(a.sinks, b.sinks)) << "by the sinks";
  EXPECT_TRUE(same(Matrix<float>::Constant(1, 1, a.scale), Matrix<float>::Constant(1, 1, b.scale)))
      << "by the scale";
}
/// Rows of a sequence alone: by their queries; by the keys too where no other row sees them.
inline void expect_same_rows(const Taken& part, const Taken& all, const Call& x, const Rows& r) {
  EXPECT_TRUE(
      same(part.query, some_rows(all.query, x.c.queries[at(r.sequence)] + r.begin, r.size())))
      << "by the queries of " << r.size();
  if (r.size() < x.c.query_length(r.sequence) || x.c.keys.size() < x.c.queries.size()) return;
  const Index first = x.first_key(r.sequence), keys = x.c.key_length(r.sequence);
  EXPECT_TRUE(same(part.key, some_rows(all.key, first, keys))) << "by the keys of a sequence";
  EXPECT_TRUE(same(part.value, some_rows(all.value, first, keys))) << "by the values of a sequence";
}

/// What rounding costs grows with the scores, and with the terms of a sum.
inline void expect_oracle(const Taken& g, const ReferenceResult& forward,
                          const ReferenceGradient& expected, const Call& x, const Loss& loss,
                          long double scores) {
  const long double by_weight = 2 * std::sqrt(static_cast<long double>(x.value_dim())) *
                                    largest(loss.dY) * largest(x.V) +
                                largest(loss.dl),
                    unit = 4e-6L * (1 + scores);
  const auto near = [&](const Matrix<float>& actual, const Reference& exact, long double term) {
    return agrees(actual, exact, unit * (largest(exact) + term + 1e-30L));
  };
  EXPECT_TRUE(near(g.Y, forward.output, largest(x.V))) << "Y";
  EXPECT_TRUE(near(g.query, expected.query, by_weight * largest(x.K))) << "by the queries";
  EXPECT_TRUE(near(g.key, expected.key, by_weight * largest(x.Q))) << "by the keys";
  EXPECT_TRUE(near(g.value, expected.value, largest(loss.dY))) << "by the values";
}

/// NaN in the open, where the oracle says what becomes of it; none where nobody looks.
inline bool spoil(Call& x, Loss& loss, Draw& draw) {
  for (const Kind kind : {x.kinds[0], x.kinds[1], x.kinds[2], loss.kind})
    if (kind == Kind::special || kind == Kind::huge) return false;
  for (Matrix<float>* m : {&x.Q, &x.K, &x.V, &loss.dY}) {
    if (draw(0, 7) == 7 && m->size() > 0)
      (*m)(draw(0, m->rows() - 1), draw(0, m->cols() - 1)) = kNaN<float>;
  }
  return true;
}

inline void gradients(const std::uint8_t* bytes, std::size_t size) {
  Draw draw(bytes, size);
  Call x(draw);
  Loss loss(x, draw);
  const bool ordinary = spoil(x, loss, draw);
  const auto taken = [&draw](const Operands& of, const Loss& by, const AnyMask& mask) {
    Taken g;
    take(g, of, by, draw, attn::options(attn::query_offset(of.offset), mask));
    return g;
  };
  const Taken g = taken(x, loss, x.mask.mask);
  if (ordinary) {
    ReferenceOptions asked = x.reference();
    asked.save_scores = true;
    const auto forward = reference_attention(x.Q, x.K, x.V, asked);
    const GradientInputs inputs{{}, widened(loss.dl)};
    expect_oracle(g, forward, reference_gradient(x.Q, x.K, x.V, loss.dY, asked, inputs), x, loss,
                  largest(forward.masked));
  }
  expect_same(taken(x.again(draw), loss, x.mask.mask), g);
  const Rows r = x.some_rows(draw);
  expect_same_rows(taken(x.part(r, draw), loss.part(x, r), x.part_mask(r)), g, x, r);
}

}  // namespace fuzz
