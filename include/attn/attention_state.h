// attn/attention_state.h: what a backward pass needs of a forward one: AttentionState, and the
// option save_state(state) that fills it.
// SPDX-License-Identifier: MIT
#pragma once

#include "call/attention_shape.h"
#include "call/state_store.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {
struct StateOf;
}

/// What a backward pass needs of a forward one: m and l of every row and head (its largest score,
/// and the sum of exp(score − m)), O before residual and rounding, and a digest of the call.
///
/// \tparam Scalar  the scalar that the call computes in: float for half and bfloat16
/// Semantics  a regular value, empty at first. A call that is refused leaves it as it was; one that
///            throws later (a functor, a pool) leaves it empty. Filling it changes no bit of Y
/// Cost       Lq·H·(d_v + 2) scalars; from the second call of the same sizes on none is allocated
template <class Scalar>
class AttentionState {
 public:
  AttentionState() = default;

  /// Of another library's forward pass: m = lse, l = 1 (−∞: a row that saw no key). Of the call
  /// only the sizes are known then, so that nothing else is compared. (Builds with assertions stop
  /// a backward pass whose rows have a log-sum-exp that is off by more than 10⁻³.)
  ///
  /// Shapes     Y [Lq, H·d_v], the output before residual and dropout; lse [Lq, H], its log-sum-exp
  /// Requires   equal rows, columns of Y a multiple of those of lse (std::invalid_argument
  ///            otherwise)
  template <class Output, class LogSumExp>
  static AttentionState from(const Eigen::DenseBase<Output>& Y,
                             const Eigen::DenseBase<LogSumExp>& lse);

  /// No call has filled it.
  bool empty() const { return !store_.filled(); }
  Index queries() const { return store_.queries(); }
  Index heads() const { return store_.heads(); }
  Index value_dim() const { return store_.value_dim(); }

  /// Makes room for calls up to these sizes, so that even the first one allocates nothing for it.
  /// A state that has to grow is empty then.
  ///
  /// Requires   sizes ≥ 0, heads a multiple of kv_heads ≥ 1       (std::invalid_argument otherwise)
  void reserve(const AttentionShape& shape) {
    static constexpr const char* function = "attn::AttentionState::reserve";
    detail::check_shape(function, shape);
    detail::check_product(function, "sequences x query rows x heads x value_dim", shape.sequences,
                          shape.queries, shape.heads, shape.value_dim);
    store_.reserve(Store::scalars(shape.sequences * shape.queries, shape.heads, shape.value_dim));
  }

 private:
  using Store = detail::StateStore<Scalar>;
  friend struct detail::StateOf;
  Store store_;
};

namespace detail {

/// The store of a state, for calls.
struct StateOf {
  template <class Scalar>
  static StateStore<Scalar>& store(AttentionState<Scalar>& state) {
    return state.store_;
  }
  template <class Scalar>
  static const StateStore<Scalar>& store(const AttentionState<Scalar>& state) {
    return state.store_;
  }
};

}  // namespace detail

template <class Scalar>
template <class Output, class LogSumExp>
AttentionState<Scalar> AttentionState<Scalar>::from(const Eigen::DenseBase<Output>& Y,
                                                    const Eigen::DenseBase<LogSumExp>& lse) {
  static constexpr const char* function = "attn::AttentionState::from";
  const auto held_output = detail::hold(Y.derived());
  const auto held_logsumexp = detail::hold(lse.derived());
  const auto output = held_output.view();
  const auto l = held_logsumexp.view();
  const Index queries = l.rows, heads = l.cols;
  if (output.rows != queries) {
    detail::fail(detail::text(function, ": the output has ", output.rows, " rows, logsumexp has ",
                              queries, "; both need one row per query"));
  }
  if (heads < 1 || output.cols % heads != 0) {
    detail::fail(detail::text(function, ": the output has ", output.cols,
                              " columns, needs a multiple of the ", heads,
                              " columns of logsumexp"));
  }
  const Index value_dim = output.cols / heads;
  AttentionState state;
  Store& store = state.store_;
  store.take(queries, heads, value_dim, store.fresh(Store::scalars(queries, heads, value_dim)));
  const kernel::StateRows<Scalar> rows = store.rows();
  for (Index i = 0; i < queries; ++i) {
    for (Index h = 0; h < heads; ++h) {
      const Scalar of_row = Scalar(l(i, h));
      // −∞, but not NaN, and so that -ffast-math may not take it for impossible.
      const bool empty = !(kernel::no_maximum<Scalar>() < of_row) && detail::equal(of_row, of_row);
      rows.maximum[i * heads + h] = empty ? kernel::no_maximum<Scalar>() : of_row;
      rows.sum[i * heads + h] = Scalar(empty ? 0 : 1);
      for (Index c = h * value_dim; c < (h + 1) * value_dim; ++c)
        rows.output[i * heads * value_dim + c] = Scalar(output(i, c));
    }
  }
  store.complete();
  return state;
}

/// Fills a state for attention_backward(): an option of attention(Q, K, V, …) and the functor.
///
/// Requires   keys and values as matrices, no KeyValueCache (refused by the compiler)
/// Cost       a store of m, l and O for each row
template <class Scalar>
detail::SaveState<Scalar> save_state(AttentionState<Scalar>& state) {
  return detail::SaveState<Scalar>(detail::StateOf::store(state));
}

}  // namespace ATTN_ABI
}  // namespace attn
