// attn/kernel/few_rows.h: stages 1 and 4 for a chunk of few rows (decoding), on keys and values as
// they lie in memory.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "dot_products.h"
#include "row_sums.h"
#include "weighted_sum.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     the scores of dot_products.h and the sums of weighted_sum.h, with the same bits, of at
//          most TileSize::in_place_rows rows: panels are worth their stores and loads only where
//          several strips share them. How keys and values lie an operand says, StoredKeys and
//          StoredValues (stored_keys.h) or ValuesInPlace (in_place.h; its keys go their own way,
//          keys_in_place.h):
//            packets(R), rest(R)      packets of keys (of features) at a time; where fewer are left
//            least(C)                 keys (features) from which on C packets are worth it
//            add(acc, q, j, held)     acc += q · kᵀ of `held` keys from j on, 1 … packets · W
//            add(acc, p, c, pieces)   acc += p · v of the features from c on, over these keys
//            rows                     of weights that one of its tiles takes at most
//            width()                  features that can be read: as many as there are, or padded
//            asked()                  the same for rows behind a tile that asks for what is read
//                                     next, where one tile does not take all
// PICTURE  R rows × C packets in registers, one function for each: in a loop over them g++ carries
//          the accumulators through the stack
// LIMIT    memory: each number is read once
// EDGES    keys beyond the last are zeros (their scores are hidden by hide_beyond)
// NUMERICS chains over features, and over the keys of a run, in order, from +0: those of the
//          register tile

/// Scores of up to C packets of keys from j on; the maxima of whole ones alone.
template <class S, int R, int C, class Keys>
ATTN_NOINLINE void score_few(const typename S::Scalar* q, const Keys& keys, Index j, Index end,
                             typename S::Scalar* s, typename S::Scalar* lane_max) {
  using Scalar = typename S::Scalar;
  constexpr Index kKeys = C * S::width;
  typename S::Packet acc[std::size_t{R}][std::size_t{C}];
  clear<S>(acc);
  keys.add(acc, PackedStrip<Scalar, R>{q}, j, std::min(end - j, kKeys));
  store_rows<S>(acc, s + j, TileSize<Scalar>::score_stride);
  if (lane_max != nullptr && j + kKeys <= end) raise_lanes<S>(acc, lane_max);
}

/// A function of some number of rows and of packets that are so wide together, for what is left if
/// it is that much at least.
template <class Function>
struct FewRowTile {
  Function call;
  Index width, least;
};
/// Of as many packets as pay, of half and a quarter of them, and where fewer are left.
/// WHY  half: without it 64 features of one row, of which 128 pay, went by a packet at a time, in
///      one chain (32 heads of 4096 keys of 64 floats 20 % slower; Zen 4, g++)
template <class Function>
struct FewRowTiles {
  FewRowTile<Function> whole, half, quarter, rest;
  /// The widest that is worth it.
  const FewRowTile<Function>& of(Index left) const {
    return left >= whole.least     ? whole
           : left >= half.least    ? half
           : left >= quarter.least ? quarter
                                   : rest;
  }
};
/// make(C) for C packets of an operand that R rows meet.
template <class S, class Operand, int R, class Make>
constexpr auto few_row_tiles(const Make& make) {
  using Function = decltype(make(std::integral_constant<int, 1>()));
  constexpr int kWhole = Operand::packets(R), kRest = Operand::rest(R);
  const auto tile = [&](auto packets) {
    constexpr int C = std::max(decltype(packets)::value, kRest);
    return FewRowTile<Function>{make(std::integral_constant<int, C>()), C * S::width,
                                Operand::least(C)};
  };
  return FewRowTiles<Function>{
      tile(std::integral_constant<int, kWhole>()), tile(std::integral_constant<int, kWhole / 2>()),
      tile(std::integral_constant<int, kWhole / 4>()), tile(std::integral_constant<int, kRest>())};
}
/// score_few() by row counts.
template <class S, class Keys>
inline constexpr auto score_few_v =
    of_row_counts<TileSize<typename S::Scalar>::in_place_rows>([](auto rows) {
      constexpr int R = decltype(rows)::value;
      return few_row_tiles<S, Keys, R>(
          [](auto packets) { return &score_few<S, R, decltype(packets)::value, Keys>; });
    });

/// scores() of few rows: of keys [begin, end) of a block, `begin` being the first of a panel.
template <class S, class Keys>
void scores_of_few(int rows, const typename S::Scalar* q, const Keys& keys, Index begin, Index end,
                   typename S::Scalar* s, typename S::Scalar* lane_max) {
  using Size = TileSize<typename S::Scalar>;
  if (begin >= end) return;
  const auto& tiles = score_few_v<S, Keys>[std::size_t(rows - 1)];
  for (Index j = begin; j < end;) {
    const auto& tile = tiles.of(end - j);
    tile.call(q, keys, j, end, s, lane_max);
    j += tile.width;
  }
  if (end % Size::panel != 0) hide_beyond<S>(rows, end, s, lane_max);
}

/// The most packets of sums of a tile of few rows.
template <class Values, int R>
constexpr int most_few_sums() {
  constexpr int kHere = R * std::max(Values::packets(R), Values::rest(R));
  if constexpr (R > 1) return std::max(kHere, most_few_sums<Values, R - 1>());
  return kHere;
}
template <class S, class Values>
using FewSums = BlockSums<S, 1, most_few_sums<Values, Values::rows>()>;

/// The sums of C packets of features from c on, over one run of keys.
template <class S, int R, int C, class Values>
ATTN_NOINLINE void sum_few_run(const typename S::Scalar* p, const Values& values, Index c,
                               Runs pieces, bool first, bool last, FewSums<S, Values>& block) {
  typename S::Packet acc[std::size_t{R}][std::size_t{C}];
  clear<S>(acc);
  values.add(acc, ScoreRows<typename S::Scalar>{p}, c, pieces);
  block.add(acc, first, last);
}
/// sum_few_run() by row counts.
template <class S, class Values>
inline constexpr auto sum_few_v = of_row_counts<Values::rows>([](auto rows) {
  constexpr int R = decltype(rows)::value;
  return few_row_tiles<S, Values, R>(
      [](auto packets) { return &sum_few_run<S, R, decltype(packets)::value, Values>; });
});

/// weighted_sum() of few rows: a tile of features by tile, and run by run all rows, so that those
/// behind the first tile of rows find the run in L1.
template <class S, class Values>
void weighted_sum_of_few(int rows, const typename S::Scalar* p, const Values& values, Runs runs,
                         const typename S::Scalar* rescale, typename S::Scalar* o, Index o_stride) {
  using Size = TileSize<typename S::Scalar>;
  constexpr int kTiles = (Size::in_place_rows + Values::rows - 1) / Values::rows;
  static_assert(kTiles <= 2);
  const int more = std::max(rows - Values::rows, 0);
  const auto& tiles = sum_few_v<S, Values>[std::size_t(rows - more - 1)];
  const auto& behind = sum_few_v<S, Values>[std::size_t(std::max(more, 1) - 1)];
  const auto values_behind = [&] {
    if constexpr (kTiles > 1) {
      return values.asked();
    } else {
      return values;
    }
  }();
  for (Index c = 0; c < values.width();) {
    const auto& tile = tiles.of(values.width() - c);
    FewSums<S, Values> block(rescale, o + c, o_stride);
    FewSums<S, Values> more_block(rescale == nullptr ? nullptr : rescale + Values::rows,
                                  o + c + Values::rows * o_stride, o_stride);
    block.each_run(runs, [&](Runs pieces, bool first, bool last) {
      tile.call(p, values, c, pieces, first, last, block);
      if (more > 0) {
        behind.of(values.width() - c)
            .call(p + Values::rows * Size::score_stride, values_behind, c, pieces, first, last,
                  more_block);
      }
    });
    c += tile.width;
  }
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
