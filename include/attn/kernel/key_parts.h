// attn/kernel/key_parts.h: keys cut into parts by split_keys(), and which workers attend them.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../base/call_shape.h"
#include "settled_rows.h"

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

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
