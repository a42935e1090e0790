// attn/activation.h: what a linear layer does to each number of its result before it is stored: an
// option of Linear, and alone over any Eigen types.
// SPDX-License-Identifier: MIT
//
//   option         formula                                        accuracy in float and double
//   relu()         max(x, 0)                                      exact
//   gelu()         x·Φ(x) = x/2 · (1 + erf(x / √2))               ≤ 8 ulp (double 12), for x ≥ 0 ≤ 4
//   gelu_tanh()    x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))     ≤ 2 ulp for x ≥ 0; on the left absolute error ≤ 6e-8 (1e-16)
//   silu()         x / (1 + e^−x)                                 ≤ 3.5 ulp, for x ≥ 0 ≤ 1.6
//   activation(f)  f(x), your own
//
// Each is also a function over matrices: gelu(X), gelu(X, into(Y)), in place gelu(X, into(X)). All
// results of less than 1.1e-36 (double: 1.6e-305) may be 0. NaN gives NaN.
// Their slopes, for a backward pass, err by at most 2.7e-7 (double: 5e-16); that of relu is 0 at 0.
#pragma once

#include "base/load.h"
#include "call/activation_functors.h"
#include "call/overlap.h"
#include "output.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// y = f(x) for every element, whole packets of lanes whatever the strides.
template <class S, class Function, class In, class Out>
void activate(const Function& function, const MatrixView<In>& x, const MatrixView<Out>& y) {
  const bool columns = y.row_stride == 1 && y.col_stride != 1;  // which way memory runs
  const Index runs = columns ? y.cols : y.rows, length = columns ? y.rows : y.cols;
  const Index x_step = columns ? x.row_stride : x.col_stride;
  const Index y_step = columns ? y.row_stride : y.col_stride;
  for (Index r = 0; r < runs; ++r) {
    const In* const from = x.data + r * (columns ? x.col_stride : x.row_stride);
    Out* const to = y.data + r * (columns ? y.col_stride : y.row_stride);
    for (Index n = 0; n < length; n += S::width) {
      const Index lanes = std::min<Index>(length - n, S::width);
      const auto loaded = load_strided<S>(from + n * x_step, x_step, lanes);
      store_strided<S>(to + n * y_step, y_step, function.template apply<S>(loaded, lanes), lanes);
    }
  }
}

/// What gelu and its like are: called without a matrix the option, with one the function.
template <class Function>
struct ActivationFunctor {
  constexpr KnownActivation<Function> operator()() const { return {}; }

  template <class Matrix>
  [[nodiscard]] auto operator()(Matrix&& X) const {
    static_assert(is_dense_v<Matrix>, "attn::gelu and its like: expected a dense Eigen matrix");
    typename bare_t<Matrix>::PlainObject Y;
    (*this)(std::forward<Matrix>(X), into(Y));
    return Y;
  }
  template <class Matrix, class Target>
  void operator()(Matrix&& X, Into<Target> output) const {
    static_assert(is_dense_v<Matrix>, "attn::gelu and its like: expected a dense Eigen matrix");
    static constexpr const char* function = "attn::activation";
    const auto held = hold(std::forward<Matrix>(X));
    const auto x = held.view();
    using Scalar = compute_t<typename decltype(x)::Scalar>;
    static_assert(std::is_same_v<Scalar, compute_t<typename Target::Scalar>>,
                  "attn::gelu and its like: the matrix and the output must compute in one scalar: "
                  "cast one of them");
    output.target.check(function, "output", x.rows, x.cols);
    Outputs outputs(function);
    outputs.add("output", output.target.memory(x.rows, x.cols));
    outputs.keep_from("the input", as_tensor(x), 0);
    output.target.resizing(x.rows, x.cols).commit();
    activate<Simd<Scalar>>(Function(), x, output.target.view());
  }
};
template <class T>
using is_activation_functor = is_instance<ActivationFunctor, T>;

}  // namespace detail

/// max(x, 0); NaN stays NaN.
///
/// Shapes     relu(): an option of Linear. relu(X), relu(X, into(Y)): X, Y [L, d], any Eigen types
///            and storage orders
/// Requires   Y's shape                                     (std::invalid_argument otherwise)
/// Semantics  Y may be X itself (in place); half and bfloat16 are computed in float, rounded once
/// Cost       none beside the product that it follows; alone one pass over X, no scratch
inline constexpr detail::ActivationFunctor<detail::Relu> relu{};
/// x·Φ(x), Φ being the normal distribution function: PyTorch's GELU, BERT's. Otherwise as relu.
///
/// Cost       some 25 multiply-adds and a division a number
/// Reference  Hendrycks & Gimpel 2016 (arXiv:1606.08415)
inline constexpr detail::ActivationFunctor<detail::Gelu> gelu{};
/// The same by tanh: GPT-2's, PyTorch's approximate="tanh"; up to 5e-4 from gelu. Otherwise as
/// relu.
///
/// Cost       some 15 multiply-adds and a division a number
inline constexpr detail::ActivationFunctor<detail::GeluTanh> gelu_tanh{};
/// x·σ(x), also called swish: Llama's, with a gate (linear.h). Otherwise as relu.
///
/// Cost       some 12 multiply-adds and a division a number
/// Reference  Elfwing et al. 2017 (arXiv:1702.03118)
inline constexpr detail::ActivationFunctor<detail::Silu> silu{};

/// Option of Linear: the user's own activation, inlined behind the register tile.
///
/// Shapes     f(auto x), a generic lambda or a template: called with the lanes of several numbers
///            at once (lanes.h)
///            f(float x), one concrete signature: called with one number at a time
///            slope, of either kind: how much f changes with x, for a backward pass. Without it
///            that calls a generic f with numbers that carry their slope (dual_lanes.h)
/// Requires   f and slope are const and depend on nothing but their argument and what they hold
/// Semantics  with lanes, f also computes zeros or other numbers that pad a tile; one number at a
///            time it is called for those of the result only. An lvalue f is referred to, a
///            temporary owned
/// Cost       what its arithmetic costs; a product and a sum of lanes are not fused
template <class F>
auto activation(F&& f) {
  using Held = detail::held_functor_t<F>;
  return detail::UserActivation<Held>(Held(std::forward<F>(f)));
}
template <class F, class Slope>
auto activation(F&& f, Slope&& slope) {
  using Held = detail::held_functor_t<F>;
  using HeldSlope = detail::held_functor_t<Slope>;
  return detail::UserActivation<Held, HeldSlope>(Held(std::forward<F>(f)),
                                                 HeldSlope(std::forward<Slope>(slope)));
}

}  // namespace ATTN_ABI
}  // namespace attn
