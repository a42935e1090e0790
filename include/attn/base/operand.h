// attn/base/operand.h: an operand as the engine reads and writes it: pointer, strides, and how its
// rows fall into sequences.
// SPDX-License-Identifier: MIT
#pragma once

#include "call_shape.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// An operand resolved to addresses: where row `token` of a sequence and head begins.
template <class T>
struct Operand {
  using Scalar = std::remove_const_t<T>;

  TensorView<T> view;
  Tokens
      tokens;  ///< ragged sequences start at their offset; else view.sequence_stride leads to them
  bool shared = false;  ///< one sequence stands for all

  T* row(Index sequence, Index head, Index token) const {
    if (shared) sequence = 0;
    const Index base = tokens.offsets != nullptr ? tokens.begin(sequence) * view.token_stride
                                                 : sequence * view.sequence_stride;
    return view.data + base + head * view.head_stride + token * view.token_stride;
  }
};

/// The operand with its tokens resolved to addresses. Where it has no memory, and no elements, all
/// of them are null: no address is counted from there.
template <class T>
Operand<T> place(TensorView<T> view, bool stacked, const Tokens& tokens, bool shared = false) {
  if (view.data == nullptr) view.sequence_stride = view.head_stride = view.token_stride = 0;
  if (stacked) view.sequence_stride = tokens.common_length * view.token_stride;
  return {view, tokens, shared};
}
template <class T>
TensorView<const T> read_only(const TensorView<T>& v) {
  return {v.data,        v.sequences,    v.heads,         v.tokens, v.features, v.sequence_stride,
          v.head_stride, v.token_stride, v.feature_stride};
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
