// attn/linear_gradient.h: a linear layer's backward pass: linear.backward(X, dY[, state],
// options…).
// SPDX-License-Identifier: MIT
//
//   attn::LinearState<float> state;
//   attn::LinearGradients<float> g(linear.options());
//   Y = linear(X, attn::gelu(), attn::save_state(state));
//   linear.backward(X, dY, state, attn::gelu(), attn::dweights(g), attn::dinput(dX));
//   linear.edit([&](auto& w) {
//     attn::for_each_parameter(w, g, [&](const char*, auto& p, const auto& dp) { p -= rate * dp; });
//   });
//
//   linear.backward(X, dY, attn::dweights(g), attn::dinput(dX));        // without an activation no state is needed
#pragma once

#include "accumulate.h"
#include "call/linear_backward.h"
#include "linear.h"
#include "linear_state.h"

namespace attn {
inline namespace ATTN_ABI {

/// The gradient of a linear layer's input: dX [L, in_features], resized if it is a plain dynamic
/// matrix; or a strided view of one head.
/// Refused at compile time: const, temporary or not directly writable outputs.
template <class Output>
auto dinput(Output&& dX) {
  auto target = detail::output_target(std::forward<Output>(dX));
  return detail::Gradient<decltype(target), detail::InputGradientOption>(std::move(target));
}

/// The gradients of a loss by what entered a call of the layer, from dY = ∂loss/∂Y, and by its
/// weights: with dZ = dY ∘ act'(X·W + b)
///
///   dinput(dX)    dX = dZ·Wᵀ, + dY under residual()
///   dweights(g)   dW = Xᵀ·dZ, db = Σ dZ over the rows
///
/// Shapes     dY as Y, dX as X; any Eigen types, orders and strides, or strided views of one head;
///            g: LinearGradients of the layer's options()
/// Options    the forward call's activation and residual, and what to write; nothing else is
///            computed. accumulate(): the gradients are added to what stands there, old + gradient,
///            rounded once. parallel(n) or on(pool), use(workspace) need not be those of the
///            forward call. residual(R) is accepted, its gradient is dY itself
/// Requires   under an activation the state of this very call: rows, features and kind of
///            activation are compared; outputs that share memory neither with one another nor with
///            what is read (std::invalid_argument otherwise; outputs are then untouched). The
///            weights are those of the forward call. An activation of the user's has a slope
///            (activation.h)
/// Semantics  a row whose dY is 0 adds nothing to dW, whatever its X holds. half and bfloat16
///            compute in float; dX is rounded once, gradients of weights are float
/// Bits       a row of dX depends on its rows of dY and of X·W + b, and on the weights alone. dW
///            and db: sums over the rows in their order, in runs of 96. Not on threads, storage
///            orders, fixed or dynamic sizes
/// Cost       2·L·in·out flops each of dX and dW; the slopes' (activation.h). Scratch: dZ [L,
///            out_features] under an activation, the weights once for dX, and up to 1.4 MiB (2.8 in
///            double) for each worker; none is allocated from the second call of the same sizes on
/// Accuracy   of dX as that of X·W (linear.h); dW errs by at most (98 + L / 96) · ε/2 of |X|ᵀ·|dZ|;
///            the slopes' own: activation.h (tests/linear_gradient_test.cpp)
template <class Scalar, int In, int Out>
template <class X, class OutputGradient, class... Rest>
void Linear<Scalar, In, Out>::backward(X&& x, OutputGradient&& dY, Rest&&... rest) {
  backward_with(&workspace_, std::forward<X>(x), std::forward<OutputGradient>(dY), rest...);
  if (detail::given_somewhere_v<detail::WeightsGradientOption, Rest...>) plain_.keep();
}
template <class Scalar, int In, int Out>
template <class X, class OutputGradient, class... Rest>
void Linear<Scalar, In, Out>::backward(X&& x, OutputGradient&& dY, Rest&&... rest) const {
  check_lent<Rest...>();
  backward_with(nullptr, std::forward<X>(x), std::forward<OutputGradient>(dY), rest...);
}

template <class Scalar, int In, int Out>
template <class X, class OutputGradient>
void Linear<Scalar, In, Out>::backward_with(Workspace<Compute>* own, X&& x,
                                            OutputGradient&& dY) const {
  differentiate(own, std::forward<X>(x), std::forward<OutputGradient>(dY), detail::kAbsent);
}
template <class Scalar, int In, int Out>
template <class X, class OutputGradient, class First, class... Options>
void Linear<Scalar, In, Out>::backward_with(Workspace<Compute>* own, X&& x, OutputGradient&& dY,
                                            First& first, Options&... options) const {
  if constexpr (detail::is_instance_v<LinearState, detail::bare_t<First>>) {
    static_assert(std::is_same_v<detail::bare_t<First>, LinearState<Compute>>,
                  "attn::Linear::backward: the state has another scalar than the layer computes "
                  "in: LinearState<float> for float, half and bfloat16");
    differentiate(own, std::forward<X>(x), std::forward<OutputGradient>(dY),
                  detail::LinearStateOf::store(std::as_const(first)), options...);
  } else {
    differentiate(own, std::forward<X>(x), std::forward<OutputGradient>(dY), detail::kAbsent, first,
                  options...);
  }
}

template <class Scalar, int In, int Out>
template <class X, class OutputGradient, class State, class... Options>
void Linear<Scalar, In, Out>::differentiate(Workspace<Compute>* own, X&& x, OutputGradient&& dY,
                                            const State& state, Options&... options) const {
  check_input<X>();
  static_assert(detail::is_dense_v<OutputGradient> || detail::is_tensor_view_v<OutputGradient>,
                "attn::Linear::backward: the output gradient is a matrix, rows x features, or a "
                "strided view of one head");
  const auto input = detail::lift(std::forward<X>(x));
  const auto gradient = detail::lift(std::forward<OutputGradient>(dY));
  const auto run = [&](const auto&... opened) {
    detail::check_linear_gradients<State, decltype(opened)...>();
    static constexpr const char* function = "attn::Linear::backward";
    check_holds(function);
    const detail::LinearContext<Scalar> layer{options_, panels_.view(), own};
    const auto input_rows = detail::given_rows(function, "the input", input);
    const auto gradient_rows = detail::given_rows(function, "output gradient", gradient);
    const auto with = [&](const auto& asked) {
      detail::run_linear_backward(layer, input_rows, gradient_rows, state, asked);
    };
    using OnStack =
        detail::LinearBackwardStack<Scalar, In, Out, detail::max_rows<X>(), decltype(opened)...>;
    if constexpr (OnStack::kFits) {
      alignas(64) Compute scratch[std::size_t{OnStack::kScalars}];
      const detail::UseStack<Compute> stack(nullptr, scratch);
      with(detail::Asked(opened..., stack));
    } else {
      with(detail::Asked(opened...));
    }
  };
  detail::with_opened(run, options...);
}

}  // namespace ATTN_ABI
}  // namespace attn
