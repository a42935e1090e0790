// attn/base/index_list.h: a list of indices inside an option: refers to the caller's container, or
// owns what would vanish.
// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "check.h"
#include "traits.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Offsets, lengths: any container of integers. An lvalue std::vector, std::array, C array or Eigen
/// vector is referred to; a temporary or a braced list is copied, without touching the heap up to
/// kInline entries.
class IndexList {
 public:
  static constexpr std::size_t kInline = 16;

  IndexList() = default;
  explicit IndexList(Eigen::Index single) : size_(1) { inline_[0] = single; }
  IndexList(std::initializer_list<Eigen::Index> list) { copy(list); }

  template <class Range, std::enable_if_t<!std::is_arithmetic_v<bare_t<Range>> &&
                                              !std::is_same_v<bare_t<Range>, IndexList>,
                                          int> = 0>
  explicit IndexList(Range&& range) {
    using Element = bare_t<decltype(*std::begin(range))>;
    static_assert(std::is_integral_v<Element>, "attn: offsets, lengths and positions are integers");
    for (const Element& index : range) {
      if (!is_index(index)) {
        fail("attn: a list of offsets, lengths, positions or ids holds " + std::to_string(index) +
             ", needs at most " + std::to_string(std::numeric_limits<Eigen::Index>::max()));
      }
    }
    if constexpr (std::is_lvalue_reference_v<Range> && is_contiguous<Range>()) {
      data_ = std::data(range);
      size_ = Eigen::Index(std::size(range));
      read_ = [](const void* data, Eigen::Index first, Eigen::Index count, Eigen::Index* to) {
        const Element* from = static_cast<const Element*>(data) + first;
        for (Eigen::Index i = 0; i < count; ++i) to[i] = Eigen::Index(from[i]);
      };
    } else {
      copy(range);
    }
  }

  Eigen::Index size() const { return size_; }
  Eigen::Index operator[](Eigen::Index i) const {
    if (data_ != nullptr) {
      Eigen::Index value;
      read_(data_, i, 1, &value);
      return value;
    }
    return std::size_t(size_) <= kInline ? inline_[std::size_t(i)] : spilled_[std::size_t(i)];
  }
  /// The entries first, first + 1, …: one call for all of them, where the container is the
  /// caller's.
  void read(Eigen::Index first, Eigen::Index count, Eigen::Index* to) const {
    if (data_ != nullptr) return read_(data_, first, count, to);
    for (Eigen::Index i = 0; i < count; ++i) to[i] = (*this)[first + i];
  }
  Eigen::Index back() const { return (*this)[size_ - 1]; }

 private:
  /// The integer has a value that an Index can have.
  template <class Element>
  static constexpr bool is_index(Element value) {
    using Limits = std::numeric_limits<Eigen::Index>;
    if constexpr (sizeof(Element) < sizeof(Eigen::Index)) {
      return true;
    } else if constexpr (std::is_signed_v<Element>) {
      return Limits::min() <= value && value <= Limits::max();
    } else {
      return value <= Element(Limits::max());
    }
  }
  template <class Range>
  static constexpr bool is_contiguous() {
    if constexpr (is_dense_v<Range>) {
      return is_plain_v<Range>;
    } else {
      return has_data<Range>(0);
    }
  }
  template <class Range>
  static constexpr auto has_data(int) -> decltype(std::data(std::declval<Range>()), true) {
    return true;
  }
  template <class Range>
  static constexpr bool has_data(long) {
    return false;
  }

  template <class Range>
  void copy(const Range& range) {
    for (const auto& index : range) {
      if (std::size_t(size_) < kInline) {
        inline_[std::size_t(size_)] = Eigen::Index(index);
      } else {
        if (spilled_.empty()) spilled_.assign(inline_.begin(), inline_.end());
        spilled_.push_back(Eigen::Index(index));
      }
      ++size_;
    }
  }

  const void* data_ = nullptr;
  void (*read_)(const void*, Eigen::Index, Eigen::Index, Eigen::Index*) = nullptr;
  Eigen::Index size_ = 0;
  std::array<Eigen::Index, kInline> inline_{};
  std::vector<Eigen::Index> spilled_;
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
