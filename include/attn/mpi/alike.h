// attn/mpi/alike.h: numbers of a call that have to be the same on all ranks.
// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "../base/check.h"
#include "ranks.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// What each rank finds legal by itself, and would yet leave the others waiting for messages that
/// never come. Collected before ranks meet, since it takes memory; compared once all of them are
/// well, which takes none.
class Alike {
 public:
  explicit Alike(const char* function) : function_(function) {}

  /// A number ≥ 0, and what it is called: as many of them on every rank.
  Alike& add(const char* name, Index number) {
    names_.push_back(name);
    ends_.push_back(number);
    ends_.push_back(-number);
    return *this;
  }
  /// Called by all ranks: refuses, on all of them, numbers that differ.
  void check(const mpi::Ranks& ranks) {
    // The largest of a number, and of its negative: the least.
    MPI_Allreduce(MPI_IN_PLACE, ends_.data(), int(ends_.size()), MPI_LONG_LONG, MPI_MAX,
                  ranks.comm());
    for (std::size_t n = 0; n < names_.size(); ++n) {
      const long long most = ends_[2 * n], least = -ends_[2 * n + 1];
      if (most == least) continue;
      fail(text(function_, ": ", names_[n], ": ", Index(least), " on one rank, ", Index(most),
                " on another; needs the same on all"));
    }
  }

 private:
  const char* function_;
  std::vector<const char*> names_;
  std::vector<long long> ends_;
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
