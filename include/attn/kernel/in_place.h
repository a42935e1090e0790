// attn/kernel/in_place.h: stages 1 and 4 on keys and values where they lie in memory, for a chunk
// of one strip (decoding).
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <utility>

#include "pack.h"
#include "row_sums.h"
#include "dot_products.h"
#include "weighted_sum.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     the scores of dot_products.h and the sums of weighted_sum.h, with the same bits, without
//          packing: panels are worth their stores and loads only where several strips share them.
//          The mask hides no pair of the run; a score of −∞ may.
// PICTURE  scores: W keys × W features are transposed in registers, each column at once multiplied
//          by q[i, c] for all R rows; sums: a row of V is a row of packets as it lies, R × F of
//          them are accumulated at a time
// LIMIT    memory: 2·d scalars a key are read once. W × W of K cost W loads, W·log2 W shuffles, W·R
//          multiply-adds
// TRAFFIC  prefetched a panel ahead row by row: the loads of K jump from row to row, which hardware
//          does not follow (dec4k, one Zen 5 core, AVX-512, of 36 GB/s: packed 16, in place 23,
//          prefetched 36)
// EDGES    features beyond d are zeros; keys beyond the run are zeros (their scores are hidden by
//          hide_beyond)
// NUMERICS chains over features, and over the keys of a run, in order, from +0: those of the
//          register tile

/// Asks for the rows [first, last) of a source.
template <class S, class T>
ATTN_INLINE void prefetch_rows(const Source<T>& source, Index first, Index last, Index features) {
  constexpr Index kLine = 64 / Index(sizeof(T));
  for (Index t = first; t < last; ++t) {
    for (Index c = 0; c < features; c += kLine) S::prefetch(source.token(t) + c);
  }
}

/// acc[i][v] = Σ_c q[i, c] · k[v·W + lane, c], of `held` keys; `ahead`: keys to those read next.
template <class S, int R, int C, class T>
ATTN_INLINE void dot_products(const typename S::Scalar* q, const Source<T>& keys, Index held,
                              Index ahead, Index features,
                              typename S::Packet (&acc)[std::size_t{R}][std::size_t{C}]) {
  using Scalar = typename S::Scalar;
  constexpr Index kGroup = TileSize<Scalar>::depth, kKeys = C * S::width;
  clear<S>(acc);
  const auto at = [](int i, Index c, Index w) {  // where a strip holds feature c + w of row i
    if (S::width < kGroup) w += std::exchange(c, 0);
    return (c + w / kGroup * kGroup) * R + i * kGroup + w % kGroup;
  };
  const Index whole = held == kKeys ? features / S::width * S::width : 0;
  Index asked = 0;
  for (Index c = 0; c < whole; c += S::width) {
    const Index ask = (c + S::width) * kKeys / features;
    prefetch_rows<S>(keys, ahead + asked, ahead + ask, features);
    asked = ask;
    ATTN_UNROLL
    for (int v = 0; v < C; ++v) {
      typename S::Packet columns[S::width];
      ATTN_UNROLL
      for (int w = 0; w < S::width; ++w)
        columns[w] = detail::load_converted<S>(keys.token(v * S::width + w) + c);
      S::transpose(columns);
      ATTN_UNROLL
      for (int w = 0; w < S::width; ++w) {
        ATTN_UNROLL
        for (int i = 0; i < R; ++i) {
          acc[i][v] = S::fmadd(S::set(q[at(i, c, w)]), columns[w], acc[i][v]);
        }
      }
    }
  }
  // What is left: features that fill no packet (transposed all the same), or of fewer keys all
  // features, a packet of them at a time: all its columns are written before the first is read,
  // which has to wait for what was written element by element.
  ATTN_UNROLL
  for (int v = 0; v < C; ++v) {
    const Index there = std::clamp<Index>(held - v * S::width, 0, S::width);
    for (Index c = whole; c < features && there > 0; c += S::width) {
      alignas(64) Scalar columns[S::width][S::width];
      const Index count = std::min<Index>(features - c, S::width);
      if (there == S::width) {
        typename S::Packet rows[S::width];
        for (Index w = 0; w < S::width; ++w)
          rows[w] = detail::load_strided<S>(keys.token(v * S::width + w) + c, 1, count);
        S::transpose(rows);
        for (Index w = 0; w < S::width; ++w) S::store(columns[w], rows[w]);
      } else {
        for (Index w = 0; w < count; ++w) S::store(columns[w], S::set(Scalar(0)));
        for (Index x = 0; x < there; ++x) {
          const T* const key = keys.token(v * S::width + x) + c;
          for (Index w = 0; w < count; ++w) columns[w][x] = Scalar(key[w]);
        }
      }
      for (Index w = 0; w < count; ++w) {
        ATTN_UNROLL
        for (int i = 0; i < R; ++i)
          acc[i][v] = S::fmadd(S::set(q[at(i, 0, c + w)]), S::load(columns[w]), acc[i][v]);
      }
    }
  }
}

template <class S, int R, int C, class T>
ATTN_NOINLINE void score_rows(const typename S::Scalar* q, Source<T> keys, Index begin, Index end,
                              Index features, typename S::Scalar* s, typename S::Scalar* lane_max) {
  using Size = TileSize<typename S::Scalar>;
  constexpr Index kKeys = C * S::width;
  for (Index j = begin; j < end; j += kKeys) {
    typename S::Packet acc[std::size_t{R}][std::size_t{C}];
    const Source<T> from{keys.token(j), keys.token_stride, 1};
    dot_products<S, R, C>(q, from, std::min(end - j, kKeys), Size::panel, features, acc);
    store_rows<S>(acc, s + j, Size::score_stride);
    if (lane_max != nullptr && j + kKeys <= end) raise_lanes<S>(acc, lane_max);
  }
}

/// scores() without panels: of keys [begin, end) of a block, `begin` being the first of a panel.
/// keys.feature_stride is 1.
template <class S, class T>
void scores_in_place(int rows, const typename S::Scalar* q, const Source<T>& keys, Index begin,
                     Index end, Index features, typename S::Scalar* s,
                     typename S::Scalar* lane_max) {
  with_rows<typename S::Scalar, TileSize<typename S::Scalar>::in_place_rows>(rows, [&](auto count) {
    constexpr int R = decltype(count)::value;
    constexpr int C = R * 8 <= detail::kVectorRegisters ? 2 : 1;
    score_rows<S, R, C>(q, keys, begin, end, features, s, lane_max);
  });
  if (end % TileSize<typename S::Scalar>::panel != 0) hide_beyond<S>(rows, end, s, lane_max);
}

/// Packets of values where they lie: features c, c + 1, … of key j of a block. feature_stride is 1.
template <class S, class T>
struct ValuesInPlace {
  Source<T> source;
  Index features;

  ATTN_INLINE typename S::Packet operator()(Index j, Index c) const {
    return detail::load_strided<S>(source.token(j) + c, 1, features - c);
  }
  bool finite(Index j) const {
    FiniteCheck<S> check;
    for (Index c = 0; c < features; c += S::width) check.see((*this)(j, c));
    return check.finite();
  }
};

/// Whether some row is hidden from one of the keys [begin, end) of a block.
/// WHY  this much is asked of every block: a minimum a packet of scores, where a key has d values.
///      (A row of its own, because of NaN, which may stay in a minimum: it then is all that the row
///      gives.)
template <class S>
ATTN_INLINE bool some_hidden(int rows, const typename S::Scalar* s, Index begin, Index end) {
  using Scalar = typename S::Scalar;
  const Index whole = begin + (end - begin) / S::width * S::width;
  const auto zero = S::set(Scalar(0));
  const auto there = S::first_lanes(end - whole);
  auto some = zero;
  for (int i = 0; i < rows; ++i, s += TileSize<Scalar>::score_stride) {
    auto least = zero;
    for (Index j = begin; j < whole; j += S::width) least = S::min(least, S::load(s + j));
    if (whole < end) least = S::min(least, S::select(there, S::load(s + whole), zero));
    some = S::where_less(least, S::set(no_maximum<Scalar>()), S::set(Scalar(1)), some);
  }
  return !detail::equal(S::reduce_max(some), Scalar(0));
}

/// Whether the values of keys [begin, end) that some row is hidden from are finite. Those that all
/// rows see may be anything.
template <class S, class T>
ATTN_NOINLINE bool hidden_values_finite(int rows, const typename S::Scalar* s,
                                        const ValuesInPlace<S, T>& values, Index begin, Index end) {
  using Scalar = typename S::Scalar;
  for (Index j = begin; j < end; j += S::width) {
    auto hidden = S::set(Scalar(0));
    for (int i = 0; i < rows; ++i) {
      const auto score = S::load(s + i * TileSize<Scalar>::score_stride + j);
      hidden = S::where_less(score, S::set(no_maximum<Scalar>()), S::set(Scalar(1)), hidden);
    }
    alignas(64) Scalar lanes[S::width];
    S::store(lanes, hidden);
    for (Index w = 0; w < std::min<Index>(S::width, end - j); ++w) {
      if (!detail::equal(lanes[w], Scalar(0)) && !values.finite(j + w)) return false;
    }
  }
  return true;
}

/// One run of keys [begin, end). `held` features of F packets; `ahead`: features to ask for of the
/// rows read a panel later.
template <class S, int R, int F, class T>
ATTN_NOINLINE void accumulate_rows(const typename S::Scalar* p, Source<T> values, Index begin,
                                   Index end, Index held, Index ahead, bool first, bool last,
                                   BlockSums<S, R, F>& block) {
  using Size = TileSize<typename S::Scalar>;
  typename S::Packet acc[std::size_t{R}][std::size_t{F}];
  clear<S>(acc);
  for (Index j = begin; j < end; ++j) {
    const T* row = values.token(j);
    prefetch_rows<S>(values, j + Size::panel, j + Size::panel + 1, ahead);
    typename S::Packet value[std::size_t{F}];
    ATTN_UNROLL
    for (int x = 0; x < F; ++x) {
      value[x] = held == F * S::width ? detail::load_converted<S>(row + x * S::width)
                                      : detail::load_strided<S>(row, 1, held);
    }
    ATTN_UNROLL
    for (int i = 0; i < R; ++i) {
      const auto weight = S::set(p[i * Size::score_stride + j]);
      ATTN_UNROLL
      for (int x = 0; x < F; ++x) acc[i][x] = S::fmadd(weight, value[x], acc[i][x]);
    }
  }
  block.add(acc, first, last);
}

/// weighted_sum() without panels: over keys [begin, end) of a block. values.feature_stride is 1.
template <class S, class T>
void weighted_sum_in_place(int rows, Index features, const typename S::Scalar* p,
                           const Source<T>& values, Index begin, Index end,
                           const typename S::Scalar* rescale, typename S::Scalar* o,
                           Index o_stride) {
  using Size = TileSize<typename S::Scalar>;
  with_rows<typename S::Scalar, Size::in_place_rows>(rows, [&](auto count) {
    constexpr int R = decltype(count)::value, kMost = detail::kVectorRegisters * 3 / 4;
    constexpr int F = R * 8 <= kMost ? 8 : R * 4 <= kMost ? 4 : R * 2 <= kMost ? 2 : 1;
    const auto accumulate = [&](auto packets, Index c, Index held) {
      constexpr int P = decltype(packets)::value;
      const Source<T> from{values.data + c, values.token_stride, 1};
      // The first pass asks for whole rows; those of the other features then find them in the
      // cache.
      const Index ahead = c == 0 ? features : 0;
      BlockSums<S, R, P> block(rescale, o + c, o_stride);
      for (Index j = begin, last; j < end; j = last) {
        last = std::min(end, (j / Size::sum_run + 1) * Size::sum_run);
        accumulate_rows<S, R, P>(p, from, j, last, held, ahead, j == begin, last == end, block);
      }
    };
    Index c = 0;
    for (; c + F * S::width <= features; c += F * S::width)
      accumulate(std::integral_constant<int, F>(), c, F * S::width);
    for (; c < features; c += S::width)
      accumulate(std::integral_constant<int, 1>(), c, std::min<Index>(features - c, S::width));
  });
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
