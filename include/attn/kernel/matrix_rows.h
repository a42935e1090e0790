// attn/kernel/matrix_rows.h: the rows of matrices that projections read, add and write.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <type_traits>

#include "../types.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// The rows of a strided view in order, those of all its sequences one after the other.
template <class T>
class Rows {
 public:
  using Scalar = std::remove_const_t<T>;
  Rows() = default;
  explicit Rows(const TensorView<T>& view) : view_(view) {
    view_.tokens = std::max<Index>(view_.tokens, 1);  // row(0) is an address where there are none
  }
  /// Of a matrix in the library's own memory, whole rows one after the other.
  Rows(T* data, Index count, Index stride)
      : Rows(TensorView<T>{data, 1, 1, count, stride, 0, 0, stride, 1}) {}

  Index row_stride() const { return view_.token_stride; }
  Index feature_stride() const { return view_.feature_stride; }
  T* row(Index r) const {
    if (r < view_.tokens) return view_.data + r * view_.token_stride;
    return view_.at(r / view_.tokens, 0, r % view_.tokens);
  }
  /// Rows [begin, end) are of one sequence: row_stride() apart.
  bool together(Index begin, Index end) const {
    return end <= view_.tokens || begin / view_.tokens == (end - 1) / view_.tokens;
  }
  /// visit(address, stride) of a row from a column on.
  template <class Visit>
  ATTN_INLINE void each(Index r, Index column, const Visit& visit) const {
    visit(row(r) + column * view_.feature_stride, view_.feature_stride);
  }

 private:
  TensorView<T> view_;
};

// What is added to the rows of a product, one after the other: each() visits all of it.
struct NoRows {
  template <class Visit>
  ATTN_INLINE void each(Index, Index, const Visit&) const {}
};
template <class First, class Second>
struct RowsInTurn {
  First first;
  Second second;

  template <class Visit>
  ATTN_INLINE void each(Index r, Index column, const Visit& visit) const {
    first.each(r, column, visit);
    second.each(r, column, visit);
  }
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
