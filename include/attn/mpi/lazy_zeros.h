// attn/mpi/lazy_zeros.h: memory that costs what is touched of it.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>

#include "../types.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Zeros that are there once they are touched: blocks that nobody sees, and heads that are another
/// rank's, take addresses alone.
template <class T>
class LazyZeros {
  static_assert(std::is_trivially_copyable_v<T>,
                "attn::mpi: messages carry scalars as bytes: float, double, half, bfloat16, ...");

 public:
  explicit LazyZeros(Index numbers)
      : memory_(static_cast<T*>(std::calloc(std::size_t(numbers) + 1, sizeof(T)))) {
    if (memory_ == nullptr) throw std::bad_alloc();
  }
  T* data() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T[], Free> memory_;
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
