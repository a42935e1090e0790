// attn/mpi/exchanged_call.h: one call of attention for which ranks exchange rows for heads: each
// attends all rows under some key/value heads. Plumbing of mpi.h.
// SPDX-License-Identifier: MIT
#pragma once

#include <exception>
#include <tuple>
#include <utility>

#include "../call/attention_call.h"
#include "dealt_shape.h"
#include "head_exchange.h"
#include "meeting.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

struct ExchangedHeadsOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn::mpi: exchanged_heads twice in one call");
  }
};
/// mpi::exchanged_heads().
struct ExchangedHeads : option_base {
  using Kind = ExchangedHeadsOption;
};

/// The one round of a call that attends some of its heads (attend.h).
struct SomeHeads {
  kernel::HeadRange heads;
  void meet() const {}
  template <class Problem, class F>
  void each(Problem&, const F& f) const {
    f(heads);
  }
};

/// An option of the call that says nothing of outputs.
template <class Option>
struct KeptOption {
  Option& given;
  Option& option() { return given; }
  std::size_t messages() const { return 0; }
  void to_rows(RowMessages&) const {}
  void finish() const {}
};
/// An output: what the user's takes, prepared but not committed, and what the engine writes in its
/// place.
template <class Prepared, class Scalar, class Option>
struct ExchangedOutput {
  Prepared prepared;
  HeadExchange<Scalar> memory;
  Option replaced;

  Option& option() { return replaced; }
  std::size_t messages() const { return memory.messages(); }
  void to_rows(RowMessages& messages) const { memory.to_rows(messages); }
  void finish() {
    prepared.commit();
    memory.write(prepared.to.view);
  }
};
template <class Option, class Prepared, class Scalar, class Replace>
auto exchanged_output(Prepared&& prepared, HeadExchange<Scalar>&& memory, const Replace& replace) {
  auto replaced = replace(LiftedView<Scalar>{memory.by_heads()});
  return ExchangedOutput<std::decay_t<Prepared>, Scalar, decltype(replaced)>{
      std::move(prepared), std::move(memory), std::move(replaced)};
}

template <class Target, class Number>
SaveRow<LiftedView<typename Target::Scalar>, Number> saved_elsewhere(
    const SaveRow<Target, Number>&, const LiftedView<typename Target::Scalar>& view) {
  return SaveRow<LiftedView<typename Target::Scalar>, Number>(view);
}
/// What becomes of an option of the call.
template <class Option>
auto exchanged_option(const mpi::Dealt& dealt, const CallShape& local, Option& option) {
  if constexpr (is_of_kind_v<Option, IntoOption>) {
    using Scalar = typename bare_t<Option>::Scalar;
    return exchanged_output<Option>(
        option.prepare(local, option.check(local)),
        HeadExchange<Scalar>(dealt, local.heads, local.value_dim),
        [](const LiftedView<Scalar>& view) { return Into<LiftedView<Scalar>>(view); });
  } else if constexpr (is_of_order_v<Option, kernel::RowNumbers>) {
    using Scalar = typename decltype(bare_t<Option>::target)::Scalar;
    return exchanged_output<Option>(
        option.prepare(local), HeadExchange<Scalar>(dealt, local.heads, 1),
        [&](const LiftedView<Scalar>& view) { return saved_elsewhere(option, view); });
  } else {
    return KeptOption<Option>{option};
  }
}

/// The residual's rows, exchanged as well; none.
template <class T>
HeadExchange<std::remove_const_t<T>> exchanged_residual(const mpi::Dealt& dealt,
                                                        const Operand<T>& residual) {
  return {dealt, residual.view};
}
inline Absent exchanged_residual(const mpi::Dealt&, Absent) { return {}; }
template <class T>
void residual_to_heads(const HeadExchange<T>& residual, RowMessages& messages) {
  residual.to_heads(messages);
}
inline void residual_to_heads(Absent, RowMessages&) {}
template <class T>
Operand<const T> residual_by_heads(const HeadExchange<T>& residual, const CallShape& whole) {
  return place(read_only(residual.by_heads()), false, whole.queries);
}
inline Absent residual_by_heads(Absent, const CallShape&) { return {}; }
template <class T>
std::size_t residual_messages(const HeadExchange<T>& residual) {
  return residual.messages();
}
inline std::size_t residual_messages(Absent) { return 0; }

/// This rank's key/value heads; refuses ranks that do not divide them.
inline kernel::HeadRange heads_of_rank(const CallShape& shape, const mpi::Ranks& ranks) {
  if (shape.kv_heads % ranks.size() != 0) {
    fail(text(shape.function, ": exchanged_heads() deals ", shape.kv_heads, " key/value heads to ",
              ranks.size(),
              " ranks: needs a number of ranks that divides "
              "them; without the option any number will do"));
  }
  const Index each = shape.kv_heads / ranks.size();
  return {ranks.rank() * each, ranks.rank() * each + each};
}

/// Attends this rank's heads of the whole sequence: an ordinary call on what has been exchanged.
template <class Scalar, class Query, class Key, class Value, class Residual, class Asked>
void attend_heads(const CallShape& whole, const HeadExchange<Query>& query,
                  const HeadExchange<Key>& key, const HeadExchange<Value>& value,
                  const Residual& residual, const kernel::HeadRange& heads, const Asked& asked) {
  const KeyValueViews<const Key, const Value> source{{read_only(key.by_heads()), false},
                                                     {read_only(value.by_heads()), false}};
  Workspace<Scalar> workspace;
  attend<DynamicSizes>(&workspace, whole, place(read_only(query.by_heads()), false, whole.queries),
                       source, asked, asked.template get<IntoOption>(),
                       residual_by_heads(residual, whole), NothingFirst(), SomeHeads{heads});
}

/// A call whose options are known: checked, exchanged, attended, exchanged back, and only then
/// written.
template <class Scalar, class Query, class Key, class Value, class... Options>
void attend_exchanged(const mpi::Dealt& dealt, const DealtShape& shape,
                      const TensorView<const Query>& Q, const TensorView<const Key>& K,
                      const TensorView<const Value>& V, Meeting& meeting, Options&... options) {
  const Asked<Options...> asked(options...);
  const auto heads = heads_of_rank(shape.whole, dealt.ranks());
  Outputs apart(shape.local.function);
  apart.add("output", asked.template get<IntoOption>().check(shape.local));
  add_saved(apart, shape.local, asked);

  const HeadExchange<Query> query(dealt, Q);
  const HeadExchange<Key> key(dealt, K);
  const HeadExchange<Value> value(dealt, V);
  const auto residual = exchanged_residual(dealt, bind<ResidualOption, Scalar>(shape.local, asked));
  std::tuple<decltype(exchanged_option(dealt, shape.local, options))...> exchanged{
      exchanged_option(dealt, shape.local, options)...};
  RowMessages messages(dealt.ranks().comm());
  std::apply(
      [&](const auto&... option) {
        messages.reserve(query.messages() + key.messages() + value.messages() +
                         residual_messages(residual) + (std::size_t(0) + ... + option.messages()));
      },
      exchanged);

  meeting.hold();
  query.to_heads(messages);
  key.to_heads(messages);
  value.to_heads(messages);
  residual_to_heads(residual, messages);
  messages.wait();
  std::exception_ptr failure;
  std::apply(
      [&](auto&... option) {
        try {
          attend_heads<Scalar>(shape.whole, query, key, value, residual, heads,
                               Asked(option.option()...));
        } catch (...) {
          failure = std::current_exception();
        }
        (option.to_rows(messages), ...);
        messages.wait();
        meeting.hold(failure);
        (option.finish(), ...);
      },
      exchanged);
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
