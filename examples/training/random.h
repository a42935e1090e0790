// examples/training/random.h: random numbers that are the same with every standard library: its
// engines are, its distributions are not.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <random>
#include <utility>
#include <vector>

namespace training {

using Engine = std::mt19937_64;

/// In [0, 1), a multiple of 2⁻⁵³.
inline double uniform(Engine& engine) { return double(engine() >> 11) * 0x1p-53; }
inline bool chance(Engine& engine, double p) { return uniform(engine) < p; }
/// 0 … n − 1.
inline std::size_t below(Engine& engine, std::size_t n) {
  return std::size_t(uniform(engine) * double(n));
}
template <class T>
const T& one_of(Engine& engine, const std::vector<T>& list) {
  return list[below(engine, list.size())];
}
template <class T>
void shuffle(Engine& engine, std::vector<T>& list) {
  for (std::size_t n = list.size(); n > 1; --n) std::swap(list[n - 1], list[below(engine, n)]);
}

}  // namespace training
