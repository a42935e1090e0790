// attn/call/attention_call.h: a call of attention as a user writes it: operands lifted, their shape
// found, the result returned or written. Plumbing of attention.h.
// SPDX-License-Identifier: MIT
#pragma once

#include "attend.h"
#include "matrix_source.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// The result's type: the query's scalar and storage order, fixed sizes where they are known.
template <class Query, class Given>
struct result {
  using q = operand_traits<Query>;
  static constexpr int rows = q::rows;
  static constexpr int cols = q::has_heads ? Eigen::Dynamic : Given::kResultCols;
  // Eigen has no row-major columns and no column-major rows.
  static constexpr int order = rows == 1 && cols != 1   ? Eigen::RowMajor
                               : cols == 1 && rows != 1 ? Eigen::ColMajor
                                                        : q::order;
  using type = Eigen::Matrix<typename q::Scalar, rows, cols, order>;
};

/// attend() on operands as they are given; the options hold the output.
template <class Scalar, class Query, class Given, class Asked>
void attend_given(const char* function, Workspace<Scalar>* own, Query&& Q, const Given& given,
                  const Asked& asked) {
  using q = operand_traits<bare_t<Query>>;
  const auto held = lift(std::forward<Query>(Q));
  const auto given_query = read_only(held.view(function, "query"));
  auto source = given.open(function, asked);
  const auto query = source.query(given_query, held.kStacked);
  const CallShape shape = source.shape(function, OperandShape{query.extent(), held.kStacked},
                                       batch_of(function, asked), asked);
  const auto residual = bind<ResidualOption, Scalar>(shape, asked);
  attend<FixedSizes<q::rows, q::cols, Given::kKeys, Given::kValueDim>>(
      own, shape, place(query, held.kStacked, shape.queries), source, asked,
      asked.template get<IntoOption>(), residual);
}

/// With into(Y): writes there and returns nothing; else returns the matrix.
/// `given`: where keys and values come from, GivenMatrices or GivenCache.
template <class Scalar, class Query, class Given, class... Options>
auto attend_or_return(const char* function, Workspace<Scalar>* own, Query&& Q, const Given& given,
                      Options&&... options) {
  check_options<Options...>();
  static_assert(!(std::is_same_v<bare_t<Options>, ResidualOfQuery> || ...),
                "attn: residual() without a matrix is the layer's, which adds its query input: "
                "write residual(X)");
  Given::template check_types<Query>();
  if constexpr (given_v<IntoOption, Options...>) {
    attend_given(function, own, std::forward<Query>(Q), given, Asked(options...));
  } else {
    static_assert(!is_tensor_view_v<Query>,
                  "attn: a strided view has no matrix of its own shape to return: write "
                  "into(bhld(...)) or into(Y)");
    typename result<bare_t<Query>, Given>::type Y;
    auto target = into(Y);
    attend_given(function, own, std::forward<Query>(Q), given, Asked(options..., target));
    return Y;
  }
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
