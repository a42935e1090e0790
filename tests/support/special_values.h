// tests/support/special_values.h: numbers that are none, and numbers by their bits.
// SPDX-License-Identifier: MIT
#pragma once

#include <cfloat>
#include <cstdint>
#include <cstring>
#include <limits>

namespace support {

// Not constexpr: Eigen's half is not.
template <class Scalar>
const Scalar kInfinity = std::numeric_limits<Scalar>::infinity();
template <class Scalar>
const Scalar kNaN = std::numeric_limits<Scalar>::quiet_NaN();

/// Whether each operation rounds to its type. x87 keeps more digits until it stores a number: the promise of bits leaves it out.
inline constexpr bool kRoundsEachStep = FLT_EVAL_METHOD != 2;

inline float from_bits(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

}  // namespace support
