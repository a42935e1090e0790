// attn/base/aligned_buffer.h: the one owner of memory on whole cache lines: scratch, packed
// weights, caches.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>

#include "config.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Elements that begin on a cache line. New ones of built-in types have no value yet.
///
/// Semantics  a regular value; what was moved from is empty. Where memory runs out (std::bad_alloc)
///            the buffer stays as it was: new memory is taken apart and then swapped in
template <class T>
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(Eigen::Index n) : AlignedBuffer(Raw{}, n) {
    std::uninitialized_default_construct_n(data_, n);
    size_ = n;
  }
  AlignedBuffer(const AlignedBuffer& other) : AlignedBuffer(Raw{}, other.size_) {
    std::uninitialized_copy_n(other.data_, other.size_, data_);
    size_ = other.size_;
  }
  AlignedBuffer(AlignedBuffer&& other) noexcept { swap(other); }
  /// Between buffers of one size nothing is allocated.
  AlignedBuffer& operator=(const AlignedBuffer& other) {
    if (std::is_nothrow_copy_assignable_v<T> && size_ == other.size_) {
      if (this != &other) std::copy_n(other.data_, size_, data_);
    } else {
      AlignedBuffer copied(other);
      swap(copied);
    }
    return *this;
  }
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    AlignedBuffer moved(std::move(other));
    swap(moved);
    return *this;
  }
  ~AlignedBuffer() {
    if (data_ == nullptr) return;
    std::destroy_n(data_, size_);
    std::allocator<Line>().deallocate(reinterpret_cast<Line*>(data_), lines_);
  }

  Eigen::Index size() const { return size_; }
  T* data() { return data_; }
  const T* data() const { return data_; }

  /// Room for n elements at least, whose values are lost where it grows.
  void grow(Eigen::Index n) {
    if (n <= size_) return;
    AlignedBuffer larger(n);
    swap(larger);
  }

 private:
  struct alignas(64) Line {
    unsigned char bytes[64];
  };
  struct Raw {};

  /// Memory for n elements, none of them there yet.
  AlignedBuffer(Raw, Eigen::Index n) : lines_(lines_for(n)) {
    if (lines_ > 0) data_ = reinterpret_cast<T*>(std::allocator<Line>().allocate(lines_));
  }
  static std::size_t lines_for(Eigen::Index n) {
    constexpr std::size_t most = std::numeric_limits<std::ptrdiff_t>::max() - sizeof(Line);
    if (std::size_t(n) > most / sizeof(T)) return std::numeric_limits<std::size_t>::max();
    return (std::size_t(n) * sizeof(T) + sizeof(Line) - 1) / sizeof(Line);
  }
  void swap(AlignedBuffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(lines_, other.lines_);
  }

  T* data_ = nullptr;
  Eigen::Index size_ = 0;
  std::size_t lines_ = 0;
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
