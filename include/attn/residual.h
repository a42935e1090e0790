// attn/residual.h: stage 5, Output = x + Output: alone over any Eigen types, and as an option fused into the last pass.
// SPDX-License-Identifier: MIT
#pragma once

#include "detail/output.h"
#include "detail/overlap.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

template <class Lifted>
struct Residual : option_base {
  Lifted lifted;
  using Scalar = typename Lifted::Scalar;
  explicit Residual(Lifted l) : lifted(std::move(l)) {}
};

}  // namespace detail

/// Option: adds X to the attention output, in the compute type, as a separate addition before the one rounding to storage: the
/// bits are those of residual_add on the output (where that is stored in the compute type).
///
/// Shapes     X [Lq, H·d_v], like the output; any type and storage order; or heads(X, H); or a strided view
/// Requires   the output's shape                            (std::invalid_argument otherwise)
/// Semantics  X may be the output itself (in place); a row that sees no key gives X
template <class Matrix>
auto residual(Matrix&& X) {
  auto lifted = detail::lift(std::forward<Matrix>(X));
  return detail::Residual<decltype(lifted)>(std::move(lifted));
}

/// Adds the residual connection: x + Output (He et al. 2015, arXiv:1512.03385; Vaswani et al. 2017, §3.1).
///
/// Shapes     X, Y [L, d]  →  [L, d]; any Eigen types and storage orders, half and bfloat16 are added in float, rounded once
/// Requires   equal shapes                                  (std::invalid_argument otherwise)
/// Semantics  residual_add(X, Y) returns the sum in Y's type; residual_add(X, Y, into(Z)) writes it; Z may be X or Y (in place)
/// Cost       one addition an element; allocates nothing with into() of a fitting size
struct ResidualAdd {
  template <class X, class Y>
  [[nodiscard]] auto operator()(const Eigen::DenseBase<X>& x, const Eigen::DenseBase<Y>& y) const {
    typename Y::PlainObject sum(y.rows(), y.cols());
    (*this)(x, y, into(sum));
    return sum;
  }

  template <class X, class Y, class Target>
  void operator()(const Eigen::DenseBase<X>& x, const Eigen::DenseBase<Y>& y,
                  detail::Into<Target> output) const {
    using Scalar = compute_t<typename Y::Scalar>;
    static_assert(std::is_same_v<Scalar, compute_t<typename X::Scalar>>,
                  "attn::residual_add: both operands must compute in one scalar");
    if (x.rows() != y.rows() || x.cols() != y.cols()) {
      detail::fail(detail::text(kName, ": x is ", detail::shape_text(x.rows(), x.cols()), ", y is ",
                                detail::shape_text(y.rows(), y.cols()), "; both need one shape"));
    }
    output.target.check(kName, "output", y.rows(), y.cols());
    const auto memory = output.target.memory(y.rows(), y.cols());
    check_operand(memory, "x", x.derived());
    check_operand(memory, "y", y.derived());
    output.target.resize(y.rows(), y.cols());
    const auto z = output.target.view();
    using Stored = typename Target::Scalar;
    using Stride = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
    using Sum = Eigen::Map<Eigen::Array<Stored, Eigen::Dynamic, Eigen::Dynamic>, 0, Stride>;
    Sum(z.data, z.rows, z.cols, Stride(z.col_stride, z.row_stride)) =
        (x.derived().array().template cast<Scalar>() + y.derived().array().template cast<Scalar>())
            .template cast<Stored>();
  }

 private:
  static constexpr const char* kName = "attn::residual_add";

  template <class Memory, class Matrix>
  static void check_operand(const Memory& memory, const char* name, const Matrix& m) {
    if constexpr (detail::has_memory<Matrix>::value) {
      detail::check_alias(kName, "output", memory, name, detail::as_tensor(detail::view_matrix(m)),
                          true);
    }
  }
};

inline constexpr ResidualAdd residual_add{};

}  // namespace ATTN_ABI
}  // namespace attn
