// attn/detail/operand.h: the door: any matrix, heads of a matrix or strided view becomes pointer and strides, checked.
// SPDX-License-Identifier: MIT
#pragma once

#include "call_shape.h"
#include "heads.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// An operand before the call's shape is known: what holds the memory, and how its columns fall into heads.
template <class Held>
struct LiftedMatrix {
  using Scalar = typename Held::Scalar;
  static constexpr bool kStacked =
      true;  ///< rows are tokens of all sequences; the call's options say which
  Held held;
  Index heads = 1;

  auto view(const char* function, const char* name) const {
    const auto m = held.view();
    using T = std::remove_reference_t<decltype(*m.data)>;
    if ((m.rows | m.cols) < 0) {
      fail(text(function, ": ", name, " is ", shape_text(m.rows, m.cols),
                ", needs sizes of at least 0"));
    }
    if (heads < 1) {
      fail(text(function, ": ", name, " is given as heads(", name, ", ", heads,
                "), needs at least 1 head"));
    }
    if (m.cols % heads != 0) {
      fail(text(function, ": ", name, " has ", m.cols, " columns, needs a multiple of its ", heads,
                " heads"));
    }
    const Index features = m.cols / heads;
    return TensorView<T>{
        m.data, 1, heads, m.rows, features, 0, features * m.col_stride, m.row_stride, m.col_stride};
  }
  const void* object() const { return held.object(); }
};
template <class T>
struct LiftedView {
  using Scalar = std::remove_const_t<T>;
  static constexpr bool kStacked = false;
  TensorView<T> tensor;
  auto view(const char* function, const char* name) const {
    check_view(function, name, tensor);
    return tensor;
  }
  const void* object() const { return nullptr; }
};

template <class T>
inline constexpr bool is_operand_v = is_dense_v<T> || is_heads_v<T> || is_tensor_view_v<T>;

template <class T>
auto lift(T&& x) {
  using Bare = bare_t<T>;
  static_assert(is_operand_v<T>,
                "attn: query, key and value are Eigen matrices, heads(X, n) of them, or strided "
                "views (bhld, blhd, lbhd)");
  if constexpr (is_heads_v<Bare>) {
    return LiftedMatrix<decltype(Bare::held)>{std::forward<T>(x).held, x.count};
  } else if constexpr (is_tensor_view_v<Bare>) {
    return LiftedView<std::remove_reference_t<decltype(*x.data)>>{x};
  } else {
    return LiftedMatrix<held_t<T>>{hold(std::forward<T>(x)), 1};
  }
}

/// Scalar type, compile-time rows and columns (Dynamic where heads are involved) and storage order of an operand's type.
/// (Whatever else is given gets a stand-in here, so that the static_assert that names the mistake is the first error.)
template <class T, class = void>
struct operand_traits {
  using Scalar = float;
  static constexpr int rows = Eigen::Dynamic, cols = Eigen::Dynamic, order = Eigen::ColMajor;
  static constexpr bool has_heads = false;
};
template <class T>
struct operand_traits<T, std::enable_if_t<is_dense_v<T>>> {
  using Scalar = typename T::Scalar;
  static constexpr int rows = T::RowsAtCompileTime, cols = T::ColsAtCompileTime;
  static constexpr int order = T::IsRowMajor ? Eigen::RowMajor : Eigen::ColMajor;
  static constexpr bool has_heads = false;
};
template <class Held, int Rows, int StorageOrder>
struct operand_traits<Heads<Held, Rows, StorageOrder>> {
  using Scalar = typename Held::Scalar;
  static constexpr int rows = Rows, cols = Eigen::Dynamic, order = StorageOrder;
  static constexpr bool has_heads = true;
};
template <class T>
struct operand_traits<TensorView<T>> {
  using Scalar = std::remove_const_t<T>;
  static constexpr int rows = Eigen::Dynamic, cols = Eigen::Dynamic, order = Eigen::RowMajor;
  static constexpr bool has_heads = true;
};

/// What the batch options of a call say: row offsets, or a common length (0: one sequence), of queries and of keys.
struct Batch {
  const IndexList *query_offsets = nullptr, *key_offsets = nullptr;
  Index query_length = 0, key_length = 0;

  Batch() = default;
  Batch(const char*, const Sequences& option)
      : query_offsets(&option.query_offsets),
        key_offsets(option.same ? &option.query_offsets : &option.key_offsets) {}
  Batch(const char* function, const SequenceLength& option)
      : query_length(option.queries), key_length(option.keys) {
    if (query_length < 1 || key_length < 1) {
      fail(text(function, ": sequence_length(", query_length, ", ", key_length,
                "): lengths are at least 1"));
    }
  }
};

/// tokens_of() where the call names its sequences.
inline Tokens batched_tokens(const char* function, const char* name, const TensorExtent& extent,
                             bool stacked, const IndexList* offsets, Index length) {
  if (!stacked) {
    fail(text(function, ": ", name,
              " is a strided view, which holds its sequences itself; sequences() and "
              "sequence_length() are for stacked rows"));
  }
  if (offsets != nullptr) {
    const Index entries = offsets->size();
    if (entries < 1 || (*offsets)[0] != 0) {
      fail(text(function, ": sequences: the row offsets of ", name,
                " must begin with 0: offsets, not lengths; two sequences of 5 and 7 rows are {0, "
                "5, 12}"));
    }
    for (Index b = 0; b + 1 < entries; ++b) {
      if ((*offsets)[b + 1] < (*offsets)[b]) {
        fail(text(function, ": sequences: row offset ", b + 1, " of ", name, " is ",
                  (*offsets)[b + 1], ", below the one before, ", (*offsets)[b]));
      }
    }
    if (offsets->back() != extent.tokens) {
      fail(text(function, ": sequences: the row offsets of ", name, " end at ", offsets->back(),
                ", it has ", extent.tokens, " rows"));
    }
    return {entries - 1, 0, offsets};
  }
  if (extent.tokens % length != 0) {
    fail(text(function, ": sequence_length: ", name, " has ", extent.tokens,
              " rows, needs a multiple of ", length, " (at least 1)"));
  }
  const Index sequences = extent.tokens / length;
  return {sequences, sequences > 0 ? length : 0, nullptr};
}

/// How the tokens of one operand fall into sequences. `stacked`: its rows are the tokens of all of them.
ATTN_INLINE Tokens tokens_of(const char* function, const char* name, const TensorExtent& extent,
                             bool stacked, const IndexList* offsets, Index length) {
  if (offsets != nullptr || length != 0)
    return batched_tokens(function, name, extent, stacked, offsets, length);
  return {stacked ? 1 : extent.sequences, extent.tokens, nullptr};
}

/// An operand's sizes, and whether its rows are stacked sequences.
struct OperandShape {
  TensorExtent extent;
  bool stacked;
};

/// The shape of a call from its operands' sizes; refuses what does not fit together.
inline CallShape call_shape(const char* function, const OperandShape& query,
                            const OperandShape& key, const OperandShape& value,
                            const Batch& batch) {
  const TensorExtent &q = query.extent, &k = key.extent, &v = value.extent;
  if (k.features != q.features) {
    const bool side_by_side =
        q.heads > 1 && k.heads == 1 && q.features > 0 && k.features % q.features == 0;
    fail(text(function, ": key has ", k.features, " features, query has ", q.features,
              "; both need d_k, for each head",
              side_by_side
                  ? text(". Heads of keys are named too: heads(K, ", k.features / q.features, ")")
                  : std::string()));
  }
  if (q.features < 1) fail(text(function, ": query has 0 features, needs at least 1"));
  if (v.heads != k.heads) {
    fail(text(function, ": value has ", v.heads, " heads, key has ", k.heads,
              "; both need one number"));
  }
  if (k.heads < 1 || q.heads % k.heads != 0) {
    fail(text(function, ": query has ", q.heads, " heads, needs a multiple of the ", k.heads,
              " heads of key and value"));
  }
  if (k.tokens != v.tokens) {
    fail(text(function, ": value has ", v.tokens, " rows, key has ", k.tokens,
              "; both need one row per key"));
  }
  CallShape shape;
  shape.function = function;
  shape.heads = q.heads;
  shape.kv_heads = k.heads;
  shape.key_dim = q.features;
  shape.value_dim = v.features;
  shape.queries =
      tokens_of(function, "query", q, query.stacked, batch.query_offsets, batch.query_length);
  shape.keys = tokens_of(function, "key", k, key.stacked, batch.key_offsets, batch.key_length);
  const Tokens values =
      tokens_of(function, "value", v, value.stacked, batch.key_offsets, batch.key_length);
  if (values.sequences != shape.keys.sequences) {
    fail(text(function, ": value has ", values.sequences, " sequences, key has ",
              shape.keys.sequences, "; both need one number"));
  }
  if (shape.keys.sequences != shape.queries.sequences) {
    if (shape.keys.sequences != 1) {
      fail(text(function, ": key has ", shape.keys.sequences, " sequences, query has ",
                shape.queries.sequences, "; needs as many, or one that serves all"));
    }
    shape.shared_keys = true;
  }
  return shape;
}

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

/// The operand with its tokens resolved to addresses.
template <class T>
Operand<T> place(TensorView<T> view, bool stacked, const Tokens& tokens, bool shared = false) {
  if (stacked) view.sequence_stride = tokens.common_length * view.token_stride;
  return {view, tokens, shared};
}
template <class T>
TensorView<const T> read_only(const TensorView<T>& v) {
  return {v.data,        v.sequences,    v.heads,         v.tokens, v.features, v.sequence_stride,
          v.head_stride, v.token_stride, v.feature_stride};
}

/// Refuses what is not shaped like the output, H heads of features for each query token. `columns` says what the features
/// are, where they are others.
inline void check_like_output(const CallShape& shape, const char* name, const OperandShape& operand,
                              const char* columns = "output features") {
  const Tokens& tokens = shape.queries;
  const TensorExtent& has = operand.extent;
  if (operand.stacked) {
    const Index rows = tokens.total(), cols = shape.heads * shape.value_dim;
    if (has.tokens != rows || has.heads * has.features != cols ||
        (has.heads != 1 && has.heads != shape.heads)) {
      fail(text(shape.function, ": ", name, " is ",
                shape_text(has.tokens, has.heads * has.features), " in ", has.heads,
                " heads, needs ", shape_text(rows, cols), " (query rows x ", columns, ") in ",
                shape.heads, " heads"));
    }
  } else if (tokens.offsets != nullptr || has.sequences != shape.sequences() ||
             has.tokens != tokens.common_length || has.heads != shape.heads ||
             has.features != shape.value_dim) {
    fail(text(shape.function, ": ", name, " is a view of [", has.sequences, ", ", has.heads, ", ",
              has.tokens, ", ", has.features, "], needs [", shape.sequences(), ", ", shape.heads,
              ", ", tokens.longest(), ", ", shape.value_dim, "] (sequences, heads, query rows, ",
              columns, "), sequences of equal length"));
  }
}

/// The output, or a residual, as an operand. Columns without heads() are the heads side by side.
template <class T>
Operand<T> place_like_output(const CallShape& shape, const char* name, TensorView<T> view,
                             bool stacked, const char* columns = "output features") {
  check_like_output(shape, name, {view.extent(), stacked}, columns);
  if (stacked && view.heads != shape.heads) {
    view.heads = shape.heads;
    view.features = shape.value_dim;
    view.head_stride = shape.value_dim * view.feature_stride;
  }
  return place(view, stacked, shape.queries);
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
