// attn/kernel/projection.h: Y = X·W + b through the register tile, over weights packed into panels
// once.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../base/call_shape.h"
#include "matrix_rows.h"
#include "pack.h"
#include "register_tile.h"
#include "strips.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     Y[i, n] = act((Σ_c X[i, c] · W[c, n]) + b[n]) + R[i, n]               // X: (rows, K)  W: (K, N)  Y, R: (rows, N)
//          weights  → panels of C·W columns: element (c, n) at c·(C·W) + n, packed once; K padded
//                   to whole depth steps
//          rows     → strips of R rows as packed queries, packed once a piece, used by all weights
//                   that read them
// PICTURE  for each piece of rows:                      // up to 96 rows: X's strips stay in L2
//            pack its strips
//            for each weight that reads X, for each of its panels:             // a panel comes from memory once a piece
//              for each strip: R × C packets, runs of 64 features in registers, their sums in the
//              tile
// TRAFFIC  a panel of W (K·C·W scalars, 64 KiB at K = 512 with AVX-512) and a strip of X (R·K, 24
//          KiB) stream from L2 once a tile:
//          14 packets for 24 multiply-adds, at most 2.75 of them from beyond L1; a panel from L3
//          serves eight strips
//          Y is written once, its lines asked for before; act and R take the tile from L1
// LIMIT    the multiply-adds, as in register_tile.h; the sums of a run are added to the tile, in
//          L1, once in 64 steps: 0.965 of the peak with all in L2, 0.94 of linear512 with 12 MB
//          from and to L3, 0.90 with GELU, which takes 25 of 512 multiply-adds (Zen 4)
//          one row: memory. A panel's step is 128 bytes for 2 multiply-adds in two chains, 4 cycles
//          of their latency: 118 GB/s at 3.7 GHz, four times what a core reads. Panels lie one
//          behind the other, so hardware fetches one stream: 0.86–0.92 of the bandwidth at
//          4096 × 4096; workers take parts of the columns, a stream each
// EDGES    rows and columns beyond the matrix are zeros that are computed and not written; K beyond
//          is zero on both sides
// NUMERICS each element is b plus one chain from +0 for each run of K, in order: the bits know
//          nothing of rows, pieces and threads.
//          One chain over all of K would err by √runs more: 2.4e-6 instead of 7.6e-7 at most in a
//          layer of 512 features with biases

/// A packed weight matrix, or some of its panels, as the kernel reads it. `bias` has whole panels,
/// zeros where there is none.
template <class Scalar, class Stored>
struct PanelWeights {
  const Stored* panels = nullptr;
  const Scalar* bias = nullptr;
  Index inputs = 0, outputs = 0;
  Index first_column = 0;  ///< of the matrix that these are panels of

  static constexpr Index depth(Index inputs) {
    return round_up(inputs, Index(TileSize<Scalar>::depth));
  }
  static constexpr Index columns(Index outputs) {
    return round_up(outputs, Index(TileSize<Scalar>::panel));
  }
  static constexpr Index size(Index inputs, Index outputs) {
    return depth(inputs) * columns(outputs);
  }
  Index depth() const { return depth(inputs); }
  const Stored& operator()(Index c, Index n) const {
    constexpr Index kPanel = TileSize<Scalar>::panel;
    return panels[n / kPanel * kPanel * depth() + c * kPanel + n % kPanel];
  }
  Index panel_count() const { return columns(outputs) / TileSize<Scalar>::panel; }
  /// Panels [begin, end), not empty.
  PanelWeights part(Index begin, Index end) const {
    const Index first = begin * TileSize<Scalar>::panel;
    return {panels + first * depth(), bias + first, inputs,
            std::min(end * TileSize<Scalar>::panel, outputs) - first, first_column + first};
  }
};

/// W, element (c, n) by a function, into panels.
template <class Scalar, class Stored, class Element>
void pack_weights(Index inputs, Index outputs, const Element& element, Stored* panels) {
  using Weights = PanelWeights<Scalar, Stored>;
  constexpr Index kPanel = TileSize<Scalar>::panel;
  for (Index first = 0; first < outputs; first += kPanel) {
    for (Index c = 0; c < Weights::depth(inputs); ++c) {
      for (Index n = first; n < first + kPanel; ++n)
        *panels++ = c < inputs && n < outputs ? Stored(element(c, n)) : Stored(0);
    }
  }
}

/// The same of a matrix in memory that is stored as it is computed with: whole packets.
template <class S>
void pack_weights(Source<typename S::Scalar> inputs_of, Index inputs, Index outputs,
                  typename S::Scalar* panels) {
  using Scalar = typename S::Scalar;
  using Weights = PanelWeights<Scalar, Scalar>;
  constexpr Index kPanel = TileSize<Scalar>::panel;
  const Index depth = Weights::depth(inputs);
  if (outputs % kPanel != 0)
    std::fill_n(panels + outputs / kPanel * kPanel * depth, kPanel * depth, Scalar(0));
  pack_values<S>(inputs_of, 0, {0, inputs}, outputs, depth, panels);
}

/// A run of features of a strip of R rows against one panel, added to `before`, into R rows of Y.
/// A function of its own for each run: in a loop over them g++ carries the accumulators through the
/// stack at every group of steps (mha512 0.75 of the peak).
template <class S, int R>
ATTN_NOINLINE void project_run(const typename S::Scalar* x, const typename S::Scalar* w,
                               Index length, const typename S::Scalar* before, Index before_stride,
                               typename S::Scalar* y, Index y_stride) {
  using Size = TileSize<typename S::Scalar>;
  constexpr int C = Size::packets;
  const DepthRange run{0, length};
  typename S::Packet acc[std::size_t{R}][std::size_t{C}];
  clear<S>(acc);
  multiply_accumulate<S>(acc, PackedStrip<typename S::Scalar, R>{x}, w, Runs{&run, 1});
  ATTN_UNROLL
  for (int i = 0; i < R; ++i) {
    ATTN_UNROLL
    for (int v = 0; v < C; ++v) {
      S::store(y + i * y_stride + v * S::width,
               S::add(acc[i][v], S::load(before + i * before_stride + v * S::width)));
    }
  }
}

/// The runs of one panel as a strip reads them.
/// WHY  panels stored narrower than they are computed in are widened by the first strip, a run just
///      before it is used. Where that strip is the only one (decoding), all runs take one place, in
///      L1: the panel as a whole would be written to L2 and read back, 0.36 of the bandwidth of
///      reading 4096 × 4096 bfloat16. Then, too, the run behind is asked for, 0.72 → 0.83; wide
///      numbers are read as fast as hardware fetches them, and slower where they are asked for
///      (Zen 4, AVX-512, g++).
template <class S, class Stored>
struct PanelRuns {
  using Scalar = typename S::Scalar;
  const Stored* panel;
  Scalar* widened;
  bool first_strip, last_strip;

  ATTN_INLINE const Scalar* operator()(Index begin, Index length) const {
    constexpr Index kPanel = TileSize<Scalar>::panel, kLine = 64 / Index(sizeof(Stored));
    const Stored* const from = panel + begin * kPanel;
    if constexpr (std::is_same_v<Scalar, Stored>) {
      return from;
    } else {
      const bool alone = first_strip && last_strip;
      Scalar* const to = widened + (alone ? 0 : begin * kPanel);
      const Index count = length * kPanel;
      for (Index n = 0; alone && n < count; n += kLine) S::prefetch_far(from + count + n);
      for (Index n = 0; first_strip && n < count; n += S::width)
        S::store(to + n, detail::load_converted<S>(from + n));
      return to;
    }
  }
};

/// How rows and columns fall into the pieces that workers draw, and the scratch of one worker.
template <class Scalar, class Stored>
struct ProjectionScratch {
  using Size = TileSize<Scalar>;
  Index piece_rows, depth;  ///< of the deepest weights
  Index column_parts;       ///< that the panels of a piece's weights are cut into

  /// Where `workers` share `rows` rows: four pieces for each, so that none waits long for the last.
  /// WHY  columns are cut first: every piece of rows reads all of its weights from memory, which is
  ///      what few rows wait for; the rows that a part of the columns packs anew cost little.
  static constexpr ProjectionScratch of(Index rows, Index inputs, Index outputs, int workers) {
    const Index depth = PanelWeights<Scalar, Stored>::depth(inputs);
    const Index panels = PanelWeights<Scalar, Stored>::columns(outputs) / Size::panel;
    const Index wanted = workers > 1 ? 4 * Index(workers) : 1;
    const Index by_rows = ceiling(wanted, panels);  // where there are too few panels
    const Index share = round_up(ceiling(rows, by_rows), Index(Size::rows));
    const Index piece = std::clamp(share, Index(Size::rows), Size::piece_rows(depth));
    const Index row_pieces = std::max<Index>(ceiling(rows, piece), 1);
    return {piece, depth, std::min(ceiling(wanted, row_pieces), panels)};
  }

  constexpr Index row_pieces(Index rows) const { return ceiling(rows, piece_rows); }
  constexpr Index pieces(Index rows) const { return row_pieces(rows) * column_parts; }
  constexpr Index strips() const { return round_up(piece_rows * depth, 16); }
  constexpr Index tile() const { return Size::rows * Size::panel; }
  /// Panels stored narrower than they are computed in are widened one at a time.
  constexpr Index widened() const {
    return std::is_same_v<Scalar, Stored> ? 0 : depth * Size::panel;
  }
  constexpr Index total() const { return round_up(strips() + tile() + widened(), 16); }

 private:
  static constexpr Index ceiling(Index n, Index of) { return (n + of - 1) / of; }
};

/// `rows` rows into strips at `to`; row_of(i) is the address of row i.
template <class S, class RowOf>
void pack_strips(const RowOf& row_of, Index feature_stride, Index rows, Index features, Index depth,
                 typename S::Scalar* to) {
  using Scalar = typename S::Scalar;
  const Strips strips = Strips::even<Scalar>(rows);
  for (Index strip = 0; strip < strips.count; ++strip) {
    const Index first = strips.begin(strip);
    const int R = strips.rows(strip);
    decltype(row_of(0)) from[std::size_t{TileSize<Scalar>::rows}];
    for (int i = 0; i < R; ++i) from[i] = row_of(first + i);
    pack_queries<S>(from, feature_stride, features, depth, Scalar(1), R, to + first * depth);
  }
}

/// A strip of R rows, from `row` on, against one panel, whose first column is `column`, with the
/// bias.
template <class S, int R, class Runs, class Sink>
void project_panel(const typename S::Scalar* x, const Runs& runs, Index depth,
                   const typename S::Scalar* bias, Index row, Index column, const Sink& sink) {
  constexpr Index kRun = TileSize<typename S::Scalar>::projection_run;
  typename S::Scalar* const y = sink.address(row, column);
  const Index y_stride = sink.stride(), count = (depth + kRun - 1) / kRun;
  for (Index n = 0; n < count; ++n) {
    const Index begin = n * kRun, length = std::min(kRun, depth - begin);
    sink.expect(row, R * n / count, R * (n + 1) / count, column);
    project_run<S, R>(x + begin * R, runs(begin, length), length, n == 0 ? bias : y,
                      n == 0 ? 0 : y_stride, y, y_stride);
  }
}

/// The columns of some weights for the rows of a piece. `widened`: room for one panel where
/// weights are stored narrowly; `sink`: where tiles go (see RowsSink).
template <class S, class Stored, class Sink>
void project_piece(const typename S::Scalar* strips_of_x, Index first_row, Index rows,
                   const PanelWeights<typename S::Scalar, Stored>& weights,
                   typename S::Scalar* widened, const Sink& sink) {
  using Scalar = typename S::Scalar;
  using Size = TileSize<Scalar>;
  const Index depth = weights.depth();
  const Strips strips = Strips::even<Scalar>(rows);
  for (Index begin = 0; begin < weights.outputs; begin += Size::panel) {
    const Index column = weights.first_column + begin;
    const Index columns = std::min<Index>(weights.outputs - begin, Size::panel);
    for (Index strip = 0; strip < strips.count; ++strip) {
      const Index first = strips.begin(strip), row = first_row + first;
      const PanelRuns<S, Stored> runs{weights.panels + begin * depth, widened, strip == 0,
                                      strip + 1 == strips.count};
      with_rows<Scalar>(strips.rows(strip), [&](auto count) {
        constexpr int R = decltype(count)::value;
        project_panel<S, R>(strips_of_x + first * depth, runs, depth, weights.bias + begin, row,
                            column, sink);
        sink.finish(row, R, column, columns);
      });
    }
  }
}

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
  Scalar* address(Index row, Index column) const { return data + row * row_stride + column; }
  Index stride() const { return row_stride; }
  void expect(Index, Index, Index, Index) const {}
  void finish(Index, Index, Index, Index) const {}
};

/// In place of an activation: Y = X·W + b.
struct Unchanged {};

/// Tiles go to any matrix, rounded to its storage, through an activation. What the residual has in
/// their place is added before the rounding: NoRows, Rows, or RowsInTurn, whose order is that of
/// the additions. What enters the activation is kept in rows of its own, if there are some.
/// WHY  the epilogue takes the tile from L1, not from the accumulators: 24 loads and stores beside
///      the 24·K multiply-adds of a tile, and one function for each activation, not one for each
///      height of a strip.
template <class Scalar, class Output, class Residual, class Activation = Unchanged,
          class Kept = NoRows>
struct MatrixSink {
  using S = detail::Simd<Scalar>;
  using Stored = typename Output::Scalar;
  Scalar* tile;  ///< one tile, whole
  Output output;
  Residual residual;
  Activation activation = {};
  Kept kept = {};

  Scalar* address(Index, Index) const { return tile; }
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
  void finish(Index row, Index rows, Index column, Index columns) const {
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
