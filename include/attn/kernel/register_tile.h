// attn/kernel/register_tile.h: acc += A·B for R rows and C packets of columns, the accumulators in
// registers throughout.
// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <utility>

#include "factors.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// Depth steps [begin, end) of a tile, both multiples of TileSize::depth; not empty. Steps are
/// numbers along the sum, whether factors hold one or two of them.
struct DepthRange {
  Index begin, end;
};
/// Such ranges, one behind the other: the steps that a product goes over.
struct Runs {
  const DepthRange* first;
  int count;
};

/// The left operand of a product where it lies: factor (i, t) at i·Row + t % 4 · Step + t / 4 ·
/// Group, 4 being TileSize::depth (2, of pairs).
template <class Factor, Index Row, Index Step, Index Group>
struct Elements {
  using Element = Factor;
  static constexpr Index depth = TileSize<Factor>::depth, group = Group;
  static_assert(Group % depth == 0, "from() multiplies instead of dividing");
  const Factor* data;

  /// From step t on, a multiple of the depth.
  ATTN_INLINE Elements from(Index t) const { return {data + t * (Group / depth)}; }
  ATTN_INLINE const Factor& operator()(Index i, Index t) const {
    return data[i * Row + t / depth * Group + t % depth * Step];
  }
};
/// A packed strip of R rows: one stream.
template <class Scalar, int R>
using PackedStrip =
    Elements<Scalar, TileSize<Scalar>::depth, 1, Index(TileSize<Scalar>::depth) * R>;
/// Rows of scores or weights, whose keys are the steps.
template <class Scalar>
using ScoreRows = Elements<Scalar, TileSize<Scalar>::score_stride, 1, TileSize<Scalar>::depth>;
/// Columns of the same, one for each key: the rows are the steps, in sums over them.
template <class Scalar>
using ScoreColumns = Elements<Scalar, 1, TileSize<Scalar>::score_stride,
                              TileSize<Scalar>::depth * TileSize<Scalar>::score_stride>;
/// Columns of a packed panel, whose rows are the steps: a panel is the right operand of one product
/// and the left one of another.
template <class Scalar>
using PanelColumns = Elements<Scalar, 1, TileSize<Scalar>::panel,
                              Index(TileSize<Scalar>::depth) * TileSize<Scalar>::panel>;

/// Sums that start from +0.
template <class S, std::size_t R, std::size_t C>
ATTN_INLINE void clear(typename S::Packet (&acc)[R][C]) {
  ATTN_UNROLL
  for (std::size_t i = 0; i < R; ++i) {
    ATTN_UNROLL
    for (std::size_t v = 0; v < C; ++v) acc[i][v] = S::set(typename S::Scalar(0));
  }
}

// WHAT     acc[i][v] += Σ_t a(i, t) · b[t, v]        t over the runs                                   // acc: (R, C·W)
// PICTURE                |pkt 0|pkt 1|              b: panel, C·W scalars for each step, contiguous, aligned
//          a(0, t) ───►  |acc00|acc01|              a: Elements: PackedStrip (queries), ScoreRows (weights),
//          a(1, t) ───►  |acc10|acc11|                 ScoreColumns, PanelColumns (where the sum goes over rows)
//             …          |  …  |  …  |
// TRAFFIC  per step: R broadcasts + C loads for R·C multiply-adds; 6 × 2: 8 loads for 12; 12 × 2:
//          14 loads for 24
// LIMIT    the multiply-adds: two a cycle, so R·C / 2 cycles a step; loads need half as many at two
//          (three) a cycle. 0.985–0.995 of the peak over 256 steps, K or V in L2 (Zen 5, 12 × 2
//          AVX-512 and 6 × 2 AVX2, g++ and clang, -O2 and -O3)
// EDGES    none: depth is padded to a multiple of 4 with zeros on both sides, rows and packets are
//          compile-time
// NUMERICS each (row, lane) is one chain of fmadd (of pairs: of their fused steps) in order of t,
//          whatever R and C: the bits contract rests on it
// The accumulators are a local array of the caller's frame and everything here is inlined into it.
// Loops carry ATTN_UNROLL, or g++ -O2 keeps the array in memory.
template <class S, std::size_t R, std::size_t C, class Left>
ATTN_INLINE void multiply_accumulate(typename S::Packet (&acc)[R][C], Left a,
                                     const typename Left::Element* b, Runs runs) {
  using Element = typename Left::Element;
  using Packet = typename S::Packet;
  using F = Factors<S, Element>;
  using Size = TileSize<Element>;
  if (runs.count == 0) return;
  // One loop over the steps of all runs: with a loop for each inside another clang carries the
  // accumulators from one to the next through the stack, 29 stores and loads around every four
  // steps (weighted sum 0.88 of the peak instead of 0.98).
  const DepthRange *run = runs.first, *const last = run + runs.count - 1;
  const Element *x, *y, *end;
  const auto enter = [&] {
    x = a.from(run->begin / F::numbers).data;
    y = b + run->begin / F::numbers * Size::panel;
    end = b + run->end / F::numbers * Size::panel;
  };
  enter();
  for (;;) {
    ATTN_UNROLL
    for (int step = 0; step < Size::depth; ++step) {
      Packet column[C];
      ATTN_UNROLL
      for (int v = 0; v < int(C); ++v) column[v] = F::load(y + step * Size::panel + v * S::width);
      ATTN_UNROLL
      for (int i = 0; i < int(R); ++i) {
        if constexpr (C == 1) {
          F::accumulate_element(Left{x}(i, step), column[0], acc[i][0]);
        } else {
          const Packet element = F::set(Left{x}(i, step));
          ATTN_UNROLL
          for (int v = 0; v < int(C); ++v) F::accumulate(element, column[v], acc[i][v]);
        }
      }
    }
    x += Left::group;
    y += Size::depth * Size::panel;
    if (y < end) continue;
    if (run == last) return;
    ++run;
    enter();
  }
}

template <class Make, int... Before>
constexpr auto of_row_counts(const Make& make, std::integer_sequence<int, Before...>) {
  using Made = decltype(make(std::integral_constant<int, 1>()));
  return std::array<Made, sizeof...(Before)>{{make(std::integral_constant<int, Before + 1>())...}};
}
/// make(R) of each row count R = 1 … `Most`, in this order: functions of a tile, to be looked up.
/// WHY  what calls them is then compiled once, not once for each row count (0.3 to 1 s of a call of
///      attention, g++ and clang); the call through a pointer is one a panel or more
template <int Most, class Make>
constexpr auto of_row_counts(const Make& make) {
  return of_row_counts(make, std::make_integer_sequence<int, Most>());
}

/// Calls f with the compile-time row count `rows` (1 … Most).
template <class Scalar, int Most = TileSize<Scalar>::rows, class F>
ATTN_INLINE void with_rows(int rows, F&& f) {
  const auto from = [&](auto self, auto candidate) {
    constexpr int R = decltype(candidate)::value;
    if (rows == R) {
      f(candidate);
    } else if constexpr (R > 1) {
      self(self, std::integral_constant<int, R - 1>{});
    }
  };
  from(from, std::integral_constant<int, Most>{});
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
