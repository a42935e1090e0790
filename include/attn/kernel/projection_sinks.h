// attn/kernel/projection_sinks.h: where the tiles of a projection go.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "matrix_rows.h"
#include "panel_weights.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// Tiles go straight to rows of scratch, whose stride holds whole panels: heads side by side need
/// no further split.
/// WHY  rows of all heads rather than a matrix for each head: projecting and attending took 5.9 ms
///      of mha512 either way.
template <class Scalar>
struct RowsSink {
  Scalar* data;
  Index row_stride;

  /// WHY  rows a multiple of 4 KiB apart would fall into the same few sets of L1 when the engine
  ///      packs them.
  static constexpr Index stride_for(Index columns) {
    return round_up(columns, Index(TileSize<Scalar>::panel)) + 16;
  }
  /// Where the tile goes whose first element this is. `place`: a row of scratch, for sinks that
  /// need some.
  Scalar* address(Index row, Index column, Index /*place*/ = 0) const {
    return data + row * row_stride + column;
  }
  Index stride() const { return row_stride; }
  void expect(Index, Index, Index, Index) const {}
  void finish(Index, Index, Index, Index, Index) const {}
};

/// In place of an activation: Y = X·W + b.
struct Unchanged {};

/// Tiles go to any matrix, rounded to its storage, through an activation. What the residual has in
/// their place is added before the rounding: NoRows, Rows, or RowsInTurn, whose order is that of
/// the additions. What enters the activation is kept in rows of its own, if there are some.
/// WHY  the epilogue takes the tile from scratch, not from the accumulators: 24 loads and stores
///      beside the 24·K multiply-adds of a tile, and one function for each activation, not one for
///      each height of a strip.
template <class Scalar, class Output, class Residual, class Activation = Unchanged,
          class Kept = NoRows>
struct MatrixSink {
  using S = detail::Simd<Scalar>;
  using Stored = typename Output::Scalar;
  Scalar* tiles;  ///< ProjectionScratch::tile() scalars
  Output output;
  Residual residual;
  Activation activation = {};
  Kept kept = {};

  Scalar* address(Index, Index, Index place) const { return tiles + place * stride(); }
  Index stride() const { return TileSize<Scalar>::panel; }
  /// Asks for the lines that rows [begin, end) of a tile will be written to.
  /// WHY  while the tile is multiplied, some in each run: waiting for them at its end took 5 % of
  ///      linear512, asking for all of them at its beginning 2.5 % (Zen 4, AVX-512, g++)
  ATTN_INLINE void expect(Index row, Index begin, Index end, Index column) const {
    for (Index i = begin; i < end; ++i) {
      expect_panel(element(row + i, column), output.feature_stride());
      kept.each(row + i, column, [](const Scalar* to, Index step) { expect_panel(to, step); });
    }
  }
  void finish(Index row, Index rows, Index column, Index columns, Index place) const {
    Scalar* const tile = address(row, column, place);
    if constexpr (kActivates || !std::is_same_v<Kept, NoRows>) {
      for (Index i = 0; i < rows; ++i) {
        for (Index n = 0; n < columns; n += S::width)
          activate(tile + i * stride() + n, row + i, column + n, columns - n);
      }
    }
    write(tile, stride(), row, rows, column, columns);
  }
  /// Rows that have been through the activation. What is behind `columns` is read, not written.
  void write(const Scalar* from, Index from_stride, Index row, Index rows, Index column,
             Index columns) const {
    if (detail::by_columns(output.row_stride(), output.feature_stride())) {
      for (Index n = 0; n < columns; ++n) {
        for (Index i = 0; i < rows; ++i)
          *element(row + i, column + n) =
              Stored(added(from[i * from_stride + n], row + i, column + n));
      }
      return;
    }
    for (Index i = 0; i < rows; ++i, from += from_stride) {
      Stored* const y = element(row + i, column);
      for (Index n = 0; n < columns; n += S::width) {
        const Index lanes = std::min<Index>(columns - n, S::width);
        typename S::Packet sum = S::load(from + n);
        residual.each(row + i, column + n, [&](const auto* x, Index stride_of_x) {
          sum = S::add(detail::load_strided<S>(x, stride_of_x, lanes), sum);
        });
        detail::store_strided<S>(y + n * output.feature_stride(), output.feature_stride(), sum,
                                 lanes);
      }
    }
  }

 private:
  static constexpr bool kActivates = !std::is_same_v<Activation, Unchanged>;

  template <class T>
  static ATTN_INLINE void expect_panel(const T* to, Index stride_of_it) {
    constexpr Index kLine = 64 / Index(sizeof(T));
    if (stride_of_it != 1) return;
    ATTN_UNROLL
    for (Index n = 0; n < TileSize<Scalar>::panel; n += kLine) S::prefetch_to_write(to + n);
  }
  /// A packet of the tile, `lanes` of it in the matrix.
  ATTN_INLINE void activate(Scalar* y, Index row, Index column, Index lanes) const {
    const typename S::Packet x = S::load(y);
    kept.each(row, column,
              [&](Scalar* to, Index step) { detail::store_strided<S>(to, step, x, lanes); });
    if constexpr (kActivates) S::store(y, activation.template apply<S>(x, lanes));
  }
  Stored* element(Index row, Index column) const {
    return output.row(row) + column * output.feature_stride();
  }
  Scalar added(Scalar sum, Index row, Index column) const {
    residual.each(row, column, [&](const auto* x, Index) { sum = Scalar(Scalar(*x) + sum); });
    return sum;
  }
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
