// attn/kernel/pair_rows.h: numbers of each pair on their way from scores to the matrix that saves
// them, along its rows or its columns.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../base/call_shape.h"
#include "../base/load.h"
#include "pair_target.h"
#include "softmax_rows.h"
#include "turn.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     rows of a chunk are added with their scores of a block; write() sends on the scores, or
//          the weights exp(s − m) / l
// PICTURE  target by rows:     a strip is written as soon as it is scored
//          target by columns: as many strips as scratch has room for are kept, then written W rows
//          × W keys at a time (turn.h), head by
//                              head: under grouped-query attention the rows of a head are every
//                              group-th
// EDGES    rows that are not wanted take room in scratch and are left out here
// NUMERICS a weight is p · (1 / l), p as the engine summed it; the mean over heads is summed in
//          their order and scaled at the end
template <class S, class Target>
class PairRows {
  using Scalar = typename S::Scalar;
  using Packet = typename S::Packet;
  using Stored = typename Target::Scalar;
  using Size = TileSize<Scalar>;

 public:
  /// `scores`: room for those of `room` rows.
  PairRows(const Target& target, const detail::CallShape& shape, const SoftmaxRows<Scalar>& softmax,
           Scalar* scores, Index room)
      : target_(target),
        softmax_(softmax),
        memory_(scores),
        room_(room),
        heads_(shape.heads),
        group_(shape.heads / shape.kv_heads),
        by_columns_(detail::by_columns(row_stride(), key_stride())) {}

  /// Whether `rows` more can be added before those that are there have to be written.
  bool has_room(int rows) const { return scored_ == 0 || (by_columns_ && scored_ + rows <= room_); }
  /// Where the scores of the rows that are added next have to be.
  Scalar* scores() const { return memory_ + scored_ * Size::score_stride; }

  /// Adds the rows of a strip, at whose first the cursor is. `seen`: not all of their scores are
  /// those of hidden pairs.
  template <class Cursor>
  void add(Cursor cursor, const Strip& strip, bool seen) {
    for (int i = 0; i < strip.rows; ++i, cursor.next()) {
      const Index head = kAverages ? 0 : cursor.row.head;
      if (Stored* const to = target_.row(cursor.row, head))
        rows_[count_++] = {to, scores() + i * Size::score_stride, strip.first + i, cursor.row.head};
    }
    scored_ += strip.rows;
    seen_ |= seen;
  }

  /// Writes the numbers of these keys, the first of which is that of a block, and forgets the rows.
  void write(KeyRange keys) {
    // What is summed over heads is no matter of one of them.
    if (!seen_ && !kAverages) return fill(keys);
    Factors factors[Size::saved_rows];
    for (int n = 0; n < count_; ++n) factors[n] = factors_of(rows_[n].r);
    const Index count = keys.end - keys.begin;
    if (!by_columns_) {
      for (int n = 0; n < count_; ++n) {
        for (Index j = 0; j < count; j += S::width) {
          put(rows_[n].head, rows_[n].to + (keys.begin + j) * key_stride(), key_stride(),
              number(rows_[n], factors[n], j), count - j);
        }
      }
    } else {
      each_head([&](int first, int rows) {
        const auto at = [&](Index i) { return first + i * group_; };
        turn<S>(
            rows, count, [&](Index i, Index j) { return number(rows_[at(i)], factors[at(i)], j); },
            [&](Index i, Index j, const Packet& column, Index lanes) {
              put(rows_[first].head, rows_[at(i)].to + (keys.begin + j) * key_stride(),
                  row_stride(), column, lanes);
            });
      });
    }
    clear();
  }

  /// Writes to these columns what stands where there is no score, and forgets the rows.
  void fill(KeyRange columns) {
    const Stored padding = Stored(kWeights ? Scalar(0) : hidden_score<Scalar>());
    if (!by_columns_) {
      for (int n = 0; n < count_; ++n)
        fill_line(rows_[n].to + columns.begin * key_stride(), key_stride(),
                  columns.end - columns.begin, padding);
    } else {
      each_head([&](int first, int rows) {
        for (Index j = columns.begin; j < columns.end; ++j)
          fill_line(rows_[first].to + j * key_stride(), row_stride(), rows, padding);
      });
    }
    clear();
  }

 private:
  static constexpr bool kWeights = detail::is_instance_v<detail::WeightsTarget, Target>;
  static constexpr bool kAverages = [] {
    if constexpr (kWeights) {
      return Target::kAverages;
    } else {
      return false;
    }
  }();
  static_assert(!kAverages || std::is_same_v<Stored, Scalar>,
                "attn::save_weights: the mean over heads is summed where it is saved: give it a "
                "matrix of the scalar that the call computes in");

  struct Row {
    Stored* to;
    const Scalar* scores;
    Index r, head;
  };
  /// What makes a weight of a score; of a row of the chunk.
  struct Factors {
    Scalar maximum, inverse;
  };
  Factors factors_of(Index r) const {
    if constexpr (kWeights) {
      const Scalar sum = softmax_.sum(r);
      return {softmax_.maximum(r),
              detail::equal(sum, Scalar(0)) ? Scalar(0) : Scalar(Scalar(1) / sum)};
    } else {
      return {};
    }
  }

  Index row_stride() const { return target_.to.view.token_stride; }
  Index key_stride() const { return target_.to.view.feature_stride; }

  /// What is saved of keys j, j + 1, … of the block.
  static ATTN_INLINE Packet number(const Row& row, const Factors& factors, Index j) {
    const Packet score = S::load(row.scores + j);
    if constexpr (kWeights) {
      const Packet p = detail::exp_weight<S>(S::sub(score, S::set(factors.maximum)));
      // Also where the row is NaN, what is hidden weighs nothing.
      const auto hidden = S::less(score, S::set(no_maximum<Scalar>()));
      return S::select(hidden, S::set(Scalar(0)), S::mul(p, S::set(factors.inverse)));
    } else {
      return score;
    }
  }
  ATTN_INLINE void put(Index head, Stored* to, Index stride, Packet numbers, Index lanes) const {
    if constexpr (kAverages) {
      if (head > 0) numbers = S::add(detail::load_strided<S>(to, stride, lanes), numbers);
      if (head == heads_ - 1) numbers = S::mul(numbers, S::set(Scalar(1) / Scalar(int(heads_))));
    }
    detail::store_strided<S>(to, stride, numbers, lanes);
  }

  static void fill_line(Stored* to, Index stride, Index count, const Stored& padding) {
    if (stride == 1) {
      std::fill(to, to + count, padding);
    } else {
      for (Index n = 0; n < count; ++n) to[n * stride] = padding;
    }
  }

  /// Calls f(number of its first row, rows) for each head, in their order: the mean over them is
  /// summed in it. All rows of a token are wanted or none, so the heads of the group take turns.
  template <class F>
  void each_head(const F& f) const {
    const int turns = std::min(int(group_), count_);
    int lowest = 0;
    for (int n = 1; n < turns; ++n) lowest = rows_[n].head < rows_[lowest].head ? n : lowest;
    for (int n = 0; n < turns; ++n) {
      const int first = (lowest + n) % turns;
      f(first, int((count_ - first + group_ - 1) / group_));
    }
  }
  void clear() {
    count_ = scored_ = 0;
    seen_ = false;
  }

  const Target& target_;
  const SoftmaxRows<Scalar>& softmax_;
  Scalar* const memory_;
  const Index room_, heads_, group_;
  const bool by_columns_;
  Row rows_[Size::saved_rows];
  int count_ = 0, scored_ = 0;  ///< rows that are wanted; rows that have been added
  bool seen_ = false;           ///< some of these see something of the block
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
