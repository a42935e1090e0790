// attn/mpi/gathered_rounds.h: a pass over ranks as rounds, one for each key/value head, for which
// rows of all ranks come.
// SPDX-License-Identifier: MIT
#pragma once

#include <exception>

#include "../kernel/chunks.h"
#include "../mask/interval.h"
#include "meeting.h"
#include "row_exchange.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// The rounds of a pass (attend.h). All ranks meet before the first and behind the last one; one
/// that fails between goes on with the messages that others wait for. enter(problem, round): the
/// problem's operands are those of a round.
template <class Exchange, class Enter>
class GatheredRounds {
 public:
  GatheredRounds(Exchange& exchange, Meeting& meeting, const Enter& enter)
      : exchange_(exchange), meeting_(meeting), enter_(enter) {}

  Index heads_at_once(const CallShape&) const { return 1; }
  void meet() const { meeting_.hold(); }
  template <class Problem, class F>
  void each(Problem& problem, const F& f) const {
    std::exception_ptr failure;
    exchange_.announce();
    exchange_.start(0);
    for (Index round = 0; round < exchange_.rounds(); ++round) {
      exchange_.finish();
      if (round + 1 < exchange_.rounds()) exchange_.start(round + 1);
      if (failure) continue;
      try {
        enter_(problem, round);
        f(kernel::HeadRange{round, round + 1});
      } catch (...) {
        failure = std::current_exception();
      }
    }
    meeting_.hold(failure);
  }
  /// (Sums over all rows are not for one rank to make.)
  template <class ScoreGradients>
  void finish(const ScoreGradients&, const CallShape&) const {}

 private:
  Exchange& exchange_;
  Meeting& meeting_;
  Enter enter_;
};

/// The rows of a block of the whole sequence, under all heads.
inline QueryRows rows_of_block(const mpi::Dealt& dealt, const CallShape& whole, Index k,
                               Index offset) {
  return {0, 0,      whole.heads,   dealt.begin(k), dealt.begin(k) + dealt.length(k),
          0, offset, dealt.tokens()};
}
/// Some of these rows see some keys of a block.
template <class Mask>
bool sees_block(const mpi::Dealt& dealt, const Mask& mask, const QueryRows& rows, Index k) {
  const KeyRange keys = intersect(mask.keys(rows), {0, dealt.tokens()});
  return cover(mask, rows, intersect(keys, {dealt.begin(k), dealt.begin(k) + dealt.length(k)})) !=
         Cover::none;
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
