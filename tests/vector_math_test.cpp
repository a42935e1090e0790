// tests/vector_math_test.cpp: exp and tanh over packets hold the contracts that vector_math.h writes.
// SPDX-License-Identifier: MIT
#include <attn/base/vector_math.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/scalar_names.h"
#include "support/special_values.h"

namespace {

using support::from_bits;
using support::kInfinity;
using support::kNaN;

template <class Scalar>
using S = attn::detail::Simd<Scalar>;

template <class Scalar>
struct Exp {
  static auto of(const typename S<Scalar>::Packet& x) {
    return attn::detail::exp_nonpositive<S<Scalar>>(x);
  }
};
template <class Scalar>
struct Weight {
  static auto of(const typename S<Scalar>::Packet& x) {
    return attn::detail::exp_weight<S<Scalar>>(x);
  }
};
template <class Scalar>
struct ExpOfAny {
  static auto of(const typename S<Scalar>::Packet& x) {
    return attn::detail::exp_lanes<S<Scalar>>(x);
  }
};
template <class Scalar>
struct Tanh {
  static auto of(const typename S<Scalar>::Packet& x) {
    return attn::detail::tanh_lanes<S<Scalar>>(x);
  }
};

/// f of every number of xs, through packets; the last packet is filled up with its own numbers.
template <template <class> class F, class Scalar>
std::vector<Scalar> lanes_of(const std::vector<Scalar>& xs) {
  constexpr std::size_t width = static_cast<std::size_t>(S<Scalar>::width);
  std::vector<Scalar> ys(xs.size());
  for (std::size_t n = 0; n < xs.size(); n += width) {
    alignas(64) Scalar lanes[width];
    for (std::size_t w = 0; w < width; ++w) lanes[w] = xs[std::min(n + w, xs.size() - 1)];
    S<Scalar>::store(lanes, F<Scalar>::of(S<Scalar>::load(lanes)));
    for (std::size_t w = 0; w < width && n + w < xs.size(); ++w) ys[n + w] = lanes[w];
  }
  return ys;
}
template <template <class> class F, class Scalar>
Scalar value_of(Scalar x) {
  return lanes_of<F>(std::vector<Scalar>{x}).front();
}

/// |actual − exact| in units of the last place of `exact` (at least of the smallest normal number).
template <class Scalar>
double ulps(Scalar actual, long double exact) {
  const long double magnitude =
      std::max(std::abs(exact), static_cast<long double>(std::numeric_limits<Scalar>::min()));
  const long double ulp =
      std::ldexp(1.0L, std::ilogb(magnitude) - (std::numeric_limits<Scalar>::digits - 1));
  return static_cast<double>(std::abs(static_cast<long double>(actual) - exact) / ulp);
}

std::uint32_t to_bits(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

/// Every `step`-th float from `from` to `to`, both positive, times sign.
std::vector<float> floats(float from, float to, std::uint32_t step, float sign) {
  std::vector<float> xs;
  for (std::uint32_t bits = to_bits(from); bits <= to_bits(to); bits += step) {
    xs.push_back(sign * from_bits(bits));
  }
  return xs;
}

template <class Scalar>
class ExpNonpositive : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, long double>;
TYPED_TEST_SUITE(ExpNonpositive, Scalars, support::ScalarNames);

TYPED_TEST(ExpNonpositive, IsExactAtZeroAndAtMinusInfinity) {
  const TypeParam infinity = kInfinity<TypeParam>;
  EXPECT_EQ(value_of<Exp>(TypeParam(0)), TypeParam(1));
  EXPECT_EQ(value_of<Exp>(-TypeParam(0)), TypeParam(1));
  EXPECT_TRUE(support::same_bits_of(value_of<Exp>(-infinity), TypeParam(0)));
  EXPECT_TRUE(
      support::same_bits_of(value_of<Exp>(std::numeric_limits<TypeParam>::lowest()), TypeParam(0)));
}

TYPED_TEST(ExpNonpositive, KeepsNaN) {
  EXPECT_TRUE(std::isnan(value_of<Exp>(kNaN<TypeParam>)));
  EXPECT_TRUE(std::isnan(value_of<Exp>(-kNaN<TypeParam>)));
  EXPECT_TRUE(std::isnan(value_of<Exp>(std::numeric_limits<TypeParam>::signaling_NaN())));
}

TYPED_TEST(ExpNonpositive, IsTheSameInEveryLane) {
  constexpr int width = S<TypeParam>::width;
  for (const TypeParam x : {TypeParam(-0.3), TypeParam(-20.25), TypeParam(-86)}) {
    const TypeParam alone = value_of<Exp>(x);
    for (int at = 0; at < width; ++at) {
      std::vector<TypeParam> xs(static_cast<std::size_t>(width), TypeParam(-1e30));
      xs[static_cast<std::size_t>(at)] = x;
      EXPECT_TRUE(support::same_bits_of(lanes_of<Exp>(xs)[static_cast<std::size_t>(at)], alone));
    }
  }
}

TEST(ExpNonpositiveOfFloat, ErrsAtMostOneUlpWhileTheResultIsNormalAndOneAndAQuarterWithoutFma) {
  const std::vector<float> xs = floats(1e-9f, 87.336f, 101, -1);
  const std::vector<float> ys = lanes_of<Exp>(xs);
  double worst = 0;
  float where = 0;
  for (std::size_t n = 0; n < xs.size(); ++n) {
    const double error = ulps(ys[n], std::exp(static_cast<long double>(xs[n])));
    if (!(error <= worst)) worst = error, where = xs[n];
  }
  EXPECT_LE(worst, attn::detail::kHardwareFma ? 1.0 : 1.25) << "at " << where;
  RecordProperty("ulps", std::to_string(worst));
}

// A step of x may lose to rounding, by no more than the two errors together.
TEST(ExpNonpositiveOfFloat, FallsWithItsArgument) {
  const std::vector<float> xs = floats(1e-3f, 90.0f, 4999, -1);
  const std::vector<float> ys = lanes_of<Exp>(xs);
  for (std::size_t n = 1; n < xs.size(); ++n) {
    ASSERT_LE(ys[n], ys[n - 1] * (1 + std::numeric_limits<float>::epsilon())) << "at " << xs[n];
  }
}

TEST(ExpNonpositiveOfFloat, IsZeroBelow2ToTheMinus126) {
  const bool own = S<float>::width == 1;  // the scalar's own exp
  const std::vector<float> xs = floats(87.337f, 3e38f, 10007, -1);
  for (const float y : lanes_of<Exp>(xs)) {
    ASSERT_FALSE(std::signbit(y));
    ASSERT_LE(y, own ? std::numeric_limits<float>::min() : 0);
  }
  for (const float x : {-104.0f, -200.0f, -1e30f}) EXPECT_EQ(value_of<Exp>(x), 0.0f) << x;
}

TEST(ExpNonpositiveOfFloat, KeepsNaNOfAnyPayload) {
  for (const std::uint32_t bits :
       {0x7fc00000u, 0x7fc00001u, 0x7f800001u, 0xff800001u, 0xffffffffu, 0x7fffffffu, 0x7fc0007fu,
        0x7fc000ffu, 0x7fc001ffu, 0x7f8000ffu}) {
    EXPECT_TRUE(std::isnan(value_of<Exp>(from_bits(bits)))) << std::hex << bits;
  }
}

TEST(ExpNonpositiveOfDouble, ErrsAtMostOneUlpAndIsZeroBelow709) {
  std::vector<double> xs;
  for (double x = 1e-12; x < 707.9; x *= 1.0003) xs.push_back(-x);
  for (double x = 0; x < 707.9; x += 0.0137) xs.push_back(-x);
  const std::vector<double> ys = lanes_of<Exp>(xs);
  double worst = 0;
  for (std::size_t n = 0; n < xs.size(); ++n) {
    worst = std::max(worst, ulps(ys[n], std::exp(static_cast<long double>(xs[n]))));
  }
  EXPECT_LE(worst, attn::detail::kHardwareFma ? 1.0 : 1.25);
  RecordProperty("ulps", std::to_string(worst));
  if (S<double>::width > 1) {
    for (const double x : {-709.1, -745.0, -1e4, -1e300}) {
      EXPECT_TRUE(support::same_bits_of(value_of<Exp>(x), 0.0)) << x;
    }
  }
}

template <class Scalar>
class ExpWeight : public ::testing::Test {};
TYPED_TEST_SUITE(ExpWeight, Scalars, support::ScalarNames);

// In long double, which has no packets, there is no such end.
TYPED_TEST(ExpWeight, IsTheSameAsExpUntilItEnds) {
  const bool is_double = std::is_same_v<TypeParam, double>;
  const TypeParam last = is_double ? -700 : -80;
  std::vector<TypeParam> xs{0, last, kNaN<TypeParam>};
  for (int i = 1; i < 8000; ++i) xs.push_back(last * TypeParam(i) / 8001);
  const std::vector<TypeParam> ys = lanes_of<Weight>(xs), expected = lanes_of<Exp>(xs);
  for (std::size_t n = 0; n < xs.size(); ++n)
    ASSERT_TRUE(support::same_bits_of(ys[n], expected[n])) << xs[n];
  if (!is_double && !std::is_same_v<TypeParam, float>) return;
  for (const TypeParam beyond : {TypeParam(1.0001), TypeParam(1.05), TypeParam(2), TypeParam(1e30)})
    EXPECT_TRUE(support::same_bits_of(value_of<Weight>(last * beyond), TypeParam(0))) << beyond;
  EXPECT_EQ(value_of<Weight>(-kInfinity<TypeParam>), TypeParam(0));
  EXPECT_EQ(value_of<Weight>(std::numeric_limits<TypeParam>::lowest()), TypeParam(0));
}

template <class Scalar>
class ExpLanes : public ::testing::Test {};
TYPED_TEST_SUITE(ExpLanes, Scalars, support::ScalarNames);

TYPED_TEST(ExpLanes, IsExactAtZeroAndAtTheEnds) {
  const TypeParam infinity = kInfinity<TypeParam>;
  EXPECT_EQ(value_of<ExpOfAny>(TypeParam(0)), TypeParam(1));
  EXPECT_EQ(value_of<ExpOfAny>(-infinity), TypeParam(0));
  EXPECT_EQ(value_of<ExpOfAny>(infinity), infinity);
  EXPECT_TRUE(std::isnan(value_of<ExpOfAny>(kNaN<TypeParam>)));
}

TYPED_TEST(ExpLanes, ErrsAtMostThreeUlp) {
  std::vector<TypeParam> xs;
  for (int i = -8700; i <= 8700; ++i) xs.push_back(TypeParam(i) / TypeParam(100.37));
  const std::vector<TypeParam> ys = lanes_of<ExpOfAny>(xs);
  for (std::size_t n = 0; n < xs.size(); ++n) {
    ASSERT_LE(ulps(ys[n], std::exp(static_cast<long double>(xs[n]))), 3.0) << xs[n];
  }
}

template <class Scalar>
class TanhLanes : public ::testing::Test {};
TYPED_TEST_SUITE(TanhLanes, Scalars, support::ScalarNames);

TYPED_TEST(TanhLanes, IsOddBoundedAndExactAtTheEnds) {
  const TypeParam infinity = kInfinity<TypeParam>;
  EXPECT_EQ(value_of<Tanh>(TypeParam(0)), TypeParam(0));
  EXPECT_EQ(value_of<Tanh>(-TypeParam(0)), TypeParam(0));
  EXPECT_EQ(value_of<Tanh>(infinity), TypeParam(1));
  EXPECT_EQ(value_of<Tanh>(-infinity), TypeParam(-1));
  EXPECT_EQ(value_of<Tanh>(std::numeric_limits<TypeParam>::max()), TypeParam(1));
  EXPECT_TRUE(std::isnan(value_of<Tanh>(kNaN<TypeParam>)));
  EXPECT_TRUE(std::isnan(value_of<Tanh>(std::numeric_limits<TypeParam>::signaling_NaN())));
  for (int i = 1; i < 2000; ++i) {
    const TypeParam x = static_cast<TypeParam>(i) / 100, y = value_of<Tanh>(x);
    EXPECT_LE(y, TypeParam(1)) << x;
    EXPECT_EQ(value_of<Tanh>(-x), -y) << x;
  }
}

TEST(TanhLanesOfDouble, ErrsAtMostThreeUlp) {
  std::vector<double> xs;
  for (double x = 1e-12; x < 40; x *= 1.0007) xs.push_back(x);
  const std::vector<double> ys = lanes_of<Tanh>(xs);
  double worst = 0;
  for (std::size_t n = 0; n < xs.size(); ++n)
    worst = std::max(worst, ulps(ys[n], std::tanh(static_cast<long double>(xs[n]))));
  EXPECT_LE(worst, 3.0);
  RecordProperty("ulps", std::to_string(worst));
}

TEST(TanhLanesOfFloat, ErrsAtMostThreeUlp) {
  for (const float sign : {-1.0f, 1.0f}) {
    std::vector<float> xs = floats(1e-20f, 30.0f, 211, sign);
    // Where the power of two changes: 2|x| = (n + ½) log 2.
    for (const float seam : {0.17328680f, 0.51986039f, 0.86643398f}) {
      const std::vector<float> near_the_seam = floats(0.99f * seam, 1.01f * seam, 1, sign);
      xs.insert(xs.end(), near_the_seam.begin(), near_the_seam.end());
    }
    const std::vector<float> ys = lanes_of<Tanh>(xs);
    double worst = 0;
    float where = 0;
    for (std::size_t n = 0; n < xs.size(); ++n) {
      const double error = ulps(ys[n], std::tanh(static_cast<long double>(xs[n])));
      if (!(error <= worst)) worst = error, where = xs[n];
    }
    EXPECT_LE(worst, 3.0) << "at " << where;
    RecordProperty("ulps", std::to_string(worst));
  }
}

}  // namespace
