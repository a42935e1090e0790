// attn/attention.h: scaled dot-product attention: attention(Q, K, V, options…) and the functor that
// owns its workspace.
// SPDX-License-Identifier: MIT
//
// Conventions
//   A row is a token, a column a feature: Q is Lq×d_k, K is Lk×d_k, V is Lk×d_v, the output Lq×d_v;
//   d_v may differ from d_k.
//   Any Eigen type goes in: Matrix, Map, Ref, Block, transpose, expression; either storage order,
//   any strides, fixed or dynamic sizes. Expressions and temporaries are evaluated once; everything
//   else is referred to.
//   Heads lie side by side in columns (layout.h); query head h reads key/value head h / (H / H_kv).
//   A batch is its sequences' tokens stacked in rows.
//   Order: rotary → scale → softcap → bias → alibi → the user's score → mask → softmax (score.h) →
//   dropout.
//   Positions: key j is at j, query row i at i + offset; the offset is named once in the call
//   (mask.h).
//   A row with no key left gives zeros and log-sum-exp −∞ (the sink's logit where there is one), on
//   every path. A hidden pair contributes nothing, whatever its key and value hold. NaN in a
//   visible query, key or value gives NaN in the rows that see it, and only there. A score of −∞ is
//   hidden.
//   A row that sees one key returns that value row exactly, where the call has no sink(),
//   dropout() or residual() (rounded under native_bfloat16()).
//   half and bfloat16 are storage types, for each operand separately, computed in float (but for
//   native_bfloat16()); every other scalar computes in itself.
//
// The same bits: a row's result depends on its query, the keys it sees and the options; not on Lq,
// the other rows, what hidden keys hold, the batch, the threads, the storage order, or fixed or
// dynamic sizes. Outside that promise: -ffast-math, x87, other builds.
//
// No allocation: scratch comes from the functor's workspace, the caller's (use(ws)), or the stack
// where the operands' types tell all sizes and it fits EIGEN_STACK_ALLOCATION_LIMIT; the free
// function without use(ws) otherwise allocates its scratch for the call. Calls whose sizes are
// known so and at most 64 each are compiled for them, where they ask for no more than scale, score
// modifiers, a residual, log-sum-exp and largest logits.
#pragma once

// First: compilers quote the way to a header before the sentence that stands in it.
#include "lanes.h"
#include "output.h"
#include "call/options.h"

#include "call/attention_call.h"
#include "call/cache_source.h"
#include "dropout.h"
#include "layout.h"  // heads() and batches, of which the options below speak
#include "rotary.h"  // rotary()

namespace attn {
inline namespace ATTN_ABI {
/// Computes softmax(scale · Q Kᵀ, modified and masked) V row by row, without ever holding the Lq ×
/// Lk scores.
///
/// Shapes     Q [Lq, d_k]  K [Lk, d_k]  V [Lk, d_v]  →  [Lq, d_v]; with heads [Lq, H·d_k] [Lk, H_kv·d_k] [Lk, H_kv·d_v] → [Lq, H·d_v]
/// Options    masks        causal(), window(), prefix_lm(), tree(), keep(), hide(), key_lengths(), key_range(), segments(),
///                         block_sparse(), mask(f), && || ! of them; query_offset()
///            scores       rotary(), scale() (default 1/√d_k), softcap(), bias(), alibi(),
///                         score(f), sink()
///            results      into(Y) (then nothing is returned), residual(), save_logsumexp(),
///                         save_max_logit(), save_entropy(), save_weights(), save_scores();
///                         save_state() of attention_state.h, for attention_backward();
///                         save_partial() of partial.h in place of them: rows over part of the keys
///            batch        sequences(), sequence_length()
///            training     dropout()
///            means        parallel(n), on(pool), split_keys(), use(), native_bfloat16(); all in
///                         any order, and several as one value, options(…)
/// Requires   matching shapes, d_k > 0, H a multiple of H_kv (std::invalid_argument that names both
///            numbers, otherwise; outputs are then untouched). Empty inputs are valid
/// Semantics  as in the head of this file. The output may be Q itself (or the residual);
///            overlapping K, V or part of Q is refused.
///            Where memory runs out all outputs are as before; where a functor or pool throws they
///            have their sizes, not their values
/// Cost       4·pairs·d flops for the pairs inside the mask's ranges; scratch for a chunk of rows
///            and a block of keys a worker, whatever Lq and Lk are (rotary() adds its angles,
///            split_keys() its parts), here allocated for the call
/// Accuracy   max |error| ≤ 2 × that of the textbook formula, as a matrix product in the same
///            scalar (tests/attention_test.cpp)
/// Reference  Vaswani et al. 2017 (arXiv:1706.03762); Milakov & Gimelshein 2018 (arXiv:1805.02867);
///            Dao 2023, FlashAttention-2 (arXiv:2307.08691). Example: examples/01_attention.cpp
template <class Query, class Key, class Value, class... Options,
          std::enable_if_t<!detail::is_cache_v<Key>, int> = 0>
[[nodiscard]] auto attention(Query&& Q, Key&& K, Value&& V, Options&&... options) {
  using Scalar = compute_t<typename detail::operand_traits<detail::bare_t<Query>>::Scalar>;
  // Here, where compilers reach them first: mistakes are said in the first lines of their output.
  static_assert(detail::GivenMatrices<Key, Value>::template check_types<Query>());
  static_assert(detail::check_words<Options...>());
  static_assert(detail::check_functors_v<decltype(detail::result_on_lanes<Scalar>(
                    std::declval<Options&>()))...>);
  return detail::attend_or_return<Scalar>(
      "attn::attention", nullptr, std::forward<Query>(Q),
      detail::given_matrices(std::forward<Key>(K), std::forward<Value>(V)),
      std::forward<Options>(options)...);
}
/// attention<float>(Q, K, V): the scalar is the matrices' own.
template <class Scalar, class Query, class Key, class Value, class... Options,
          std::enable_if_t<std::is_arithmetic_v<Scalar>, int> = 0>
auto attention(const Query&, const Key&, const Value&, const Options&...) {
  static_assert(detail::always_false_v<Scalar>,
                "attn::attention: the scalar is that of the matrices: write attention(Q, K, V)");
  return typename detail::result<Query, detail::GivenMatrices<Key, Value>>::type();
}

template <class Scalar>
class AttentionState;  // attention_state.h

/// attention(…) as a functor that owns its workspace: from the second call of the same sizes on, or
/// after reserve(), a call with into(Y) allocates nothing.
///
/// \tparam Scalar  the scalar it computes in, or a storage type that computes in it (half and
///                 bfloat16 compute in float)
/// Shapes     as attention()
/// Requires   as attention()
/// Semantics  a regular value. Calls on one object follow each other; a const object takes its
///            scratch from use(workspace) and may be shared by threads that bring one each
/// Cost       as attention()
template <class Scalar>
class ScaledDotProductAttention {
 public:
  using Compute = compute_t<Scalar>;

  // Functors first, as in attention(): what is wrong in them is said in the first lines.
  template <class Query, class Key, class... Rest>
  [[nodiscard]] auto operator()(Query&& Q, Key&& K, Rest&&... rest) {
    static_assert(detail::check_functors_v<decltype(detail::result_on_lanes<Compute>(
                      std::declval<Rest&>()))...>);
    return call(&workspace_, std::forward<Query>(Q), std::forward<Key>(K),
                std::forward<Rest>(rest)...);
  }
  template <class Query, class Key, class... Rest>
  [[nodiscard]] auto operator()(Query&& Q, Key&& K, Rest&&... rest) const {
    static_assert(detail::check_functors_v<decltype(detail::result_on_lanes<Compute>(
                      std::declval<Rest&>()))...>);
    check_lent<Rest...>();
    return call(nullptr, std::forward<Query>(Q), std::forward<Key>(K), std::forward<Rest>(rest)...);
  }

  /// attention_backward(…) (gradient.h) with the functor's own scratch.
  template <class Query, class Key, class Value, class OutputGradient, class... Options>
  void backward(Query&& Q, Key&& K, Value&& V, OutputGradient&& dY,
                const AttentionState<Compute>& state, Options&&... options);
  template <class Query, class Key, class Value, class OutputGradient, class... Options>
  void backward(Query&& Q, Key&& K, Value&& V, OutputGradient&& dY,
                const AttentionState<Compute>& state, Options&&... options) const;

  /// Makes room for calls up to these sizes, so that even the first one allocates nothing.
  /// (backward() allocates nothing from its second call on.)
  ///
  /// Requires   heads a multiple of kv_heads, workers ≥ 1
  ///            (std::invalid_argument otherwise)
  void reserve(const AttentionShape& shape) { workspace_.reserve(scratch_scalars(shape)); }

  /// Scalars of scratch that a call of these sizes takes, by one worker or by up to as many as the
  /// shape names.
  ///
  /// Requires   sizes ≥ 0, heads a multiple of kv_heads ≥ 1, workers ≥ 1
  ///            (std::invalid_argument otherwise)
  static Index scratch_scalars(const AttentionShape& shape) {
    AttentionShape s = shape;
    s.workers = detail::bounded_workers(s.workers);
    detail::check_shape("attn::ScaledDotProductAttention::reserve", s);
    return detail::scratch_scalars<Compute>(s);
  }

 private:
  static constexpr const char* kName = "attn::ScaledDotProductAttention";

  template <class... Rest>
  static constexpr void check_lent() {
    static_assert(detail::given_somewhere_v<detail::UseOption, Rest...>,
                  "attn::ScaledDotProductAttention: a const functor has no scratch of its own: add "
                  "the option use(workspace)");
  }

  /// Q, K, V and options, or Q, a cache (kv_cache.h) and options.
  template <class Query, class Key, class... Rest>
  static auto call(Workspace<Compute>* own, Query&& Q, Key&& K, Rest&&... rest) {
    using Needed = compute_t<typename detail::operand_traits<detail::bare_t<Query>>::Scalar>;
    static_assert(!detail::is_operand_v<Query> || std::is_same_v<Compute, Needed>,
                  "attn::ScaledDotProductAttention: the operands compute in another scalar than "
                  "this functor's");
    if constexpr (detail::is_cache_v<Key>) {
      return detail::attend_or_return<Compute>(kName, own, std::forward<Query>(Q),
                                               detail::given_cache(K), std::forward<Rest>(rest)...);
    } else {
      return attend_to(own, std::forward<Query>(Q), std::forward<Key>(K),
                       std::forward<Rest>(rest)...);
    }
  }
  template <class Query, class Key, class Value, class... Options>
  static auto attend_to(Workspace<Compute>* own, Query&& Q, Key&& K, Value&& V,
                        Options&&... options) {
    return detail::attend_or_return<Compute>(
        kName, own, std::forward<Query>(Q),
        detail::given_matrices(std::forward<Key>(K), std::forward<Value>(V)),
        std::forward<Options>(options)...);
  }

  template <class Query, class Key, class Value, class OutputGradient, class... Options>
  static void differentiate(Workspace<Compute>* own, Query&& Q, Key&& K, Value&& V,
                            OutputGradient&& dY, const AttentionState<Compute>& state,
                            Options&... options);

  Workspace<Compute> workspace_;
};

}  // namespace ATTN_ABI
}  // namespace attn
