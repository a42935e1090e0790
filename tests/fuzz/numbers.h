// tests/fuzz/numbers.h: matrices of all kinds of numbers, and where they lie in memory.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <type_traits>

#include "../support/random_composition.h"

namespace fuzz {

using namespace support;

template <class Scalar>
using Matrix = DynamicMatrix<Scalar>;

/// What a matrix holds. Of all but huge ones the oracle, which has more bits, says the same.
enum class Kind {
  uniform,  ///< in [−2, 2)
  whole,    ///< −2 … 2: ties, zeros, exact sums
  wide,     ///< 2⁻⁴⁰ to 2
  tiny,     ///< denormals of float, and what becomes 0 in a product
  special,  ///< uniform, among them NaN, ±∞ and zeros of both signs
  huge,     ///< whose products are no numbers any more
};
inline Kind kind(Draw& draw) {
  const Index n = draw(0, 15);
  return n < 8    ? Kind::uniform
         : n < 10 ? Kind::whole
         : n < 11 ? Kind::wide
         : n < 12 ? Kind::tiny
         : n < 15 ? Kind::special
                  : Kind::huge;
}

/// Numbers of a kind, one after the other. (A seeded std::mt19937 costs as much as a small call.)
class Numbers {
 public:
  Numbers(Kind kind, std::uint32_t seed) : kind_(kind), state_(seed) {}

  double operator()() {
    const double x = 2 * (double(bits() >> 11) * 0x1p-52 - 1);
    switch (kind_) {
      case Kind::uniform:
        return x;
      case Kind::whole:
        return std::floor(x + 0.5);
      case Kind::wide:
        return std::ldexp(x, -int(bits() % 40));
      case Kind::tiny:
        return std::ldexp(x, -70 - int(bits() % 80));
      case Kind::special:
        return bits() % 8 == 0 ? special() : x;
      case Kind::huge:
        return std::ldexp(x, 20 + int(bits() % 107));
    }
    return 0;
  }

 private:
  double special() {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    constexpr double kSpecial[] = {std::numeric_limits<double>::quiet_NaN(), kInfinity, -kInfinity,
                                   -0., 0.};
    return kSpecial[bits() % 5];
  }
  std::uint64_t bits() {  // splitmix64, Steele et al. 2014
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }

  Kind kind_;
  std::uint64_t state_;
};

template <class Scalar>
Matrix<Scalar> matrix(Index rows, Index cols, Kind kind, Draw& draw) {
  Matrix<Scalar> x(rows, cols);
  Numbers number(kind, draw.seed());
  for (Index n = 0; n < x.size(); ++n) x.data()[n] = static_cast<Scalar>(number());
  return x;
}

/// A matrix's numbers in some order, forwards or backwards, with gaps or without, in memory that has
/// not one byte more: AddressSanitizer sees what is read beside them.
template <class Scalar>
class Placed {
 public:
  using View =
      Eigen::Map<Matrix<Scalar>, Eigen::Unaligned, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>>;

  /// Room for a result.
  Placed(Index rows, Index cols, Draw& draw) : rows_(rows), cols_(cols) {
    const Index form = draw(0, 255), gap = form >> 4 & 3;
    feature_stride_ = (form & 12) == 12 ? 2 : 1;
    token_stride_ = feature_stride_ * cols + gap;
    if ((form & 3) == 3) feature_stride_ = rows + gap, token_stride_ = 1;
    if (rows > 0 && cols > 0) {
      shift_ = form & 1;
      size_ = shift_ + (rows - 1) * token_stride_ + (cols - 1) * feature_stride_ + 1;
    }
    memory_.reset(size_ > 0 ? new Scalar[at(size_)] : nullptr);
    for (Index n = 0; n < size_; ++n) memory_[at(n)] = kGap();
    if ((form & 0xc0) == 0xc0) {
      shift_ = size_ - 1;
      feature_stride_ = -feature_stride_;
      token_stride_ = -token_stride_;
    }
  }
  Placed(const Matrix<Scalar>& x, Draw& draw) : Placed(x.rows(), x.cols(), draw) { view() = x; }

  View view() const {
    return {
        memory_ ? memory_.get() + shift_ : nullptr, rows_, cols_, {token_stride_, feature_stride_}};
  }
  Matrix<Scalar> numbers() const { return view(); }
  /// Nothing was written beside the elements.
  bool gaps_stand() const {
    Placed copy = *this;
    copy.view().setConstant(kGap());
    for (Index n = 0; n < size_; ++n) {
      if (!same_bits_of(copy.memory_[at(n)], kGap())) return false;
    }
    return true;
  }

 private:
  Placed(const Placed& other)
      : rows_(other.rows_),
        cols_(other.cols_),
        shift_(other.shift_),
        size_(other.size_),
        token_stride_(other.token_stride_),
        feature_stride_(other.feature_stride_),
        memory_(size_ > 0 ? new Scalar[at(size_)] : nullptr) {
    std::copy_n(other.memory_.get(), size_, memory_.get());
  }
  static Scalar kGap() { return std::numeric_limits<Scalar>::quiet_NaN(); }

  Index rows_, cols_, shift_ = 0, size_ = 0, token_stride_, feature_stride_;
  std::unique_ptr<Scalar[]> memory_;
};

/// Some rows of a matrix; also of one without numbers, which has no memory to count in.
template <class Scalar>
Matrix<Scalar> some_rows(const Matrix<Scalar>& x, Index first, Index count) {
  if (x.size() == 0) return Matrix<Scalar>(count, x.cols());
  return x.middleRows(first, count);
}

/// Equal bits, or NaN on both sides.
template <class A, class B>
::testing::AssertionResult same(const Eigen::DenseBase<A>& actual,
                                const Eigen::DenseBase<B>& expected) {
  const auto& a = actual.derived();
  const auto& e = expected.derived();
  if (a.rows() != e.rows() || a.cols() != e.cols()) return shapes_differ(widened(a), widened(e));
  for (Index i = 0; i < a.rows(); ++i) {
    for (Index j = 0; j < a.cols(); ++j) {
      const typename A::Scalar x = a(i, j), y = e(i, j);
      if (same_bits_of(x, y) || (Eigen::numext::isnan(x) && Eigen::numext::isnan(y))) continue;
      return ::testing::AssertionFailure()
             << "element (" << i << ", " << j << ") of " << a.rows() << " x " << a.cols() << " is "
             << float(x) << ", in the other call " << float(y);
    }
  }
  return ::testing::AssertionSuccess();
}

/// NaN, which equals nothing, as a number that nothing else is.
inline Reference told(Reference x) {
  for (Index n = 0; n < x.size(); ++n) {
    if (std::isnan(x.data()[n])) x.data()[n] = 1e30L;
  }
  return x;
}
/// As the oracle says, NaN and infinities in the same places.
template <class Actual>
::testing::AssertionResult agrees(const Eigen::DenseBase<Actual>& actual, const Reference& expected,
                                  long double tolerance) {
  return near(told(widened(actual)), told(expected), tolerance);
}
/// The largest finite number by its magnitude; 0 where there is none.
template <class Derived>
long double largest(const Eigen::DenseBase<Derived>& x) {
  long double most = 0;
  const Reference wide = widened(x);
  for (Index n = 0; n < wide.size(); ++n) {
    const long double a = std::abs(wide.data()[n]);
    if (std::isfinite(a) && a > most) most = a;
  }
  return most;
}

}  // namespace fuzz
