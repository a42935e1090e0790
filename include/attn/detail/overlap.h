// attn/detail/overlap.h: whether two strided views share memory, so that an output never destroys an input unnoticed.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../types.h"
#include "check.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// A view as bytes: base address and up to five nested dimensions, adjacent ones joined, widest stride first.
struct Footprint {
  struct Dimension {
    std::intptr_t size, stride;  // stride in bytes
  };
  std::intptr_t base = 0;
  Dimension dimensions[5] = {};
  int rank = 0;
  bool empty = false;

  template <class T>
  explicit Footprint(const TensorView<T>& v) : base(reinterpret_cast<std::intptr_t>(v.data)) {
    constexpr std::intptr_t bytes = sizeof(T);
    add(v.sequences, v.sequence_stride * bytes);
    add(v.heads, v.head_stride * bytes);
    add(v.tokens, v.token_stride * bytes);
    add(v.features, v.feature_stride * bytes);
    add(bytes, 1);
    join();
  }

 private:
  void add(std::intptr_t size, std::intptr_t stride) {
    if (size <= 0) empty = true;
    if (size <= 1 || stride == 0) return;
    if (stride < 0) {  // mirrored: the same bytes, counted from the other end
      base += (size - 1) * stride;
      stride = -stride;
    }
    int at = rank++;
    for (; at > 0 && dimensions[at - 1].stride < stride; --at) dimensions[at] = dimensions[at - 1];
    dimensions[at] = {size, stride};
  }
  void join() {
    for (int i = rank - 1; i > 0; --i) {
      if (dimensions[i - 1].stride != dimensions[i].stride * dimensions[i].size) continue;
      dimensions[i - 1] = {dimensions[i - 1].size * dimensions[i].size, dimensions[i].stride};
      for (int k = i; k + 1 < rank; ++k) dimensions[k] = dimensions[k + 1];
      --rank;
    }
  }
};

/// The dimensions of two footprints over one list of strides; where only one has a stride, the other has size 1 there.
struct CommonStrides {
  std::intptr_t stride[10], size_a[10], size_b[10];
  int rank = 0;

  CommonStrides(const Footprint& a, const Footprint& b) {
    for (int i = 0, k = 0; i < a.rank || k < b.rank; ++rank) {
      const std::intptr_t of_a = i < a.rank ? a.dimensions[i].stride : 0,
                          of_b = k < b.rank ? b.dimensions[k].stride : 0;
      stride[rank] = of_a > of_b ? of_a : of_b;
      size_a[rank] = of_a == stride[rank] ? a.dimensions[i++].size : 1;
      size_b[rank] = of_b == stride[rank] ? b.dimensions[k++].size : 1;
    }
  }

  /// Whether delta = Σ n_i·stride_i for some −size_b < n_i < size_a: exact while no dimension reaches into the next wider one.
  bool meet(int level, std::intptr_t delta) const {
    if (level == rank) return delta == 0;
    std::intptr_t below = 0;  // how far the narrower dimensions reach
    for (int i = level + 1; i < rank; ++i)
      below += ((size_a[i] > size_b[i] ? size_a[i] : size_b[i]) - 1) * stride[i];
    if (below >= stride[level]) return true;  // they interleave: no way to tell, so say yes
    const std::intptr_t nearest =
        delta >= 0 ? delta / stride[level] : -((-delta + stride[level] - 1) / stride[level]);
    for (std::intptr_t n = nearest; n <= nearest + 1; ++n) {
      if (-size_b[level] < n && n < size_a[level] && meet(level + 1, delta - n * stride[level]))
        return true;
    }
    return false;
  }
};

/// The bytes from the lowest to past the highest address of a view; empty where the view is.
struct Reach {
  std::intptr_t begin, end;

  template <class T>
  ATTN_INLINE explicit Reach(const TensorView<T>& v) {
    begin = end = reinterpret_cast<std::intptr_t>(v.data);
    if (v.sequences <= 0 || v.heads <= 0 || v.tokens <= 0 || v.features <= 0) return;
    end += std::intptr_t(sizeof(T));
    add(v.sequences, v.sequence_stride * Index(sizeof(T)));
    add(v.heads, v.head_stride * Index(sizeof(T)));
    add(v.tokens, v.token_stride * Index(sizeof(T)));
    add(v.features, v.feature_stride * Index(sizeof(T)));
  }

  bool meets(const Reach& other) const { return begin < other.end && other.begin < end; }

 private:
  ATTN_INLINE void add(Index size, Index bytes) {
    // Branches: clang makes vectors of the four sums, which then wait for the strides just written.
    if (size > 1) (bytes < 0 ? begin : end) += (size - 1) * bytes;
  }
};

/// Whether two views share a byte. Exact while their strides nest (column blocks of one matrix, say); for others, whether the
/// intervals of addresses that they span meet.
template <class T, class U>
bool may_overlap(const TensorView<T>& x, const TensorView<U>& y) {
  if (!Reach(x).meets(Reach(y))) return false;  // mostly enough, and cheap
  const Footprint a(x), b(y);
  return !a.empty && !b.empty && CommonStrides(a, b).meet(0, b.base - a.base);
}

/// Whether two views are the same elements in the same order: then reading an element before writing it is safe.
template <class T, class U>
bool is_same_view(const TensorView<T>& x, const TensorView<U>& y) {
  if constexpr (!std::is_same_v<std::remove_const_t<T>, std::remove_const_t<U>>) {
    return false;
  } else {
    const auto same = [](Index size, Index a, Index b) { return size <= 1 || a == b; };
    return x.data == y.data && x.sequences == y.sequences && x.heads == y.heads &&
           x.tokens == y.tokens && x.features == y.features &&
           same(x.sequences, x.sequence_stride, y.sequence_stride) &&
           same(x.heads, x.head_stride, y.head_stride) &&
           same(x.tokens, x.token_stride, y.token_stride) &&
           same(x.features, x.feature_stride, y.feature_stride);
  }
}

/// check_alias() of two views whose addresses lie among each other.
template <class Output, class Input>
ATTN_NOINLINE void check_meeting(const char* function, const char* output_name,
                                 const Output& output, const char* name,
                                 const TensorView<Input>& input, bool in_place) {
  if (in_place && output.stays && is_same_view(output.view, input)) return;
  if (may_overlap(output.view, input)) {
    fail(text(function, ": ", output_name, " overlaps ", name,
              in_place ? " without being the same matrix" : "", "; write to memory of its own"));
  }
}

/// Refuses an output that shares memory with an input, unless both are the same elements in the same order and the caller reads
/// each of them before writing it (`in_place`).
template <class Output, class Input>
ATTN_INLINE void check_alias(const char* function, const char* output_name, const Output& output,
                             const char* name, const TensorView<Input>& input, bool in_place) {
  // The one test that most calls need stays with the caller, who asks it of one output and several inputs.
  if (Reach(output.view).meets(Reach(input)))
    check_meeting(function, output_name, output, name, input, in_place);
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
