// attn/kernel/turn.h: tiles of memory whose rows lie side by side (column-major matrices), turned
// in registers on their way.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../base/load.h"
#include "../types.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     put(r, c, x, n) for packets x of the rows r, r + 1, … of column c, of which n are there,
//          out of value(r, c): the columns c, c + 1, … of row r. What value() says beyond the last
//          column is no matter; it is asked for no row beyond the last
// PICTURE  W rows of W columns are turned at a time:  packets along rows ─► packets along columns
// TRAFFIC  the rows of W columns go by before the next columns: a line of a column is gone through
//          at once
// WHY      row by row, each line of a column is fetched as often as it has rows; where columns lie
//          a power of two apart, all of them from the same few sets of every cache. See pair_rows.h
//          and strip_tables.h
template <class S, class Value, class Put>
ATTN_INLINE void turn(Index rows, Index columns, const Value& value, const Put& put) {
  for (Index c = 0; c < columns; c += S::width) {
    const Index count = std::min<Index>(columns - c, S::width);
    for (Index r = 0; r < rows; r += S::width) {
      const Index held = std::min<Index>(rows - r, S::width);
      typename S::Packet tile[S::width];
      if (held == S::width) {
        ATTN_UNROLL
        for (int i = 0; i < S::width; ++i) tile[i] = value(r + i, c);
      } else {
        tile[0] = value(r, c);
        for (int i = 1; i < S::width; ++i) tile[i] = i < held ? value(r + i, c) : tile[0];
      }
      S::transpose(tile);
      if (count == S::width) {
        ATTN_UNROLL
        for (int w = 0; w < S::width; ++w) put(r, c + w, tile[w], held);
      } else {
        for (int w = 0; w < count; ++w) put(r, c + w, tile[w], held);
      }
    }
  }
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
