// attn/kernel/register_tile.h: acc += A·B for R rows and C packets of columns, the accumulators in
// registers throughout.
// SPDX-License-Identifier: MIT
#pragma once

#include "tile_size.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// Depth steps [begin, end) of a tile, both multiples of TileSize::depth; not empty.
struct DepthRange {
  Index begin, end;
};

// WHAT     acc[i][v] += Σ_t a[i, t] · b[t, v]        t over [begin, end)                               // acc: (R, C·W)
// PICTURE                |pkt 0|pkt 1|              b: panel, C·W scalars for each step, contiguous, aligned
//          a[0, t] ───►  |acc00|acc01|              a: element (i, t) at a[i·RowStep + (t / 4)·GroupStep + t % 4]
//          a[1, t] ───►  |acc10|acc11|                 packed queries: RowStep 4, GroupStep 4·R (one stream)
//             …          |  …  |  …  |                 scores: RowStep = stride of the strip, GroupStep 4
// TRAFFIC  per step: R broadcasts + C loads for R·C multiply-adds; 6 × 2: 8 loads for 12; 12 × 2:
//          14 loads for 24
// LIMIT    the multiply-adds: two a cycle, so R·C / 2 cycles a step; loads need half as many at two
//          (three) a cycle. 0.985–0.995 of the peak over 256 steps, K or V in L2 (Zen 5, 12 × 2
//          AVX-512 and 6 × 2 AVX2, g++ and clang, -O2 and -O3)
// EDGES    none: depth is padded to a multiple of 4 with zeros on both sides, rows and packets are
//          compile-time
// NUMERICS each (row, lane) is one chain of fmadd in order of t, whatever R and C: the bits
//          contract rests on it
// The accumulators are a local array of the caller's frame and everything here is inlined into it.
// Loops carry ATTN_UNROLL, or g++ -O2 keeps the array in memory.
template <class S, int R, int C, int RowStep, int GroupStep>
ATTN_INLINE void multiply_accumulate(typename S::Packet (&acc)[std::size_t{R}][std::size_t{C}],
                                     const typename S::Scalar* a, const typename S::Scalar* b,
                                     const DepthRange* ranges, int range_count) {
  using Scalar = typename S::Scalar;
  using Packet = typename S::Packet;
  using Size = TileSize<Scalar>;
  if (range_count == 0) return;
  // One loop over the steps of all ranges: with a loop for each inside another clang carries the
  // accumulators from one to the next through the stack, 29 stores and loads around every four
  // steps (weighted sum 0.88 of the peak instead of 0.98).
  const DepthRange* const last = ranges + range_count - 1;
  const Scalar *x, *y, *end;
  const auto enter = [&] {
    x = a + ranges->begin / Size::depth * GroupStep;
    y = b + ranges->begin * Size::panel;
    end = b + ranges->end * Size::panel;
  };
  enter();
  for (;;) {
    ATTN_UNROLL
    for (int step = 0; step < Size::depth; ++step) {
      Packet column[std::size_t{C}];
      ATTN_UNROLL
      for (int v = 0; v < C; ++v) column[v] = S::load(y + step * Size::panel + v * S::width);
      ATTN_UNROLL
      for (int i = 0; i < R; ++i) {
        const Packet element = S::set(x[i * RowStep + step]);
        ATTN_UNROLL
        for (int v = 0; v < C; ++v) S::accumulate(element, column[v], acc[i][v]);
      }
    }
    x += GroupStep;
    y += Size::depth * Size::panel;
    if (y < end) continue;
    if (ranges == last) return;
    ++ranges;
    enter();
  }
}

/// Calls f with the compile-time row count `rows` (1 … Most).
template <class Scalar, int Most = TileSize<Scalar>::rows, class F>
ATTN_INLINE void with_rows(int rows, F&& f) {
  const auto from = [&](auto self, auto candidate) {
    constexpr int R = decltype(candidate)::value;
    if (rows == R) {
      f(candidate);
    } else if constexpr (R > 1) {
      self(self, std::integral_constant<int, R - 1>{});
    }
  };
  from(from, std::integral_constant<int, Most>{});
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
