// attn/kernel/scored_strip.h: stages 1 and 2: a chunk of query rows, the blocks of keys that it may
// see, and the scores of a strip of the rows against a block.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <limits>

#include "cached_keys.h"
#include "chunk_rows.h"
#include "chunks.h"
#include "modify.h"
#include "packed_keys.h"
#include "problem.h"
#include "visit.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     enter() a chunk; each_block(), or open() one; then of each strip score() it. Whoever
//          asks decides where scores go and what becomes of them: the forward pass (forward.h)
//          weighs them at once, pair_outputs.h writes them to a matrix
// PICTURE  for each sequence, key/value head and chunk:      enter
//            for each block that the mask lets some row see: each_block: covered? open k, v
//              for each strip that sees some of it:          score
//                s = scale · q · kᵀ                            dot_products.h (keys_in_place.h, stored_keys.h)
//                s = modify(s), hide(s)                        modify.h, where not known to be full
// WHY      queries are packed a strip at a time, just before its first scores: the rows of the next
//          one, asked for here, arrive while this one is computed (enc128, whose operands come from
//          L3: queries took 1.6 times as long to pack as keys, now 0.9; Zen 5)
// EDGES    panels of a block that a strip does not see are not scored: the Visit says which are
template <class Problem>
class ScoredStrip {
  using S = detail::Simd<typename Problem::Scalar>;
  using Size = TileSize<typename Problem::Scalar>;
  using QueryStored = std::remove_pointer_t<decltype(Problem::Query::view.data)>;

 public:
  using Scalar = typename Problem::Scalar;
  using Element = typename Problem::Element;
  using KeysAndValues =
      std::conditional_t<detail::is_instance_v<CacheOperand, typename Problem::Key>,
                         CachedKeys<Problem>, PackedKeys<Problem>>;

  ScoredStrip(const Problem& problem, const Scratch<Scalar>& work)
      : problem_(problem),
        work_(work),
        keys_and_values_(problem, work),
        rows_(problem.shape),
        modify_(problem, rows_) {}
  ScoredStrip(const ScoredStrip&) = delete;
  ScoredStrip& operator=(const ScoredStrip&) = delete;

  /// Goes to the rows of a chunk.
  void enter(const Chunk& chunk, const Strips& strips) {
    rows_.enter(chunk, strips, problem_.offset(chunk.sequence));
    keys_and_values_.enter(chunk, rows_.count());
    all_ = rows_.all();
    visible_ = intersect(problem_.mask.keys(all_), {0, rows_.keys()});
    packed_ = 0;
  }
  const ChunkRows<Scalar>& rows() const { return rows_; }
  /// A hull of the keys that some of the rows see.
  const KeyRange& visible() const { return visible_; }
  Index block_keys() const {
    return Size::key_block(problem_.shape.key_dim, problem_.shape.value_dim);
  }

  /// Calls f(block) for each block that holds some of these keys and that some row sees, opened.
  template <class F>
  void each_block(const KeyRange& keys, Pack what, const F& f) {
    if (keys.empty()) return;
    const Index length = block_keys();
    for (Index first = keys.begin / length * length; first < keys.end;
         first = keys_and_values_.next(first + length)) {
      const KeyBlock block{first, intersect(keys, {first, first + length})};
      if (open(block, what)) f(block);
    }
  }
  /// Opens a block, if some row sees some of its keys.
  bool open(const KeyBlock& block, Pack what) {
    return open(block, detail::cover(problem_.mask, all_, block.keys), what);
  }
  /// The same as if all rows saw all of them.
  bool open_unmasked(const KeyBlock& block, Pack what) {
    return open(block, block.keys.empty() ? detail::Cover::none : detail::Cover::all, what);
  }
  /// Keys and values of the open block.
  KeysAndValues& keys_and_values() { return keys_and_values_; }

  /// Stages 1 and 2: what a strip visits of the open block, and the scores of that at s. Their
  /// largest, by lanes, are at lane_max().
  ATTN_INLINE Visit<Scalar> score(const Strip& strip, const KeyBlock& block, Scalar* s) {
    return score(strip, block, s, detail::kAbsent);
  }
  /// The same scores to the bit, with what `slopes` asks for: SlopeStrips, or Absent. With them
  /// lane_max() is left out.
  template <class Slopes>
  ATTN_INLINE Visit<Scalar> score(const Strip& strip, const KeyBlock& block, Scalar* s,
                                  const Slopes& slopes) {
    Visit<Scalar> visit;
    const QueryRows rows = rows_.of(strip);
    const KeyRange seen = intersect(problem_.mask.keys(rows), block.keys);
    if (seen.empty()) return visit;
    plan(rows, block.first, seen, visit);
    const Element* const query = packed(strip);
    Scalar* const lane_max = work_.lane_max;
    for (int i = 0; i < strip.rows; ++i)
      S::store(lane_max + i * S::width, S::set(no_maximum<Scalar>()));
    for (int n = 0; n < visit.segment_count; ++n) {
      const Segment& segment = visit.segments[n];
      const bool as_scored = segment.full && Problem::Modify::kIdentity;
      keys_and_values_.scores(query, segment,
                              {strip, block.first, s, as_scored ? lane_max : nullptr});
      if (as_scored) continue;
      const ScoreTile<Scalar> tile{strip, block.first, s, lane_max};
      if constexpr (detail::is_there_v<Slopes>) {
        modify_(tile, segment, slopes);
      } else {
        modify_(tile, segment);
      }
    }
    return visit;
  }
  /// The packed queries of a strip. Strips are asked for mostly in their order: those before it are
  /// packed with it.
  const Element* packed(const Strip& strip) {
    for (; packed_ <= strip.number; ++packed_) pack_queries(rows_.strips()[packed_]);
    return queries(strip);
  }
  const Scalar* lane_max() const { return work_.lane_max; }

  /// Scores of all keys of the open block as they are at a stage before the mask.
  Visit<Scalar> score_until(stage last, const Strip& strip, const KeyBlock& block, Scalar* s) {
    Visit<Scalar> visit;
    const Index end = block.keys.end - block.first;
    visit.add(0, (end + Size::panel - 1) / Size::panel, end, true);
    const ScoreTile<Scalar> tile{strip, block.first, s, nullptr};
    keys_and_values_.scores(packed(strip), visit.segments[0], tile);
    if (last != stage::scaled) modify_.until(last, tile, visit.segments[0]);
    return visit;
  }

 private:
  bool open(const KeyBlock& block, detail::Cover covered, Pack what) {
    if (covered == detail::Cover::none || !keys_and_values_.holds(block.first)) return false;
    keys_and_values_.open(all_, block.first, block.keys, covered, what);
    return true;
  }

  /// Which panels of the block the strip visits. Most blocks are seen whole; only others are asked
  /// panel by panel.
  void plan(const QueryRows& rows, Index block, KeyRange seen, Visit<Scalar>& visit) const {
    const Index begin = (seen.begin - block) / Size::panel, end = seen.end - block,
                last = (end + Size::panel - 1) / Size::panel;
    const bool whole = detail::cover(problem_.mask, rows, seen) == detail::Cover::all;
    if (whole && begin * Size::panel == seen.begin - block) {
      visit.add(begin, last, end, true);
      return;
    }
    for (Index panel = begin; panel < last; ++panel) {
      if (!keys_and_values_.packed(panel)) continue;
      const Index first_key = block + panel * Size::panel;
      const KeyRange keys = intersect({first_key, first_key + Size::panel}, seen);
      const detail::Cover covered =
          whole ? detail::Cover::all : detail::cover(problem_.mask, rows, keys);
      if (covered == detail::Cover::none) continue;
      visit.add(panel, panel + 1, keys.end - block,
                covered == detail::Cover::all && keys.begin == first_key);
    }
  }

  Element* queries(const Strip& strip) const {
    using F = Factors<S, Element>;
    return F::in(work_.query) + strip.first * (work_.size.depth / F::numbers);
  }
  /// The query rows of a strip, turned where positions are rotary; the next strip's are asked for.
  void pack_queries(const Strip& strip) {
    const Index stride = problem_.query.view.feature_stride, features = problem_.shape.key_dim,
                depth = work_.size.depth, rows = strip.rows;
    Element* const to = queries(strip);
    auto cursor = rows_.from(strip.first);
    RowWalk<QueryStored> walk(problem_.query, cursor);
    if constexpr (Problem::kRotates) {
      for (Index i = 0; i < rows; ++i, cursor.next(), walk.next()) {
        const QueryRow& row = cursor.row;
        rotate_row<S>(problem_.rotation, problem_.rotation.query.of(row.token, row.row), walk.row(),
                      stride, features, work_.rotated);
        pack_query<S>(work_.rotated, 1, features, depth, problem_.scale, i, rows, to);
      }
    } else {
      QueryStored* from[Size::rows];
      for (Index i = 0; i < rows; ++i, walk.next()) from[i] = walk.row();
      kernel::pack_queries<S>(from, stride, features, depth, problem_.scale, rows, to);
    }
    if (stride != 1 || rows_.count() * depth < Size::asked_queries) return;
    constexpr Index kLine = std::max<Index>(64 / Index(sizeof(QueryStored)), 1);
    const Index number = strip.number + 1,
                next = number < rows_.strips().count ? rows_.strips().rows(number) : 0;
    for (Index i = 0; i < next; ++i, walk.next()) {
      for (Index c = 0; c < features; c += kLine) S::prefetch(walk.row() + c);
    }
  }

  const Problem& problem_;
  const Scratch<Scalar>& work_;
  KeysAndValues keys_and_values_;
  ChunkRows<Scalar> rows_;
  ModifyScores<Problem> modify_;
  QueryRows all_{};  ///< of the chunk
  KeyRange visible_{};
  Index packed_ = 0;  ///< strips before it are
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
