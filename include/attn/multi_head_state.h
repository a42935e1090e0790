// attn/multi_head_state.h: what a layer's backward pass needs of its forward pass: MultiHeadState,
// and the option save_state(state) that fills it.
// SPDX-License-Identifier: MIT
#pragma once

#include "call/layer_state.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {
struct LayerStateOf;
}

/// What MultiHeadAttention::backward() needs of a call of the layer: projected queries, keys and
/// values, the attended heads, and of every row and head its softmax's maximum and sum.
///
/// \tparam Scalar  the scalar that the layer computes in: float for half and bfloat16
/// Semantics  a regular value, empty at first. A call that is refused leaves it as it was; one that
///            throws later (a functor, a pool) leaves it empty, unless its attention was complete.
///            Filling it changes no bit of Y
/// Cost       Lq·H·(d_k + d_v + 2) + Lk·H_kv·(d_k + d_v) scalars, 4·L·d_model + 2·L·H for plain
///            sizes; from the second call of the same sizes on none is allocated
template <class Scalar>
class MultiHeadState {
 public:
  MultiHeadState() = default;

  /// No call has filled it.
  bool empty() const { return !store_.attention.filled(); }
  Index queries() const { return store_.attention.queries(); }
  Index heads() const { return store_.attention.heads(); }

 private:
  friend struct detail::LayerStateOf;
  detail::LayerStateStore<Scalar> store_;
};

namespace detail {

/// The store of a state, for calls.
struct LayerStateOf {
  template <class Scalar>
  static LayerStateStore<Scalar>& store(MultiHeadState<Scalar>& state) {
    return state.store_;
  }
  template <class Scalar>
  static const LayerStateStore<Scalar>& store(const MultiHeadState<Scalar>& state) {
    return state.store_;
  }
};

}  // namespace detail

/// Fills a state for MultiHeadAttention::backward(): an option of the layer's call, not of
/// decode().
///
/// Cost       a store of what the state holds: most of it would be written to scratch without it
template <class Scalar>
detail::SaveLayerState<Scalar> save_state(MultiHeadState<Scalar>& state) {
  return detail::SaveLayerState<Scalar>(detail::LayerStateOf::store(state));
}

}  // namespace ATTN_ABI
}  // namespace attn
