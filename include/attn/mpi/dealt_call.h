// attn/mpi/dealt_call.h: one call of attention on rows that are dealt to ranks: understood as a
// whole, computed a key/value head at a time. Plumbing of mpi.h.
// SPDX-License-Identifier: MIT
#pragma once

#include <utility>

#include "../call/attention_call.h"
#include "dealt_shape.h"
#include "exchanged_call.h"
#include "gathered_rounds.h"
#include "whole_sequence.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Every mistake that the types of the options of a call over ranks show.
template <class... Options>
constexpr void check_dealt_options() {
  static_assert(
      !given_v<BatchOption, Options...>,
      "attn::mpi::attention: one sequence is dealt: documents packed in it are told apart "
      "by segments(ids), with the ids of all its tokens");
  static_assert(
      !given_v<BiasOption, Options...>,
      "attn::mpi::attention: bias(B) is a matrix of all pairs, of which each rank would "
      "need other rows: write score(f) with a functor that computes it, or alibi(slopes)");
  static_assert(!given_v<WeightsOption, Options...> && !given_v<ScoresOption, Options...>,
                "attn::mpi::attention: save_weights() and save_scores() are matrices of all pairs: "
                "over ranks save_logsumexp(), save_max_logit() and save_entropy() are saved");
  static_assert(
      !given_v<StateOption, Options...> || !given_v<ExchangedHeadsOption, Options...>,
      "attn::mpi::attention: save_state() keeps this rank's rows, which under "
      "exchanged_heads() are other ranks': leave out one of them (the bits are the same)");
  static_assert(
      !given_v<AllKeysOption, Options...> && !given_v<CacheSequencesOption, Options...>,
      "attn::mpi::attention: all_keys() and cache_sequences() are for calls on a KeyValueCache");
}
template <class... Operands>
constexpr void check_dealt_operands() {
  static_assert(
      (!is_tensor_view_v<Operands> && ...),
      "attn::mpi: query, key, value and output gradient are this rank's rows: Eigen matrices or "
      "heads(X, n) of them");
}

/// What else ranks have to call with alike, where they exchange rows for heads: all that travels.
template <class Query, class... Options>
void compare_exchanged(Alike& alike) {
  constexpr bool exchanged = given_v<ExchangedHeadsOption, Options...>;
  alike.add("exchanged_heads()", exchanged)
      .add("bytes of a query's scalar", exchanged ? Index(sizeof(Query)) : 0)
      .add("residual()", exchanged && given_v<ResidualOption, Options...>)
      .add("save_logsumexp()", exchanged && given_v<kernel::LogSumExpOfRow, Options...>)
      .add("save_max_logit()", exchanged && given_v<kernel::MaxLogitOfRow, Options...>)
      .add("save_entropy()", exchanged && given_v<kernel::EntropyOfRow, Options...>);
}

/// Keys and values that come from all ranks, as the source of a call (matrix_source.h).
template <class Key, class Value>
class DealtSource {
 public:
  DealtSource(const RowExchange<Key, Value>& exchange, const CallShape& whole)
      : exchange_(exchange), whole_(whole) {}

  template <class Asked>
  auto masks(const CallShape&, const Asked& asked) const {
    auto all = bind_masks(whole_, asked);
    return WholeMask<decltype(all)>(std::move(all), query_offset_of(whole_, 0, asked));
  }
  template <class Asked>
  Index query_offset(const CallShape&, Index sequence, const Asked& asked) const {
    const mpi::Dealt& dealt = exchange_.dealt();
    return dealt.begin(dealt.own()[std::size_t(sequence)]) + query_offset_of(whole_, 0, asked);
  }
  template <class Scalar, class Angles, class Offset>
  auto rotation(const CallShape& shape, const Rotary<Angles>& option, const Offset& offset) const {
    if (option.has_ids) {
      fail(text(shape.function,
                ": rotary(...).positions(): over ranks a token's position is its "
                "place in the sequence, with query_offset()"));
    }
    return FullRotation<Scalar, Angles, Offset>(shape, option, offset);
  }
  auto key(const CallShape&) const { return exchange_.template operand<0>().nothing(); }
  auto value(const CallShape&) const { return exchange_.template operand<1>().nothing(); }
  /// (What is gathered is the call's own.)
  template <class Visit>
  void visit_memory(const CallShape&, const Visit& visit) const {
    visit("key", exchange_.template operand<0>().rows());
    visit("value", exchange_.template operand<1>().rows());
  }
  Index scratch_keys(const CallShape& shape) const { return shape.keys.longest(); }

 private:
  const RowExchange<Key, Value>& exchange_;
  const CallShape& whole_;
};

/// Notes whose keys some row of this rank sees.
template <class Exchange, class Mask>
void see_keys(Exchange& exchange, const CallShape& whole, const Mask& mask, Index offset) {
  const mpi::Dealt& dealt = exchange.dealt();
  for (const Index own : dealt.own()) {
    const QueryRows rows = rows_of_block(dealt, whole, own, offset);
    for (Index k = 0; k < dealt.blocks(); ++k)
      if (sees_block(dealt, mask, rows, k)) exchange.see(k);
  }
}

/// A call whose options are known: checked, met by all ranks, computed.
template <class Scalar, class Query, class Key, class Value, class... Options>
void attend_gathered(const mpi::Dealt& dealt, const DealtShape& shape,
                     const TensorView<const Query>& Q, const TensorView<const Key>& K,
                     const TensorView<const Value>& V, Meeting& meeting, Options&&... options) {
  const Asked asked(options...);
  RowExchange<Key, Value> exchange(dealt, shape.whole.kv_heads, K, V);
  const DealtSource source(exchange, shape.whole);
  see_keys(exchange, shape.whole, bind_masks(shape.whole, asked),
           query_offset_of(shape.whole, 0, asked));
  const auto residual = bind<ResidualOption, Scalar>(shape.local, asked);
  Workspace<Scalar> workspace;
  attend<DynamicSizes>(&workspace, shape.local, place(Q, true, shape.local.queries), source, asked,
                       asked.template get<IntoOption>(), residual, NothingFirst(),
                       GatheredRounds(exchange, meeting, [&](auto& problem, Index round) {
                         problem.key = exchange.template gathered<0>(round);
                         problem.value = exchange.template gathered<1>(round);
                       }));
}

/// The same on operands as they are given.
template <class Scalar, class Query, class Key, class Value, class... Options>
void attend_dealt(const mpi::Dealt& dealt, Query& Q, Key& K, Value& V, Options&... options) {
  constexpr const char* function = "attn::mpi::attention";
  using QueryScalar = typename operand_traits<bare_t<Query>>::Scalar;
  using KeyScalar = typename operand_traits<bare_t<Key>>::Scalar;
  using ValueScalar = typename operand_traits<bare_t<Value>>::Scalar;
  with_meetings(dealt.ranks(), [&](Meeting& meeting) {
    const auto q = lift(std::forward<Query>(Q));
    const auto k = lift(std::forward<Key>(K));
    const auto v = lift(std::forward<Value>(V));
    const TensorView<const QueryScalar> query = read_only(q.view(function, "query"));
    const TensorView<const KeyScalar> key = read_only(k.view(function, "key"));
    const TensorView<const ValueScalar> value = read_only(v.view(function, "value"));
    const DealtShape shape(dealt, call_shape(function, {query.extent(), true}, {key.extent(), true},
                                             {value.extent(), true}, Batch()));
    compare_exchanged<QueryScalar, Options...>(
        shape.compared(dealt, meeting.alike(function))
            .add("bytes of a key's scalar", Index(sizeof(KeyScalar)))
            .add("bytes of a value's scalar", Index(sizeof(ValueScalar))));
    if constexpr (given_v<ExchangedHeadsOption, Options...>) {
      attend_exchanged<Scalar>(dealt, shape, query, key, value, meeting, options...);
    } else {
      attend_gathered<Scalar>(dealt, shape, query, key, value, meeting,
                              of_whole_sequence(options)...);
    }
  });
}

/// With into(Y): writes there and returns nothing; else returns this rank's rows.
template <class Scalar, class Query, class Key, class Value, class... Options>
auto attend_dealt_opened(const mpi::Dealt& dealt, Query& Q, Key& K, Value& V, Options&... options) {
  check_options_beside<Order<ExchangedHeadsOption>, Options...>();
  check_residual<Options...>();
  check_dealt_options<Options...>();
  if constexpr (given_v<IntoOption, Options...>) {
    attend_dealt<Scalar, Query, Key, Value>(dealt, Q, K, V, options...);
  } else {
    typename result<bare_t<Query>, GivenMatrices<Key, Value>>::type Y;
    auto target = into(Y);
    attend_dealt<Scalar, Query, Key, Value>(dealt, Q, K, V, options..., target);
    return Y;
  }
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
