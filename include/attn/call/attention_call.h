// attn/call/attention_call.h: a call of attention as a user writes it: operands lifted, their shape
// found, the result returned or written. Plumbing of attention.h.
// SPDX-License-Identifier: MIT
#pragma once

#include "../option_list.h"
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

/// The operands of a call as they are given, its batch and options understood as far as its shape
/// goes. It holds what would vanish.
template <class Query, class Given, class Asked>
struct GivenCall {
  decltype(lift(std::declval<Query>())) held;
  using Held = decltype(held);
  using T = std::remove_pointer_t<decltype(read_only(held.view("", "")).data)>;
  TensorView<T> view;
  decltype(std::declval<const Given&>().open("", std::declval<const Asked&>())) source;
  CallShape shape;

  GivenCall(const char* function, Query&& Q, const Given& given, const Asked& asked)
      : held(lift(std::forward<Query>(Q))),
        view(read_only(held.view(function, "query"))),
        source(given.open(function, asked)),
        shape(shape_of(function, asked)) {}
  GivenCall(const GivenCall&) = delete;
  Operand<T> query() const { return place(view, Held::kStacked, shape.queries); }

 private:
  CallShape shape_of(const char* function, const Asked& asked) {
    view = source.query(view, Held::kStacked);
    return source.shape(function, OperandShape{view.extent(), Held::kStacked},
                        batch_of(function, asked), asked);
  }
};

/// residual() without a matrix is no option of attention.
template <class... Options>
constexpr void check_residual() {
  static_assert(!(std::is_same_v<bare_t<Options>, ResidualOfQuery> || ...),
                "attn: residual() without a matrix is the layer's, which adds its query input: "
                "write residual(X)");
}

/// Where a call writes to: into(Y), or save_partial(p).
template <class Asked>
const auto& output_of(const Asked& asked) {
  if constexpr (Asked::template has<PartialOption>()) {
    return asked.template get<PartialOption>();
  } else {
    return asked.template get<IntoOption>();
  }
}

/// attend() on operands as they are given; the options hold the output.
template <class Scalar, class Query, class Given, class Asked>
void attend_given(const char* function, Workspace<Scalar>* own, Query&& Q, const Given& given,
                  const Asked& asked) {
  using q = operand_traits<bare_t<Query>>;
  const GivenCall<Query, Given, Asked> call(function, std::forward<Query>(Q), given, asked);
  const auto residual = bind<ResidualOption, Scalar>(call.shape, asked);
  attend<FixedSizes<q::rows, q::cols, Given::kKeys, Given::kValueDim>>(
      own, call.shape, call.query(), call.source, asked, output_of(asked), residual);
}

/// With into(Y) or save_partial(p): writes there and returns nothing; else returns the matrix.
template <class Scalar, class Query, class Given, class... Options>
auto attend_opened(const char* function, Workspace<Scalar>* own, Query&& Q, const Given& given,
                   Options&... options) {
  check_options<Options...>();
  check_residual<Options...>();
  check_partial<Scalar, Options...>();
  if constexpr (given_v<IntoOption, Options...> || given_v<PartialOption, Options...>) {
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
/// The door. `given`: where keys and values come from, GivenMatrices or GivenCache.
template <class Scalar, class Query, class Given, class... Options>
auto attend_or_return(const char* function, Workspace<Scalar>* own, Query&& Q, const Given& given,
                      Options&&... options) {
  Given::template check_types<Query>();
  return with_opened(
      [&](auto&... opened) {
        return attend_opened<Scalar>(function, own, std::forward<Query>(Q), given, opened...);
      },
      options...);
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
