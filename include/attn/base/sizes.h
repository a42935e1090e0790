// attn/base/sizes.h: sizes where they enter: refused below what they need, and where their product
// passes what can be counted.
// SPDX-License-Identifier: MIT
//
// Everything behind the doors multiplies sizes freely: strides, offsets and scratch follow from
// counts that were refused here if they passed kMostNumbers.
#pragma once

#include <cstdint>
#include <limits>

#include "check.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// The most numbers that a matrix, a cache or a call's scratch may have: their bytes, rounded up to
/// whole blocks, still fit an Index, and a double counts them.
inline constexpr Eigen::Index kMostNumbers = Eigen::Index(1)
                                             << (sizeof(Eigen::Index) >= 8 ? 50 : 29);

/// Whether so many bytes may lie on the stack, or in an object that does. A limit of 0 is none, as
/// Eigen reads it.
constexpr bool fits_stack(std::int64_t bytes) {
  constexpr std::int64_t limit = EIGEN_STACK_ALLOCATION_LIMIT;
  return limit == 0 || bytes <= limit;
}

/// A size that may be given or not: a state of its own, so that no number stands for it.
class OptionalSize {
 public:
  constexpr OptionalSize() = default;
  constexpr OptionalSize(Eigen::Index n) : size_(n), given_(true) {}  // NOLINT: a size, given
  constexpr bool given() const { return given_; }
  constexpr Eigen::Index value_or(Eigen::Index otherwise) const {
    return given_ ? size_ : otherwise;
  }

 private:
  Eigen::Index size_ = 0;
  bool given_ = false;
};

/// Sums and products of sizes ≥ 0: where they would pass the largest Index they stay there.
class Count {
 public:
  /// A size below 0, which will be refused, counts nothing.
  Count(Eigen::Index n) : n_(n > 0 ? n : 0) {}  // NOLINT: sizes are counts
  /// |n|, of strides.
  static Count magnitude(Eigen::Index n) { return n >= 0 ? n : n < -kEnd ? kEnd : -n; }
  Eigen::Index value() const { return n_; }

  friend Count operator+(Count a, Count b) {
    Eigen::Index sum = 0;
    return sum_overflows(a.n_, b.n_, sum) ? kEnd : sum;
  }
  friend Count operator*(Count a, Count b) {
    Eigen::Index product = 0;
    return product_overflows(a.n_, b.n_, product) ? kEnd : product;
  }

 private:
  static constexpr Eigen::Index kEnd = std::numeric_limits<Eigen::Index>::max();
  Eigen::Index n_;
};

/// Refuses a size below the least that it may be.
inline void check_size(const char* function, const char* name, Eigen::Index n, Eigen::Index least) {
  if (n < least) fail(text(function, ": ", name, " is ", n, ", needs at least ", least));
}

[[noreturn]] ATTN_COLD inline void refuse_product(const char* function, const char* names,
                                                  std::initializer_list<Count> sizes) {
  std::string numbers;
  for (const Count size : sizes) numbers += text(numbers.empty() ? "" : " x ", size.value());
  fail(text(function, ": ", names, " is ", numbers, ", needs at most ", kMostNumbers, " in all"));
}
/// Refuses sizes ≥ 0 whose product passes kMostNumbers. `names`: "heads x keys".
template <class... Sizes>
ATTN_INLINE void check_product(const char* function, const char* names, Sizes... sizes) {
  if ((Count(1) * ... * Count(sizes)).value() > kMostNumbers)
    refuse_product(function, names, {Count(sizes)...});
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
