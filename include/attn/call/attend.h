// attn/call/attend.h: one call of attention on operands whose shape is known: options understood,
// outputs checked, then the engine. The inner door, for attention() and the layers alike.
// SPDX-License-Identifier: MIT
#pragma once

#include <utility>

#include "../kernel/fixed_pass.h"
#include "../kernel/schedule.h"
#include "attention_shape.h"
#include "bound_options.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// The parts that keys are attended in, or Absent.
template <class Scalar, class Asked>
auto parts_of(const CallShape& shape, const Asked& asked) {
  if constexpr (Asked::template has<SplitKeysOption>()) {
    const SplitKeys& option = asked.template get<SplitKeysOption>();
    option.check(shape.function);
    return kernel::KeyParts::of<Scalar>(option.chunk, shape.keys.longest(), shape.key_dim,
                                        shape.value_dim);
  } else {
    return Absent{};
  }
}

/// Refuses outputs that cannot be written, share memory with one another, or with what is read.
template <class Query, class Source, class Asked, class Output, class Residual>
void check_outputs(const CallShape& shape, const Operand<Query>& query, const Source& source,
                   const Asked& asked, const OutputMemory<Output>& output,
                   const Residual& residual) {
  Outputs outputs(shape.function);
  outputs.add("output", output);
  add_saved(outputs, shape, asked);
  const auto keep_apart = [&](const char* name, const auto& input) {
    outputs.keep_from(name, input);
  };
  outputs.keep_from("query", query.view, 0);
  source.visit_memory(shape, keep_apart);
  if constexpr (is_there_v<Residual>) outputs.keep_from("residual", residual.view, 0);
  asked.each([&](const auto& option) { option.visit_memory(keep_apart); });
}

/// What the engine gets beside its problem: scratch for each of some workers, and their executor.
template <class Problem, class Rotation, class Executor>
struct EngineRun {
  using Scalar = typename Problem::Scalar;
  Problem& problem;
  const Rotation& rotation;
  const Executor& executor;
  int workers;
  kernel::ScratchSize<Scalar> size;

  EngineRun(Problem& p, const Rotation& r, const Executor& e, Index scratch_keys)
      : problem(p),
        rotation(r),
        executor(e),
        workers(Executor::kAlone ? 1 : useful_workers<Scalar>(e.workers(), p.shape)),
        size(sized(p.shape, scratch_keys, workers)) {
    if constexpr (is_there_v<Rotation>) size.rotated_keys = kernel::TileSize<Scalar>::panel;
    if constexpr (Problem::kInParts) size.states = 2;
    if constexpr (Problem::kSavesPairs) size.save_pairs();
  }
  /// reserve(n): memory of n scalars. Then all memory is there: commit() has the outputs take
  /// theirs, and from here on only what the user gave can throw. `rounds`: HeadsAtOnce, or another.
  template <class Reserve, class Commit, class Rounds>
  void operator()(const Reserve& reserve, const Commit& commit, const Rounds& rounds) const {
    const Index all =
        size.total() * workers + kernel::shared_parts(problem, size, workers).total(size.features);
    Scalar* const memory = reserve(all + angles_of(rotation));
    rounds.meet();
    commit();
    problem.rotation = fill_angles(rotation, memory + all);
    rounds.each(problem, [&](const kernel::HeadRange& heads) {
      kernel::forward(problem, size, memory, workers, executor, heads);
    });
  }

 private:
  static kernel::ScratchSize<Scalar> sized(const CallShape& shape, Index keys, int workers) {
    const Index group = shape.group();
    Index chunk_rows =
        kernel::TileSize<Scalar>::chunk_rows(shape.queries.total() * shape.heads, workers);
    if (Problem::kOverHeads) chunk_rows = std::max(group, chunk_rows / group * group);
    return {shape.queries.longest() * group, keys, shape.key_dim, shape.value_dim, chunk_rows};
  }
};

/// f(reserve) with scratch on the stack.
/// WHY  not inlined: it is taken when it is needed, not for as long as the call lasts
template <class OnStack, class Scalar, class F>
ATTN_NOINLINE void with_stack(const F& f) {
  alignas(64) Scalar memory[OnStack::kTotal];
  f([&](Index) { return memory; });
}
/// f(reserve) with the scratch of a call: on the stack where it fits, lent by use(), the object's
/// own, or brought along.
template <class Sizes, class Scalar, class Asked, class F>
void with_scratch(Workspace<Scalar>* own, const Asked& asked, const F& f) {
  using OnStack = StackScratch<Scalar, Sizes, Asked>;
  if constexpr (OnStack::kFits) {
    with_stack<OnStack, Scalar>(f);
  } else {
    Workspace<Scalar> brought;
    f([&](Index n) { return workspace_of(own != nullptr ? own : &brought, asked).reserve(n); });
  }
}

/// In place of what a pass does first.
struct NothingFirst {
  void operator()() const {}
};

/// How a call goes through its key/value heads: all in one round. meet() comes where nothing can be
/// refused any more and nothing is written yet; each() calls f with the heads of one round after
/// the other; finish() ends sums over all rows of a backward pass.
struct HeadsAtOnce {
  Index heads_at_once(const CallShape& shape) const { return shape.kv_heads; }
  void meet() const {}
  template <class Problem, class F>
  void each(Problem& problem, const F& f) const {
    f(kernel::HeadRange{0, problem.shape.kv_heads});
  }
  template <class ScoreGradients>
  void finish(const ScoreGradients& scores, const CallShape& shape) const {
    scores.finish(shape);
  }
};

/// Attends: understands the options, refuses what cannot be, and runs the engine.
/// `Sizes`: FixedSizes; `own`: scratch of the caller's object, or null; `into`, `residual`: the
/// output, and an operand like it or Absent, whatever the options say of them; first(): what is
/// done once nothing can be refused any more, before an operand is read; `rounds`: HeadsAtOnce, or
/// another way through the heads.
template <class Sizes, class Scalar, class Query, class Source, class Asked, class Into,
          class Residual, class First = NothingFirst, class Rounds = HeadsAtOnce>
void attend(Workspace<Scalar>* own, const CallShape& shape, const Operand<Query>& query,
            const Source& source, const Asked& asked, const Into& into, const Residual& residual,
            const First& first = {}, const Rounds& rounds = {}) {
  const auto& executor = executor_of(shape.function, asked);
  check_amounts(shape, executor.workers(), Asked::template has<SplitKeysOption>());
  const BoundOptions<Scalar, Source, Asked> bound(shape, source, asked);
  const auto parts = parts_of<Scalar>(shape, asked);

  static_assert(std::is_same_v<compute_t<typename Into::Scalar>, Scalar>,
                "attn: query, key, value and output must compute in one scalar: cast one of them");
  // Outputs are refused before anything is written, and sized once nothing can be refused any more.
  const auto output_memory = into.check(shape);
  check_outputs(shape, query, source, asked, output_memory, residual);
  auto output = into.prepare(shape, output_memory);
  auto saved = prepare_saved(bound, asked);

  bool started = false;
  const auto start = [&] {
    if (std::exchange(started, true)) return;
    commit(output, saved);
    first();
  };
  const auto complete = [&] {
    output.complete();
    saved.complete();
  };
  auto problem = bound.problem(query, output.to, residual, saved.targets(), parts);
  using Problem = decltype(problem);
  if constexpr (std::is_same_v<Rounds, HeadsAtOnce> && kernel::has_fixed_pass_v<Problem, Sizes> &&
                StackScratch<Scalar, Sizes, Asked>::kFits) {
    // Where it gives up, outputs have their sizes already: what follows takes no memory either.
    if (shape.sequences() == 1) {
      start();
      if (kernel::attend_fixed<Sizes>(problem)) return complete();
    }
  }
  const EngineRun<Problem, bare_t<decltype(bound.rotation)>, bare_t<decltype(executor)>> run(
      problem, bound.rotation, executor, source.scratch_keys(shape));
  with_scratch<Sizes>(own, asked, [&](const auto& reserve) { run(reserve, start, rounds); });
  complete();
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
