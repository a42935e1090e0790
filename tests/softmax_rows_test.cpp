// tests/softmax_rows_test.cpp: the softmax of a chunk's rows by its verbs, against plain loops.
// SPDX-License-Identifier: MIT
#include <attn/kernel/softmax_rows.h>
#include <attn/workspace.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "support/scalar_names.h"
#include "support/special_values.h"

namespace {

using attn::Index;
namespace kernel = attn::kernel;

template <class Scalar>
class SoftmaxRows : public ::testing::Test {
 protected:
  using S = attn::detail::Simd<Scalar>;
  using Size = kernel::TileSize<Scalar>;
  using Softmax = kernel::SoftmaxRows<Scalar>;
  static constexpr Index kRows = 3 * Size::rows, kFeatures = Size::panel;

  SoftmaxRows()
      : states_(memory_.reserve(2 * kStates + kernel::SettledRows<Scalar>::total(kRows, kFeatures)),
                kRows, kFeatures),
        part_(states_.maximum + kStates, kRows, kFeatures),
        settled_(states_.maximum + 2 * kStates, kRows, kFeatures) {
    std::mt19937 engine(3);
    for (Scalar& x : score_) x = static_cast<Scalar>(engine() % 100u) / Scalar(16);
    // What memory held before is nobody's business.
    const Scalar nan = support::kNaN<Scalar>;
    std::fill_n(states_.maximum, 2 * kStates, nan);
  }

  /// Scores of key block `block` of a strip: one panel. Features are all 1, so o is l.
  void see(Softmax& softmax, Index strip, Index block) {
    const kernel::Strip rows = strips_[strip];
    alignas(64) Scalar s[Size::rows * Size::score_stride], lane_max[Size::rows * S::width];
    for (int i = 0; i < rows.rows; ++i) {
      for (Index j = 0; j < Size::panel; ++j)
        s[i * Size::score_stride + j] = score(rows.first + i, block, j);
      for (Index w = 0; w < S::width; ++w) {
        Scalar& most = lane_max[i * S::width + w] = s[i * Size::score_stride + w];
        for (Index j = w; j < Size::panel; j += S::width)
          most = std::max(most, s[i * Size::score_stride + j]);
      }
    }
    const kernel::DepthRange all{0, Size::panel};
    const Scalar* const r = softmax.advance(rows, lane_max);
    softmax.weigh(rows, r, s, {&all, 1}, kernel::Hidden::zero);
    for (int i = 0; i < rows.rows; ++i) {
      Scalar sum = 0;
      for (Index j = 0; j < Size::panel; ++j) sum += s[i * Size::score_stride + j];
      Scalar* const o = softmax.output(rows.first + i);
      for (Index c = 0; c < kFeatures; ++c) o[c] = r == nullptr ? sum : r[i] * o[c] + sum;
    }
  }
  const Scalar& score(Index row, Index block, Index j) const {
    return score_[std::size_t((row * 31 + block * 7 + j) % 997)];
  }

  /// A row's l and o beside its true sum over these blocks.
  void check(const Softmax& softmax, Index row, const std::vector<Index>& blocks) const {
    long double m = -1, l = 0;
    for (const Index b : blocks)
      for (Index j = 0; j < Size::panel; ++j)
        m = std::max(m, static_cast<long double>(score(row, b, j)));
    for (const Index b : blocks)
      for (Index j = 0; j < Size::panel; ++j)
        l += std::exp(static_cast<long double>(score(row, b, j)) - m);
    const double want = static_cast<double>(l), near = 1e-5 * (1 + want);
    EXPECT_NEAR(static_cast<double>(softmax.sum(row)), want, near) << "row " << row;
    EXPECT_NEAR(static_cast<double>(softmax.output(row)[kFeatures - 1]), want, near)
        << "row " << row;
    if (!blocks.empty()) {
      EXPECT_EQ(static_cast<long double>(softmax.maximum(row)), m);
    }
  }
  void check(const Softmax& softmax, Index strip, Index rows,
             const std::vector<Index>& blocks) const {
    for (Index i = 0; i < rows; ++i) check(softmax, strip * rows + i, blocks);
  }

  static constexpr Index kStates = kernel::RowStates<Scalar>::total(kRows, kFeatures);
  attn::Workspace<Scalar> memory_;
  kernel::RowStates<Scalar> states_, part_;
  kernel::SettledRows<Scalar> settled_;
  kernel::Strips strips_ = kernel::Strips::even<Scalar>(kRows);
  Scalar score_[997];
};
using Scalars = ::testing::Types<float, double, long double>;
TYPED_TEST_SUITE(SoftmaxRows, Scalars, support::ScalarNames);

TYPED_TEST(SoftmaxRows, StripsBeginInAnyOrder) {
  typename TestFixture::Softmax softmax(this->states_, this->settled_);
  const Index rows = TestFixture::Size::rows;
  for (const Index first : {Index(0), Index(1), Index(2)}) {
    softmax.clear(TestFixture::kRows);
    this->see(softmax, first, 0);
    for (Index strip = 0; strip < 3; ++strip) this->see(softmax, strip, 1);
    softmax.complete();
    for (Index strip = 0; strip < 3; ++strip) {
      const std::vector<Index> seen =
          strip == first ? std::vector<Index>{0, 1} : std::vector<Index>{1};
      this->check(softmax, strip, rows, seen);
    }
  }
}

TYPED_TEST(SoftmaxRows, RowsThatSeeNothingAreZeros) {
  typename TestFixture::Softmax softmax(this->states_, this->settled_);
  for (const Index seen : {Index(-1), Index(0), Index(1)}) {
    softmax.clear(TestFixture::kRows);
    if (seen >= 0) this->see(softmax, seen, 2);
    softmax.complete();
    for (Index strip = 0; strip < 3; ++strip)
      this->check(softmax, strip, TestFixture::Size::rows,
                  strip == seen ? std::vector<Index>{2} : std::vector<Index>{});
  }
}

TYPED_TEST(SoftmaxRows, WhatIsSettledComesBack) {
  typename TestFixture::Softmax softmax(this->states_, this->settled_);
  const Index together = TestFixture::Size::settled_keys;
  softmax.clear(TestFixture::kRows);
  softmax.reach(0);
  this->see(softmax, 1, 0);
  softmax.reach(together);
  this->see(softmax, 0, 1);
  this->see(softmax, 1, 2);
  softmax.reach(2 * together);
  this->see(softmax, 1, 3);
  softmax.complete();
  const Index rows = TestFixture::Size::rows;
  this->check(softmax, 0, rows, {1});
  this->check(softmax, 1, rows, {0, 2, 3});
  this->check(softmax, 2, rows, {});
}

TYPED_TEST(SoftmaxRows, PartsMergeIntoTheWhole) {
  typename TestFixture::Softmax softmax(this->states_, this->settled_);
  softmax.clear(TestFixture::kRows);
  softmax.start();
  const kernel::SettledRows<TypeParam> none;
  for (Index n = 0; n < 3; ++n) {
    typename TestFixture::Softmax part(this->part_, none);
    part.clear(TestFixture::kRows);
    for (Index strip = n; strip < 3; ++strip) this->see(part, strip, n);
    part.complete();
    softmax.settle(part.states());
  }
  softmax.complete();
  const Index rows = TestFixture::Size::rows;
  this->check(softmax, 0, rows, {0});
  this->check(softmax, 1, rows, {0, 1});
  this->check(softmax, 2, rows, {0, 1, 2});
}

TYPED_TEST(SoftmaxRows, ARowStartsFromALogitUnlessThatIsHidden) {
  typename TestFixture::Softmax softmax(this->states_, this->settled_);
  softmax.clear(TestFixture::kRows);
  softmax.start();
  softmax.see(0, TypeParam(2));
  softmax.see(1, kernel::hidden_score<TypeParam>());
  softmax.complete();
  EXPECT_EQ(softmax.maximum(0), TypeParam(2));
  EXPECT_EQ(softmax.sum(0), TypeParam(1));
  EXPECT_EQ(softmax.sum(1), TypeParam(0));
}

}  // namespace
