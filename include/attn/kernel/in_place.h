// attn/kernel/in_place.h: keys and values where they lie in memory, as few rows attend them.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "few_rows.h"
#include "pack.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     the operands of few_rows.h where tokens are rows in memory, features side by side.
//          The mask hides no pair of the run; a score of −∞ may.
// PICTURE  scores: W keys × W features are transposed in registers, each column at once multiplied
//          by q[i, c] for all R rows; sums: a row of V is a row of packets as it lies, R × C of
//          them are accumulated at a time
// LIMIT    memory: 2·d scalars a key are read once. W × W of K cost W loads, W·log2 W shuffles, W·R
//          multiply-adds: 4 cycles a line of 64 bytes, where memory takes 8.5
// TRAFFIC  asked for row by row, as the loads of K jump from row to row, which hardware does not
//          follow; TileSize::in_place_ahead keys ahead, into L2
// EDGES    the last features of a row that is no whole number of packets: the packet that ends
//          with the row, of which the columns before are not used; of rows shorter than a packet,
//          and of fewer keys than a tile, through memory

/// Asks for the rows [first, last) of those that will be read TileSize::in_place_ahead keys later.
template <class S, class T>
ATTN_INLINE void ask_for_rows(const Source<T>& source, Index first, Index last, Index features) {
  constexpr Index kLine = 64 / Index(sizeof(T));
  constexpr Index kAhead = TileSize<typename S::Scalar>::in_place_ahead;
  for (Index t = first + kAhead; t < last + kAhead; ++t) {
    for (Index c = 0; c < features; c += kLine) S::prefetch_far(source.token(t) + c);
  }
}

/// The first `count` features of `there` keys, a packet of keys for each feature; lanes of others
/// are zeros.
/// WHY  not inlined: compiled once, not for each number of rows (0.1 to 0.5 s a call)
template <class S, class T>
ATTN_NOINLINE void write_columns(const T* keys, Index stride, Index there, Index count,
                                 typename S::Scalar (&columns)[S::width][S::width]) {
  using Scalar = typename S::Scalar;
  if (there == S::width) {
    typename S::Packet rows[S::width];
    for (Index w = 0; w < S::width; ++w)
      rows[w] = detail::load_strided<S>(keys + w * stride, 1, count);
    S::transpose(rows);
    for (Index w = 0; w < S::width; ++w) S::store(columns[w], rows[w]);
  } else {
    for (Index w = 0; w < count; ++w) S::store(columns[w], S::set(Scalar(0)));
    for (Index x = 0; x < there; ++x) {
      for (Index w = 0; w < count; ++w) columns[w][x] = Scalar(keys[x * stride + w]);
    }
  }
}

/// Keys from the first of a block on; features lie side by side.
template <class S, class T>
struct KeysInPlace {
  using Packet = typename S::Packet;
  using Size = TileSize<typename S::Scalar>;
  Source<T> source;
  Index features;

  /// WHY  one: two make tiles of 16 KiB at d = 128, half an L1 (dec4k and gqa4k 2 and 25 % slower,
  ///      keys in L2 10 %; Zen 4, g++)
  static constexpr int packets(int) { return 1; }
  static constexpr int rest(int) { return 1; }

  template <std::size_t R, std::size_t C, class Queries>
  ATTN_INLINE void add(Packet (&acc)[R][C], const Queries& q, Index j, Index held) const {
    constexpr Index kKeys = Index(C) * S::width;
    const Source<T> keys{source.token(j), source.token_stride, 1};
    const Index whole = held == kKeys ? features / S::width * S::width : 0;
    Index asked = 0;
    for (Index c = 0; c < whole; c += S::width) {
      const Index ask = (c + S::width) * kKeys / features;
      ask_for_rows<S>(keys, asked, ask, features);
      asked = ask;
      ATTN_UNROLL
      for (int v = 0; v < int(C); ++v) {
        Packet columns[S::width];
        load_columns(keys, v, c, columns);
        ATTN_UNROLL
        for (int w = 0; w < S::width; ++w) {
          ATTN_UNROLL
          for (int i = 0; i < int(R); ++i)
            acc[i][v] = S::fmadd(S::set(element(q, i, c, w)), columns[w], acc[i][v]);
        }
      }
    }
    if (whole == features) return;
    if (whole > 0) {
      add_last(acc, q, keys, features - S::width, S::width - (features - whole));
    } else {
      add_rest(acc, q, keys, held);
    }
  }

 private:
  /// Element (i, c + w) of the queries; c is a multiple of the packet.
  template <class Queries>
  static ATTN_INLINE const typename S::Scalar& element(const Queries& q, Index i, Index c,
                                                       Index w) {
    if constexpr (S::width % Size::depth == 0) {
      return q.from(c)(i, w);
    } else {
      return q(i, c + w);
    }
  }

  /// Packet v of keys, features c, c + 1, …: a packet of keys for each.
  static ATTN_INLINE void load_columns(const Source<T>& keys, int v, Index c,
                                       Packet (&columns)[S::width]) {
    ATTN_UNROLL
    for (int w = 0; w < S::width; ++w)
      columns[w] = detail::load_converted<S>(keys.token(v * S::width + w) + c);
    S::transpose(columns);
  }
  /// The last features, which fill no packet: of the one that begins at c and ends with the row,
  /// its columns from `first` on.
  template <std::size_t R, std::size_t C, class Queries>
  ATTN_INLINE void add_last(Packet (&acc)[R][C], const Queries& q, const Source<T>& keys, Index c,
                            Index first) const {
    ATTN_UNROLL
    for (int v = 0; v < int(C); ++v) {
      Packet columns[S::width];
      load_columns(keys, v, c, columns);
      ATTN_UNROLL
      for (int w = 1; w < S::width; ++w) {
        if (w < first) continue;
        ATTN_UNROLL
        for (int i = 0; i < int(R); ++i)
          acc[i][v] = S::fmadd(S::set(q(i, c + w)), columns[w], acc[i][v]);
      }
    }
  }

  /// Of rows shorter than a packet, or of fewer keys, all features, a packet of them at a time: all
  /// its columns are written before the first is read, which has to wait for what was written
  /// element by element.
  template <std::size_t R, std::size_t C, class Queries>
  ATTN_INLINE void add_rest(Packet (&acc)[R][C], const Queries& q, const Source<T>& keys,
                            Index held) const {
    ATTN_UNROLL
    for (int v = 0; v < int(C); ++v) {
      const Index there = std::clamp<Index>(held - v * S::width, 0, S::width);
      for (Index c = 0; c < features && there > 0; c += S::width) {
        alignas(64) typename S::Scalar columns[S::width][S::width];
        const Index count = std::min<Index>(features - c, S::width);
        write_columns<S>(keys.token(v * S::width) + c, keys.token_stride, there, count, columns);
        for (Index w = 0; w < count; ++w) {
          ATTN_UNROLL
          for (int i = 0; i < int(R); ++i)
            acc[i][v] = S::fmadd(S::set(q(i, c + w)), S::load(columns[w]), acc[i][v]);
        }
      }
    }
  }
};

/// Packets of values where they lie: features c, c + 1, … of key j of a block. feature_stride is 1.
template <class S, class T>
struct ValuesInPlace {
  using Packet = typename S::Packet;
  Source<T> source;
  Index features;

  static constexpr int packets(int rows) {
    constexpr int kMost = detail::kVectorRegisters * 3 / 4;
    return rows * 8 <= kMost ? 8 : rows * 4 <= kMost ? 4 : rows * 2 <= kMost ? 2 : 1;
  }
  static constexpr int rest(int) { return 1; }
  Index width() const { return features; }

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
    // The first features ask for whole rows; the others then find them in the cache.
    const Index ahead = c == 0 ? features : 0;
    for (Index j = pieces.first->begin; j < pieces.first->end; ++j) {
      const T* const row = source.token(j) + c;
      ask_for_rows<S>(source, j, j + 1, ahead);
      Packet value[C];
      if constexpr (C == 1) {  // the features that are left may fill no packet
        value[0] = detail::load_strided<S>(row, 1, held);
      } else {
        ATTN_UNROLL
        for (int x = 0; x < int(C); ++x) value[x] = detail::load_converted<S>(row + x * S::width);
      }
      ATTN_UNROLL
      for (int i = 0; i < int(R); ++i) {
        const auto weight = S::set(p.data[i * Size::score_stride + j]);
        ATTN_UNROLL
        for (int x = 0; x < int(C); ++x) acc[i][x] = S::fmadd(weight, value[x], acc[i][x]);
      }
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
