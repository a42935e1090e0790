// attn/call/layer_backward.h: one call of a layer's backward pass: everything checked, then back
// through the output projection, the attention and the projections of the inputs. Plumbing of
// multi_head_gradient.h.
// SPDX-License-Identifier: MIT
#pragma once

#include "added_to_gradient.h"
#include "layer_backward_options.h"
#include "layer_backward_scratch.h"
#include "layer_state.h"
#include "matrix_source.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// A call of a layer's backward pass: what it is given is checked before anything is written.
template <class Storage, int Inputs, class Query, class Key, class Value, class Asked,
          class OutputGradient>
class LayerBackward {
  using Scalar = compute_t<Storage>;
  using S = Simd<Scalar>;
  using Layer = LayerContext<Storage>;
  using Size = LayerBackwardScratch<Storage>;
  using Transposed = typename Size::Transposed;
  using Of = InputOf<Inputs>;
  template <class Kind>
  static constexpr bool kAsks = Asked::template has<Kind>();
  static constexpr bool kWeights = kAsks<WeightsGradientOption>;
  static constexpr bool kAccumulates = kAsks<Accumulate::Kind>;
  static_assert(std::is_same_v<compute_t<std::remove_const_t<OutputGradient>>, Scalar>,
                "attn::MultiHeadAttention::backward: inputs, weights and output gradient must "
                "compute in one scalar: cast one of them");

  /// The gradient of input n is asked for.
  template <int Input>
  using InputKind =
      std::conditional_t<Input == 0, QueryGradientOption,
                         std::conditional_t<Input == 1, KeyGradientOption, ValueGradientOption>>;
  /// What a projection that reads input n needs of the attention.
  template <int Input>
  static constexpr bool kNeeds = kWeights || kAsks<InputKind<Input>>;

 public:
  LayerBackward(const Layer& layer, const GivenRows<Query>& query, const GivenRows<Key>& key,
                const GivenRows<Value>& value, const GivenRows<OutputGradient>& output_gradient,
                const LayerStateStore<Scalar>& state, const Asked& asked)
      : layer_(layer),
        in_(layer, query, key, value, asked),
        asked_(asked),
        state_(state),
        executor_(executor_of(layer.function, asked)),
        out_shape_(checked_output_shape()),
        output_gradient_(place_like_output(out_shape_, "output gradient", output_gradient.view,
                                           output_gradient.stacked)
                             .view),
        projected_(layer.sizes, in_.query_rows(), in_.key_rows(), 1),
        size_(layer.sizes, inputs_, kWeights, in_.query_rows(), executor_.workers()) {}
  LayerBackward(const LayerBackward&) = delete;

  void run() {
    check_outputs();
    take_scratch();
    const auto rows = state_.projected(projected_);
    const KeyValueViews<const Scalar, const Scalar> source{
        rows_of_heads<const Scalar>(rows.key, in_.key_rows(), sizes().kv_heads(), sizes().key_dim(),
                                    projected_.key_stride),
        rows_of_heads<const Scalar>(rows.value, in_.key_rows(), sizes().kv_heads(),
                                    sizes().value_dim(), projected_.value_stride)};
    const auto query_rows = rows_of_heads<const Scalar>(
        rows.query, in_.query_rows(), sizes().heads(), sizes().key_dim(), projected_.query_stride);
    const auto mixed = rows_of_heads<const Scalar>(mixed_, size_.mixed_rows, sizes().heads(),
                                                   sizes().value_dim(), size_.mixed_stride);
    const auto to_query = gradient_in<QueryGradientOption, Of::query>(
        query_column(), in_.query_rows(), sizes().heads(), sizes().key_dim());
    const auto to_key = gradient_in<KeyGradientOption, Of::key>(
        key_column(), in_.key_rows(), sizes().kv_heads(), sizes().key_dim());
    const auto to_value = gradient_in<ValueGradientOption, Of::value>(
        value_column(), in_.key_rows(), sizes().kv_heads(), sizes().value_dim());
    const BackwardCall attention(in_.shape, place(query_rows.view, true, in_.shape.queries), source,
                                 asked_, place(mixed.view, true, in_.shape.queries),
                                 state_.attention,
                                 operand_gradients(to_query, to_key, to_value, false));

    auto first = prepare<0>();
    auto second = prepare<1>();
    auto third = prepare<2>();
    attention.run(layer_.own, executor_, [&] {
      commit(first, second, third);
      transpose_weights();
      mixed_gradient();
    });
    finish(first, second, third);
  }

 private:
  const MultiHeadOptions& sizes() const { return layer_.sizes; }

  // What the call is.

  CallShape checked_output_shape() {
    check_backward_amounts(in_.shape, executor_.workers());
    check_rows(layer_.function, sizes(), in_.query_rows(), in_.key_rows(), executor_.workers());
    count_inputs();
    const CallShape output = in_.output_shape(sizes());
    // (What residual() adds has the output's gradient as its own.)
    residual_of<Scalar>(output, "the query input", in_.query.view, asked_);
    return output;
  }
  void count_inputs() {
    const auto add = [&](int input, Index rows, Index features, Index width) {
      inputs_[input].rows = rows;
      inputs_[input].features = features;
      inputs_[input].width += width;
      inputs_[input].stride = Size::Sink::stride_for(inputs_[input].width);
    };
    add(Of::query, in_.query_rows(), sizes().d_model(), sizes().heads() * sizes().key_dim());
    add(Of::key, in_.key_rows(), sizes().key_features(), sizes().kv_heads() * sizes().key_dim());
    add(Of::value, in_.key_rows(), sizes().value_features(),
        sizes().kv_heads() * sizes().value_dim());
    inputs_[0].wanted = kAsks<InputKind<0>>;
    inputs_[1].wanted = kAsks<InputKind<1>>;
    inputs_[2].wanted = kAsks<InputKind<2>>;
  }
  /// Where a projection's gradient begins in the rows of its input's.
  Index query_column() const { return 0; }
  Index key_column() const { return Inputs == 1 ? sizes().heads() * sizes().key_dim() : 0; }
  Index value_column() const {
    return Inputs == 3 ? 0 : key_column() + sizes().kv_heads() * sizes().key_dim();
  }
  /// The gradient of an input, as one of attention with a single head.
  template <int Input>
  CallShape shape_of_input() const {
    CallShape shape = in_.shape;
    shape.heads = shape.kv_heads = 1;
    shape.key_dim = shape.value_dim = inputs_[Input].features;
    return shape;
  }

  // What is refused.

  void check_outputs() const {
    Outputs outputs(layer_.function);
    add_input<0>(outputs);
    add_input<1>(outputs);
    add_input<2>(outputs);
    if constexpr (kWeights) {
      const auto& option = asked_.template get<WeightsGradientOption>();
      check_weights_gradient(*option.weights);
      option.add_to(outputs);
    }
    add_score_gradients<Scalar>(outputs, in_.shape, asked_);
    const auto keep_apart = [&](const char* name, const auto& input) {
      outputs.keep_from(name, input);
    };
    keep_apart("query", in_.query.view);
    keep_apart("key", in_.key.view);
    keep_apart("value", in_.value.view);
    keep_apart("output gradient", output_gradient_);
    if constexpr (kAsks<LogSumExpGradientOption>)
      keep_apart("dlogsumexp", bind<LogSumExpGradientOption, Scalar>(in_.shape, asked_).view);
    asked_.each([&](const auto& option) { option.visit_memory(keep_apart); });
  }
  template <int Input>
  void add_input(Outputs& outputs) const {
    using Kind = InputKind<Input>;
    if constexpr (kAsks<Kind>) {
      outputs.add(Kind::kName, asked_.template get<Kind>().template check<Scalar>(
                                   shape_of_input<Input>(), kAccumulates));
    }
  }
  template <class Weights>
  void check_weights_gradient(const Weights& g) const {
    static_assert(std::is_same_v<parameters_t<Weights>, MultiHeadParameters>,
                  "attn::MultiHeadAttention::backward: dweights() of another kind of layer: "
                  "MultiHeadGradients<Scalar> g(mha.options())");
    static_assert(std::is_same_v<typename Weights::Scalar, Scalar>,
                  "attn::MultiHeadAttention::backward: the weights' gradients have the scalar that "
                  "the layer computes in: MultiHeadGradients<float> for float, half and bfloat16");
    visit_weight_shapes(g, sizes(),
                        [&](const char* name, const auto& part, Index rows, Index cols) {
                          check_gradient_shape(layer_.function, name, part, rows, cols);
                        });
  }

  // Scratch, and what lies in it.

  void take_scratch() {
    Scalar* memory = workspace_of(layer_.own != nullptr ? layer_.own : &brought_, asked_)
                         .reserve_rows(size_.total());
    const auto next = [&](Index scalars) {
      Scalar* const here = memory;
      memory += scalars;
      return here;
    };
    mixed_ = next(size_.mixed());
    transposed_output_ = next(size_.transposed_output());
    for (int n = 0; n < Inputs; ++n) {
      gradients_[n] = next(size_.gradients(inputs_[n]));
      transposed_[n] = next(size_.transposed(inputs_[n]));
    }
    shares_ = memory;
  }
  Scalar* share(int worker) const { return shares_ + worker * size_.share(); }
  /// Where the gradient of projected rows goes, if it is needed: columns of its input's.
  template <class Kind, int Input>
  auto gradient_in(Index column, Index rows, Index heads, Index features) const {
    if constexpr (kNeeds<Input>) {
      using To = LiftedRows<Scalar>;
      const auto to = rows_of_heads<Scalar>(gradients_[Input] + column, rows, heads, features,
                                            inputs_[Input].stride);
      return Gradient<To, Kind>(To{to.view});
    } else {
      return Absent{};
    }
  }
  kernel::Rows<const Scalar> gradient_rows(int input, Index column) const {
    return {gradients_[input] + column, inputs_[input].rows, inputs_[input].stride};
  }
  template <int Input>
  auto prepare() const {
    if constexpr (kAsks<InputKind<Input>>) {
      return asked_.template get<InputKind<Input>>().prepare(shape_of_input<Input>());
    } else {
      return NotPrepared{};
    }
  }

  // What is computed.

  Transposed output_weights() const { return Transposed(layer_.output); }
  /// The weights that read an input.
  Transposed weights_of(int input) const {
    if (input == Of::query) {
      Transposed weights(layer_.query);
      if (Inputs == 1) {
        weights.add(layer_.key);
        weights.add(layer_.value);
      }
      return weights;
    }
    Transposed weights(input == Of::key ? layer_.key : layer_.value);
    if (Inputs == 2) weights.add(layer_.value);
    return weights;
  }
  void transpose_weights() const {
    std::atomic<Index> drawn{0};
    executor_.run(size_.transpose, [&](int) {
      const auto fill = [](Index piece, const auto& job) { job.first.fill(piece, job.second); };
      const auto pieces = [](const auto& job) {
        return job.second != nullptr ? job.first.pieces() : 0;
      };
      const auto job = [&](int input) {
        const bool wanted = input < Inputs && inputs_[input].wanted;
        return std::make_pair(weights_of(std::min(input, Inputs - 1)),
                              wanted ? transposed_[input] : nullptr);
      };
      kernel::draw_pieces(drawn, pieces, fill, std::make_pair(output_weights(), transposed_output_),
                          job(0), job(1), job(2));
    });
  }
  /// dMixed = dY · W_oᵀ.
  void mixed_gradient() const {
    const auto weights = output_weights().in(transposed_output_);
    using Target = kernel::Target<bare_t<decltype(weights)>, typename Size::Sink>;
    const kernel::InputJob job(rows_of(output_gradient_), size_.mixed_rows,
                               Target{weights, {mixed_, size_.mixed_stride}});
    std::atomic<Index> drawn{0};
    executor_.run(kernel::with_pieces(size_.mix, size_.project.pieces(size_.mixed_rows)),
                  [&](int worker) {
                    kernel::Projector<S, Scalar>(size_.project, share(worker))(drawn, job);
                  });
  }
  /// The gradients of the inputs and of the weights, which share nothing.
  template <class First, class Second, class Third>
  void finish(const First& first, const Second& second, const Third& third) const {
    std::atomic<Index> drawn[4] = {{0}, {0}, {0}, {0}};
    executor_.run(size_.finish, [&](int worker) {
      Scalar* const memory = share(worker);
      project_input<0>(drawn[0], first, memory);
      project_input<1>(drawn[1], second, memory);
      project_input<2>(drawn[2], third, memory);
      if constexpr (kWeights) weight_gradients(drawn[3], memory);
    });
  }

  /// dX = Σ d · Wᵀ over the projections that read X, and what else is added.
  template <int Input, class Prepared>
  void project_input(std::atomic<Index>& drawn, const Prepared& prepared, Scalar* memory) const {
    if constexpr (!std::is_same_v<Prepared, NotPrepared>) {
      const kernel::Projector<S, Scalar> project(size_.project, memory);
      const auto to = rows_of(prepared.to.view);
      const auto added = added_to_gradient(asked_, through_residual<Input>(), to);
      const auto weights = weights_of(Input).in(transposed_[Input]);
      using Sink = kernel::MatrixSink<Scalar, bare_t<decltype(to)>, bare_t<decltype(added)>>;
      using Target = kernel::Target<bare_t<decltype(weights)>, Sink>;
      project(drawn, kernel::InputJob(gradient_rows(Input, 0), inputs_[Input].rows,
                                      Target{weights, Sink{project.tile(), to, added}}));
    }
  }
  /// What residual() has added to the output: the query input.
  template <int Input>
  auto through_residual() const {
    if constexpr (Input == 0) {
      return output_gradient_;
    } else {
      return Absent{};
    }
  }

  /// dW = Xᵀ · d and db = Σ d of all four projections.
  void weight_gradients(std::atomic<Index>& drawn, Scalar* memory) const {
    auto& g = *asked_.template get<WeightsGradientOption>().weights;
    const kernel::Rows<const Scalar> mixed(state_.attention.rows().output, size_.mixed_rows,
                                           size_.mixed_width);
    kernel::WeightGradients<S>(size_.weights, memory)(
        drawn,
        weight_job(rows_of(in_.query.view), gradient_rows(Of::query, query_column()),
                   in_.query_rows(), g.query, g.query_bias),
        weight_job(rows_of(in_.key.view), gradient_rows(Of::key, key_column()), in_.key_rows(),
                   g.key, g.key_bias),
        weight_job(rows_of(in_.value.view), gradient_rows(Of::value, value_column()),
                   in_.key_rows(), g.value, g.value_bias),
        weight_job(mixed, rows_of(output_gradient_), size_.mixed_rows, g.output, g.output_bias));
  }
  template <class Input, class Gradient, class Weight, class Bias>
  static kernel::WeightGradientJob<Input, Gradient, Scalar> weight_job(const Input& input,
                                                                       const Gradient& gradient,
                                                                       Index rows, Weight& w,
                                                                       Bias& b) {
    return {input,       gradient, rows,
            w.rows(),    w.cols(), kernel::weight_gradient_target<Scalar>(w, b),
            kAccumulates};
  }

  const Layer& layer_;
  LayerOperands<Query, Key, Value> in_;
  const Asked& asked_;
  const LayerStateStore<Scalar>& state_;
  decltype(executor_of("", std::declval<const Asked&>())) executor_;
  InputGradients inputs_[3];
  CallShape out_shape_;
  TensorView<OutputGradient> output_gradient_;
  LayerScratch<Scalar, Storage> projected_;  ///< the strides of the state's rows
  Size size_;
  Workspace<Scalar> brought_;
  Scalar *mixed_ = nullptr, *transposed_output_ = nullptr, *shares_ = nullptr;
  Scalar *gradients_[3] = {}, *transposed_[3] = {};
};

template <int Inputs, class Storage, class Query, class Key, class Value, class OutputGradient,
          class Asked>
void run_layer_backward(const LayerContext<Storage>& layer, const GivenRows<Query>& query,
                        const GivenRows<Key>& key, const GivenRows<Value>& value,
                        const GivenRows<OutputGradient>& output_gradient,
                        const LayerStateStore<compute_t<Storage>>& state, const Asked& asked) {
  LayerBackward<Storage, Inputs, Query, Key, Value, Asked, OutputGradient>(
      layer, query, key, value, output_gradient, state, asked)
      .run();
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
