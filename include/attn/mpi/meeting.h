// attn/mpi/meeting.h: the two places of a call where all ranks agree that all went well.
// SPDX-License-Identifier: MIT
#pragma once

#include <exception>

#include "ranks.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Ranks meet once nothing can be refused any more, before the first message and before anything is
/// written, and again behind the last message. A rank that fails before comes with its failure; one
/// that fails between keeps its part of the messages, and comes with it to the second.
class Meeting {
 public:
  explicit Meeting(const mpi::Ranks& ranks) : ranks_(ranks) {}
  Meeting(const Meeting&) = delete;
  Meeting& operator=(const Meeting&) = delete;

  void hold(const std::exception_ptr& failure = nullptr) {
    held_ = true;
    ranks_.agree(failure);
  }
  bool held() const { return held_; }

 private:
  const mpi::Ranks& ranks_;
  bool held_ = false;
};

/// f(meeting) on all ranks, whose failure before the first meeting is brought there.
template <class F>
void with_meetings(const mpi::Ranks& ranks, const F& f) {
  Meeting meeting(ranks);
  try {
    f(meeting);
  } catch (...) {
    if (!meeting.held()) meeting.hold(std::current_exception());
    throw;
  }
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
