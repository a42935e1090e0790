// attn/detail/operand.h: the door: any matrix, heads of a matrix or strided view becomes pointer and strides, checked.
// SPDX-License-Identifier: MIT
#pragma once

#include "../kernel/problem.h"
#include "../layout.h"

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
    if (heads < 1 || m.cols % heads != 0) {
      fail(text(function, ": ", name, " has ", m.cols, " columns, needs a multiple of its ", heads,
                " heads"));
    }
    const Index features = m.cols / heads;
    return TensorView<T>{
        m.data, 1, heads, m.rows, features, 0, features * m.col_stride, m.row_stride, m.col_stride};
  }
};
template <class T>
struct LiftedView {
  using Scalar = std::remove_const_t<T>;
  static constexpr bool kStacked = false;
  TensorView<T> tensor;
  auto view(const char*, const char*) const { return tensor; }
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

/// How the tokens of one operand fall into sequences: by the view itself, by offsets, or by a common length (0: one sequence).
template <class T>
Tokens tokens_of(const char* function, const char* name, const TensorView<T>& view, bool stacked,
                 const IndexList* offsets, Index length) {
  if (!stacked) {
    if (offsets != nullptr || length != 0) {
      fail(text(function, ": ", name,
                " is a strided view, which holds its sequences itself; sequences() and "
                "sequence_length() are for stacked rows"));
    }
    return {view.sequences, view.tokens, nullptr};
  }
  if (offsets != nullptr) {
    const Index entries = offsets->size();
    if (entries < 1 || (*offsets)[0] != 0)
      fail(text(function, ": sequences: the row offsets of ", name, " must begin with 0"));
    for (Index b = 0; b + 1 < entries; ++b) {
      if ((*offsets)[b + 1] < (*offsets)[b]) {
        fail(text(function, ": sequences: row offset ", b + 1, " of ", name, " is ",
                  (*offsets)[b + 1], ", below the one before, ", (*offsets)[b]));
      }
    }
    if (offsets->back() != view.tokens) {
      fail(text(function, ": sequences: the row offsets of ", name, " end at ", offsets->back(),
                ", it has ", view.tokens, " rows"));
    }
    return {entries - 1, 0, offsets};
  }
  if (length != 0) {
    if (length < 1 || view.tokens % length != 0) {
      fail(text(function, ": sequence_length: ", name, " has ", view.tokens,
                " rows, needs a multiple of ", length, " (at least 1)"));
    }
    return {view.tokens / length, length, nullptr};
  }
  return {1, view.tokens, nullptr};
}

/// The operand with its tokens resolved to addresses.
template <class T>
kernel::Operand<T> place(TensorView<T> view, bool stacked, const Tokens& tokens,
                         bool shared = false) {
  if (stacked) view.sequence_stride = tokens.common_length * view.token_stride;
  return {view, tokens, shared};
}
template <class T>
TensorView<const T> read_only(const TensorView<T>& v) {
  return {v.data,        v.sequences,    v.heads,         v.tokens, v.features, v.sequence_stride,
          v.head_stride, v.token_stride, v.feature_stride};
}

/// An operand shaped like the output, H heads of d_v features for each query token: the output itself, or a residual.
/// Columns without heads() are the heads side by side.
template <class T>
kernel::Operand<T> place_like_output(const CallShape& shape, const char* name, TensorView<T> view,
                                     bool stacked) {
  const Tokens& tokens = shape.queries;
  if (stacked) {
    const Index rows = tokens.total(), cols = shape.heads * shape.value_dim;
    if (view.tokens != rows || view.heads * view.features != cols ||
        (view.heads != 1 && view.heads != shape.heads)) {
      fail(text(shape.function, ": ", name, " is ",
                shape_text(view.tokens, view.heads * view.features), " in ", view.heads,
                " heads, needs ", shape_text(rows, cols), " (query rows x value features) in ",
                shape.heads, " heads"));
    }
    if (view.heads != shape.heads) {
      view.heads = shape.heads;
      view.features = shape.value_dim;
      view.head_stride = shape.value_dim * view.feature_stride;
    }
  } else if (tokens.offsets != nullptr || view.sequences != shape.sequences() ||
             view.tokens != tokens.common_length || view.heads != shape.heads ||
             view.features != shape.value_dim) {
    fail(text(shape.function, ": ", name, " is a view of [", view.sequences, ", ", view.heads, ", ",
              view.tokens, ", ", view.features, "], needs [", shape.sequences(), ", ", shape.heads,
              ", ", tokens.longest(), ", ", shape.value_dim,
              "] (sequences, heads, query rows, value features), sequences of equal length"));
  }
  return place(view, stacked, tokens);
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
