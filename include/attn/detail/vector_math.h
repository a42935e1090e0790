// attn/detail/vector_math.h: exp and tanh over packets, each with its contract. Width 1 uses the scalar's own functions.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <limits>

#include "simd.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

// exp_nonpositive(x)                                                     for x ≤ 0, −∞ and NaN
//
//   exact     exp(0) = 1, exp(−∞) = +0, exp(NaN) = NaN
//   float     ≤ 1 ulp (≤ 1.25 without fused multiply-add) down to x = −87.33; below, the true value is
//             under 2⁻¹²⁶, and what is returned
//             is subnormal or +0
//   double    Eigen's packet exponential (≤ 2 ulp), +0 below x = −708
//   others    the scalar's own exp, found by argument-dependent lookup
//
// The float version: n = round(x·log2 e) falls out of the last bits of x·log2 e + 1.5·2²³. What is
// left, g = x − n·log 2, takes two fused steps with log 2 in two words, the first of which is exact.
// e^g = 1 + g·u with u = 1 + g·q(g), q minimax of degree 4 on ±½ log 2 (relative error 3.1e-9); 2ⁿ
// is built by an integer shift and enters by one more fused step, 2ⁿ + (2ⁿ·g)·u: a NaN stays one
// whatever its payload, and g = 0 gives exactly 2ⁿ.
template <class S>
struct ExpParts {
  typename S::Packet power, g, q;  ///< e^x = power·(1 + g·(1 + g·q)), power = 2ⁿ

  ATTN_INLINE explicit ExpParts(const typename S::Packet& x) {
    using Packet = typename S::Packet;
    const Packet magic = S::set(12582912.0f + 127.0f);  // 1.5·2²³, and the exponent's bias on top
    const Packet shifted = S::pinned(S::fmadd(x, S::set(1.44269504f), magic));
    const Packet minus_n = S::pinned(S::sub(magic, shifted));
    g = S::fmadd(minus_n, S::set(0.693359375f), x);  // ten bits of log 2: no rounding
    g = S::fmadd(minus_n, S::set(-2.12194440e-4f), g);
    q = S::fmadd(S::set(1.381453708e-3f), g, S::set(8.368745081e-3f));
    q = S::fmadd(q, g, S::set(4.166839083e-2f));
    q = S::fmadd(q, g, S::set(1.666652040e-1f));
    q = S::fmadd(q, g, S::set(4.999999343e-1f));
    power = S::power_of_two(shifted);
  }
};

template <class S>
ATTN_INLINE typename S::Packet exp_nonpositive(const typename S::Packet& x) {
  using Scalar = typename S::Scalar;
  if constexpr (S::width > 1 && std::is_same_v<Scalar, float>) {
    const ExpParts<S> e(S::max(x, S::set(-88.03f)));  // n = −127: the shift gives 2ⁿ = 0
    return S::fmadd(S::mul(e.power, e.g), S::fmadd(e.q, e.g, S::set(1.0f)), e.power);
  } else if constexpr (S::width > 1) {
    return S::select(S::less(x, S::set(Scalar(-708))), S::set(Scalar(0)), S::eigen_exp(x));
  } else {
    using std::exp;
    return Scalar(exp(x));
  }
}

// exp(x)                                                                                               for every x
//
//   exact     exp(0) = 1, exp(−∞) = +0, exp(+∞) = +∞, exp(NaN) = NaN
//   packets   ≤ 3 ulp: as above for x ≤ 0, its reciprocal for x > 0; +∞ already from 87.7 on (float), 708 (double)
//   others    the scalar's own exp, found by argument-dependent lookup
template <class S>
ATTN_INLINE typename S::Packet exp_lanes(const typename S::Packet& x) {
  using Scalar = typename S::Scalar;
  if constexpr (S::width > 1) {
    const auto zero = S::set(Scalar(0));
    const auto small = exp_nonpositive<S>(S::sub(zero, S::abs(x)));
    return S::select(S::less(zero, x), S::div(S::set(Scalar(1)), small), small);
  } else {
    using std::exp;
    return Scalar(exp(x));
  }
}

// tanh(x)                                                                                              for every x
//
//   exact     tanh(±0) = ±0 up to the sign of zero, tanh(±∞) = ±1, tanh(NaN) = NaN; |result| ≤ 1
//   float     ≤ 3 ulp: t/(t + 2) with t = exp(2|x|) − 1 = (2ⁿ − 1) + 2ⁿ·(g + g·(g·q)) from the parts of exp: near 0, n = 0
//             and nothing cancels; past |x| = 20 nothing is left of the 2
//   others    lane by lane the scalar's own tanh, found by argument-dependent lookup
template <class S>
ATTN_INLINE typename S::Packet tanh_lanes(const typename S::Packet& x) {
  using Scalar = typename S::Scalar;
  if constexpr (S::width > 1 && std::is_same_v<Scalar, float>) {
    const auto magnitude = S::min(S::abs(x), S::set(20.0f));
    const ExpParts<S> e(S::add(magnitude, magnitude));
    const auto excess = S::mul(e.power, e.g);
    const auto t =
        S::add(S::fmadd(excess, S::mul(e.g, e.q), excess), S::sub(e.power, S::set(1.0f)));
    const auto y = S::div(t, S::add(t, S::set(2.0f)));
    const auto zero = S::set(0.0f);
    return S::select(S::less(x, zero), S::sub(zero, y), y);
  } else if constexpr (S::width > 1) {
    alignas(64) Scalar lanes[S::width];
    S::store(lanes, x);
    for (Scalar& lane : lanes) lane = std::tanh(lane);
    return S::load(lanes);
  } else {
    using std::tanh;
    return Scalar(tanh(x));
  }
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
