// attn/base/vector_math.h: exp and tanh over packets, each with its contract. Width 1 uses the
// scalar's own functions.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "simd.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// What exp is made of, for each scalar that has packets.
template <class Scalar>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float rounding = 12582912.0f;  ///< 1.5·2²³
  static constexpr int bias = 127;
  static constexpr float normal = -87.3365f;  ///< e^x is a normal number from here on
  static constexpr float weight = -80.0f;     ///< see exp_weight()
  static constexpr float lowest = -88.03f;    ///< n = −127: the shift gives 2ⁿ = 0
  static constexpr float log2_e = 1.44269504f;
  static constexpr float log_2[] = {0.693359375f, -2.12194440e-4f};  ///< the first has ten bits
};
template <>
struct ExpConstants<double> {
  static constexpr double rounding = 6755399441055744.0;  ///< 1.5·2⁵²
  static constexpr int bias = 1023;
  static constexpr double normal = -708.396;
  static constexpr double weight = -700.0;
  static constexpr double lowest = -709.1;  ///< n = −1023
  static constexpr double log2_e = 1.4426950408889634;
  static constexpr double log_2[] = {6.93147180369123816490e-01, 1.90821492927058770002e-10};
};

/// q, minimax on ±½ log 2 / parts, and where parts > 1 how far 2^(i/parts) lies below 1 + i/parts,
/// in units of the last place.
template <class Scalar, int Parts>
struct ExpTerms;
template <>
struct ExpTerms<float, 1> {  // relative error 3.1e-9
  static constexpr float q[] = {1.381453708e-3f, 8.368745081e-3f, 4.166839083e-2f, 1.666652040e-1f,
                                4.999999343e-1f};
};
template <>
struct ExpTerms<float, 16> {  // 1.6e-9
  static constexpr float q[] = {1.666671846e-1f, 5.000161574e-1f};
  alignas(64) static constexpr std::uint32_t below[] = {
      0,      152893, 289342, 408621, 509968, 592590, 655657, 698305,
      719629, 718684, 694486, 646004, 572163, 471841, 343865, 187011};
};
template <>
struct ExpTerms<double, 1> {  // 3.6e-18
  static constexpr double q[] = {
      2.5000015510719588e-08, 2.7630306178626537e-07, 2.7557586812894924e-06, 2.480149294987594e-05,
      1.984126950576586e-04,  1.388888894375969e-03,  8.33333333349498e-03,   4.166666666652973e-02,
      1.666666666666641e-01,  5.000000000000011e-01};
};
template <>
struct ExpTerms<double, 8> {  // 2.8e-18
  static constexpr double q[] = {1.984056590937286e-04,  1.3889780494649087e-03,
                                 8.3333333711121605e-03, 4.1666666570112164e-02,
                                 1.6666666666663726e-01, 5.000000000000296e-01};
  alignas(64) static constexpr std::uint64_t below[] = {0,
                                                        155339362315909,
                                                        273786814220523,
                                                        352003352548825,
                                                        386347768529971,
                                                        372849295843109,
                                                        307177783110739,
                                                        184611166772089};
};

// exp_nonpositive(x)                                                       for x ≤ 0, −∞ and NaN
//
//   exact     exp(0) = 1, exp(−∞) = +0, exp(NaN) = NaN
//   packets   ≤ 1 ulp (≤ 1.25 without fused multiply-add) down to x = −87.33 (float), −708.39
//             (double); below, where the true value is under the least normal number, +0
//   others    the scalar's own exp, found by argument-dependent lookup
//
// exp_weight(x), of a score that lies −x below the largest of its row: the same down to −80
// (double: −700), below, where e^x < 1.8e-35 (1e-304), +0.
// WHY  a processor takes a hundred cycles and more for a product that is subnormal or has a
//      subnormal factor: with −87.33, weights just above it times values below 1 still were, and
//      512 causal rows under alibi(0.5) took 0.80 ms instead of 0.27 (Emerald Rapids)
//
// n = round(x·log2 e) falls out of the last bits of x·log2 e + 1.5·2²³ (2⁵²). What is left, g = x −
// n·log 2, takes two fused steps with log 2 in two words, the first of which is exact. e^g = 1 +
// g·u with u = 1 + g·q(g), q minimax on ±½ log 2; 2ⁿ is built by an integer shift and enters by one
// more fused step: a NaN stays one whatever its payload, and g = 0 gives exactly 2ⁿ.
//
// Where a packet is a table that one instruction looks things up in (AVX-512), n counts sixteenths
// (double: eighths) of log 2, and the table mends the shifted bits to 2^(n/16): g is so small that
// q of two terms does (double: six) instead of five (ten).
// WHY  the multiply-adds are what exp shares its units with the products for: 7 instead of 10 a
//      packet, 11 instead of 15 in double.
//      5.3 cycles a packet instead of 6.7 (Zen 5, AVX-512; one of them is the store, which takes
//      the read ports of two multiply-adds).
//      ≤ 0.999 ulp over all floats: the entries err by up to 0.45 of one.
template <class S, int Parts = 1>
struct ExpParts {
  typename S::Packet power, g, q;  ///< e^x = power·(1 + g·(1 + g·q)), power = 2^(n/Parts)

  ATTN_INLINE explicit ExpParts(const typename S::Packet& x) {
    using Scalar = typename S::Scalar;
    using Packet = typename S::Packet;
    using C = ExpConstants<Scalar>;
    using Terms = ExpTerms<Scalar, Parts>;
    constexpr int kTerms = int(sizeof(Terms::q) / sizeof(Terms::q[0]));
    const Packet magic = S::set(C::rounding + Scalar(C::bias * Parts));
    const Packet shifted = S::pinned(S::fmadd(x, S::set(C::log2_e * Parts), magic));
    const Packet minus_n = S::pinned(S::sub(magic, shifted));
    g = S::fmadd(minus_n, S::set(C::log_2[0] / Parts), x);
    g = S::fmadd(minus_n, S::set(C::log_2[1] / Parts), g);
    q = S::set(Terms::q[0]);
    ATTN_UNROLL
    for (int i = 1; i < kTerms; ++i) q = S::fmadd(q, g, S::set(Terms::q[i]));
    if constexpr (Parts == 1) {
      power = S::power_of_two(shifted);
    } else {
      power = S::power_of_two(shifted, Terms::below);
    }
  }
};

/// e^x for least ≤ x ≤ 0, +0 below. Under -ffast-math, which may count NaN as below, without that
/// end: subnormal or +0.
template <class S>
ATTN_INLINE typename S::Packet exp_from(const typename S::Packet& x, typename S::Scalar least) {
  using Scalar = typename S::Scalar;
  const auto zero = S::set(Scalar(0)), one = S::set(Scalar(1)), from = S::set(least),
             lowest = S::set(ExpConstants<Scalar>::lowest);
  constexpr int kParts = S::exponent_parts;
  if constexpr (!S::shifts) {  // double where the compiler has no vector types: Eigen's, ≤ 2 ulp
    return S::where_less(x, from, zero, S::eigen_exp(x));
  } else if constexpr (kParts > 1 && !kFastMath) {
    // What is made of an x below is not looked at: one instruction masks the last step.
    const ExpParts<S, kParts> e(x);
    const auto u = S::fmadd(e.q, e.g, one);
    return S::where_less(x, from, zero, S::fmadd(e.power, S::mul(e.g, u), e.power));
  } else {
    // Where x lies below, 2ⁿ is 0 and nothing on the way is subnormal. Elsewhere power·g may be,
    // which tells only where the power itself errs; with the whole of u it would be less exact.
    const ExpParts<S, kParts> e(kFastMath ? S::max(x, lowest) : S::where_less(x, from, lowest, x));
    const auto u = S::fmadd(e.q, e.g, one);
    return kParts > 1 ? S::fmadd(e.power, S::mul(e.g, u), e.power)
                      : S::fmadd(S::mul(e.power, e.g), u, e.power);
  }
}
template <class S>
ATTN_INLINE typename S::Packet exp_nonpositive(const typename S::Packet& x) {
  using Scalar = typename S::Scalar;
  if constexpr (S::width == 1) {
    using std::exp;
    return Scalar(exp(x));
  } else {
    return exp_from<S>(x, ExpConstants<Scalar>::normal);
  }
}
template <class S>
ATTN_INLINE typename S::Packet exp_weight(const typename S::Packet& x) {
  using Scalar = typename S::Scalar;
  if constexpr (S::width > 1) {
    return exp_from<S>(x, ExpConstants<Scalar>::weight);
  } else if constexpr (std::is_same_v<Scalar, float> || std::is_same_v<Scalar, double>) {
    return x < ExpConstants<Scalar>::weight ? Scalar(0) : exp_nonpositive<S>(x);
  } else {
    return exp_nonpositive<S>(x);
  }
}

// exp(x)                                                                                for every x
//
//   exact     exp(0) = 1, exp(−∞) = +0, exp(+∞) = +∞, exp(NaN) = NaN
//   packets   ≤ 3 ulp: as above for x ≤ 0, its reciprocal for x > 0; +∞ already from
//             87.34 on (float), 708.4 (double)
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

// tanh(x)                                                                               for every x
//
//   exact     tanh(±0) = ±0 up to the sign of zero, tanh(±∞) = ±1, tanh(NaN) = NaN; |result| ≤ 1
//   packets   ≤ 3 ulp: t/(t + 2) with t = exp(2|x|) − 1 = (2ⁿ − 1) + 2ⁿ·(g + g·(g·q)) from the
//             parts of exp: near 0, n = 0 and nothing cancels; past |x| = 20 nothing is left of the
//             2
//   others    lane by lane the scalar's own tanh, found by argument-dependent lookup
template <class S>
ATTN_INLINE typename S::Packet tanh_lanes(const typename S::Packet& x) {
  using Scalar = typename S::Scalar;
  if constexpr (S::width == 1) {
    using std::tanh;
    return Scalar(tanh(x));
  } else if constexpr (S::shifts) {
    const auto magnitude = S::min(S::abs(x), S::set(Scalar(20)));
    const ExpParts<S> e(S::add(magnitude, magnitude));
    const auto excess = S::mul(e.power, e.g);
    const auto t =
        S::add(S::fmadd(excess, S::mul(e.g, e.q), excess), S::sub(e.power, S::set(Scalar(1))));
    const auto y = S::div(t, S::add(t, S::set(Scalar(2))));
    const auto zero = S::set(Scalar(0));
    return S::select(S::less(x, zero), S::sub(zero, y), y);
  } else {
    alignas(64) Scalar lanes[S::width];
    S::store(lanes, x);
    for (Scalar& lane : lanes) lane = std::tanh(lane);
    return S::load(lanes);
  }
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
