// attn/base/call_shape.h: what a call looks like once its operands are understood; masks and scores
// bind to it.
// SPDX-License-Identifier: MIT
#pragma once

#include "../types.h"
#include "check.h"
#include "index_list.h"
#include "sizes.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// The lengths of a cache's sequences where they lie, and which of them a call chose.
struct CachedLengths {
  const Eigen::Index* first = nullptr;
  Eigen::Index step = 0;  ///< numbers from one sequence's length to the next
  const IndexList* chosen =
      nullptr;  ///< the cache's sequence of each of the call's; null: the same
  Eigen::Index operator[](Eigen::Index sequence) const {
    return first[step * (chosen != nullptr ? (*chosen)[sequence] : sequence)];
  }
};

/// How tokens fall into sequences: equal lengths, ragged by row offsets, or as a cache holds them.
struct Tokens {
  Eigen::Index sequences = 1;
  Eigen::Index common_length = 0;      ///< of each sequence, where `offsets` is null
  const IndexList* offsets = nullptr;  ///< sequence b is rows [offsets[b], offsets[b + 1])
  const CachedLengths* cached = nullptr;

  Eigen::Index begin(Eigen::Index sequence) const {
    if (cached != nullptr) {
      Eigen::Index before = 0;
      for (Eigen::Index b = 0; b < sequence; ++b) before += (*cached)[b];
      return before;
    }
    return offsets != nullptr ? (*offsets)[sequence] : sequence * common_length;
  }
  Eigen::Index length(Eigen::Index sequence) const {
    if (cached != nullptr) return (*cached)[sequence];
    return offsets != nullptr ? (*offsets)[sequence + 1] - (*offsets)[sequence] : common_length;
  }
  Eigen::Index total() const {
    if (cached != nullptr) return begin(sequences);
    return offsets != nullptr ? offsets->back() : sequences * common_length;
  }
  Eigen::Index longest() const {
    if (offsets == nullptr && cached == nullptr) return sequences > 0 ? common_length : 0;
    Eigen::Index longest = 0;
    for (Eigen::Index b = 0; b < sequences; ++b)
      longest = length(b) > longest ? length(b) : longest;
    return longest;
  }
};

/// The shape of one call. Errors are reported in the name of `function`.
struct CallShape {
  const char* function = "attn::attention";
  Eigen::Index heads = 1, kv_heads = 1;
  Eigen::Index key_dim = 0, value_dim = 0;
  Tokens queries, keys;
  bool shared_keys = false;  ///< one sequence of keys serves every sequence of queries

  Eigen::Index sequences() const { return queries.sequences; }
  /// Query heads on a key/value head: mostly one. (A division takes as long as 16 multiply-adds of
  /// packets, and small calls ask several times.)
  Eigen::Index group() const { return heads == kv_heads ? 1 : heads / kv_heads; }
  Eigen::Index key_length(Eigen::Index sequence) const {
    return keys.length(shared_keys ? 0 : sequence);
  }
};

/// Refuses a strided view of sizes below 0, and one whose numbers or reach pass what can be
/// counted.
template <class T>
void check_view(const char* function, const char* name, const TensorView<T>& v) {
  const auto size = [&] {
    return text("[", v.sequences, ", ", v.heads, ", ", v.tokens, ", ", v.features, "]");
  };
  if ((v.sequences | v.heads | v.tokens | v.features) < 0)
    fail(text(function, ": ", name, " is a view of ", size(), ", needs sizes of at least 0"));
  const auto at_least_one = [](Eigen::Index n) { return Count(n > 0 ? n : 1); };
  const Count numbers = at_least_one(v.sequences) * at_least_one(v.heads) * at_least_one(v.tokens) *
                        at_least_one(v.features);
  const Count reach = at_least_one(v.sequences) * Count::magnitude(v.sequence_stride) +
                      at_least_one(v.heads) * Count::magnitude(v.head_stride) +
                      at_least_one(v.tokens) * Count::magnitude(v.token_stride) +
                      at_least_one(v.features) * Count::magnitude(v.feature_stride);
  if (numbers.value() > kMostNumbers || reach.value() > kMostNumbers) {
    fail(text(function, ": ", name, " is a view of ", size(), " at strides [", v.sequence_stride,
              ", ", v.head_stride, ", ", v.token_stride, ", ", v.feature_stride,
              "], needs at most ", kMostNumbers, " numbers and as far a reach"));
  }
}

/// Neighbours in memory are rows of a column rather than columns of a row, as in column-major
/// matrices.
constexpr bool by_columns(Eigen::Index row_stride, Eigen::Index column_stride) {
  const auto distance = [](Eigen::Index stride) { return stride < 0 ? -stride : stride; };
  return distance(column_stride) > 1 && distance(row_stride) < distance(column_stride);
}

/// A matrix shaped like the scores (bool masks, biases), [sequence, head, query row, key], resolved
/// to strides: 0 along what it serves as a whole.
template <class T>
struct ScoreTable {
  using Scalar = T;
  TensorView<const T> view;
  bool stacked = false;  ///< rows count all the call's query tokens, else those of a row's sequence

  template <class Row>
  const T* row(const Row& at) const {
    return view.at(at.sequence, at.head, stacked ? at.token : at.row);
  }
  Eigen::Index key_stride() const { return view.feature_stride; }
  bool by_columns() const { return detail::by_columns(view.token_stride, view.feature_stride); }
};

/// Lays a matrix of `heads` blocks of columns over the scores: Lq×Lk for all sequences, or all
/// sequences' rows stacked; one row serves all queries, one column (of each head) all keys.
template <class T>
ScoreTable<T> score_table(const CallShape& shape, const char* name, MatrixView<const T> m,
                          Eigen::Index heads) {
  const Eigen::Index rows = shape.queries.longest(), total = shape.queries.total(),
                     keys = shape.keys.longest();
  if (heads != 1 && heads != shape.heads) {
    fail(text(shape.function, ": ", name, " has ", heads, " heads, query has ", shape.heads));
  }
  if ((m.rows != rows && m.rows != total && m.rows != 1) ||
      (m.cols != heads * keys && m.cols != heads)) {
    fail(text(shape.function, ": ", name, " is ", shape_text(m.rows, m.cols), ", needs ",
              shape_text(rows, heads * keys),
              rows == total ? " (query rows x keys of each head)"
                            : " (longest query sequence x keys of each head) or ",
              rows == total ? "" : shape_text(total, heads * keys),
              rows == total ? "" : " (a row for each query token)",
              "; one row, or one column a head, serves all",
              heads == 1 && shape.heads > 1 && m.cols == shape.heads * keys
                  ? text(". One for each head is named so: ", name, "(heads(B, ", shape.heads, "))")
              : heads == 1 && m.rows == keys && m.cols == rows
                  ? text(". Transposed it fits: ", name, "(B.transpose())")
                  : std::string()));
  }
  const bool one_row = m.rows == 1, one_column = m.cols == heads;
  return {
      {m.data, 1, heads, m.rows, m.cols / heads, 0, heads == 1 ? 0 : m.cols / heads * m.col_stride,
       one_row ? 0 : m.row_stride, one_column ? 0 : m.col_stride},
      m.rows != rows && !one_row};
}

/// The same for memory of rank 4, [sequence, head, query, key]; a dimension of size 1 serves all.
template <class T>
ScoreTable<T> score_table(const CallShape& shape, const char* name, const TensorView<const T>& v) {
  const Eigen::Index rows = shape.queries.longest(), keys = shape.keys.longest();
  const auto fits = [](Eigen::Index has, Eigen::Index needs) { return has == 1 || has == needs; };
  if (!fits(v.sequences, shape.sequences()) || !fits(v.heads, shape.heads) ||
      !fits(v.tokens, rows) || !fits(v.features, keys)) {
    fail(text(shape.function, ": ", name, " is [", v.sequences, ", ", v.heads, ", ", v.tokens, ", ",
              v.features, "], needs [", shape.sequences(), ", ", shape.heads, ", ", rows, ", ",
              keys, "] (sequences, heads, queries, keys) or 1 in place of any"));
  }
  return {{v.data, v.sequences, v.heads, v.tokens, v.features,
           v.sequences == 1 ? 0 : v.sequence_stride, v.heads == 1 ? 0 : v.head_stride,
           v.tokens == 1 ? 0 : v.token_stride, v.features == 1 ? 0 : v.feature_stride},
          false};
}

/// Refuses an input of a layer whose rows have other features than it takes.
inline void check_features(const char* function, const char* name, const TensorExtent& input,
                           Eigen::Index features) {
  if (input.features == features) return;
  const bool columns = input.sequences == 1 && input.tokens == features;
  fail(text(function, ": ", name, " has ", input.features, " features, the layer takes ", features,
            columns ? ". A row is a token: where tokens are columns, write X.transpose()" : ""));
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
