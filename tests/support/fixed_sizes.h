// tests/support/fixed_sizes.h: operands whose sizes their types tell, and the same numbers in dynamic matrices.
// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>
#include <gtest/gtest.h>

#include <cstring>

#include "random.h"

namespace support {

using Eigen::Index;

template <class Scalar>
using Dynamic = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>;

template <class A, class B>
::testing::AssertionResult same_bits(const A& a, const B& b) {
  if (a.rows() != b.rows() || a.cols() != b.cols()) return ::testing::AssertionFailure() << "sizes";
  for (Index i = 0; i < a.rows(); ++i) {
    for (Index c = 0; c < a.cols(); ++c) {
      const auto x = a(i, c);
      const auto y = b(i, c);
      if (std::memcmp(&x, &y, sizeof x) != 0 && !(x != x && y != y))
        return ::testing::AssertionFailure() << "(" << i << ", " << c << "): " << x << ", " << y;
    }
  }
  return ::testing::AssertionSuccess();
}

/// Sizes and storage orders of a call. (No column-major rows, no row-major columns.)
template <class Scalar_, int Rows, int Keys, int KeyDim, int ValueDim, int QueryOrder, int KeyOrder,
          int ValueOrder, int OutputOrder>
struct Sizes {
  using Scalar = Scalar_;
  using Q = Eigen::Matrix<Scalar, Rows, KeyDim, QueryOrder>;
  using K = Eigen::Matrix<Scalar, Keys, KeyDim, KeyOrder>;
  using V = Eigen::Matrix<Scalar, Keys, ValueDim, ValueOrder>;
  using Y = Eigen::Matrix<Scalar, Rows, ValueDim, OutputOrder>;
};
constexpr int kRow = Eigen::RowMajor, kCol = Eigen::ColMajor;

template <class Sizes_>
struct Operands {
  typename Sizes_::Q Q = uniform<typename Sizes_::Scalar>(Sizes_::Q::RowsAtCompileTime,
                                                          Sizes_::Q::ColsAtCompileTime, 1);
  typename Sizes_::K K = uniform<typename Sizes_::Scalar>(Sizes_::K::RowsAtCompileTime,
                                                          Sizes_::K::ColsAtCompileTime, 2);
  typename Sizes_::V V = uniform<typename Sizes_::Scalar>(Sizes_::V::RowsAtCompileTime,
                                                          Sizes_::V::ColsAtCompileTime, 3);
  typename Sizes_::Y Y = Sizes_::Y::Zero();
};

}  // namespace support
