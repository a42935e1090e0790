// attn/mpi/dealt_backward.h: one call of the backward pass on rows that are dealt to ranks: a pass
// over this rank's queries, then one over its keys. Plumbing of mpi.h.
// SPDX-License-Identifier: MIT
//
// WHY  two passes, of 3 and 4 products, where one process takes 5: whoever has a query has all that
//      dq sums over, the keys, and whoever has a key the rows that dk and dv sum over. Nothing is
//      summed between ranks, and each sum has the one order of one process: dq's keys upwards, dk's
//      and dv's rows in the same 96 from the last to the first.
#pragma once

#include "dealt_call.h"
#include "own_keys.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Every mistake that the types of the options of a backward call over ranks show.
template <class... Options>
constexpr void check_dealt_gradients() {
  static_assert(
      !given_v<BatchOption, Options...>,
      "attn::mpi::attention_backward: one sequence is dealt: documents packed in it are told apart "
      "by segments(ids), with the ids of all its tokens");
  static_assert(
      !given_v<BiasOption, Options...>,
      "attn::mpi::attention_backward: bias(B) is a matrix of all pairs, of which each rank would "
      "need other rows: write score(f) with a functor that computes it, or alibi(slopes)");
  static_assert(
      (!is_of_order_v<Options, ScoreGradientKinds> && ...),
      "attn::mpi::attention_backward: dalibi(), dsink(), dscale(), dscore() and dbias() are sums "
      "over the rows of all ranks, which none of them makes: over ranks dquery(), dkey() and "
      "dvalue() are written; attn::attention_backward() on one process has the others");
  static_assert(!given_v<ExchangedHeadsOption, Options...>,
                "attn::mpi::attention_backward: exchanged_heads() is of mpi::attention(): leave it "
                "out here (gradients have the same bits)");
}

/// The operands of a call as they are given, and what its loss says of the output.
template <class Query, class Key, class Value, class OutputGradient>
struct DealtOperands {
  TensorView<const Query> query;
  TensorView<const Key> key;
  TensorView<const Value> value;
  Operand<OutputGradient> output_gradient;
};

/// dq of this rank's queries, over all keys. Here the state and all outputs are looked at, those of
/// the other pass too; the ranks meet in it in any case.
template <class Scalar, class Operands, class Gradients, class Executor, class... Options>
void differentiate_queries(const mpi::Dealt& dealt, const DealtShape& shape, const Operands& given,
                           const StateStore<Scalar>& state, const Gradients& gradients,
                           const Executor& executor, Meeting& meeting, Options&&... options) {
  const Asked asked(options...);
  RowExchange exchange(dealt, shape.whole.kv_heads, given.key, given.value);
  const DealtSource source(exchange, shape.whole);
  const auto key = of_own_rows<OnlyChecked>(gradients.key, shape.own);
  const auto value = of_own_rows<OnlyChecked>(gradients.value, shape.own);
  const BackwardCall call(shape.local, place(given.query, true, shape.local.queries), source, asked,
                          given.output_gradient, state,
                          operand_gradients(gradients.query, key, value, gradients.accumulates));
  if constexpr (!is_there_v<decltype(gradients.query)>) {
    meeting.hold();
  } else {
    see_keys(exchange, shape.whole, bind_masks(shape.whole, asked),
             query_offset_of(shape.whole, 0, asked));
    call.run(nullptr, executor, NothingFirst(),
             GatheredRounds(exchange, meeting, [&](auto& problem, Index round) {
               problem.scored.key = exchange.template gathered<0>(round);
               problem.scored.value = exchange.template gathered<1>(round);
             }));
  }
}

/// before(), once nothing of this pass can be refused any more; then dk and dv of this rank's keys,
/// over all rows.
template <class Scalar, class Operands, class Gradients, class LogSumExp, class Executor,
          class Before, class... Options>
void differentiate_keys(const mpi::Dealt& dealt, const DealtShape& shape, const Operands& given,
                        const StateStore<Scalar>& state, const Gradients& gradients,
                        const LogSumExp& logsumexp, const Executor& executor, const Before& before,
                        Options&&... options) {
  const CallShape& whole = shape.whole;
  RowChanges<Scalar> changes(shape.own);
  const std::vector<Scalar> no_output(std::size_t(whole.value_dim) + 1, Scalar(0));
  const auto rows = state.rows();
  RowExchange exchange(dealt, whole.kv_heads, given.query, read_only(given.output_gradient.view),
                       changes.by_row(rows.maximum), changes.by_row(rows.sum), changes.view());
  const ReadRowChanges<Scalar> read(exchange.template operand<4>().nothing());
  const Asked asked(options..., read);
  const OwnKeysSource source(dealt, whole.kv_heads, given.key, given.value);
  const std::vector<kernel::KeyRun> runs = own_key_runs(dealt);
  const GatheredState<Scalar> gathered;
  const auto key = of_own_rows<OfOwnRows>(gradients.key, shape.own);
  const auto value = of_own_rows<OfOwnRows>(gradients.value, shape.own);
  const BackwardCall call(whole, exchange.template operand<0>().nothing(), source, asked,
                          exchange.template operand<1>().nothing(), gathered,
                          operand_gradients(kAbsent, key, value, gradients.accumulates,
                                            kernel::WrittenKeys{runs.data(), Index(runs.size())}));
  see_rows(exchange, whole, bind_masks(whole, asked), query_offset_of(whole, 0, asked));

  before();
  changes.fill(given.output_gradient, logsumexp, rows);
  with_meetings(dealt.ranks(), [&](Meeting& meeting) {
    call.run(nullptr, executor, NothingFirst(),
             GatheredRounds(exchange, meeting, [&](auto& problem, Index round) {
               source.enter(problem.scored, round);
               problem.scored.query = exchange.template gathered<0>(round);
               problem.output_gradient = exchange.template gathered<1>(round);
               problem.state = {exchange.template gathered<2>(round).view.data,
                                exchange.template gathered<3>(round).view.data, no_output.data(),
                                whole.group(), 0};
               problem.logsumexp_gradient = exchange.template gathered<4>(round);
             }));
  });
}

/// A backward call whose options are known.
template <class Scalar, class Query, class Key, class Value, class OutputGradient, class... Options>
void differentiate_dealt(const mpi::Dealt& dealt, Query& Q, Key& K, Value& V, OutputGradient& dY,
                         const StateStore<Scalar>& state, Options&... options) {
  constexpr const char* function = "attn::mpi::attention_backward";
  check_backward_options<Options...>();
  check_dealt_gradients<Options...>();
  with_meetings(dealt.ranks(), [&](Meeting& meeting) {
    const auto q = lift(std::forward<Query>(Q));
    const auto k = lift(std::forward<Key>(K));
    const auto v = lift(std::forward<Value>(V));
    const auto dy = lift(std::forward<OutputGradient>(dY));
    const auto query = read_only(q.view(function, "query"));
    const auto key = read_only(k.view(function, "key"));
    const auto value = read_only(v.view(function, "value"));
    const DealtShape shape(dealt, call_shape(function, {query.extent(), true}, {key.extent(), true},
                                             {value.extent(), true}, Batch()));
    shape.compared(dealt, meeting.alike(function))
        .add("dquery()", given_v<QueryGradientOption, Options...>)
        .add("dkey() or dvalue()",
             given_v<KeyGradientOption, Options...> || given_v<ValueGradientOption, Options...>)
        .add("bytes of a query's scalar", Index(sizeof(*query.data)))
        .add("bytes of a key's scalar", Index(sizeof(*key.data)))
        .add("bytes of a value's scalar", Index(sizeof(*value.data)))
        .add("bytes of an output gradient's scalar",
             Index(sizeof(typename operand_traits<bare_t<OutputGradient>>::Scalar)));
    const Asked<Options...> asked(options...);
    const auto& executor = executor_of(function, asked);
    check_backward_amounts(shape.whole, executor.workers());
    const auto gradient = bind_output_gradient<Scalar>(shape.own, dy);
    using Given = DealtOperands<typename operand_traits<bare_t<Query>>::Scalar,
                                typename operand_traits<bare_t<Key>>::Scalar,
                                typename operand_traits<bare_t<Value>>::Scalar,
                                std::remove_pointer_t<decltype(gradient.view.data)>>;
    const Given given{query, key, value, gradient};
    const auto gradients = gradients_asked(asked);
    const auto queries = [&] {
      auto of_local = given;
      of_local.output_gradient.tokens = shape.local.queries;
      differentiate_queries<Scalar>(dealt, shape, of_local, state, gradients, executor, meeting,
                                    of_whole_sequence(options)...);
    };
    if constexpr (given_v<KeyGradientOption, Options...> ||
                  given_v<ValueGradientOption, Options...>) {
      differentiate_keys<Scalar>(dealt, shape, given, state, gradients,
                                 bind<LogSumExpGradientOption, Scalar>(shape.own, asked), executor,
                                 queries, of_all_rows(options)...);
    } else {
      queries();
    }
  });
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
