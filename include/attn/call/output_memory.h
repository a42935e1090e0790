// attn/call/output_memory.h: what output.h makes: matrices and views that are checked first, sized
// last and all together, and only then written.
// SPDX-License-Identifier: MIT
#pragma once

#include "../base/asked.h"
#include "lift.h"
#include "shape.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// As a bool, for a static_assert: it is then said before anything that follows from it.
template <class T>
constexpr bool check_output_type() {
  if constexpr (is_dense_v<T>) {
    static_assert(has_memory<T>::value,
                  "attn: the output is an expression, which has no memory to write to: write "
                  "into(Y) of a matrix, Map, Ref or Block");
    static_assert(!has_memory<T>::value || !std::is_const_v<std::remove_reference_t<T>>,
                  "attn: the output is const");
    static_assert(!is_plain_v<T> || std::is_lvalue_reference_v<T>,
                  "attn: the output is a temporary matrix: its result would be lost");
    static_assert(!has_memory<T>::value || is_writable<T>(),
                  "attn: the output is not writable memory (a Map, Ref or Block of const)");
  } else if constexpr (is_heads_v<T>) {
    static_assert(!std::is_const_v<
                      std::remove_pointer_t<decltype(std::declval<bare_t<T>>().held.view().data)>>,
                  "attn: the output is const (heads() of a const matrix, of an expression or of a "
                  "temporary)");
  } else if constexpr (is_tensor_view_v<T>) {
    static_assert(!std::is_const_v<std::remove_pointer_t<decltype(std::declval<bare_t<T>>().data)>>,
                  "attn: the output is const");
  } else {
    static_assert(always_false_v<T>,
                  "attn: the output is an Eigen matrix, heads(Y, n) of one, or a strided view "
                  "(bhld, blhd, lbhd)");
  }
  return true;
}

/// The memory of an output as it is before the call touches it. `stays`: it has the size it needs;
/// else it is given up by resizing.
/// `object`: the matrix that has it, null for views.
template <class Scalar>
struct OutputMemory {
  TensorView<Scalar> view;
  bool stays;
  const void* object;
};
template <class T>
TensorView<T> as_tensor(const MatrixView<T>& m) {
  return {m.data, 1, 1, m.rows, m.cols, 0, 0, m.row_stride, m.col_stride};
}

/// A plain matrix about to take a size: what can fail is done apart, before; until commit(), which
/// cannot, the matrix keeps its values. So several outputs are all sized or none.
template <class Matrix>
class Resizing {
 public:
  Resizing(Matrix& matrix, Index rows, Index cols) : matrix_(&matrix), rows_(rows), cols_(cols) {
    if constexpr (kOnHeap) {
      if (takes_memory()) fresh_.resize(rows, cols);
    }
  }
  /// Where the elements will be.
  MatrixView<typename Matrix::Scalar> view() {
    const bool by_row = Matrix::IsRowMajor;
    return {data(), rows_, cols_, by_row ? cols_ : 1, by_row ? 1 : rows_};
  }
  void commit() {
    if constexpr (kOnHeap) {
      if (takes_memory()) {
        matrix_->swap(fresh_);
        fresh_ = Plain();  // the old memory goes now
      }
    }
    matrix_->resize(rows_, cols_);
  }

 private:
  static constexpr bool kOnHeap = Matrix::MaxSizeAtCompileTime == Eigen::Dynamic;
  struct Nothing {};
  using Plain = typename Matrix::PlainObject;

  bool takes_memory() const { return matrix_->size() != rows_ * cols_; }
  typename Matrix::Scalar* data() {
    if constexpr (kOnHeap) {
      if (takes_memory()) return fresh_.data();
    }
    return matrix_->data();
  }

  Matrix* matrix_;
  Index rows_, cols_;
  std::conditional_t<kOnHeap, Plain, Nothing> fresh_;
};
/// In place of Resizing where an output keeps its memory.
struct KeepsMemory {
  void commit() const {}
};

/// A matrix that is written: a plain one with dynamic sizes takes the size it needs, others have to
/// have it.
template <class Matrix>
class MatrixOutput {
 public:
  using Scalar = typename Matrix::Scalar;
  explicit MatrixOutput(Matrix& y) : matrix_(&y) {}

  /// Refuses sizes that the matrix cannot take; changes nothing.
  void check(const char* function, const char* name, Index rows, Index cols) const {
    constexpr auto admits = [](int fixed, int most, Index n) {
      return (fixed == Eigen::Dynamic || fixed == n) && (most == Eigen::Dynamic || n <= most);
    };
    if (!admits(Matrix::RowsAtCompileTime, Matrix::MaxRowsAtCompileTime, rows) ||
        !admits(Matrix::ColsAtCompileTime, Matrix::MaxColsAtCompileTime, cols)) {
      fail(text(function, ": ", name, " is ", shape_text(matrix_->rows(), matrix_->cols()),
                ", needs ", shape_text(rows, cols)));
    }
  }
  OutputMemory<Scalar> memory(Index rows, Index cols) const {
    return {as_tensor(view()), matrix_->rows() == rows && matrix_->cols() == cols, matrix_};
  }
  /// Asked for once nothing can be refused any more.
  Resizing<Matrix> resizing(Index rows, Index cols) const { return {*matrix_, rows, cols}; }
  MatrixView<Scalar> view() const { return view_matrix(*matrix_); }

 private:
  Matrix* matrix_;
};
template <class Scalar_>
class ViewOutput {
 public:
  using Scalar = Scalar_;
  explicit ViewOutput(MatrixView<Scalar> view) : view_(view) {}
  void check(const char* function, const char* name, Index rows, Index cols) const {
    if (view_.rows != rows || view_.cols != cols) {
      fail(text(function, ": ", name, " is ", shape_text(view_.rows, view_.cols), ", needs ",
                shape_text(rows, cols)));
    }
  }
  OutputMemory<Scalar> memory(Index, Index) const { return {as_tensor(view_), true, nullptr}; }
  KeepsMemory resizing(Index, Index) const { return {}; }
  MatrixView<Scalar> view() const { return view_; }

 private:
  MatrixView<Scalar> view_;
};
template <class T>
auto matrix_output(T&& y) {
  static_assert(check_output_type<T>());
  using Bare = bare_t<T>;
  if constexpr (is_plain_v<Bare>) {
    return MatrixOutput<Bare>(y);
  } else {
    return ViewOutput<typename Bare::Scalar>(view_matrix(y));
  }
}

template <class Target>
inline constexpr bool is_matrix_output_v =
    is_instance_v<MatrixOutput, Target> || is_instance_v<ViewOutput, Target>;

/// What an output holds for each query token: shape.heads × shape.value_dim numbers, called
/// `columns` in messages; `row_names` are the tokens'.
struct OutputShape {
  CallShape shape;
  const char* name = "output";
  const char* columns = "output features";
  const char* row_names = "query rows";
};

/// Refuses an output of the wrong shape; changes nothing. The memory that the output occupies now.
/// `Target`: MatrixOutput or ViewOutput of a matrix, or a lifted operand with heads or strides of
/// its own.
template <class Target>
OutputMemory<typename Target::Scalar> check_output(const Target& target, const CallShape& shape,
                                                   const char* name = "output",
                                                   const char* columns = "output features",
                                                   const char* row_names = "query rows") {
  if constexpr (is_matrix_output_v<Target>) {
    const Index rows = shape.queries.total(), cols = shape.heads * shape.value_dim;
    target.check(shape.function, name, rows, cols);
    const auto now = target.memory(rows, cols);
    if (!now.stays) return now;
    return {place_like_output(shape, name, now.view, true).view, true, now.object};
  } else {
    return {place_like_output(shape, name, target.view(shape.function, name), Target::kStacked,
                              columns, row_names)
                .view,
            true, target.object()};
  }
}
/// What the engine writes through, once commit() has sized the output.
template <class Written, class Size>
struct PreparedOutput {
  Written to;
  Size size;
  void commit() { size.commit(); }
  void complete() const {}
};
template <class Written, class Size>
PreparedOutput<Written, Size> prepared(const Written& to, Size&& size) {
  return {to, std::move(size)};
}
/// Sizes outputs: all of them, as none can fail.
template <class... Prepared>
void commit(Prepared&... outputs) {
  (outputs.commit(), ...);
}

/// The output laid out as heads, its new memory taken where it needs some. `now`: as check_output()
/// found it.
template <class Target>
auto prepare_output(const Target& target, const CallShape& shape,
                    const OutputMemory<typename Target::Scalar>& now, const char* name = "output") {
  using Written = Operand<typename Target::Scalar>;
  if constexpr (is_matrix_output_v<Target>) {
    auto size = target.resizing(shape.queries.total(), shape.heads * shape.value_dim);
    if constexpr (!std::is_same_v<decltype(size), KeepsMemory>) {
      if (!now.stays)
        return prepared(place_like_output(shape, name, as_tensor(size.view()), true),
                        std::move(size));
    }
    return prepared(Written{now.view, shape.queries}, std::move(size));
  } else {
    return prepared(Written{now.view, shape.queries}, KeepsMemory{});
  }
}
template <class Target>
auto check_output(const Target& target, const OutputShape& needs) {
  return check_output(target, needs.shape, needs.name, needs.columns, needs.row_names);
}
template <class Target>
auto prepare_output(const Target& target, const OutputShape& needs) {
  return prepare_output(target, needs.shape, check_output(target, needs), needs.name);
}

struct IntoOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: two outputs in one call");
  }
};
/// save_partial(p) in its place: the option is in partial.h.
struct PartialOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: save_partial twice in one call");
  }
};
template <class Scalar>
struct SavePartial;
template <class Scalar, class Option>
inline constexpr bool is_partial_of_v = std::is_same_v<Option, SavePartial<Scalar>>;

/// into(Y).
template <class Target>
struct Into : option_base {
  using Kind = IntoOption;
  Target target;
  using Scalar = typename Target::Scalar;
  explicit Into(Target t) : target(std::move(t)) {}

  OutputMemory<Scalar> check(const CallShape& shape) const { return check_output(target, shape); }
  /// `now`: what check() returned.
  auto prepare(const CallShape& shape, const OutputMemory<Scalar>& now) const {
    return prepare_output(target, shape, now);
  }
};

/// What an output is written through: a matrix, or what lift() makes of heads and strided views.
template <class T>
auto output_target(T&& y) {
  static_assert(check_output_type<T>());
  if constexpr (is_dense_v<T>) {
    return matrix_output(std::forward<T>(y));
  } else {
    return lift(std::forward<T>(y));
  }
}

}  // namespace detail

}  // namespace ATTN_ABI
}  // namespace attn
