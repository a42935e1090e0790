// attn/kernel/drawn_pieces.h: the pieces of some jobs, one behind the other, as workers draw them.
// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>

#include "../types.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// Calls run(number, job) for the pieces that this worker draws, until there are none: those of the
/// first job, then those of the next. pieces_of(job): how many it has.
template <class PiecesOf, class Run, class... Jobs>
void draw_pieces(std::atomic<Index>& drawn, const PiecesOf& pieces_of, const Run& run,
                 const Jobs&... jobs) {
  for (Index piece = drawn++;; piece = drawn++) {
    Index number = piece;
    const auto is_of = [&](const auto& job) {
      const Index pieces = pieces_of(job);
      if (number >= pieces) {
        number -= pieces;
        return false;
      }
      run(number, job);
      return true;
    };
    if (!(is_of(jobs) || ...)) return;
  }
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
