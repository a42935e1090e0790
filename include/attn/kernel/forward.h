// attn/kernel/forward.h: the forward pass: one schedule of the stages for every shape, mask,
// modifier, scalar and output.
// SPDX-License-Identifier: MIT
//
//   for each sequence, key/value head and chunk of query rows:                   // schedule.h
//     state = {max: lowest, sum: 0} and o = 0 for each row                       // begin
//     for each block of keys that the mask lets some row see:
//       open k, v                                                                // packed_keys.h: once a block, used by all rows
//       for each strip of rows that sees some of it:                             // attend
//         s = scale · q · kᵀ                                                     // 1  dot_products.h
//         s = modify(s), hide(s) where the mask is not known to be full          // 2  modify.h, score.h, mask.h
//         r = state.update(s)                                                    // 3  online_softmax.h: s becomes exp(s − max)
//         o = r · o + s · v                                                      // 4  weighted_sum.h
//     every 4096 keys (and after each part of them) settle state and o           //    key_parts.h: added with compensation, and 0
//     y = o / sum (+ residual), log-sum-exp = max + log(sum)                     // 5  finish.h, row_outputs.h
//     weights and scores, where they are asked for                               //    pair_outputs.h
//
// LIMIT  (Zen 5, AVX-512; cycles a row and 16 keys at d = 64) 64 for the products on the two
//        multiply-add ports, 3.7 for exp on the same, 2 for storing s and p (a 512-bit store takes
//        the read ports of two multiply-adds), 0.5 for o: 0.91 of the peak.
//        Tiles run at 0.98; packing keys and values is 2 % of pre1k, and 4 % is what a row costs
//        whatever it sees: its query packed, its sums advanced, divided and written. So pre1k
//        reaches 0.85. Where rows see few keys more of that shows: pad512 (288 on average) 0.77,
//        enc128 (128) 0.73 to 0.76; where the mask cuts through tiles their hidden half does:
//        pre1kc 0.80, d128c 0.81 to 0.83.
//        tiny is latency: each stage of a head waits for the one before, 500 cycles of work take
//        1300, a third of them schedule.
//        Without gain: keys in blocks of 128, two strips in turns, row maxima in a pass of their
//        own, asking ahead for the output's lines, the next chunk's operands or the bias, exp of 2,
//        6 or 8 packets at a time.
//
// Rows of a chunk: with several query heads on one key/value head (grouped-query attention) row r
// of the chunk is query row r / group under head r % group, so that all of them share the packed
// block and a strip spans few positions.
#pragma once

#include <algorithm>
#include <limits>
#include <utility>

#include "cached_keys.h"
#include "chunk_rows.h"
#include "chunks.h"
#include "finish.h"
#include "key_parts.h"
#include "modify.h"
#include "online_softmax.h"
#include "packed_keys.h"
#include "problem.h"
#include "pair_outputs.h"
#include "row_outputs.h"
#include "dot_products.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

template <class Problem>
class ForwardPass {
  using Scalar = typename Problem::Scalar;
  using S = detail::Simd<Scalar>;
  using Size = TileSize<Scalar>;
  using Softmax = OnlineSoftmax<S>;
  using KeysAndValues = std::conditional_t<
      detail::is_instance_v<CacheOperand, std::decay_t<decltype(std::declval<Problem>().key)>>,
      CachedKeys<Problem>, PackedKeys<Problem>>;

 public:
  ForwardPass(const Problem& problem, const Scratch<Scalar>& scratch)
      : problem_(problem),
        work_(scratch),
        keys_and_values_(problem, work_),
        rows_(problem.shape),
        modify_(problem, work_, rows_) {}

  void operator()(const Chunk& chunk) {
    begin(chunk);
    if constexpr (Problem::kInParts) {
      each_part([&](Index n) {
        attend_part(n, work_.part);
        settle(work_.part);
      });
    } else {
      visit(visible_);
    }
    finish();
  }

  /// The states of a chunk's rows over one part of the keys alone; none where they see nothing of
  /// it.
  void attend_part(const Chunk& chunk, Index part, const RowStates<Scalar>& states) {
    begin(chunk);
    if (!intersect(visible_, problem_.parts[part]).empty()) attend_part(part, states);
  }
  /// Finishes a chunk from the states of all parts that it sees: states_of(part).
  template <class StatesOf>
  void merge_parts(const Chunk& chunk, const StatesOf& states_of) {
    begin(chunk);
    each_part([&](Index n) { settle(states_of(n)); });
    finish();
  }

 private:
  friend Replay<ForwardPass>;

  using Pack = kernel::Pack;
  using Visit = kernel::Visit<Scalar>;
  using Modify = std::decay_t<decltype(std::declval<Problem>().modify)>;
  using Saved = std::decay_t<decltype(std::declval<Problem>().saved)>;
  using QueryStored = std::remove_pointer_t<decltype(std::declval<Problem>().query.view.data)>;

  static constexpr bool kRotates =
      !std::is_same_v<std::decay_t<decltype(std::declval<Problem>().rotation)>, Absent>;
  /// Rows have sums before they have seen a key, or are asked for them.
  static constexpr bool kStartsBefore = Modify::kSink || Saved::kEntropy || Problem::kInParts;

  /// Attends keys that some row of the chunk may see, block by block.
  void visit(const KeyRange& visible) {
    if (visible.empty()) return;
    const Index block_keys = Size::key_block(problem_.shape.key_dim, problem_.shape.value_dim);
    const QueryRows rows = rows_.all();
    for (Index block = visible.begin / block_keys * block_keys; block < visible.end;
         block = keys_and_values_.next(block + block_keys)) {
      const Index group = block / Size::settled_keys;
      if (group > group_) settle();
      group_ = group;
      const KeyRange keys = intersect(visible, {block, block + block_keys});
      const detail::Cover covered = detail::cover(problem_.mask, rows, keys);
      if (covered == detail::Cover::none) continue;
      keys_and_values_.open(rows, block, keys, covered, Pack::keys_and_values);
      for (Index strip = 0; strip < rows_.strips().count; ++strip) attend(strip, block, keys);
    }
  }

  /// Calls f with the number of each part of the keys that the chunk sees, in order.
  template <class F>
  void each_part(const F& f) const {
    if (visible_.empty()) return;
    const KeyParts& parts = problem_.parts;
    for (Index n = visible_.begin / parts.keys; n < parts.count(visible_.end); ++n) f(n);
  }
  void attend_part(Index part, const RowStates<Scalar>& states) {
    const RowStates<Scalar> whole = work_;
    const bool whole_settled = std::exchange(settled_, false);
    static_cast<RowStates<Scalar>&>(work_) = states;
    work_.settled = work_.part.settled;
    clear();
    visit(intersect(visible_, problem_.parts[part]));
    if (settled_) gather();
    static_cast<RowStates<Scalar>&>(work_) = whole;
    settled_ = whole_settled;
  }

  /// Adds what a part's rows have seen to what is settled.
  void settle(const RowStates<Scalar>& part) {
    if (!settled_) settle();
    settle_states<S>(0, rows_.count(), work_.size.features, part, work_.settled);
  }
  /// Adds what the chunk's rows have seen since the last time to what is settled. Strips that have
  /// seen nothing have nothing to add, and to rows that have not it changes nothing.
  void settle() {
    const RowStates<Scalar>& states = work_;
    if (!std::exchange(settled_, true)) {
      work_.settled.clear(rows_.count());
      if constexpr (!kStartsBefore) std::fill_n(work_.moment, rows_.count(), Scalar(0));
    }
    for (Index strip = 0; strip < rows_.strips().count; ++strip) {
      if (fresh(strip)) continue;
      settle_states<S>(rows_.strips().begin(strip), rows_.strips().rows(strip), work_.size.features,
                       states, work_.settled);
      start_from_zero(strip);
    }
  }
  /// Settles once more; then the rows hold what is settled.
  void gather() {
    settle();
    const auto take = [](const RowSums<Scalar>& from, Index count, Scalar* to) {
      std::copy_n(from.sum, count * from.stride, to);
    };
    for (Index strip = 0; strip < rows_.strips().count; ++strip) {
      if (fresh(strip)) continue;
      const Index first = rows_.strips().begin(strip), rows = rows_.strips().rows(strip);
      const SettledStates<Scalar> from = work_.settled.from(first);
      std::copy_n(from.maximum, rows, work_.maximum + first);
      take(from.moment, rows, work_.moment + first);
      take(from.lanes, rows, work_.lanes + first * Size::panel);
      take(from.output, rows, work_.output + first * work_.size.features);
    }
  }

  /// Sets the chunk's rows, packs their queries, and empties their state.
  void begin(const Chunk& chunk) {
    rows_.enter(chunk, problem_.offset(chunk.sequence));
    keys_and_values_.enter(chunk, rows_.count());
    visible_ = intersect(problem_.mask.keys(rows_.all()), {0, rows_.keys()});
    if constexpr (kStartsBefore) {
      for (Index strip = 0; strip < rows_.strips().count; ++strip) pack_queries(strip);
    }
    settled_ = false;
    clear();
    if constexpr (Modify::kSink) sink();
  }
  /// Empties the state of the chunk's rows.
  void clear() {
    group_ = std::numeric_limits<Index>::max();
    for (Index strip = 0; strip < rows_.strips().count; ++strip) work_.fresh[strip] = Scalar(1);
    std::fill_n(work_.maximum, rows_.count(), no_maximum<Scalar>());
    if constexpr (kStartsBefore) {
      for (Index strip = 0; strip < rows_.strips().count; ++strip) start_from_zero(strip);
    }
  }

  /// The query rows of a strip, turned where positions are rotary.
  /// WHY  one strip at a time, just before its first scores: the rows of the next one, asked for
  ///      here, arrive while this one is computed (enc128, whose operands come from L3: queries
  ///      took 1.6 times as long to pack as keys, now 0.9; Zen 5)
  void pack_queries(Index strip) {
    const Index stride = problem_.query.view.feature_stride, features = problem_.shape.key_dim,
                depth = work_.size.depth, first = rows_.strips().begin(strip),
                rows = rows_.strips().rows(strip);
    Scalar* const to = work_.query + first * depth;
    auto cursor = rows_.from(first);
    RowWalk<QueryStored> walk(problem_.query, cursor);
    if constexpr (kRotates) {
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
    const Index next = strip + 1 < rows_.strips().count ? rows_.strips().rows(strip + 1) : 0;
    for (Index i = 0; i < next; ++i, walk.next()) {
      for (Index c = 0; c < features; c += kLine) S::prefetch(walk.row() + c);
    }
  }

  /// The strip has not seen a block: its sums are not even zeros.
  bool fresh(Index strip) const { return !detail::equal(work_.fresh[strip], Scalar(0)); }

  /// What a strip that has seen no key holds. The first block that it sees stores its sums instead
  /// of adding them to zeros.
  void start_from_zero(Index strip) {
    const Index first = rows_.strips().begin(strip), rows = rows_.strips().rows(strip);
    std::fill_n(work_.lanes + first * Size::panel, rows * Size::panel, Scalar(0));
    std::fill_n(work_.output + first * work_.size.features, rows * work_.size.features, Scalar(0));
    std::fill_n(work_.moment + first, rows, Scalar(0));
    work_.fresh[strip] = Scalar(0);
  }

  /// Rows start as if they had seen a key of this score and no value.
  void sink() {
    auto cursor = rows_.from(0);
    for (Index r = 0; r < rows_.count(); ++r, cursor.next()) {
      const Scalar logit = problem_.modify.sink.logit(cursor.row);
      if (!(no_maximum<Scalar>() < logit)) continue;
      work_.maximum[r] = logit;
      work_.lanes[r * Size::panel] = Scalar(1);
    }
  }

  /// What of the keys some of the rows see.
  KeyRange seen_keys(const QueryRows& rows, KeyRange keys) const {
    return intersect(problem_.mask.keys(rows), keys);
  }

  /// Stages 1 and 2 of one strip and one block: what the strip visits, and the scores of that. It
  /// sees some of it.
  ATTN_INLINE void score(const QueryRows& strip_rows, Index first, int rows, Index block,
                         KeyRange seen, Visit& visit) {
    plan(strip_rows, block, seen, visit);
    for (int i = 0; i < rows; ++i)
      S::store(work_.lane_max + i * S::width, S::set(no_maximum<Scalar>()));
    for (int n = 0; n < visit.segment_count; ++n) {
      const Segment& segment = visit.segments[n];
      const bool as_scored = segment.full && Modify::kIdentity;
      dot_products(first, rows, segment, as_scored ? work_.lane_max : work_.unused_max);
      if (!as_scored) modify_(first, rows, block, segment);
    }
  }

  /// Stage 1 alone, over a segment.
  void dot_products(Index first, int rows, const Segment& segment, Scalar* lane_max) {
    keys_and_values_.scores(rows, work_.query + first * work_.size.depth, segment, lane_max);
  }

  /// Stages 1 to 4 of one strip and one block.
  void attend(Index strip, Index block, KeyRange keys) {
    const Index first = rows_.strips().begin(strip);
    const int rows = rows_.strips().rows(strip);
    const QueryRows strip_rows = rows_.between(first, first + rows);
    const KeyRange seen = seen_keys(strip_rows, keys);
    if (seen.empty()) return;
    const bool begins = fresh(strip);
    work_.fresh[strip] = Scalar(0);
    if (begins) pack_queries(strip);
    Visit visit;
    score(strip_rows, first, rows, block, seen, visit);

    Scalar* const rescale = begins ? nullptr : work_.rescale;
    const EntropyStep<S, Saved> entropy(rows, work_.maximum + first);
    Softmax::advance(rows, work_.lane_max, work_.maximum + first, rescale);
    entropy(rows, work_.maximum + first, rescale, work_.scores, visit.runs, visit.run_count,
            work_.lanes + first * Size::panel, work_.moment + first);
    const auto weigh = keys_and_values_.finite(rows, visit) ? Softmax::template weigh<false>
                                                            : Softmax::template weigh<true>;
    weigh(rows, work_.maximum + first, rescale, work_.scores, Size::score_stride, visit.runs,
          visit.run_count, work_.lanes + first * Size::panel);
    keys_and_values_.weighted_sum(rows, visit, rescale, work_.output + first * work_.size.features);
  }

  /// Which panels of the block the strip visits. Most blocks are seen whole; only others are asked
  /// panel by panel.
  void plan(const QueryRows& rows, Index block, KeyRange seen, Visit& visit) const {
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

  /// Stage 5, then what is saved of pairs.
  void finish() {
    for (Index strip = 0; strip < rows_.strips().count; ++strip) {
      if (!fresh(strip)) continue;
      pack_queries(strip);
      start_from_zero(strip);
    }
    if (settled_) gather();
    Finish<Problem>{problem_, work_}(rows_);
    Replay<ForwardPass>{*this}();
  }

  const Problem& problem_;
  Scratch<Scalar> work_;
  KeysAndValues keys_and_values_;
  ChunkRows<Scalar> rows_;
  ModifyScores<Problem> modify_;
  KeyRange visible_{};    ///< a hull of what the rows see
  Index group_ = 0;       ///< the keys that settle together, of the last block visited
  bool settled_ = false;  ///< some of what the rows have seen is
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
