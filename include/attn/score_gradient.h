// attn/score_gradient.h: gradients of what modifies scores: dbias, dalibi, dsink, dscale, dscore.
// SPDX-License-Identifier: MIT
//
//   option       belongs to       is                               shape
//   dbias(M)     bias(B)          ∂loss/∂B                         B's own; summed over what B broadcasts over
//   dalibi(v)    alibi(slopes)    ∂loss/∂slope of each head        as many numbers as alibi() was given
//   dsink(v)     sink(logits)     ∂loss/∂logit of each head        as many numbers as sink() was given
//   dscale(x)    scale(a)         ∂loss/∂scale                     one number
//   dscore(f)    score(g)         f(∂loss/∂g, at) of each pair     a functor: for parameters inside g
//
// Where one number serves several heads, sequences or rows, its gradient is the sum over all of
// them: of the same bits whatever the threads.
#pragma once

#include "call/score_gradient_outputs.h"

namespace attn {
inline namespace ATTN_ABI {

/// The gradient of the bias: M of the rows and columns of B, resized if it is a plain dynamic
/// matrix; or heads(M, H) where the bias is heads(B, H); or a strided view of B's sizes
/// [sequences or 1, heads or 1, queries or 1, keys or 1].
///
/// Semantics  a pair that is hidden, or that no query may see, leaves 0
/// Cost       an addition a pair; scratch as large as M where M is half or bfloat16, or under
///            accumulate(), unless each pair has an element of its own
template <class Output>
auto dbias(Output&& M) {
  auto target = detail::output_target(std::forward<Output>(M));
  return detail::BiasGradient<decltype(target)>(std::move(target));
}

namespace detail {

template <class Of, class Output>
auto head_gradient(Output&& out) {
  static_assert(is_dense_v<Output>,
                "attn::dalibi, dsink: expected a vector of Eigen to write to, a number for each "
                "that alibi() or sink() was given");
  using Bare = bare_t<Output>;
  static_assert(Bare::IsVectorAtCompileTime,
                "attn::dalibi, dsink: expected a vector, not a matrix");
  auto target = matrix_output(std::forward<Output>(out));
  return HeadGradient<decltype(target), Of>(std::move(target), Bare::ColsAtCompileTime != 1);
}

}  // namespace detail

/// The gradient of alibi()'s slopes: v of as many numbers as it was given (one, if one serves all
/// heads), resized if it is a plain dynamic vector.
template <class Output>
auto dalibi(Output&& v) {
  return detail::head_gradient<detail::AlibiGradientOption>(std::forward<Output>(v));
}
/// The gradient of sink()'s logits: v of as many numbers as it was given (one, if one serves all
/// heads), resized if it is a plain dynamic vector.
template <class Output>
auto dsink(Output&& v) {
  return detail::head_gradient<detail::SinkGradientOption>(std::forward<Output>(v));
}

/// The gradient of the scale, whether scale() is given or the default 1/√d_k serves: x of the
/// scalar that the call computes in.
template <class Scalar>
auto dscale(Scalar& x) {
  static_assert(!std::is_const_v<Scalar>, "attn::dscale: the number is const");
  return detail::ScaleGradient<Scalar>(x);
}
template <class Scalar, std::enable_if_t<!std::is_lvalue_reference_v<Scalar>, int> = 0>
void dscale(Scalar&&) {
  static_assert(detail::always_false_v<Scalar>,
                "attn::dscale: the number is a temporary: its result would be lost");
}

/// Calls f(ds, at) with ∂loss/∂g of every visible pair, g being the functor of score(g) and at
/// where the pair stands: parameters inside g (tables, buckets, learned distances) sum up what they
/// get.
///
///   attn::dscore([&](float ds, attn::At at) { dtable[bucket(at.query - at.key)] += ds; })
///
/// Semantics  one key at a time, row by row in a strip of rows and a block of keys, and never for a
///            pair that is hidden, by −∞ in a bias or of g as well. Under parallel() or on()
///            threads call it for different pairs at once: of different at.sequence and at.head,
///            and where those are few also of different rows. An lvalue f is referred to and may
///            change; a temporary is owned and called as const
/// Cost       a call a pair
template <class F>
auto dscore(F&& f) {
  return detail::ScoreVisitor<F>(std::forward<F>(f));
}

}  // namespace ATTN_ABI
}  // namespace attn
