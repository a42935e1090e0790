// attn/kernel/chunk_rows.h: the rows of a chunk: as strips, as heads of a token, and where they lie
// in an operand.
// SPDX-License-Identifier: MIT
#pragma once

#include "chunks.h"
#include "problem.h"
#include "strips.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// Rows [0, count) of a chunk. Row r is number chunk.begin + r of its sequence and key/value head,
/// where the heads of a group follow each other for each token: query row n / group under head n %
/// group of the group.
template <class Scalar>
class ChunkRows {
 public:
  explicit ChunkRows(const detail::CallShape& shape)
      : shape_(shape), group_(shape.group()), inverse_group_(1.0 / double(group_)) {}

  void enter(const Chunk& chunk, const Strips& strips, Index query_offset) {
    chunk_ = chunk;
    count_ = chunk.end - chunk.begin;
    keys_ = shape_.key_length(chunk.sequence);
    offset_ = query_offset;
    first_token_ = shape_.queries.begin(chunk.sequence);
    strips_ = strips;
  }

  Index count() const { return count_; }
  Index kv_head() const { return chunk_.kv_head; }
  /// Which row the first one is of all that the call has under its key/value head.
  Index first() const { return first_token_ * group_ + chunk_.begin; }
  Index keys() const { return keys_; }  ///< Lk of their sequence
  const Strips& strips() const { return strips_; }
  /// Calls f with each of them.
  template <class F>
  ATTN_INLINE void each_strip(const F& f) const {
    for (Index n = 0; n < strips_.count; ++n) f(strips_[n]);
  }

  /// Rows [first, last) as masks see them.
  QueryRows between(Index first, Index last) const {
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
  QueryRows of(const Strip& strip) const { return between(strip.first, strip.first + strip.rows); }
  QueryRows all() const { return between(0, count_); }

  /// One row after the other: a division at the start, then counting.
  struct Cursor {
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
  Cursor from(Index r) const {
    const Index n = chunk_.begin + r, row = token_of(n), member = n - row * group_;
    return {{chunk_.sequence, chunk_.kv_head * group_ + member, row, row + first_token_,
             row + offset_, keys_},
            member,
            group_};
  }

 private:
  /// n / group, without the integer division that would cost as much as several packets of
  /// products: with half a row added the product cannot fall on the wrong side of an integer while
  /// n < 2⁵¹.
  Index token_of(Index n) const {
    return group_ == 1 ? n : Index((double(n) + 0.5) * inverse_group_);
  }

  const detail::CallShape& shape_;
  const Index group_;
  const double inverse_group_;
  Chunk chunk_{};
  Index count_ = 0, keys_ = 0, offset_ = 0, first_token_ = 0;
  Strips strips_;
};

/// Where the rows from a cursor on lie in an operand.
template <class T>
class RowWalk {
 public:
  template <class Operand, class Cursor>
  RowWalk(const Operand& operand, const Cursor& from)
      : data_(operand.row(from.row.sequence, from.row.head, from.row.row)),
        member_(from.member),
        group_(from.group),
        head_stride_(operand.view.head_stride),
        token_step_(operand.view.token_stride - group_ * operand.view.head_stride) {}

  T* row() const { return data_ + offset_; }
  void next() {
    offset_ += head_stride_;
    if (++member_ < group_) return;
    member_ = 0;
    offset_ += token_step_;
  }

 private:
  T* data_;
  Index offset_ = 0, member_, group_, head_stride_, token_step_;
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
