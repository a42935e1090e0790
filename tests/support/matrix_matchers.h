// tests/support/matrix_matchers.h: matrices compared as a whole; a failure shows the worst element.
// SPDX-License-Identifier: MIT
//
//   EXPECT_TRUE(near(actual, expected, 1e-6));        |actual − expected| ≤ tolerance; NaN fails
//   EXPECT_TRUE(same_bits(actual, expected));         equal bits: −0 is not +0, NaN is that same NaN
//   worst_error(actual, expected)                     the largest |actual − expected|; NaN if one is
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "reference_attention.h"

namespace support {

/// The largest difference and where it is. A NaN on either side beats every number.
struct Worst {
  long double error = 0;
  Eigen::Index row = -1, col = -1;
};

inline Worst worst_element(const Reference& actual, const Reference& expected) {
  Worst worst;
  for (Eigen::Index i = 0; i < actual.rows(); ++i) {
    for (Eigen::Index j = 0; j < actual.cols(); ++j) {
      const long double a = actual(i, j), e = expected(i, j);
      const long double error = a == e ? 0.0L : std::abs(a - e);  // ∞ equals ∞
      if (!(error <= worst.error)) worst = {error, i, j};
      if (std::isnan(worst.error)) return worst;
    }
  }
  return worst;
}

inline ::testing::AssertionResult shapes_differ(const Reference& actual,
                                                const Reference& expected) {
  return ::testing::AssertionFailure()
         << "actual is " << actual.rows() << " x " << actual.cols() << ", expected is "
         << expected.rows() << " x " << expected.cols();
}

template <class Actual, class Expected>
long double worst_error(const Eigen::DenseBase<Actual>& actual,
                        const Eigen::DenseBase<Expected>& expected) {
  const Reference a = widened(actual), e = widened(expected);
  if (a.rows() != e.rows() || a.cols() != e.cols()) {
    ADD_FAILURE() << shapes_differ(a, e).message();
    return std::numeric_limits<long double>::quiet_NaN();
  }
  return worst_element(a, e).error;
}

template <class Actual, class Expected>
::testing::AssertionResult near(const Eigen::DenseBase<Actual>& actual,
                                const Eigen::DenseBase<Expected>& expected, long double tolerance) {
  const Reference a = widened(actual), e = widened(expected);
  if (a.rows() != e.rows() || a.cols() != e.cols()) return shapes_differ(a, e);
  const Worst worst = worst_element(a, e);
  if (worst.error <= tolerance) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << "worst element (" << worst.row << ", " << worst.col << ") of " << a.rows() << " x "
         << a.cols() << ": actual " << a(worst.row, worst.col) << ", expected "
         << e(worst.row, worst.col) << ", error " << worst.error << " > " << tolerance;
}

/// Bytes of a scalar that carry its value (the x87 long double has padding).
template <class Scalar>
constexpr std::size_t value_bytes() {
  return std::numeric_limits<Scalar>::digits == 64 ? 10 : sizeof(Scalar);
}

template <class Scalar>
bool same_bits_of(const Scalar& a, const Scalar& b) {
  return std::memcmp(&a, &b, value_bytes<Scalar>()) == 0;
}

template <class Actual, class Expected>
::testing::AssertionResult same_bits(const Eigen::DenseBase<Actual>& actual,
                                     const Eigen::DenseBase<Expected>& expected) {
  using Scalar = typename Actual::Scalar;
  static_assert(std::is_same_v<Scalar, typename Expected::Scalar>, "bits of two scalars differ");
  const auto a = actual.derived().eval();
  const auto e = expected.derived().eval();
  if (a.rows() != e.rows() || a.cols() != e.cols()) return shapes_differ(widened(a), widened(e));
  Eigen::Index count = 0, row = 0, col = 0;
  for (Eigen::Index i = 0; i < a.rows(); ++i) {
    for (Eigen::Index j = 0; j < a.cols(); ++j) {
      if (same_bits_of<Scalar>(a(i, j), e(i, j))) continue;
      if (count++ == 0) row = i, col = j;
    }
  }
  if (count == 0) return ::testing::AssertionSuccess();
  const long double x = widened(a)(row, col), y = widened(e)(row, col);
  return ::testing::AssertionFailure()
         << count << " of " << a.size() << " elements differ in bits, first (" << row << ", " << col
         << "): actual " << x << ", expected " << y << ", difference " << x - y;
}

}  // namespace support
