// tests/lanes_test.cpp: what a score functor computes with, lane by lane.
// SPDX-License-Identifier: MIT
#include <attn/lanes.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "support/scalar_names.h"

namespace {

template <class Scalar>
class LanesOf : public ::testing::Test {
 public:
  using S = attn::detail::Simd<Scalar>;
  using Lanes = attn::Lanes<S>;
  using Same = attn::SameLanes<S>;
  using Numbers = std::array<Scalar, std::size_t(S::width)>;

  static Lanes load(const Numbers& numbers) {
    alignas(64) Scalar memory[S::width];
    for (std::size_t w = 0; w < numbers.size(); ++w) memory[w] = numbers[w];
    return Lanes::of(S::load(memory));
  }
  static Numbers numbers_of(const Lanes& lanes) {
    alignas(64) Scalar memory[S::width];
    S::store(memory, lanes.packet());
    Numbers numbers;
    for (std::size_t w = 0; w < numbers.size(); ++w) numbers[w] = memory[w];
    return numbers;
  }
  /// −3.5, −2.25, −1, …: both signs and an exact 0.25.
  static Numbers some(Scalar first = Scalar(-3.5)) {
    Numbers numbers;
    for (std::size_t w = 0; w < numbers.size(); ++w) numbers[w] = first + Scalar(w) * Scalar(1.25);
    return numbers;
  }
  template <class F>
  static void expect_lanes(const Lanes& actual, const F& of_lane) {
    const Numbers numbers = numbers_of(actual);
    for (std::size_t w = 0; w < numbers.size(); ++w)
      EXPECT_EQ(numbers[w], Scalar(of_lane(some()[w]))) << "lane " << w;
  }
};
using Scalars = ::testing::Types<float, double, long double>;
TYPED_TEST_SUITE(LanesOf, Scalars, support::ScalarNames);

TYPED_TEST(LanesOf, AreComputedWithLaneByLane) {
  using T = TypeParam;
  const auto x = this->load(this->some());
  const auto expect = [&](const auto& lanes, const auto& f) { this->expect_lanes(lanes, f); };
  expect(x + x, [](T a) { return a + a; });
  expect(x - 1, [](T a) { return a - 1; });
  expect(1 - x, [](T a) { return 1 - a; });
  expect(2.5f * x, [](T a) { return T(2.5) * a; });
  expect(x * x, [](T a) { return a * a; });
  expect(1 / (x + 0.125), [](T a) { return 1 / (a + T(0.125)); });
  expect(-x, [](T a) { return -a; });
  expect(abs(x), [](T a) { return std::abs(a); });
  expect(min(x, 0.5), [](T a) { return std::min(a, T(0.5)); });
  expect(max(0.5, x), [](T a) { return std::max(T(0.5), a); });
  auto y = x;
  y += 1;
  y *= 4;
  y -= x;
  y /= 2;
  expect(y, [](T a) { return ((a + 1) * 4 - a) / 2; });
}

TYPED_TEST(LanesOf, AreComparedAndSelected) {
  using T = TypeParam;
  const auto x = this->load(this->some());
  const auto expect = [&](const auto& mask, const auto& f) {
    this->expect_lanes(select(mask, x, 7), [&](T a) { return f(a) ? a : T(7); });
  };
  expect(x < 0.25, [](T a) { return a < T(0.25); });
  expect(x <= 0.25, [](T a) { return a <= T(0.25); });
  expect(x > 0.25, [](T a) { return a > T(0.25); });
  expect(x >= 0.25, [](T a) { return a >= T(0.25); });
  expect(x == 0.25, [](T a) { return a == T(0.25); });
  expect(0.25 != x, [](T a) { return a != T(0.25); });
  expect(x < -1 || x > 1, [](T a) { return a < -1 || a > 1; });
  expect(x > -1 && !(x > 1), [](T a) { return a > -1 && a <= 1; });
}

TYPED_TEST(LanesOf, KeepTheFirstArgumentWhereOneIsNaN) {
  if (attn::detail::kFastMath) GTEST_SKIP() << "-ffast-math knows no NaN";
  using T = TypeParam;
  const T nan = std::numeric_limits<T>::quiet_NaN();
  const auto numbers = [&](const auto& lanes) { return this->numbers_of(lanes)[0]; };
  const auto x = this->load(this->some());
  EXPECT_TRUE(std::isnan(numbers(max(nan, x))));
  EXPECT_TRUE(std::isnan(numbers(min(nan, x))));
  EXPECT_EQ(numbers(max(x, nan)), T(-3.5));
  EXPECT_EQ(numbers(min(x, nan)), T(-3.5));
}

TYPED_TEST(LanesOf, RoundEachProductByItself) {
  using T = TypeParam;
  // (1 + ε)² = 1 + 2ε + ε², of which ε² is lost in rounding, but not in a fused step: there it would be the difference.
  const T e = std::numeric_limits<T>::epsilon();
  const auto x = this->load(typename TestFixture::Numbers{}) + (1 + e);
  EXPECT_EQ(this->numbers_of(x * x - (1 + 2 * e))[0], T(0));
  EXPECT_EQ(this->numbers_of((1 + 2 * e) - x * x)[0], T(0));
}

TYPED_TEST(LanesOf, OfOneIndexAreLanesAndAnIndex) {
  using T = TypeParam;
  const typename TestFixture::Same place(5);
  const std::vector<int> table = {0, 1, 2, 3, 4, 50};
  const double numbers[] = {0, 1, 2, 3, 4, 0.5};
  EXPECT_EQ(table[place], 50);
  EXPECT_EQ(numbers[place], 0.5);
  EXPECT_EQ(Eigen::VectorXi::LinSpaced(6, 0, 5)[place], 5);
  const auto x = this->load(this->some());
  this->expect_lanes(place - x, [](T a) { return 5 - a; });
  this->expect_lanes(x * place, [](T a) { return a * 5; });
  this->expect_lanes(x + (place - 3), [](T a) { return a + 2; });
  this->expect_lanes(x + abs(2 - place), [](T a) { return a + 3; });
  this->expect_lanes(select(place == 5, x, 1), [](T a) { return a; });
}

TYPED_TEST(LanesOf, LookUpTablesAndTheirNearestEnds) {
  using T = TypeParam;
  const std::vector<float> table = {10, 11, 12, 13};
  const std::array<int, 4> integers = {10, 11, 12, 13};
  const Eigen::Vector4d vector(10, 11, 12, 13);
  const short array[] = {10, 11, 12, 13};
  const auto expected = [](T a) { return a < 1 ? T(10) : a < 2 ? T(11) : a < 3 ? T(12) : T(13); };
  const auto x = this->load(this->some());
  this->expect_lanes(lookup(table, x), expected);
  this->expect_lanes(lookup(integers, x), expected);
  this->expect_lanes(lookup(vector, x), expected);
  this->expect_lanes(lookup(array, x), expected);
  this->expect_lanes(lookup(std::vector<float>(), x), [](T) { return 0; });
  if (attn::detail::kFastMath) return;  // -ffast-math knows neither NaN nor infinity
  const T nan = std::numeric_limits<T>::quiet_NaN(), infinity = std::numeric_limits<T>::infinity();
  this->expect_lanes(lookup(table, x + nan), [](T) { return 10; });
  this->expect_lanes(lookup(table, x + infinity), [](T) { return 13; });
  this->expect_lanes(lookup(table, x - infinity), [](T) { return 10; });
}

TYPED_TEST(LanesOf, HaveExpAndTanh) {
  using T = TypeParam;
  const auto x = this->load(this->some());
  const auto e = this->numbers_of(exp(x)), t = this->numbers_of(tanh(x));
  const T tolerance = 4 * std::numeric_limits<T>::epsilon();
  for (std::size_t w = 0; w < e.size(); ++w) {
    const T a = this->some()[w];
    EXPECT_NEAR(double(e[w] / std::exp(a)), 1, double(tolerance));
    EXPECT_NEAR(double(t[w]), double(std::tanh(a)), double(tolerance));
  }
}

}  // namespace
