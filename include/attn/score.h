// attn/score.h: stage 2, what happens to a score between scale · q·k and the mask: scale, softcap,
// bias, alibi, score; sink.
// SPDX-License-Identifier: MIT
//
//   order, always    s = scale · q·k  →  softcap: c·tanh(s / c)  →  + bias  →  alibi: − slope·|p − j|  →  score: f(s, at)
//                    →  mask  →  softmax, with exp(sink) in its denominator
//
// Options have no order among themselves; this order is the library's. Softcap after a mask would
// turn −∞ into −c and leak probability; a mask after scaling makes a zero or negative scale
// harmless.
#pragma once

#include <cmath>

#include "score/modifiers.h"
#include "mask.h"

namespace attn {
inline namespace ATTN_ABI {

/// Scores are scale · q·k; without this option scale = 1/√d_k.
///
/// Requires   a number that is finite in the scalar of the call (std::invalid_argument from the
///            call that uses it, otherwise)
template <class Number>
auto scale(Number value) {
  return detail::Scale<detail::owned_number_t<Number>>(std::move(value));
}

/// Scores are squashed into (−cap, cap) by cap·tanh(s / cap), cap > 0 (Gemma 2, arXiv:2408.00118).
///
/// Requires   in the scalar of the call: cap and 1/cap finite, and cap so small that s / cap keeps
///            its digits: at most ε / the least normal number, 1e31 in float (std::invalid_argument
///            from the call that uses it, otherwise)
/// Cost       a tanh for each pair: a call of 1024 × 1024 pairs with d = 64 takes 1.2 times as long
template <class Number>
auto softcap(Number cap) {
  return detail::Softcap<detail::owned_number_t<Number>>(std::move(cap));
}

/// B is added to the scores; −∞ hides a pair.
///
/// Shapes     B: Lq × Lk for all sequences, or their rows stacked; heads(B, H): one for each head;
///            a single row serves all queries, a single column (for each head) all keys; a strided
///            view [sequence or 1, head or 1, query or 1, key or 1] broadcasts over any of them
/// Requires   one of those shapes (std::invalid_argument from the call otherwise)
/// Semantics  an lvalue is referred to, an expression evaluated and owned
/// Cost       an addition for each pair, and B read once for each head and sequence
template <class Matrix>
auto bias(Matrix&& B) {
  static_assert(detail::is_score_shaped_v<Matrix>,
                "attn::bias: expected a matrix to add to the scores");
  static_assert(!detail::is_bool_table<Matrix>(),
                "attn::bias: a matrix of bool says its polarity: keep(B) attends where it is true, "
                "hide(B) where it is false");
  auto source = detail::score_source(std::forward<Matrix>(B));
  return detail::Bias<decltype(source)>(std::move(source));
}

/// Attention with linear biases: a score loses slope·|p − j|, p and j being the positions of its
/// query and key; under a causal mask that is the paper's penalty for what lies back.
///
/// Shapes     slopes: any vector, one number for each query head (or one for all); a single number
/// Requires   as many slopes as heads, or one; finite
///            (std::invalid_argument from the call that uses it, otherwise)
/// Semantics  an lvalue vector is referred to, anything else owned. Distances are exact below 2²⁴
///            in float
/// Cost       one multiply-add for each pair, in the pass over the scores that all modifiers share
/// Reference  Press et al. 2022 (arXiv:2108.12409)
template <class Slopes = std::initializer_list<double>>
auto alibi(Slopes&& slopes) {
  auto list = detail::number_list(std::forward<Slopes>(slopes));
  return detail::Alibi<std::decay_t<decltype(list[0])>>(std::move(list));
}

/// The slopes of the ALiBi paper. For a power of two n: 2^(−8·1/n), 2^(−8·2/n), …, 2^(−8). For
/// other counts: those of the largest power of two p below, then every other one of 2p, beginning
/// with its first, until all heads have one.
///
/// Requires   heads ≥ 1                                      (std::invalid_argument otherwise)
/// Reference  Press et al. 2022 (arXiv:2108.12409), and their code for counts that are no power of
///            two
template <class Scalar = float>
Eigen::Matrix<Scalar, Eigen::Dynamic, 1> alibi_slopes(Index heads) {
  if (heads < 1)
    detail::fail(detail::text("attn::alibi_slopes: ", heads, " heads, needs at least 1"));
  detail::check_product("attn::alibi_slopes", "heads", heads);
  Index power = 1;
  while (2 * power <= heads) power *= 2;
  Eigen::Matrix<Scalar, Eigen::Dynamic, 1> slopes(heads);
  for (Index h = 0; h < heads; ++h) {
    const double exponent = h < power ? 8. * double(h + 1) / double(power)
                                      : 8. * double(2 * (h - power) + 1) / double(2 * power);
    slopes[h] = Scalar(std::exp2(-exponent));
  }
  return slopes;
}

/// One learned logit for each head in the softmax's denominator: weights are exp(s) / (exp(sink) +
/// Σ exp(s)), so that a head may attend to nothing. sink() is the logit 0: softmax plus one, exp(s)
/// / (1 + Σ exp(s)).
///
/// Shapes     logits: any vector, one for each query head (or one for all); a single number
/// Requires   as many logits as heads, or one; finite, or −∞ for none (std::invalid_argument from
///            the call that uses it)
/// Semantics  the logit is taken as it is: neither scaled nor modified nor masked. Log-sum-exp is
///            that of the denominator, the sink included. A row with no key left gives zeros; its
///            log-sum-exp is the sink
/// Cost       none for a pair
/// Reference  Miller 2023, Attention is off by one; OpenAI 2025, gpt-oss (arXiv:2508.10925)
template <class Logits = std::initializer_list<double>>
auto sink(Logits&& logits) {
  auto list = detail::number_list(std::forward<Logits>(logits));
  return detail::Sink<std::decay_t<decltype(list[0])>>(std::move(list));
}
inline detail::Sink<double> sink() { return sink(0.); }

/// The score becomes f(s, at): the user's own modifier, inlined into the engine.
///
/// Shapes     f(auto s, auto at), a generic lambda or a template: called with the lanes of several
///            keys at once (lanes.h)
///            f(float s, attn::At at), one concrete signature, or under one_by_one(f): called one
///            key at a time
/// Requires   f is const, returns the new score, and depends on nothing but its arguments and what
///            it holds
/// Semantics  at.sequence, at.head, at.query and at.key are as in At: positions of the call. −∞
///            hides the pair. With lanes, f also computes pairs that are hidden afterwards; one key
///            at a time it is called for pairs that are seen only (it may be called again for the
///            same; save_scores before the mask calls it for all). An lvalue f is referred to, a
///            temporary owned
/// Cost       what its arithmetic costs; a product and a sum of lanes are not fused
template <class F>
auto score(F&& f) {
  using detail::bare_t;
  if constexpr (detail::is_one_by_one_v<F>) {
    return detail::KeyFunctor<bare_t<decltype(f.held)>>(std::forward<F>(f).held);
  } else {
    using Held = detail::held_functor_t<F>;
    if constexpr (detail::has_one_signature<detail::functor_t<Held>>::value) {
      return detail::KeyFunctor<Held>(Held(std::forward<F>(f)));
    } else {
      return detail::LanesFunctor<Held>(Held(std::forward<F>(f)));
    }
  }
}

/// The same with slope(s, at) = ∂f/∂s, which a backward pass asks for where f takes a plain number:
/// f and slope are called one key at a time, slope by the backward pass alone. A generic f needs
/// none: it is then called with the score and its slope at once (dual_lanes.h).
///
/// Shapes     f(float s, attn::At at) of one concrete signature, or one_by_one(f);
///            slope(float s, attn::At at)
/// Requires   slope is const and returns a number
template <class F, class Slope>
auto score(F&& f, Slope&& slope) {
  using HeldSlope = detail::held_functor_t<Slope>;
  if constexpr (detail::is_one_by_one_v<F>) {
    using Held = detail::bare_t<decltype(f.held)>;
    return detail::KeyFunctor<Held, HeldSlope>(std::forward<F>(f).held,
                                               HeldSlope(std::forward<Slope>(slope)));
  } else {
    using Held = detail::held_functor_t<F>;
    static_assert(detail::has_one_signature<detail::functor_t<Held>>::value,
                  "attn::score: a generic functor brings its slope along: write score(f), or "
                  "score(one_by_one(f), slope)");
    return detail::KeyFunctor<Held, HeldSlope>(Held(std::forward<F>(f)),
                                               HeldSlope(std::forward<Slope>(slope)));
  }
}

/// For score(): has f called one key at a time, f(float s, attn::At at), also where its signature
/// is generic.
template <class F>
auto one_by_one(F&& f) {
  using Held = detail::held_functor_t<F>;
  return detail::OneByOne<Held>{Held(std::forward<F>(f))};
}

}  // namespace ATTN_ABI
}  // namespace attn
