// attn/kernel/packed_keys.h: keys and values given as matrices, to the stages of the forward pass:
// packed block by block, or in place.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../mask/interval.h"
#include "chunks.h"
#include "in_place.h"
#include "pack.h"
#include "problem.h"
#include "rotate_row.h"
#include "visit.h"
#include "weighted_sum.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// What the pass asks of the keys and values of a chunk, a block at a time: open() it, then for
/// each strip
///   scores()        stage 1 of a segment, to the tile. Behind its last key they are −∞ up to a
///                   whole depth step, behind that anything: who reads more than what the strip
///                   visited takes it for hidden (pair_outputs.h). The maxima of the tile are
///                   raised where it has some
///   finite()        between stages 2 and 3: whether a hidden pair may be summed as 0 · v, because
///                   each value that some row is hidden from, by the mask or by a score of −∞, is
///                   finite. Else stage 3 marks their weights
///   weighted_sum()  stage 4; what is marked is left out
/// This one reads matrices; cached_keys.h a cache.
template <class Problem>
class PackedKeys {
  using Scalar = typename Problem::Scalar;
  using Element = typename Problem::Element;
  using S = detail::Simd<Scalar>;
  using F = Factors<S, Element>;
  using Size = TileSize<Scalar>;

 public:
  PackedKeys(const Problem& problem, const Scratch<Scalar>& work)
      : problem_(problem), work_(work) {}

  void enter(const Chunk& chunk, Index rows) {
    chunk_ = chunk;
    rows_ = rows;
  }
  /// The block that may be visited after the one before `block`.
  Index next(Index block) const { return block; }
  bool holds(Index) const { return true; }

  /// Packs the panels of the block that some row of the chunk sees, run by run; what lies between
  /// is not even read. Does nothing where they are attended in place.
  void open(const QueryRows& rows, Index block, KeyRange keys, detail::Cover covered, Pack what) {
    block_ = block;
    end_ = keys.end;
    finite_ = true;
    all_packed_ = covered == detail::Cover::all;
    in_place_ = attends_in_place(keys, covered);
    if (in_place_) return;
    if (all_packed_) return pack_run(keys, what);
    each_packed_run<Scalar>(
        {block, keys},
        [&](Index panel, KeyRange part) {
          return packed_[panel] = !part.empty() &&
                                  detail::cover(problem_.mask, rows, part) != detail::Cover::none;
        },
        [&](KeyRange run) { pack_run(run, what); });
  }
  bool packed(Index panel) const { return all_packed_ || packed_[panel]; }
  bool finite(int rows, const Visit<Scalar>& visit, const Scalar* s) {
    if constexpr (kInPlace) {
      const Index begin = visit.segments[0].first * Size::panel, end = visit.segments[0].end;
      if (in_place_)
        finite_ = !some_hidden<S>(rows, s, begin, end) ||
                  hidden_values_finite<S>(rows, s, values_in_place(), begin, end);
    }
    return finite_;
  }

  ATTN_INLINE void scores(const Element* query, const Segment& segment,
                          const ScoreTile<Scalar>& tile) const {
    if constexpr (kInPlace) {
      if (in_place_)
        return scores_in_place<S>(tile.strip.rows, query, source(problem_.key, block_),
                                  segment.first * Size::panel, segment.end, problem_.shape.key_dim,
                                  values_ahead(segment), tile.scores, tile.lane_max);
    }
    kernel::scores<S>(tile.strip.rows, query, F::in(work_.key), work_.size.depth, segment,
                      tile.scores, tile.lane_max, problem_.scale_of_sums());
  }
  void weighted_sum(int rows, const Visit<Scalar>& visit, const Element* p, const Scalar* rescale,
                    Scalar* output) const {
    if constexpr (kInPlace) {
      const DepthRange keys{visit.segments[0].first * Size::panel, visit.segments[0].end};
      if (in_place_ && finite_)
        return weighted_sum_of_few<S>(rows, p, values_in_place(), {&keys, 1}, rescale, output,
                                      work_.size.features);
      if (in_place_)
        return accumulate_visible<S>(rows, problem_.shape.value_dim, p, p, values_in_place(),
                                     visit.all(), rescale, output, work_.size.features);
    }
    kernel::weighted_sum<S>(rows, problem_.shape.value_dim, finite_, p, F::in(work_.value),
                            work_.size.keys / F::numbers * Size::panel, visit.all(), rescale,
                            output, work_.size.features);
  }

 private:
  static constexpr bool kRotates = Problem::kRotates;
  static constexpr bool kInPlace = std::is_same_v<Element, Scalar> && !kRotates &&
                                   !Problem::kDrops && detail::is_there_v<typename Problem::Output>;

  /// Keys and values are worth packing for several strips, not for one that sees them all:
  /// decoding. (Under dropout, in training, they are packed all the same: whether the values of
  /// dropped pairs are finite is known then. One row of 4096 keys takes 3 % longer. Nor does a
  /// backward pass, which has no output, read them in place.)
  bool attends_in_place(KeyRange keys, detail::Cover covered) const {
    if constexpr (!kInPlace) return false;
    return rows_ <= Size::in_place_rows && covered == detail::Cover::all &&
           (keys.begin - block_) % Size::panel == 0 && problem_.key.view.feature_stride == 1 &&
           problem_.value.view.feature_stride == 1;
  }

  /// The keys or values of the chunk in memory, from token `first`.
  template <class T>
  Source<T> source(const Operand<T>& operand, Index first = 0) const {
    return source(operand, first, chunk_.kv_head);
  }
  template <class T>
  Source<T> source(const Operand<T>& operand, Index first, Index head) const {
    return {operand.row(chunk_.sequence, head, first), operand.view.token_stride,
            operand.view.feature_stride};
  }
  auto values_in_place() const {
    using T = std::remove_pointer_t<decltype(source(problem_.value).data)>;
    return ValuesInPlace<S, T>{source(problem_.value, block_), problem_.shape.value_dim,
                               keys_ahead(), end_ - block_};
  }
  /// The values of a segment, which are read behind its keys.
  RowsAhead<S> values_ahead(const Segment& segment) const {
    const Index first = segment.first * Size::panel;
    return RowsAhead<S>::in_order(source(problem_.value, block_ + first), problem_.shape.value_dim,
                                  segment.end - first);
  }
  /// The keys that are likely read behind the values of the block: those of the next block or head.
  RowsAhead<S> keys_ahead() const {
    const Index length = problem_.shape.key_length(chunk_.sequence),
                block = Size::key_block(problem_.shape.key_dim, problem_.shape.value_dim);
    const bool here = block_ + block < length;
    const Index first = here ? block_ + block : 0,
                head = here ? chunk_.kv_head
                            : std::min(chunk_.kv_head + 1, problem_.shape.kv_heads - 1);
    return RowsAhead<S>::in_streams(source(problem_.key, first, head), problem_.shape.key_dim,
                                    std::min(length - first, block));
  }
  void pack_run(KeyRange keys, Pack what) {
    if (keys.empty()) return;
    const Index key_dim = problem_.shape.key_dim, depth = work_.size.depth;
    if constexpr (kRotates) {
      const detail::CallShape& shape = problem_.shape;
      const Index first_token = shape.keys.begin(shape.shared_keys ? 0 : chunk_.sequence);
      pack_rotated_keys<S>(problem_.rotation, first_token, source(problem_.key), block_, keys,
                           key_dim, depth, work_.rotated, F::in(work_.key));
    } else {
      pack_keys<S>(source(problem_.key), block_, keys, key_dim, depth, F::in(work_.key));
    }
    if (what == Pack::keys) return;
    finite_ &= pack_values<S>(source(problem_.value), block_, keys, problem_.shape.value_dim,
                              work_.size.keys, F::in(work_.value));
  }

  const Problem& problem_;
  const Scratch<Scalar>& work_;
  Chunk chunk_{};
  Index rows_ = 0, block_ = 0, end_ = 0;    ///< the block's first key, and behind its last one
  bool packed_[Visit<Scalar>::kMost] = {};  ///< panels of the block
  bool all_packed_ = false;                 ///< every panel that holds keys of the block is packed
  bool finite_ = true;     ///< the packed values, or in place the strip's hidden ones
  bool in_place_ = false;  ///< the block's keys and values are not packed
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
