// attn/types.h: the vocabulary: index and scalar types, positions, ranges, the strided view; the
// table of symbols.
// SPDX-License-Identifier: MIT
//
// Symbols, used alike in all headers (Vaswani et al. 2017, arXiv:1706.03762; Dao 2023,
// arXiv:2307.08691):
//
//   Q, q    queries  Lq × d_k          H        query heads             s    scores: scale · q·k, then modified and masked
//   K, k    keys     Lk × d_k          H_kv     key/value heads         m    a row's largest score
//   V, v    values   Lk × d_v          B        sequences of a batch    p    exp(s − m)
//   O, o    output   Lq × d_v          i, j, c  query, key, feature     l    a row's sum of p; log-sum-exp = m + log l
//   W       lanes of a vector register (1 for scalars without packets)
#pragma once

#include <limits>
#include <type_traits>

#include "base/config.h"

namespace attn {
inline namespace ATTN_ABI {

using Index = Eigen::Index;

/// The scalar in which operands of this storage type are computed: half and bfloat16 are storage
/// types, computed in float.
template <class Storage>
struct compute_type {
  using type = Storage;
};
template <>
struct compute_type<Eigen::half> {
  using type = float;
};
template <>
struct compute_type<Eigen::bfloat16> {
  using type = float;
};
template <class Storage>
using compute_t = typename compute_type<std::remove_cv_t<Storage>>::type;

/// Where a score stands: which sequence of the batch, which query head, and the positions of its
/// query and key.
/// A key's position is its index in its sequence; a query's is its row in its sequence plus the
/// call's query offset.
struct At {
  Index sequence;
  Index head;
  Index query;
  Index key;
};

/// Which rows the first and last query are aligned with in causal attention where Lq ≠ Lk.
enum class align {
  upper_left,  ///< query row i is at position i
  /// the last query row is at the last key's position: offset Lk − Lq, Lk being the key length
  /// where one is given
  lower_right,
};

/// Which two features of a head turn together under rotary positions, among its first n features,
/// those that turn.
enum class pairing {
  /// features 2i and 2i + 1 (RoFormer, GPT-J, Llama's own weights, ONNX with interleaved = 1)
  interleaved,
  half_split,  ///< features i and i + n/2 (GPT-NeoX, Hugging Face's weights, ONNX's default)
};

/// A score on its way from q·k to the softmax, as save_scores names it.
enum class stage {
  scaled,      ///< scale · q·k, of every pair
  softcapped,  ///< after the softcap, of every pair
  biased,      ///< after the bias and all other modifiers, of every pair
  masked,      ///< what the softmax sees: −∞ where a pair is hidden
};

/// A half-open interval of key positions; empty where end ≤ begin.
struct KeyRange {
  Index begin = 0;
  Index end = 0;

  constexpr bool empty() const { return end <= begin; }
  constexpr bool contains(KeyRange other) const {
    return other.empty() || (begin <= other.begin && other.end <= end);
  }
};

constexpr KeyRange intersect(KeyRange a, KeyRange b) {
  return {a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
}
/// The smallest interval that holds both.
constexpr KeyRange hull(KeyRange a, KeyRange b) {
  if (a.empty()) return b;
  if (b.empty()) return a;
  return {a.begin < b.begin ? a.begin : b.begin, a.end > b.end ? a.end : b.end};
}

/// One query row as masks and score modifiers see it.
struct QueryRow {
  Index sequence;  ///< index of its sequence in the batch
  Index head;      ///< query head
  Index row;       ///< row within its sequence
  Index token;     ///< row among all query tokens of the call
  Index position;  ///< row + query offset
  Index keys;      ///< Lk of its sequence
};

/// Consecutive query rows [begin, end) of one sequence, under the heads [head_begin, head_end);
/// never empty.
struct QueryRows {
  Index sequence;
  Index head_begin, head_end;
  Index begin, end;
  Index first_token;  ///< token = row + first_token
  Index offset;       ///< position = row + offset
  Index keys;         ///< Lk of the sequence

  constexpr QueryRow row(Index i, Index head) const {
    return {sequence, head, i, i + first_token, i + offset, keys};
  }
  constexpr QueryRow first() const { return row(begin, head_begin); }
  constexpr QueryRow last() const { return row(end - 1, head_begin); }
};

/// The sizes of memory of rank 4.
struct TensorExtent {
  Index sequences, heads, tokens, features;
};

/// Memory of rank 4 with named dimensions: element (sequence, head, token, feature) lies at
/// data[sequence·sequence_stride + head·head_stride + token·token_stride + feature·feature_stride].
/// All operands are brought to this form; layout.h makes them from matrices, raw memory and
/// tensors. Strides count elements.
template <class T>
struct TensorView {
  using Scalar = std::remove_const_t<T>;

  T* data = nullptr;
  Index sequences = 1, heads = 1, tokens = 0, features = 0;
  Index sequence_stride = 0, head_stride = 0, token_stride = 0, feature_stride = 1;

  TensorExtent extent() const { return {sequences, heads, tokens, features}; }
  T* at(Index sequence, Index head, Index token) const {
    return data + sequence * sequence_stride + head * head_stride + token * token_stride;
  }
  T& operator()(Index sequence, Index head, Index token, Index feature) const {
    return at(sequence, head, token)[feature * feature_stride];
  }
};

}  // namespace ATTN_ABI
}  // namespace attn
