// attn/mask/tree.h: candidates of speculative decoding: a token sees the prefix, its ancestors and
// itself.
// SPDX-License-Identifier: MIT
#pragma once

#include "interval.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// The tree's tokens are the last query rows of a sequence, at their positions; keys before them
/// are a prefix that all see, and rows before them see it up to themselves.
struct BoundTree : mask_base {
  const IndexList* parents = nullptr;
  Tokens queries;
  bool stacked = false;  ///< parents of all sequences, a row each; else one tree for all

  bool operator()(const QueryRow& row, Index key) const {
    const Place at = place(row);
    if (key < at.first_key || at.token < 0) return key <= row.position;
    const Index sought = key - at.first_key;
    Index token = at.token;
    while (token > sought) token = parent(row.sequence, token);
    return token == sought;
  }
  KeyRange keys(const QueryRows& rows) const { return {0, rows.last().position + 1}; }
  KeyRange full_keys(const QueryRows& rows) const {
    const QueryRow first = rows.first();
    return {0, std::min(first.position + 1, place(first).first_key)};
  }
  Cover cover(const QueryRows& rows, KeyRange range) const {
    if (intersect(keys(rows), range).empty()) return Cover::none;
    if (full_keys(rows).contains(range)) return Cover::all;
    const Place first = place(rows.first());
    // Within the tree each row of a strip is asked for its ancestors; a chunk of rows holds the
    // keys' own rows anyway.
    if (range.begin < first.first_key || first.token < 0 || rows.end - rows.begin > kFewRows)
      return Cover::some;
    bool none = true, all = true;
    for (Index i = rows.begin; i < rows.end; ++i) {
      Index seen = 0;
      ancestors(rows.row(i, rows.head_begin), range, [&](Index) { ++seen; });
      none &= seen == 0;
      all &= seen == range.end - range.begin;
    }
    return none ? Cover::none : all ? Cover::all : Cover::some;
  }
  template <class S>
  ATTN_INLINE typename S::Mask lanes(const QueryRow& row, Index key) const {
    const Place at = place(row);
    if (at.token < 0) return interval_lanes<S>({0, row.position + 1}, key);
    bool seen[S::width];
    for (Index w = 0; w < S::width; ++w) seen[w] = key + w < at.first_key;
    ancestors(row, {key, key + S::width}, [&](Index j) { seen[j - key] = true; });
    return asked_lanes<S>(key, row.keys, [&](Index j) { return seen[j - key]; });
  }

 private:
  static constexpr Index kFewRows = 16;

  /// A row's token in the tree (negative: before it), and the position of the tree's first token.
  struct Place {
    Index token, first_key;
  };
  Place place(const QueryRow& row) const {
    const Index rows = queries.length(row.sequence), size = stacked ? rows : parents->size();
    const Index token = row.row - (rows - size);
    return {token, row.position - token};
  }
  Index parent(Index sequence, Index token) const {
    return (*parents)[stacked ? queries.begin(sequence) + token : token];
  }
  /// Visits the keys in the range that are the row's token or one of its ancestors.
  template <class Visit>
  void ancestors(const QueryRow& row, KeyRange range, const Visit& visit) const {
    const Place at = place(row);
    for (Index token = at.token; token >= 0 && token + at.first_key >= range.begin;
         token = parent(row.sequence, token)) {
      if (token + at.first_key < range.end) visit(token + at.first_key);
    }
  }
};
struct Tree : mask_base {
  struct Position : NoPosition {
    static constexpr const char* asks = "tree";
  };
  IndexList parents;

  BoundTree bind(const CallShape& shape) const {
    BoundTree bound;
    bound.parents = &parents;
    bound.queries = shape.queries;
    bound.stacked = shape.sequences() > 1 && parents.size() == shape.queries.total();
    for (Index b = 0; b < shape.sequences(); ++b) {
      const Index rows = shape.queries.length(b), size = bound.stacked ? rows : parents.size(),
                  first = bound.stacked ? shape.queries.begin(b) : 0;
      if (size > rows) {
        fail(text(shape.function, ": tree has ", size, " tokens, sequence ", b, " has ", rows,
                  " query rows; the tree's tokens are its last rows"));
      }
      for (Index t = 0; t < size && (b == 0 || bound.stacked); ++t) {
        const Index parent = parents[first + t];
        if (parent < -1 || parent >= t) {
          fail(text(shape.function, ": tree: the parent of token ", t, " is ", parent,
                    ", needs a token before it, or -1 for a root"));
        }
      }
    }
    return bound;
  }
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
