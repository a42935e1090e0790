// attn/call/options.h: the options of a call of attention, all in one place, and what their types
// alone show to be wrong.
// SPDX-License-Identifier: MIT
//
//   masks     (mask.h)       causal() window() prefix_lm() tree() keep() hide() key_lengths() key_range() segments()
//                            block_sparse() mask(), && || ! of them; query_offset()
//   scores    (score.h)      scale() softcap() bias() alibi() score() sink()
//   positions (rotary.h)     rotary()
//   batch     (layout.h)     sequences() sequence_length()
//   outputs   (output.h)     into() save_logsumexp() save_max_logit() save_entropy() save_weights() save_scores()
//   state     (attention_state.h)  save_state(), for a backward pass; (partial.h) save_partial()
//   gradients (gradient.h)   dquery() dkey() dvalue() dlogsumexp() accumulate(), of a backward pass alone;
//             (score_gradient.h)  dbias() dalibi() dsink() dscale() dscore()
//   residual  (residual.h)   residual()
//   training  (dropout.h)    dropout()
//   cache     (kv_cache.h)   all_keys() cache_sequences(), on a key/value cache
//   means     (workspace.h)  use(), (parallel.h) parallel() on() split_keys(),
//             (native_bfloat16.h) native_bfloat16()
//
// Each is a struct beside what makes it, which says its kind, binds itself to the shape of a call,
// and names the memory that it reads (base/asked.h). A call reads its options once, as a record:
// Asked.
#pragma once

#include "../mask/block_sparse.h"
#include "../mask/cache_mask.h"
#include "../mask/positions.h"
#include "../mask/segments.h"
#include "../mask/tree.h"
#include "../native_bfloat16.h"
#include "../output.h"
#include "../parallel.h"
#include "../residual.h"
#include "../score.h"
#include "../score/dropped_pairs.h"
#include "../score/rotary_table.h"
#include "../workspace.h"
#include "overlap.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

template <class T>
constexpr bool is_bool_matrix() {
  if constexpr (is_dense_v<T>) {
    return std::is_same_v<typename bare_t<T>::Scalar, bool>;
  } else {
    return false;
  }
}

/// The name of an option without its parentheses: a function, or what causal() is called on.
template <class T>
constexpr bool makes_option() {
  return std::is_function_v<std::remove_pointer_t<std::decay_t<T>>> ||
         std::is_same_v<bare_t<T>, CausalMaker>;
}

/// What is no option at all. As a bool, for a call to assert: it is then said before anything else.
template <class... Options>
constexpr bool check_words() {
  static_assert((!is_bool_matrix<Options>() && ...),
                "attn: a matrix of bool among the options: write keep(B) (attend where true) or "
                "hide(B) (attend where false)");
  static_assert((!is_operand_v<Options> && ...),
                "attn: a matrix among the options: write what it is: into(Y) for the output, "
                "bias(B), residual(X), save_logsumexp(l)");
  static_assert((!makes_option<Options>() && ...),
                "attn: an option without its parentheses: write causal(), window(left, right), "
                "alibi(slopes), ...");
  return true;
}
/// Every mistake that the types of any call's options alone show, said in words.
template <class... Options>
constexpr void check_given() {
  static_assert(check_words<Options...>());
  check_kinds<Options...>();
  check_positions<Options...>();
}

/// The options of attention. Modifiers and numbers of rows are those of their lists.
template <class Option>
constexpr bool is_attention_option() {
  return is_of_kind_v<Option, MaskOption, QueryOffsetOption, ScaleOption, SinkOption, RotaryOption,
                      BatchOption, IntoOption, PartialOption, WeightsOption, ScoresOption,
                      StateOption, ResidualOption, AllKeysOption, CacheSequencesOption, UseOption,
                      ExecutorOption, SplitKeysOption, DropoutOption, NativeBfloat16Option> ||
         is_of_order_v<Option, ModifierOrder> || is_of_order_v<Option, kernel::RowNumbers>;
}
/// check_given() of a call of attention, and that its options are attention's, or of the caller's
/// own kinds.
template <class OwnKinds, class... Options>
constexpr void check_options_beside() {
  check_given<Options...>();
  static_assert((!is_gradient_option_v<Options> && ...),
                "attn: a gradient among the options of a forward call: dquery(), dkey(), dvalue(), "
                "... are what attention_backward(Q, K, V, dY, state, ...) and mha.backward(X, dY, "
                "state, ...) write");
  static_assert(
      (... && (!is_of_kind_v<Options, LayerStateOption> || is_of_order_v<Options, OwnKinds>)),
      "attn::save_state: a MultiHeadState is of a layer, mha(X, save_state(state)): "
      "attention(Q, K, V, save_state(state)) fills an AttentionState");
  static_assert(!given_v<PartialOption, Options...> || std::is_same_v<OwnKinds, Order<>>,
                "attn::save_partial: a Partial is of attention(Q, K, V) in one process, not of a "
                "layer, which goes on from finished rows, or of ranks");
  static_assert(
      !given_v<NativeBfloat16Option, Options...> ||
          (!given_v<StateOption, Options...> && !given_v<LayerStateOption, Options...>),
      "attn::native_bfloat16: a backward pass multiplies floats, and needs a forward pass that "
      "did: leave out the option or save_state()");
  constexpr bool known =
      (... && (is_attention_option<Options>() || is_of_kind_v<Options, LayerStateOption> ||
               is_of_order_v<Options, OwnKinds> || is_gradient_option_v<Options> ||
               makes_option<Options>() || is_operand_v<Options>));
  static_assert(known,
                "attn: unknown option: options are made by causal(), window(), keep(), "
                "key_lengths(), scale(), bias(), softcap(), residual(), into(), ...");
}
/// Refuses beside save_partial() what a state of part of the keys has no place for.
template <class Scalar, class... Options>
constexpr void check_partial() {
  if constexpr (given_v<PartialOption, Options...>) {
    static_assert(
        !given_v<IntoOption, Options...> && !given_v<ResidualOption, Options...> &&
            !given_v<SinkOption, Options...> && !given_v<kernel::LogSumExpOfRow, Options...> &&
            !given_v<kernel::MaxLogitOfRow, Options...>,
        "attn::save_partial: a partial state has no finished rows: give into(), residual(), "
        "sink(), save_logsumexp() and save_max_logit() to finish()");
    static_assert(!given_v<kernel::EntropyOfRow, Options...> &&
                      !given_v<WeightsOption, Options...> && !given_v<ScoresOption, Options...> &&
                      !given_v<StateOption, Options...> && !given_v<DropoutOption, Options...>,
                  "attn::save_partial: without dropout(), save_entropy(), save_weights(), "
                  "save_scores() and save_state(), which are of calls that see all keys");
    static_assert((... && (!is_of_kind_v<Options, PartialOption> ||
                           is_partial_of_v<Scalar, bare_t<Options>>)),
                  "attn::save_partial: the partial state has another scalar than the call computes "
                  "in: Partial<float> for float, half and bfloat16");
  }
}
template <class... Options>
constexpr void check_options() {
  check_options_beside<Order<>, Options...>();
}

/// How the call's tokens fall into sequences, as its batch option says; one sequence without.
template <class Asked>
Batch batch_of(const char* function, const Asked& asked) {
  if constexpr (Asked::template has<BatchOption>()) {
    return Batch(function, asked.template get<BatchOption>());
  } else {
    return Batch();
  }
}

/// Who runs the call: the calling thread alone, unless an option says otherwise.
inline constexpr Serial kSerial{};
template <class Asked>
auto& executor_of(const char* function, const Asked& asked) {
  if constexpr (Asked::template has<ExecutorOption>()) {
    const auto& executor = asked.template get<ExecutorOption>();
    if (executor.workers() < 1)
      fail(text(function, ": ", executor.workers(), " threads asked for, needs at least 1"));
    return executor;
  } else {
    return kSerial;
  }
}

/// The workspace of a call: the one that is lent, else its own.
template <class Scalar, class Asked>
auto& workspace_of(Workspace<Scalar>* own, const Asked& asked) {
  if constexpr (Asked::template has<UseOption>()) {
    const auto& lent = asked.template get<UseOption>();
    static_assert(std::is_same_v<typename bare_t<decltype(lent)>::Scalar, Scalar>,
                  "attn::use: the workspace has another scalar than the call computes in");
    return lent;
  } else {
    return *own;
  }
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
