// attn/softmax_state.h: what a softmax keeps of the scores it has seen, and how two such states
// become one.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>

#include "base/simd.h"
#include "types.h"

namespace attn {
inline namespace ATTN_ABI {

namespace detail {

/// How sums of exp(score − maximum)·x under two maxima become one: under the larger of them, each
/// times its own factor.
template <class Scalar>
struct Merging {
  Scalar maximum, factor_a, factor_b;

  Merging(const Scalar& a, const Scalar& b)
      : maximum(a < b ? b : a), factor_a(factor(a)), factor_b(factor(b)) {}
  Scalar operator()(const Scalar& sum_a, const Scalar& sum_b) const {
    return Scalar(sum_a * factor_a) + Scalar(sum_b * factor_b);
  }

 private:
  Scalar factor(const Scalar& own) const {
    using std::exp;
    return Scalar(exp(Scalar(own - maximum)));
  }
};

}  // namespace detail

/// The state of an online softmax over some scores: their maximum, and the sum of exp(score −
/// maximum). States over disjoint scores merge into the state over all of them; merging is
/// commutative, and associative to rounding.
///
/// Semantics  without scores (or with hidden ones, −∞, only) sum = 0 and log-sum-exp is −∞. NaN and
///            +∞ scores give NaN
/// Cost       one exp for each score, two for a merge
/// Reference  Milakov & Gimelshein 2018 (arXiv:1805.02867), eq. 4
template <class Scalar>
struct SoftmaxState {
  Scalar maximum = Scalar(Eigen::NumTraits<Scalar>::lowest());
  Scalar sum = Scalar(0);

  /// Takes in one score.
  void update(const Scalar& score) {
    using std::exp;
    if (maximum < score) {
      sum = Scalar(sum * Scalar(exp(Scalar(maximum - score)))) + Scalar(1);
      maximum = score;
    } else {
      sum = sum + Scalar(exp(Scalar(score - maximum)));
    }
  }
  /// log Σ exp(score), natural; −∞ without scores.
  Scalar logsumexp() const {
    using std::log;
    return detail::equal(sum, Scalar(0)) ? Scalar(-Eigen::NumTraits<Scalar>::infinity())
                                         : Scalar(maximum + Scalar(log(sum)));
  }
};

/// The state over the scores of both: m = max(m_a, m_b), l = l_a·exp(m_a − m) + l_b·exp(m_b − m).
/// Without scores on one side it is the other's.
template <class Scalar>
SoftmaxState<Scalar> merge(const SoftmaxState<Scalar>& a, const SoftmaxState<Scalar>& b) {
  if (detail::equal(a.sum, Scalar(0))) return b;
  if (detail::equal(b.sum, Scalar(0))) return a;
  const detail::Merging<Scalar> merged(a.maximum, b.maximum);
  return {merged.maximum, merged(a.sum, b.sum)};
}

}  // namespace ATTN_ABI
}  // namespace attn
