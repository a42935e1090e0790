// attn/kernel/sums_over_rows.h: dv += eᵀ · g and dk += dsᵀ · q̂ of a block of rows: products that
// sum over rows instead of keys. The tiles also serve gradients of weights, dW += Xᵀ · d.
// SPDX-License-Identifier: MIT
#pragma once

#include "online_softmax.h"
#include "register_tile.h"
#include "strips.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     D[j, c] += Σ_i p[i, j] · b[i, c]     R keys × one panel of features, i over runs of rows                   // p: (rows, keys)
// PICTURE  as register_tile.h; the left operand is read down its columns: R neighbours of a row are
//          broadcast for each step
// TRAFFIC  b stays in L1 (96 rows × a panel: 12 KiB) while the keys of a block go by, p comes from
//          L2; D is read and written once for all rows
// LIMIT    the multiply-adds, as in register_tile.h: R broadcasts and C loads a step; 8, 10 or 11
//          keys a tile within noise
// EDGES    runs are whole multiples of 4 rows: p is 0 for rows that see nothing of the panel, b for
//          rows that are not there
// NUMERICS one chain from +0 over the rows, then one addition. A row that does not see the key adds
//          +0, so the keys do not notice which rows their neighbours are seen by

/// What is multiplied and where it goes, from a key and a feature on.
template <class Scalar>
struct RowProduct {
  const Scalar *p, *b;
  Runs rows;
  Scalar* sums;
  Index stride;  ///< of the sums, from key to key
};

template <class S, class Left, int R, int C>
ATTN_NOINLINE void sum_over_rows(const RowProduct<typename S::Scalar>& product) {
  typename S::Packet acc[std::size_t{R}][std::size_t{C}];
  clear<S>(acc);
  multiply_accumulate<S>(acc, Left{product.p}, product.b, product.rows);
  typename S::Scalar* to = product.sums;
  ATTN_UNROLL
  for (int j = 0; j < R; ++j, to += product.stride) {
    ATTN_UNROLL
    for (int v = 0; v < C; ++v)
      S::store(to + v * S::width, S::add(S::load(to + v * S::width), acc[j][v]));
  }
}
/// sum_over_rows() of panels of all packets, and of the first one alone.
template <class Scalar>
struct RowSumTiles {
  void (*wide)(const RowProduct<Scalar>&);
  void (*narrow)(const RowProduct<Scalar>&);
};
/// By row counts of the result. `Left`: how the left operand lies, Elements read down columns.
template <class S, class Left>
inline constexpr auto row_sum_tiles_v =
    of_row_counts<TileSize<typename S::Scalar>::rows>([](auto rows) {
      constexpr int R = decltype(rows)::value, C = TileSize<typename S::Scalar>::packets;
      return RowSumTiles<typename S::Scalar>{&sum_over_rows<S, Left, R, C>,
                                             &sum_over_rows<S, Left, R, 1>};
    });

/// The same of `keys` keys where some pair is hidden from what is not finite: pairs marked as
/// hidden_weight() are left out. The bits of the other, for what it is fit for; rare.
template <class S>
void sum_visible_rows(int keys, Index packets, const typename S::Scalar* marks,
                      const RowProduct<typename S::Scalar>& product) {
  using Scalar = typename S::Scalar;
  using Size = TileSize<Scalar>;
  for (int j = 0; j < keys; ++j) {
    for (Index v = 0; v < packets; ++v) {
      auto sum = S::set(Scalar(0));
      for (int n = 0; n < product.rows.count; ++n) {
        for (Index i = product.rows.first[n].begin; i < product.rows.first[n].end; ++i) {
          const Index at = i * Size::score_stride + j;
          if (detail::equal(marks[at], hidden_weight<Scalar>())) continue;
          sum = S::fmadd(S::set(product.p[at]), S::load(product.b + i * Size::panel + v * S::width),
                         sum);
        }
      }
      Scalar* const to = product.sums + j * product.stride + v * S::width;
      S::store(to, S::add(S::load(to), sum));
    }
  }
}

/// D += pᵀ · b for a panel of keys and all features. `marks`: of the hidden pairs, or null where
/// their zeros may be multiplied. b: panels of features, panel_stride apart.
template <class S>
void sum_panel_over_rows(const RowProduct<typename S::Scalar>& product,
                         const typename S::Scalar* marks, Index features, Index panel_stride) {
  using Scalar = typename S::Scalar;
  using Size = TileSize<Scalar>;
  const Strips tiles = Strips::even<Scalar>(Size::panel);
  for (Index c = 0; c < features; c += Size::panel) {
    const bool wide = features - c > S::width;
    for (Index n = 0; n < tiles.count; ++n) {
      const Strip keys = tiles[n];
      const RowProduct<Scalar> part{product.p + keys.first,
                                    product.b + c / Size::panel * panel_stride, product.rows,
                                    product.sums + keys.first * product.stride + c, product.stride};
      if (marks != nullptr) {
        sum_visible_rows<S>(keys.rows, wide ? Size::packets : 1, marks + keys.first, part);
      } else {
        const auto& sums = row_sum_tiles_v<S, ScoreColumns<Scalar>>[std::size_t(keys.rows - 1)];
        (wide ? sums.wide : sums.narrow)(part);
      }
    }
  }
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
