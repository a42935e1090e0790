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
ATTN_INLINE typename S::Packet exp_nonpositive(const typename S::Packet& x) {
  using Scalar = typename S::Scalar;
  if constexpr (S::width > 1 && std::is_same_v<Scalar, float>) {
    using Packet = typename S::Packet;
    const Packet magic = S::set(12582912.0f + 127.0f);  // 1.5·2²³, and the exponent's bias on top
    const Packet clamped = S::max(x, S::set(-88.03f));  // n = −127: the shift below gives 2ⁿ = 0
    const Packet shifted = S::pinned(S::fmadd(clamped, S::set(1.44269504f), magic));
    const Packet minus_n = S::pinned(S::sub(magic, shifted));
    Packet g = S::fmadd(minus_n, S::set(0.693359375f), clamped);  // ten bits of log 2: no rounding
    g = S::fmadd(minus_n, S::set(-2.12194440e-4f), g);
    Packet q = S::fmadd(S::set(1.381453708e-3f), g, S::set(8.368745081e-3f));
    q = S::fmadd(q, g, S::set(4.166839083e-2f));
    q = S::fmadd(q, g, S::set(1.666652040e-1f));
    q = S::fmadd(q, g, S::set(4.999999343e-1f));
    const Packet u = S::fmadd(q, g, S::set(1.0f));
    const Packet power = S::power_of_two(shifted);
    return S::fmadd(S::mul(power, g), u, power);
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
//   float     ≤ 3 ulp: an odd polynomial below |x| = 0.625 (the coefficients are those of Cephes' tanhf, S. Moshier 1989),
//             1 − 2e/(1 + e) with e = exp(−2|x|) above
//   others    lane by lane the scalar's own tanh, found by argument-dependent lookup
template <class S>
ATTN_INLINE typename S::Packet tanh_lanes(const typename S::Packet& x) {
  using Scalar = typename S::Scalar;
  if constexpr (S::width > 1 && std::is_same_v<Scalar, float>) {
    using Packet = typename S::Packet;
    const Packet zero = S::set(0.0f), one = S::set(1.0f);
    const Packet magnitude = S::abs(x);
    const Packet square = S::mul(x, x);
    Packet p = S::fmadd(S::set(-5.70498872745e-3f), square, S::set(2.06390887954e-2f));
    p = S::fmadd(p, square, S::set(-5.37397155531e-2f));
    p = S::fmadd(p, square, S::set(1.33314422036e-1f));
    p = S::fmadd(p, square, S::set(-3.33332819422e-1f));
    const Packet small = S::fmadd(S::mul(p, square), x, x);
    const Packet e = exp_nonpositive<S>(S::mul(magnitude, S::set(-2.0f)));
    const Packet large = S::sub(one, S::div(S::add(e, e), S::add(one, e)));
    const Packet signed_large = S::select(S::less(x, zero), S::sub(zero, large), large);
    return S::select(S::less(magnitude, S::set(0.625f)), small, signed_large);
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
