// attn/call/linear_call.h: one call of a linear layer: everything checked, then projected. Plumbing
// of linear.h.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../activation.h"
#include "../kernel/chunks.h"
#include "../kernel/projection_jobs.h"
#include "../linear_weights.h"
#include "kept_rows.h"
#include "options.h"
#include "projected_rows.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Every mistake in the options of a linear layer that the types alone show.
template <class... Options>
constexpr void check_linear_options() {
  static_assert((!is_operand_v<Options> && ...),
                "attn::Linear: a matrix among the options: write what it is: into(Y) for the "
                "output, residual(R) for what is added to it");
  static_assert((!is_activation_functor<bare_t<Options>>::value && ...),
                "attn::Linear: an activation without its parentheses: write gelu()");
  static_assert((!is_gradient_option_v<Options> && ...),
                "attn::Linear: a gradient among the options of a forward call: dweights(), "
                "dinput() are what linear.backward(X, dY, ...) writes");
  static_assert(((is_of_kind_v<Options, IntoOption, ActivationOption, ResidualOption,
                               LinearStateOption, ExecutorOption, UseOption> ||
                  is_operand_v<Options> || is_activation_functor<bare_t<Options>>::value ||
                  is_gradient_option_v<Options>)&&...),
                "attn::Linear: its options are into(Y), one of relu(), gelu(), gelu_tanh(), silu() "
                "and activation(f), residual(R), save_state() of a LinearState, parallel(n) or "
                "on(pool), use(workspace)");
  check_kinds<Options...>();
}

/// How many workers a call is worth, how they share it, and the scratch that this takes.
template <class Storage>
struct LinearScratch {
  using Scalar = compute_t<Storage>;
  int workers;
  kernel::ProjectionScratch<Scalar, Storage> worker;

  /// By up to `offered` workers, as many as the work is worth.
  constexpr LinearScratch(const LinearOptions& sizes, Index rows, int offered)
      : workers(workers_of(offered, double(rows),
                           double(sizes.in_features()) * double(sizes.out_features()))),
        worker(kernel::ProjectionScratch<Scalar, Storage>::of(rows, sizes.in_features(),
                                                              sizes.out_features(), workers)) {}

  /// The most that calls of up to so many rows and workers take.
  static constexpr Index most(const LinearOptions& sizes, Index rows, int offered) {
    const int workers = LinearScratch(sizes, rows, offered).workers;
    Index most = 0;
    for (int n = 1; n <= std::max(workers, 1); ++n)
      most = std::max(most, LinearScratch(sizes, rows, n).total());
    return most;
  }
  constexpr Index total() const { return std::max(workers, 1) * worker.total(); }

 private:
  static constexpr int workers_of(int offered, double rows, double weights) {
    return kernel::TileSize<Scalar>::workers(offered, rows * weights,
                                             weights * double(sizeof(Storage)));
  }
};

/// Refuses scratch that passes what can be counted.
inline void check_linear_scratch(const char* function, const LinearOptions& sizes, int workers) {
  check_product(function, "scratch for workers x in_features", workers,
                Count(160) * (Count(sizes.in_features()) + 64));
}

/// Scratch of a call of compile-time sizes, on the stack where it fits.
template <class Storage, int In, int Out, int MaxRows, class... Options>
struct LinearStack {
  static constexpr bool kBounded = In != Eigen::Dynamic && MaxRows != Eigen::Dynamic &&
                                   !given_v<ExecutorOption, Options...> &&
                                   !given_v<UseOption, Options...>;
  static constexpr Index kScalars =
      kBounded ? LinearScratch<Storage>(LinearOptions(In, Out), MaxRows, 1).total() : 1;
  static constexpr bool kFits =
      kBounded && fits_stack(kScalars * std::int64_t(sizeof(compute_t<Storage>)));
};

/// What a call brings beside its operands: the layer's sizes and panels, and scratch of its own if
/// it has some.
template <class Storage>
struct LinearContext {
  using Scalar = compute_t<Storage>;
  static constexpr const char* function = "attn::Linear";
  const LinearOptions& sizes;
  kernel::PanelWeights<Scalar, Storage> weights;
  Workspace<Scalar>* own;
};

/// The shape of the output: a row for each token of the input.
template <class T>
CallShape linear_shape(const char* function, const LinearOptions& sizes, const TensorView<T>& input,
                       bool stacked) {
  if (input.heads != 1) fail(text(function, ": the input has ", input.heads, " heads, needs 1"));
  check_features(function, "the input", input.extent(), sizes.in_features());
  CallShape shape;
  shape.function = function;
  shape.key_dim = sizes.in_features();
  shape.value_dim = sizes.out_features();
  shape.queries = {stacked ? 1 : input.sequences, input.tokens, nullptr};
  check_product(function, "rows x out_features", Count(shape.queries.total()), shape.value_dim);
  return shape;
}

template <class Scalar, class Asked>
auto linear_activation(const Asked& asked) {
  if constexpr (Asked::template has<ActivationOption>()) {
    return asked.template get<ActivationOption>().template bind<Scalar>();
  } else {
    return kernel::Unchanged{};
  }
}

/// How messages call the activation that is asked for; null where none is.
template <class Asked>
constexpr const char* activation_name() {
  if constexpr (Asked::template has<ActivationOption>()) {
    return bare_t<decltype(std::declval<Asked>().template get<ActivationOption>())>::kName;
  } else {
    return nullptr;
  }
}
/// The call as a state remembers it.
template <class Asked>
LinearDigest linear_digest(const LinearOptions& sizes, Index rows, const Asked&) {
  return {rows, sizes.in_features(), sizes.out_features(), activation_name<Asked>()};
}
/// The state that the call fills, or NothingKept.
template <class Scalar, class Asked>
auto prepare_linear_state(const LinearOptions& sizes, Index rows, const Asked& asked) {
  if constexpr (Asked::template has<LinearStateOption>()) {
    const auto& option = asked.template get<LinearStateOption>();
    static_assert(std::is_same_v<typename bare_t<decltype(option)>::Scalar, Scalar>,
                  "attn::save_state: the state has another scalar than the call computes in: "
                  "LinearState<float> for float, half and bfloat16");
    return PreparedLinearState<Scalar>(*option.store, linear_digest(sizes, rows, asked));
  } else {
    return NothingKept{};
  }
}

template <class Storage, class Input, class Asked>
void run_linear(const LinearContext<Storage>& layer, const GivenRows<Input>& given,
                const Asked& asked) {
  using Scalar = compute_t<Storage>;
  constexpr const char* function = LinearContext<Storage>::function;
  const TensorView<Input>& input = given.view;
  const CallShape shape = linear_shape(function, layer.sizes, input, given.stacked);
  const auto residual = residual_of<Scalar>(shape, "the input", input, asked);
  const auto& target = asked.template get<IntoOption>();
  static_assert(std::is_same_v<compute_t<typename bare_t<decltype(target)>::Scalar>, Scalar>,
                "attn::Linear: input, weights and output must compute in one scalar: cast one of "
                "them");
  const auto output_memory = target.check(shape);
  Outputs outputs(function);
  outputs.add("output", output_memory);
  outputs.keep_from("the input", input);
  if constexpr (is_there_v<decltype(residual)>) outputs.keep_from("residual", residual, 0);
  const auto& executor = executor_of(function, asked);
  check_linear_scratch(function, layer.sizes, executor.workers());

  const Index rows = shape.queries.total();
  const LinearScratch<Storage> size(layer.sizes, rows, executor.workers());
  Workspace<Scalar> brought;
  Scalar* const memory =
      workspace_of(layer.own != nullptr ? layer.own : &brought, asked).reserve_rows(size.total());
  auto output = target.prepare(shape, output_memory);
  auto state = prepare_linear_state<Scalar>(layer.sizes, rows, asked);
  commit(output, state);

  using Sink =
      kernel::MatrixSink<Scalar, decltype(rows_of(output.to.view)), decltype(rows_of(residual)),
                         decltype(linear_activation<Scalar>(asked)), decltype(state.to)>;
  using Panels = kernel::PanelWeights<Scalar, Storage>;
  std::atomic<Index> drawn{0};
  executor.run(kernel::with_pieces(size.workers, size.worker.pieces(rows)), [&](int worker) {
    const kernel::Projector<Simd<Scalar>, Storage> project(size.worker,
                                                           memory + worker * size.worker.total());
    const Sink sink{project.tile(), rows_of(output.to.view), rows_of(residual),
                    linear_activation<Scalar>(asked), state.to};
    project(drawn, kernel::InputJob(rows_of(input), rows,
                                    kernel::Target<Panels, Sink>{layer.weights, sink}));
  });
  state.complete();
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
