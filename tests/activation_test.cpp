// tests/activation_test.cpp: the activations within their stated ulps of long double, at special values, and over matrices.
// SPDX-License-Identifier: MIT
#include <attn/activation.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "support/error_of.h"
#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/random_linear.h"
#include "support/scalar_names.h"
#include "support/special_values.h"

namespace {

using attn::detail::Simd;
using Eigen::Index;
using Eigen::MatrixXf;
using support::DynamicMatrix;
using support::same_bits;
using support::uniform;

template <class Scalar>
using Numbers = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

/// Every 2039th float; as many doubles at their values and between them.
template <class Scalar>
const Numbers<Scalar>& dense_numbers() {
  static const Numbers<Scalar> numbers = [] {
    std::vector<Scalar> all;
    support::Uniform random(1);
    for (std::uint64_t bits = 0; bits < (std::uint64_t(1) << 32); bits += 2039) {
      const float x = support::from_bits(static_cast<std::uint32_t>(bits));
      if (std::isfinite(x)) all.push_back(static_cast<Scalar>(x * (1 + 1e-8 * random())));
    }
    return Numbers<Scalar>(Eigen::Map<Numbers<Scalar>>(all.data(), static_cast<Index>(all.size())));
  }();
  return numbers;
}

template <class Scalar>
long double ulp_of(long double x) {
  int exponent;
  std::frexp(x, &exponent);
  return std::ldexp(1.0L, exponent - std::numeric_limits<Scalar>::digits);
}

/// The largest error in ulps, right and left of 0, of results that are not tiny; of the tiny ones the largest at all.
struct Errors {
  long double right = 0, left = 0, absolute = 0, tiny = 0;
};
template <class Scalar, class Activation, class Formula>
Errors errors_of(const Activation& activation, const Formula& formula) {
  const Numbers<Scalar>& x = dense_numbers<Scalar>();
  const Numbers<Scalar> y = activation(x);
  const long double tiny = std::numeric_limits<Scalar>::min() * 1e3L;
  Errors errors;
  for (Index i = 0; i < x.size(); ++i) {
    const long double exact = formula(static_cast<long double>(x[i]));
    const long double error = std::abs(static_cast<long double>(y[i]) - exact);
    const auto keep = [&](long double& worst, long double e) {
      if (!(e <= worst)) worst = e;
    };
    if (std::abs(exact) < tiny) {
      keep(errors.tiny, error / tiny);
      continue;
    }
    keep(x[i] < 0 ? errors.left : errors.right, error / ulp_of<Scalar>(exact));
    if (x[i] < 0) keep(errors.absolute, error);
  }
  return errors;
}

template <class Scalar>
class Activations : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Activations, Scalars, support::ScalarNames);

TYPED_TEST(Activations, AreWithinTheirStatedUlps) {
  constexpr bool kDouble = std::is_same_v<TypeParam, double>;
  const Errors of_silu = errors_of<TypeParam>(attn::silu, support::silu_of);
  EXPECT_LE(of_silu.right, 1.6L);
  EXPECT_LE(of_silu.left, 3.5L);
  EXPECT_LE(of_silu.tiny, 1);
  const Errors of_tanh = errors_of<TypeParam>(attn::gelu_tanh, [](long double x) {
    return x / (1 + std::exp(-2 * 0.797884560802865355879892119868763737L *
                             (x + 0.044715L * x * x * x)));
  });
  EXPECT_LE(of_tanh.right, 2);
  EXPECT_LE(of_tanh.absolute, kDouble ? 1e-16L : 6e-8L);
  EXPECT_LE(of_tanh.tiny, 1);
  const Errors of_relu = errors_of<TypeParam>(attn::relu, support::relu_of);
  EXPECT_EQ(of_relu.right + of_relu.left + of_relu.tiny, 0);
  if (Simd<TypeParam>::width == 1) return;  // the scalar's own erfc, whose argument is rounded
  const Errors of_gelu = errors_of<TypeParam>(attn::gelu, support::gelu_of);
  EXPECT_LE(of_gelu.right, 4);
  EXPECT_LE(of_gelu.left, kDouble ? 12 : attn::detail::kHardwareFma ? 7 : 8);
  EXPECT_LE(of_gelu.tiny, 1);
}

TYPED_TEST(Activations, KnowInfinityAndNaN) {
  const TypeParam inf = support::kInfinity<TypeParam>, nan = support::kNaN<TypeParam>;
  const Numbers<TypeParam> x = (Numbers<TypeParam>(4) << inf, -inf, nan, 0).finished();
  const auto check = [&](const Numbers<TypeParam>& y) {
    EXPECT_EQ(y[0], inf);
    EXPECT_EQ(y[1], 0);
    EXPECT_TRUE(std::isnan(y[2]));
    EXPECT_EQ(y[3], 0);
  };
  check(attn::relu(x));
  check(attn::gelu(x));
  check(attn::gelu_tanh(x));
  check(attn::silu(x));
}

// Processors take a hundred cycles or more for each of them.
TYPED_TEST(Activations, TakeNoDetourThroughSubnormalNumbers) {
  using S = Simd<TypeParam>;
  if constexpr (S::width == 1) {
    GTEST_SKIP() << "one number at a time: the scalar's own erfc";
  } else if (!attn::detail::kHardwareFma || S::exponent_parts == 1) {
    GTEST_SKIP() << "without fused steps, and in an exp without a table, products are rounded";
  }
  // Where the results are normal numbers or 0.
  const TypeParam last = std::is_same_v<TypeParam, double> ? 37 : 12.7f;
  std::vector<TypeParam> kept;
  for (const TypeParam x : dense_numbers<TypeParam>()) {
    const TypeParam a = std::abs(x);
    if ((a > TypeParam(1e-3) && a < last) || (a > last + 2 && a < TypeParam(1e4)))
      kept.push_back(x);
  }
  const Eigen::Map<const Numbers<TypeParam>> x(kept.data(), static_cast<Index>(kept.size()));
  Numbers<TypeParam> y(x.size());
  std::feclearexcept(FE_ALL_EXCEPT);
  attn::gelu(x, attn::into(y));
  EXPECT_FALSE(std::fetestexcept(FE_UNDERFLOW));
}

TEST(Activation, RefusesAnOutputThatHasNoRoom) {
  using Bounded = Eigen::Matrix<float, Eigen::Dynamic, 4, Eigen::RowMajor, 16, 4>;
  Bounded Y;
  attn::relu(uniform<float>(16, 4, 1), attn::into(Y));
  EXPECT_EQ(Y.rows(), 16);
  EXPECT_EQ(support::error_of([&] { attn::relu(uniform<float>(17, 4, 1), attn::into(Y)); }),
            "attn::activation: output is 16x4, needs 17x4");
}

// Wherever a number lies, the same bits: no scalar tails.
TEST(Activation, TakesEveryOrderStrideAndExpression) {
  const DynamicMatrix<float> X = uniform<float>(29, 37, 4, 5), Y = attn::gelu(X);
  for (Index i = 0; i < X.rows(); ++i) {
    for (Index n = 0; n < X.cols(); n += 5)
      EXPECT_TRUE(same_bits(attn::gelu(X.block(i, n, 1, 1)), Y.block(i, n, 1, 1)));
  }
  EXPECT_TRUE(same_bits(attn::gelu(MatrixXf(X)), Y));
  EXPECT_TRUE(same_bits(attn::gelu(X * 1.f), Y));
  DynamicMatrix<float> in_place = X;
  attn::gelu(in_place, attn::into(in_place));
  EXPECT_TRUE(same_bits(in_place, Y));
  MatrixXf wide = MatrixXf::Zero(60, 40);
  attn::gelu(X, attn::into(wide.block(1, 2, 29, 37)));
  EXPECT_TRUE(same_bits(wide.block(1, 2, 29, 37), Y));
  const auto narrow = X.cast<Eigen::half>().eval();
  EXPECT_TRUE(
      same_bits(attn::silu(narrow), attn::silu(narrow.cast<float>()).cast<Eigen::half>().eval()));
}

}  // namespace
