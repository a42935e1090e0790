// attn/mask/cache_mask.h: what a call on a cache says beside its masks: which of its sequences, and
// what a row sees of them.
// SPDX-License-Identifier: MIT
#pragma once

#include "interval.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

struct AllKeysOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: all_keys() twice in one call");
  }
};
/// all_keys().
struct AllKeys : option_base {
  using Kind = AllKeysOption;
};
struct CacheSequencesOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: cache_sequences(...) twice in one call");
  }
};
/// cache_sequences(…).
struct CacheSequences : option_base {
  using Kind = CacheSequencesOption;
  IndexList list;
};

/// What a row sees of a cache before the masks of the call: j ≤ p where `causal`; in a ring j <
/// pinned or j > p − window. One type for all caches, so that the engine is not instantiated anew
/// for each kind.
struct CacheMask : mask_base {
  bool causal = true;
  Index window = kUnbounded, pinned = 0;

  bool operator()(const QueryRow& row, Index key) const {
    return key < end(row.position) && (key < pinned || key >= begin(row.position));
  }
  KeyRange keys(const QueryRows& rows) const {
    return {pinned > 0 ? 0 : begin(rows.first().position), end(rows.last().position)};
  }
  KeyRange full_keys(const QueryRows& rows) const {
    const Index from = begin(rows.last().position);
    return {from <= pinned ? 0 : from, end(rows.first().position)};
  }
  Cover cover(const QueryRows& rows, KeyRange range) const {
    const Index last = end(rows.last().position), first = end(rows.first().position);
    const KeyRange kept{0, std::min(pinned, last)}, recent{begin(rows.first().position), last};
    if (intersect(kept, range).empty() && intersect(recent, range).empty()) return Cover::none;
    const bool all = full_keys(rows).contains(range) || range.end <= std::min(pinned, first);
    return all ? Cover::all : Cover::some;
  }
  template <class S>
  ATTN_INLINE typename S::Mask lanes(const QueryRow& row, Index key) const {
    const Index last = end(row.position);
    const auto recent = interval_lanes<S>({begin(row.position), last}, key);
    if (key >= pinned) return recent;
    return S::mask_or(recent, interval_lanes<S>({0, std::min(pinned, last)}, key));
  }

 private:
  Index begin(Index position) const { return std::max<Index>(position - window + 1, 0); }
  Index end(Index position) const { return causal ? position + 1 : kUnbounded; }
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
