// tests/mask_work_test.cpp: what masks save: products counted by the scalar, lanes by the mask.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random.h"

namespace {

using attn::align;
using Eigen::Index;
using Eigen::MatrixXf;
using support::same_bits;

/// A number that counts its products, and how often one is copied out of some memory: the engine serves it by the schedule of
/// all scalars.
struct Counted {
  double value = 0;
  static inline long products = 0, reads = 0;
  static inline const Counted *first = nullptr, *last = nullptr;  // the memory that is watched

  Counted() = default;
  Counted(const Counted& other) : value(other.value) { reads += first <= &other && &other < last; }
  Counted& operator=(const Counted& other) {
    reads += first <= &other && &other < last;
    value = other.value;
    return *this;
  }
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

TEST(MaskWork, OfPackedDocumentsIsTheirOwn) {
  std::vector<int> ids, shuffled;
  for (int i = 0; i < 1024; ++i) ids.push_back(i / 128), shuffled.push_back(i / 64 % 2);
  const double all = work(1024, 1024);
  EXPECT_NEAR(work(1024, 1024, attn::segments(ids)) / all, 1. / 8, 0.02);
  EXPECT_NEAR(work(1024, 1024, attn::segments(ids), attn::causal()) / all, 1. / 16, 0.02);
  // In any order panel by panel.
  EXPECT_NEAR(work(1024, 1024, attn::segments(shuffled)) / all, 1. / 2, 0.03);
}

TEST(MaskWork, OfCoarseBlocksIsThoseThatAreSeen) {
  const Eigen::Index n = 16;
  Eigen::Matrix<bool, -1, -1> B = Eigen::Matrix<bool, -1, -1>::Constant(n, n, false);
  for (Eigen::Index i = 0; i < n; ++i)
    for (Eigen::Index k = 0; k < 4; ++k) B(i, (i * 3 + k * 5) % n) = true;
  const double all = work(1024, 1024);
  EXPECT_NEAR(work(1024, 1024, attn::block_sparse(B, 64)) / all, 1. / 4, 0.03);
  EXPECT_NEAR(work(1024, 1024, !attn::block_sparse(B, 64)) / all, 3. / 4, 0.03);
}

TEST(MaskWork, OfATreeLeavesOutOtherBranches) {
  std::vector<int> parents;  // two chains of 256 behind a common root
  for (int t = 0; t < 513; ++t) parents.push_back(t == 257 ? 0 : t - 1);
  EXPECT_NEAR(work(513, 513, attn::tree(parents)) / work(513, 513), 1. / 4, 0.03);
}

/// Reads of the keys [begin, end), which are values too, in a call of 64 rows and 600 keys.
template <class... Options>
long reads(Index begin, Index end, const Options&... options) {
  using Rows = Eigen::Matrix<Counted, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const Rows Q = Rows::Constant(64, 8, 0.5), K = Rows::Constant(600, 8, 0.25);
  Rows Y;
  Counted::first = K.data() + begin * 8;
  Counted::last = K.data() + end * 8;
  Counted::reads = 0;
  attn::attention(Q, K, K, attn::into(Y), options...);
  Counted::first = Counted::last = nullptr;
  return Counted::reads;
}

TEST(MaskWork, DoesNotReadWhatNoRowSees) {
  EXPECT_GT(reads(0, 600), 0);
  EXPECT_EQ(reads(64, 600, attn::causal_from(0)), 0);
  EXPECT_GT(reads(63, 64, attn::causal_from(0)), 0);
  EXPECT_EQ(reads(4, 596, attn::key_range(599, 600) || attn::key_lengths(4)), 0);  // whole panels
  std::vector<int> queries(64, 5), keys(600, 4);
  for (std::size_t j = 104; j < 600; ++j) keys[j] = j < 200 ? 5 : 6;
  EXPECT_EQ(reads(0, 104, attn::segments(queries, keys)), 0);
  EXPECT_GT(reads(104, 105, attn::segments(queries, keys)), 0);
  EXPECT_EQ(reads(200, 600, attn::segments(queries, keys)), 0);
  keys[500] = 5;  // out of order now: whole panels
  EXPECT_EQ(reads(200, 500 / 16 * 16, attn::segments(queries, keys)), 0);
  Eigen::Matrix<bool, 1, 10> B;
  B << 1, 0, 0, 1, 0, 0, 0, 0, 1, 0;
  EXPECT_EQ(reads(64, 192, attn::block_sparse(B, 64)), 0);
  EXPECT_GT(reads(192, 193, attn::block_sparse(B, 64)), 0);
  EXPECT_EQ(reads(256, 512, attn::block_sparse(B, 64)), 0);
  EXPECT_EQ(reads(576, 600, attn::block_sparse(B, 64)), 0);
  EXPECT_EQ(reads(192, 256, !attn::block_sparse(B, 64)), 0);
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
  attn::detail::Cover cover(const attn::QueryRows& rows, attn::KeyRange range) const {
    return attn::detail::cover(bound, rows, range);
  }
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

  // Documents and blocks of whole panels: only where the rows of a strip belong to two of them.
  std::vector<int> ids;
  for (int i = 0; i < L; ++i) ids.push_back(i / 256);
  Asked segments, blocks;
  (void)attn::attention(Q, K, K, Watched<attn::detail::Segments>(attn::segments(ids), &segments));
  constexpr Index rows = attn::kernel::TileSize<float>::rows;
  EXPECT_LE(segments.lanes, 3 * rows * 512);
  Eigen::Matrix<bool, 4, 4> B = Eigen::Matrix<bool, 4, 4>::Identity();
  const auto sparse = attn::block_sparse(B, 256);
  (void)attn::attention(Q, K, K, Watched<std::decay_t<decltype(sparse)>>(sparse, &blocks));
  EXPECT_LE(blocks.lanes, 3 * rows * 512);
}

}  // namespace
