// tests/fuzz/scores.h: attention with everything that makes a score: scale, softcap, biases, linear
// biases, a functor, a sink; with keys in parts and several workers.
// SPDX-License-Identifier: MIT
#pragma once

#include "../support/threads.h"
#include "attention.h"

namespace fuzz {

/// Modifiers of a call, and of some rows of it.
struct Modified {
  float scale, cap, slope, muted;
  Eigen::VectorXf slopes, sinks;
  MatrixXf bias;
  Index split, workers;

  Modified(const Call& x, Draw& draw) : Modified(Scores(x.c, draw), draw) {
    static constexpr float kScales[] = {0.5f, 1, 0, -1, 0.1f, 2, 0.3f, 1e-30f};
    scale = kScales[draw(0, 7)];
  }

  /// As options of a call, which refer to what this holds.
  auto options() const {
    return attn::options(
        attn::scale(scale), attn::softcap(cap), attn::bias(bias), attn::alibi(slopes),
        attn::sink(sinks), attn::split_keys(split),
        attn::score([slope = slope, muted = muted](auto s, auto a) {
          const auto distance = a.query - a.key;
          return select(distance == muted, -kInfinity<float>,
                        select(distance > 3, s * 0.5f + slope * a.head, s - slope * distance));
        }));
  }
  /// The oracle's, of a call whose first row is at the offset.
  void ask(ReferenceOptions& asked, Index offset) const {
    asked.scale = static_cast<long double>(scale);
    asked.softcap = static_cast<long double>(cap);
    asked.bias = [this, offset](Index, Index h, Index i, Index j) {
      return static_cast<long double>(bias(bias.rows() == 1 ? 0 : i, bias.cols() == 1 ? 0 : j)) -
             static_cast<long double>(slopes[h]) *
                 static_cast<long double>(std::abs(i + offset - j));
    };
    asked.modify = [this, offset](long double s, Index, Index h, Index i, Index j) {
      const auto distance = static_cast<long double>(i + offset - j);
      if (distance == static_cast<long double>(muted)) return -HUGE_VALL;
      return distance > 3 ? s * 0.5L + static_cast<long double>(slope) * static_cast<long double>(h)
                          : s - static_cast<long double>(slope) * distance;
    };
    asked.sinks.assign(sinks.begin(), sinks.end());
  }
  Modified part(const Call& x, const Rows& r) const {
    Modified m = *this;
    const Index rows = bias.rows() == x.c.longest_query() && bias.rows() != 1 ? r.size() : 1,
                first = rows == 1 && bias.rows() == 1 ? 0 : r.begin,
                cols = bias.cols() == 1 ? 1 : x.c.key_length(r.sequence);
    if (bias.size() == 0) {
      m.bias.resize(rows, cols);
    } else {
      m.bias = bias.block(first, 0, std::min(rows, bias.rows() - first), cols);
    }
    return m;
  }

 private:
  Modified(Scores s, Draw& draw)
      : scale(1),
        cap(s.cap),
        slope(s.slope),
        muted(s.muted),
        slopes(std::move(s.slopes)),
        sinks(std::move(s.sinks)),
        bias(std::move(s.bias)),
        split(draw(1, 300)),
        workers(1 + draw(0, 7) / 6) {}
};

inline Attended attend(const Operands& x, const Modified& m, const AnyMask& mask, Draw& draw) {
  Threads pool;
  return attend(x, draw, mask, m.options(), attn::on(pool, m.workers));
}

/// The sink is one more key to the entropy, which the oracle gives of the others.
inline void add_sinks(ReferenceResult& expected, const Eigen::VectorXf& sinks) {
  for (Index i = 0; i < expected.entropy.rows(); ++i) {
    for (Index h = 0; h < expected.entropy.cols(); ++h) {
      const long double sink = static_cast<long double>(sinks[h]);
      if (std::isinf(sink)) continue;
      const long double score = sink - expected.logsumexp(i, h), weight = std::exp(score);
      if (weight > 0) expected.entropy(i, h) -= weight * score;
    }
  }
}

inline void scores(const std::uint8_t* bytes, std::size_t size) {
  Draw draw(bytes, size);
  const Call x(draw);
  const Modified m(x, draw);
  const Attended y = attend(x, m, x.mask.mask, draw);
  if (x.ordinary()) {
    ReferenceOptions asked = x.reference();
    asked.save_weights = asked.save_scores = true;
    m.ask(asked, x.offset);
    ReferenceResult expected = reference_attention(x.Q, x.K, x.V, asked);
    add_sinks(expected, m.sinks);
    expect_oracle(y, expected, x);
  }
  const Rows r = x.some_rows(draw);
  if (r.size() == 0) return;
  Modified part = m.part(x, r);
  part.workers = 3 - m.workers;
  expect_same(attend(x.part(r, draw), part, x.part_mask(r), draw), y.rows(x, r));
}

}  // namespace fuzz
