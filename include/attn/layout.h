// attn/layout.h: how memory becomes (sequence, head, token, feature): heads in columns, batches in
// rows, strided views.
// SPDX-License-Identifier: MIT
//
//   one sequence                 a matrix L × d; a row is a token
//   heads side by side           heads(X, n): X is L × (n·d), head h is columns [h·d, (h+1)·d)
//   a batch, equal lengths       sequence_length(L): the sequences' rows stacked, L each
//   a ragged batch               sequences({0, 5, 12}): 5 and 7 rows
//   other frameworks' memory     bhld(p, B, H, L, d)  [B, H, L, d]    PyTorch, ONNX (4-D)
//                                blhd(p, B, L, H, d)  [B, L, H, d]    flash-attention; [B, L, H·d] too
//                                lbhd(p, L, B, H, d)  [L, B, H, d]    time-major; [L, B, H·d] too
//                                each also from an Eigen::Tensor or TensorMap of rank 4, in either
//                                storage order
// Nothing is copied: all of these are pointers and strides.
#pragma once

#include "base/heads.h"
#include "types.h"

namespace attn {
inline namespace ATTN_ABI {

/// Reads X, L × (n·d), as n heads side by side in columns. For queries, keys, values, outputs, bool
/// masks and biases.
///
/// Shapes     X [L, n·d]  →  n heads [L, d]; for masks and biases [Lq, n·Lk]  →  n heads [Lq, Lk]
/// Requires   n ≥ 1 and X.cols() a multiple of n            (std::invalid_argument from the call that uses it, otherwise)
/// Semantics  lvalues and views are referred to, expressions and temporaries evaluated and owned
/// Cost       none: nothing is copied
template <class Matrix>
auto heads(Matrix&& X, Index n) {
  static_assert(detail::is_dense_v<Matrix>, "attn::heads: expected a dense Eigen matrix");
  using Bare = detail::bare_t<Matrix>;
  return detail::Heads < detail::held_t<Matrix>, Bare::RowsAtCompileTime,
         Bare::IsRowMajor ? Eigen::RowMajor
                          : Eigen::ColMajor > {detail::hold(std::forward<Matrix>(X)), n};
}

/// Memory [B, H, L, d], contiguous: batch, heads, tokens, features.
///
/// Requires   sizes ≥ 0                                      (std::invalid_argument from the call that uses it, otherwise)
template <class T>
TensorView<T> bhld(T* data, Index sequences, Index heads, Index tokens, Index features) {
  const detail::Count head = detail::Count(tokens) * features, sequence = head * heads;
  return {data, sequences, heads, tokens, features, sequence.value(), head.value(), features, 1};
}
/// Memory [B, L, H, d], contiguous (or [B, L, H·d], the same bytes).
template <class T>
TensorView<T> blhd(T* data, Index sequences, Index tokens, Index heads, Index features) {
  const detail::Count token = detail::Count(heads) * features, sequence = token * tokens;
  return {data, sequences, heads, tokens, features, sequence.value(), features, token.value(), 1};
}
/// Memory [L, B, H, d], contiguous, time-major (or [L, B, H·d]).
template <class T>
TensorView<T> lbhd(T* data, Index tokens, Index sequences, Index heads, Index features) {
  const detail::Count sequence = detail::Count(heads) * features, token = sequence * sequences;
  return {data, sequences, heads, tokens, features, sequence.value(), features, token.value(), 1};
}

/// A tensor of dimensions (B, H, L, d), in its own storage order. The tensor must outlive the call.
template <class Tensor, class = decltype(detail::bare_t<Tensor>::NumIndices)>
auto bhld(Tensor&& tensor) {
  Index n[4], s[4];
  auto* data = detail::tensor_strides(std::forward<Tensor>(tensor), n, s);
  return TensorView<std::remove_pointer_t<decltype(data)>>{data, n[0], n[1], n[2], n[3],
                                                           s[0], s[1], s[2], s[3]};
}
/// A tensor of dimensions (B, L, H, d).
template <class Tensor, class = decltype(detail::bare_t<Tensor>::NumIndices)>
auto blhd(Tensor&& tensor) {
  Index n[4], s[4];
  auto* data = detail::tensor_strides(std::forward<Tensor>(tensor), n, s);
  return TensorView<std::remove_pointer_t<decltype(data)>>{data, n[0], n[2], n[1], n[3],
                                                           s[0], s[2], s[1], s[3]};
}
/// A tensor of dimensions (L, B, H, d).
template <class Tensor, class = decltype(detail::bare_t<Tensor>::NumIndices)>
auto lbhd(Tensor&& tensor) {
  Index n[4], s[4];
  auto* data = detail::tensor_strides(std::forward<Tensor>(tensor), n, s);
  return TensorView<std::remove_pointer_t<decltype(data)>>{data, n[1], n[2], n[0], n[3],
                                                           s[1], s[2], s[0], s[3]};
}

/// A batch of sequences stacked in rows: sequence b is rows [offsets[b], offsets[b+1]) of queries,
/// keys and values alike.
///
/// Requires   offsets[0] = 0, non-decreasing, the last one the number of rows
///            (std::invalid_argument otherwise)
/// Semantics  an lvalue container of integers is referred to; a temporary or a braced list is
///            copied
/// Cost       a ragged batch costs what its tokens cost: nothing is padded
template <class Offsets = std::initializer_list<Index>>
detail::Sequences sequences(Offsets&& offsets) {
  detail::Sequences batch;
  batch.query_offsets = detail::IndexList(std::forward<Offsets>(offsets));
  batch.same = true;
  return batch;
}
/// The same with row offsets of their own for keys and values. A single key sequence ({0, n})
/// serves every query sequence.
template <class Offsets = std::initializer_list<Index>,
          class KeyOffsets = std::initializer_list<Index>>
detail::Sequences sequences(Offsets&& offsets, KeyOffsets&& key_offsets) {
  detail::Sequences batch;
  batch.query_offsets = detail::IndexList(std::forward<Offsets>(offsets));
  batch.key_offsets = detail::IndexList(std::forward<KeyOffsets>(key_offsets));
  return batch;
}

/// A batch of sequences of `queries` rows each, stacked; keys and values likewise, `keys` rows each
/// (default: the same).
/// Where keys and values hold one sequence only, it serves every query sequence.
///
/// Requires   both ≥ 1, and the operands' rows a multiple of them                 (std::invalid_argument otherwise)
inline detail::SequenceLength sequence_length(Index queries, Index keys) {
  detail::SequenceLength batch;
  batch.queries = queries;
  batch.keys = keys;
  return batch;
}
inline detail::SequenceLength sequence_length(Index length) {
  return sequence_length(length, length);
}

}  // namespace ATTN_ABI
}  // namespace attn
