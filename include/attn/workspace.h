// attn/workspace.h: the scratch memory of a call: owned by a functor or the caller, grown on demand, never shrunk.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "detail/traits.h"

namespace attn {
inline namespace ATTN_ABI {

/// Scratch memory for attention in the compute type Scalar (float for half and bfloat16 operands).
///
/// Semantics  a regular value; grows to the largest call it has served. One call at a time: threads that share a const functor
///            bring a workspace each, by the option use(workspace)
/// Cost       O((Lq · heads / kv_heads + d_k + d_v) · (d_k + d_v)) scalars, rows capped at a chunk: never Lq × Lk
template <class Scalar>
class Workspace {
 public:
  /// Room for n scalars, aligned for packets and cache lines; allocates only where it has to grow.
  Scalar* reserve(Eigen::Index n) {
    if (memory_.size() < n + kSlack) memory_.resize(n + kSlack);
    return aligned(memory_.data());
  }
  /// Room for n scalars of a layer's projected rows, apart from what reserve() gave.
  Scalar* reserve_rows(Eigen::Index n) {
    if (rows_.size() < n + kSlack) rows_.resize(n + kSlack);
    return aligned(rows_.data());
  }
  /// Scalars that fit without growing.
  Eigen::Index capacity() const { return memory_.size() < kSlack ? 0 : memory_.size() - kSlack; }

  /// The first scalar at or after `memory` on a cache line, where Scalar's size divides one.
  static Scalar* aligned(Scalar* memory) {
    if constexpr (64 % sizeof(Scalar) == 0) {
      const auto past = reinterpret_cast<std::uintptr_t>(memory) % 64;
      return past == 0 ? memory : memory + (64 - past) / sizeof(Scalar);
    } else {
      return memory;
    }
  }

 private:
  static constexpr Eigen::Index kSlack =
      64 % sizeof(Scalar) == 0 ? Eigen::Index(64 / sizeof(Scalar)) : 0;
  Eigen::Array<Scalar, Eigen::Dynamic, 1> memory_, rows_;
};

namespace detail {

template <class Scalar_>
struct Use : option_base {
  using Scalar = Scalar_;
  Workspace<Scalar>* workspace;
  explicit Use(Workspace<Scalar>& w) : workspace(&w) {}
  Scalar* reserve(Eigen::Index n) const { return workspace->reserve(n); }
  Scalar* reserve_rows(Eigen::Index n) const { return workspace->reserve_rows(n); }
};

/// The same over memory on the stack, whose sizes were counted by the compiler.
template <class Scalar_>
struct UseStack : option_base {
  using Scalar = Scalar_;
  Scalar *memory, *rows;
  UseStack(Scalar* m, Scalar* r) : memory(m), rows(r) {}
  Scalar* reserve(Eigen::Index) const { return memory; }
  Scalar* reserve_rows(Eigen::Index) const { return rows; }
};

}  // namespace detail

/// Lends a workspace to the call, so that const functors can be shared by threads.
template <class Scalar>
detail::Use<Scalar> use(Workspace<Scalar>& workspace) {
  return detail::Use<Scalar>(workspace);
}

}  // namespace ATTN_ABI
}  // namespace attn
