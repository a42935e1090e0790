// attn/kernel/scores.h: stage 1, s = (scale · q) · kᵀ for a strip of rows against panels of keys.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "online_softmax.h"
#include "register_tile.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     S[i, j] = Σ_c q[i, c] · k[j, c]    R rows × the keys of panels [first, last)                // S: (R, keys)
//          and lane_max[i] = max over the panels of S[i, ·], one packet a row: the row maximum before its last reduction
// TRAFFIC  registers as in register_tile.h; a panel of K (d_k · C·W scalars, 4 KiB at d_k = 64 with AVX2) comes from L1 or L2
//          once a strip; the strip of Q stays in L1
// EDGES    keys beyond the packed ones are zero columns: hide_beyond() takes their scores out, in a pass of its own, because a
//          second use of the accumulators behind the loop made g++ spill them within it (AVX2, −11 %). A last panel of which only
//          the first packet holds keys is computed with C = 1; the second packet is then not written.
//          (lane_max counts for nothing where the caller goes over the scores again: it passes a throw-away)
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

/// −∞ to the lanes of the last panel that no key stands for: those of `rows` rows from key `end` on, up to a whole depth step
/// (which may be several packets: 4 of width 1).
template <class S>
void hide_beyond(int rows, Index end, typename S::Scalar* s, typename S::Scalar* lane_max) {
  using Scalar = typename S::Scalar;
  using Size = TileSize<Scalar>;
  const Index panel = end / Size::panel * Size::panel;
  for (Index j = panel; j < round_up(end, Size::depth); j += S::width) {
    const Index held = std::clamp<Index>(end - j, 0, S::width);
    const auto there = S::less(S::iota(), S::set(Scalar(int(held))));
    for (int i = 0; i < rows; ++i) {
      const auto score =
          S::select(there, S::load(s + i * Size::score_stride + j), S::set(hidden_score<Scalar>()));
      S::store(s + i * Size::score_stride + j, score);
      S::store(lane_max + i * S::width, S::max(score, S::load(lane_max + i * S::width)));
    }
  }
}

/// Scores of `rows` packed query rows against the packed key panels [first, last) of a block, which hold its keys up to `end`;
/// see score_panels. lane_max is raised to the lanes' maxima. unused_max: rows packets that may be overwritten.
template <class S>
void scores(int rows, const typename S::Scalar* q, const typename S::Scalar* k, Index depth,
            Index first, Index last, Index end, typename S::Scalar* s, typename S::Scalar* lane_max,
            typename S::Scalar* unused_max) {
  using Size = TileSize<typename S::Scalar>;
  if (first >= last) return;
  const Index whole = end / Size::panel, tail = whole < last ? end - whole * Size::panel : 0;
  const bool half = Size::packets == 2 && tail <= S::width;
  // Nothing to hide where keys fill the first packet, if that is a whole depth step.
  const bool hides = tail > 0 && !(half && tail == S::width && tail % Size::depth == 0);
  with_rows<typename S::Scalar>(rows, [&](auto count) {
    constexpr int R = decltype(count)::value;
    if (first < whole) score_panels<S, R, Size::packets>(q, k, depth, first, whole, s, lane_max);
    if (tail == 0) return;
    typename S::Scalar* const largest = hides ? unused_max : lane_max;
    if (half) {
      score_panels<S, R, 1>(q, k, depth, whole, last, s, largest);
    } else {
      score_panels<S, R, Size::packets>(q, k, depth, whole, last, s, largest);
    }
  });
  if (hides) hide_beyond<S>(rows, end, s, lane_max);
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
