// attn/call/partial_finish.h: a call of finish(): rows of the output out of a partial state.
// Plumbing of partial.h.
// SPDX-License-Identifier: MIT
#pragma once

#include "../kernel/finish.h"
#include "../option_list.h"
#include "attend.h"
#include "partial_store.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// What stage 5 needs of a problem.
template <class Output_, class Residual_, class Saved_>
struct FinishedRows {
  using Output = Output_;
  using Residual = Residual_;
  using Saved = Saved_;
  using Scalar = compute_t<typename Output::Scalar>;
  static constexpr bool kDrops = false;

  const CallShape& shape;
  Output output;
  Residual residual;
  Saved saved;
};
template <class Output, class Residual, class Saved>
FinishedRows(const CallShape&, Output, Residual, Saved) -> FinishedRows<Output, Residual, Saved>;

template <class... Options>
constexpr void check_finish_options() {
  check_given<Options...>();
  static_assert(
      ((is_of_kind_v<Options, IntoOption, ResidualOption, SinkOption, UseOption> ||
        is_of_order_v<Options, Order<kernel::LogSumExpOfRow, kernel::MaxLogitOfRow>>)&&...),
      "attn::finish: its options are into(Y), residual(X), sink(), save_logsumexp(), "
      "save_max_logit() and use(); all others are of the calls over the keys");
  static_assert(!(std::is_same_v<bare_t<Options>, ResidualOfQuery> || ...),
                "attn: residual() without a matrix is the layer's, which adds its query input: "
                "write residual(X)");
}

/// The rows of a state, a few at a time: the sinks, then stage 5.
template <class Scalar, class Finished, class Sink>
void finish_rows(const PartialStore<Scalar>& store, const Finished& finished, const Sink& sink,
                 Scalar* memory) {
  using Merge = kernel::PartialMerge<Scalar>;
  const Index value_dim = store.sizes().value_dim;
  const Merge merging(memory, value_dim);
  kernel::ChunkRows<Scalar> rows(finished.shape);
  kernel::SoftmaxRows<Scalar> softmax(merging.states, merging.settled);
  store.each_opened(merging, [&](Index kv_head, Index first, Index count) {
    rows.enter({0, kv_head, first, first + count}, kernel::Strips::even<Scalar>(count), 0);
    softmax.clear(count);
    softmax.start();
    if constexpr (is_there_v<Sink>) {
      softmax.see_sinks(rows, sink);
      merging.settled.add(count, merging.states);
    }
    merging.settled.copy_to(merging.states, count);
    kernel::Finish<Finished>{finished, softmax}(rows);
  });
}

template <class Scalar, class Asked>
void finish_into(const char* function, const PartialStore<Scalar>& store, const Asked& asked) {
  if (!store.filled()) {
    fail(text(function, ": the state is empty: give save_partial(p) to the call over its keys"));
  }
  CallShape shape;
  shape.function = function;
  shape.heads = store.sizes().heads;
  shape.kv_heads = store.sizes().kv_heads;
  shape.value_dim = store.sizes().value_dim;
  shape.queries.common_length = store.sizes().queries;

  const auto& target = asked.template get<IntoOption>();
  static_assert(std::is_same_v<compute_t<typename bare_t<decltype(target)>::Scalar>, Scalar>,
                "attn::finish: the output must compute in the scalar of the partial state");
  const auto residual = bind<ResidualOption, Scalar>(shape, asked);
  const auto sink = bind<SinkOption, Scalar>(shape, asked);
  const auto memory = target.check(shape);
  Outputs outputs(function);
  outputs.add("output", memory);
  add_saved(outputs, shape, asked);
  if constexpr (is_there_v<decltype(residual)>) outputs.keep_from("residual", residual.view, 0);
  asked.each([&](const auto& option) {
    option.visit_memory(
        [&](const char* name, const auto& input) { outputs.keep_from(name, input); });
  });

  auto output = target.prepare(shape, memory);
  auto saved = prepared_outputs(NotPrepared{}, NotPrepared{}, NotPrepared{},
                                prepare_rows(shape, asked, kernel::RowNumbers{}));
  Workspace<Scalar> brought;
  Scalar* const scratch =
      workspace_of(&brought, asked).reserve(kernel::PartialMerge<Scalar>::total(shape.value_dim));
  commit(output, saved);
  finish_rows(store, FinishedRows{shape, output.to, residual, saved.targets()}, sink, scratch);
}

/// With into(Y): writes there and returns nothing; else returns the matrix.
template <class Scalar, class... Options>
auto finish_or_return(const PartialStore<Scalar>& store, Options&... options) {
  static constexpr const char* function = "attn::finish";
  return with_opened(
      [&](auto&... opened) {
        check_finish_options<decltype(opened)...>();
        if constexpr (given_v<IntoOption, bare_t<decltype(opened)>...>) {
          finish_into(function, store, Asked(opened...));
        } else {
          Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic> Y;
          auto target = into(Y);
          finish_into(function, store, Asked(opened..., target));
          return Y;
        }
      },
      options...);
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
