// attn/kernel/chunks.h: a call cut into the parts that workers draw.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../detail/call_shape.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// The part of a call that one worker does at a time: rows [begin, end) of one sequence and key/value head.
struct Chunk {
  Index sequence, kv_head;
  Index begin, end;
};

/// All chunks of a call in one order: by sequence, key/value head, and from the last rows to the first, which see most under a
/// causal mask. Workers each walk it and stop at the numbers they drew.
class ChunkWalk {
 public:
  /// `kv_heads`: all of the shape, or one if the caller takes the others along.
  ChunkWalk(const detail::CallShape& shape, Index chunk_rows, Index kv_heads)
      : shape_(shape), chunk_rows_(chunk_rows), kv_heads_(kv_heads) {
    enter();
  }

  /// Goes on to chunk `number`, which must not lie behind; false if there is none.
  bool seek(Index number) {
    while (sequence_ < shape_.sequences()) {
      const Index here = chunks_ * kv_heads_;
      if (number < passed_ + here) {
        const Index n = number - passed_, head = n / chunks_,
                    end = rows_ - (n - head * chunks_) * chunk_rows_;
        chunk_ = {sequence_, head, std::max<Index>(end - chunk_rows_, 0), end};
        return true;
      }
      passed_ += here;
      ++sequence_;
      enter();
    }
    return false;
  }
  const Chunk& chunk() const { return chunk_; }

 private:
  void enter() {
    if (sequence_ >= shape_.sequences()) return;
    rows_ = shape_.queries.length(sequence_) * (shape_.heads / shape_.kv_heads);
    chunks_ = (rows_ + chunk_rows_ - 1) / chunk_rows_;
  }

  const detail::CallShape& shape_;
  Index chunk_rows_, kv_heads_, sequence_ = 0, rows_ = 0, chunks_ = 0;
  Index passed_ = 0;  ///< chunks of the sequences before
  Chunk chunk_{};
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
