// attn/call/options.h: the options of a call: known types, each at most once, found by what they
// are.
// SPDX-License-Identifier: MIT
//
//   masks     (mask.h)       causal() window() prefix_lm() tree() keep() hide() key_lengths() key_range() segments()
//                            block_sparse() mask(), && || ! of them; query_offset()
//   scores    (score.h)      scale() softcap() bias() alibi() score() sink()
//   positions (rotary.h)     rotary()
//   batch     (layout.h)     sequences() sequence_length()
//   outputs   (output.h)     into() save_logsumexp() save_max_logit() save_entropy() save_weights() save_scores()
//   residual  (residual.h)   residual()
//   cache     (kv_cache.h)   all_keys() cache_sequences(), on a key/value cache
//   means     (workspace.h)  use(), (parallel.h) parallel() on() split_keys()
#pragma once

#include "../mask/cache_mask.h"
#include "overlap.h"
#include "../score/rotary_table.h"
#include "../output.h"
#include "../parallel.h"
#include "../residual.h"
#include "../score.h"
#include "../workspace.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

template <class T>
using is_mask = std::bool_constant<is_mask_v<T>>;
template <class T>
using is_scale = is_instance<Scale, T>;
template <class T>
using is_softcap = is_instance<Softcap, T>;
template <class T>
using is_bias = is_instance<Bias, T>;
template <class T>
using is_alibi = is_instance<Alibi, T>;
template <class T>
using is_sink = is_instance<Sink, T>;
template <class T>
using is_score_functor =
    std::bool_constant<is_instance_v<LanesFunctor, T> || is_instance_v<KeyFunctor, T>>;
template <class T>
using is_rotary = is_instance<Rotary, T>;
template <class T>
using is_residual = is_instance<Residual, T>;
template <class T>
using is_residual_of_query = std::is_same<T, ResidualOfQuery>;
template <class T>
using is_into = is_instance<Into, T>;
template <class T>
using is_use = std::bool_constant<is_instance_v<Use, T> || is_instance_v<UseStack, T>>;
template <class T>
using is_batch =
    std::bool_constant<std::is_same_v<T, Sequences> || std::is_same_v<T, SequenceLength>>;

template <class T>
using is_all_keys = std::is_same<T, AllKeys>;
template <class T>
using is_cache_sequences = std::is_same<T, CacheSequences>;

template <template <class> class Is, class... Options>
inline constexpr int count_v = (0 + ... + int(Is<bare_t<Options>>::value));

/// What pick() finds where an option is not given and nothing stands in for it.
struct NoOption {};

/// The first option of a kind, or `otherwise`.
template <template <class> class Is, class Default>
Default& pick(Default& otherwise) {
  return otherwise;
}
template <template <class> class Is, class Default, class First, class... Rest>
auto& pick(Default& otherwise, First& first, Rest&... rest) {
  if constexpr (Is<bare_t<First>>::value) {
    return first;
  } else {
    return pick<Is>(otherwise, rest...);
  }
}

/// How the call's tokens fall into sequences, as its batch option says; one sequence without.
template <class... Options>
Batch batch_of(const char* function, const Options&... options) {
  if constexpr (count_v<is_batch, Options...> == 1) {
    const NoOption none{};
    return Batch(function, pick<is_batch>(none, options...));
  } else {
    return Batch();
  }
}

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

/// Every mistake that the types alone show, said in words.
template <class... Options>
constexpr void check_options() {
  static_assert((!is_bool_matrix<Options>() && ...),
                "attn: a matrix of bool among the options: write keep(B) (attend where true) or "
                "hide(B) (attend where false)");
  static_assert((!is_operand_v<Options> && ...),
                "attn: a matrix among the options: write what it is: into(Y) for the output, "
                "bias(B), residual(X), save_logsumexp(l)");
  static_assert((!makes_option<Options>() && ...),
                "attn: an option without its parentheses: write causal(), window(left, right), "
                "alibi(slopes), ...");
  static_assert(
      ((std::is_base_of_v<option_base, bare_t<Options>> || makes_option<Options>()) && ...),
      "attn: unknown option: options are made by causal(), window(), keep(), "
      "key_lengths(), scale(), bias(), softcap(), residual(), into(), ...");
  static_assert(count_v<is_scale, Options...> <= 1, "attn: two scales in one call");
  static_assert(count_v<is_softcap, Options...> <= 1, "attn: two softcaps in one call");
  static_assert(count_v<is_bias, Options...> <= 1,
                "attn: two biases in one call: add the matrices, bias(A + B)");
  static_assert(count_v<is_alibi, Options...> <= 1, "attn: two alibis in one call");
  static_assert(count_v<is_sink, Options...> <= 1, "attn: two sinks in one call");
  static_assert(count_v<is_score_functor, Options...> <= 1,
                "attn: two score functors in one call: options have no order, so write one functor "
                "that does both");
  static_assert(count_v<is_rotary, Options...> <= 1,
                "attn: two rotary rotations in one call: name both operands' positions in one, "
                "rotary(...).positions(query_ids, key_ids)");
  static_assert(count_v<is_residual, Options...> + count_v<is_residual_of_query, Options...> <= 1,
                "attn: two residuals in one call: add the matrices, residual(A + B)");
  static_assert(count_v<is_into, Options...> <= 1, "attn: two outputs in one call");
  static_assert(count_v<is_save_logsumexp, Options...> <= 1,
                "attn: save_logsumexp twice in one call");
  static_assert(count_v<is_save_max_logit, Options...> <= 1,
                "attn: save_max_logit twice in one call");
  static_assert(count_v<is_save_entropy, Options...> <= 1, "attn: save_entropy twice in one call");
  static_assert(count_v<is_save_weights, Options...> <= 1, "attn: save_weights twice in one call");
  static_assert(count_v<is_save_scores, Options...> <= 1, "attn: save_scores twice in one call");
  static_assert(count_v<is_use, Options...> <= 1, "attn: two workspaces in one call");
  static_assert(count_v<is_batch, Options...> <= 1,
                "attn: the batch is named twice: one of sequences(...) and sequence_length(...)");
  static_assert(count_v<is_all_keys, Options...> <= 1, "attn: all_keys() twice in one call");
  static_assert(count_v<is_cache_sequences, Options...> <= 1,
                "attn: cache_sequences(...) twice in one call");
  static_assert(count_v<is_executor, Options...> <= 1,
                "attn: threads asked for twice: one of parallel(n) and on(pool)");
  static_assert(count_v<is_split_keys, Options...> <= 1, "attn: two split_keys in one call");
  static_assert(offsets_named_v<Options...> <= 1,
                "attn: the query offset is named twice: one of causal(align::...), "
                "causal_from(...) and query_offset(...)");
  static_assert(!causal_twice_v<Options...>,
                "attn: causal() leaves the alignment open that another mask of the call names: "
                "write the named one alone, causal(align::...) or causal_from(...)");
}

template <class Executor>
void check_workers(const char* function, const Executor& executor) {
  if (executor.workers() < 1)
    fail(text(function, ": ", executor.workers(), " threads asked for, needs at least 1"));
}

/// Calls visit(name, memory) for every matrix that an option reads.
template <class Option, class Visit>
void visit_tables(const Option&, const Visit&) {}
template <class Source, class Visit>
void visit_tables(const Bias<Source>& option, const Visit& visit) {
  visit("bias", option.source.memory());
}
template <class Number, class Visit>
void visit_tables(const Alibi<Number>& option, const Visit& visit) {
  visit("alibi", option.slopes.memory());
}
template <class Number, class Visit>
void visit_tables(const Sink<Number>& option, const Visit& visit) {
  visit("sink", option.logits.memory());
}
template <class Source, bool Value, class Visit>
void visit_tables(const BoolMask<Source, Value>& mask, const Visit& visit) {
  visit(Value ? "keep" : "hide", mask.source.memory());
}
template <class Source, class Visit>
void visit_tables(const BlockSparse<Source>& mask, const Visit& visit) {
  visit("block_sparse", mask.source.memory());
}
template <class A, class Visit>
void visit_tables(const Not<A>& mask, const Visit& visit) {
  visit_tables(mask.a, visit);
}
template <class A, class B, class Visit>
void visit_tables(const And<A, B>& mask, const Visit& visit) {
  visit_tables(mask.a, visit);
  visit_tables(mask.b, visit);
}
template <class A, class B, class Visit>
void visit_tables(const Or<A, B>& mask, const Visit& visit) {
  visit_tables(mask.a, visit);
  visit_tables(mask.b, visit);
}

template <class Cosines, class Sines, class Visit>
void visit_tables(const Rotary<GivenAngles<Cosines, Sines>>& option, const Visit& visit) {
  visit("the cosines", option.angles.memory(option.angles.cosines));
  visit("the sines", option.angles.memory(option.angles.sines));
}

/// All masks of the call, joined by "and" and bound to its shape.
inline SeeAll bind_masks(const CallShape&) { return {}; }
template <class First, class... Rest>
auto bind_masks(const CallShape& shape, const First& first, const Rest&... rest) {
  if constexpr (!is_mask_v<First>) {
    return bind_masks(shape, rest...);
  } else if constexpr (count_v<is_mask, Rest...> == 0) {
    return first.bind(shape);
  } else {
    auto others = bind_masks(shape, rest...);
    auto own = first.bind(shape);
    return And<decltype(own), decltype(others)>(own, others);
  }
}

/// The modifier of one kind bound to the shape, or none.
template <class Scalar, template <class> class Is, class... Options>
auto bind_modifier(const CallShape& shape, const Options&... options) {
  if constexpr (count_v<Is, Options...> == 0) {
    return Unmodified{};
  } else {
    const NoOption none{};
    return pick<Is>(none, options...).template bind<Scalar>(shape);
  }
}

/// All modifiers of the call, bound to its shape.
template <class Scalar, class... Options>
auto bind_modifiers(const CallShape& shape, const Options&... options) {
  auto softcap = bind_modifier<Scalar, is_softcap>(shape, options...);
  auto bias = bind_modifier<Scalar, is_bias>(shape, options...);
  auto alibi = bind_modifier<Scalar, is_alibi>(shape, options...);
  auto user = bind_modifier<Scalar, is_score_functor>(shape, options...);
  auto sink = bind_modifier<Scalar, is_sink>(shape, options...);
  return Modifiers<decltype(softcap), decltype(bias), decltype(alibi), decltype(user),
                   decltype(sink)>{softcap, bias, alibi, user, sink};
}

template <template <class> class Is, class Option>
void add_if(Outputs& outputs, const CallShape& shape, const Option& option) {
  if constexpr (Is<Option>::value) outputs.add(option.kName, option.check(shape));
}
/// Adds the outputs beside Y to those of the call, in one order whatever that of the options is.
template <class... Options>
void add_saved(Outputs& outputs, const CallShape& shape, const Options&... options) {
  (add_if<is_save_logsumexp>(outputs, shape, options), ...);
  (add_if<is_save_max_logit>(outputs, shape, options), ...);
  (add_if<is_save_entropy>(outputs, shape, options), ...);
  (add_if<is_save_weights>(outputs, shape, options), ...);
  (add_if<is_save_scores>(outputs, shape, options), ...);
}

/// In place of a PreparedOutput that is not asked for.
template <class Absent>
struct NotPrepared {
  Absent to;
  void commit() const {}
};
/// An output beside Y, laid out, its new memory taken; Absent where it is not asked for.
template <template <class> class Is, class Absent, class... Options>
auto prepare_saved(const CallShape& shape, const Options&... options) {
  if constexpr (count_v<Is, Options...> == 0) {
    return NotPrepared<Absent>{};
  } else {
    const NoOption none{};
    return pick<Is>(none, options...).prepare(shape);
  }
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
