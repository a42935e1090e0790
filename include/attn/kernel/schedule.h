// attn/kernel/schedule.h: which worker attends what: chunks of rows, and on request parts of the
// keys.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <atomic>
#include <type_traits>

#include "chunks.h"
#include "forward.h"
#include "key_parts.h"
#include "problem.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// How the parts of the keys are shared by workers, and the scratch that this takes beside theirs.
template <class Problem>
auto shared_parts(const Problem& problem, const ScratchSize<typename Problem::Scalar>& size,
                  int workers) {
  using Shared = SharedParts<typename Problem::Scalar>;
  if constexpr (Problem::kInParts) {
    return Shared::of(problem.shape, problem.parts, size.rows, workers);
  } else {
    return Shared{};
  }
}

/// Attends all rows of the problem under some of its key/value heads, up to `workers` at a time;
/// `memory` holds ScratchSize::total() scalars for each, and those of shared_parts().
template <class Problem, class Executor>
void forward(const Problem& problem, const ScratchSize<typename Problem::Scalar>& size,
             typename Problem::Scalar* memory, int workers, const Executor& executor,
             const HeadRange& heads) {
  using Scalar = typename Problem::Scalar;
  using Pass = ForwardPass<Problem>;
  const Index kv_heads = heads.count();
  // body(pass, chunk, n) for every chunk and n < each; `together` heads of a chunk by one worker.
  const auto run = [&](Index together, Index each, const auto& body) {
    // A locked addition waits for all stores before it: not where there is no other worker.
    std::conditional_t<Executor::kAlone, Index, std::atomic<Index>> drawn{0};
    const int busy =
        Executor::kAlone
            ? 1
            : with_pieces(workers, each * chunks_of(problem.shape, size.rows, kv_heads / together));
    executor.run(busy, [&](int worker) {
      Pass pass(problem, Scratch<Scalar>(size, memory + worker * size.total()));
      ChunkWalk walk(problem.shape, std::max<Index>(size.rows, 1), kv_heads / together);
      for (Index number = drawn++; walk.seek(number / each); number = drawn++) {
        Chunk chunk = walk.chunk();
        chunk.kv_head += heads.begin;
        for (Index n = 0; n < together; ++n, ++chunk.kv_head) body(pass, chunk, number % each);
      }
    });
  };
  const Index together = Problem::kOverHeads ? kv_heads : 1;
  if constexpr (Problem::kInParts) {
    const auto shared = shared_parts(problem, size, workers);
    if (shared.parts > 0) {
      const auto states = [&](const Chunk& chunk, Index part) {
        const Index head = chunk.sequence * kv_heads + chunk.kv_head - heads.begin,
                    slot = head * shared.parts + part;
        return RowStates<Scalar>(
            memory + workers * size.total() + slot * shared.state(size.features), shared.rows,
            size.features);
      };
      run(1, shared.parts, [&](Pass& pass, const Chunk& chunk, Index part) {
        pass.attend_part(chunk, part, states(chunk, part));
      });
      run(together, 1, [&](Pass& pass, const Chunk& chunk, Index) {
        pass.merge_parts(chunk, [&](Index part) { return states(chunk, part); });
      });
      return;
    }
  }
  run(together, 1, [](Pass& pass, const Chunk& chunk, Index) { pass(chunk); });
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
