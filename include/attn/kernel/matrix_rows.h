// attn/kernel/matrix_rows.h: the rows of matrices that projections read, add and write.
// SPDX-License-Identifier: MIT
#pragma once

#include <type_traits>

#include "../types.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// The rows of a matrix, or those of all sequences of a strided view one after the other.
template <class T>
struct Rows {
  using Scalar = std::remove_const_t<T>;
  T* data;
  Index sequence_rows;  ///< of each sequence
  Index sequence_stride, row_stride, feature_stride;

  T* row(Index r) const {
    if (r < sequence_rows) return data + r * row_stride;
    return data + r / sequence_rows * sequence_stride + r % sequence_rows * row_stride;
  }
  /// visit(address, stride) of a row from a column on.
  template <class Visit>
  ATTN_INLINE void each(Index r, Index column, const Visit& visit) const {
    visit(row(r) + column * feature_stride, feature_stride);
  }
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
