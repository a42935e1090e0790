// attn/kernel/scores.h: stage 1, s = (scale · q) · kᵀ for a strip of rows against panels of keys.
// SPDX-License-Identifier: MIT
#pragma once

#include "register_tile.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     S[i, j] = Σ_c q[i, c] · k[j, c]    R rows × the keys of panels [first, last)                // S: (R, keys)
//          and lane_max[i] = max over the panels of S[i, ·], one packet a row: the row maximum before its last reduction
// TRAFFIC  registers as in register_tile.h; a panel of K (d_k · C·W scalars, 4 KiB at d_k = 64 with AVX2) comes from L1 or L2
//          once a strip; the strip of Q stays in L1
// EDGES    keys beyond the packed ones are zero columns: their scores are 0 and the caller hides them
//          (lane_max then counts for nothing: the caller passes a throw-away for panels that it will modify or mask)
// NUMERICS scale is folded into q when it is packed: one rounding of q; a NaN score is never lost (exp keeps it)
template <class S, int R, int C>
ATTN_NOINLINE void score_panels(const typename S::Scalar* q, const typename S::Scalar* k,
                                Index depth, Index first, Index last, typename S::Scalar* s,
                                typename S::Scalar* lane_max) {
  using Packet = typename S::Packet;
  using Size = TileSize<typename S::Scalar>;
  for (Index panel = first; panel < last; ++panel) {
    Packet acc[R][C];
    ATTN_UNROLL
    for (int i = 0; i < R; ++i) {
      ATTN_UNROLL
      for (int v = 0; v < C; ++v) acc[i][v] = S::set(typename S::Scalar(0));
    }
    multiply_accumulate<S, R, C, Size::depth, Size::depth * R>(
        acc, q, k + panel * depth * Size::panel, {0, depth});
    auto* out = s + panel * Size::panel;
    ATTN_UNROLL
    for (int i = 0; i < R; ++i) {
      Packet largest = acc[i][0];
      ATTN_UNROLL
      for (int v = 1; v < C; ++v) largest = S::max(largest, acc[i][v]);
      S::store(lane_max + i * S::width, S::max(S::load(lane_max + i * S::width), largest));
      ATTN_UNROLL
      for (int v = 0; v < C; ++v) S::store(out + i * Size::score_stride + v * S::width, acc[i][v]);
    }
  }
}

/// Scores of `rows` packed query rows against the packed key panels [first, last) of a block; see score_panels.
template <class S>
void scores(int rows, const typename S::Scalar* q, const typename S::Scalar* k, Index depth,
            Index first, Index last, typename S::Scalar* s, typename S::Scalar* lane_max) {
  if (first >= last) return;
  with_rows<typename S::Scalar>(rows, [&](auto count) {
    score_panels<S, decltype(count)::value, TileSize<typename S::Scalar>::packets>(
        q, k, depth, first, last, s, lane_max);
  });
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
