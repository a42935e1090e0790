// attn/base/traits.h: what an argument is (matrix, view, expression, temporary) and how it is held
// without dangling.
// SPDX-License-Identifier: MIT
#pragma once

#include <type_traits>
#include <utility>

#include "config.h"

namespace attn {
inline namespace ATTN_ABI {

template <class T>
struct TensorView;
template <class Storage>
class KeyValueCache;

namespace detail {

template <class T>
using bare_t = std::remove_cv_t<std::remove_reference_t<T>>;

template <class...>
inline constexpr bool always_false_v = false;

template <class Derived>
std::true_type dense_test(const Eigen::DenseBase<Derived>*);
std::false_type dense_test(...);
template <class Derived>
std::true_type plain_test(const Eigen::PlainObjectBase<Derived>*);
std::false_type plain_test(...);

/// A dense Eigen object: matrix, array, Map, Ref, Block, transpose, or an expression of them.
template <class T>
inline constexpr bool is_dense_v = decltype(dense_test(static_cast<bare_t<T>*>(nullptr)))::value;
/// Eigen::Matrix or Eigen::Array: owns its memory.
template <class T>
inline constexpr bool is_plain_v = decltype(plain_test(static_cast<bare_t<T>*>(nullptr)))::value;

/// Ref<const X> may own a copy, so a temporary one must not be viewed.
template <class T>
struct is_ref_to_const : std::false_type {};
template <class X, int Options, class Stride>
struct is_ref_to_const<Eigen::Ref<const X, Options, Stride>> : std::true_type {};

template <class T, class = void>
struct has_memory : std::false_type {};
template <class T>
struct has_memory<T, std::enable_if_t<is_dense_v<T>>>
    : std::bool_constant<(int(bare_t<T>::Flags) & int(Eigen::DirectAccessBit)) != 0> {};

/// T is the type of a forwarding reference (X or X&): memory that can be written through it and
/// outlives the call.
template <class T>
constexpr bool is_writable() {
  using Bare = bare_t<T>;
  if constexpr (!has_memory<T>::value) {
    return false;
  } else {
    return !std::is_const_v<std::remove_reference_t<T>> &&
           (int(Bare::Flags) & int(Eigen::LvalueBit)) != 0 &&
           !(is_plain_v<Bare> && !std::is_lvalue_reference_v<T>);
  }
}

/// T is the type of a forwarding reference: its memory stays where it is after the expression that
/// made T.
template <class T>
constexpr bool is_viewable() {
  return has_memory<T>::value &&
         (std::is_lvalue_reference_v<T> || !(is_plain_v<T> || is_ref_to_const<bare_t<T>>::value));
}

/// Pointer, sizes and strides of a matrix; T is const where the matrix is only read.
template <class T>
struct MatrixView {
  using Scalar = std::remove_const_t<T>;
  T* data = nullptr;
  Eigen::Index rows = 0, cols = 0, row_stride = 0, col_stride = 0;

  T& operator()(Eigen::Index i, Eigen::Index j) const {
    return data[i * row_stride + j * col_stride];
  }
};

/// The view of a matrix with memory, read-only or writable as its type allows.
template <class T>
auto view_matrix(T&& x) {
  using Scalar = typename bare_t<T>::Scalar;
  if constexpr (is_writable<T>()) {
    return MatrixView<Scalar>{x.data(), x.rows(), x.cols(), x.rowStride(), x.colStride()};
  } else {
    return MatrixView<const Scalar>{x.data(), x.rows(), x.cols(), x.rowStride(), x.colStride()};
  }
}

/// The matrix itself where it has memory of its own, which tells it from others while it is empty;
/// else null.
template <class T>
const void* object_of(const T& x) {
  return is_plain_v<T> ? static_cast<const void*>(&x) : nullptr;
}

/// Holds a matrix in an option: a view where the memory outlives the argument, else the evaluated
/// value itself.
template <class Plain>
class OwnedMatrix {
 public:
  using Scalar = typename Plain::Scalar;
  template <class Expression>
  explicit OwnedMatrix(Expression&& x) : value_(std::forward<Expression>(x)) {}
  MatrixView<const Scalar> view() const { return view_matrix(value_); }

 private:
  Plain value_;
};
template <class T>
class ViewedMatrix {
 public:
  using Scalar = std::remove_const_t<T>;
  ViewedMatrix(MatrixView<T> view, const void* object) : view_(view), object_(object) {}
  MatrixView<T> view() const { return view_; }
  const void* object() const { return object_; }

 private:
  MatrixView<T> view_;
  const void* object_;
};

/// The matrix kept for later: lvalues and views are referred to, expressions and temporaries are
/// evaluated once and owned.
template <class T>
auto hold(T&& x) {
  static_assert(is_dense_v<T>,
                "attn: expected a dense Eigen matrix, array, Map, Ref, Block or expression");
  if constexpr (is_viewable<T>()) {
    const void* const object = object_of(x);
    const auto view = view_matrix(std::forward<T>(x));
    return ViewedMatrix<std::remove_reference_t<decltype(*view.data)>>(view, object);
  } else {
    return OwnedMatrix<typename bare_t<T>::PlainObject>(std::forward<T>(x));
  }
}
template <class T>
using held_t = decltype(hold(std::declval<T>()));

/// T is an instance of the class template Template.
template <template <class...> class Template, class T>
struct is_instance : std::false_type {};
template <template <class...> class Template, class... Arguments>
struct is_instance<Template, Template<Arguments...>> : std::true_type {};
template <template <class...> class Template, class T>
inline constexpr bool is_instance_v = is_instance<Template, T>::value;

/// T is a key/value cache (kv_cache.h).
template <class T>
inline constexpr bool is_cache_v = is_instance_v<KeyValueCache, bare_t<T>>;

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
