// attn/score/softcap.h: scores squashed into (−cap, cap).
// SPDX-License-Identifier: MIT
#pragma once

#include "../base/call_shape.h"
#include "../base/load.h"
#include "../base/asked.h"
#include "../base/vector_math.h"
#include "score_rule.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

struct SoftcapOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: two softcaps in one call");
  }
};
/// c·tanh(s / c).
template <class Scalar>
struct BoundSoftcap : ScoreRule {
  static constexpr stage kStage = stage::softcapped;
  static constexpr bool kSloped = true;
  Scalar cap, inverse;
  BoundSoftcap(Scalar c, Scalar i) : cap(c), inverse(i) {}
  template <class S>
  ATTN_INLINE typename S::Packet apply(const typename S::Packet& s, const QueryRow&, Index) const {
    return S::mul(S::set(cap), tanh_of<S>(s));
  }
  template <class S>
  ATTN_INLINE typename S::Packet apply_with_slope(const typename S::Packet& s, const QueryRow&,
                                                  Index, const typename S::Mask&,
                                                  typename S::Packet& slope) const {
    const auto t = tanh_of<S>(s);
    slope = S::fmadd(S::sub(S::set(Scalar(0)), t), t, S::set(Scalar(1)));
    return S::mul(S::set(cap), t);
  }

 private:
  template <class S>
  ATTN_INLINE typename S::Packet tanh_of(const typename S::Packet& s) const {
    return tanh_lanes<S>(S::mul(s, S::set(inverse)));
  }
};
template <class Number>
struct Softcap : option_base {
  using Kind = SoftcapOption;
  Number cap;
  explicit Softcap(Number c) : cap(std::move(c)) {}
  template <class Scalar>
  BoundSoftcap<Scalar> bind(const CallShape& shape) const {
    using Limits = std::numeric_limits<Scalar>;
    const Scalar c = Scalar(cap), inverse = Scalar(Scalar(1) / c),
                 lost = Scalar(c * Scalar(Limits::min()));  // of a score, where s / c is flushed
    if (!is_finite(c) || !(c > Scalar(0)) || !is_finite(inverse) || lost > Limits::epsilon()) {
      fail(text(shape.function, ": softcap is ", number_text(cap),
                ", needs a finite cap above zero, neither so small that 1 / cap overflows nor so "
                "large that s / cap vanishes"));
    }
    return {c, inverse};
  }
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
