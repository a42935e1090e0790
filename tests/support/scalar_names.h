// tests/support/scalar_names.h: typed tests are listed by their scalar: TYPED_TEST_SUITE(Suite, Types, ScalarNames).
// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <string>
#include <type_traits>

namespace support {

struct ScalarNames {
  template <class Scalar>
  static std::string GetName(int) {
    if (std::is_same_v<Scalar, float>) return "float";
    if (std::is_same_v<Scalar, double>) return "double";
    if (std::is_same_v<Scalar, long double>) return "long_double";
    if (std::is_same_v<Scalar, Eigen::half>) return "half";
    if (std::is_same_v<Scalar, Eigen::bfloat16>) return "bfloat16";
    if (std::is_same_v<Scalar, std::int8_t>) return "int8";
    return "scalar";
  }
};

}  // namespace support
