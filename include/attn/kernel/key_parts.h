// attn/kernel/key_parts.h: states of rows settled in the order of the keys: of keys that went by,
// and of parts cut by split_keys().
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../softmax_state.h"
#include "online_softmax.h"
#include "problem.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// Part n holds the keys from n · keys on, as many: whole blocks, so that no block is cut.
struct KeyParts {
  Index keys;

  /// The least whole blocks that hold a chunk; one part where that is more than all keys.
  template <class Scalar>
  static constexpr KeyParts of(Index chunk, Index all_keys, Index key_dim, Index value_dim) {
    const Index block = TileSize<Scalar>::key_block(key_dim, value_dim),
                all = round_up(all_keys < 1 ? 1 : all_keys, block);
    return {chunk < all ? round_up(chunk, block) : all};
  }
  constexpr Index count(Index all_keys) const { return (all_keys + keys - 1) / keys; }
  constexpr KeyRange operator[](Index n) const { return {n * keys, n * keys + keys}; }
};

// WHAT     how workers go about the parts. Where there are chunks of rows for all of them, the one
//          that has a chunk attends part after part and merges each at once: a second state beside
//          the chunk's. Else workers draw parts as well: the states of all of them are kept, and
//          merged once all are there
// WHY      states are merged in the order of the keys, whoever is done first. Kept for few rows
//          only, no more than a part has keys, they take less memory than the keys and values
//          themselves
// EDGES    the number of workers decides how, never what is merged with what: the bits are the same
template <class Scalar>
struct SharedParts {
  Index parts = 0;  ///< kept of each sequence and key/value head; none where workers share no parts
  Index heads = 0;  ///< sequences × key/value heads: one chunk each
  Index rows = 0;   ///< of the longest

  /// Chunks of rows that keep workers busy by themselves.
  static constexpr Index enough(int workers) { return 4 * Index(workers); }

  static SharedParts of(const detail::CallShape& shape, const KeyParts& parts, Index chunk_rows,
                        int workers) {
    const Index count = parts.count(shape.keys.longest()),
                heads = shape.sequences() * shape.kv_heads,
                rows = shape.queries.longest() * (shape.heads / shape.kv_heads);
    if (workers == 1 || count < 2 || heads >= enough(workers)) return {};
    if (rows > std::min(parts.keys, chunk_rows)) return {};
    return {count, heads, rows};
  }
  /// The most that calls of these sizes and of smaller ones keep.
  static constexpr SharedParts most(Index heads, Index rows, Index keys, const KeyParts& parts,
                                    int workers) {
    if (workers == 1) return {};
    return {parts.count(keys), std::min(heads, enough(workers)), std::min(rows, parts.keys)};
  }

  constexpr Index state(Index features) const { return RowStates<Scalar>::total(rows, features); }
  constexpr Index total(Index features) const { return parts * heads * state(features); }
};

// WHAT     settled = settled ⊕ states for each row: m = max(m_a, m_b), and every sum (l by lanes,
//          o, the entropy's t) is x_a · exp(m_a − m) + x_b · exp(m_b − m): the merge of
//          softmax_state.h
// WHY      of the keys that settle together while blocks go by, m_b never being less; and of parts
//          of the keys. Once in several blocks, since a compensated addition is 14 operations where
//          a plain one is one
// EDGES    a part that a row does not see is the identity: m_b is the lowest number and all sums
//          are +0
// NUMERICS with compensation (row_sums.h). t is relative to m, which moves: t + (m_a − m) · l_a as
//          in row_outputs.h
template <class S>
ATTN_NOINLINE void settle_states(Index first, Index rows, Index features,
                                 const RowStates<typename S::Scalar>& states,
                                 const SettledStates<typename S::Scalar>& settled) {
  using Scalar = typename S::Scalar;
  using Size = TileSize<Scalar>;
  using Sum = CompensatedSum<S>;
  alignas(64) Scalar maxima[S::width], factors[2][S::width];
  for (Index r = first, n = 0; r < first + rows; ++r, ++n) {
    const Index lane = n % S::width;
    if (lane == 0) {
      const auto a = S::loadu(settled.maximum + r), b = S::loadu(states.maximum + r),
                 largest = S::max(b, a);
      S::store(maxima, largest);
      S::store(factors[0], detail::exp_nonpositive<S>(S::sub(a, largest)));
      S::store(factors[1], detail::exp_nonpositive<S>(S::sub(b, largest)));
    }
    const Scalar &factor_a = factors[0][lane], &factor_b = factors[1][lane];
    const auto a = S::set(factor_a), b = S::set(factor_b), zero = S::set(Scalar(0));
    const auto add = [&](const RowSums<Scalar>& to, const Scalar* from) {
      for (Index c = 0; c < to.stride; c += S::width) {
        const auto part = Sum::product({S::load(from + c), zero}, b);
        to.template store<S>(r, c, Sum::combine(to.template load<S>(r, c), a, part));
      }
    };
    const auto moved = [&](const Scalar& moment, const Scalar& own, const Scalar& factor,
                           const Scalar* lanes) {
      if (detail::equal(factor, Scalar(0))) return Scalar(0);
      if (detail::equal(own, maxima[lane])) return moment;
      const Scalar distance = own - maxima[lane];
      return Scalar(moment + Scalar(distance * reduce_lanes<S>(lanes)));
    };
    const Scalar before = moved(settled.moment.sum[r], settled.maximum[r], factor_a,
                                settled.lanes.sum + r * Size::panel),
                 now = moved(states.moment[r], states.maximum[r], factor_b,
                             states.lanes + r * Size::panel);
    const Sum moment = Sum::combine({S::set(before), S::set(settled.moment.lost[r])}, a,
                                    Sum::product({S::set(now), zero}, b));
    settled.moment.sum[r] = S::first(moment.sum);
    settled.moment.lost[r] = S::first(moment.lost);
    add(settled.lanes, states.lanes + r * Size::panel);
    add(settled.output, states.output + r * features);
    settled.maximum[r] = maxima[lane];
  }
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
