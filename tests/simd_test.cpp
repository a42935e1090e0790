// tests/simd_test.cpp: every operation of Simd<Scalar> against its scalar definition, lane by lane.
// SPDX-License-Identifier: MIT
#include <attn/base/simd.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/scalar_names.h"
#include "support/special_values.h"

namespace {

using support::kInfinity;
using support::kNaN;

template <class Scalar>
class SimdOperations : public ::testing::Test {
 protected:
  using Simd = attn::detail::Simd<Scalar>;
  static constexpr int kWidth = Simd::width;

  struct Lanes {
    alignas(64) Scalar at[static_cast<std::size_t>(kWidth)];
  };

  /// Numbers of many magnitudes, both zeros, infinities; the number of them is a multiple of the width.
  static std::vector<Lanes> samples(std::uint32_t seed) {
    support::Uniform number(seed);
    std::vector<Lanes> all(64);
    const Scalar special[] = {
        0, -Scalar(0), 1, -1, kInfinity<Scalar>, -kInfinity<Scalar>, Scalar(1e-30), Scalar(1e30)};
    int n = 0;
    for (Lanes& lanes : all) {
      for (Scalar& x : lanes.at) {
        const auto random = static_cast<Scalar>(number());
        x = ++n % 3 == 0 ? special[(static_cast<unsigned>(n) * 7u + seed) % 8u]
                         : random * std::pow(Scalar(10), Scalar(n % 9));
      }
    }
    return all;
  }

  /// The bits of f on packets are those of `expected` on each lane. (NaN: any NaN.)
  template <class Packets, class Scalars>
  static void check(const char* name, Packets f, Scalars expected) {
    const auto as = samples(1), bs = samples(2), cs = samples(3);
    for (std::size_t n = 0; n < as.size(); ++n) {
      Lanes out;
      Simd::store(out.at, f(Simd::load(as[n].at), Simd::load(bs[n].at), Simd::load(cs[n].at)));
      for (int w = 0; w < kWidth; ++w) {
        const Scalar a = as[n].at[w], b = bs[n].at[w], c = cs[n].at[w], e = expected(a, b, c);
        if (std::isnan(e)) {
          ASSERT_TRUE(std::isnan(out.at[w])) << name << " of " << a << ", " << b << ", " << c;
        } else {
          ASSERT_EQ(out.at[w], e) << name << " of " << a << ", " << b << ", " << c;
        }
      }
    }
  }
};
using Scalars = ::testing::Types<float, double, long double>;
TYPED_TEST_SUITE(SimdOperations, Scalars, support::ScalarNames);

TYPED_TEST(SimdOperations, LoadStoreAndSetKeepEveryLane) {
  using S = attn::detail::Simd<TypeParam>;
  constexpr int width = TestFixture::kWidth;
  alignas(64) TypeParam from[width + 1], to[width + 1];
  for (int i = 0; i <= width; ++i) from[i] = static_cast<TypeParam>(i + 1);
  S::storeu(to + 1, S::loadu(from + 1));
  for (int w = 1; w <= width; ++w) EXPECT_EQ(to[w], from[w]);
  S::store(to, S::load(from));
  for (int w = 0; w < width; ++w) EXPECT_EQ(to[w], from[w]);
  S::store(to, S::set(TypeParam(42)));
  for (int w = 0; w < width; ++w) EXPECT_EQ(to[w], TypeParam(42));
  S::store(to, S::iota());
  for (int w = 0; w < width; ++w) EXPECT_EQ(to[w], TypeParam(w));
  EXPECT_EQ(to[width], from[width]) << "a store went past its packet";
}

TYPED_TEST(SimdOperations, ArithmeticRoundsAsScalarsDo) {
  using S = attn::detail::Simd<TypeParam>;
  using T = TypeParam;
  using P = typename S::Packet;
  using F = TestFixture;
  F::check(
      "add", [](P a, P b, P) { return S::add(a, b); }, [](T a, T b, T) { return a + b; });
  F::check(
      "sub", [](P a, P b, P) { return S::sub(a, b); }, [](T a, T b, T) { return a - b; });
  F::check(
      "mul", [](P a, P b, P) { return S::mul(a, b); }, [](T a, T b, T) { return a * b; });
  F::check(
      "div", [](P a, P b, P) { return S::div(a, b); }, [](T a, T b, T) { return a / b; });
  F::check(
      "abs", [](P a, P, P) { return S::abs(a); }, [](T a, T, T) { return std::abs(a); });
  F::check(
      "max", [](P a, P b, P) { return S::max(a, b); }, [](T a, T b, T) { return std::max(a, b); });
  F::check(
      "min", [](P a, P b, P) { return S::min(a, b); }, [](T a, T b, T) { return std::min(a, b); });
}

// The exact answer is what both roundings would have to lie around: one ulp of the larger part.
TYPED_TEST(SimdOperations, FmaddRoundsOnceWhereTheHardwareFuses) {
  if (!support::kRoundsEachStep) GTEST_SKIP() << "x87 rounds where it stores";
  using S = attn::detail::Simd<TypeParam>;
  using T = TypeParam;
  using P = typename S::Packet;
  volatile bool hardware = attn::detail::kHardwareFma && !std::is_same_v<T, long double>;
  TestFixture::check(
      "fmadd", [](P a, P b, P c) { return S::fmadd(a, b, c); },
      [&](T a, T b, T c) {
        if (hardware) return std::fma(a, b, c);
        volatile T product = a * b;
        return T(product + c);
      });
  TestFixture::check(
      "accumulate",
      [](P a, P b, P c) {
        S::accumulate(a, b, c);
        return c;
      },
      [&](T a, T b, T c) {
        if (hardware) return std::fma(a, b, c);
        volatile T product = a * b;
        return T(product + c);
      });
}

// (1 + ε)² − (1 + 2ε) is ε² where the product and the difference fuse, 0 where the product rounds by itself.
TYPED_TEST(SimdOperations, MulNeverFusesIntoALaterAddition) {
  using S = attn::detail::Simd<TypeParam>;
  constexpr TypeParam epsilon = std::numeric_limits<TypeParam>::epsilon();
  typename TestFixture::Lanes x, y, out;
  for (TypeParam& lane : x.at) lane = 1 + epsilon;
  for (TypeParam& lane : y.at) lane = 1 + 2 * epsilon;
  S::store(out.at, S::sub(S::mul(S::load(x.at), S::load(x.at)), S::load(y.at)));
  for (const TypeParam lane : out.at) EXPECT_EQ(lane, TypeParam(0));
  for (TypeParam& lane : y.at) lane = -lane;
  S::store(out.at, S::add(S::mul(S::load(x.at), S::load(x.at)), S::load(y.at)));
  for (const TypeParam lane : out.at) EXPECT_EQ(lane, TypeParam(0));
}

TYPED_TEST(SimdOperations, MaxAndMinReturnTheirFirstArgumentWhereEitherIsNaN) {
  using S = attn::detail::Simd<TypeParam>;
  const TypeParam nan = kNaN<TypeParam>;
  typename TestFixture::Lanes out;
  const auto first = [&](TypeParam a, TypeParam b) {
    S::store(out.at, S::max(S::set(a), S::set(b)));
    const TypeParam max = out.at[0];
    S::store(out.at, S::min(S::set(a), S::set(b)));
    EXPECT_TRUE(support::same_bits_of(max, out.at[0]));
    return max;
  };
  EXPECT_TRUE(std::isnan(first(nan, TypeParam(3))));
  EXPECT_EQ(first(TypeParam(3), nan), TypeParam(3));
  EXPECT_TRUE(std::isnan(first(nan, -kInfinity<TypeParam>)));
}

TYPED_TEST(SimdOperations, MasksSelectLaneByLane) {
  using S = attn::detail::Simd<TypeParam>;
  using T = TypeParam;
  using P = typename S::Packet;
  using F = TestFixture;
  const T nan = kNaN<T>;
  const auto one = [](typename S::Mask m) { return S::select(m, S::set(T(1)), S::set(T(0))); };
  F::check(
      "less", [&](P a, P b, P) { return one(S::less(a, b)); },
      [](T a, T b, T) { return T(a < b); });
  F::check(
      "less_equal", [&](P a, P b, P) { return one(S::less_equal(a, b)); },
      [](T a, T b, T) { return T(a <= b); });
  F::check(
      "equal", [&](P a, P b, P) { return one(S::equal(a, b)); },
      [](T a, T b, T) { return T(a == b); });
  F::check(
      "and", [&](P a, P b, P c) { return one(S::mask_and(S::less(a, b), S::less(b, c))); },
      [](T a, T b, T c) { return T(a < b && b < c); });
  F::check(
      "or", [&](P a, P b, P c) { return one(S::mask_or(S::less(a, b), S::less(b, c))); },
      [](T a, T b, T c) { return T(a < b || b < c); });
  F::check(
      "not", [&](P a, P b, P) { return one(S::mask_not(S::less(a, b))); },
      [](T a, T b, T) { return T(!(a < b)); });
  F::check(
      "not equal to NaN", [&](P a, P, P) { return one(S::mask_not(S::equal(a, S::set(nan)))); },
      [](T, T, T) { return T(1); });
  F::check(
      "select drops NaN", [&](P a, P b, P) { return S::select(S::less(a, b), a, S::set(nan)); },
      [&](T a, T b, T) { return a < b ? a : nan; });
  F::check(
      "where_less drops NaN", [&](P a, P b, P) { return S::where_less(a, b, a, S::set(nan)); },
      [&](T a, T b, T) { return a < b ? a : nan; });
  F::check(
      "NaN is not less", [&](P a, P b, P) { return S::where_less(S::set(nan), a, a, b); },
      [](T, T b, T) { return b; });
}

TYPED_TEST(SimdOperations, ReductionsCombineAllLanes) {
  using S = attn::detail::Simd<TypeParam>;
  constexpr int width = TestFixture::kWidth;
  for (int peak = 0; peak < width; ++peak) {
    typename TestFixture::Lanes x;
    for (int w = 0; w < width; ++w) x.at[w] = static_cast<TypeParam>(w == peak ? 100 : -w - 1);
    EXPECT_EQ(S::reduce_max(S::load(x.at)), TypeParam(100));
    for (int w = 0; w < width; ++w)
      x.at[w] = static_cast<TypeParam>(1 << (w % 16));  // exact in any order
    TypeParam sum = 0;
    for (const TypeParam lane : x.at) sum += lane;
    EXPECT_EQ(S::reduce_add(S::load(x.at)), sum);
  }
}

// Each row's maximum is kept within 128 bits, and found there again.
TYPED_TEST(SimdOperations, FoldedRowsGiveTheMaximumOfEachOfThem) {
  using S = attn::detail::Simd<TypeParam>;
  constexpr int width = TestFixture::kWidth, folded = S::folded;
  for (int peak = 0; peak < width; ++peak) {
    typename S::Packet rows[folded];
    typename TestFixture::Lanes x;
    for (int i = 0; i < folded; ++i) {
      for (int j = 0; j < width; ++j)
        x.at[j] = static_cast<TypeParam>(j == peak ? 100 + i : 10 * i - j);
      rows[i] = S::load(x.at);
    }
    const auto all = S::fold_max(rows);
    S::store(x.at, all);
    for (int j = peak / folded * folded, end = j + folded; j < end; ++j)
      EXPECT_EQ(x.at[j], TypeParam(100 + j % folded)) << "lane " << j;
    const auto expect_row = [&](auto at) {
      constexpr int row = decltype(at)::value;
      if constexpr (row < folded) {
        S::store(x.at, S::template unfold<row>(all));
        EXPECT_EQ(*std::max_element(x.at, x.at + width), TypeParam(100 + row));
      }
    };
    expect_row(attn::detail::lanes_t<0>{});
    expect_row(attn::detail::lanes_t<1>{});
    expect_row(attn::detail::lanes_t<2>{});
    expect_row(attn::detail::lanes_t<3>{});
  }
}

TYPED_TEST(SimdOperations, RowsAreReducedToOneLaneEachInOneOrder) {
  using S = attn::detail::Simd<TypeParam>;
  constexpr int width = TestFixture::kWidth;
  typename S::Packet rows[width];
  for (int i = 0; i < width; ++i) {
    typename TestFixture::Lanes x;
    for (int w = 0; w < width; ++w) x.at[w] = TypeParam(1) / static_cast<TypeParam>(3 + 7 * i + w);
    rows[i] = S::load(x.at);
  }
  const auto alone = [&](int i) {
    typename TestFixture::Lanes sum;
    S::store(sum.at, S::add_rows(1, [&](int) { return rows[i]; }));
    return sum.at[0];
  };
  for (int count = 1; count <= width; ++count) {
    const auto row = [&](int i) {
      EXPECT_LT(i, count);
      return rows[i];
    };
    typename TestFixture::Lanes sum, largest;
    S::store(sum.at, S::add_rows(count, row));
    S::store(largest.at, S::max_rows(count, row));
    for (int i = 0; i < count; ++i) {
      TypeParam expected = 0;
      for (int w = 0; w < width; ++w)
        expected += TypeParam(1) / static_cast<TypeParam>(3 + 7 * i + w);
      EXPECT_NEAR(static_cast<double>(sum.at[i]), static_cast<double>(expected), 1e-6);
      EXPECT_EQ(sum.at[i], alone(i)) << "row " << i << " of " << count;
      EXPECT_EQ(largest.at[i], S::reduce_max(rows[i])) << "row " << i << " of " << count;
    }
  }
}

TYPED_TEST(SimdOperations, TransposeUnitsExchangesGroupsOfFour) {
  using S = attn::detail::Simd<TypeParam>;
  constexpr int width = TestFixture::kWidth;
  if constexpr (width >= 4) {
    constexpr int units = width / 4;
    typename S::Packet rows[units];
    for (int i = 0; i < units; ++i) {
      typename TestFixture::Lanes x;
      for (int w = 0; w < width; ++w) x.at[w] = static_cast<TypeParam>(100 * i + w);
      rows[i] = S::load(x.at);
    }
    S::template transpose_units<4>(rows);
    for (int i = 0; i < units; ++i) {
      typename TestFixture::Lanes x;
      S::store(x.at, rows[i]);
      for (int w = 0; w < width; ++w)
        EXPECT_EQ(x.at[w], static_cast<TypeParam>(100 * (w / 4) + 4 * i + w % 4));
    }
  }
}

TYPED_TEST(SimdOperations, TransposeMakesRowsColumns) {
  using S = attn::detail::Simd<TypeParam>;
  constexpr int width = TestFixture::kWidth;
  typename S::Packet rows[width];
  typename TestFixture::Lanes x;
  for (int i = 0; i < width; ++i) {
    for (int j = 0; j < width; ++j) x.at[j] = static_cast<TypeParam>(100 * i + j);
    rows[i] = S::load(x.at);
  }
  S::transpose(rows);
  for (int i = 0; i < width; ++i) {
    S::store(x.at, rows[i]);
    for (int j = 0; j < width; ++j) EXPECT_EQ(x.at[j], TypeParam(100 * j + i));
  }
}

TYPED_TEST(SimdOperations, IsFiniteReadsTheBits) {
  const auto is_finite = [](TypeParam x) { return attn::detail::is_finite(x); };
  for (const TypeParam x :
       {TypeParam(0), -TypeParam(0), TypeParam(1), std::numeric_limits<TypeParam>::max(),
        std::numeric_limits<TypeParam>::lowest(), std::numeric_limits<TypeParam>::denorm_min()}) {
    EXPECT_TRUE(is_finite(x)) << x;
  }
  for (const TypeParam x :
       {kNaN<TypeParam>, -kNaN<TypeParam>, kInfinity<TypeParam>, -kInfinity<TypeParam>,
        std::numeric_limits<TypeParam>::signaling_NaN()}) {
    EXPECT_FALSE(is_finite(x)) << x;
  }
}

TEST(SimdWidth, IsOneWithoutPackets) {
  static_assert(attn::detail::Simd<long double>::width == 1);
  static_assert(attn::detail::Simd<int>::width == 1);
#if defined(EIGEN_DONT_VECTORIZE)
  static_assert(attn::detail::Simd<float>::width == 1);
  static_assert(attn::detail::Simd<double>::width == 1);
#elif defined(EIGEN_VECTORIZE_SSE2)
  static_assert(attn::detail::Simd<float>::width >= 4);
  static_assert(attn::detail::Simd<double>::width >= 2);
#endif
}

}  // namespace
