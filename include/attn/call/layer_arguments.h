// attn/call/layer_arguments.h: what the types of a layer's arguments say: how many are operands,
// and the matrix it returns.
// SPDX-License-Identifier: MIT
#pragma once

#include "lift.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// How many of the arguments are operands before the first option.
template <class... Arguments>
constexpr int leading_operands() {
  int count = 0;
  bool leading = true;
  ((leading = leading && is_operand_v<Arguments>, count += leading ? 1 : 0), ...);
  return count;
}

/// Rows of an operand at most, where its type tells.
template <class T>
constexpr int max_rows() {
  if constexpr (is_dense_v<T>) {
    return bare_t<T>::MaxRowsAtCompileTime;
  } else {
    return Eigen::Dynamic;
  }
}

/// The matrix that a layer returns: the query's scalar and order, rows bounded where the query's
/// are.
template <class Query, int Features>
struct layer_result {
  using q = operand_traits<bare_t<Query>>;
  static constexpr int order = q::rows == 1 && Features != 1   ? Eigen::RowMajor
                               : Features == 1 && q::rows != 1 ? Eigen::ColMajor
                                                               : q::order;
  using type =
      Eigen::Matrix<typename q::Scalar, q::rows, Features, order, max_rows<Query>(), Features>;
};

}  // namespace detail

}  // namespace ATTN_ABI
}  // namespace attn
