// tests/support/reference_rotary.h: the oracle of rotary positions: plain loops in long double.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <functional>
#include <vector>

#include "reference_attention.h"

namespace support {

struct ReferenceRotary {
  bool interleaved = false;
  long double base = 10000;
  Index dims = 0;  ///< 0: the whole head
};

/// x [rows, heads·d], row r at position[r]: pair i turned by position · base^(−2i/dims).
inline Reference reference_rotary(Reference x, Index heads, const std::vector<Index>& position,
                                  const ReferenceRotary& rotary = {}) {
  const Index features = x.cols() / heads;
  const Index dims = rotary.dims == 0 ? features : rotary.dims;
  for (Index r = 0; r < x.rows(); ++r) {
    for (Index h = 0; h < heads; ++h) {
      for (Index i = 0; i < dims / 2; ++i) {
        const long double angle = static_cast<long double>(position[static_cast<std::size_t>(r)]) *
                                  std::pow(rotary.base, -2.0L * static_cast<long double>(i) /
                                                            static_cast<long double>(dims));
        const Index first = h * features + (rotary.interleaved ? 2 * i : i);
        const Index second = rotary.interleaved ? first + 1 : first + dims / 2;
        const long double a = x(r, first), b = x(r, second);
        x(r, first) = a * std::cos(angle) - b * std::sin(angle);
        x(r, second) = a * std::sin(angle) + b * std::cos(angle);
      }
    }
  }
  return x;
}

/// 0, 1, … n − 1, from `first` on.
inline std::vector<Index> counted(Index n, Index first = 0) {
  std::vector<Index> positions;
  for (Index i = 0; i < n; ++i) positions.push_back(first + i);
  return positions;
}

}  // namespace support
