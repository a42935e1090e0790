// attn/kernel/online_softmax.h: stage 3, scores become exp(s − m) under the running row maximum m,
// and sums l are kept as lanes.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../base/vector_math.h"
#include "register_tile.h"
#include "row_sums.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// The score of a hidden pair.
template <class Scalar>
inline Scalar hidden_score() {
  return Scalar(-Eigen::NumTraits<Scalar>::infinity());
}

/// Where a row's maximum starts: the neutral element of max over finite scores. Being finite, it
/// needs no special case:
/// −∞ − lowest = −∞, so hidden pairs weigh 0 also in a row that has seen nothing yet, and lowest −
/// m = −∞ or 0 rescales zeros.
template <class Scalar>
inline Scalar no_maximum() {
  return Scalar(Eigen::NumTraits<Scalar>::lowest());
}

/// What stands for the weights of hidden pairs behind stage 3: 0, or hidden_weight().
enum class Hidden { zero, marked };

/// Log-sum-exp out of m and l.
template <class Scalar>
inline Scalar log_sum(const Scalar& m, const Scalar& l) {
  using std::log;
  return detail::equal(l, Scalar(0)) ? hidden_score<Scalar>() : Scalar(m + Scalar(log(l)));
}

// WHAT     for each row i of the strip:  m' = max(m, row maximum of the block),  r = exp(m − m')
//                                        p = exp(s − m') in place of s,          l = r·l + Σ p, one sum for each lane of a panel
// LIMIT    the multiply-adds of exp (base/vector_math.h) and the store of p: 15 operations a
//          packet, 9 cycles on Cascade Lake (AVX2, two ports); 7 of 14 for the two ports of Zen 5
//          (AVX-512), 5.3 cycles, where with d = 64 the two products cost 64
// EDGES    whole packets: lanes of hidden keys hold −∞ and become +0; with Hidden::marked they
//          become hidden_weight() after they have been summed as 0 (see weighted_sum.h)
//          l sums the weights as they are multiplied, rounded to bfloat16 where those are: the
//          weights p / l of a row then add up to 1. What rounding p leaves of a row's output is
//          2⁻⁸ · Σ w|v − o|, less than 2⁻⁸ · Σ w|v| where values have a mean (half as much for
//          values in [0, 2]; nothing where they are alike)
// NUMERICS s − m' first, so that the maximum weighs exactly 1 and a row of one key returns that
//          value row. Each row decides its own r. A lane's sum of the block starts from +0, and l
//          goes on from block to block as in row_sums.h; lanes are reduced once, at the end.
template <class S>
struct OnlineSoftmax {
  using Scalar = typename S::Scalar;
  using Packet = typename S::Packet;
  using Size = TileSize<Scalar>;

  static constexpr int kRescaleSlots = int((Size::rows + S::width - 1) / S::width * S::width);

  /// Advances the maxima of `rows` rows and leaves exp(m − m') of each in rescale[kRescaleSlots],
  /// unless that is null. Memory of m is there for kRescaleSlots rows; what lies behind the rows
  /// stays.
  static void advance(int rows, const Scalar* lane_max, Scalar* m, Scalar* rescale) {
    for (int i = 0; i < rows; i += S::width, lane_max += S::width * S::width) {
      const int count = std::min(rows - i, int(S::width));
      const Packet largest =
          S::max_rows(count, [&](int r) { return S::load(lane_max + r * S::width); });
      const auto there = S::first_lanes(count);
      const Packet stored = S::loadu(m + i), zero = S::set(Scalar(0)),
                   before = S::select(there, stored, zero),
                   next = S::select(there, S::max(before, largest), zero);
      if (rescale != nullptr) S::store(rescale + i, detail::exp_weight<S>(S::sub(before, next)));
      S::storeu(m + i, S::select(there, next, stored));
    }
  }

  /// l = r·l + Σ p and p = exp(s − m) in place, for the rows of a strip over runs of keys of one
  /// block; without r, l starts from 0.
  /// A run's last packet counts whole: lanes beyond its end hold −∞.
  /// As factors that are pairs they lie at the beginning of the row, each behind the scores that
  /// are still to be read.
  template <Hidden As, class Element = Scalar>
  static ATTN_NOINLINE void weigh(int rows, const Scalar* m, const Scalar* rescale, Scalar* s,
                                  Index row_stride, Runs runs, Scalar* lanes) {
    int i = 0;
    if constexpr (As == Hidden::zero) {  // the other one is rare
      constexpr int kRows = kRowsAtOnce<Element>;
      for (; i + kRows <= rows; i += kRows)
        weigh_rows<kRows, As, Element>(i, m, rescale, s, row_stride, runs, lanes);
    }
    for (; i < rows; ++i) weigh_rows<1, As, Element>(i, m, rescale, s, row_stride, runs, lanes);
  }
  /// The same of R rows, hidden pairs being zeros and l starting from 0, as part of the caller.
  template <int R>
  static ATTN_INLINE void weigh_here(const Scalar* m, Scalar* s, Index row_stride, Runs runs,
                                     Scalar* lanes) {
    constexpr int most = kRowsAtOnce<Scalar>, together = R / most * most;
    for (int i = 0; i < together; i += most)
      weigh_rows<most, Hidden::zero, Scalar>(i, m, nullptr, s, row_stride, runs, lanes);
    if constexpr (together < R) {
      weigh_rows<R - together, Hidden::zero, Scalar>(together, m, nullptr, s, row_stride, runs,
                                                     lanes);
    }
  }

 private:
  /// Four exponentials are in flight: of four rows, or of two rows and two packets.
  /// WHY  of rows rather than of one row's packets: short runs have few, and their constants come
  ///      from memory each time. Of pairs two packets, of which one makes a packet of factors
  template <class Element>
  static constexpr int kRowsAtOnce = S::width == 1                      ? 1
                                     : !std::is_same_v<Element, Scalar> ? 2
                                     : detail::kVectorRegisters >= 32   ? 4
                                                                        : 2;
  template <class Element>
  static constexpr int kPacketsAtOnce = kRowsAtOnce<Element> == 4 ? 1 : Size::packets;

  /// weigh() of rows i, …, i + R − 1.
  template <int R, Hidden As, class Element>
  static ATTN_INLINE void weigh_rows(int i, const Scalar* m, const Scalar* rescale, Scalar* s,
                                     Index row_stride, Runs runs, Scalar* lanes) {
    s += i * row_stride;
    Packet maximum[std::size_t{R}];
    Packet sum[std::size_t{R}][std::size_t{Size::packets}];
    ATTN_UNROLL
    for (int r = 0; r < R; ++r) maximum[r] = S::set(m[i + r]);
    clear<S>(sum);
    if constexpr (Size::lane_run == Size::max_key_block) {
      weigh_run<R, As, Element>(maximum, s, row_stride, runs, sum);
    } else {
      SumRuns<Scalar, Size::lane_run> run(runs);
      do {
        Packet part[std::size_t{R}][std::size_t{Size::packets}];
        clear<S>(part);
        weigh_run<R, As, Element>(maximum, s, row_stride, run.next(), part);
        ATTN_UNROLL
        for (int r = 0; r < R; ++r) {
          ATTN_UNROLL
          for (int v = 0; v < Size::packets; ++v) sum[r][v] = S::add(sum[r][v], part[r][v]);
        }
      } while (!run.last());
    }
    rescale_rows<S>(sum, rescale == nullptr ? nullptr : rescale + i, lanes + i * Size::panel,
                    Size::panel);
  }

  /// The weights of R rows over runs of keys, and their sum by lanes.
  template <int R, Hidden As, class Element>
  static ATTN_INLINE void weigh_run(const Packet (&maximum)[std::size_t{R}], Scalar* s,
                                    Index row_stride, Runs runs,
                                    Packet (&sum)[std::size_t{R}][std::size_t{Size::packets}]) {
    constexpr int kLast = Size::packets - 1, kPackets = kPacketsAtOnce<Element>;
    for (int n = 0; n < runs.count; ++n) {
      Index j = runs.first[n].begin;
      const Index end = runs.first[n].end;
      // A panel whose last packet holds a key is a whole one.
      for (; j + kLast * S::width < end; j += Size::panel) {
        ATTN_UNROLL
        for (int v = 0; v < Size::packets; v += kPackets)
          exponentiate<R, kPackets, As, Element>(maximum, s, j, row_stride, sum, v);
      }
      ATTN_UNROLL
      for (int v = 0; v < kLast; ++v) {
        if (j + v * S::width < end)
          exponentiate<R, 1, As, Element>(maximum, s, j, row_stride, sum, v);
      }
    }
  }

  /// Packets first, …, first + C − 1 of the panel of keys from j on, of R rows at s.
  template <int R, int C, Hidden As, class Element>
  static ATTN_INLINE void exponentiate(const Packet (&m)[std::size_t{R}], Scalar* s, Index j,
                                       Index row_stride,
                                       Packet (&sum)[std::size_t{R}][std::size_t{Size::packets}],
                                       int first) {
    using F = Factors<S, Element>;
    Packet p[std::size_t{R}][std::size_t{C}];
    ATTN_UNROLL
    for (int r = 0; r < R; ++r) {
      ATTN_UNROLL
      for (int v = 0; v < C; ++v) {
        const Packet score = S::load(s + r * row_stride + j + (first + v) * S::width);
        p[r][v] = detail::exp_weight<S>(S::sub(score, m[r]));
      }
    }
    ATTN_UNROLL
    for (int r = 0; r < R; ++r) {
      Scalar* const row = s + r * row_stride;
      const Index at = j + first * S::width;
      if constexpr (As == Hidden::marked) {
        Packet marked[std::size_t{C}];  // before weights take the place of scores
        for (int v = 0; v < C; ++v) {
          const auto hidden =
              S::less(S::load(row + at + v * S::width), S::set(no_maximum<Scalar>()));
          marked[v] = S::select(hidden, S::set(hidden_weight<Scalar>()), p[r][v]);
        }
        F::put_weights(row, at, p[r], sum[r] + first);
        for (int v = 0; v < C; ++v) F::store_weights(row, at + v * S::width, marked[v]);
      } else {
        F::put_weights(row, at, p[r], sum[r] + first);
      }
    }
  }
};

/// The sums of the lanes of up to W rows, one row a lane. The order in which a row's are added does
/// not depend on the others.
template <class S>
ATTN_INLINE typename S::Packet reduce_lanes(int rows, const typename S::Scalar* lanes) {
  using Size = TileSize<typename S::Scalar>;
  return S::add_rows(rows, [lanes](int i) {
    auto sum = S::load(lanes + i * Size::panel);
    ATTN_UNROLL
    for (int v = 1; v < Size::packets; ++v)
      sum = S::add(sum, S::load(lanes + i * Size::panel + v * S::width));
    return sum;
  });
}
/// The sum of one row's lanes.
template <class S>
typename S::Scalar reduce_lanes(const typename S::Scalar* lanes) {
  alignas(64) typename S::Scalar sum[S::width];
  S::store(sum, reduce_lanes<S>(1, lanes));
  return sum[0];
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
