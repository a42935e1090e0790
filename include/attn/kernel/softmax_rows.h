// attn/kernel/softmax_rows.h: the softmax of a chunk's rows over the keys they have seen, and o, as
// an object: clear, advance, weigh, settle.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <limits>

#include "online_softmax.h"
#include "settled_rows.h"
#include "strips.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// Where such an object keeps its rows. `settled`: only where there may be more keys than settle at
/// once.
template <class Scalar>
struct SoftmaxMemory {
  RowStates<Scalar> states;
  SettledRows<Scalar> settled;
};

// WHAT     m, l by lanes, o and (for entropies) t of each row of a chunk:
//            clear()      no row has seen a key
//            advance()    m' = max(m, block), r = exp(m − m'), before the scores become weights
//            weigh()      p = exp(s − m') in place, l = r·l + Σ p     (o = r·o + p·v is the caller's)
//            settle()     what rows have seen goes to sums with compensation (settled_rows.h)
//            complete()   all of it comes back: rows can be finished
// PICTURE  strips   |begun|begun|begun|  —  |  —  |      those behind have seen no key
// WHY      the first block that a strip sees stores its sums instead of adding them to zeros.
//          Strips see their first blocks mostly in their order: where one begins, those before it
//          begin as zeros, and one number tells all of them apart
// NUMERICS where a sum starts as zero is no matter: r·0 + x is x, but for the sign of a zero
//          (row_sums.h)
template <class Scalar>
class SoftmaxRows {
  using S = detail::Simd<Scalar>;
  using Size = TileSize<Scalar>;
  using Softmax = OnlineSoftmax<S>;

 public:
  SoftmaxRows(const RowStates<Scalar>& states, const SettledRows<Scalar>& settled)
      : states_(states), settled_(settled) {}
  explicit SoftmaxRows(const SoftmaxMemory<Scalar>& memory)
      : SoftmaxRows(memory.states, memory.settled) {}

  /// Of so many rows.
  void clear(Index rows) {
    rows_ = rows;
    begun_ = 0;
    together_ = std::numeric_limits<Index>::max();
    settles_ = false;
    states_.clear(rows);
  }
  /// All rows have zeros before they have seen a key, or are asked for them.
  void start() { start(rows_); }
  /// Rows start as if each had seen a key with its sink as score and no value; after start().
  template <class Rows, class Sink>
  void see_sinks(const Rows& rows, const Sink& sink) {
    auto cursor = rows.from(0);
    for (Index r = 0; r < rows_; ++r, cursor.next()) see(r, sink.logit(cursor.row));
  }
  /// A row starts as if it had seen a key of this score and no value; after start().
  void see(Index row, const Scalar& logit) {
    if (!(no_maximum<Scalar>() < logit)) return;
    states_.maximum[row] = logit;
    states_.lanes[row * Size::panel] = Scalar(1);
  }

  /// The next scores are those of a block of keys: what settles together ends at absolute
  /// multiples.
  void reach(Index block) {
    const Index together = block / Size::settled_keys;
    if (together > together_) settle();
    together_ = together;
  }

  /// Advances the maxima of a strip by those of a block. Returns exp(m − m') of each row; null
  /// where the strip begins: its sums are then stored.
  ATTN_INLINE const Scalar* advance(const Strip& strip, const Scalar* lane_max) {
    const bool begins = strip.first >= begun_;
    if (begins) {
      start(strip.first);
      begun_ = strip.first + strip.rows;
    }
    Scalar* const rescale = begins ? nullptr : rescale_;
    Softmax::advance(strip.rows, lane_max, states_.maximum + strip.first, rescale);
    return rescale;
  }
  const Scalar* advance_with_moments(const Strip& strip, const Scalar* lane_max, const Scalar* s,
                                     Runs runs);

  /// Scores of a strip become weights, as factors of this type, and are summed.
  template <class Element = Scalar>
  ATTN_INLINE void weigh(const Strip& strip, const Scalar* rescale, Scalar* s, Runs runs,
                         Hidden hidden) {
    const auto weigh = hidden == Hidden::zero ? Softmax::template weigh<Hidden::zero, Element>
                                              : Softmax::template weigh<Hidden::marked, Element>;
    weigh(strip.rows, states_.maximum + strip.first, rescale, s, Size::score_stride, runs,
          states_.lanes + strip.first * Size::panel);
  }

  /// Settles what rows have seen since the last time; they go on from zeros. Strips that have not
  /// begun have nothing to add, and to rows that have not it changes nothing.
  ATTN_NOINLINE void settle() {
    if (!settles_) settled_.clear(rows_);
    settles_ = true;
    settled_.add(begun_, states_);
    states_.clear_sums(begun_);
  }
  /// Settles what the same rows have seen of other keys.
  void settle(const RowStates<Scalar>& part) {
    if (!settles_) settle();
    settled_.add(rows_, part);
  }
  /// The rows now hold all that they have seen.
  void complete() {
    start();
    if (!settles_) return;
    settle();
    settled_.copy_to(states_, rows_);
  }

  const RowStates<Scalar>& states() const { return states_; }
  Scalar* output(Index row) const { return states_.output + row * states_.features; }
  const Scalar& maximum(Index row) const { return states_.maximum[row]; }
  const Scalar& moment(Index row) const { return states_.moment[row]; }
  /// l of a row, or of `rows` rows, one a lane.
  ATTN_INLINE Scalar sum(Index row) const {
    return reduce_lanes<S>(states_.lanes + row * Size::panel);
  }
  ATTN_INLINE typename S::Packet sums(Index row, int rows) const {
    return reduce_lanes<S>(rows, states_.lanes + row * Size::panel);
  }

 private:
  /// Rows before `end` that have not begun do so as zeros.
  void start(Index end) {
    if (begun_ < end) start_behind(end);
  }
  ATTN_NOINLINE void start_behind(Index end) {
    states_.from(begun_).clear_sums(end - begun_);
    begun_ = end;
  }

  RowStates<Scalar> states_;
  const SettledRows<Scalar>& settled_;
  Index rows_ = 0;
  Index begun_ = 0;       ///< rows before it have
  Index together_ = 0;    ///< the keys that settle together, of the last block
  bool settles_ = false;  ///< some of what the rows have seen is settled
  alignas(64) Scalar rescale_[Softmax::kRescaleSlots];
};

// WHAT     advance(), and t = Σ_j p_j · (s_j − m) of each row beside l = Σ_j p_j, for the entropy
//          log l − t / l. When the maximum moves from m to m':
//            t' = r · (t + (m − m') · l) + Σ p · (s − m'),   r = exp(m − m')
// EDGES    after start(). A hidden pair adds 0, not 0 · −∞; a row that has seen nothing (r = 0)
//          starts from 0
// NUMERICS both terms of the entropy are ≥ 0: nothing cancels. A block that a row does not see adds
//          +0 under r = 1
template <class Scalar>
const Scalar* SoftmaxRows<Scalar>::advance_with_moments(const Strip& strip, const Scalar* lane_max,
                                                        const Scalar* s, Runs runs) {
  const auto term = [](const typename S::Packet& x) {
    const auto p = detail::exp_weight<S>(x), zero = S::set(Scalar(0));
    return S::select(S::less(zero, p), S::mul(p, x), zero);
  };
  const RowStates<Scalar> states = states_.from(strip.first);
  Scalar before[Size::rows];
  std::copy_n(states.maximum, strip.rows, before);
  const Scalar* const r = advance(strip, lane_max);
  for (int i = 0; i < strip.rows; ++i, s += Size::score_stride) {
    const Scalar& m = states.maximum[i];
    const Scalar* const lanes = states.lanes + i * Size::panel;
    auto sum = S::set(Scalar(0));
    for (int n = 0; n < runs.count; ++n) {
      for (Index j = runs.first[n].begin; j < runs.first[n].end; j += S::width)
        sum = S::add(sum, term(S::sub(S::load(s + j), S::set(m))));
    }
    alignas(64) Scalar carried[S::width] = {};
    if (!detail::equal(r[i], Scalar(0))) {
      const Scalar moved = before[i] - m;
      const auto old =
          S::fmadd(S::set(moved), S::set(reduce_lanes<S>(lanes)), S::set(states.moment[i]));
      S::store(carried, S::mul(S::set(r[i]), old));
    }
    states.moment[i] = carried[0] + S::reduce_add(sum);
  }
  return r;
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
