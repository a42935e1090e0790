// attn/score/score_rule.h: what the engine asks of a modifier of scores, bound to a call.
// SPDX-License-Identifier: MIT
#pragma once

#include "../types.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Base of what a modifier's option binds to. A rule has
///   Packet apply<Simd>(s, row, key)              the scores of the keys key, key + 1, …, modified
///   Packet apply_seen<Simd>(s, row, key, seen)   with kAsksSeen: the same where only the lanes
///                                                `seen` count, as the others are hidden afterwards
///   of(row), table                               with kReadsTable: the rule on one row; the matrix
///                                                shaped like the scores that it reads
///   apply_with_slope<Simd>(s, row, key, seen, slope)
///                                                with kSloped: apply_seen, or apply, to the
///                                                bit, and how much the score changes with s;
///                                                without it 1
struct ScoreRule {
  static constexpr stage kStage = stage::biased;  ///< the first that has its change
  static constexpr bool kAsksSeen = false, kReadsTable = false, kSloped = false;
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
