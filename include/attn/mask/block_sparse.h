// attn/mask/block_sparse.h: a coarse matrix of bool, each entry for block × block pairs.
// SPDX-License-Identifier: MIT
#pragma once

#include "interval.h"
#include "../base/score_source.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

struct BoundBlockSparse : mask_base {
  TensorView<const bool> table;  ///< tokens and features: blocks of query rows and of keys
  Index block = 1, columns = 0;

  bool operator()(const QueryRow& row, Index key) const {
    return table(row.sequence, row.head, row.row / block, key / block);
  }
  /// From the first column that some row sees to the last.
  KeyRange keys(const QueryRows& rows) const {
    Index first = 0, last = columns;
    while (first < columns && seen(rows, first) == Cover::none) ++first;
    while (last > first && seen(rows, last - 1) == Cover::none) --last;
    return {first * block, last * block};
  }
  /// The longest run of columns that all rows see.
  KeyRange full_keys(const QueryRows& rows) const {
    KeyRange longest, run;
    for (Index column = 0; column < columns; ++column) {
      run = seen(rows, column) == Cover::all
                ? KeyRange{run.empty() ? column * block : run.begin, (column + 1) * block}
                : KeyRange{};
      if (run.end - run.begin > longest.end - longest.begin) longest = run;
    }
    return longest;
  }
  Cover cover(const QueryRows& rows, KeyRange range) const {
    bool none = true, all = true;
    const Index last = std::min(columns, (range.end + block - 1) / block);
    for (Index column = range.begin / block; column < last; ++column) {
      const Cover covered = seen(rows, column);
      none &= covered == Cover::none;
      all &= covered == Cover::all;
    }
    return none ? Cover::none : all ? Cover::all : Cover::some;
  }
  template <class S>
  ATTN_INLINE typename S::Mask lanes(const QueryRow& row, Index key) const {
    const bool* flags = table.at(row.sequence, row.head, row.row / block);
    const Index column = key / block, next = (column + 1) * block;
    if (next >= key + S::width)
      return interval_lanes<S>({0, flags[column * table.feature_stride] ? row.keys : 0}, key);
    return asked_lanes<S>(key, row.keys,
                          [&](Index j) { return flags[j / block * table.feature_stride]; });
  }

 private:
  /// How many of the rows, under all of their heads, see a column of blocks.
  Cover seen(const QueryRows& rows, Index column) const {
    bool none = true, all = true;
    const Index heads = table.head_stride == 0 ? rows.head_begin + 1 : rows.head_end;
    for (Index head = rows.head_begin; head < heads; ++head) {
      for (Index r = rows.begin / block; r <= (rows.end - 1) / block; ++r) {
        const bool flag = table(rows.sequence, head, r, column);
        (flag ? none : all) = false;
        if (!none && !all) return Cover::some;
      }
    }
    return none ? Cover::none : Cover::all;
  }
};
template <class Source>
struct BlockSparse : mask_base {
  Source source;
  Index block;  ///< a larger one than all positions is as large as they are
  BlockSparse(Source s, Index b) : source(std::move(s)), block(std::min(b, kUnbounded)) {}

  BoundBlockSparse bind(const CallShape& shape) const {
    if (block < 1)
      fail(text(shape.function, ": block_sparse: blocks of ", block, ", needs at least 1"));
    const auto blocks = [this](Index n) { return (n + block - 1) / block; };
    const Index rows = blocks(shape.queries.longest()), columns = blocks(shape.keys.longest());
    const auto m = source.by_head(shape, "block_sparse");
    const bool stacked = m.sequences == 1 && shape.sequences() > 1 && m.tokens != rows;
    const auto fits = [](Index has, Index needs) { return has == 1 || has == needs; };
    if (!fits(m.sequences, shape.sequences()) || !fits(m.heads, shape.heads) ||
        m.tokens != (stacked ? shape.sequences() * rows : rows) || m.features != columns) {
      fail(text(shape.function, ": block_sparse is ", shape_text(m.tokens, m.features), " for ",
                m.heads, " heads and ", m.sequences, " sequences, needs ",
                shape_text(rows, columns), " (blocks of ", block, " query rows x blocks of ", block,
                " keys) for ", shape.heads, " heads and ", shape.sequences(),
                " sequences, or 1 in place of these"));
    }
    BoundBlockSparse bound;
    bound.block = block;
    bound.columns = columns;
    bound.table = m;
    bound.table.sequence_stride = stacked            ? rows * m.token_stride
                                  : m.sequences == 1 ? 0
                                                     : m.sequence_stride;
    bound.table.head_stride = m.heads == 1 ? 0 : m.head_stride;
    return bound;
  }
  template <class Visit>
  void visit_memory(const Visit& visit) const {
    visit("block_sparse", source.memory());
  }
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
