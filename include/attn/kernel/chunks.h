// attn/kernel/chunks.h: a call cut into the parts that workers draw.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../base/call_shape.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// The part of a call that one worker does at a time: rows [begin, end) of one sequence and
/// key/value head.
struct Chunk {
  Index sequence, kv_head;
  Index begin, end;
};

/// Key/value heads [begin, end), of which a call does those of one round.
struct HeadRange {
  Index begin, end;
  Index count() const { return end - begin; }
};

/// The workers that find a piece to do: one at least, which sees that there is none.
inline int with_pieces(int workers, Index pieces) {
  return int(std::clamp<Index>(pieces, 1, workers));
}

/// How many chunks a call has.
inline Index chunks_of(const detail::CallShape& shape, Index chunk_rows, Index kv_heads) {
  const Index group = shape.heads / shape.kv_heads, most = std::max<Index>(chunk_rows, 1);
  Index chunks = 0;
  for (Index b = 0; b < shape.sequences(); ++b)
    chunks += (shape.queries.length(b) * group + most - 1) / most;
  return chunks * kv_heads;
}

/// All chunks of a call in one order: by sequence, key/value head, and from the last rows to the
/// first, which see most under a causal mask. They begin at multiples of their rows. Workers each
/// walk it and stop at the numbers they drew.
class ChunkWalk {
 public:
  /// `kv_heads`: all of the shape, or one if the caller takes the others along.
  ChunkWalk(const detail::CallShape& shape, Index chunk_rows, Index kv_heads)
      : shape_(shape), chunk_rows_(chunk_rows), kv_heads_(kv_heads), group_(shape.group()) {
    enter();
  }

  /// Goes on to chunk `number`, which must not lie behind; false if there is none.
  bool seek(Index number) {
    for (; number_ < number && sequence_ < shape_.sequences(); ++number_) step();
    return sequence_ < shape_.sequences();
  }
  Chunk chunk() const { return {sequence_, head_, begin_, end_}; }

 private:
  /// To the next chunk: no division, which would cost as much as several rows of a small one.
  void step() {
    end_ = begin_;
    begin_ -= chunk_rows_;
    if (end_ > 0) return;
    end_ = rows_;
    begin_ = rows_ - last_;
    if (++head_ < kv_heads_) return;
    head_ = 0;
    ++sequence_;
    enter();
  }
  /// To the next sequence that has rows, from this one on.
  void enter() {
    for (; sequence_ < shape_.sequences(); ++sequence_) {
      rows_ = end_ = shape_.queries.length(sequence_) * group_;
      if (rows_ <= 0) continue;
      last_ = rows_ <= chunk_rows_ ? rows_ : (rows_ - 1) % chunk_rows_ + 1;
      begin_ = rows_ - last_;
      return;
    }
  }

  const detail::CallShape& shape_;
  Index chunk_rows_, kv_heads_, group_;
  Index number_ = 0, sequence_ = 0, head_ = 0;
  Index rows_ = 0, last_ = 0;  ///< of the sequence, under one key/value head; of its last chunk
  Index begin_ = 0, end_ = 0;  ///< of the chunk
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
