// attn/kernel/projection.h: Y = X·W + b through the register tile, over weights packed into panels
// once.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "panel_weights.h"
#include "stored_panels.h"
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
//            for each weight that reads X, four panels at a time:      // memory is read once a piece
//              for each run of 64 features, for each of these panels:  // 8 KiB, in L1
//                for each strip: R × C packets, the run in registers, its sum in the tile
//                // the first strip asks for the next run of all four panels meanwhile
// TRAFFIC  a run of a strip of X (R·64 scalars, 3 KiB) and its tile (1.5 KiB, read and written)
//          come from L2 where a piece has many strips, the run of a panel from L1 but for the first:
//          14 packets for 24 multiply-adds
//          Y is written once, its lines asked for before; act and R take the tile from scratch
// LIMIT    many rows: the multiply-adds, as in register_tile.h; sums of a run are added to the tile
//          once in 64 steps; GELU takes 25 of 512 multiply-adds
//          one strip: memory. Floats, 4096 × 4096 in a row of layers, with 1, 4, 8 and 12 rows 4.2,
//          4.0, 3.9 and 4.3 ms, where reading alone takes 3.9 to 4.3 (Emerald Rapids, g++)
// WHY      four panels, run by run, and asked for: panel after panel with nothing asked for, these
//          rows took 5.2, 7.6, 8.7 and 9.2 ms: what hardware fetches ahead ends with a page, and
//          multiply-adds keep what is read next out of the window of instructions under way. And
//          every strip read the panel from L2 or L3: 512 rows of 4096 × 4096 took 365 ms, now 187,
//          of 512 × 2048 10.2, now 7.8. (Where all weights lie in L2 it costs one or two rows up
//          to 0.7: 19 µs instead of 11 for 512 × 512, and saves a third of 76 µs where they do not.
//          Zen 4 read one row at 0.86 to 0.92 of the bandwidth panel after panel, and slower where
//          that stream was asked for; four streams are still to be measured there)
// EDGES    rows and columns beyond the matrix are zeros that are computed and not written; K beyond
//          is zero on both sides
// NUMERICS each element is b plus one chain from +0 for each run of K, in order: the bits know
//          nothing of rows, pieces and threads.
//          One chain over all of K would err by √runs more: 2.4e-6 instead of 7.6e-7 at most in a
//          layer of 512 features with biases

/// Panels that the strips of a piece go over together, run by run.
inline constexpr int kTogether = 4;

/// A run of one panel, as the strips behind the first one find it: nothing is asked for.
/// WHY  what is at hand is not worth asking for: 512 rows of 512 × 2048 take 9.2 ms if they do, and
///      7.8 (Emerald Rapids, g++)
template <class S>
struct PanelAtHand {
  const typename S::Scalar* data;
  Index length;

  template <std::size_t R, std::size_t C, class Left>
  ATTN_INLINE void multiply_accumulate(typename S::Packet (&acc)[R][C], Left a, Index /*panel*/,
                                       DepthRange steps) const {
    kernel::multiply_accumulate<S>(acc, a, data, Runs{&steps, 1});
  }
};

/// A run of features of a strip of R rows against one of some panels, added to `before`, into R
/// rows of Y. A function of its own for each run: in a loop over them g++ carries the accumulators
/// through the stack at every group of steps (mha512 0.75 of the peak).
template <class S, int R, class Panels>
ATTN_NOINLINE void project_run(const typename S::Scalar* x, const Panels& panels, Index panel,
                               const typename S::Scalar* before, Index before_stride,
                               typename S::Scalar* y, Index y_stride) {
  constexpr int C = TileSize<typename S::Scalar>::packets;
  typename S::Packet acc[std::size_t{R}][std::size_t{C}];
  clear<S>(acc);
  panels.multiply_accumulate(acc, PackedStrip<typename S::Scalar, R>{x}, panel, {0, panels.length});
  ATTN_UNROLL
  for (int i = 0; i < R; ++i) {
    ATTN_UNROLL
    for (int v = 0; v < C; ++v) {
      S::store(y + i * y_stride + v * S::width,
               S::add(acc[i][v], S::load(before + i * before_stride + v * S::width)));
    }
  }
}
/// project_run() by row counts.
template <class S, class Panels>
inline constexpr auto project_run_v = of_row_counts<TileSize<typename S::Scalar>::rows>(
    [](auto rows) { return &project_run<S, decltype(rows)::value, Panels>; });

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
  constexpr Index tile() const { return kTogether * piece_rows * Size::panel; }
  /// Panels stored narrower than they are computed in are widened a run at a time.
  constexpr Index widened() const {
    return std::is_same_v<Scalar, Stored> ? 0 : Size::projection_run * Size::panel;
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

/// project_piece() at work.
template <class S, class Stored, class Sink>
class PieceProjection {
  using Scalar = typename S::Scalar;
  using Size = TileSize<Scalar>;
  using Weights = PanelWeights<Scalar, Stored>;

 public:
  PieceProjection(const Scalar* strips_of_x, Index first_row, Index rows, const Weights& weights,
                  Scalar* widened, const Sink& sink)
      : x_(strips_of_x),
        first_row_(first_row),
        rows_(rows),
        weights_(weights),
        widened_(widened),
        sink_(sink) {}

  void operator()() const {
    const Index panels = weights_.panel_count();
    for (Index first = 0; first < panels; first += kTogether) {
      const Index end = std::min(first + kTogether, panels);
      for (Index n = 0; n < runs_; ++n) project_run_of(first, end, n);
      for (Index panel = first; panel < end; ++panel) finish(panel);
    }
  }

 private:
  static constexpr Index kRun = Size::projection_run;

  /// Run n of the panels [first, end).
  void project_run_of(Index first, Index end, Index n) const {
    const Index begin = n * kRun, length = std::min(kRun, depth_ - begin);
    const Stored* const here = weights_.panels + first * apart_ + begin * Size::panel;
    const Stored* next = here;  // which is at hand
    if (n + 1 < runs_) {
      next = here + kRun * Size::panel;
    } else if (end + kTogether <= weights_.panel_count()) {
      next = weights_.panels + end * apart_;
    }
    const StoredPanels<S, Stored, 1> group{here, next, apart_, end - first, length};
    for (Index panel = first; panel < end; ++panel) {
      const Index from = (panel - first) * apart_;
      Index strip = 0;
      PanelAtHand<S> at_hand{nullptr, length};
      if constexpr (std::is_same_v<Scalar, Stored>) {
        at_hand.data = here + from;
        if (asks_) project(strip++, panel, n, group, panel - first);
      } else if (strips_.count == 1) {
        project(strip++, panel, n, group, panel - first);
      } else {
        at_hand.data = widened_;
        widen(here + from, next + from, length);
      }
      while (strip < strips_.count) project(strip++, panel, n, at_hand, 0);
    }
  }
  template <class Panels>
  void project(Index strip, Index panel, Index n, const Panels& panels, Index which) const {
    const int R = strips_.rows(strip);
    const Index row = strips_.begin(strip), column = panel * Size::panel;
    Scalar* const y =
        sink_.address(first_row_ + row, weights_.first_column + column, place(row, panel));
    sink_.expect(first_row_ + row, R * n / runs_, R * (n + 1) / runs_,
                 weights_.first_column + column);
    project_run_v<S, Panels>[std::size_t(R - 1)](x_ + row * depth_ + n * kRun * R, panels, which,
                                                 n == 0 ? weights_.bias + column : y,
                                                 n == 0 ? 0 : sink_.stride(), y, sink_.stride());
  }
  /// A run of a panel, whose next one is asked for.
  void widen(const Stored* from, const Stored* next, Index length) const {
    constexpr Index kLine = std::max<Index>(64 / Index(sizeof(Stored)), S::width);
    const Index count = length * Size::panel;
    for (Index n = 0; n < count; n += kLine) {
      S::prefetch_far(next + n);
      for (Index m = n; m < std::min(n + kLine, count); m += S::width)
        S::store(widened_ + m, detail::load_converted<S>(from + m));
    }
  }
  void finish(Index panel) const {
    const Index begin = panel * Size::panel;
    for (Index strip = 0; strip < strips_.count; ++strip) {
      const Index row = strips_.begin(strip);
      sink_.finish(first_row_ + row, strips_.rows(strip), weights_.first_column + begin,
                   std::min<Index>(weights_.outputs - begin, Size::panel), place(row, panel));
    }
  }
  /// Which row of the scratch of tiles holds a row of a panel.
  Index place(Index row, Index panel) const { return panel % kTogether * rows_ + row; }

  const Scalar* x_;
  Index first_row_, rows_;
  const Weights& weights_;
  Scalar* widened_;
  const Sink& sink_;
  const Strips strips_ = Strips::even<Scalar>(rows_);
  const Index depth_ = weights_.depth(), apart_ = depth_ * Size::panel,
              runs_ = (depth_ + kRun - 1) / kRun;
  const bool asks_ = apart_ * weights_.panel_count() > Size::asked_weights;
};

/// The columns of some weights for the rows of a piece. `widened`: room for a run of one panel
/// where weights are stored narrowly; `sink`: where tiles go (see RowsSink).
template <class S, class Stored, class Sink>
void project_piece(const typename S::Scalar* strips_of_x, Index first_row, Index rows,
                   const PanelWeights<typename S::Scalar, Stored>& weights,
                   typename S::Scalar* widened, const Sink& sink) {
  PieceProjection<S, Stored, Sink>(strips_of_x, first_row, rows, weights, widened, sink)();
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
