// attn/call/linear_backward.h: one call of a linear layer's backward pass: everything checked, then
// back through the activation and the product. Plumbing of linear_gradient.h.
// SPDX-License-Identifier: MIT
#pragma once

#include "../kernel/activation_gradient.h"
#include "../parameters.h"
#include "added_to_gradient.h"
#include "linear_backward_scratch.h"
#include "saved_outputs.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Every mistake in the options of a linear layer's backward pass that the types alone show.
/// `State`: of the forward call, or Absent.
template <class State, class... Options>
constexpr void check_linear_gradients() {
  static_assert((!is_operand_v<Options> && ...),
                "attn::Linear::backward: a matrix among the options: write what it is: dinput(dX) "
                "for the input's gradient, dweights(g) for the weights'");
  static_assert((!is_activation_functor<bare_t<Options>>::value && ...),
                "attn::Linear: an activation without its parentheses: write gelu()");
  static_assert((!is_of_kind_v<Options, IntoOption, LinearStateOption> && ...),
                "attn::Linear::backward: into() and save_state() are outputs of the forward call: "
                "a backward pass writes gradients, dweights(g), dinput(dX)");
  static_assert(((is_of_kind_v<Options, ActivationOption, ResidualOption, ExecutorOption, UseOption,
                               WeightsGradientOption, InputGradientOption, Accumulate::Kind> ||
                  is_operand_v<Options> || is_activation_functor<bare_t<Options>>::value ||
                  is_of_kind_v<Options, IntoOption, LinearStateOption>)&&...),
                "attn::Linear::backward: behind the output's gradient it takes the LinearState of "
                "the forward call, if there is one, its activation and residual, and what to "
                "write: dweights(g), dinput(dX); accumulate(), parallel(n) or on(pool), "
                "use(workspace)");
  check_kinds<Options...>();
  static_assert((is_of_kind_v<Options, WeightsGradientOption, InputGradientOption> || ...),
                "attn::Linear::backward: no gradient is asked for: add dweights(g), dinput(dX)");
  static_assert(is_there_v<State> || !given_v<ActivationOption, Options...>,
                "attn::Linear::backward: an activation without a state: its slope is taken at "
                "X·W + b, which the forward call keeps under save_state(state): write "
                "backward(X, dY, state, ...)");
}

/// A call of the backward pass: what it is given is checked before anything is written.
/// `State`: LinearStateStore, or Absent.
template <class Storage, class Input, class OutputGradient, class State, class Asked>
class LinearBackward {
  using Scalar = compute_t<Storage>;
  using S = Simd<Scalar>;
  using Context = LinearContext<Storage>;
  using Size = LinearBackwardScratch<Storage>;
  template <class Kind>
  static constexpr bool kAsks = Asked::template has<Kind>();
  static constexpr bool kAccumulates = kAsks<Accumulate::Kind>;
  static constexpr const char* kName = "attn::Linear::backward";
  static_assert(std::is_same_v<compute_t<std::remove_const_t<OutputGradient>>, Scalar>,
                "attn::Linear::backward: input, weights and output gradient must compute in one "
                "scalar: cast one of them");

 public:
  LinearBackward(const Context& layer, const GivenRows<Input>& input,
                 const GivenRows<OutputGradient>& output_gradient, const State& state,
                 const Asked& asked)
      : layer_(layer),
        input_(input.view),
        state_(state),
        asked_(asked),
        shape_(linear_shape(kName, layer.sizes, input.view, input.stacked)),
        rows_(shape_.queries.total()),
        output_gradient_(place_like_output(shape_, "output gradient", output_gradient.view,
                                           output_gradient.stacked)
                             .view),
        executor_(executor_of(kName, asked)),
        size_(layer.sizes, rows_, wanted(), executor_.workers()),
        transpose_(layer.weights) {
    check_linear_scratch(kName, layer.sizes, executor_.workers());
    // (What residual() adds has the output's gradient as its own.)
    residual_of<Scalar>(shape_, "the input", input_, asked_);
    if constexpr (is_there_v<State>) state.check(kName, linear_digest(layer.sizes, rows_, asked));
    check_outputs();
  }
  LinearBackward(const LinearBackward&) = delete;

  void run() {
    auto input_gradient = prepare_if_given<InputGradientOption>(shape_, asked_);
    Workspace<Scalar> brought;
    gradient_ = workspace_of(layer_.own != nullptr ? layer_.own : &brought, asked_)
                    .reserve_rows(size_.total());
    transposed_ = gradient_ + size_.gradient;
    shares_ = transposed_ + size_.transposed;
    input_gradient.commit();

    if constexpr (kAsks<ActivationOption>) {
      const auto& activation = asked_.template get<ActivationOption>();
      const auto slope = activation.template bind_slope<Scalar>();
      const auto through = rows_of(output_gradient_);
      prepare(kernel::ActivationGradient<S, bare_t<decltype(slope)>, bare_t<decltype(through)>>{
          slope, through, state_.rows(), rows_, layer_.sizes.out_features(), gradient_,
          size_.stride});
      finish(input_gradient, kernel::Rows<const Scalar>(gradient_, rows_, size_.stride));
    } else {
      prepare(NothingToFill{});
      finish(input_gradient, rows_of(output_gradient_));
    }
  }

 private:
  static constexpr LinearGradientsWanted wanted() {
    return {kAsks<WeightsGradientOption>, kAsks<InputGradientOption>, kAsks<ActivationOption>};
  }

  // What is refused.

  void check_outputs() const {
    Outputs outputs(kName);
    if constexpr (kAsks<InputGradientOption>) {
      outputs.add(
          InputGradientOption::kName,
          asked_.template get<InputGradientOption>().template check<Scalar>(shape_, kAccumulates));
    }
    if constexpr (kAsks<WeightsGradientOption>) {
      const auto& option = asked_.template get<WeightsGradientOption>();
      check_weights_gradient(*option.weights);
      option.add_to(outputs);
    }
    outputs.keep_from("the input", input_);
    outputs.keep_from("output gradient", output_gradient_);
  }
  template <class Weights>
  void check_weights_gradient(const Weights& g) const {
    static_assert(std::is_same_v<parameters_t<Weights>, LinearParameters>,
                  "attn::Linear::backward: dweights() of another kind of layer: write "
                  "LinearGradients<Scalar> g(linear.options())");
    static_assert(std::is_same_v<typename Weights::Scalar, Scalar>,
                  "attn::Linear::backward: the weights' gradients have the scalar that the layer "
                  "computes in: LinearGradients<float> for float, half and bfloat16");
    const LinearOptions& sizes = layer_.sizes;
    check_gradient_shape(kName, "weight", g.kernel(), sizes.in_features(), sizes.out_features());
    check_gradient_shape(kName, "bias", g.bias(), 1, sizes.has_bias() ? sizes.out_features() : 0);
  }

  // What is computed.

  struct NothingToFill {
    Index pieces() const { return 0; }
    void fill(Index) const {}
  };
  struct Transpose {
    const kernel::TransposedWeights<Scalar, Storage>& weights;
    Scalar* to;
    Index pieces() const { return kAsks<InputGradientOption> ? weights.pieces() : 0; }
    void fill(Index piece) const { weights.fill(piece, to); }
  };
  /// What the products read: the gradient behind the activation, the transposed weights.
  template <class Gradient>
  void prepare(const Gradient& gradient) const {
    const Transpose transpose{transpose_, transposed_};
    const Index pieces = gradient.pieces() + transpose.pieces();
    if (pieces == 0) return;
    std::atomic<Index> drawn{0};
    executor_.run(kernel::with_pieces(size_.prepare, pieces), [&](int) {
      kernel::draw_pieces(
          drawn, [](const auto& job) { return job.pieces(); },
          [](Index piece, const auto& job) { job.fill(piece); }, gradient, transpose);
    });
  }
  /// The products, which share nothing.
  template <class Prepared, class Gradient>
  void finish(const Prepared& input_gradient, const Gradient& gradient) const {
    std::atomic<Index> drawn[2] = {{0}, {0}};
    executor_.run(size_.finish, [&](int worker) {
      Scalar* const memory = shares_ + worker * size_.share;
      if constexpr (kAsks<InputGradientOption>)
        project_back(drawn[0], input_gradient, gradient, memory);
      if constexpr (kAsks<WeightsGradientOption>) sum_over_rows(drawn[1], gradient, memory);
    });
  }
  /// dX = dZ · Wᵀ, under residual() + dY.
  template <class Prepared, class Gradient>
  void project_back(std::atomic<Index>& drawn, const Prepared& input_gradient,
                    const Gradient& gradient, Scalar* memory) const {
    const kernel::Projector<S, Scalar> project(size_.project, memory);
    const auto to = rows_of(input_gradient.to.view);
    const auto added = added_to_gradient(asked_, output_gradient_, to);
    const auto weights = transpose_.in(transposed_);
    using Sink = kernel::MatrixSink<Scalar, bare_t<decltype(to)>, bare_t<decltype(added)>>;
    using Target = kernel::Target<bare_t<decltype(weights)>, Sink>;
    project(drawn,
            kernel::InputJob(gradient, rows_, Target{weights, Sink{project.tile(), to, added}}));
  }
  /// dW = Xᵀ · dZ and db = Σ dZ.
  template <class Gradient>
  void sum_over_rows(std::atomic<Index>& drawn, const Gradient& gradient, Scalar* memory) const {
    auto& g = *asked_.template get<WeightsGradientOption>().weights;
    const auto from = rows_of(input_);
    kernel::WeightGradients<S>(size_.weights, memory)(
        drawn, kernel::WeightGradientJob<bare_t<decltype(from)>, Gradient, Scalar>{
                   from, gradient, rows_, layer_.sizes.in_features(), layer_.sizes.out_features(),
                   kernel::weight_gradient_target<Scalar>(g.kernel(), g.bias()), kAccumulates});
  }

  const Context& layer_;
  TensorView<Input> input_;
  const State& state_;
  const Asked& asked_;
  CallShape shape_;
  Index rows_;
  TensorView<OutputGradient> output_gradient_;
  decltype(executor_of("", std::declval<const Asked&>())) executor_;
  Size size_;
  kernel::TransposedWeights<Scalar, Storage> transpose_;
  Scalar *gradient_ = nullptr, *transposed_ = nullptr, *shares_ = nullptr;
};

template <class Storage, class Input, class OutputGradient, class State, class Asked>
void run_linear_backward(const LinearContext<Storage>& layer, const GivenRows<Input>& input,
                         const GivenRows<OutputGradient>& output_gradient, const State& state,
                         const Asked& asked) {
  LinearBackward<Storage, Input, OutputGradient, State, Asked>(layer, input, output_gradient, state,
                                                               asked)
      .run();
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
