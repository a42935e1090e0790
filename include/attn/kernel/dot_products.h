// attn/kernel/dot_products.h: stage 1, s = (scale · q) · kᵀ for a strip of rows against panels of
// keys.
// SPDX-License-Identifier: MIT
#pragma once

#include <utility>

#include "online_softmax.h"
#include "register_tile.h"
#include "visit.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// Raises the lanes of each row to the row's maxima out of the folded ones.
template <class S, std::size_t F, int... Row>
ATTN_INLINE void raise_maxima(const typename S::Packet (&folded)[F], typename S::Scalar* lane_max,
                              std::integer_sequence<int, Row...>) {
  const auto raise = [lane_max](int row, const typename S::Packet& largest) {
    typename S::Scalar* at = lane_max + row * S::width;
    S::store(at, S::max(S::load(at), largest));
  };
  (raise(Row, S::template unfold<Row % S::folded>(folded[Row / S::folded])), ...);
}

/// Raises the lanes of R rows to the maxima of their packets.
template <class S, std::size_t R, std::size_t C>
ATTN_INLINE void raise_lanes(const typename S::Packet (&scores)[R][C],
                             typename S::Scalar* lane_max) {
  ATTN_UNROLL
  for (std::size_t i = 0; i < R; ++i, lane_max += S::width) {
    auto largest = S::load(lane_max);
    ATTN_UNROLL
    for (std::size_t v = 0; v < C; ++v) largest = S::max(scores[i][v], largest);
    S::store(lane_max, largest);
  }
}

// WHAT     S[i, j] = Σ_c q[i, c] · k[j, c]    R rows × the keys of panels [first, last)                // S: (R, keys)
//          and lane_max[i], one packet a row, raised to the maximum of S[i, ·] in some lane: the
//          row maximum before its last reduction
// TRAFFIC  registers as in register_tile.h; a panel of K (d_k · C·W scalars, 4 KiB at d_k = 64 with
//          AVX2) comes from L1 or L2 once a strip; the strip of Q stays in L1
// EDGES    keys beyond the packed ones are zero columns: hide_beyond() takes their scores out, in a
//          pass of its own, because a second use of the accumulators behind the loop made g++ spill
//          them within it (AVX2, −11 %). A last panel of which only the first packet holds keys is
//          computed with C = 1; the second packet is then not written.
//          Without lane_max the maxima are left to who goes over the scores again
// LIMIT    the multiply-adds, and the stores behind them: on Zen 5 a store of a packet takes the
//          read ports of two multiply-adds (24 stores behind 1536 of those: 0.97; measured
//          0.976–0.98, AVX-512)
// WHY      the maxima are folded, four rows (of double two) to a packet, and stay in registers from
//          panel to panel: a load and a store of each row's behind every panel cost another 0.025.
//          A pass of its own over the scores cost as much again.
// NUMERICS scale is folded into q when it is packed: one rounding of q. Pairs of bfloat16 are left
//          as they are, and their sums scaled. A NaN score is never lost (exp keeps it)
template <class S, int R, int C, class Queries = PackedStrip<typename S::Scalar, R>>
ATTN_NOINLINE void score_panels(const typename Queries::Element* q,
                                const typename Queries::Element* k, Index depth, Index first,
                                Index last, typename S::Scalar* s, typename S::Scalar* lane_max,
                                typename Factors<S, typename Queries::Element>::Scale scale = {}) {
  using Scalar = typename S::Scalar;
  using Element = typename Queries::Element;
  using Packet = typename S::Packet;
  using Size = TileSize<Scalar>;
  using F = Factors<S, Element>;
  constexpr int kFolded = S::folded, kFolds = (R + kFolded - 1) / kFolded;
  Packet largest[std::size_t{kFolds}];  // of rows kFolded·f, …, folded
  ATTN_UNROLL
  for (int f = 0; f < kFolds; ++f) largest[f] = S::set(no_maximum<Scalar>());
  for (Index panel = first; panel < last; ++panel) {
    Packet acc[std::size_t{R}][std::size_t{C}];
    clear<S>(acc);
    const DepthRange all{0, depth};
    multiply_accumulate<S>(acc, Queries{q}, k + panel * (depth / F::numbers) * Size::panel,
                           Runs{&all, 1});
    ATTN_UNROLL
    for (int i = 0; i < R; ++i) {
      ATTN_UNROLL
      for (int v = 0; v < C; ++v) acc[i][v] = F::scaled(acc[i][v], scale);
    }
    ATTN_UNROLL
    for (int f = 0; f < kFolds; ++f) {
      Packet rows[std::size_t{kFolded}];
      ATTN_UNROLL
      for (int x = 0; x < kFolded; ++x) {
        const int i = f * kFolded + x < R ? f * kFolded + x : R - 1;
        rows[x] = acc[i][0];
        ATTN_UNROLL
        for (int v = 1; v < C; ++v) rows[x] = S::max(rows[x], acc[i][v]);
      }
      largest[f] = S::max(largest[f], S::fold_max(rows));
    }
    store_rows<S>(acc, s + panel * Size::panel, Size::score_stride);
  }
  if (lane_max != nullptr) raise_maxima<S>(largest, lane_max, std::make_integer_sequence<int, R>());
}

/// −∞ to the lanes of the last panel that no key stands for: those of `rows` rows from key `end`
/// on, up to a whole depth step (which may be several packets: 4 of width 1). lane_max, where it is
/// given, is raised to the maxima of the panel.
template <class S>
void hide_beyond(int rows, Index end, typename S::Scalar* s, typename S::Scalar* lane_max) {
  using Size = TileSize<typename S::Scalar>;
  const auto hidden = S::set(hidden_score<typename S::Scalar>());
  for (Index j = end / Size::panel * Size::panel; j < round_up(end, Size::depth); j += S::width) {
    const auto there = S::first_lanes(end - j);
    for (int i = 0; i < rows; ++i) {
      typename S::Scalar* const at = s + i * Size::score_stride + j;
      const auto score = S::select(there, S::load(at), hidden);
      S::store(at, score);
      if (lane_max == nullptr) continue;
      S::store(lane_max + i * S::width, S::max(score, S::load(lane_max + i * S::width)));
    }
  }
}

/// score_panels() of panels of all packets, and of the first one alone, by row counts.
template <class S, class Element>
struct ScoreTiles {
  decltype(&score_panels<S, 1, 1, PackedStrip<Element, 1>>) wide, narrow;
};
template <class S, class Element>
inline constexpr auto score_tiles_v = of_row_counts<
    TileSize<typename S::Scalar>::rows>([](auto rows) {
  constexpr int R = decltype(rows)::value, C = TileSize<typename S::Scalar>::packets;
  using Queries = PackedStrip<Element, R>;
  return ScoreTiles<S, Element>{&score_panels<S, R, C, Queries>, &score_panels<S, R, 1, Queries>};
});

/// Scores of `rows` packed query rows against the panels of a segment of packed keys; see
/// score_panels. lane_max, where it is given, is raised to the maxima.
template <class S, class Element>
void scores(int rows, const Element* q, const Element* k, Index depth, const Segment& segment,
            typename S::Scalar* s, typename S::Scalar* lane_max,
            typename Factors<S, Element>::Scale scale = {}) {
  using Size = TileSize<typename S::Scalar>;
  const Index first = segment.first, last = segment.last, end = segment.end;
  if (first >= last) return;
  const Index whole = end / Size::panel, tail = whole < last ? end - whole * Size::panel : 0;
  const bool half = Size::packets == 2 && tail <= S::width;
  // Nothing to hide where keys fill the first packet, if that is a whole depth step.
  const bool hides = tail > 0 && !(half && tail == S::width && tail % Size::depth == 0);
  const auto& tiles = score_tiles_v<S, Element>[std::size_t(rows - 1)];
  if (first < whole) tiles.wide(q, k, depth, first, whole, s, lane_max, scale);
  if (tail > 0)
    (half ? tiles.narrow : tiles.wide)(q, k, depth, whole, last, s, hides ? nullptr : lane_max,
                                       scale);
  if (hides) hide_beyond<S>(rows, end, s, lane_max);
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
