// attn/kernel/online_softmax.h: stage 3, scores become exp(s − m) under the running row maximum m, and sums l are kept as lanes.
// SPDX-License-Identifier: MIT
#pragma once

#include "../detail/vector_math.h"
#include "register_tile.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// The score of a hidden pair.
template <class Scalar>
inline Scalar hidden_score() {
  return Scalar(-Eigen::NumTraits<Scalar>::infinity());
}

/// A weight that is no weight: the pair is hidden. Only written where a block of V holds a value that is not finite.
template <class Scalar>
inline Scalar hidden_weight() {
  return Scalar(-1);
}

/// Where a row's maximum starts: the neutral element of max over finite scores. Being finite, it needs no special case:
/// −∞ − lowest = −∞, so hidden pairs weigh 0 also in a row that has seen nothing yet, and lowest − m = −∞ or 0 rescales zeros.
template <class Scalar>
inline Scalar no_maximum() {
  return Scalar(Eigen::NumTraits<Scalar>::lowest());
}

// WHAT     for each row i of the strip:  m' = max(m, row maximum of the block),  r = exp(m − m')
//                                        p = exp(s − m') in place of s,          l = r·l + Σ p, one sum for each lane of a panel
// LIMIT    the multiply-adds of exp (vector_math.h) and the store of p: 15 operations a packet, 9 cycles on Cascade Lake (AVX2, two
//          ports); 7 of 14 for the two ports of Zen 5 (AVX-512), 5.3 cycles, where with d = 64 the two products cost 64
// EDGES    whole packets: lanes of hidden keys hold −∞ and become +0. With MarkHidden they become hidden_weight() after they
//          have been summed as 0 (see weighted_sum.h).
// NUMERICS s − m' first, so that the maximum weighs exactly 1 and a row of one key returns that value row. Each row decides its
//          own r. r·l is rounded by itself before p is added (a fused step would depend on which panels were visited). lane sums
//          are reduced once, at the end.
template <class S>
struct OnlineSoftmax {
  using Scalar = typename S::Scalar;
  using Packet = typename S::Packet;
  using Size = TileSize<Scalar>;

  static constexpr int kRescaleSlots = int((Size::rows + S::width - 1) / S::width * S::width);
  /// Packets of one pass over a row: two panels, so that four exponentials are in flight (the chain of one is 12 deep).
  static constexpr int kBatch = 2 * Size::packets;

  /// Advances the maxima of `rows` rows and leaves exp(m − m') of each in rescale[kRescaleSlots].
  static void advance(int rows, const Scalar* lane_max, Scalar* m, Scalar* rescale) {
    for (int i = 0; i < kRescaleSlots; ++i) rescale[i] = Scalar(0);
    for (int i = 0; i < rows; ++i) {
      const Scalar largest = S::reduce_max(S::load(lane_max + i * S::width));
      const Scalar next = m[i] < largest ? largest : m[i];
      rescale[i] = m[i] - next;
      m[i] = next;
    }
    for (int i = 0; i < kRescaleSlots; i += S::width) {
      S::store(rescale + i, detail::exp_nonpositive<S>(S::load(rescale + i)));
    }
  }

  /// l = r·l + Σ p and p = exp(s − m) in place, for one row over runs of keys. A run's last packet counts whole: lanes beyond
  /// its end hold −∞.
  template <bool MarkHidden>
  static ATTN_INLINE void weigh_row(Scalar maximum, Scalar rescale, Scalar* s,
                                    const DepthRange* runs, int run_count, Scalar* lanes) {
    const Packet m = S::set(maximum), r = S::set(rescale);
    Packet sum[Size::packets];
    ATTN_UNROLL
    for (int v = 0; v < Size::packets; ++v) sum[v] = S::mul(S::load(lanes + v * S::width), r);
    for (int n = 0; n < run_count; ++n) {
      Index j = runs[n].begin;
      for (; j + kBatch * S::width <= runs[n].end; j += kBatch * S::width)
        exponentiate<kBatch, MarkHidden>(m, s + j, sum);
      for (; j + Size::panel <= runs[n].end; j += Size::panel)
        exponentiate<Size::packets, MarkHidden>(m, s + j, sum);
      ATTN_UNROLL
      for (int v = 0; v < Size::packets; ++v) {
        if (j < runs[n].end) exponentiate<1, MarkHidden>(m, s + j, sum, v);
        j += S::width;
      }
    }
    ATTN_UNROLL
    for (int v = 0; v < Size::packets; ++v) S::store(lanes + v * S::width, sum[v]);
  }

  /// weigh_row for the rows of a strip.
  template <bool MarkHidden>
  static ATTN_NOINLINE void weigh(int rows, const Scalar* maximum, const Scalar* rescale, Scalar* s,
                                  Index row_stride, const DepthRange* runs, int run_count,
                                  Scalar* lanes) {
    for (int i = 0; i < rows; ++i) {
      weigh_row<MarkHidden>(maximum[i], rescale[i], s + i * row_stride, runs, run_count,
                            lanes + i * Size::panel);
    }
  }

 private:
  template <int N, bool MarkHidden>
  static ATTN_INLINE void exponentiate(const Packet& m, Scalar* s, Packet (&sum)[Size::packets],
                                       int first_sum = 0) {
    Packet p[N];
    ATTN_UNROLL
    for (int v = 0; v < N; ++v)
      p[v] = detail::exp_nonpositive<S>(S::sub(S::load(s + v * S::width), m));
    ATTN_UNROLL
    for (int v = 0; v < N; ++v) {
      Packet& lanes = sum[(first_sum + v) % Size::packets];
      lanes = S::add(lanes, p[v]);
      if constexpr (MarkHidden) {
        const auto hidden = S::less(S::load(s + v * S::width), S::set(no_maximum<Scalar>()));
        p[v] = S::select(hidden, S::set(hidden_weight<Scalar>()), p[v]);
      }
      S::store(s + v * S::width, p[v]);
    }
  }
};

/// The sum of a row's lanes, in one fixed order.
template <class S>
typename S::Scalar reduce_lanes(const typename S::Scalar* lanes) {
  auto sum = S::load(lanes);
  for (int v = 1; v < TileSize<typename S::Scalar>::packets; ++v)
    sum = S::add(sum, S::load(lanes + v * S::width));
  return S::reduce_add(sum);
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
