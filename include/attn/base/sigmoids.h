// attn/base/sigmoids.h: the activations of feed-forward layers over packets, and their slopes,
// each with its contract: x times a sigmoid of x.
// SPDX-License-Identifier: MIT
//
// All three are x·σ with σ → 1 on the right and → 0 on the left, where the little that is left of
// it comes from an exponential, not from a difference. NaN gives NaN, −∞ gives 0, +∞ gives +∞.
// Counts of ulp hold while the exponential is a normal number; below (silu: −87.3 in float, −708
// in double), results of less than 1.1e-36 (1.6e-305) may be 0.
//
// Slopes lie between −0.13 and 1.13 and cross 0 once, so that what is stated of them is the
// absolute error, in units of ε/2 = 6e-8 (double: 1.1e-16). NaN gives NaN, −∞ gives 0, +∞ gives 1.
#pragma once

#include <cmath>
#include <type_traits>

#include "vector_math.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// x / (1 + e^−z) where x and z have one sign: x·e / (1 + e) on the left, x / (1 + e) on the right,
/// e = e^−|z| ≤ 1.
template <class S>
ATTN_INLINE typename S::Packet logistic_lanes(const typename S::Packet& x,
                                              const typename S::Packet& z) {
  using Scalar = typename S::Scalar;
  const auto zero = S::set(Scalar(0));
  const typename S::Packet e = exp_nonpositive<S>(S::sub(zero, S::abs(z)));
  // −∞·0 would be NaN.
  const typename S::Packet finite = S::max(x, S::set(Scalar(Eigen::NumTraits<Scalar>::lowest())));
  const typename S::Packet numerator = S::where_less(x, zero, S::mul(finite, e), x);
  return S::div(numerator, S::add(S::set(Scalar(1)), e));
}

/// The slope of x / (1 + e^−z) where z changes by dz with x: (1 + e + x·dz·e) / (1 + e)² on the
/// right, e·(1 + e + x·dz) / (1 + e)² on the left.
template <class S>
ATTN_INLINE typename S::Packet logistic_slope_lanes(const typename S::Packet& x,
                                                    const typename S::Packet& z,
                                                    const typename S::Packet& dz) {
  using Scalar = typename S::Scalar;
  const auto zero = S::set(Scalar(0));
  const typename S::Packet e = exp_nonpositive<S>(S::sub(zero, S::abs(z)));
  const typename S::Packet w = S::add(S::set(Scalar(1)), e);
  // ∞·0 would be NaN.
  const typename S::Packet change = S::where_less(zero, e, S::mul(x, dz), zero);
  const typename S::Packet numerator =
      S::where_less(x, zero, S::mul(e, S::add(w, change)), S::fmadd(change, e, w));
  return S::div(numerator, S::mul(w, w));
}

// silu(x) = x / (1 + e^−x)
//
//   packets   ≤ 3.5 ulp, for x ≥ 0 ≤ 1.6
//   slope     ≤ 4 · ε/2
//   others    with the scalar's own exp, found by argument-dependent lookup
template <class S>
ATTN_INLINE typename S::Packet silu_lanes(const typename S::Packet& x) {
  return logistic_lanes<S>(x, x);
}
template <class S>
ATTN_INLINE typename S::Packet silu_slope_lanes(const typename S::Packet& x) {
  return logistic_slope_lanes<S>(x, x, S::set(typename S::Scalar(1)));
}

// gelu_tanh(x) = x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))) = x / (1 + e^−z), z = x·(a + b·x²)
//
//   packets   ≤ 2 ulp for x ≥ 0. On the left z is rounded before e^z is taken: ≤ 4 + 2.4·|z| ulp,
//             that is 13 at −3, where the result is −0.004; absolute error ≤ 6e-8 (1e-16)
//   slope     ≤ 4.5 · ε/2
//   others    with the scalar's own exp, found by argument-dependent lookup
inline constexpr long double kGeluTanh[] = {1.595769121605730711759542L,  // a = 2 √(2/π)
                                            0.07135481627260025637636L};  // b = 0.044715·a
template <class S>
ATTN_INLINE typename S::Packet gelu_tanh_lanes(const typename S::Packet& x) {
  using Scalar = typename S::Scalar;
  const auto a = S::set(Scalar(kGeluTanh[0])), b = S::set(Scalar(kGeluTanh[1]));
  return logistic_lanes<S>(x, S::mul(x, S::fmadd(b, S::mul(x, x), a)));
}
template <class S>
ATTN_INLINE typename S::Packet gelu_tanh_slope_lanes(const typename S::Packet& x) {
  using Scalar = typename S::Scalar;
  const auto a = S::set(Scalar(kGeluTanh[0])), b = S::set(Scalar(kGeluTanh[1]));
  const typename S::Packet square = S::mul(x, x), change = S::mul(b, square);
  return logistic_slope_lanes<S>(x, S::mul(x, S::fmadd(b, square, a)),
                                 S::fmadd(change, S::set(Scalar(3)), a));
}

/// Φ(−a) = e^(−a²/2) · p(a) / q(a), minimax on [0, last], behind which the exponential is nothing;
/// highest powers first.
template <class Scalar>
struct NormalTail;
template <>
struct NormalTail<float> {  // relative error 5.6e-9
  static constexpr float last = 14;
  static constexpr float p[] = {4.0760680e-3f, 4.0362717e-2f, 1.8243359e-1f, 4.3721432e-1f, 0.5f};
  static constexpr float q[] = {1.0217059e-2f, 1.0118114e-1f, 4.6735430e-1f,
                                1.1991759f,    1.6723135f,    1.0f};
};
template <>
struct NormalTail<double> {  // 9.7e-19
  static constexpr double last = 39;
  static constexpr double p[] = {2.2457966712854614e-07,
                                 6.9864083888000388e-06,
                                 0.00010670793089923355,
                                 0.0010408272508707784,
                                 0.0071292123345243017,
                                 0.035693656448903627,
                                 0.13212170022411074,
                                 0.35749782859981133,
                                 0.67980579276458297,
                                 0.82804984501957246,
                                 0.5};
  static constexpr double q[] = {
      5.6293774353150497e-07, 1.7512328805514958e-05, 0.00026804005445978303, 0.0026264793450473251,
      0.018136636445829711,   0.092044671128737279,   0.34852094264283079,    0.98054222305393834,
      2.002090759592011,      2.8176077317293839,     2.4539842508420104,     1};
};

/// a² − s where s = a² as it is rounded.
template <class S>
ATTN_INLINE typename S::Packet square_rest(const typename S::Packet& a,
                                           const typename S::Packet& s) {
  using Scalar = typename S::Scalar;
  if constexpr (kHardwareFma) {
    return S::fmadd(a, a, S::sub(S::set(Scalar(0)), s));
  } else {  // Dekker's product: the upper half of a squares exactly
    constexpr int half = (std::numeric_limits<Scalar>::digits + 1) / 2;
    const auto shifted = S::mul(a, S::set(Scalar((std::int64_t(1) << half) + 1)));
    const auto upper = S::sub(shifted, S::sub(shifted, a));
    const auto lower = S::sub(a, upper);
    return S::add(S::sub(S::mul(upper, upper), s), S::mul(lower, S::add(a, upper)));
  }
}

template <class Scalar, class = void>
struct has_erfc : std::false_type {};
namespace found_by_lookup {
using std::erfc;
template <class Scalar>
auto complement(const Scalar& x) -> decltype(Scalar(erfc(x))) {
  return Scalar(erfc(x));
}
}  // namespace found_by_lookup
template <class Scalar>
struct has_erfc<Scalar,
                std::void_t<decltype(found_by_lookup::complement(std::declval<const Scalar&>()))>>
    : std::true_type {};

/// What Φ(−a) = e·p/q is made of for a = |x|, no further than where the exponential is nothing.
template <class S>
struct NormalTailLanes {
  using Scalar = typename S::Scalar;
  using Tail = NormalTail<Scalar>;
  typename S::Packet a, e, p, q;

  ATTN_INLINE explicit NormalTailLanes(const typename S::Packet& x)
      : a(S::min(S::abs(x), S::set(Tail::last))),
        e(gaussian(a)),
        p(polynomial(Tail::p, a)),
        q(polynomial(Tail::q, a)) {}

 private:
  /// e^(−a²/2), a squared in two words: as exact at 13 as at 1.
  /// WHY  the rest by −½ first, fused: it times an exponential of less than 1e-33, from 12.3 on,
  ///      would be subnormal, which processors take a hundred cycles or more for: 512 × 2048
  ///      numbers, one in fifty of them there, 3.1 ms instead of 0.75 (Emerald Rapids, g++)
  static ATTN_INLINE typename S::Packet gaussian(const typename S::Packet& a) {
    const auto minus_half = S::set(Scalar(-0.5));
    const auto square = S::mul(a, a);
    const auto rounded = exp_nonpositive<S>(S::mul(square, minus_half));
    return S::fmadd(S::mul(square_rest<S>(a, square), minus_half), rounded, rounded);
  }
  template <std::size_t Terms>
  static ATTN_INLINE typename S::Packet polynomial(const Scalar (&terms)[Terms],
                                                   const typename S::Packet& a) {
    typename S::Packet sum = S::set(terms[0]);
    ATTN_UNROLL
    for (std::size_t i = 1; i < Terms; ++i) sum = S::fmadd(sum, a, S::set(terms[i]));
    return sum;
  }
};

/// By the scalar's own erfc. (A class: its condition is the first error.)
template <class Scalar>
struct NormalDistribution {
  static_assert(has_erfc<Scalar>::value,
                "attn::gelu: this scalar has no erfc(x): write gelu_tanh(), or "
                "activation([](auto x) { return ...; })");
  /// Φ(x) / ½ = erfc(−x / √2).
  Scalar twice(const Scalar& x) const {
    const Scalar root = Scalar(-0.707106781186547524400844362104849039L);
    return found_by_lookup::complement(Scalar(x * root));
  }
};

// gelu(x) = x·Φ(x) = x/2 · (1 + erf(x / √2)) = x/2 · erfc(−x / √2)
//
//   packets   ≤ 7 ulp (8 without fused multiply-add; double ≤ 12), for x ≥ 0 ≤ 4: x is squared in
//             two words, so that e^(−x²/2) is as exact at −13 as at −1
//   slope     Φ(x) + x·φ(x), ≤ 2.5 · ε/2
//   others    x/2 · erfc(−x / √2) with the scalar's own erfc, found by argument-dependent lookup
template <class S>
ATTN_INLINE typename S::Packet gelu_lanes(const typename S::Packet& x) {
  using Scalar = typename S::Scalar;
  if constexpr (S::width == 1) {
    constexpr NormalDistribution<Scalar> normal{};
    const Scalar finite = S::max(x, Scalar(Eigen::NumTraits<Scalar>::lowest()));
    return Scalar(Scalar(finite * Scalar(0.5)) * normal.twice(finite));
  } else {
    const NormalTailLanes<S> tail(x);
    const auto zero = S::set(Scalar(0));
    const auto t = S::mul(S::div(S::mul(tail.a, tail.p), tail.q), tail.e);
    return S::where_less(x, zero, S::sub(zero, t), S::sub(x, t));
  }
}
template <class S>
ATTN_INLINE typename S::Packet gelu_slope_lanes(const typename S::Packet& x) {
  using Scalar = typename S::Scalar;
  constexpr long double kDensity = 0.398942280401432677939946059934381868L;  // φ(0)
  if constexpr (S::width == 1) {
    using std::exp;
    using Limits = Eigen::NumTraits<Scalar>;
    constexpr NormalDistribution<Scalar> normal{};
    const Scalar finite = S::min(S::max(x, Scalar(Limits::lowest())), Scalar(Limits::highest()));
    const Scalar distribution = Scalar(Scalar(0.5) * normal.twice(finite));
    const Scalar e = exp(Scalar(Scalar(finite * finite) * Scalar(-0.5)));
    return Scalar(distribution + Scalar(Scalar(finite * Scalar(kDensity)) * e));
  } else {
    // On the left e·(p/q − a·φ(0)); on the right what it leaves of 1.
    const NormalTailLanes<S> tail(x);
    const auto zero = S::set(Scalar(0)), one = S::set(Scalar(1));
    const auto minus_a = S::sub(zero, tail.a);
    const auto t =
        S::mul(S::fmadd(minus_a, S::set(Scalar(kDensity)), S::div(tail.p, tail.q)), tail.e);
    return S::where_less(x, zero, t, S::sub(one, t));
  }
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
