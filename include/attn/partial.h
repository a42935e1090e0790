// attn/partial.h: attention over part of the keys as a state: Partial, the option save_partial(p)
// that fills it, merge() and finish().
// SPDX-License-Identifier: MIT
//
// Keys that no single call sees (on several machines, read from disk, not there yet) are attended
// part by part, and their states merged in the order of the keys:
//
//   attn::Partial<float> whole, part;
//   for (Index first = 0; first < Lk; first += C) {                       // C: a multiple of 256
//     const Index keys = std::min(C, Lk - first);
//     attn::attention(Q, K.middleRows(first, keys), V.middleRows(first, keys),
//                     attn::causal_from(offset - first), attn::save_partial(part));
//     whole.merge(part);
//   }
//   Y = attn::finish(whole);
//
// which has the bits of attention(Q, K, V, causal_from(offset), split_keys(C)).
//
// What is merged where:
//   Partial          m, l, o of each row, before the division: merges with the bits of split_keys()
//   merge(O_a, l_a, O_b, l_b) of softmax.h   finished results and their log-sum-exp, whoever made
//                    them: merges to rounding
//   SoftmaxState     of softmax_state.h: m and l of scores alone
//   AttentionState   of attention_state.h: of a finished call, for its backward pass; is not merged
#pragma once

#include "attention.h"
#include "call/partial_finish.h"
#include "call/partial_store.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {
struct PartialOf;
}

/// The state of attention over some of the keys: of every query row and head the largest score m,
/// l = Σ exp(s − m) and o = Σ exp(s − m)·v. States of disjoint keys merge into the state of all of
/// them; finish() makes rows of the output of it.
///
/// \tparam Scalar  the scalar that the call computes in: float for half and bfloat16
/// Semantics  a regular value, empty at first. A call that is refused leaves it as it was; one that
///            throws later (a functor, a pool) leaves it empty. A row that saw no key has l = 0
/// Cost       Lq·H·(d_v + 2) scalars, twice that once it is merged; from the second call of the
///            same sizes on none is allocated
template <class Scalar>
class Partial {
 public:
  using Numbers = Eigen::Map<const Eigen::Matrix<Scalar, Eigen::Dynamic, 1>>;

  Partial() = default;

  /// Of the numbers() of a state of these sizes: how it comes from elsewhere.
  ///
  /// Requires   sizes ≥ 0, heads a multiple of kv_heads ≥ 1, queries·heads·(value_dim + 2) numbers
  ///            (std::invalid_argument otherwise)
  template <class Derived>
  static Partial from(Index queries, Index heads, Index kv_heads, Index value_dim,
                      const Eigen::DenseBase<Derived>& numbers);

  /// No call has filled it.
  bool empty() const { return !store_.filled(); }
  /// Empties it, but for its memory.
  void clear() { store_.take({}, {}); }
  Index queries() const { return store_.sizes().queries; }
  Index heads() const { return store_.sizes().heads; }
  Index kv_heads() const { return store_.sizes().kv_heads; }
  Index value_dim() const { return store_.sizes().value_dim; }

  /// All that it holds, to be sent and kept: for each key/value head m, then l of all its rows (by
  /// token, and query head of the group), then their o. Of a merged state, as it is rounded.
  Numbers numbers() const { return Numbers(store_.data(), empty() ? 0 : store_.sizes().total()); }

  /// Takes in the state of the keys that follow its own; an empty state becomes that one.
  ///
  /// Requires   `next` filled, of the same query rows, heads and features (std::invalid_argument
  ///            otherwise; it is then as it was)
  /// Semantics  parts that split_keys(C) would cut, merged one after the other in the order of the
  ///            keys, give its bits; in another order, or merged states as `next`, the same to
  ///            rounding. What of `next` saw no key changes nothing
  /// Cost       two exp a row, 14 operations a feature
  Partial& merge(const Partial& next);

 private:
  friend struct detail::PartialOf;
  detail::PartialStore<Scalar> store_;
};

namespace detail {

/// The store of a partial state, for calls.
struct PartialOf {
  template <class Scalar>
  static PartialStore<Scalar>& store(Partial<Scalar>& partial) {
    return partial.store_;
  }
  template <class Scalar>
  static const PartialStore<Scalar>& store(const Partial<Scalar>& partial) {
    return partial.store_;
  }
};

}  // namespace detail

template <class Scalar>
template <class Derived>
Partial<Scalar> Partial<Scalar>::from(Index queries, Index heads, Index kv_heads, Index value_dim,
                                      const Eigen::DenseBase<Derived>& numbers) {
  static constexpr const char* function = "attn::Partial::from";
  AttentionShape shape;
  shape.queries = queries;
  shape.heads = heads;
  shape.kv_heads = kv_heads;
  shape.value_dim = value_dim;
  detail::check_shape(function, shape);
  detail::check_product(function, "query rows x heads x (value_dim + 2)", queries, heads,
                        detail::Count(value_dim) + 2);
  Partial partial;
  const typename detail::PartialStore<Scalar>::Sizes sizes{queries, heads, kv_heads, value_dim};
  if (numbers.size() != sizes.total()) {
    detail::fail(detail::text(function, ": ", numbers.size(), " numbers, needs ", sizes.total(),
                              ", query rows x heads x (value_dim + 2)"));
  }
  partial.store_.take(sizes, partial.store_.fresh(sizes));
  const auto held = detail::hold(numbers.derived());
  const auto from = held.view();
  Scalar* to = partial.store_.data();
  for (Index c = 0; c < from.cols; ++c)
    for (Index r = 0; r < from.rows; ++r) *to++ = Scalar(from(r, c));
  partial.store_.complete();
  return partial;
}

template <class Scalar>
Partial<Scalar>& Partial<Scalar>::merge(const Partial& next) {
  static constexpr const char* function = "attn::Partial::merge";
  if (next.empty()) {
    detail::fail(detail::text(function,
                              ": the state to merge is empty: give save_partial(p) to "
                              "the call over its keys"));
  }
  const auto size = [&](const Partial& p) {
    return detail::text(p.queries(), " query rows, ", p.heads(), " heads on ", p.kv_heads(),
                        " key/value heads and ", p.value_dim(), " features");
  };
  if (empty()) {
    store_.assign(next.store_);
    return *this;
  }
  if (!(store_.sizes() == next.store_.sizes())) {
    detail::fail(detail::text(function, ": the state to merge is of ", size(next), ", this one of ",
                              size(*this)));
  }
  store_.merge(next.store_);
  return *this;
}

/// Merges states of keys that follow one another, as Partial::merge() one after the other.
///
/// Requires   as Partial::merge()
template <class Scalar, class... More>
[[nodiscard]] Partial<Scalar> merge(Partial<Scalar> first, const Partial<Scalar>& next,
                                    const More&... more) {
  first.merge(next);
  (first.merge(more), ...);
  return first;
}

/// Option of attention(): keeps the call's rows unfinished in p, in place of an output, which
/// finish() then makes.
///
/// Requires   an lvalue of the scalar that the call computes in (said at compile time)
/// Semantics  p counts keys as the call does, from 0: masks and modifiers that compare positions
///            are given the offset between queries and the part (causal_from(offset − first)); what
///            reads positions themselves (rotary(), mask(f), score(f)) sees those of the part.
///            Where the keys of all parts lie in one matrix, split_keys(C) with key_range(first,
///            first + C) selects a part and leaves positions as they are. What belongs to finished
///            rows is given to finish(): residual(), sink(), save_logsumexp(), save_max_logit()
template <class Scalar>
detail::SavePartial<Scalar> save_partial(Partial<Scalar>& p) {
  return detail::SavePartial<Scalar>(detail::PartialOf::store(p));
}
template <class Scalar>
void save_partial(const Partial<Scalar>&) {
  static_assert(detail::always_false_v<Scalar>,
                "attn::save_partial: the partial state is const or a temporary: its result would "
                "be lost");
}

/// Makes rows of the output of a state: O = o / l (+ residual), what stage 5 of attention() does.
///
/// Shapes     p of Lq rows and H heads → [Lq, H·d_v]
/// Options    into(Y) (then nothing is returned), residual(X), sink(logits), save_logsumexp(l),
///            save_max_logit(m), use(workspace)
/// Requires   p filled, matching shapes (std::invalid_argument otherwise; outputs are then
///            untouched)
/// Semantics  as attention(): a row that saw no key gives zeros and log-sum-exp −∞ (the sink's
///            logit where there is one). A sink counts once, after all keys. The output may be the
///            residual itself
/// Cost       one division a row; two exp a row with a sink
template <class Scalar, class... Options>
[[nodiscard]] auto finish(const Partial<Scalar>& p, Options&&... options) {
  return detail::finish_or_return(detail::PartialOf::store(p), options...);
}

}  // namespace ATTN_ABI
}  // namespace attn
