// attn/call/added_to_gradient.h: what a layer's backward pass adds to the gradient of an input,
// beside what comes through its weights.
// SPDX-License-Identifier: MIT
#pragma once

#include "gradient_outputs.h"
#include "projected_rows.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// What a backward pass adds to the gradient of an input, in turn: the output's gradient under
/// residual(), and what stands there under accumulate(). `output_gradient`: a view, or Absent of an
/// input that residual() does not add.
template <class Asked, class OutputGradient, class To>
auto added_to_gradient(const Asked& asked, const OutputGradient& output_gradient, const To& to) {
  using Option = bare_t<decltype(asked.template get<ResidualOption>())>;
  const auto first = [&] {
    if constexpr (std::is_same_v<Option, ResidualOfQuery>) {
      return rows_of(output_gradient);
    } else {
      return kernel::NoRows{};
    }
  }();
  const auto second = [&] {
    if constexpr (Asked::template has<Accumulate::Kind>()) {
      return to;
    } else {
      return kernel::NoRows{};
    }
  }();
  return kernel::RowsInTurn<bare_t<decltype(first)>, bare_t<decltype(second)>>{first, second};
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
