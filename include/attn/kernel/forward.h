// attn/kernel/forward.h: the forward pass: one schedule of the stages for every shape, mask, modifier, scalar and output.
// SPDX-License-Identifier: MIT
//
//   for each sequence, key/value head and chunk of query rows:                   // schedule.h
//     state = {max: lowest, sum: 0} and o = 0 for each row                       // begin
//     for each block of keys that the mask lets some row see:
//       open k, v                                                                // packed_keys.h: once a block, used by all rows
//       for each strip of rows that sees some of it:                             // attend
//         s = scale · q · kᵀ                                                     // 1  scores.h
//         s = modify(s), hide(s) where the mask is not known to be full          // 2  score.h, mask.h
//         r = state.update(s)                                                    // 3  online_softmax.h: s becomes exp(s − max)
//         o = r · o + s · v                                                      // 4  weighted_sum.h
//     y = o / sum (+ residual), log-sum-exp = max + log(sum)                     // 5  finish, saved.h
//     weights and scores, where they are asked for                               //    replay.h
//
// Rows of a chunk: with several query heads on one key/value head (grouped-query attention) row r of the chunk is query row
// r / group under head r % group, so that all of them share the packed block and a strip spans few positions.
#pragma once

#include <algorithm>

#include "../score.h"
#include "cached_keys.h"
#include "chunks.h"
#include "key_parts.h"
#include "online_softmax.h"
#include "packed_keys.h"
#include "problem.h"
#include "replay.h"
#include "saved.h"
#include "scores.h"

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
      : problem_(problem), work_(scratch), keys_and_values_(problem, work_) {}

  void operator()(const Chunk& chunk) {
    begin(chunk);
    if constexpr (Problem::kInParts) {
      each_part([&](Index n) {
        attend_part(n, work_.part);
        merge(work_.part);
      });
    } else {
      visit(visible_);
    }
    finish();
  }

  /// The states of a chunk's rows over one part of the keys alone; none where they see nothing of it.
  void attend_part(const Chunk& chunk, Index part, const RowStates<Scalar>& states) {
    begin(chunk);
    if (!intersect(visible_, problem_.parts[part]).empty()) attend_part(part, states);
  }
  /// Finishes a chunk from the states of all parts that it sees: states_of(part).
  template <class StatesOf>
  void merge_parts(const Chunk& chunk, const StatesOf& states_of) {
    begin(chunk);
    each_part([&](Index n) { merge(states_of(n)); });
    finish();
  }

 private:
  friend Replay<ForwardPass>;

  using Pack = kernel::Pack;
  using Visit = kernel::Visit<Scalar>;

  /// Attends keys that some row of the chunk may see, block by block.
  void visit(const KeyRange& visible) {
    if (visible.empty()) return;
    const Index block_keys = Size::key_block(problem_.shape.key_dim, problem_.shape.value_dim);
    const QueryRows rows = rows_of(0, count_);
    for (Index block = visible.begin / block_keys * block_keys; block < visible.end;
         block = keys_and_values_.next(block + block_keys)) {
      const KeyRange keys = intersect(visible, {block, block + block_keys});
      const detail::Cover covered = detail::cover(problem_.mask, rows, keys);
      if (covered == detail::Cover::none) continue;
      keys_and_values_.open(rows, block, keys, covered, Pack::keys_and_values);
      for (Index strip = 0; strip < strips_; ++strip) attend(strip, block, keys);
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
    static_cast<RowStates<Scalar>&>(work_) = states;
    clear();
    visit(intersect(visible_, problem_.parts[part]));
    static_cast<RowStates<Scalar>&>(work_) = whole;
  }
  void merge(const RowStates<Scalar>& part) {
    merge_states<S>(count_, work_.size.features, part, work_);
  }

  /// Sets the chunk's rows, packs their queries, and empties their state.
  void begin(const Chunk& chunk) {
    const detail::CallShape& shape = problem_.shape;
    chunk_ = chunk;
    group_ = shape.heads / shape.kv_heads;
    inverse_group_ = 1.0 / double(group_);
    count_ = chunk.end - chunk.begin;
    keys_ = shape.key_length(chunk.sequence);
    offset_ = problem_.offset(chunk.sequence);
    first_token_ = shape.queries.begin(chunk.sequence);
    strips_ = (count_ + Size::rows - 1) / Size::rows;
    strip_rows_ = strips_ == 0 ? 0 : count_ / strips_;
    higher_strips_ = count_ - strip_rows_ * strips_;
    keys_and_values_.enter(chunk, count_);
    RowCursor cursor = cursor_at(0);
    for (Index strip = 0; strip < strips_; ++strip) {
      const Index first = strip_begin(strip), rows = strip_begin(strip + 1) - first;
      for (Index i = 0; i < rows; ++i, cursor.next()) {
        const QueryRow& row = cursor.row;
        const auto* from = problem_.query.row(row.sequence, row.head, row.row);
        const Index stride = problem_.query.view.feature_stride;
        const auto put = [&](const auto* q, Index q_stride) {
          pack_query<S>(q, q_stride, shape.key_dim, work_.size.depth, problem_.scale, i, rows,
                        work_.query + first * work_.size.depth);
        };
        if constexpr (kRotates) {
          rotate_row<S>(problem_.rotation, problem_.rotation.query.of(row.token, row.row), from,
                        stride, shape.key_dim, work_.rotated);
          put(work_.rotated, 1);
        } else {
          put(from, stride);
        }
      }
    }
    visible_ = intersect(problem_.mask.keys(rows_of(0, count_)), {0, keys_});
    clear();
    if constexpr (Modify::kSink) sink();
  }
  void clear() {
    for (Index r = 0; r < count_; ++r) work_.maximum[r] = no_maximum<Scalar>();
    for (Index r = 0; r < count_; ++r) work_.moment[r] = Scalar(0);
    for (Index n = 0; n < count_ * Size::panel; ++n) work_.lanes[n] = Scalar(0);
    for (Index n = 0; n < count_ * work_.size.features; ++n) work_.output[n] = Scalar(0);
  }

  /// Rows start as if they had seen a key of this score and no value.
  void sink() {
    RowCursor cursor = cursor_at(0);
    for (Index r = 0; r < count_; ++r, cursor.next()) {
      const Scalar logit = problem_.modify.sink.logit(cursor.row);
      if (!(no_maximum<Scalar>() < logit)) continue;
      work_.maximum[r] = logit;
      work_.lanes[r * Size::panel] = Scalar(1);
    }
  }

  /// Stages 1 and 2 of one strip and one block: what the strip visits, and the scores of that. False if it sees nothing.
  bool score(Index first, int rows, Index block, KeyRange keys, Visit& visit) {
    const QueryRows strip_rows = rows_of(first, first + rows);
    const KeyRange seen = intersect(problem_.mask.keys(strip_rows), keys);
    if (seen.empty()) return false;
    plan(strip_rows, block, seen, visit);

    for (int i = 0; i < rows; ++i)
      S::store(work_.lane_max + i * S::width, S::set(no_maximum<Scalar>()));
    for (int n = 0; n < visit.segment_count; ++n) {
      const Segment& segment = visit.segments[n];
      const bool as_scored = segment.full && Modify::kIdentity;
      dot_products(first, rows, segment, as_scored ? work_.lane_max : work_.unused_max);
      if (!as_scored) modify(first, rows, block, segment);
    }
    return true;
  }

  /// Stage 1 alone, over a segment.
  void dot_products(Index first, int rows, const Segment& segment, Scalar* lane_max) {
    keys_and_values_.scores(rows, work_.query + first * work_.size.depth, segment, lane_max);
  }

  /// Stages 1 to 4 of one strip and one block.
  void attend(Index strip, Index block, KeyRange keys) {
    const Index first = strip_begin(strip);
    const int rows = int(strip_begin(strip + 1) - first);
    Visit visit;
    if (!score(first, rows, block, keys, visit)) return;

    const EntropyStep<S, Saved> entropy(rows, work_.maximum + first);
    Softmax::advance(rows, work_.lane_max, work_.maximum + first, work_.rescale);
    entropy(rows, work_.maximum + first, work_.rescale, work_.scores, visit.runs, visit.run_count,
            work_.lanes + first * Size::panel, work_.moment + first);
    const auto weigh =
        keys_and_values_.finite() ? Softmax::template weigh<false> : Softmax::template weigh<true>;
    weigh(rows, work_.maximum + first, work_.rescale, work_.scores, Size::score_stride, visit.runs,
          visit.run_count, work_.lanes + first * Size::panel);
    keys_and_values_.weighted_sum(rows, visit, work_.output + first * work_.size.features);
  }

  /// Which panels of the block the strip visits. Most blocks are seen whole; only others are asked panel by panel.
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

  /// Stage 2 on the scores of a segment: modifiers, then −∞ where the mask hides; lane_max follows.
  void modify(Index first, int rows, Index block, const Segment& segment) {
    RowCursor cursor = cursor_at(first);
    for (int i = 0; i < rows; ++i, cursor.next()) {
      const QueryRow row = cursor.row;
      const auto modifiers = problem_.modify.of(row);
      Scalar* s = work_.scores + i * Size::score_stride;
      typename S::Packet
          largest[Size::packets];  // apart, so that one maximum need not wait for another
      ATTN_UNROLL
      for (auto& lane : largest) lane = S::load(work_.lane_max + i * S::width);
      Index j = segment.first * Size::panel;
      for (; segment.full && j + Size::panel <= segment.end; j += Size::panel) {
        ATTN_UNROLL
        for (int v = 0; v < Size::packets; ++v) {
          Scalar* at = s + j + v * S::width;
          const auto score =
              modifiers.template apply<S>(S::load(at), row, block + j + v * S::width);
          S::store(at, score);
          largest[v] = S::max(score, largest[v]);
        }
      }
      for (const Index end = round_up(segment.end, Size::depth); j < end; j += S::width) {
        const auto visible = seen(row, block + j, segment.end - j, segment.full);
        auto score = modifiers.template apply_seen<S>(S::load(s + j), row, block + j, visible);
        score = S::select(visible, score, S::set(hidden_score<Scalar>()));
        S::store(s + j, score);
        largest[0] = S::max(score, largest[0]);
      }
      ATTN_UNROLL
      for (int v = 1; v < Size::packets; ++v) largest[0] = S::max(largest[0], largest[v]);
      S::store(work_.lane_max + i * S::width, largest[0]);
    }
  }

  /// Which of the keys key, key + 1, … the row sees, `held` of which are there; `full`: it sees all that are.
  ATTN_INLINE typename S::Mask seen(const QueryRow& row, Index key, Index held, bool full) const {
    const auto lanes = std::clamp<Index>(held, 0, S::width);
    const auto there = S::less(S::iota(), S::set(Scalar(int(lanes))));
    return full ? there : S::mask_and(there, problem_.mask.template lanes<S>(row, key));
  }

  /// Stage 5: divides each row once, adds the residual, rounds to storage. Then what is saved of pairs.
  void finish() {
    RowCursor cursor = cursor_at(0);
    for (Index r = 0; r < count_; ++r, cursor.next()) {
      const QueryRow& row = cursor.row;
      const Scalar sum = reduce_lanes<S>(work_.lanes + r * Size::panel);
      const bool empty = sum == Scalar(0);
      write_output(row, work_.output + r * work_.size.features,
                   empty ? Scalar(0) : Scalar(Scalar(1) / sum));
      problem_.saved.write(row, work_.maximum[r], sum, work_.moment[r]);
    }
    Replay<ForwardPass>{*this}();
  }

  void write_output(const QueryRow& row, const Scalar* o, const Scalar& inverse) {
    using Stored = typename Output::Scalar;
    const Index features = problem_.shape.value_dim, stride = problem_.output.view.feature_stride;
    Stored* y = problem_.output.row(row.sequence, row.head, row.row);
    const bool direct = std::is_same_v<Stored, Scalar> && stride == 1;
    for (Index c = 0; c < features; c += S::width) {
      // The zero addend rounds the product by itself, so that the residual is a separate addition, and clears the sign of zero.
      auto value = S::fmadd(S::load(o + c), S::set(inverse), S::set(Scalar(0)));
      const Index lanes = std::min<Index>(features - c, S::width);
      if constexpr (!std::is_same_v<Residual, Absent>) {
        const auto* x = problem_.residual.row(row.sequence, row.head, row.row);
        const Index x_stride = problem_.residual.view.feature_stride;
        value = S::add(value, detail::load_strided<S>(x + c * x_stride, x_stride, lanes));
      }
      if constexpr (std::is_same_v<Stored, Scalar>) {
        if (direct && lanes == S::width) {
          S::storeu(y + c, value);
          continue;
        }
      }
      alignas(64) Scalar rounded[S::width];
      S::store(rounded, value);
      for (Index w = 0; w < lanes; ++w) y[(c + w) * stride] = Stored(rounded[w]);
    }
  }

  /// Strips share the chunk's rows evenly, so that none is much lower than the register tile: some have one row more.
  Index strip_begin(Index strip) const {
    return strip * strip_rows_ + std::min(strip, higher_strips_);
  }

  QueryRows rows_of(Index first, Index last) const {
    const Index head = chunk_.kv_head * group_;
    return {chunk_.sequence,
            head,
            head + group_,
            token_of(chunk_.begin + first),
            token_of(chunk_.begin + last - 1) + 1,
            first_token_,
            offset_,
            keys_};
  }
  /// n / group, without the integer division that would cost as much as several packets of products: with half a row added the
  /// product cannot fall on the wrong side of an integer while n < 2⁵¹.
  Index token_of(Index n) const {
    return group_ == 1 ? n : Index((double(n) + 0.5) * inverse_group_);
  }
  /// The rows of a chunk one after the other: a division at the start, then counting.
  struct RowCursor {
    QueryRow row;
    Index member, group;  ///< which of the group's heads

    void next() {
      ++row.head;
      if (++member < group) return;
      member = 0;
      row.head -= group;
      ++row.row, ++row.token, ++row.position;
    }
  };
  RowCursor cursor_at(Index r) const {
    const Index n = chunk_.begin + r, row = token_of(n), member = n - row * group_;
    return {{chunk_.sequence, chunk_.kv_head * group_ + member, row, row + first_token_,
             row + offset_, keys_},
            member,
            group_};
  }

  using Modify = std::decay_t<decltype(std::declval<Problem>().modify)>;
  using Output = std::decay_t<decltype(std::declval<Problem>().output)>;
  using Residual = std::decay_t<decltype(std::declval<Problem>().residual)>;
  using Saved = std::decay_t<decltype(std::declval<Problem>().saved)>;

  static constexpr bool kRotates =
      !std::is_same_v<std::decay_t<decltype(std::declval<Problem>().rotation)>, Absent>;

  const Problem& problem_;
  Scratch<Scalar> work_;
  KeysAndValues keys_and_values_;
  Chunk chunk_{};
  KeyRange visible_{};  ///< a hull of what its rows see
  Index group_ = 1, count_ = 0, keys_ = 0, offset_ = 0, first_token_ = 0;
  Index strips_ = 0, strip_rows_ = 0, higher_strips_ = 0;
  double inverse_group_ = 1;
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
