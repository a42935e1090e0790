// attn/workspace.h: the scratch memory of a call: owned by a functor or the caller, grown on
// demand, never shrunk.
// SPDX-License-Identifier: MIT
#pragma once

#include <utility>

#include "base/aligned_buffer.h"
#include "base/asked.h"

namespace attn {
inline namespace ATTN_ABI {

/// Scratch memory for attention in the compute type Scalar (float for half and bfloat16 operands).
///
/// Semantics  a regular value; grows to the largest call it has served, and stays as it was where
///            memory runs out. One call at a time: threads that share a const functor bring a
///            workspace each, by the option use(workspace)
/// Cost       O((Lq · heads / kv_heads + d_k + d_v) · (d_k + d_v)) scalars, rows capped at a chunk:
///            never Lq × Lk
template <class Scalar>
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = default;
  Workspace(Workspace&&) = default;
  Workspace& operator=(const Workspace& other) {
    Workspace copied(other);  // both parts or none
    return *this = std::move(copied);
  }
  Workspace& operator=(Workspace&&) = default;

  /// Room for n scalars, aligned for packets and cache lines; allocates only where it has to grow.
  Scalar* reserve(Eigen::Index n) {
    memory_.grow(n);
    return memory_.data();
  }
  /// Room for n scalars of a layer's projected rows, apart from what reserve() gave.
  Scalar* reserve_rows(Eigen::Index n) {
    rows_.grow(n);
    return rows_.data();
  }
  /// Scalars that fit without growing.
  Eigen::Index capacity() const { return memory_.size(); }

 private:
  detail::AlignedBuffer<Scalar> memory_, rows_;
};

namespace detail {

struct UseOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: two workspaces in one call");
  }
};
template <class Scalar_>
struct Use : option_base {
  using Kind = UseOption;
  using Scalar = Scalar_;
  Workspace<Scalar>* workspace;
  explicit Use(Workspace<Scalar>& w) : workspace(&w) {}
  Scalar* reserve(Eigen::Index n) const { return workspace->reserve(n); }
  Scalar* reserve_rows(Eigen::Index n) const { return workspace->reserve_rows(n); }
};

/// The same over memory on the stack, whose sizes were counted by the compiler.
template <class Scalar_>
struct UseStack : option_base {
  using Kind = UseOption;
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
