// attn/output.h: where results go: into(Y), save_logsumexp(l).
// SPDX-License-Identifier: MIT
//
// Outputs are taken by forwarding reference and refused at compile time if writing to them would be lost: const matrices,
// temporaries, expressions, views of const memory. A plain dynamic matrix is resized, after all checks have passed.
#pragma once

#include "detail/output.h"

namespace attn {
inline namespace ATTN_ABI {

/// The output: Y [Lq, H·d_v], resized if it is a plain dynamic matrix; or heads(Y, H); or a strided view.
/// Refused at compile time: const, temporary or not directly writable outputs.
template <class Output>
auto into(Output&& Y) {
  detail::check_output_type<Output>();
  if constexpr (detail::is_dense_v<Output>) {
    auto target = detail::matrix_output(std::forward<Output>(Y));
    return detail::Into<decltype(target)>(target);
  } else {
    auto target = detail::lift(std::forward<Output>(Y));
    return detail::Into<decltype(target)>(std::move(target));
  }
}

/// Saves the natural logarithm of Σ_j exp(s_j) of every row: l [Lq, H]; −∞ for a row that sees no key.
/// Two partial results over disjoint keys combine by it: see merge() in softmax.h.
template <class Output>
auto save_logsumexp(Output&& l) {
  static_assert(detail::is_dense_v<Output>,
                "attn::save_logsumexp: expected a matrix to write to, query rows x heads");
  auto target = detail::matrix_output(std::forward<Output>(l));
  return detail::SaveLogSumExp<decltype(target)>(target);
}

}  // namespace ATTN_ABI
}  // namespace attn
