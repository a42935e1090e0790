// attn/mpi/dealt_call.h: one call of attention on rows that are dealt to ranks: understood as a whole,
// computed a key/value head at a time. Plumbing of mpi.h.
// SPDX-License-Identifier: MIT
#pragma once

#include <exception>
#include <tuple>
#include <utility>

#include "../call/attention_call.h"
#include "key_exchange.h"
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
  static_assert(!given_v<StateOption, Options...> && !given_v<LayerStateOption, Options...>,
                "attn::mpi::attention: save_state() is for attention_backward() in one process");
  static_assert(
      !given_v<AllKeysOption, Options...> && !given_v<CacheSequencesOption, Options...>,
      "attn::mpi::attention: all_keys() and cache_sequences() are for calls on a KeyValueCache");
}
template <class... Operands>
constexpr void check_dealt_operands() {
  static_assert(
      (!is_tensor_view_v<Operands> && ...),
      "attn::mpi::attention: query, key and value are this rank's rows: Eigen matrices or "
      "heads(X, n) of them");
}

/// The shapes of a call: of this rank's rows, each block a sequence over all keys, and of the whole
/// sequence, which options speak of.
struct DealtShape {
  IndexList offsets;
  CallShape whole, local;

  DealtShape(const mpi::Dealt& dealt, const CallShape& given) : offsets(dealt.offsets()) {
    check_rows(given, "query", given.queries.total(), dealt.rows());
    check_rows(given, "key", given.keys.total(), dealt.rows());
    whole = local = given;
    whole.queries = whole.keys = {1, dealt.tokens(), nullptr};
    local.queries = {Index(dealt.own().size()), 0, &offsets};
    local.keys = whole.keys;
    local.shared_keys = true;
  }
  DealtShape(const DealtShape&) = delete;  // refers to its own offsets

 private:
  static void check_rows(const CallShape& shape, const char* name, Index has, Index needs) {
    if (has != needs) {
      fail(text(shape.function, ": ", name, " has ", has, " rows, needs ", needs,
                " (those of this rank)"));
    }
  }
};

/// Keys and values that come from all ranks, as the source of a call (matrix_source.h).
template <class Key, class Value>
class DealtSource {
 public:
  DealtSource(const KeyExchange<Key, Value>& exchange, const CallShape& whole)
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
  auto key(const CallShape&) const { return exchange_.key().gathered(0, whole_.keys.total()); }
  auto value(const CallShape&) const { return exchange_.value().gathered(0, whole_.keys.total()); }
  /// (What is gathered is the call's own.)
  template <class Visit>
  void visit_memory(const CallShape&, const Visit& visit) const {
    visit("key", exchange_.key().rows());
    visit("value", exchange_.value().rows());
  }
  Index scratch_keys(const CallShape& shape) const { return shape.keys.longest(); }

 private:
  const KeyExchange<Key, Value>& exchange_;
  const CallShape& whole_;
};

/// Notes which blocks some row of this rank sees.
template <class Exchange, class Mask>
void see_blocks(Exchange& exchange, const CallShape& whole, const Mask& mask, Index offset) {
  const mpi::Dealt& dealt = exchange.dealt();
  for (const Index own : dealt.own()) {
    const QueryRows rows{
        0, 0,      whole.heads,   dealt.begin(own), dealt.begin(own) + dealt.length(own),
        0, offset, dealt.tokens()};
    const KeyRange keys = intersect(mask.keys(rows), {0, dealt.tokens()});
    for (Index k = 0; k < dealt.blocks(); ++k) {
      const KeyRange block{dealt.begin(k), dealt.begin(k) + dealt.length(k)};
      if (cover(mask, rows, intersect(keys, block)) != Cover::none) exchange.see(k);
    }
  }
}

/// The rounds of a call (attend.h), one for each key/value head. All ranks meet before the first and
/// behind the last one; one that fails between goes on with the messages that others wait for.
template <class Exchange>
class GatheredRounds {
 public:
  explicit GatheredRounds(const mpi::Ranks& ranks) : ranks_(ranks) {}
  /// Behind the local checks that need no exchange.
  void open(Exchange& exchange) { exchange_ = &exchange; }
  bool met() const { return met_; }

  void meet(const std::exception_ptr& failure = nullptr) const {
    met_ = true;
    ranks_.agree(failure);
  }
  template <class Problem, class F>
  void each(Problem& problem, const F& f) const {
    const Index heads = problem.shape.kv_heads, tokens = exchange_->dealt().tokens();
    std::exception_ptr failure;
    exchange_->announce();
    exchange_->start(0);
    for (Index head = 0; head < heads; ++head) {
      exchange_->finish();
      if (head + 1 < heads) exchange_->start(head + 1);
      if (failure) continue;
      problem.key = exchange_->key().gathered(head, tokens);
      problem.value = exchange_->value().gathered(head, tokens);
      try {
        f(kernel::HeadRange{head, head + 1});
      } catch (...) {
        failure = std::current_exception();
      }
    }
    ranks_.agree(failure);
  }

 private:
  const mpi::Ranks& ranks_;
  Exchange* exchange_ = nullptr;
  mutable bool met_ = false;
};

/// A call whose options are known: checked, met by all ranks, computed.
template <class Scalar, class Query, class Key, class Value, class Asked, class Rounds>
void attend_dealt_rows(const char* function, const mpi::Dealt& dealt, const GivenRows<Query>& query,
                       const GivenRows<Key>& key, const GivenRows<Value>& value, const Asked& asked,
                       Rounds& rounds) {
  using Exchange = KeyExchange<std::remove_const_t<Key>, std::remove_const_t<Value>>;
  const DealtShape shape(
      dealt, call_shape(function, {query.view.extent(), true}, {key.view.extent(), true},
                        {value.view.extent(), true}, Batch()));
  Exchange exchange(dealt, key.view, value.view);
  const DealtSource source(exchange, shape.whole);
  see_blocks(exchange, shape.whole, bind_masks(shape.whole, asked),
             query_offset_of(shape.whole, 0, asked));
  rounds.open(exchange);
  const auto residual = bind<ResidualOption, Scalar>(shape.local, asked);
  Workspace<Scalar> workspace;
  attend<DynamicSizes>(&workspace, shape.local, place(query.view, true, shape.local.queries),
                       source, asked, asked.template get<IntoOption>(), residual, NothingFirst(),
                       rounds);
}

/// The same on operands as they are given. Whoever fails before all have met, meets with that.
template <class Scalar, class Query, class Key, class Value, class... Options>
void attend_dealt(const mpi::Dealt& dealt, Query& Q, Key& K, Value& V, Options&&... options) {
  constexpr const char* function = "attn::mpi::attention";
  using KeyScalar = typename operand_traits<bare_t<Key>>::Scalar;
  using ValueScalar = typename operand_traits<bare_t<Value>>::Scalar;
  GatheredRounds<KeyExchange<KeyScalar, ValueScalar>> rounds(dealt.ranks());
  try {
    const auto q = lift(std::forward<Query>(Q));
    const auto k = lift(std::forward<Key>(K));
    const auto v = lift(std::forward<Value>(V));
    attend_dealt_rows<Scalar>(function, dealt, given_rows(function, "query", q),
                              given_rows(function, "key", k), given_rows(function, "value", v),
                              Asked(options...), rounds);
  } catch (...) {
    if (!rounds.met()) rounds.meet(std::current_exception());
    throw;
  }
}

/// With into(Y): writes there and returns nothing; else returns this rank's rows.
template <class Scalar, class Query, class Key, class Value, class... Options>
auto attend_dealt_opened(const mpi::Dealt& dealt, Query& Q, Key& K, Value& V, Options&... options) {
  check_options<Options...>();
  check_residual<Options...>();
  check_dealt_options<Options...>();
  if constexpr (given_v<IntoOption, Options...>) {
    attend_dealt<Scalar, Query, Key, Value>(dealt, Q, K, V, of_whole_sequence(options)...);
  } else {
    typename result<bare_t<Query>, GivenMatrices<Key, Value>>::type Y;
    auto target = into(Y);
    attend_dealt<Scalar, Query, Key, Value>(dealt, Q, K, V, of_whole_sequence(options)..., target);
    return Y;
  }
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
