// attn/call/layer_backward_options.h: what the types of the options of a layer's backward pass show
// to be wrong.
// SPDX-License-Identifier: MIT
#pragma once

#include "../parameters.h"
#include "backward_call.h"
#include "layer_state.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Every mistake in the options of a layer's backward pass that the types alone show. `Inputs`: how
/// many the call has.
template <int Inputs, class... Options>
constexpr void check_layer_gradients() {
  check_given<Options...>();
  check_score_gradients<Options...>();
  check_products<Options...>();
  static_assert((!(is_forward_output<Options>() || is_of_kind_v<Options, LayerStateOption>)&&...),
                "attn::MultiHeadAttention::backward: into() and save_...() are outputs of the "
                "forward call: a backward pass writes gradients, dweights(g), dquery(dX)");
  constexpr bool known =
      (... && (is_attention_option<Options>() || is_attention_gradient<Options>() ||
               is_of_kind_v<Options, WeightsGradientOption> || makes_option<Options>() ||
               is_operand_v<Options>));
  static_assert(known,
                "attn::MultiHeadAttention::backward: unknown option: it takes the options of the "
                "forward call, and what to write: dweights(g), dquery(dX), ...");
  static_assert(Inputs >= 2 || !given_v<KeyGradientOption, Options...>,
                "attn::MultiHeadAttention::backward: dkey in self-attention: the gradient of the "
                "one input, as query, key and value, is dquery(dX)");
  static_assert(Inputs == 3 || !given_v<ValueGradientOption, Options...>,
                "attn::MultiHeadAttention::backward: dvalue of a call whose value is its key, or "
                "its query: dkey(dXkv) of (Xq, Xkv) and dquery(dX) of (X) are the sums");
  static_assert(
      ((is_of_kind_v<Options, WeightsGradientOption> || is_of_order_v<Options, GradientKinds> ||
        is_of_order_v<Options, ScoreGradientKinds>) ||
       ...),
      "attn::MultiHeadAttention::backward: no gradient is asked for: add dweights(g), "
      "dquery(dX), ...");
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
