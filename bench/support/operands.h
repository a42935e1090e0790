// bench/support/operands.h: queries, keys and values of a workload, as a runtime would feed them.
// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "machine.h"
#include "threads.h"
#include "workloads.h"

namespace bench {

template <class Scalar>
using RowMatrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// What a storage type is computed in.
template <class Stored>
using compute_t = std::conditional_t<std::is_same_v<Stored, double>, double, float>;

template <class Stored>
inline constexpr Storage storage_of = std::is_same_v<Stored, double>  ? Storage::kDouble
                                      : std::is_same_v<Stored, float> ? Storage::kFloat
                                                                      : Storage::kBfloat16;

/// Uniform in [-1, 1]. xorshift64: the decoding rows draw a hundred million numbers.
class Uniform {
 public:
  explicit Uniform(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}
  double operator()() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<double>(state_ >> 11) * 0x1p-52 - 1;
  }

 private:
  std::uint64_t state_;
};

template <class Derived>
void fill(Eigen::PlainObjectBase<Derived>& m, Uniform& uniform) {
  using Scalar = typename Derived::Scalar;
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = static_cast<Scalar>(uniform());
}

/// One set of operands, contiguous; where an element lies is told by query_strides() and the like.
template <class Stored>
struct Operands {
  explicit Operands(const Workload& w, std::uint64_t seed)
      : q(w.batch * w.query_heads * w.queries * w.head_size),
        k(w.batch * w.key_heads * w.keys * w.head_size),
        v(w.batch * w.key_heads * w.keys * w.value_size) {
    Uniform uniform(seed);
    fill(q, uniform);
    fill(k, uniform);
    fill(v, uniform);
  }

  std::size_t key_value_bytes() const {
    return static_cast<std::size_t>(k.size() + v.size()) * sizeof(Stored);
  }
  /// By `threads` threads, each a part of the keys and a part of the values.
  double seconds_to_read_keys_and_values(ReadPattern pattern, int threads) const {
    const auto seconds = [&](const auto& x) {
      return read_seconds(x.data(), static_cast<std::size_t>(x.size()) * sizeof(Stored), pattern,
                          threads);
    };
    return seconds(k) + seconds(v);
  }

  Eigen::Array<Stored, Eigen::Dynamic, 1> q, k, v;  // Eigen's, for their alignment
};

/// Sets to take in turn. One where arithmetic is the limit: its operands may stay in cache. Where
/// memory is, so many that between two uses of a set 4 x the last-level cache has been read.
template <class Stored>
class Rotation {
 public:
  explicit Rotation(const Workload& w) {
    sets_.emplace_back(w, 1);
    if (!is_bound_by_memory(w)) return;
    const std::size_t others = 4 * last_level_cache_bytes() / sets_[0].key_value_bytes() + 1;
    for (std::size_t i = 0; i < others; ++i) sets_.emplace_back(w, i + 2);
  }

  const Operands<Stored>& first() const { return sets_.front(); }
  const Operands<Stored>& next() {
    position_ = (position_ + 1) % sets_.size();
    return sets_[position_];
  }

 private:
  std::vector<Operands<Stored>> sets_;
  std::size_t position_ = 0;
};

}  // namespace bench
