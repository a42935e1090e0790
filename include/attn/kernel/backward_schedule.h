// attn/kernel/backward_schedule.h: which worker does what of a backward pass.
// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <type_traits>

#include "backward.h"
#include "chunks.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// The sums of keys that chunks add to: of a sequence and head those of the worker that has its
/// first chunk; of keys that serve all sequences the call's own.
template <class Scalar>
class SharedKeySums {
 public:
  SharedKeySums(const BackwardSize<Scalar>& size, Scalar* memory) : size_(size), memory_(memory) {}

  KeySums<Scalar> of_worker(int worker) const { return at(worker); }
  KeySums<Scalar> of_head(Index head) const { return at(size_.workers + head); }
  /// Zeros for so many keys.
  void clear(const KeySums<Scalar>& sums, Index keys) const {
    if (!size_.wanted.keys) return;
    const Index whole = round_up(keys, TileSize<Scalar>::panel);
    std::fill_n(sums.key, whole * size_.key_features(), Scalar(0));
    std::fill_n(sums.value, whole * size_.value_features(), Scalar(0));
  }

 private:
  KeySums<Scalar> at(Index n) const { return size_.sums_in(memory_ + n * size_.sums()); }

  const BackwardSize<Scalar>& size_;
  Scalar* const memory_;
};

// WHAT     all chunks of some key/value heads, up to `workers` at a time, then the gradients of
//          their keys
// PICTURE  a worker draws the next chunk:   first of its sequence and head: the worker's sums are set to 0
//                                           then it adds, block after block, in its turn
//                                           last: it waits for the others, and writes dk and dv
// EDGES    a worker whose sums are still added to by others waits for them before it begins
//          another sequence and head. Sequences without queries have no chunk: their keys'
//          gradients are zeros
template <class Problem, class Executor>
class BackwardSchedule {
  using Scalar = typename Problem::Scalar;
  using Turns_ = std::conditional_t<Executor::kAlone, NoTurns, Turns>;
  using Turn = typename Turns_::Turn;
  static constexpr bool kKeys = detail::is_there_v<typename Problem::KeyGradient> ||
                                detail::is_there_v<typename Problem::ValueGradient>;

 public:
  BackwardSchedule(const Problem& problem, const BackwardSize<Scalar>& size, Scalar* memory,
                   const HeadRange& heads)
      : problem_(problem),
        shape_(problem.scored.shape),
        size_(size),
        memory_(memory),
        heads_(heads),
        sums_(size, memory + size.workers * size.worker()) {}

  void operator()(const Executor& executor) {
    if (shape_.shared_keys) {
      for (Index head = heads_.begin; head < heads_.end; ++head)
        sums_.clear(sums_.of_head(head), size_.keys);
    }
    const int busy = Executor::kAlone ? 1
                                      : with_pieces(size_.workers,
                                                    chunks_of(shape_, size_.rows, heads_.count()));
    executor.run(busy, [&](int worker) { work(worker); });
    if constexpr (kKeys) write_left();
  }

 private:
  /// The chunks [begin, end) that share sums.
  struct Together {
    Index begin = 0, end = 0;
  };

  void work(int worker) {
    ScratchWalk<Scalar> walk(memory_ + worker * size_.worker());
    const BackwardScratch<Scalar> scratch(size_, walk);
    BackwardPass<Problem> pass(problem_, scratch);
    ChunkWalk chunks(shape_, size_.rows, heads_.count());
    Together own;  // those that share the worker's sums
    for (Index number = drawn_++; chunks.seek(number); number = drawn_++) {
      Turn turn(turns_, number, worker);
      Chunk chunk = chunks.chunk();
      chunk.kv_head += heads_.begin;
      if (shape_.shared_keys) {
        pass(chunk, sums_.of_head(chunk.kv_head), turn, 0);
        continue;
      }
      const Together all = together(chunk, number);
      if (number == all.begin) {
        turn.wait_done(own.begin, own.end);
        own = all;
        sums_.clear(sums_.of_worker(worker), shape_.key_length(chunk.sequence));
        turn.reach(0);
      }
      const KeySums<Scalar> sums = sums_.of_worker(turn.worker_of(all.begin, worker));
      pass(chunk, sums, turn, all.begin);
      if (chunk.begin > 0) continue;
      turn.wait_done(all.begin, number);
      WriteGradient<Problem>{problem_}.keys(chunk.sequence, chunk.kv_head, sums, scratch.rows.row);
    }
  }
  /// Those of the chunk's sequence and head.
  Together together(const Chunk& chunk, Index number) const {
    const Index rows = shape_.queries.length(chunk.sequence) * (shape_.heads / shape_.kv_heads),
                behind = chunk.begin / size_.rows, all = (rows + size_.rows - 1) / size_.rows,
                end = number + behind + 1;
    return {end - all, end};
  }

  /// What no chunk has written.
  void write_left() {
    ScratchWalk<Scalar> walk(memory_);
    Scalar* const row = BackwardScratch<Scalar>(size_, walk).rows.row;
    const WriteGradient<Problem> write{problem_};
    if (shape_.shared_keys) {
      for (Index head = heads_.begin; head < heads_.end; ++head)
        write.keys(0, head, sums_.of_head(head), row);
      return;
    }
    for (Index b = 0; b < shape_.sequences(); ++b) {
      if (shape_.queries.length(b) > 0) continue;
      sums_.clear(sums_.of_worker(0), shape_.key_length(b));
      for (Index head = heads_.begin; head < heads_.end; ++head)
        write.keys(b, head, sums_.of_worker(0), row);
    }
  }

  const Problem& problem_;
  const detail::CallShape& shape_;
  const BackwardSize<Scalar>& size_;
  Scalar* const memory_;
  const HeadRange heads_;
  const SharedKeySums<Scalar> sums_;
  Turns_ turns_;
  std::conditional_t<Executor::kAlone, Index, std::atomic<Index>> drawn_{0};
};

/// Computes the gradients that the problem asks for, of some of its key/value heads; `memory` holds
/// size.total() scalars. (Those of what modifies scores have theirs once all heads are done:
/// ScoreGradients::finish.)
template <class Problem, class Executor>
void backward(const Problem& problem, const BackwardSize<typename Problem::Scalar>& size,
              typename Problem::Scalar* memory, const Executor& executor, const HeadRange& heads) {
  BackwardSchedule<Problem, Executor>(problem, size, memory, heads)(executor);
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
