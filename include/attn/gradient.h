// attn/gradient.h: the backward pass: attention_backward(Q, K, V, dY, state, options…) and what it
// writes.
// SPDX-License-Identifier: MIT
//
//   option           is                                       of the shape of
//   dquery(M)        ∂loss/∂Q                                 Q
//   dkey(M)          ∂loss/∂K                                 K
//   dvalue(M)        ∂loss/∂V                                 V
//   dbias(M) …       those of what modifies scores:           score_gradient.h
//   dlogsumexp(l)    ∂loss/∂(log-sum-exp), which is read      save_logsumexp()
//   accumulate()     gradients are added to what stands there
#pragma once

#include "accumulate.h"
#include "attention.h"
#include "attention_state.h"
#include "call/backward_call.h"
#include "score_gradient.h"

namespace attn {
inline namespace ATTN_ABI {

namespace detail {

template <class Of, class Output>
auto gradient(Output&& out) {
  auto target = output_target(std::forward<Output>(out));
  return Gradient<decltype(target), Of>(std::move(target));
}

}  // namespace detail

/// The gradient of the queries: M [Lq, H·d_k] with the heads side by side, resized if it is a plain
/// dynamic matrix; or heads(M, H); or a strided view.
/// Refused at compile time: const, temporary or not directly writable outputs.
template <class Output>
auto dquery(Output&& M) {
  return detail::gradient<detail::QueryGradientOption>(std::forward<Output>(M));
}
/// The gradient of the keys, summed over the queries (and heads of a group) that see them: M [Lk,
/// H_kv·d_k]. Otherwise as dquery().
template <class Output>
auto dkey(Output&& M) {
  return detail::gradient<detail::KeyGradientOption>(std::forward<Output>(M));
}
/// The gradient of the values: M [Lk, H_kv·d_v]. Otherwise as dkey().
template <class Output>
auto dvalue(Output&& M) {
  return detail::gradient<detail::ValueGradientOption>(std::forward<Output>(M));
}

/// An input: the loss also depends on what save_logsumexp() gave, and l is its gradient by that.
///
/// Shapes     l [Lq, H], or a strided view of [B, H, Lq, 1]; any real scalar
template <class Matrix>
auto dlogsumexp(Matrix&& l) {
  auto lifted = detail::lift(std::forward<Matrix>(l));
  return detail::LogSumExpGradient<decltype(lifted)>(std::move(lifted));
}

/// The gradients of a loss by what entered attention(Q, K, V, options…), from dY = ∂loss/∂Y.
///
/// Shapes     dY as Y; each gradient as what it belongs to
/// Options    those of the forward call, all of them but into() and save_…(), and what to write
///            (the table above; nothing else is computed). use(workspace), parallel(n), on(pool)
///            need not be those of the forward call; residual(X) is accepted, its gradient is dY
///            itself; split_keys() changes nothing; native_bfloat16() is refused, as save_state()
///            beside it is
/// Requires   a state of this very call: sizes, sequences, query offsets, key lengths, scale,
///            softcap, dropout and kinds of options are compared; outputs that share memory neither
///            with one another nor with what is read (std::invalid_argument otherwise; outputs are
///            then untouched). What a mask or a bias holds is not compared: builds with assertions
///            stop where the weights of a row have another sum than in the forward pass
/// Semantics  a row that sees no key: zeros; a hidden pair contributes nothing, whatever its
///            operands hold; a dropped one nothing through its value. NaN in a visible operand
///            shows in the rows that the formula says. half and bfloat16 operands compute in float,
///            each gradient is rounded once
/// Bits       a row of dQ depends on its query, its dY, the keys it sees and the options; a row of
///            dK and dV on its key, its value and the queries that see it. Not on threads, other
///            rows, the batch, or the layout
/// Cost       10 flops · visible pairs · d (of the 5 products dV alone takes 2, dQ or dK alone 3);
///            scratch O((rows of a chunk + Lk) · d) for each worker, here allocated for the call
/// Accuracy   for operands in [−1, 1] and the default scale, of gradients whose largest element is
///            g: float within 1e-6 · (1 + g), double within 1e-14 · (1 + g)
///            (tests/gradient_test.cpp)
/// Reference  Dao 2023, FlashAttention-2 (arXiv:2307.08691), §3.1.2
template <class Query, class Key, class Value, class OutputGradient, class Scalar, class... Options>
void attention_backward(Query&& Q, Key&& K, Value&& V, OutputGradient&& dY,
                        const AttentionState<Scalar>& state, Options&&... options) {
  detail::differentiate(
      "attn::attention_backward", static_cast<Workspace<Scalar>*>(nullptr), std::forward<Query>(Q),
      detail::given_matrices(std::forward<Key>(K), std::forward<Value>(V)),
      std::forward<OutputGradient>(dY), detail::StateOf::store(state), options...);
}
/// A cache has no gradients.
template <class Query, class Cache, class... Rest,
          std::enable_if_t<detail::is_cache_v<Cache>, int> = 0>
void attention_backward(Query&&, Cache&&, Rest&&...) {
  static_assert(detail::always_false_v<Cache>,
                "attn::attention_backward: gradients need the keys and values as matrices, which a "
                "KeyValueCache is not");
}

template <class Scalar>
template <class Query, class Key, class Value, class OutputGradient, class... Options>
void ScaledDotProductAttention<Scalar>::backward(Query&& Q, Key&& K, Value&& V, OutputGradient&& dY,
                                                 const AttentionState<Compute>& state,
                                                 Options&&... options) {
  differentiate(&workspace_, std::forward<Query>(Q), std::forward<Key>(K), std::forward<Value>(V),
                std::forward<OutputGradient>(dY), state, options...);
}
template <class Scalar>
template <class Query, class Key, class Value, class OutputGradient, class... Options>
void ScaledDotProductAttention<Scalar>::backward(Query&& Q, Key&& K, Value&& V, OutputGradient&& dY,
                                                 const AttentionState<Compute>& state,
                                                 Options&&... options) const {
  check_lent<Options...>();
  differentiate(nullptr, std::forward<Query>(Q), std::forward<Key>(K), std::forward<Value>(V),
                std::forward<OutputGradient>(dY), state, options...);
}
template <class Scalar>
template <class Query, class Key, class Value, class OutputGradient, class... Options>
void ScaledDotProductAttention<Scalar>::differentiate(Workspace<Compute>* own, Query&& Q, Key&& K,
                                                      Value&& V, OutputGradient&& dY,
                                                      const AttentionState<Compute>& state,
                                                      Options&... options) {
  detail::differentiate("attn::ScaledDotProductAttention::backward", own, std::forward<Query>(Q),
                        detail::given_matrices(std::forward<Key>(K), std::forward<Value>(V)),
                        std::forward<OutputGradient>(dY), detail::StateOf::store(state),
                        options...);
}

}  // namespace ATTN_ABI
}  // namespace attn
