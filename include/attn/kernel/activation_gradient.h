// attn/kernel/activation_gradient.h: the gradient of a projection's output back through its
// activation: dZ = dY ∘ act'(Z).
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../base/load.h"
#include "matrix_rows.h"
#include "tile_size.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     dZ[i, n] = dY[i, n] · act'(Z[i, n])                                             // all: (rows, N)
// PICTURE  pieces of rows, drawn by workers; a packet of features at a time. Where the features of
//          dY lie apart and its rows together: W × W numbers are loaded along the rows and
//          transposed in registers
// TRAFFIC  dY and Z are read once, dZ written once: beside the slope, 25 multiply-adds of gelu
// WHY      rows of scratch: both products that follow read each number many times
// EDGES    behind the last feature the slope of 0 is taken, and goes where nothing is read
// NUMERICS one product, rounded by itself
template <class S, class Slope, class OutputGradient>
struct ActivationGradient {
  using Scalar = typename S::Scalar;
  using Size = TileSize<Scalar>;
  Slope slope;
  OutputGradient output_gradient;
  Rows<const Scalar> kept;  ///< Z
  Index rows, columns;
  Scalar* to;
  Index stride;  ///< of rows of dZ, whole packets

  Index pieces() const { return (rows + Size::max_piece_rows - 1) / Size::max_piece_rows; }
  void fill(Index piece) const {
    const Index begin = piece * Size::max_piece_rows;
    const Index end = std::min(begin + Size::max_piece_rows, rows);
    Index i = begin;
    if (by_rows()) {
      for (; i + S::width <= end; i += S::width) fill_tiles(i);
    }
    for (; i < end; ++i) fill_row(i, 0);
  }

 private:
  /// Rows lie together, in one sequence.
  bool by_rows() const {
    return output_gradient.row_stride() == 1 && output_gradient.feature_stride() != 1 &&
           output_gradient.together(0, rows);
  }
  /// W rows from `first` on.
  void fill_tiles(Index first) const {
    Index n = 0;
    for (; n + S::width <= columns; n += S::width) {
      typename S::Packet tile[S::width];
      const auto* from = output_gradient.row(first) + n * output_gradient.feature_stride();
      ATTN_UNROLL
      for (int w = 0; w < S::width; ++w, from += output_gradient.feature_stride())
        tile[w] = detail::load_converted<S>(from);
      S::transpose(tile);
      ATTN_UNROLL
      for (int w = 0; w < S::width; ++w) put(first + w, n, tile[w]);
    }
    for (Index i = first; n < columns && i < first + S::width; ++i) fill_row(i, n);
  }
  /// Features of a row from `n` on.
  void fill_row(Index i, Index n) const {
    const Index step = output_gradient.feature_stride();
    const auto* const from = output_gradient.row(i);
    for (; n < columns; n += S::width)
      put(i, n, detail::load_strided<S>(from + n * step, step, columns - n));
  }
  ATTN_INLINE void put(Index i, Index n, const typename S::Packet& gradient) const {
    const auto z = detail::load_strided<S>(kept.row(i) + n, 1, columns - n);
    // Where the gradient is 0, z may hold anything: a token that has no part in the loss.
    const auto zero = S::set(typename S::Scalar(0));
    const auto through = S::mul(gradient, slope.template apply<S>(z, columns - n));
    S::store(to + i * stride + n, S::select(S::equal(gradient, zero), zero, through));
  }
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
