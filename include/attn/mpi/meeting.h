// attn/mpi/meeting.h: the two places of a call where all ranks agree that all went well.
// SPDX-License-Identifier: MIT
#pragma once

#include <exception>
#include <optional>

#include "alike.h"
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

  /// What has to be the same on all ranks, compared where they meet first.
  Alike& alike(const char* function) { return alike_.emplace(function); }

  void hold(const std::exception_ptr& failure = nullptr) {
    const bool first = !held_;
    held_ = true;
    ranks_.agree(failure);
    if (first && alike_) alike_->check(ranks_);
  }
  bool held() const { return held_; }

 private:
  const mpi::Ranks& ranks_;
  std::optional<Alike> alike_;
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
