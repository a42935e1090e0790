// tests/activation_slope_test.cpp: slopes of activations within their stated error of long double, at special values, and of the user's own.
// SPDX-License-Identifier: MIT
#include <attn/activation.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "support/random.h"
#include "support/scalar_names.h"
#include "support/special_values.h"

namespace {

using attn::detail::Simd;
using Eigen::Index;

template <class Scalar>
using Numbers = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

/// The slope that the option takes, at every number of x.
template <class Scalar, class Option>
Numbers<Scalar> slopes(const Option& option, const Numbers<Scalar>& x) {
  using S = Simd<Scalar>;
  Numbers<Scalar> all(x.size());
  const auto slope = option.template bind_slope<Scalar>();
  for (Index n = 0; n < x.size(); n += S::width) {
    const Index count = std::min<Index>(x.size() - n, S::width);
    const auto packet = attn::detail::load_strided<S>(x.data() + n, 1, count);
    attn::detail::store_strided<S>(all.data() + n, 1, slope.template apply<S>(packet, count),
                                   count);
  }
  return all;
}

/// Every 2039th float; as many doubles at their values and between them.
template <class Scalar>
Numbers<Scalar> dense_numbers() {
  std::vector<Scalar> all;
  support::Uniform random(1);
  for (std::uint64_t bits = 0; bits < (std::uint64_t(1) << 32); bits += 2039) {
    const float x = support::from_bits(static_cast<std::uint32_t>(bits));
    if (std::isfinite(x)) all.push_back(static_cast<Scalar>(x * (1 + 1e-8 * random())));
  }
  return Eigen::Map<Numbers<Scalar>>(all.data(), static_cast<Index>(all.size()));
}

/// The largest error in units of ε/2.
template <class Scalar, class Option, class Formula>
long double error_of(const Option& option, const Formula& formula) {
  const Numbers<Scalar> x = dense_numbers<Scalar>(), actual = slopes<Scalar>(option, x);
  long double worst = 0;
  for (Index n = 0; n < x.size(); ++n) {
    const long double error = std::abs(actual[n] - formula(static_cast<long double>(x[n])));
    if (!(error <= worst)) worst = error;
  }
  return worst / (std::numeric_limits<Scalar>::epsilon() / 2);
}

/// σ + x·z'·σ·(1 − σ), the slope of x·σ(z) where z changes by dz with x.
long double logistic_slope(long double x, long double z, long double dz) {
  if (std::abs(z) > 11000) return x < 0 ? 0 : 1;
  const long double e = std::exp(-std::abs(z)), right = 1 / (1 + e), left = e / (1 + e);
  return (x < 0 ? left : right) + x * dz * left * right;
}

template <class Scalar>
class Slopes : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Slopes, Scalars, support::ScalarNames);

TYPED_TEST(Slopes, AreWithinTheirStatedError) {
  EXPECT_EQ(error_of<TypeParam>(attn::relu(), [](long double x) { return x > 0 ? 1.0L : 0.0L; }),
            0);
  EXPECT_LE(
      error_of<TypeParam>(attn::gelu(),
                          [](long double x) {
                            const long double root = 0.707106781186547524400844362104849039L;
                            const long double density = 0.398942280401432677939946059934381868L;
                            return std::erfc(-x * root) / 2 + density * std::exp(-x * x / 2) * x;
                          }),
      2.5L);
  EXPECT_LE(error_of<TypeParam>(attn::gelu_tanh(),
                                [](long double x) {
                                  const long double a = 1.595769121605730711759542L,
                                                    b = 0.044715L * a;
                                  return logistic_slope(x, x * (a + b * x * x), a + 3 * b * x * x);
                                }),
            4.5L);
  EXPECT_LE(
      error_of<TypeParam>(attn::silu(), [](long double x) { return logistic_slope(x, x, 1); }), 4);
}

TYPED_TEST(Slopes, KnowInfinityAndNaN) {
  const TypeParam inf = support::kInfinity<TypeParam>, nan = support::kNaN<TypeParam>;
  const Numbers<TypeParam> x = (Numbers<TypeParam>(4) << inf, -inf, nan, 0).finished();
  const auto check = [&](const Numbers<TypeParam>& slope, double at_zero) {
    EXPECT_EQ(slope[0], 1);
    EXPECT_EQ(slope[1], 0);
    EXPECT_TRUE(std::isnan(slope[2]));
    EXPECT_EQ(slope[3], static_cast<TypeParam>(at_zero));
  };
  check(slopes<TypeParam>(attn::relu(), x), 0);
  check(slopes<TypeParam>(attn::gelu(), x), 0.5);
  check(slopes<TypeParam>(attn::gelu_tanh(), x), 0.5);
  check(slopes<TypeParam>(attn::silu(), x), 0.5);
}

// x·tanh(x), and x² below 0.
TYPED_TEST(Slopes, OfTheUsersOwnAreCarriedAlongOrGiven) {
  const auto own = [](auto x) { return select(x < 0, x * x, x * tanh(x)); };
  const auto slope = [](auto x) {
    const auto t = tanh(x);
    return select(x < 0, 2 * x, t + x * (1 - t * t));
  };
  const Numbers<TypeParam> x = 3 * support::uniform<TypeParam>(101, 1, 7, 0);
  const Numbers<TypeParam> carried = slopes<TypeParam>(attn::activation(own), x);
  EXPECT_LE((carried - slopes<TypeParam>(attn::activation(own, slope), x)).cwiseAbs().maxCoeff(),
            4 * std::numeric_limits<TypeParam>::epsilon());

  int calls = 0;
  const auto one = [](TypeParam t) { return t * t; };
  const auto slope_of_one = [&calls](TypeParam t) {
    ++calls;
    return 2 * t;
  };
  EXPECT_EQ(slopes<TypeParam>(attn::activation(one, slope_of_one), x), 2 * x);
  EXPECT_EQ(calls, x.size());  // what pads a packet is no number of the result
}

TYPED_TEST(Slopes, OfWhatIgnoresItsArgumentIsZero) {
  const Numbers<TypeParam> x = Numbers<TypeParam>::Ones(5);
  EXPECT_EQ(slopes<TypeParam>(attn::activation([](auto) { return 3; }), x),
            Numbers<TypeParam>::Zero(5));
}

}  // namespace
