// attn/kernel/state_rows.h: what a forward pass leaves of each row for a backward one.
// SPDX-License-Identifier: MIT
#pragma once

#include "../types.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// m and l of each row's softmax (l = 0: it saw no key), and o / l before residual and rounding.
/// Number (token, head) at token·heads + head, a row of the output at (token·heads +
/// head)·value_dim; token: QueryRow::token. T is const where they are read.
template <class T>
struct StateRows {
  T *maximum = nullptr, *sum = nullptr, *output = nullptr;
  Index heads = 0, value_dim = 0;

  Index number(const QueryRow& row) const { return row.token * heads + row.head; }
  T* output_of(const QueryRow& row) const { return output + number(row) * value_dim; }
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
