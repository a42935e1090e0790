// attn/base/score_source.h: what is shaped like the scores (bool masks, biases): a matrix, heads of
// one, or a strided view.
// SPDX-License-Identifier: MIT
#pragma once

#include "call_shape.h"
#include "heads.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Where a table of scores comes from: a matrix (held or owned), heads side by side in one, or a
/// strided view.
template <class Held>
struct MatrixSource {
  Held held;
  Index heads = 1;
  using Scalar = typename Held::Scalar;
  ScoreTable<Scalar> table(const CallShape& shape, const char* name) const {
    const auto m = held.view();
    return score_table<Scalar>(shape, name, {m.data, m.rows, m.cols, m.row_stride, m.col_stride},
                               heads);
  }
  /// [1, heads, rows, keys]; no head where the columns do not divide.
  TensorView<const Scalar> by_head(const CallShape&, const char*) const {
    const auto m = held.view();
    const Index columns = heads < 1 || m.cols % heads != 0 ? 0 : m.cols / heads;
    return {m.data,       1,           heads, m.rows, columns, 0, columns * m.col_stride,
            m.row_stride, m.col_stride};
  }
  /// The memory behind it, for the check against outputs that overlap it.
  TensorView<const Scalar> memory() const {
    const auto m = held.view();
    return {m.data, 1, 1, m.rows, m.cols, 0, 0, m.row_stride, m.col_stride};
  }
};
template <class T>
struct ViewSource {
  TensorView<const T> view;
  using Scalar = T;
  ScoreTable<T> table(const CallShape& shape, const char* name) const {
    check_view(shape.function, name, view);
    return score_table<T>(shape, name, view);
  }
  TensorView<const T> by_head(const CallShape& shape, const char* name) const {
    check_view(shape.function, name, view);
    return view;
  }
  TensorView<const T> memory() const { return view; }
};
template <class T>
auto score_source(T&& x) {
  using Bare = bare_t<T>;
  if constexpr (is_heads_v<Bare>) {
    return MatrixSource<decltype(Bare::held)>{std::forward<T>(x).held, x.count};
  } else if constexpr (is_tensor_view_v<Bare>) {
    return ViewSource<typename Bare::Scalar>{{x.data, x.sequences, x.heads, x.tokens, x.features,
                                              x.sequence_stride, x.head_stride, x.token_stride,
                                              x.feature_stride}};
  } else {
    return MatrixSource<held_t<T>>{hold(std::forward<T>(x)), 1};
  }
}
template <class T>
inline constexpr bool is_score_shaped_v = is_dense_v<T> || is_heads_v<T> || is_tensor_view_v<T>;
/// Shaped like scores, with bool elements.
template <class T>
constexpr bool is_bool_table() {
  if constexpr (is_score_shaped_v<T>) {
    return std::is_same_v<typename decltype(score_source(std::declval<T>()))::Scalar, bool>;
  } else {
    return false;
  }
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
