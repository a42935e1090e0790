// attn/kernel/stored_panels.h: the product of a strip of rows and panels that come from memory, in
// whatever scalar they are stored.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "register_tile.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     acc[i][u·C + v] += Σ_t a(i, t) · b_u[t, v] for U panels of half, bfloat16, int8 or the
//          scalar itself, widened in registers on the way: a cache's keys and values (stored_keys.h),
//          weights (projection.h)
// PICTURE  one row is two chains a panel, four cycles a step: U panels side by side give U times
//          the chains. What is asked for meanwhile lies in four streams, whatever U:
//            U = 1   panel 0 1 2 3 of a block go by one after the other, and meanwhile a quarter
//                    after the other of panels 0 to 3 together of the next
// LIMIT    memory: each number is read once. Loops alone over such panels reach what the best of
//          eight ways only to read does, with one or two rows: so they do not wait for anything
//          else. Floats on dec4k 0.95 to 1.0, on gqa4k 0.82 (clang 0.67), where the multiply-adds
//          of four rows overlap reading only in part (Zen 4, AVX-512). (Compilers keep addresses
//          in registers: strides that are constants save nothing. 2.6 instructions a line with
//          one of them asking for each, 2.1 with half of them)
// TRAFFIC  while a block goes by, the one that is read next is asked for: a block of the head, or
//          the next head's; the next run of four panels of weights
// EDGES    none: panels and runs of steps are whole

/// Panels of a block, `apart` numbers from one to the next; `next`: the block that is read next,
/// whose panels lie alike. Each is `length` steps long.
/// \tparam OneOf  of so many lines of floats one is asked for, where one or two rows pass
template <class S, class T, int OneOf = 2>
struct StoredPanels {
  using Scalar = typename S::Scalar;
  using Size = TileSize<Scalar>;
  const T *data, *next;
  Index apart, count, length;

  static constexpr int rows = Size::in_place_rows;
  /// Packets of whole panels for r rows.
  /// WHY  eight chains hide the latency of the multiply-adds. The narrower the numbers, the more of
  ///      them memory brings a cycle: as many panels as three quarters of the registers hold
  static constexpr int packets(int r) {
    constexpr int kMost = kNarrow ? detail::kVectorRegisters * 3 / 4 : 8;
    int panels = followed(r) ? 1 : 4;
    while (panels > 1 && r * panels * Size::packets > kMost) panels /= 2;
    return panels * Size::packets;
  }
  static constexpr int rest(int) { return Size::packets; }
  static constexpr Index least(int packets) { return packets * Index(Size::width); }

  /// acc[i][u·packets + v] += Σ_t a(i, t) · b_u[t, v] over steps of panels from `panel` on; see
  /// multiply_accumulate.
  template <std::size_t R, std::size_t C, class Left>
  ATTN_INLINE void multiply_accumulate(typename S::Packet (&acc)[R][C], Left a, Index panel,
                                       DepthRange steps) const {
    constexpr int kPackets = Size::packets, U = int(C) / kPackets,
                  kLines = !kNarrow && R <= 2 ? OneOf : 1;
    constexpr Index kGroup = Index(Size::depth) * Size::panel;
    a = a.from(steps.begin);
    const T* b = data + panel * apart + steps.begin * Size::panel;
    auto ahead = streams_ahead<U>(panel, steps.begin);
    for (Index t = steps.begin; t < steps.end; t += Size::depth) {
      ahead.template ask<kLines>();
      ATTN_UNROLL
      for (int step = 0; step < Size::depth; ++step) {
        const auto column = [&](int n) {
          return detail::load_converted<S>(b + n / kPackets * apart + step * Size::panel +
                                           n % kPackets * S::width);
        };
        if constexpr (R > C) {  // what is fewer is kept in registers
          typename S::Packet y[C];
          ATTN_UNROLL
          for (int n = 0; n < int(C); ++n) y[n] = column(n);
          ATTN_UNROLL
          for (int i = 0; i < int(R); ++i) {
            const typename S::Packet x = S::set(a(i, step));
            ATTN_UNROLL
            for (int n = 0; n < int(C); ++n) acc[i][n] = S::fmadd(x, y[n], acc[i][n]);
          }
        } else {
          typename S::Packet x[R];
          ATTN_UNROLL
          for (int i = 0; i < int(R); ++i) x[i] = S::set(a(i, step));
          ATTN_UNROLL
          for (int n = 0; n < int(C); ++n) {
            const typename S::Packet y = column(n);
            ATTN_UNROLL
            for (int i = 0; i < int(R); ++i) acc[i][n] = S::fmadd(x[i], y, acc[i][n]);
          }
        }
      }
      a = a.from(Size::depth);
      b += kGroup;
    }
  }

 private:
  /// Lines to ask for while U panels go by.
  template <int U>
  struct Ahead {
    static constexpr Index kLine = std::max<Index>(64 / Index(sizeof(T)), 1),
                           kGroup = U * Index(Size::depth) * Size::panel;
    static constexpr int streams = int(std::clamp<Index>(kGroup / kLine, 1, 4));
    static constexpr Index kEach = kGroup / streams;
    const T* stream[std::size_t{streams}];
    Index step;

    /// One of so many lines of each stream, of those behind a depth step.
    /// WHY  in a cache hardware brings the other line of a pair, and so what is asked for waits for
    ///      half as much. (Emerald Rapids: dec4k 8.4 to 8.8 ms, and 10 to 11 with each line asked
    ///      for; of weights, whose panels are pages long, each: linear_decode 0.82 to 0.85, not
    ///      0.72.) Of the bandwidth of reading (Zen 4, AVX-512, g++): dec4k 0.91 → 0.96, and in
    ///      loops alone with two rows 0.87 → 0.96; with four 0.91 → 0.86
    template <int Lines>
    ATTN_INLINE void ask() {
      ATTN_UNROLL
      for (int n = 0; n < streams; ++n) {
        ATTN_UNROLL
        for (Index line = 0; line < kEach; line += Lines * kLine) S::prefetch_far(stream[n] + line);
        stream[n] += step;
      }
    }
  };
  /// Of four panels together, or of two or one where no more are left; narrow numbers line after
  /// line, as the panels lie.
  /// WHY  a whole block ahead, into L2: a few KiB ahead in each stream leave the beginnings of
  ///      panels unasked for, a quarter to half of all where a panel is 4 KiB, and the change from
  ///      keys to values. Four: as many streams as memory is read in fastest, from U panels alone
  ///      dec4k 0.80 → 0.91, gqa4k 0.74 → 0.80 (Zen 4, AVX-512, g++). Narrow numbers, whose panels
  ///      take a page or two, are no faster so
  template <int U>
  ATTN_INLINE Ahead<U> streams_ahead(Index panel, Index step) const {
    using Lines = Ahead<U>;
    int shift =
        kNarrow ? 0 : Lines::streams >> 1;  // log2 of the panels that are asked for together
    Index first = panel >> shift << shift;
    while (first + (Index(1) << shift) > count) {
      --shift;
      if (panel >= first + (Index(1) << shift)) first += Index(1) << shift;
    }
    const Index passed = ((panel - first) * length + step * U) >> shift;
    const T* const from = next + first * apart + passed * Size::panel;
    Lines ahead;
    ATTN_UNROLL
    for (int n = 0; n < Lines::streams; ++n)
      ahead.stream[n] = from + (n & ((1 << shift) - 1)) * apart + (n >> shift) * Lines::kEach;
    ahead.step = Lines::kGroup >> shift;
    return ahead;
  }

  static constexpr bool kNarrow = sizeof(T) < sizeof(Scalar);
  /// One row goes over one panel, a line a step, so that hardware can run ahead of it too.
  /// WHY  where hardware runs far ahead of a single stream it alone takes bfloat16's dec4k from
  ///      0.70 to 0.80 of the bandwidth (Zen 4); where it does not (Emerald Rapids), a line that
  ///      nobody has asked for costs more: 3.5 ms, and 2.1 to 2.3 asked for, with one panel or
  ///      four (float 4.2; g++). In L2 one chain a packet takes 13 % longer. Floats, two lines a
  ///      step, outrun it: 0.74 for 0.86 (Zen 4)
  static constexpr bool followed(int r) {
    return kNarrow && r == 1 && std::size_t(Size::panel) * sizeof(T) == 64;
  }
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
