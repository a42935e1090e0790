// attn/linear_state.h: what a linear layer's backward pass needs of its forward pass: LinearState,
// and the option save_state(state) that fills it.
// SPDX-License-Identifier: MIT
#pragma once

#include "call/kept_rows.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {
struct LinearStateOf;
}

/// What Linear::backward() needs of a call with an activation: X·W + b, where its slope is taken.
///
/// \tparam Scalar  the scalar that the layer computes in: float for half and bfloat16
/// Semantics  a regular value, empty at first. A call that is refused leaves it as it was; one that
///            throws later (an activation, a pool) leaves it empty. Filling it changes no bit of Y
/// Cost       L·out_features scalars; from the second call of the same sizes on none is allocated
template <class Scalar>
class LinearState {
 public:
  LinearState() = default;

  /// No call has filled it.
  bool empty() const { return !store_.filled(); }
  Index rows() const { return store_.call().rows; }
  Index out_features() const { return store_.call().out_features; }

 private:
  friend struct detail::LinearStateOf;
  detail::LinearStateStore<Scalar> store_;
};

namespace detail {

/// The store of a state, for calls.
struct LinearStateOf {
  template <class Scalar>
  static LinearStateStore<Scalar>& store(LinearState<Scalar>& state) {
    return state.store_;
  }
  template <class Scalar>
  static const LinearStateStore<Scalar>& store(const LinearState<Scalar>& state) {
    return state.store_;
  }
};

}  // namespace detail

/// Fills a state for Linear::backward(): an option of the layer's call.
///
/// Cost       a store of each number of X·W + b
template <class Scalar>
detail::SaveLinearState<Scalar> save_state(LinearState<Scalar>& state) {
  return detail::SaveLinearState<Scalar>(detail::LinearStateOf::store(state));
}

}  // namespace ATTN_ABI
}  // namespace attn
