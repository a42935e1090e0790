// attn/call/backward_call.h: a call of the backward pass: the forward call understood anew, its
// state and the gradients checked, then the engine. Plumbing of gradient.h.
// SPDX-License-Identifier: MIT
#pragma once

#include "../kernel/backward_schedule.h"
#include "attention_call.h"
#include "gradient_outputs.h"
#include "score_gradient_outputs.h"
#include "state_store.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Kinds of gradients that a call writes: of operands.
using GradientKinds = Order<QueryGradientOption, KeyGradientOption, ValueGradientOption>;

/// A gradient that a backward pass of attention writes, or what it is told of them.
template <class Option>
constexpr bool is_attention_gradient() {
  return is_of_order_v<Option, GradientKinds> || is_of_order_v<Option, ScoreGradientKinds> ||
         is_of_kind_v<Option, LogSumExpGradientOption, Accumulate::Kind>;
}

/// An output of the forward call.
template <class Option>
constexpr bool is_forward_output() {
  return is_of_kind_v<Option, IntoOption, WeightsOption, ScoresOption, StateOption> ||
         is_of_order_v<Option, kernel::RowNumbers>;
}
/// What a backward pass multiplies, of attention or of a layer.
template <class... Options>
constexpr void check_products() {
  static_assert(!given_v<NativeBfloat16Option, Options...>,
                "attn::native_bfloat16: a backward pass multiplies floats: it is an option of "
                "forward calls that no backward pass follows");
}
/// check_options() of a backward pass.
template <class... Options>
constexpr void check_backward_options() {
  check_given<Options...>();
  check_residual<Options...>();
  check_score_gradients<Options...>();
  static_assert(
      (!is_forward_output<Options>() && ...),
      "attn::attention_backward: into() and save_...() are outputs of the forward call: a "
      "backward pass writes gradients, dquery(dQ), dkey(dK), dvalue(dV)");
  check_products<Options...>();
  constexpr bool known =
      (... && (is_attention_option<Options>() || is_attention_gradient<Options>() ||
               makes_option<Options>() || is_operand_v<Options>));
  static_assert(known,
                "attn::attention_backward: unknown option: it takes the options of the forward "
                "call, and what to write: dquery(), dkey(), dvalue(), ...");
  static_assert(
      ((is_of_order_v<Options, GradientKinds> || is_of_order_v<Options, ScoreGradientKinds>) ||
       ...),
      "attn::attention_backward: no gradient is asked for: add dquery(dQ), dkey(dK), "
      "dvalue(dV)");
}

/// The output gradient, laid out as the output; columns without heads() are the heads side by side.
template <class Scalar, class Lifted>
auto bind_output_gradient(const CallShape& shape, const Lifted& lifted) {
  static_assert(std::is_same_v<compute_t<typename Lifted::Scalar>, Scalar>,
                "attn::attention_backward: query, key, value and output gradient must compute in "
                "one scalar: cast one of them");
  static constexpr const char* kName = "output gradient";
  const auto view = read_only(lifted.view(shape.function, kName));
  const Index columns = view.heads * view.features, needed = shape.heads * shape.value_dim;
  if (Lifted::kStacked && columns != needed) {
    fail(text(shape.function, ": ", kName, " has ", columns,
              " columns, needs heads · d_v = ", needed));
  }
  return place_like_output(shape, kName, view, Lifted::kStacked);
}

/// check_amounts(), and of the sums over queries: each worker has those of a sequence's keys.
inline void check_backward_amounts(const CallShape& shape, int workers) {
  check_amounts(shape, workers, false);
  check_product(shape.function, "scratch for workers x (keys + rows) x (key_dim + value_dim)",
                Count(workers) + shape.kv_heads, Count(shape.keys.longest()) + 2048,
                Count(4) * (Count(shape.key_dim) + shape.value_dim + 256));
}

/// Where the gradients of a call's operands go, whatever its options say of them: Gradient, or
/// Absent for what is not computed; whether they are added to what stands there.
template <class Query, class Key, class Value>
struct OperandGradients {
  const Query& query;
  const Key& key;
  const Value& value;
  bool accumulates;
  kernel::WrittenKeys keys{};

  /// f(gradient) of those that are there.
  template <class F>
  void each(const F& f) const {
    const auto visit = [&](const auto& gradient) {
      if constexpr (is_there_v<decltype(gradient)>) f(gradient);
    };
    visit(query);
    visit(key);
    visit(value);
  }
};
template <class Query, class Key, class Value>
OperandGradients<Query, Key, Value> operand_gradients(const Query& query, const Key& key,
                                                      const Value& value, bool accumulates,
                                                      const kernel::WrittenKeys& keys = {}) {
  return {query, key, value, accumulates, keys};
}
/// As the options of a call say.
template <class Asked>
auto gradients_asked(const Asked& asked) {
  return operand_gradients(
      asked.template get<QueryGradientOption>(), asked.template get<KeyGradientOption>(),
      asked.template get<ValueGradientOption>(), Asked::template has<Accumulate::Kind>());
}
/// What such a gradient is written through, its new memory taken.
template <class Gradient>
auto prepare_gradient(const CallShape& shape, const Gradient& gradient) {
  if constexpr (is_there_v<Gradient>) {
    return gradient.prepare(shape);
  } else {
    return NotPrepared{};
  }
}

/// A call of the backward pass on operands whose shape is known. `State`: a StateStore, or what
/// stands for one.
template <class Query, class Source, class Asked, class OutputGradient, class State,
          class Gradients>
class BackwardCall {
  using Scalar = compute_t<std::remove_const_t<Query>>;

 public:
  BackwardCall(const CallShape& shape, const Operand<Query>& query, const Source& source,
               const Asked& asked, const Operand<OutputGradient>& output_gradient,
               const State& state, const Gradients& gradients)
      : shape_(shape),
        query_(query),
        source_(source),
        asked_(asked),
        output_gradient_(output_gradient),
        state_(state),
        gradients_(gradients),
        bound_(shape, source, asked),
        logsumexp_gradient_(bind<LogSumExpGradientOption, Scalar>(shape, asked)) {
    state.check(bound_);
    check_outputs();
  }

  /// `own`: scratch of the caller's object, or null; first(): what is done once nothing can be
  /// refused any more, before an operand is read; `rounds`: HeadsAtOnce, or another way through
  /// the heads.
  template <class Executor, class First = NothingFirst, class Rounds = HeadsAtOnce>
  void run(Workspace<Scalar>* own, const Executor& executor, const First& first = {},
           const Rounds& rounds = {}) const {
    auto query = prepare_gradient(shape_, gradients_.query);
    auto key = prepare_gradient(shape_, gradients_.key);
    auto value = prepare_gradient(shape_, gradients_.value);
    auto scored = bound_.problem(query_, Absent{}, Absent{}, NothingSaved{}, Absent{});
    auto scores = prepare_score_gradients<Scalar>(shape_, asked_);
    auto problem = problem_of(scored, query.to, key.to, value.to, scores.targets());

    const int workers = Executor::kAlone ? 1 : useful_workers<Scalar>(executor.workers(), shape_);
    const auto size = kernel::BackwardSize<Scalar>::of(
        shape_, workers, wanted(problem, rounds.heads_at_once(shape_)));
    const Index all = size.total(), angles = angles_of(bound_.rotation);
    Workspace<Scalar> brought;
    Scalar* const memory = workspace_of(own != nullptr ? own : &brought, asked_)
                               .reserve(all + angles + problem.scores.scratch(shape_));
    rounds.meet();
    commit(query, key, value, scores);
    first();
    problem.scores.place(shape_, memory + all + angles);
    scored.rotation = fill_angles(bound_.rotation, memory + all);
    rounds.each(problem, [&](const kernel::HeadRange& heads) {
      kernel::backward(problem, size, memory, executor, heads);
    });
    rounds.finish(problem.scores, shape_);
  }

 private:
  using NothingSaved = kernel::Saved<Absent, Absent, Absent>;
  using LogSumExp = decltype(bind<LogSumExpGradientOption, Scalar>(std::declval<CallShape>(),
                                                                   std::declval<Asked>()));
  template <class Kind>
  static constexpr bool kAsks = Asked::template has<Kind>();

  template <class Problem>
  kernel::Wanted wanted(const Problem& problem, Index heads) const {
    kernel::Wanted wanted;
    wanted.keys =
        is_there_v<typename Problem::KeyGradient> || is_there_v<typename Problem::ValueGradient>;
    wanted.heads = heads;
    wanted.slopes = kernel::AddScoreGradients<Problem>::kKept;
    wanted.partial_rows = problem.scores.partial_rows(shape_.heads / shape_.kv_heads);
    wanted.rotates = kAsks<RotaryOption>;
    return wanted;
  }

  /// Refuses gradients that do not fit, or share memory with one another or with what is read.
  void check_outputs() const {
    Outputs outputs(shape_.function);
    gradients_.each([&](const auto& gradient) {
      outputs.add(gradient.kName, gradient.template check<Scalar>(shape_, gradients_.accumulates));
    });
    add_score_gradients<Scalar>(outputs, shape_, asked_);
    const auto keep_apart = [&](const char* name, const auto& input) {
      outputs.keep_from(name, input);
    };
    keep_apart("query", query_.view);
    source_.visit_memory(shape_, keep_apart);
    keep_apart("output gradient", output_gradient_.view);
    if constexpr (is_there_v<LogSumExp>) keep_apart("dlogsumexp", logsumexp_gradient_.view);
    asked_.each([&](const auto& option) { option.visit_memory(keep_apart); });
  }
  template <class Scored, class QueryGradient, class KeyGradient, class ValueGradient, class Scores>
  auto problem_of(Scored& scored, const QueryGradient& query, const KeyGradient& key,
                  const ValueGradient& value, const Scores& scores) const {
    kernel::BackwardProblem<Scored, Operand<OutputGradient>, LogSumExp, QueryGradient, KeyGradient,
                            ValueGradient, Scores>
        problem{scored, state_.rows(), output_gradient_, logsumexp_gradient_, query, key,
                value,  scores};
    problem.keys = gradients_.keys;
    problem.accumulates = gradients_.accumulates;
    return problem;
  }

  const CallShape& shape_;
  Operand<Query> query_;
  const Source& source_;
  const Asked& asked_;
  Operand<OutputGradient> output_gradient_;
  const State& state_;
  Gradients gradients_;
  BoundOptions<Scalar, Source, Asked> bound_;
  LogSumExp logsumexp_gradient_;
};

/// The door of a backward pass, its options opened.
template <class Scalar, class Query, class Given, class OutputGradient, class... Options>
void differentiate_opened(const char* function, Workspace<Scalar>* own, Query&& Q,
                          const Given& given, OutputGradient&& dY, const StateStore<Scalar>& state,
                          Options&... options) {
  check_backward_options<Options...>();
  const Asked<Options...> asked(options...);
  const GivenCall<Query, Given, Asked<Options...>> call(function, std::forward<Query>(Q), given,
                                                        asked);
  const auto& executor = executor_of(function, asked);
  check_backward_amounts(call.shape, executor.workers());
  const auto held = lift(std::forward<OutputGradient>(dY));
  BackwardCall(call.shape, call.query(), call.source, asked,
               bind_output_gradient<Scalar>(call.shape, held), state, gradients_asked(asked))
      .run(own, executor);
}
template <class Scalar, class Query, class Given, class OutputGradient, class... Options>
void differentiate(const char* function, Workspace<Scalar>* own, Query&& Q, const Given& given,
                   OutputGradient&& dY, const StateStore<Scalar>& state, Options&&... options) {
  Given::template check_types<Query>();
  static_assert(is_operand_v<OutputGradient>,
                "attn::attention_backward: the output gradient is an Eigen matrix, heads(dY, n) of "
                "one, or a strided view (bhld, blhd, lbhd)");
  static_assert(
      !is_operand_v<Query> ||
          std::is_same_v<Scalar, compute_t<typename operand_traits<bare_t<Query>>::Scalar>>,
      "attn::attention_backward: the state has another scalar than the call computes in: "
      "AttentionState<float> for float, half and bfloat16");
  with_opened(
      [&](auto&... opened) {
        differentiate_opened(function, own, std::forward<Query>(Q), given,
                             std::forward<OutputGradient>(dY), state, opened...);
      },
      options...);
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
