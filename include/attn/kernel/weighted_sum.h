// attn/kernel/weighted_sum.h: stage 4, o = r·o + p · v for a strip of rows and one block of keys.
// SPDX-License-Identifier: MIT
#pragma once

#include "online_softmax.h"
#include "register_tile.h"
#include "row_sums.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     O[i, c] = r[i]·O[i, c] + Σ_j p[i, j] · v[j, c]     R rows × one panel of features, j over the visited runs of keys
// TRAFFIC  registers as in register_tile.h; a panel of V (C·W scalars a key) streams from L2 once a
//          strip, p stays in L1
// EDGES    runs are whole multiples of 4 keys: packed V is zero beyond the visible keys, and p is 0
//          for hidden ones
// NUMERICS runs, blocks and compensation as in row_sums.h; a key that the row does not see adds +0,
//          so a block that it does not see at all (r = 1) changes nothing: rows do not notice their
//          tile mates

/// The sums of a tile of any size.
template <class S, class Element = typename S::Scalar>
using TileSums = BlockSums<S, TileSize<typename S::Scalar>::rows,
                           TileSize<typename S::Scalar>::packets, Element>;

/// One run. A function of its own: in a loop over runs g++ carries the accumulators through the
/// stack at every group of steps.
template <class S, int R, int C, class Element = typename S::Scalar>
ATTN_NOINLINE void accumulate_run(const Element* p, const Element* v, Runs pieces, bool first,
                                  bool last, TileSums<S, Element>& block) {
  typename S::Packet acc[std::size_t{R}][std::size_t{C}];
  clear<S>(acc);
  multiply_accumulate<S>(acc, ScoreRows<Element>{p}, v, pieces);
  block.add(acc, first, last);
}

/// accumulate_run() of panels of all packets, and of the first one alone, by row counts.
template <class S, class Element>
struct RunTiles {
  decltype(&accumulate_run<S, 1, 1, Element>) wide, narrow;
};
template <class S, class Element>
inline constexpr auto run_tiles_v = of_row_counts<TileSize<typename S::Scalar>::rows>([](auto
                                                                                             rows) {
  constexpr int R = decltype(rows)::value, C = TileSize<typename S::Scalar>::packets;
  return RunTiles<S, Element>{&accumulate_run<S, R, C, Element>, &accumulate_run<S, R, 1, Element>};
});

/// Packets of V in panels of features, numbers stored as T: features c, c + 1, … of key j.
template <class S, class T>
struct ValuesInPanels {
  static constexpr Index kPanel = TileSize<typename S::Scalar>::panel;
  const T* data;
  Index panel_stride;

  ATTN_INLINE typename S::Packet operator()(Index j, Index c) const {
    return detail::load_converted<S>(data + c / kPanel * panel_stride + c % kPanel + j * kPanel);
  }
};
#if ATTN_BFLOAT_PAIRS
/// The same of packed pairs of keys: j is even.
template <class S>
struct ValuesInPanels<S, detail::BfloatPair> {
  static constexpr Index kPanel = TileSize<detail::BfloatPair>::panel;
  const detail::BfloatPair* data;
  Index panel_stride;

  ATTN_INLINE typename S::Packet operator()(Index j, Index c) const {
    return detail::BfloatPairs::load(data + c / kPanel * panel_stride + c % kPanel +
                                     j / 2 * kPanel);
  }
};
#endif

// The same sums where a hidden pair may meet a NaN or an infinity in V: hidden pairs are left out
// instead of adding 0·v, which would be NaN. Each (row, lane) is the same chain without its +0
// terms, so the bits are those of accumulate_run for rows whose visible values are finite. Rare,
// so it is written for shortness. (values: ValuesInPanels, or those of in_place.h.)
// marks: hidden_weight() where a pair is hidden; mostly the weights themselves.
template <class S, class Element, class Values>
void accumulate_visible(int rows, Index features, const Element* p, const Element* marks,
                        const Values& values, Runs runs, const typename S::Scalar* rescale,
                        typename S::Scalar* o, Index o_stride) {
  using Scalar = typename S::Scalar;
  using F = Factors<S, Element>;
  for (int i = 0; i < rows; ++i) {
    const Element *const weights = p + i * TileSize<Scalar>::score_stride,
                         *const mark = marks + i * TileSize<Scalar>::score_stride;
    for (Index c = 0; c < features; c += S::width) {
      BlockSums<S, 1, 1, Element> block(rescale == nullptr ? nullptr : rescale + i,
                                        o + i * o_stride + c, o_stride);
      block.each_run(runs, [&](Runs pieces, bool first, bool last) {
        typename S::Packet acc[1][1] = {{S::set(Scalar(0))}};
        for (int n = 0; n < pieces.count; ++n) {
          for (Index j = pieces.first[n].begin; j < pieces.first[n].end; j += F::numbers) {
            const Index at = j / F::numbers;
            F::accumulate_visible(
                weights[at], mark[at], [&] { return values(j, c); }, acc[0][0]);
          }
        }
        block.add(acc, first, last);
      });
    }
  }
}

/// o = r·o + p·v over all features; `finite`: see PackedKeys::finite(). panel_stride: factors from
/// one panel of V to the next. The last panel may be half a panel wide: one packet instead of two.
template <class S, class Element>
void weighted_sum(int rows, Index features, bool finite, const Element* p, const Element* v,
                  Index panel_stride, Runs runs, const typename S::Scalar* rescale,
                  typename S::Scalar* o, Index o_stride) {
  using Size = TileSize<typename S::Scalar>;
  if (!finite) {
    accumulate_visible<S>(rows, features, p, p, ValuesInPanels<S, Element>{v, panel_stride}, runs,
                          rescale, o, o_stride);
    return;
  }
  const auto& tiles = run_tiles_v<S, Element>[std::size_t(rows - 1)];
  for (Index c = 0; c < features; c += Size::panel) {
    const auto accumulate = features - c > S::width ? tiles.wide : tiles.narrow;
    const Element* const panel = v + c / Size::panel * panel_stride;
    TileSums<S, Element> block(rescale, o + c, o_stride);
    block.each_run(runs, [&](Runs pieces, bool first, bool last) {
      accumulate(p, panel, pieces, first, last, block);
    });
  }
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
