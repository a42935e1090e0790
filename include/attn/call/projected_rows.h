// attn/call/projected_rows.h: views as the rows that a projection reads, adds or writes.
// SPDX-License-Identifier: MIT
#pragma once

#include "../base/asked.h"
#include "../kernel/projection_jobs.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// The rows of an operand in order, those of all its sequences.
template <class T>
kernel::Rows<T> rows_of(const TensorView<T>& view) {
  return {view.data, std::max<Index>(view.tokens, 1), view.sequence_stride, view.token_stride,
          view.feature_stride};
}
inline kernel::NoRows rows_of(Absent) { return {}; }

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
