// tests/support/random.h: seeded random matrices, the same numbers with every compiler and library.
// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <random>

namespace support {

template <class Scalar, int Order = Eigen::RowMajor>
using DynamicMatrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Order>;

/// Uniform numbers in [−1, 1), all 53 bits of a double random: where products of the inputs were
/// exact, a rounding error of the formula would not show.
class Uniform {
 public:
  explicit Uniform(std::uint32_t seed) : engine_(seed) {}
  double operator()() { return static_cast<double>(engine_() >> 11) * 0x1p-52 - 1.0; }

 private:
  std::mt19937_64 engine_;
};

/// A matrix of such numbers times `range`, filled row by row whatever its storage order.
template <class Scalar, int Order = Eigen::RowMajor>
DynamicMatrix<Scalar, Order> uniform(Eigen::Index rows, Eigen::Index cols, std::uint32_t seed,
                                     double range = 1) {
  DynamicMatrix<Scalar, Order> x(rows, cols);
  Uniform number(seed);
  for (Eigen::Index i = 0; i < rows; ++i) {
    for (Eigen::Index j = 0; j < cols; ++j) {
      x(i, j) = static_cast<Scalar>(range * number());
    }
  }
  return x;
}

/// Plain ones, where any numbers will do.
inline Eigen::MatrixXf numbers(Eigen::Index rows, Eigen::Index cols, std::uint32_t seed = 1) {
  return uniform<float, Eigen::ColMajor>(rows, cols, seed);
}

/// A matrix of bools, each true with the given probability.
inline DynamicMatrix<bool> random_bools(Eigen::Index rows, Eigen::Index cols, std::uint32_t seed,
                                        double probability = 0.5) {
  DynamicMatrix<bool> x(rows, cols);
  Uniform number(seed);
  for (Eigen::Index i = 0; i < rows; ++i) {
    for (Eigen::Index j = 0; j < cols; ++j) x(i, j) = (number() + 1) / 2 < probability;
  }
  return x;
}

}  // namespace support
