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
/// `higher` have one row more. Or all but the last are as tall as the tile, so that rows at
/// multiples of its height begin a strip.
struct Strips {
  Index count = 0, low = 0, higher = 0, all = 0;

  template <class Scalar>
  static Strips even(Index rows) {
    const Index most = TileSize<Scalar>::rows, count = (rows + most - 1) / most;
    const Index low = count == 0 ? 0 : rows / count;
    return {count, low, rows - low * count, rows};
  }
  template <class Scalar>
  static Strips tall(Index rows) {
    const Index most = TileSize<Scalar>::rows;
    return {(rows + most - 1) / most, most, 0, rows};
  }
  Index begin(Index strip) const { return strip * low + std::min(strip, higher); }
  int rows(Index strip) const {
    return int(std::min<Index>(low + (strip < higher ? 1 : 0), all - begin(strip)));
  }
  Strip operator[](Index strip) const { return {strip, begin(strip), rows(strip)}; }
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
