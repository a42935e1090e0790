// attn/residual.h: stage 5, Output = x + Output: alone over any Eigen types, and as an option fused
// into the last pass.
// SPDX-License-Identifier: MIT
#pragma once

#include "call/overlap.h"
#include "output.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

struct ResidualOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: two residuals in one call: add the matrices, residual(A + B)");
  }
};
template <class Lifted>
struct Residual : option_base {
  using Kind = ResidualOption;
  using Scalar = typename Lifted::Scalar;
  Lifted lifted;
  explicit Residual(Lifted l) : lifted(std::move(l)) {}

  /// Laid out as the output of a call.
  template <class Compute>
  auto bind(const CallShape& shape) const {
    static_assert(std::is_same_v<compute_t<Scalar>, Compute>,
                  "attn::residual: the residual must compute in the query's scalar: cast it");
    return place_like_output(shape, "residual", read_only(lifted.view(shape.function, "residual")),
                             Lifted::kStacked);
  }
};

/// residual() of a layer.
struct ResidualOfQuery : option_base {
  using Kind = ResidualOption;
};

}  // namespace detail

/// Option: adds X to the attention output, in the compute type, as a separate addition before the
/// one rounding to storage: the bits are those of residual_add on the output (where that is stored
/// in the compute type).
///
/// Shapes     X [Lq, H·d_v], like the output; any type and storage order; or heads(X, H); or a
///            strided view
/// Requires   the output's shape                            (std::invalid_argument otherwise)
/// Semantics  X may be the output itself (in place); a row that sees no key gives X
template <class Matrix>
auto residual(Matrix&& X) {
  auto lifted = detail::lift(std::forward<Matrix>(X));
  return detail::Residual<decltype(lifted)>(std::move(lifted));
}

/// Option of MultiHeadAttention: adds the layer's query input, X + MHA(X).
inline detail::ResidualOfQuery residual() { return {}; }

/// Adds the residual connection: x + Output (He et al. 2015, arXiv:1512.03385; Vaswani et al. 2017,
/// §3.1).
///
/// Shapes     X, Y [L, d]  →  [L, d]; any Eigen types and storage orders, half and bfloat16 are added in float, rounded once
/// Requires   equal shapes                                  (std::invalid_argument otherwise)
/// Semantics  residual_add(X, Y) returns the sum in Y's type; residual_add(X, Y, into(Z)) writes
///            it; Z may be X or Y (in place)
/// Cost       one addition an element; allocates nothing with into() of a fitting size
struct ResidualAdd {
  template <class X, class Y>
  [[nodiscard]] auto operator()(X&& x, Y&& y) const {
    check_types<X, Y>();
    typename detail::bare_t<Y>::PlainObject sum;
    (*this)(std::forward<X>(x), std::forward<Y>(y), into(sum));
    return sum;
  }

  template <class X, class Y, class Target>
  void operator()(X&& x, Y&& y, detail::Into<Target> output) const {
    check_types<X, Y>();
    const auto held_x = detail::hold(std::forward<X>(x));
    const auto held_y = detail::hold(std::forward<Y>(y));
    const auto a = held_x.view();
    const auto b = held_y.view();
    using Scalar = compute_t<typename decltype(b)::Scalar>;
    static_assert(std::is_same_v<Scalar, compute_t<typename decltype(a)::Scalar>> &&
                      std::is_same_v<Scalar, compute_t<typename Target::Scalar>>,
                  "attn::residual_add: both operands and the output must compute in one scalar");
    if (a.rows != b.rows || a.cols != b.cols) {
      detail::fail(detail::text(kName, ": x is ", detail::shape_text(a.rows, a.cols), ", y is ",
                                detail::shape_text(b.rows, b.cols), "; both need one shape"));
    }
    output.target.check(kName, "output", b.rows, b.cols);
    detail::Outputs outputs(kName);
    outputs.add("output", output.target.memory(b.rows, b.cols));
    outputs.keep_from("x", detail::as_tensor(a), 0);
    outputs.keep_from("y", detail::as_tensor(b), 0);
    output.target.resizing(b.rows, b.cols).commit();
    map(output.target.view()) = (map(a).template cast<Scalar>() + map(b).template cast<Scalar>())
                                    .template cast<typename Target::Scalar>();
  }

 private:
  static constexpr const char* kName = "attn::residual_add";

  template <class X, class Y>
  static constexpr void check_types() {
    static_assert(detail::is_dense_v<X> && detail::is_dense_v<Y>,
                  "attn::residual_add: expected two dense Eigen matrices");
  }

  /// Eigen's own arithmetic over a view.
  template <class T>
  static auto map(const detail::MatrixView<T>& view) {
    using Scalar = typename detail::MatrixView<T>::Scalar;
    using Plain = Eigen::Array<Scalar, Eigen::Dynamic, Eigen::Dynamic>;
    using Stride = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
    using Mapped = std::conditional_t<std::is_const_v<T>, const Plain, Plain>;
    return Eigen::Map<Mapped, 0, Stride>(view.data, view.rows, view.cols,
                                         Stride(view.col_stride, view.row_stride));
  }
};

inline constexpr ResidualAdd residual_add{};

}  // namespace ATTN_ABI
}  // namespace attn
