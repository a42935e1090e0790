// attn/kernel/stored_panels.h: stages 1 and 4 on panels as a cache stores them, for a chunk of few
// rows (decoding).
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "pack.h"
#include "dot_products.h"
#include "weighted_sum.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     the scores of dot_products.h and the sums of weighted_sum.h, with the same bits, from
//          panels of half, bfloat16, int8 or the scalar itself: widened in registers on the way
// PICTURE  one row is two chains a panel, four cycles a step: U panels side by side give U times
//          the chains
// LIMIT    memory: each number is read once, from U streams. What a block costs when it lies in L2
//          overlaps its reading only in part (Zen 5, 30 GB/s): with 4 rows on a head 2.4 to 3 µs
//          beside 8.7, so gqa4k of floats reaches 0.84 (g++; clang 0.76) of the bandwidth; of
//          bfloat16 1.1 µs beside 4.4, so dec4k, at 1.0 for floats, is 1.55 × as fast, not 2 ×; of
//          int8 2.6 to 3 ×
// TRAFFIC  while a block goes by, the same lines of the one that is read next are asked for: a
//          block of the head, or the next head's
// EDGES    as in dot_products.h and weighted_sum.h
// NUMERICS chains over features, and over the keys of a run, in order, from +0: those of the
//          register tile

/// Panels side by side for R rows of numbers stored as T.
/// WHY  enough chains to hide the latency of the multiply-adds, within three quarters of the
///      registers; the narrower the numbers, the more of them memory brings a cycle.
template <class Scalar, class T>
constexpr int panels_beside(int rows) {
  constexpr int kMost = sizeof(T) < sizeof(Scalar) ? 4 : 2;
  int panels = kMost;
  while (panels > 1 && rows * panels * TileSize<Scalar>::packets > detail::kVectorRegisters * 3 / 4)
    panels /= 2;
  return panels;
}

/// acc[i][u·C + v] += Σ_t a[i, t] · b_u[t, v] over steps [begin, end) of U panels, `apart` numbers
/// from one to the next; see multiply_accumulate. `next`: what lies in b's place in the block that
/// is read next.
/// WHY  a whole block ahead, into L2: a few KiB ahead in each stream leave the beginnings of U
///      panels unasked for, a quarter to half of all where a panel is 4 KiB, and the change from
///      keys to values. Narrow numbers line after line, as the panels lie; where they are wide and
///      a panel takes pages, in the order of use. Of the bandwidth of reading (one Zen 5 core,
///      AVX-512, g++, of 30 GB/s), 2 KiB ahead → so: int8 dec4k 0.63 → 0.77, gqa4k 0.43 → 0.67,
///      bfloat16 dec4k 0.77 → 0.83, float gqa4k 0.82 → 0.83
template <class S, int R, int U, class Left, class T>
ATTN_INLINE void multiply_accumulate_stored(
    typename S::Packet (
        &acc)[std::size_t{R}][std::size_t{U * TileSize<typename S::Scalar>::packets}],
    Left a, const T* b, const T* next, Index apart, DepthRange depth) {
  using Size = TileSize<typename S::Scalar>;
  constexpr int C = Size::packets;
  constexpr Index kLine = 64 / Index(sizeof(T)), kGroup = Index(Size::depth) * Size::panel;
  constexpr bool kNarrow = sizeof(T) < sizeof(typename S::Scalar);
  a = a.from(depth.begin);
  b += depth.begin * Size::panel;
  for (Index t = depth.begin; t < depth.end; t += Size::depth) {
    ATTN_UNROLL
    for (int u = 0; u < U; ++u) {
      const T* const stream =
          kNarrow ? next + t * U * Size::panel + u * kGroup : next + t * Size::panel + u * apart;
      ATTN_UNROLL
      for (Index line = 0; line < kGroup; line += kLine) S::prefetch_far(stream + line);
    }
    ATTN_UNROLL
    for (int step = 0; step < Size::depth; ++step) {
      typename S::Packet x[std::size_t{R}];
      ATTN_UNROLL
      for (int i = 0; i < R; ++i) x[i] = S::set(a(i, step));
      ATTN_UNROLL
      for (int u = 0; u < U; ++u) {
        ATTN_UNROLL
        for (int v = 0; v < C; ++v) {
          const auto column =
              detail::load_converted<S>(b + u * apart + step * Size::panel + v * S::width);
          ATTN_UNROLL
          for (int i = 0; i < R; ++i) acc[i][u * C + v] = S::fmadd(x[i], column, acc[i][u * C + v]);
        }
      }
    }
    a = a.from(Size::depth);
    b += kGroup;
  }
}

/// The scores of U panels of keys, and their lanes' maxima.
template <class S, int R, int U, class T>
ATTN_NOINLINE void score_stored(const typename S::Scalar* q, const T* k, const T* next, Index depth,
                                typename S::Scalar* s, typename S::Scalar* lane_max) {
  using Size = TileSize<typename S::Scalar>;
  constexpr int C = U * Size::packets;
  typename S::Packet acc[std::size_t{R}][std::size_t{C}];
  clear<S>(acc);
  multiply_accumulate_stored<S, R, U>(acc, PackedStrip<typename S::Scalar, R>{q}, k, next,
                                      depth * Size::panel, {0, depth});
  store_rows<S>(acc, s, Size::score_stride);
  if (lane_max != nullptr) raise_lanes<S>(acc, lane_max);
}

/// scores() of at most in_place_rows rows against stored panels.
template <class S, class T>
void stored_scores(int rows, const typename S::Scalar* q, const T* k, const T* next, Index depth,
                   const Segment& segment, typename S::Scalar* s, typename S::Scalar* lane_max) {
  using Scalar = typename S::Scalar;
  using Size = TileSize<Scalar>;
  if (segment.first >= segment.last) return;
  const Index last = segment.last, whole = segment.end / Size::panel;
  with_rows<Scalar, Size::in_place_rows>(rows, [&](auto count) {
    constexpr int R = decltype(count)::value, U = panels_beside<Scalar, T>(R);
    const auto at = [&](const T* block, Index panel) {
      return block + panel * depth * Size::panel;
    };
    Index panel = segment.first;
    for (; panel + U <= whole; panel += U)
      score_stored<S, R, U>(q, at(k, panel), at(next, panel), depth, s + panel * Size::panel,
                            lane_max);
    for (; panel < last; ++panel) {
      score_stored<S, R, 1>(q, at(k, panel), at(next, panel), depth, s + panel * Size::panel,
                            panel < whole ? lane_max : nullptr);
    }
  });
  if (whole < last) hide_beyond<S>(rows, segment.end, s, lane_max);
}

/// The sums of U panels of features over one run of keys.
template <class S, int R, int U, class T>
ATTN_NOINLINE void accumulate_stored_run(
    const typename S::Scalar* p, const T* v, const T* next, Index panel_stride, Runs pieces,
    bool first, bool last, BlockSums<S, R, U * TileSize<typename S::Scalar>::packets>& block) {
  using Size = TileSize<typename S::Scalar>;
  constexpr int C = U * Size::packets;
  typename S::Packet acc[std::size_t{R}][std::size_t{C}];
  clear<S>(acc);
  for (int n = 0; n < pieces.count; ++n) {
    multiply_accumulate_stored<S, R, U>(acc, ScoreRows<typename S::Scalar>{p}, v, next,
                                        panel_stride, pieces.first[n]);
  }
  block.add(acc, first, last);
}

template <class S, int R, int U, class T>
ATTN_NOINLINE void accumulate_stored(const typename S::Scalar* p, const T* v, const T* next,
                                     Index panel_stride, Runs runs,
                                     const typename S::Scalar* rescale, typename S::Scalar* o,
                                     Index o_stride) {
  BlockSums<S, R, U * TileSize<typename S::Scalar>::packets> block(rescale, o, o_stride);
  block.each_run(runs, [&](Runs pieces, bool first, bool last) {
    accumulate_stored_run<S, R, U>(p, v, next, panel_stride, pieces, first, last, block);
  });
}

/// weighted_sum() of at most in_place_rows rows over stored panels.
template <class S, class T>
void stored_weighted_sum(int rows, Index features, bool finite, const typename S::Scalar* p,
                         const T* v, const T* next, Index panel_stride, Runs runs,
                         const typename S::Scalar* rescale, typename S::Scalar* o, Index o_stride) {
  using Scalar = typename S::Scalar;
  using Size = TileSize<Scalar>;
  if (!finite) {
    accumulate_visible<S>(rows, features, p, ValuesInPanels<S, T>{v, panel_stride}, runs, rescale,
                          o, o_stride);
    return;
  }
  with_rows<Scalar, Size::in_place_rows>(rows, [&](auto count) {
    constexpr int R = decltype(count)::value, U = panels_beside<Scalar, T>(R);
    const auto at = [&](const T* block, Index c) { return block + c / Size::panel * panel_stride; };
    Index c = 0;
    for (; c + (U - 1) * Size::panel < features; c += U * Size::panel) {
      accumulate_stored<S, R, U>(p, at(v, c), at(next, c), panel_stride, runs, rescale, o + c,
                                 o_stride);
    }
    for (; c < features; c += Size::panel) {
      accumulate_stored<S, R, 1>(p, at(v, c), at(next, c), panel_stride, runs, rescale, o + c,
                                 o_stride);
    }
  });
}

/// n stored numbers in the compute scalar; n is a multiple of the packet.
template <class S, class T>
void widen_numbers(const T* from, Index n, typename S::Scalar* to) {
  for (Index i = 0; i < n; i += S::width) S::store(to + i, detail::load_converted<S>(from + i));
}

/// Scores of the keys [begin, end) of a block times the keys' scales, `begin` being the first of a
/// panel; lane_max follows.
template <class S>
void scale_scores(int rows, const typename S::Scalar* scales, Index begin, Index end,
                  typename S::Scalar* s, typename S::Scalar* lane_max) {
  using Scalar = typename S::Scalar;
  using Size = TileSize<Scalar>;
  const Index whole = end / Size::panel * Size::panel;
  for (int i = 0; i < rows; ++i) {
    Scalar* const row = s + i * Size::score_stride;
    auto largest = S::set(no_maximum<Scalar>());
    for (Index j = begin; j < end; j += S::width) {
      const auto scaled = S::mul(S::load(row + j), S::load(scales + j));
      S::store(row + j, scaled);
      if (j < whole) largest = S::max(scaled, largest);
    }
    if (lane_max == nullptr) continue;
    S::store(lane_max + i * S::width, S::max(largest, S::load(lane_max + i * S::width)));
  }
  if (whole < end) hide_beyond<S>(rows, end, s, lane_max);
}

/// Weights of the visited keys times the scales of their values. A hidden_weight() stays one.
template <class S>
void scale_weights(int rows, const typename S::Scalar* scales, Runs runs, typename S::Scalar* p) {
  using Scalar = typename S::Scalar;
  for (int i = 0; i < rows; ++i, p += TileSize<Scalar>::score_stride) {
    for (int n = 0; n < runs.count; ++n) {
      for (Index j = runs.first[n].begin; j < runs.first[n].end; j += S::width) {
        const auto weight = S::load(p + j);
        const auto hidden = S::less(weight, S::set(Scalar(0)));
        S::store(p + j, S::select(hidden, weight, S::mul(weight, S::load(scales + j))));
      }
    }
  }
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
