// attn/kernel/backward_scratch.h: the scratch of a backward pass: of each worker, and of the call.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "gradient_keys.h"
#include "gradient_rows.h"
#include "problem.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// What a call asks for, as far as its scratch depends on it.
struct Wanted {
  bool keys = false;       ///< gradients of keys or values
  bool rotates = false;    ///< queries and keys are turned
  int slopes = 0;          ///< of modifiers, that are kept for each pair
  Index partial_rows = 0;  ///< of sums for the gradient of a bias
  Index heads = 1;         ///< key/value heads that chunks are drawn of at a time
};

/// Hands out memory part after part, each on a cache line; without memory, counts.
template <class Scalar>
class ScratchWalk {
 public:
  explicit ScratchWalk(Scalar* memory = nullptr) : memory_(memory) {}
  Scalar* take(Index n) {
    Scalar* const taken = memory_ == nullptr ? nullptr : memory_ + taken_;
    taken_ += whole_lines(n);
    return taken;
  }
  Index taken() const { return taken_; }

 private:
  Scalar* memory_;
  Index taken_ = 0;
};

/// The sums that become dk and dv, of the keys of a sequence and key/value head: rows of whole
/// panels.
template <class Scalar>
struct KeySums {
  Scalar *key, *value;
};

/// Sizes of the scratch, out of the shape alone.
template <class Scalar>
struct BackwardSize {
  using Size = TileSize<Scalar>;
  Index rows;         ///< of a chunk
  Index block, keys;  ///< of a block; of the longest sequence, in whole panels
  Index key_dim, value_dim;
  Index shared_heads;  ///< whose keys serve all sequences: their sums are the call's
  int workers;
  Wanted wanted;

  static BackwardSize of(const detail::CallShape& shape, int workers, const Wanted& wanted) {
    const Index group = shape.heads / shape.kv_heads, longest = shape.keys.longest(),
                block = Size::key_block(shape.key_dim, shape.value_dim);
    const Index most = chunk_rows(shape, workers, wanted.heads),
                all = round_up(std::max<Index>(shape.queries.longest() * group, 1), Size::rows);
    return {std::min(most, all),
            round_up(std::min(longest, block), Size::panel),
            round_up(longest, Size::panel),
            shape.key_dim,
            shape.value_dim,
            shape.shared_keys && wanted.keys ? shape.kv_heads : 0,
            workers,
            wanted};
  }

  Index key_features() const { return round_up(key_dim, Size::panel); }
  Index value_features() const { return round_up(std::max<Index>(value_dim, 1), Size::panel); }
  /// Rows whose weights are kept together.
  Index kept_rows() const {
    return std::min<Index>(round_up(rows, Size::depth), Size::gradient_rows);
  }

  Index sums() const {
    if (!wanted.keys) return 0;
    return whole_lines(keys * key_features()) + whole_lines(keys * value_features());
  }
  KeySums<Scalar> sums_in(Scalar* memory) const {
    return {memory, memory + whole_lines(keys * key_features())};
  }
  /// Of one worker, of the call.
  Index worker() const;
  Index total() const { return workers * (worker() + sums()) + shared_heads * sums(); }

 private:
  /// Where sequences and heads are enough for all workers, chunks are as large as scratch allows:
  /// they share no sums. Else there are eight for each worker; one that has to wait for its turn
  /// lags behind by a block of keys.
  static Index chunk_rows(const detail::CallShape& shape, int workers, Index heads) {
    const Index units = shape.sequences() * heads;
    if (units >= 4 * Index(workers)) return Size::max_gradient_chunk;
    const Index all = shape.queries.total() * shape.group() * heads, pieces = 8 * Index(workers),
                share = round_up((all + pieces - 1) / pieces, Size::gradient_rows);
    return std::clamp<Index>(share, 2 * Size::gradient_rows, Size::max_gradient_chunk);
  }
};

/// The parts of a worker's scratch.
template <class Scalar>
struct BackwardScratch {
  using Size = TileSize<Scalar>;
  Scratch<Scalar> scored;  ///< of stages 1 and 2; scores are those of kept rows
  GradientKeysMemory<Scalar> keys;
  GradientRowsMemory<Scalar> rows;
  Scalar* score_gradients;  ///< ds, laid out as the scores
  Scalar* slopes;           ///< of a strip, one such after the other
  Scalar* bias_sums;        ///< of the rows whose weights are kept
  Scalar* query_sums;       ///< dq of the chunk's rows, before the scale
  Scalar* weight_sums;      ///< a number a row, for WeightCheck; there in all builds

  BackwardScratch(const BackwardSize<Scalar>& size, ScratchWalk<Scalar>& walk)
      : scored(
            ScratchSize<Scalar>(size.rows, size.block, size.key_dim, size.value_dim, size.rows)) {
    const Index depth = scored.size.depth,
                value_depth = round_up(std::max<Index>(size.value_dim, 1), Size::depth),
                rows_padded = round_up(size.rows, Size::depth),
                kept = size.kept_rows() * Size::score_stride;
    const Index turned = size.wanted.rotates ? Size::panel * depth : 0;
    scored.rotated = walk.take(turned);
    scored.query = walk.take(size.rows * depth);
    scored.key = walk.take(size.block * depth);
    scored.scores = walk.take(kept);
    scored.lane_max = walk.take(scored.size.lane_max());
    keys = {walk.take(size.block * value_depth), walk.take(size.block * size.key_features()),
            walk.take(turned), value_depth, size.block};
    rows = {walk.take(size.rows * value_depth),
            walk.take(rows_padded * size.value_features()),
            walk.take(rows_padded * size.key_features()),
            walk.take(size.rows + Size::width),
            walk.take(size.rows + Size::width),
            walk.take(std::max(size.key_features(), size.value_features())),
            rows_padded,
            value_depth,
            depth};
    score_gradients = walk.take(kept);
    slopes = walk.take(Index(size.wanted.slopes) * Size::rows * Size::score_stride);
    bias_sums = walk.take(size.wanted.partial_rows * Size::score_stride);
    query_sums = walk.take(size.rows * size.key_features());
    weight_sums = walk.take(size.rows);
  }
};
template <class Scalar>
Index BackwardSize<Scalar>::worker() const {
  ScratchWalk<Scalar> counted;
  BackwardScratch<Scalar>(*this, counted);
  return counted.taken();
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
