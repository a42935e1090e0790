// attn/kernel/keys_in_place.h: scores of few rows against keys where they lie in memory.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "few_rows.h"
#include "pack.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     stage 1 of few_rows.h where tokens are rows in memory, features side by side
// PICTURE  keys  |— lane 0 —|— lane 1 —| … |— lane W−1 —|rest    lanes are W streams of keys, a tile
//                 ●→         ●→             ●→                   takes the next key of each
//          W keys × W features are transposed in registers, each column at once multiplied by
//          q[i, c] for all R rows. The scores of a tile go to their W places one by one
// LIMIT    memory: W × W of K cost W loads, W·log2 W shuffles, W·R multiply-adds: 4 cycles a line
//          of 64 bytes, where memory takes 8.5. A core's own loads and prefetches wait for 24 lines
//          at most, 17 GB/s at 90 ns; what is more (28 in long streams of loads) hardware asks for
//          ahead of streams that it follows. Keys and values in turns, 128 KiB each, that do
//          nothing but read reach 0.90 of that in order and 0.86 in this order, tiles of
//          neighbours 0.51; with the arithmetic 0.78 to 0.89 in this order, 0.42 in tiles of
//          neighbours, 0.78 with a prefetch for each line of those (Zen 4, one core, g++)
// WHY      no order but a line of each row in turn lets W rows be transposed in registers. Rows
//          copied in order to L1 first, or touched there a tile or a block ahead, are no faster
//          than neighbours (0.51 to 0.68): loads that move through L1 drive the streams out of
//          what hardware remembers, where loads of the same addresses over and over do not
// TRAFFIC  asked for TileSize::in_place_ahead keys ahead, into L2; at the end of the streams, what
//          is read next
// EDGES    the last features of a row that is no whole number of packets: the packet that ends
//          with the row, of which the columns before are not used; of rows shorter than a packet,
//          and of the last keys, fewer than W, through memory
// NUMERICS each score is one chain over the features, whichever tile it is in; maxima are taken of
//          packets of neighbours, in their order

/// So many of `keys` keys lie in each of the streams that lanes read; as many as fill whole tiles
/// of neighbours, and the rest, are left.
/// WHY  an odd number: with 256 keys of 64 or 128 floats all streams would share one set of L1
template <class S>
constexpr Index stream_keys(Index keys) {
  const Index tiles = keys / S::width;
  return tiles % 2 == 0 ? std::max<Index>(tiles - 1, 0) : tiles;
}

/// Rows in memory that are likely read next, of any type, to ask for: one after the other, or as
/// streams of keys.
template <class S>
struct RowsAhead {
  const char* data;
  Index lane_stride, tile_stride;  ///< in bytes: of width rows that are read together, and of those
  Index bytes, tiles;

  template <class T>
  static RowsAhead in_order(const Source<T>& rows, Index features, Index count) {
    const Index stride = rows.token_stride * Index(sizeof(T));
    return of(rows, stride, stride * S::width, features, count / S::width);
  }
  template <class T>
  static RowsAhead in_streams(const Source<T>& rows, Index features, Index count) {
    const Index stride = rows.token_stride * Index(sizeof(T)), length = stream_keys<S>(count);
    return of(rows, stride * std::max<Index>(length, 1), stride, features, length);
  }
  /// The first row of a tile; behind the last one its own.
  const char* tile(Index t) const {
    return data + std::max<Index>(std::min(t, tiles - 1), 0) * tile_stride;
  }
  ATTN_INLINE void ask(Index n) const {
    const auto at = std::size_t(n);
    const char* const from = tile(Index(at / S::width)) + Index(at % S::width) * lane_stride;
    for (Index line = 0; line < bytes; line += 64) S::prefetch_far(from + line);
  }

 private:
  template <class T>
  static RowsAhead of(const Source<T>& rows, Index lanes, Index next, Index features, Index tiles) {
    return {reinterpret_cast<const char*>(rows.data), lanes, next, features * Index(sizeof(T)),
            tiles};
  }
};

/// One key for each lane.
template <class T>
struct KeyTile {
  const T* data;
  Index lane_stride;
  const char* ahead;  ///< rows to ask for meanwhile
  Index ahead_stride;

  ATTN_INLINE const T* row(Index lane) const { return data + lane * lane_stride; }
};

/// The features [c, c + count) of the first `there` keys, a packet of keys for each; lanes of
/// others are zeros.
/// WHY  not inlined: compiled once, not for each number of rows (0.1 to 0.5 s a call)
template <class S, class T>
ATTN_NOINLINE void write_columns(const KeyTile<T>& keys, Index there, Index c, Index count,
                                 typename S::Scalar (&columns)[S::width][S::width]) {
  using Scalar = typename S::Scalar;
  if (there == S::width) {
    typename S::Packet rows[S::width];
    for (Index w = 0; w < S::width; ++w)
      rows[w] = detail::load_strided<S>(keys.row(w) + c, 1, count);
    S::transpose(rows);
    for (Index w = 0; w < S::width; ++w) S::store(columns[w], rows[w]);
  } else {
    for (Index w = 0; w < count; ++w) S::store(columns[w], S::set(Scalar(0)));
    for (Index x = 0; x < there; ++x) {
      for (Index w = 0; w < count; ++w) columns[w][x] = Scalar(keys.row(x)[c + w]);
    }
  }
}

/// The dot products of R rows with a tile.
template <class S, int R, class T>
class TileScores {
  using Scalar = typename S::Scalar;
  using Packet = typename S::Packet;
  using Size = TileSize<Scalar>;

 public:
  using Queries = PackedStrip<Scalar, R>;
  Packet acc[std::size_t{R}];

  /// With all lanes.
  ATTN_INLINE void add(const Queries& q, const KeyTile<T>& tile, Index features) {
    constexpr Index kLine = std::max<Index>(64 / Index(sizeof(T)), S::width);
    const Index whole = features / S::width * S::width;
    for (Index c = 0; c < whole; c += S::width) {
      if (c % kLine == 0) {
        ATTN_UNROLL
        for (int w = 0; w < S::width; ++w)
          S::prefetch_far(tile.ahead + w * tile.ahead_stride + c * Index(sizeof(T)));
      }
      Packet columns[S::width];
      load_columns(tile, c, columns);
      ATTN_UNROLL
      for (int w = 0; w < S::width; ++w) add_column(element(q, c, w), columns[w]);
    }
    if (whole == features) return;
    if (whole > 0) {
      add_last(q, tile, features - S::width, S::width - (features - whole));
    } else {
      add_through_memory(q, tile, S::width, features);
    }
  }
  /// With the first `there`.
  ATTN_INLINE void add_through_memory(const Queries& q, const KeyTile<T>& tile, Index there,
                                      Index features) {
    for (Index c = 0; c < features; c += S::width) {
      alignas(64) Scalar columns[S::width][S::width];
      const Index count = std::min<Index>(features - c, S::width);
      write_columns<S>(tile, there, c, count, columns);
      for (Index w = 0; w < count; ++w)
        add_column([&](int i) { return q(i, c + w); }, S::load(columns[w]));
    }
  }

 private:
  /// Elements c + w of the queries; c is a multiple of the packet.
  static ATTN_INLINE auto element(const Queries& q, Index c, Index w) {
    if constexpr (S::width % Size::depth == 0) {
      return [from = q.from(c), w](int i) { return from(i, w); };
    } else {
      return [q, at = c + w](int i) { return q(i, at); };
    }
  }
  template <class Element>
  ATTN_INLINE void add_column(const Element& q, const Packet& column) {
    ATTN_UNROLL
    for (int i = 0; i < R; ++i) acc[i] = S::fmadd(S::set(q(i)), column, acc[i]);
  }
  /// Features c, c + 1, …: a packet of keys for each.
  static ATTN_INLINE void load_columns(const KeyTile<T>& tile, Index c,
                                       Packet (&columns)[S::width]) {
    ATTN_UNROLL
    for (int w = 0; w < S::width; ++w) columns[w] = detail::load_converted<S>(tile.row(w) + c);
    S::transpose(columns);
  }
  /// The last features, which fill no packet: of the one that begins at c and ends with the row,
  /// its columns from `first` on.
  ATTN_INLINE void add_last(const Queries& q, const KeyTile<T>& tile, Index c, Index first) {
    Packet columns[S::width];
    load_columns(tile, c, columns);
    ATTN_UNROLL
    for (int w = 1; w < S::width; ++w) {
      if (w < first) continue;
      add_column([&](int i) { return q(i, c + w); }, columns[w]);
    }
  }
};

/// The scores of a whole tile; those of its lanes go `lanes_apart`.
template <class S, int R, class T>
ATTN_NOINLINE void score_tile(const typename S::Scalar* q, const KeyTile<T>& tile, Index features,
                              typename S::Scalar* s, Index lanes_apart) {
  using Scalar = typename S::Scalar;
  TileScores<S, R, T> scores;
  ATTN_UNROLL
  for (int i = 0; i < R; ++i) scores.acc[i] = S::set(Scalar(0));
  scores.add({q}, tile, features);
  alignas(64) Scalar lanes[std::size_t{R}][std::size_t{S::width}];
  ATTN_UNROLL
  for (int i = 0; i < R; ++i) S::store(lanes[i], scores.acc[i]);
  for (int w = 0; w < S::width; ++w, s += lanes_apart) {
    ATTN_UNROLL
    for (int i = 0; i < R; ++i) s[i * TileSize<Scalar>::score_stride] = lanes[i][w];
  }
}
/// Of fewer keys, neighbours.
template <class S, int R, class T>
ATTN_NOINLINE void score_rest(const typename S::Scalar* q, const KeyTile<T>& tile, Index there,
                              Index features, typename S::Scalar* s) {
  using Scalar = typename S::Scalar;
  TileScores<S, R, T> scores;
  ATTN_UNROLL
  for (int i = 0; i < R; ++i) scores.acc[i] = S::set(Scalar(0));
  scores.add_through_memory({q}, tile, there, features);
  ATTN_UNROLL
  for (int i = 0; i < R; ++i) S::store(s + i * TileSize<Scalar>::score_stride, scores.acc[i]);
}

/// Both, by row counts.
template <class S, class T>
struct InPlaceTiles {
  decltype(&score_tile<S, 1, T>) whole;
  decltype(&score_rest<S, 1, T>) rest;
};
template <class S, class T>
inline constexpr auto in_place_tiles_v =
    of_row_counts<TileSize<typename S::Scalar>::in_place_rows>([](auto rows) {
      constexpr int R = decltype(rows)::value;
      return InPlaceTiles<S, T>{&score_tile<S, R, T>, &score_rest<S, R, T>};
    });

/// scores() of few rows: of keys [begin, end) of a block, `begin` being the first of a panel;
/// `keys` begins with the block. `then` is read behind them.
template <class S, class T>
void scores_in_place(int rows, const typename S::Scalar* q, const Source<T>& keys, Index begin,
                     Index end, Index features, const RowsAhead<S>& then, typename S::Scalar* s,
                     typename S::Scalar* lane_max) {
  using Scalar = typename S::Scalar;
  using Size = TileSize<Scalar>;
  constexpr Index kAhead = std::max<Index>(Size::in_place_ahead / S::width, 1);
  if (begin >= end) return;
  const auto& tiles = in_place_tiles_v<S, T>[std::size_t(rows - 1)];
  const Source<T> from{keys.token(begin), keys.token_stride, 1};
  Scalar* const scores = s + begin;
  const Index whole = (end - begin) / S::width * S::width, left = end - begin - whole,
              length = stream_keys<S>(end - begin), behind = length * S::width,
              ahead = kAhead * from.token_stride;
  for (Index t = 0; t < length; ++t) {
    KeyTile<T> tile{from.token(t), length * from.token_stride, nullptr, 0};
    if (t + kAhead < length) {
      tile.ahead = reinterpret_cast<const char*>(tile.data + ahead);
      tile.ahead_stride = tile.lane_stride * Index(sizeof(T));
    } else {
      tile.ahead = then.tile(t + kAhead - length);
      tile.ahead_stride = then.lane_stride;
    }
    tiles.whole(q, tile, features, scores + t, length);
  }
  KeyTile<T> last{from.token(behind), from.token_stride, then.tile(kAhead), then.lane_stride};
  if (behind < whole) {
    tiles.whole(q, last, features, scores + behind, 1);
    last.data = from.token(whole);
  }
  if (left > 0) tiles.rest(q, last, left, features, scores + whole);
  if (lane_max != nullptr) {
    for (int i = 0; i < rows; ++i) {
      auto largest = S::load(lane_max + i * S::width);
      for (Index j = 0; j < whole; j += S::width)
        largest = S::max(S::load(scores + i * Size::score_stride + j), largest);
      S::store(lane_max + i * S::width, largest);
    }
  }
  if (end % Size::panel != 0) hide_beyond<S>(rows, end, s, lane_max);
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
