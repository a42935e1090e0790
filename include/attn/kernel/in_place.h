// attn/kernel/in_place.h: values where they lie in memory, as few rows sum them.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "few_rows.h"
#include "keys_in_place.h"
#include "pack.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     stage 4 of few_rows.h where tokens are rows in memory, features side by side: a row of V
//          is a row of packets as it lies, R × C of them are accumulated at a time. The mask hides
//          no pair of the run; a score of −∞ may
// LIMIT    memory, one line after the other: what hardware follows best, so that nothing is asked
//          for here but, with the last keys, what is read next
// WHY      two rows at a time, with the packets of 128 features: four rows of half as many go
//          through the memory of a run twice, in pieces

/// Packets of values where they lie: features c, c + 1, … of key j of a block. feature_stride is 1.
template <class S, class T>
struct ValuesInPlace {
  using Packet = typename S::Packet;
  Source<T> source;
  Index features;
  RowsAhead<S> then;  ///< read behind them
  Index end;          ///< of the keys

  static constexpr int rows = std::min(TileSize<typename S::Scalar>::in_place_rows, 2);
  static constexpr int packets(int) { return detail::kVectorRegisters >= 32 ? 8 : 4; }
  static constexpr int rest(int) { return 1; }
  /// Sums have room for whole panels: of four packets or more the last may stay empty.
  static constexpr Index least(int packets) {
    return (packets >= 4 ? packets - 2 : packets - 1) * Index(S::width) + 1;
  }
  Index width() const { return features; }
  /// The same where what is read next is asked for already.
  ValuesInPlace asked() const {
    ValuesInPlace values = *this;
    values.then.bytes = 0;
    return values;
  }

  ATTN_INLINE Packet operator()(Index j, Index c) const {
    return detail::load_strided<S>(source.token(j) + c, 1, features - c);
  }
  bool finite(Index j) const {
    FiniteCheck<S> check;
    for (Index c = 0; c < features; c += S::width) check.see((*this)(j, c));
    return check.finite();
  }
  template <std::size_t R, std::size_t C, class Weights>
  ATTN_INLINE void add(Packet (&acc)[R][C], const Weights& p, Index c, Runs pieces) const {
    using Size = TileSize<typename S::Scalar>;
    const Index held = features - c;
    const auto sum = [&](const auto& load) {
      // Their own, in registers: clang stores what others know the address of in each turn.
      Packet sums[R][C];
      copy(acc, sums);
      const Index asks = c == 0 ? end - Size::in_place_ahead : end;
      for (Index j = pieces.first->begin; j < pieces.first->end; ++j) {
        if (j >= asks) then.ask(j - asks);
        const T* const row = source.token(j) + c;
        Packet value[C];
        ATTN_UNROLL
        for (int x = 0; x < int(C); ++x) value[x] = load(row, Index(x) * S::width);
        ATTN_UNROLL
        for (int i = 0; i < int(R); ++i) {
          const auto weight = S::set(p.data[i * Size::score_stride + j]);
          ATTN_UNROLL
          for (int x = 0; x < int(C); ++x) sums[i][x] = S::fmadd(weight, value[x], sums[i][x]);
        }
      }
      copy(sums, acc);
    };
    if (held >= Index(C) * S::width) {
      sum([](const T* row, Index x) { return detail::load_converted<S>(row + x); });
    } else {
      sum([held](const T* row, Index x) { return detail::load_strided<S>(row + x, 1, held - x); });
    }
  }

 private:
  template <std::size_t R, std::size_t C>
  static ATTN_INLINE void copy(const Packet (&from)[R][C], Packet (&to)[R][C]) {
    ATTN_UNROLL
    for (int i = 0; i < int(R); ++i) {
      ATTN_UNROLL
      for (int x = 0; x < int(C); ++x) to[i][x] = from[i][x];
    }
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

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
