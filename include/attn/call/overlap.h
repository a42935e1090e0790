// attn/call/overlap.h: whether two strided views share memory, so that an output never destroys an
// input, or another output, unnoticed.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../types.h"
#include "../base/check.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// A view of elements of any type. Strides count elements.
struct Region {
  const void* data;
  Index element;  ///< bytes
  Index sizes[4], strides[4];

  Region() = default;
  template <class T>
  explicit Region(const TensorView<T>& v)
      : data(v.data),
        element(sizeof(T)),
        sizes{v.sequences, v.heads, v.tokens, v.features},
        strides{v.sequence_stride, v.head_stride, v.token_stride, v.feature_stride} {}
};

/// A view as bytes: base address and up to five nested dimensions, adjacent ones joined, widest
/// stride first.
struct Footprint {
  struct Dimension {
    std::intptr_t size, stride;  // stride in bytes
  };
  std::intptr_t base = 0;
  Dimension dimensions[5] = {};
  int rank = 0;
  bool empty = false, repeats = false;  ///< `repeats`: a stride of 0 over several elements

  explicit Footprint(const Region& r) : base(reinterpret_cast<std::intptr_t>(r.data)) {
    for (int i = 0; i < 4; ++i) add(r.sizes[i], r.strides[i] * r.element);
    add(r.element, 1);
    join();
  }

  /// A dimension reaches into the next wider one, or repeats its elements.
  bool folds() const {
    std::intptr_t reach = 0;
    for (int i = rank; i-- > 0;) {
      if (dimensions[i].stride <= reach) return true;
      reach += (dimensions[i].size - 1) * dimensions[i].stride;
    }
    return repeats;
  }

 private:
  void add(std::intptr_t size, std::intptr_t stride) {
    if (size <= 0) empty = true;
    if (size <= 1) return;
    if (stride == 0) {
      repeats = true;
      return;
    }
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

/// The dimensions of two footprints over one list of strides; where only one has a stride, the
/// other has size 1 there.
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

  /// Whether delta = Σ n_i·stride_i for some −size_b < n_i < size_a: exact while no dimension
  /// reaches into the next wider one.
  ATTN_NOINLINE bool meet(int level, std::intptr_t delta) const {
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

  Reach() = default;
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

/// Whether two views share a byte. Exact while their strides nest (column blocks of one matrix,
/// say); for others, whether the intervals of addresses that they span meet.
inline bool may_overlap(const Region& x, const Region& y) {
  const Footprint a(x), b(y);
  return !a.empty && !b.empty && CommonStrides(a, b).meet(0, b.base - a.base);
}
template <class T, class U>
bool may_overlap(const TensorView<T>& x, const TensorView<U>& y) {
  // The first is mostly enough, and cheap.
  return Reach(x).meets(Reach(y)) && may_overlap(Region(x), Region(y));
}

/// Whether elements of a view share memory among themselves. Exact while its strides nest; where
/// they interleave, yes.
/// WHY  three orders first: the usual layouts nest in one of them, and need no sorted footprint
ATTN_NOINLINE inline bool may_fold(const Region& v) {
  constexpr int kOrders[][4] = {{3, 1, 2, 0}, {2, 3, 1, 0}, {3, 2, 1, 0}};  // innermost first
  for (const auto& order : kOrders) {
    Index reach = 0;
    bool nested = true;
    for (const int i : order) {
      if (v.sizes[i] <= 0) return false;
      if (v.sizes[i] == 1) continue;
      nested = nested && v.strides[i] > reach;
      if (!nested) break;
      reach += (v.sizes[i] - 1) * v.strides[i];
    }
    if (nested) return false;
  }
  const Footprint footprint(v);
  return !footprint.empty && footprint.folds();
}

/// Whether two views are elements of one size in the same order: then reading an element before
/// writing it is safe.
inline bool is_same_region(const Region& x, const Region& y) {
  bool same = x.data == y.data && x.element == y.element;
  for (int i = 0; i < 4; ++i) {
    same = same && x.sizes[i] == y.sizes[i] && (x.sizes[i] <= 1 || x.strides[i] == y.strides[i]);
  }
  return same;
}
/// The same of one type as well.
template <class T, class U>
bool is_same_view(const TensorView<T>& x, const TensorView<U>& y) {
  return std::is_same_v<std::remove_const_t<T>, std::remove_const_t<U>> &&
         is_same_region(Region(x), Region(y));
}

/// The outputs of one call. Each is refused where its own elements share memory, where it shares
/// memory with one before it or with what the call reads, or is the matrix that another is (which
/// tells two outputs in one matrix that has no memory yet).
class Outputs {
 public:
  static constexpr int kApart = -1;  ///< no output may be in this input's place
  static constexpr int kMost =
      16;  ///< of one call: gradients of a layer's weights, inputs, modifiers

  explicit Outputs(const char* function) : function_(function) {}

  /// `memory`: an OutputMemory (output_memory.h).
  template <class Memory>
  ATTN_INLINE void add(const char* name, const Memory& memory) {
    const Written added{name, memory.object, memory.stays, Reach(memory.view), Region(memory.view)};
    if (memory.view.data == nullptr) check_memory(name, added.region);
    if (may_fold(added.region)) {
      fail(text(function_, ": ", name,
                " has strides by which elements may share memory; write to one whose strides keep "
                "them apart"));
    }
    for (int n = 0; n < count_; ++n) {
      const bool one_object = added.object != nullptr && added.object == written_[n].object;
      if (one_object || added.reach.meets(written_[n].reach))
        check_meeting(added, written_[n].name, written_[n].region, one_object, false);
    }
    eigen_assert(count_ < kMost);
    written_[count_++] = added;
  }
  /// Refuses what the call reads where an output is. Output number `in_place` may be the same
  /// elements in the same order: the caller reads each of them before writing it.
  template <class T>
  ATTN_INLINE void keep_from(const char* name, const TensorView<T>& input,
                             int in_place = kApart) const {
    if (input.data == nullptr) check_memory(name, Region(input));
    // The one test that most calls need stays with the caller.
    const Reach reach(input);
    for (int n = 0; n < count_; ++n) {
      if (written_[n].reach.meets(reach))
        check_meeting(written_[n], name, Region(input), false, n == in_place);
    }
  }

 private:
  struct Written {
    const char* name;
    const void* object;
    bool stays;
    Reach reach;
    Region region;
  };

  /// Refuses elements where there is no memory.
  ATTN_NOINLINE void check_memory(const char* name, const Region& region) const {
    for (const Index size : region.sizes) {
      if (size <= 0) return;
    }
    fail(text(function_, ": ", name, " has elements, and a null pointer to them"));
  }
  ATTN_NOINLINE void check_meeting(const Written& output, const char* name, const Region& other,
                                   bool one_object, bool in_place) const {
    if (in_place && output.stays && is_same_region(output.region, other)) return;
    if (one_object || may_overlap(output.region, other)) {
      fail(text(function_, ": ", output.name, " overlaps ", name,
                in_place ? " without being the same matrix" : "", "; write to memory of its own"));
    }
  }

  const char* function_;
  int count_ = 0;
  Written written_[kMost];
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
