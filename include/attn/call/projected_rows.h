// attn/call/projected_rows.h: views as the rows that a projection reads, adds or writes.
// SPDX-License-Identifier: MIT
#pragma once

#include "../base/asked.h"
#include "../kernel/projection_jobs.h"
#include "../residual.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// The rows of an operand in order, those of all its sequences.
template <class T>
kernel::Rows<T> rows_of(const TensorView<T>& view) {
  return kernel::Rows<T>(view);
}
inline kernel::NoRows rows_of(Absent) { return {}; }

/// What a layer adds to its output: a view, or Absent. `name`: the input, which residual() without
/// a matrix adds.
template <class Scalar, class Input, class Asked>
auto residual_of(const CallShape& output, const char* name, const TensorView<Input>& input,
                 const Asked& asked) {
  using Option = bare_t<decltype(asked.template get<ResidualOption>())>;
  if constexpr (!is_there_v<Option>) {
    return Absent{};
  } else if constexpr (std::is_same_v<Option, ResidualOfQuery>) {
    if (input.features != output.value_dim) {
      fail(text(output.function, ": residual() adds ", name, ", ", input.features,
                " features, to the output, ", output.value_dim,
                "; widths must agree, or name another: residual(X)"));
    }
    return input;
  } else {
    static_assert(std::is_same_v<compute_t<typename Option::Scalar>, Scalar>,
                  "attn::residual: the residual must compute in the layer's scalar: cast it");
    return bind<ResidualOption, Scalar>(output, asked).view;
  }
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
