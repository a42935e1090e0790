// attn/kernel/pair_target.h: where numbers of each pair, weights and scores, are written, and of
// which rows.
// SPDX-License-Identifier: MIT
#pragma once

#include "../base/operand.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// average_heads(), and its absence.
struct AverageHeads {};
struct EachHead {};

/// Where one number for each pair goes, and of which rows.
template <class T>
struct PairTarget {
  using Scalar = T;
  Operand<T> to;                      ///< features are keys, as many as the longest sequence has
  const IndexList* chosen = nullptr;  ///< query tokens in increasing order; null: all

  /// The number of the first of the tokens [begin, end) that are wanted, or −1.
  Index first_wanted(Index begin, Index end) const {
    if (chosen == nullptr) return begin < end ? begin : -1;
    Index low = 0, high = chosen->size();
    while (low < high) {
      const Index middle = low + (high - low) / 2;
      if ((*chosen)[middle] < begin) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low < chosen->size() && (*chosen)[low] < end ? low : -1;
  }
  /// Where the numbers of one row begin, under one head; null: the row is not wanted.
  T* row(const QueryRow& row, Index head) const {
    if (chosen == nullptr) return to.row(row.sequence, head, row.row);
    const Index slot = first_wanted(row.token, row.token + 1);
    return slot < 0 ? nullptr : to.row(0, head, slot);
  }
};
/// Weights as the engine writes them; `Over`: EachHead or AverageHeads.
template <class T, class Over>
struct WeightsTarget : PairTarget<T> {
  static constexpr bool kAverages = std::is_same_v<Over, AverageHeads>;
};
template <class T>
struct ScoresTarget : PairTarget<T> {
  stage at = stage::masked;
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
