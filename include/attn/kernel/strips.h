// attn/kernel/strips.h: rows shared by strips, the tallest of which the register tile takes at
// once.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "tile_size.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// Rows [first, first + rows) of a chunk, which the register tile takes at once.
struct Strip {
  Index number, first;
  int rows;
};

/// Strips share their rows evenly, so that none is much lower than the register tile: the first
/// `higher` have one row more.
struct Strips {
  Index count = 0, low = 0, higher = 0;

  template <class Scalar>
  static Strips of(Index rows) {
    const Index most = TileSize<Scalar>::rows, count = (rows + most - 1) / most;
    const Index low = count == 0 ? 0 : rows / count;
    return {count, low, rows - low * count};
  }
  Index begin(Index strip) const { return strip * low + std::min(strip, higher); }
  int rows(Index strip) const { return int(low + (strip < higher ? 1 : 0)); }
  Strip operator[](Index strip) const { return {strip, begin(strip), rows(strip)}; }
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
