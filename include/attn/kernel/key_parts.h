// attn/kernel/key_parts.h: keys cut into parts, each attended by itself, and their states merged in order (split_keys()).
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

// WHAT     how workers go about the parts. Where there are chunks of rows for all of them, the one that has a chunk attends part
//          after part and merges each at once: a second state beside the chunk's. Else workers draw parts as well: the states of
//          all of them are kept, and merged once all are there
// WHY      states are merged in the order of the keys, whoever is done first. Kept for few rows only, no more than a part has
//          keys, they take less memory than the keys and values themselves
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

// WHAT     whole = whole ⊕ part for each row:  m = max(m_a, m_b), and every sum (l by lanes, o, the entropy's t) is
//          x_a · exp(m_a − m) + x_b · exp(m_b − m): the merge of softmax_state.h
// EDGES    a part that a row does not see is the identity: m_b is the lowest number and all sums are +0
// NUMERICS products are rounded by themselves. t is relative to m, which moves: t + (m_a − m) · l_a as in saved.h
template <class S>
ATTN_NOINLINE void merge_states(Index rows, Index features,
                                const RowStates<typename S::Scalar>& part,
                                const RowStates<typename S::Scalar>& whole) {
  using Scalar = typename S::Scalar;
  using Size = TileSize<Scalar>;
  for (Index r = 0; r < rows; ++r) {
    const detail::Merging<Scalar> merged(whole.maximum[r], part.maximum[r]);
    const auto a = S::set(merged.factor_a), b = S::set(merged.factor_b);
    const auto add = [&](Scalar* to, const Scalar* from, Index count) {
      for (Index n = 0; n < count; n += S::width)
        S::store(to + n, S::add(S::mul(S::load(to + n), a), S::mul(S::load(from + n), b)));
    };
    const auto moved = [&](const RowStates<Scalar>& state, const Scalar& factor) {
      if (detail::equal(factor, Scalar(0))) return Scalar(0);
      const Scalar distance = state.maximum[r] - merged.maximum,
                   sum = reduce_lanes<S>(state.lanes + r * Size::panel);
      return Scalar(state.moment[r] + Scalar(distance * sum));
    };
    const Scalar moment_a = moved(whole, merged.factor_a), moment_b = moved(part, merged.factor_b);
    whole.moment[r] = merged(moment_a, moment_b);
    whole.maximum[r] = merged.maximum;
    add(whole.lanes + r * Size::panel, part.lanes + r * Size::panel, Size::panel);
    add(whole.output + r * features, part.output + r * features, features);
  }
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
