// attn/kernel/forward.h: the forward pass: one schedule of the stages for every shape, mask, modifier, scalar and output.
// SPDX-License-Identifier: MIT
//
//   for each sequence, key/value head and chunk of query rows:                   // forward
//     state = {max: lowest, sum: 0} and o = 0 for each row                       // begin
//     for each block of keys that the mask lets some row see:
//       pack k, v                                                                // pack.h: once a block, used by all rows
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
#include <atomic>

#include "../score.h"
#include "chunks.h"
#include "in_place.h"
#include "online_softmax.h"
#include "pack.h"
#include "problem.h"
#include "replay.h"
#include "rotary.h"
#include "saved.h"
#include "scores.h"
#include "weighted_sum.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

template <class Problem>
class ForwardPass {
  using Scalar = typename Problem::Scalar;
  using S = detail::Simd<Scalar>;
  using Size = TileSize<Scalar>;
  using Softmax = OnlineSoftmax<S>;

 public:
  ForwardPass(const Problem& problem, const Scratch<Scalar>& scratch)
      : problem_(problem), work_(scratch) {}

  void operator()(const Chunk& chunk) {
    begin(chunk);
    const Index block_keys = Size::key_block(problem_.shape.key_dim, problem_.shape.value_dim);
    const QueryRows rows = rows_of(0, count_);
    const KeyRange visible = intersect(problem_.mask.keys(rows), {0, keys_});
    if (!visible.empty()) {
      for (Index block = visible.begin / block_keys * block_keys; block < visible.end;
           block += block_keys) {
        const KeyRange keys = intersect(visible, {block, block + block_keys});
        const detail::Cover covered = detail::cover(problem_.mask, rows, keys);
        if (covered == detail::Cover::none) continue;
        pack(rows, block, keys, covered, Pack::keys_and_values);
        for (Index strip = 0; strip < strips_; ++strip) attend(strip, block, keys);
      }
    }
    finish();
    Replay<ForwardPass>{*this}();
  }

 private:
  friend Replay<ForwardPass>;

  enum class Pack { keys, keys_and_values };
  /// Panels [first, last) of a block, up to its key `end`; `full`: all rows of the strip see all these keys.
  struct Segment {
    Index first, last, end;
    bool full;
  };
  /// What a strip visits of a block: panels to score, and the same as runs of keys without gaps.
  struct Visit {
    static constexpr int kMost = int(Size::max_key_block / Size::panel);
    Segment segments[kMost];
    DepthRange runs[kMost];
    int segment_count = 0, run_count = 0;

    void add(Index first, Index last, Index end, bool full) {
      if (segment_count > 0 && segments[segment_count - 1].last == first &&
          segments[segment_count - 1].full == full) {
        segments[segment_count - 1].last = last;
        segments[segment_count - 1].end = end;
      } else {
        segments[segment_count++] = {first, last, end, full};
      }
      const Index begin = first * Size::panel, padded = round_up(end, Size::depth);
      if (run_count > 0 && runs[run_count - 1].end == begin) {
        runs[run_count - 1].end = padded;
      } else {
        runs[run_count++] = {begin, padded};
      }
    }
  };

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
    for (Index r = 0; r < count_; ++r) work_.maximum[r] = no_maximum<Scalar>();
    for (Index r = 0; r < count_; ++r) work_.moment[r] = Scalar(0);
    for (Index n = 0; n < count_ * Size::panel; ++n) work_.lanes[n] = Scalar(0);
    for (Index n = 0; n < count_ * work_.size.features; ++n) work_.output[n] = Scalar(0);
    if constexpr (Modify::kSink) sink();
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

  /// Keys and values are worth packing for several strips, not for one that sees them all: decoding.
  bool attends_in_place(Index block, KeyRange keys, detail::Cover covered) const {
    if constexpr (kRotates) return false;
    return count_ <= Size::in_place_rows && covered == detail::Cover::all &&
           (keys.begin - block) % Size::panel == 0 && problem_.key.view.feature_stride == 1 &&
           problem_.value.view.feature_stride == 1;
  }

  /// Packs the panels of the block that some row of the chunk sees, run by run; what lies between is not even read. Does
  /// nothing where they are attended in place; then no pair is hidden, and the values may be anything.
  void pack(const QueryRows& rows, Index block, KeyRange keys, detail::Cover covered, Pack what) {
    finite_ = true;
    in_place_ = attends_in_place(block, keys, covered);
    if (in_place_) return;
    KeyRange run{};
    for (Index panel = 0; panel < Visit::kMost; ++panel) {
      const Index first = block + panel * Size::panel;
      const KeyRange part = intersect(keys, {first, first + Size::panel});
      packed_[panel] =
          !part.empty() && (covered == detail::Cover::all ||
                            detail::cover(problem_.mask, rows, part) != detail::Cover::none);
      if (packed_[panel]) {
        run = hull(run, part);
      } else {
        pack_run(block, run, what);
        run = {};
      }
    }
    pack_run(block, run, what);
  }
  /// The keys or values of the chunk in memory, from token `first`.
  template <class T>
  Source<T> source(const Operand<T>& operand, Index first = 0) const {
    return {operand.row(chunk_.sequence, chunk_.kv_head, first), operand.view.token_stride,
            operand.view.feature_stride};
  }
  void pack_run(Index block, KeyRange keys, Pack what) {
    if (keys.empty()) return;
    const Index key_dim = problem_.shape.key_dim, depth = work_.size.depth;
    if constexpr (kRotates) {
      const detail::CallShape& shape = problem_.shape;
      const Index first_token = shape.keys.begin(shape.shared_keys ? 0 : chunk_.sequence);
      pack_rotated_keys<S>(problem_.rotation, first_token, source(problem_.key), block, keys,
                           key_dim, depth, work_.rotated, work_.key);
    } else {
      pack_keys<S>(source(problem_.key), block, keys, key_dim, depth, work_.key);
    }
    if (what == Pack::keys) return;
    finite_ &= pack_values<S>(source(problem_.value), block, keys, problem_.shape.value_dim,
                              work_.size.keys, work_.value);
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
      dot_products(first, rows, block, segment, as_scored ? work_.lane_max : work_.unused_max);
      if (!as_scored) modify(first, rows, block, segment);
    }
    return true;
  }

  /// Stage 1 alone, over a segment.
  void dot_products(Index first, int rows, Index block, const Segment& segment, Scalar* lane_max) {
    const Scalar* query = work_.query + first * work_.size.depth;
    if (in_place_) {
      scores_in_place<S>(rows, query, source(problem_.key, block), segment.first * Size::panel,
                         segment.end, problem_.shape.key_dim, work_.size.depth, work_.scores,
                         lane_max);
    } else {
      scores<S>(rows, query, work_.key, work_.size.depth, segment.first, segment.last, segment.end,
                work_.scores, lane_max, work_.unused_max);
    }
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
    const auto weigh = finite_ ? Softmax::template weigh<false> : Softmax::template weigh<true>;
    weigh(rows, work_.maximum + first, work_.rescale, work_.scores, Size::score_stride, visit.runs,
          visit.run_count, work_.lanes + first * Size::panel);
    Scalar* output = work_.output + first * work_.size.features;
    if (in_place_) {
      weighted_sum_in_place<S>(rows, problem_.shape.value_dim, work_.scores,
                               source(problem_.value, block), visit.segments[0].first * Size::panel,
                               visit.segments[0].end, work_.rescale, output, work_.size.features);
    } else {
      weighted_sum<S>(rows, problem_.shape.value_dim, finite_, work_.scores, work_.value,
                      work_.size.keys * Size::panel, visit.runs, visit.run_count, work_.rescale,
                      output, work_.size.features);
    }
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
      if (!packed_[panel]) continue;
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
      const QueryRow& row = cursor.row;
      Scalar* s = work_.scores + i * Size::score_stride;
      auto largest = S::load(work_.lane_max + i * S::width);
      const Index end = round_up(segment.end, Size::depth);
      for (Index j = segment.first * Size::panel; j < end; j += S::width) {
        auto score = S::load(s + j);
        if (segment.full && j + S::width <= segment.end) {
          score = problem_.modify.template apply<S>(score, row, block + j);
        } else {
          const auto visible = seen(row, block + j, segment.end - j, segment.full);
          score = problem_.modify.template apply_seen<S>(score, row, block + j, visible);
          score = S::select(visible, score, S::set(hidden_score<Scalar>()));
        }
        S::store(s + j, score);
        largest = S::max(score, largest);
      }
      S::store(work_.lane_max + i * S::width, largest);
    }
  }

  /// Which of the keys key, key + 1, … the row sees, `held` of which are there; `full`: it sees all that are.
  ATTN_INLINE typename S::Mask seen(const QueryRow& row, Index key, Index held, bool full) const {
    const auto lanes = std::clamp<Index>(held, 0, S::width);
    const auto there = S::less(S::iota(), S::set(Scalar(int(lanes))));
    return full ? there : S::mask_and(there, problem_.mask.template lanes<S>(row, key));
  }

  /// Stage 5: divides each row once, adds the residual, rounds to storage.
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
  Chunk chunk_{};
  Index group_ = 1, count_ = 0, keys_ = 0, offset_ = 0, first_token_ = 0;
  Index strips_ = 0, strip_rows_ = 0, higher_strips_ = 0;
  double inverse_group_ = 1;
  bool packed_[Visit::kMost] = {};  ///< panels of the block
  bool finite_ = true;              ///< the packed values are
  bool in_place_ = false;           ///< the block's keys and values are not packed
};

/// Attends all rows of the problem, `workers` at a time; `memory` holds ScratchSize::total() scalars for each.
template <class Problem, class Executor>
void forward(const Problem& problem, const ScratchSize<typename Problem::Scalar>& size,
             typename Problem::Scalar* memory, int workers, const Executor& executor) {
  using Scalar = typename Problem::Scalar;
  std::atomic<Index> drawn{0};
  executor.run(workers, [&](int worker) {
    ForwardPass<Problem> pass(problem, Scratch<Scalar>(size, memory + worker * size.total()));
    const Index together = Problem::kOverHeads ? problem.shape.kv_heads : 1;
    ChunkWalk walk(problem.shape, std::max<Index>(size.rows, 1), problem.shape.kv_heads / together);
    while (walk.seek(drawn++)) {
      Chunk chunk = walk.chunk();
      for (Index n = 0; n < together; ++n, ++chunk.kv_head) pass(chunk);
    }
  });
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
