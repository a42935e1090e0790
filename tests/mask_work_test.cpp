// tests/mask_work_test.cpp: what masks save: products counted by the scalar, lanes by the mask.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "support/matrix_matchers.h"
#include "support/random.h"

namespace {

using attn::align;
using Eigen::Index;
using Eigen::MatrixXf;
using support::same_bits;

/// A number that counts its products: the engine serves it by the schedule of all scalars.
struct Counted {
  double value = 0;
  static inline long products = 0;

  Counted() = default;
  Counted(double v) : value(v) {}  // NOLINT: numbers convert
  Counted(int v) : value(v) {}     // NOLINT
  explicit operator int() const { return int(value); }

  friend Counted operator*(Counted a, Counted b) {
    ++products;
    return a.value * b.value;
  }
  friend Counted operator+(Counted a, Counted b) { return a.value + b.value; }
  friend Counted operator-(Counted a, Counted b) { return a.value - b.value; }
  friend Counted operator/(Counted a, Counted b) { return a.value / b.value; }
  Counted& operator+=(Counted b) { return *this = *this + b; }
  Counted& operator-=(Counted b) { return *this = *this - b; }
  Counted& operator*=(Counted b) { return *this = *this * b; }
  Counted& operator/=(Counted b) { return *this = *this / b; }
  friend bool operator<(Counted a, Counted b) { return a.value < b.value; }
  friend bool operator==(Counted a, Counted b) { return a.value == b.value; }
  friend Counted exp(Counted a) { return std::exp(a.value); }
  friend Counted sqrt(Counted a) { return std::sqrt(a.value); }
};

}  // namespace

namespace Eigen {
template <>
struct NumTraits<Counted> : NumTraits<double> {
  using Real = Counted;
  using NonInteger = Counted;
  using Literal = Counted;
  using Nested = Counted;
};
}  // namespace Eigen

namespace {

using Counts = Eigen::Matrix<Counted, Eigen::Dynamic, Eigen::Dynamic>;

/// Products of one call of Lq queries and Lk keys, 8 features.
template <class... Options>
double work(Index queries, Index keys, const Options&... options) {
  const Counts Q = Counts::Constant(queries, 8, 0.5), K = Counts::Constant(keys, 8, 0.25);
  Counts Y;
  Counted::products = 0;
  attn::attention(Q, K, K, attn::into(Y), options...);
  return double(Counted::products);
}

TEST(MaskWork, OfNoMaskIsTwoProductsAPairAndFeature) {
  EXPECT_NEAR(work(512, 512) / (2. * 512 * 512 * 8), 1, 0.1);
}

TEST(MaskWork, OfCausalIsHalf) {
  const double all = work(1024, 1024);
  EXPECT_NEAR(work(1024, 1024, attn::causal()) / all, 0.5, 0.02);
  EXPECT_NEAR(work(1024, 1024, !attn::causal()) / all, 0.5, 0.02);
  EXPECT_NEAR(work(256, 1024, attn::causal(align::lower_right)) / work(256, 1024), 0.875, 0.02);
}

TEST(MaskWork, OfAWindowIsItsBand) {
  const double all = work(1024, 1024), band = work(1024, 1024, attn::window(31, 0));
  EXPECT_LT(band / all, 2 * 32. / 1024);
  EXPECT_GT(band / all, 31. / 1024);
}

TEST(MaskWork, OfPaddingIsWhatItsKeysCost) {
  const double all = work(512, 512);
  EXPECT_NEAR(work(512, 512, attn::key_lengths(128)) / all, 0.25, 0.02);
  EXPECT_NEAR(work(512, 512, attn::key_range(200, 264)) / all, 0.125, 0.02);
  EXPECT_LT(work(512, 512, attn::key_lengths(0)) / all, 0.02);
}

TEST(MaskWork, OfAUnionLeavesOutTheGap) {
  const double all = work(1024, 1024);
  const double both =
      work(1024, 1024, (attn::window(31, 0) || attn::key_lengths(4)) && attn::causal());
  EXPECT_LT(both / all, 2.5 * 36. / 1024);
}

TEST(MaskWork, OfADifferenceLeavesOutTheHole) {
  const double all = work(1024, 1024);
  EXPECT_NEAR(work(1024, 1024, !attn::key_range(100, 868)) / all, 0.25, 0.03);
}

/// A mask that notes which pairs it is asked about, and otherwise is the one it holds.
struct Asked {
  long lanes = 0;
  Index first = std::numeric_limits<Index>::max(), last = -1;
};
template <class Bound>
struct BoundWatched : attn::mask_base {
  Bound bound;
  Asked* asked;
  BoundWatched(Bound b, Asked* a) : bound(std::move(b)), asked(a) {}
  bool operator()(const attn::QueryRow& row, Index key) const { return bound(row, key); }
  attn::KeyRange keys(const attn::QueryRows& rows) const { return bound.keys(rows); }
  attn::KeyRange full_keys(const attn::QueryRows& rows) const { return bound.full_keys(rows); }
  template <class S>
  typename S::Mask lanes(const attn::QueryRow& row, Index key) const {
    asked->lanes += S::width;
    asked->first = std::min(asked->first, key);
    asked->last = std::max(asked->last, key + S::width - 1);
    return bound.template lanes<S>(row, key);
  }
};
template <class Mask>
struct Watched : attn::mask_base {
  Mask mask;
  Asked* asked;
  Watched(Mask m, Asked* a) : mask(std::move(m)), asked(a) {}
  auto bind(const attn::detail::CallShape& shape) const {
    auto bound = mask.bind(shape);
    return BoundWatched<decltype(bound)>(std::move(bound), asked);
  }
};

TEST(MaskWork, AsksLanesOnlyOnTheBoundary) {
  const Index L = 1024;
  const MatrixXf Q = support::uniform<float>(L, 8, 1), K = support::uniform<float>(L, 8, 2);
  Asked causal, lengths;
  const MatrixXf watched =
      attn::attention(Q, K, K, Watched<attn::detail::Causal>(attn::causal(), &causal));
  EXPECT_TRUE(same_bits(watched, attn::attention(Q, K, K, attn::causal())));
  // A row's own panel, and a second one where a strip's rows end in two.
  constexpr Index panel = attn::kernel::TileSize<float>::panel;
  EXPECT_GT(causal.lanes, L);
  EXPECT_LE(causal.lanes, 2 * L * panel);

  (void)attn::attention(Q, K, K,
                        Watched<attn::detail::KeyBounds>(attn::key_lengths(700), &lengths));
  EXPECT_LE(lengths.lanes, L * panel);
  EXPECT_GE(lengths.first, 700 / panel * panel);
  EXPECT_LT(lengths.last, (700 / panel + 1) * panel);
}

}  // namespace
