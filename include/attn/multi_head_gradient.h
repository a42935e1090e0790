// attn/multi_head_gradient.h: the layer's backward pass: mha.backward(X, dY, state, options…).
// SPDX-License-Identifier: MIT
//
//   attn::MultiHeadState<float> state;
//   attn::MultiHeadGradients<float> g(mha.options());
//   Y = mha(X, attn::causal(), attn::residual(), attn::save_state(state));
//   mha.backward(X, dY, state, attn::causal(), attn::residual(), attn::dweights(g), attn::dquery(dX));
//   mha.edit([&](auto& w) {
//     attn::for_each_parameter(w, g, [&](const char*, auto& p, const auto& dp) { p -= rate * dp; });
//   });
#pragma once

#include "call/layer_backward.h"
#include "gradient.h"
#include "multi_head_attention.h"
#include "multi_head_state.h"

namespace attn {
inline namespace ATTN_ABI {

/// The gradients of a loss by what entered a call of the layer, from dY = ∂loss/∂Y, and by its
/// weights:
///
///   mha.backward(X, dY, state, …)            dquery(dX): of the input, as query, key and value
///   mha.backward(Xq, Xkv, dY, state, …)      dquery(dXq), dkey(dXkv): as key and value
///   mha.backward(Xq, Xk, Xv, dY, state, …)   dquery(dXq), dkey(dXk), dvalue(dXv)
///
/// Shapes     dY as Y; each gradient as its input; dweights(g): MultiHeadGradients of the layer's
///            options(). Any Eigen types and orders, or strided views
/// Options    those of the forward call, all of them but into() and save_…(), and what to write:
///            dweights, the inputs' gradients, those of what modifies scores (dbias(), …:
///            score_gradient.h); nothing else is computed. accumulate(): all of them are added to
///            what their outputs hold. use(workspace), parallel(n), on(pool) need not be those of
///            the forward call. residual() adds dY to dquery; residual(R) is accepted, its gradient
///            is dY itself
/// Requires   a state of this very call of this layer, whose weights have not been edited since:
///            what attention_backward() compares is compared; outputs that share memory neither
///            with one another nor with what is read          (std::invalid_argument otherwise;
///            outputs are then untouched)
/// Semantics  as attention_backward(). A token whose gradient is 0 contributes nothing to the
///            weights', whatever it holds (hidden keys). half and bfloat16 compute in float: the
///            inputs' gradients are rounded once, the weights' are float
/// Bits       a row of an input's gradient as one of attention_backward(): not on threads, the
///            batch, the layout. The weights': sums over the tokens in their order, in runs of 96;
///            the threads do not matter
/// Cost       4·L·K·N flops a projection (2 of an input's where only inputs' or only weights'
///            gradients are asked for), and attention_backward()'s; scratch O(L · features), the
///            weights once, and up to 1.4 MiB for each worker (2.8 in double); none is allocated
///            from the second call of the same sizes on
/// Reference  Rumelhart, Hinton, Williams 1986 (doi:10.1038/323533a0); the attention's:
///            gradient.h.     Example: examples/training
template <class Scalar, int DModel, int Heads>
template <class Query, class... Rest>
void MultiHeadAttention<Scalar, DModel, Heads>::backward(Query&& Xq, Rest&&... rest) {
  backward_with(&workspace_, std::forward<Query>(Xq), std::forward<Rest>(rest)...);
  if (detail::given_somewhere_v<detail::WeightsGradientOption, Rest...>) plain_.keep();
}
template <class Scalar, int DModel, int Heads>
template <class Query, class... Rest>
void MultiHeadAttention<Scalar, DModel, Heads>::backward(Query&& Xq, Rest&&... rest) const {
  check_lent<Rest...>();
  backward_with(nullptr, std::forward<Query>(Xq), std::forward<Rest>(rest)...);
}

namespace detail {

/// The arguments of a backward pass of a layer: inputs, the output's gradient, the state, options.
template <class... Arguments>
struct LayerBackwardArguments {
  static constexpr int inputs = leading_operands<Arguments...>() - 1;
  static_assert(inputs >= 1 && inputs <= 3,
                "attn::MultiHeadAttention::backward: takes the inputs of the forward call, X, (Xq, "
                "Xkv) or (Xq, Xk, Xv), the gradient of its output, its state, then options");
  static constexpr std::size_t state = std::size_t(inputs) + 1;
  std::tuple<Arguments&...> all;

  /// hold(input) of each, as a tuple.
  template <class Hold>
  auto held_inputs(const Hold& hold) const {
    return held_before(hold, std::make_index_sequence<std::size_t(inputs)>());
  }
  /// f(options…).
  template <class F>
  void with_options(const F& f) const {
    with_behind(f, std::make_index_sequence<sizeof...(Arguments) - state - 1>());
  }

 private:
  template <class Hold, std::size_t... Inputs>
  auto held_before(const Hold& hold, std::index_sequence<Inputs...>) const {
    return std::make_tuple(hold(std::get<Inputs>(all))...);
  }
  template <class F, std::size_t... Options>
  void with_behind(const F& f, std::index_sequence<Options...>) const {
    with_opened(f, std::get<state + 1 + Options>(all)...);
  }
};

}  // namespace detail

template <class Scalar, int DModel, int Heads>
template <class Query, class... Rest>
void MultiHeadAttention<Scalar, DModel, Heads>::backward_with(Workspace<Compute>* own, Query&& Xq,
                                                              Rest&&... rest) const {
  static_assert((!detail::is_cache_v<Rest> && ...),
                "attn::MultiHeadAttention::backward: gradients need the keys and values of a call "
                "as matrices, which a KeyValueCache is not");
  using Arguments = detail::LayerBackwardArguments<Query, Rest...>;
  constexpr int kInputs = Arguments::inputs;
  const Arguments given{std::tie(Xq, rest...)};
  // One that stands for several is held once.
  const auto inputs = given.held_inputs([](auto& x) { return hold_input(x); });
  const auto& query = std::get<0>(inputs);
  const auto& key = std::get<detail::InputOf<kInputs>::key>(inputs);
  const auto& value = std::get<detail::InputOf<kInputs>::value>(inputs);
  const auto gradient = detail::lift(std::get<std::size_t(kInputs)>(given.all));
  const auto& state = std::get<Arguments::state>(given.all);
  static_assert(std::is_same_v<detail::bare_t<decltype(state)>, MultiHeadState<Compute>>,
                "attn::MultiHeadAttention::backward: behind the output's gradient stands the state "
                "that save_state(state) of the forward call filled, a MultiHeadState of the scalar "
                "that the layer computes in: float for float, half and bfloat16");
  given.with_options([&](auto&... options) {
    detail::check_layer_gradients<kInputs, decltype(options)...>();
    static constexpr const char* function = "attn::MultiHeadAttention::backward";
    const detail::Asked asked(options...);
    const auto layer = context(function, own);
    const auto query_rows = detail::given_rows(function, "query", query);
    const auto key_rows = detail::given_rows(function, "key", key);
    const auto value_rows = detail::given_rows(function, "value", value);
    const auto gradient_rows = detail::given_rows(function, "output gradient", gradient);
    detail::run_layer_backward<kInputs>(layer, query_rows, key_rows, value_rows, gradient_rows,
                                        detail::LayerStateOf::store(state), asked);
  });
}

}  // namespace ATTN_ABI
}  // namespace attn
