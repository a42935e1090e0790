// attn/mask/segments.h: documents packed in one sequence: a query sees the keys that carry its own
// id.
// SPDX-License-Identifier: MIT
#pragma once

#include "interval.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Ids of tokens: one for each token of the call, or of the longest sequence, which then serves
/// all.
struct TokenIds {
  const IndexList* ids = nullptr;
  bool stacked = false;

  TokenIds() = default;
  TokenIds(const CallShape& shape, const char* what, const IndexList& list, const Tokens& tokens)
      : ids(&list), stacked(list.size() != tokens.longest()) {
    if (stacked && list.size() != tokens.total()) {
      const std::string needs = text(shape.function, ": segments has ", list.size(), " ", what,
                                     " ids, needs ", tokens.total(), " (one for each ", what, ")");
      fail(tokens.total() == tokens.longest()
               ? needs
               : text(needs, " or ", tokens.longest(), " (the longest sequence's, for all)"));
    }
  }
  bool ascend(const Tokens& tokens) const {
    const Index sequences = stacked ? tokens.sequences : 1;
    for (Index b = 0; b < sequences; ++b) {
      const Index first = stacked ? tokens.begin(b) : 0,
                  last = stacked ? first + tokens.length(b) : ids->size();
      for (Index i = first + 1; i < last; ++i) {
        if ((*ids)[i] < (*ids)[i - 1]) return false;
      }
    }
    return true;
  }
};

/// Ids that ascend make each document an interval of keys, found by bisection; others are compared
/// panel by panel.
struct BoundSegments : mask_base {
  TokenIds query_ids, key_ids;
  Tokens key_tokens;
  bool shared_keys = false, queries_ascend = false, keys_ascend = false;

  Index id_of(const QueryRow& row) const {
    return (*query_ids.ids)[query_ids.stacked ? row.token : row.row];
  }
  /// Where the ids of a sequence's keys begin in their list.
  Index first_key(Index sequence) const {
    return key_ids.stacked ? key_tokens.begin(shared_keys ? 0 : sequence) : 0;
  }

  bool operator()(const QueryRow& row, Index key) const {
    return (*key_ids.ids)[first_key(row.sequence) + key] == id_of(row);
  }
  KeyRange keys(const QueryRows& rows) const {
    if (!keys_ascend) return {0, rows.keys};
    const Ids ids = ids_of(rows);
    return keys_of(rows, ids);
  }
  KeyRange full_keys(const QueryRows& rows) const {
    if (!keys_ascend) return {0, 0};
    const Ids ids = ids_of(rows);
    if (ids.least != ids.most) return {0, 0};
    return keys_of(rows, ids);
  }
  Cover cover(const QueryRows& rows, KeyRange range) const {
    const Ids ids = ids_of(rows);
    const Index first = first_key(rows.sequence);
    const Ids of_keys =
        keys_ascend
            ? Ids{(*key_ids.ids)[first + range.begin], (*key_ids.ids)[first + range.end - 1]}
            : extremes(*key_ids.ids, first + range.begin, first + range.end);
    if (of_keys.most < ids.least || ids.most < of_keys.least) return Cover::none;
    const bool one = ids.least == ids.most && of_keys.least == of_keys.most;
    if (one) return Cover::all;
    // Between the extremes there may be documents that no row belongs to.
    if (rows.end - rows.begin > kFewRows) return Cover::some;
    for (Index i = rows.begin; i < rows.end; ++i) {
      const Index id = id_of(rows.row(i, rows.head_begin));
      for (Index j = range.begin; j < range.end; ++j) {
        if ((*key_ids.ids)[first + j] == id) return Cover::some;
      }
    }
    return Cover::none;
  }
  template <class S>
  ATTN_INLINE typename S::Mask lanes(const QueryRow& row, Index key) const {
    const Index held = std::min<Index>(S::width, row.keys - key), id = id_of(row);
    Index ids[S::width];
    if (held > 0) key_ids.ids->read(first_key(row.sequence) + key, held, ids);
    return asked_lanes<S>(key, row.keys, [&](Index j) { return ids[j - key] == id; });
  }

 private:
  /// The rows of a strip, not of a chunk: so few that each is asked.
  static constexpr Index kFewRows = 16;
  struct Ids {
    Index least, most;
  };
  static Ids extremes(const IndexList& ids, Index begin, Index end) {
    Ids found{ids[begin], ids[begin]};
    for (Index i = begin + 1; i < end; ++i) {
      found.least = std::min(found.least, ids[i]);
      found.most = std::max(found.most, ids[i]);
    }
    return found;
  }
  Ids ids_of(const QueryRows& rows) const {
    const Index first = query_ids.stacked ? rows.first_token : 0;
    if (queries_ascend)
      return {(*query_ids.ids)[first + rows.begin], (*query_ids.ids)[first + rows.end - 1]};
    return extremes(*query_ids.ids, first + rows.begin, first + rows.end);
  }
  /// The keys of the sequence whose ids are not below the least nor above the most.
  KeyRange keys_of(const QueryRows& rows, Ids ids) const {
    return {bisect(rows, [&ids](Index id) { return id < ids.least; }),
            bisect(rows, [&ids](Index id) { return id <= ids.most; })};
  }
  /// The first key of the sequence whose id is not `before` what is sought.
  template <class Before>
  Index bisect(const QueryRows& rows, const Before& before) const {
    const Index first = first_key(rows.sequence);
    Index begin = 0, count = rows.keys;
    while (count > 0) {
      const Index half = count / 2;
      if (before((*key_ids.ids)[first + begin + half])) {
        begin += half + 1;
        count -= half + 1;
      } else {
        count = half;
      }
    }
    return begin;
  }
};
struct Segments : mask_base {
  IndexList query_ids, key_ids;
  bool same = false;  ///< keys carry the queries' ids

  BoundSegments bind(const CallShape& shape) const {
    BoundSegments bound;
    bound.query_ids = TokenIds(shape, "query", query_ids, shape.queries);
    bound.key_ids = TokenIds(shape, "key", same ? query_ids : key_ids, shape.keys);
    bound.key_tokens = shape.keys;
    bound.shared_keys = shape.shared_keys;
    bound.queries_ascend = bound.query_ids.ascend(shape.queries);
    bound.keys_ascend = bound.key_ids.ascend(shape.keys);
    return bound;
  }
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
