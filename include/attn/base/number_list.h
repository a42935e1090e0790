// attn/base/number_list.h: one number for each head inside an option: refers to the caller's
// vector, or owns what would vanish.
// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <initializer_list>
#include <iterator>
#include <vector>

#include "../types.h"
#include "check.h"
#include "traits.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

template <class T>
auto has_begin(int) -> decltype(std::begin(std::declval<const bare_t<T>&>()), std::true_type());
template <class T>
std::false_type has_begin(long);
/// A container, as opposed to a single number.
template <class T>
inline constexpr bool is_list_v = is_dense_v<T> || decltype(has_begin<T>(0))::value;

template <class T, class = void>
struct list_value {
  using type = bare_t<decltype(*std::begin(std::declval<const bare_t<T>&>()))>;
};
template <class T>
struct list_value<T, std::enable_if_t<is_dense_v<T>>> {
  using type = typename bare_t<T>::Scalar;
};
template <class T>
using list_value_t = typename list_value<T>::type;

/// A number by itself: of an expression of AutoDiffScalars, which refers to its operands, the
/// AutoDiffScalar that it evaluates to.
template <class T, class Real = typename Eigen::NumTraits<bare_t<T>>::Real>
using owned_number_t =
    std::conditional_t<!std::is_arithmetic_v<Real> && std::is_convertible_v<T, Real>, Real,
                       bare_t<T>>;

/// Numbers by head. Lvalue vectors (std::vector, std::array, Eigen) are referred to; temporaries,
/// braced lists and expressions are copied, without touching the heap up to kInline entries.
template <class T>
class NumberList {
  static_assert(!std::is_same_v<T, bool>,
                "attn: expected numbers, one for each head or one for all, not bool");

 public:
  static constexpr std::size_t kInline = 16;

  explicit NumberList(const T& single) : size_(1) { inline_[0] = single; }
  struct From {};  // a list, where a single number could be meant
  template <class List>
  NumberList(From, List&& list) {
    if constexpr (is_dense_v<List>) {
      static_assert(bare_t<List>::IsVectorAtCompileTime,
                    "attn: expected a vector, one number for each head");
      if constexpr (is_viewable<List>()) {
        refer(list.data(), list.innerStride(), list.size());
      } else {
        const auto values = list.eval();
        for (Index i = 0; i < values.size(); ++i) append(values[i]);
      }
    } else if constexpr (std::is_lvalue_reference_v<List> && has_data<List>(0)) {
      refer(std::data(list), 1, Index(std::size(list)));
    } else {
      for (const auto& value : list) append(value);
    }
  }

  Index size() const { return size_; }
  const T& operator[](Index i) const {
    if (data_ != nullptr) return data_[i * stride_];
    return std::size_t(size_) <= kInline ? inline_[std::size_t(i)] : spilled_[std::size_t(i)];
  }
  /// The numbers as heads read them, one entry serving all: valid while the list stays where it is.
  struct ByHead {
    const T* data;
    Index stride;
    const T& operator[](Index head) const { return data[head * stride]; }
  };
  ByHead by_head() const { return {&(*this)[0], size_ == 1 ? 0 : data_ != nullptr ? stride_ : 1}; }
  /// The caller's memory, for the check against outputs that overlap it; empty where it is owned.
  TensorView<const T> memory() const {
    return {data_, 1, 1, data_ == nullptr ? 0 : size_, 1, 0, 0, stride_, 1};
  }

  void check(const char* function, const char* name, Index heads) const {
    if (size_ != heads && size_ != 1) {
      fail(text(function, ": ", name, " has ", size_, " numbers, query has ", heads,
                " heads; needs one for each (or one for all)"));
    }
  }

 private:
  template <class List>
  static constexpr auto has_data(int) -> decltype(std::data(std::declval<List>()), true) {
    return true;
  }
  template <class List>
  static constexpr bool has_data(long) {
    return false;
  }

  void refer(const T* data, Index stride, Index size) {
    if (size > 0) data_ = data;
    stride_ = stride, size_ = size;
  }
  void append(const T& value) {
    if (std::size_t(size_) < kInline) {
      inline_[std::size_t(size_)] = value;
    } else {
      if (spilled_.empty()) spilled_.assign(inline_.begin(), inline_.end());
      spilled_.push_back(value);
    }
    ++size_;
  }

  const T* data_ = nullptr;
  Index stride_ = 1, size_ = 0;
  std::array<T, kInline> inline_{};
  std::vector<T> spilled_;
};

template <class List>
auto number_list(List&& list) {
  if constexpr (is_list_v<List>) {
    using Numbers = NumberList<list_value_t<List>>;
    return Numbers(typename Numbers::From{}, std::forward<List>(list));
  } else {
    return NumberList<owned_number_t<List>>(list);
  }
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
