// attn/call/lift.h: any matrix, heads of a matrix or strided view becomes pointer and strides.
// SPDX-License-Identifier: MIT
#pragma once

#include "../base/call_shape.h"
#include "../base/check.h"
#include "../base/heads.h"
#include "../base/operand.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// An operand before the call's shape is known: what holds the memory, and how its columns fall
/// into heads.
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

/// An operand of the inner calls: a view, and whether its rows are stacked sequences.
template <class T>
struct GivenRows {
  TensorView<T> view;
  bool stacked;
};
/// What lift() made, as such an operand; read only.
template <class Lifted>
auto given_rows(const char* function, const char* name, const Lifted& lifted) {
  using T = std::remove_pointer_t<decltype(read_only(lifted.view(function, name)).data)>;
  return GivenRows<T>{read_only(lifted.view(function, name)), Lifted::kStacked};
}

/// Stacked rows of the library's own memory.
template <class T>
struct LiftedRows {
  using Scalar = std::remove_const_t<T>;
  static constexpr bool kStacked = true;
  TensorView<T> tensor;
  TensorView<T> view(const char*, const char*) const { return tensor; }
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

/// Scalar type, compile-time rows and columns (Dynamic where heads are involved) and storage order
/// of an operand's type.
/// (Whatever else is given gets a stand-in here, so that the static_assert that names the mistake
/// is the first error.)
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

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
