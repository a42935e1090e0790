// tests/row_sums_test.cpp: sums with compensation, and the runs that sums of a block fall into.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/kernel/row_sums.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "support/scalar_names.h"
#include "support/special_values.h"

namespace {

using attn::Index;
using attn::kernel::DepthRange;
using attn::kernel::Runs;

template <class Scalar>
class CompensatedSums : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(CompensatedSums, Scalars, support::ScalarNames);

// Each term by itself is lost in rounding: 4096 quarters of an ulp are 1024 of them.
TYPED_TEST(CompensatedSums, KeepWhatRoundingTakes) {
  if (!support::kRoundsEachStep) GTEST_SKIP() << "x87 rounds where it stores";
  using S = attn::detail::Simd<TypeParam>;
  using Sum = attn::kernel::CompensatedSum<S>;
  const TypeParam ulp = std::numeric_limits<TypeParam>::epsilon();
  const auto one = S::set(TypeParam(1)), term = S::set(ulp / 4);
  Sum sum{one, S::set(TypeParam(0))}, of_parts = sum;
  for (int n = 0; n < 4096; ++n) {
    sum = Sum::combine(sum, one, term);
    of_parts = Sum::combine(of_parts, one, Sum::product({term, S::set(TypeParam(0))}, one));
  }
  EXPECT_EQ(S::first(sum.sum), TypeParam(1) + 1024 * ulp);
  EXPECT_EQ(S::first(of_parts.sum), TypeParam(1) + 1024 * ulp);
}

// r · sum loses as well: a third, times itself, a thousand times, against the same in more digits.
TYPED_TEST(CompensatedSums, RescaleWithoutLoss) {
  using S = attn::detail::Simd<TypeParam>;
  using Sum = attn::kernel::CompensatedSum<S>;
  if (!attn::detail::kHardwareFma) GTEST_SKIP() << "products lose half an ulp without fused steps";
  const TypeParam r = TypeParam(0.999), x = TypeParam(1) / 3;
  Sum sum{S::set(TypeParam(0)), S::set(TypeParam(0))};
  long double exact = 0;
  for (int n = 0; n < 10000; ++n) {
    sum = Sum::combine(sum, S::set(r), S::set(x));
    exact = exact * (long double)(r) + (long double)(x);
  }
  EXPECT_LE(std::abs(double(S::first(sum.sum) - exact)),
            double(exact) * std::numeric_limits<TypeParam>::epsilon());
}

/// What is visited, run by run: "a-b c-d | e-f".
template <Index Keys>
std::string runs_of(const std::vector<DepthRange>& visited) {
  attn::kernel::SumRuns<float, Keys> run(Runs{visited.data(), int(visited.size())});
  std::string text;
  do {
    if (!text.empty()) text += " |";
    const Runs pieces = run.next();
    for (int n = 0; n < pieces.count; ++n) {
      text += (text.empty() ? "" : " ") + std::to_string(pieces.first[n].begin) + "-" +
              std::to_string(pieces.first[n].end);
    }
  } while (!run.last());
  return text;
}

TEST(SumRuns, EndAtAbsoluteMultiples) {
  EXPECT_EQ(runs_of<64>({{0, 64}}), "0-64");
  EXPECT_EQ(runs_of<64>({{0, 68}}), "0-64 | 64-68");
  EXPECT_EQ(runs_of<64>({{32, 160}}), "32-64 | 64-128 | 128-160");
  EXPECT_EQ(runs_of<64>({{0, 32}, {64, 192}}), "0-32 | 64-128 | 128-192");
  EXPECT_EQ(runs_of<128>({{0, 32}, {64, 192}}), "0-32 64-128 | 128-192");
  EXPECT_EQ(runs_of<64>({{192, 196}}), "192-196");
}

}  // namespace
