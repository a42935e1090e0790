// tests/gradient_bits_test.cpp: a row of dQ has the bits of its query, its dY, the keys it sees and
// the options; a row of dK and dV those of its key, its value and the queries that see it; nothing
// else changes one.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "support/any_mask.h"
#include "support/gradient_case.h"
#include "support/mask_cases.h"
#include "support/scalar_names.h"
#include "support/threads.h"

namespace {

using Eigen::Index;
using support::AnyMask;
using support::GradientCase;
using support::same_bits;
using support::Training;
using Case = GradientCase<float>;
using Matrix = Case::Matrix;

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

/// One call of each kind, so that each is instantiated once: the mask, the offset of the queries and
/// the number of workers are told at run time.
Training<float> attend(const Case& x, const AnyMask& mask, Index offset = 0, int workers = 1) {
  support::Threads pool;
  return support::trained(x, mask, attn::query_offset(offset), attn::on(pool, workers));
}
AnyMask everything() { return AnyMask(attn::window(-1, -1)); }

/// The queries [begin, end) of one sequence with all its keys, as a case.
template <class Scalar>
GradientCase<Scalar> queries_of(const GradientCase<Scalar>& x, Index b, Index begin, Index end) {
  const Index first = x.queries[at(b)] + begin;
  const Index keys = x.key_length(b), first_key = x.keys.size() == 2 ? 0 : x.keys[at(b)];
  GradientCase<Scalar> part({{0, end - begin}, {0, keys}, x.heads, x.kv_heads}, x.key_dim,
                            x.value_dim);
  part.Q = x.Q.middleRows(first, end - begin);
  part.dY = x.dY.middleRows(first, end - begin);
  part.K = x.K.middleRows(first_key, keys);
  part.V = x.V.middleRows(first_key, keys);
  return part;
}
template <class Scalar>
GradientCase<Scalar> sequence_of(const GradientCase<Scalar>& x, Index b) {
  return queries_of(x, b, 0, x.query_length(b));
}

/// Chunks and blocks and strips of all kinds.
Case one_head() { return {1100, 700, 13, 9}; }
Case grouped() { return {{{0, 333}, {0, 333}, 6, 2}, 16, 8}; }
Case ragged() { return {{{0, 5, 5, 300, 301, 420}, {0, 7, 20, 320, 640, 644}, 2, 2}, 8, 8}; }
Case shared() { return {{{0, 50, 250, 420}, {0, 333}, 4, 2}, 8, 8}; }

// ---- Threads --------------------------------------------------------------------------------

template <class Scalar>
class GradientBits : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(GradientBits, Scalars, support::ScalarNames);

TYPED_TEST(GradientBits, AreThoseOfOneThread) {
  support::Threads pool;
  for (const GradientCase<TypeParam>& x :
       {GradientCase<TypeParam>(1100, 700, 13, 9), GradientCase<TypeParam>(90, 2500, 13, 9),
        GradientCase<TypeParam>({{0, 5, 5, 300, 301, 420}, {0, 7, 20, 320, 640, 644}, 4, 2}, 8, 8),
        GradientCase<TypeParam>({{0, 50, 250, 420}, {0, 333}, 4, 2}, 8, 8)}) {
    const auto serial = support::trained(x);
    for (const int workers : {1, 2, 3, 8}) {
      SCOPED_TRACE(testing::Message() << workers << " workers");
      expect_same_gradients(support::trained(x, attn::on(pool, workers)), serial);
      expect_same_gradients(support::trained(x, attn::parallel(workers)), serial);
    }
  }
}
TEST(GradientBits, AreThoseOfOneThreadUnderEveryMask) {
  for (const Case& x : {one_head(), grouped(), ragged(), shared()}) {
    const support::Bools sparse =
        support::random_bools(x.longest_query(), x.longest_key(), 7, 0.02);
    for (const AnyMask& mask : {AnyMask(attn::causal()), AnyMask(attn::window(90, 7)),
                                AnyMask(attn::keep(sparse)), AnyMask(!attn::window(40, 60))}) {
      const auto serial = attend(x, mask, 3);
      for (const int workers : {2, 3, 8}) {
        SCOPED_TRACE(testing::Message() << workers << " workers");
        expect_same_gradients(attend(x, mask, 3, workers), serial);
      }
    }
  }
}

// More chunks than may be under way at once.
TEST(GradientBits, AreThoseOfOneThreadOverManySequences) {
  std::vector<Index> queries = {0}, keys = {0};
  for (int b = 0; b < 1200; ++b) {
    queries.push_back(queries.back() + 8);
    keys.push_back(keys.back() + 12);
  }
  for (const std::vector<Index>& of_keys : {keys, std::vector<Index>{0, 40}}) {
    const Case x({queries, of_keys, 2, 1}, 16, 16);
    const auto serial = attend(x, everything());
    for (const int workers : {2, 5, 8})
      expect_same_gradients(attend(x, everything(), 0, workers), serial);
  }
}

// ---- Other rows, sequences, heads -----------------------------------------------------------

TYPED_TEST(GradientBits, OfAQueryAreThoseItHasAlone) {
  const GradientCase<TypeParam> x({{0, 300}, {0, 600}, 2, 1}, 59, 41);
  const auto all = support::trained(x);
  for (const auto& [begin, rows] : {std::pair<Index, Index>{0, 1},
                                    {11, 1},
                                    {95, 1},
                                    {96, 1},
                                    {299, 1},
                                    {9, 2},
                                    {9, 5},
                                    {9, 12},
                                    {9, 13},
                                    {90, 25},
                                    {90, 97},
                                    {107, 193}}) {
    const auto some = support::trained(queries_of(x, 0, begin, begin + rows));
    EXPECT_TRUE(same_bits(some.query, all.query.middleRows(begin, rows)))
        << rows << " rows from " << begin;
  }
}
TYPED_TEST(GradientBits, OfABatchAreThoseOfItsSequencesAlone) {
  const GradientCase<TypeParam> x({{0, 1, 1, 34, 147, 300}, {0, 257, 260, 261, 293, 600}, 4, 2}, 7,
                                  5);
  const auto all = support::trained(x);
  for (Index b = 0; b < x.sequences(); ++b) {
    SCOPED_TRACE(testing::Message() << "sequence " << b);
    const auto one = support::trained(sequence_of(x, b));
    EXPECT_TRUE(same_bits(one.query, all.query.middleRows(x.queries[at(b)], x.query_length(b))));
    EXPECT_TRUE(same_bits(one.key, all.key.middleRows(x.keys[at(b)], x.key_length(b))));
    EXPECT_TRUE(same_bits(one.value, all.value.middleRows(x.keys[at(b)], x.key_length(b))));
  }
}
TEST(GradientBits, OfAMaskedBatchAreThoseOfItsSequencesAlone) {
  const Case x = ragged();
  for (const AnyMask& mask : {AnyMask(attn::causal()), AnyMask(attn::window(31, 8))}) {
    const auto all = attend(x, mask, 2);
    for (Index b = 0; b < x.sequences(); ++b) {
      SCOPED_TRACE(testing::Message() << "sequence " << b);
      const auto one = attend(sequence_of(x, b), mask, 2);
      EXPECT_TRUE(same_bits(one.query, all.query.middleRows(x.queries[at(b)], x.query_length(b))));
      EXPECT_TRUE(same_bits(one.key, all.key.middleRows(x.keys[at(b)], x.key_length(b))));
      EXPECT_TRUE(same_bits(one.value, all.value.middleRows(x.keys[at(b)], x.key_length(b))));
    }
  }
}
TEST(GradientBits, OfAHeadAreThoseItHasAlone) {
  const Case x({{0, 110}, {0, 300}, 4, 4}, 14, 10);
  for (const AnyMask& mask : {everything(), AnyMask(attn::causal())}) {
    const auto all = attend(x, mask);
    for (Index h = 0; h < 4; ++h) {
      Case one(110, 300, 14, 10);
      one.Q = x.Q.middleCols(h * 14, 14);
      one.K = x.K.middleCols(h * 14, 14);
      one.V = x.V.middleCols(h * 10, 10);
      one.dY = x.dY.middleCols(h * 10, 10);
      const auto alone = attend(one, mask);
      EXPECT_TRUE(same_bits(alone.query, all.query.middleCols(h * 14, 14))) << "head " << h;
      EXPECT_TRUE(same_bits(alone.key, all.key.middleCols(h * 14, 14))) << "head " << h;
      EXPECT_TRUE(same_bits(alone.value, all.value.middleCols(h * 10, 10))) << "head " << h;
    }
  }
}

// ---- What nobody sees -----------------------------------------------------------------------

TEST(GradientBits, OfCausalQueriesAreThoseOfThePrefix) {
  const Case x(300, 600, 19, 11);
  for (const Index offset : {0, 290}) {
    const auto all = attend(x, AnyMask(attn::causal()), offset);
    for (const Index rows : {1, 2, 12, 13, 95, 96, 97, 193, 256, 299}) {
      const auto prefix = attend(queries_of(x, 0, 0, rows), AnyMask(attn::causal()), offset);
      EXPECT_TRUE(same_bits(prefix.query, all.query.topRows(rows))) << rows << " rows";
    }
  }
}
TEST(GradientBits, OfAKeyAreThoseOfTheQueriesThatSeeIt) {
  const Case x({{0, 1100}, {0, 1100}, 2, 1}, 11, 9);
  const AnyMask mask(attn::window(40, 3));
  const auto all = attend(x, mask);
  for (const Index rows : {60, 95, 96, 97, 300, 960, 961, 1099}) {
    const auto some = attend(queries_of(x, 0, 0, rows), mask);
    const Index settled = rows - 40;  // all that see them are there
    EXPECT_TRUE(same_bits(some.key.topRows(settled), all.key.topRows(settled))) << rows << " rows";
    EXPECT_TRUE(same_bits(some.value.topRows(settled), all.value.topRows(settled)));
  }
  Case other = x;
  other.Q.topRows(500).array() += 1.5f;
  other.dY.topRows(500).array() -= 2;
  const auto changed = attend(other, mask);
  const Index rest = 1100 - 503;  // query 499 sees keys up to 502
  EXPECT_TRUE(same_bits(changed.key.bottomRows(rest), all.key.bottomRows(rest)));
  EXPECT_TRUE(same_bits(changed.value.bottomRows(rest), all.value.bottomRows(rest)));
  EXPECT_TRUE(same_bits(changed.query.bottomRows(600), all.query.bottomRows(600)));
}
TEST(GradientBits, OfPaddedKeysAreThoseOfTrimmedOnes) {
  const Case x(130, 600, 19, 11);
  for (const Index length : {1, 2, 15, 16, 17, 31, 33, 255, 256, 257, 300, 511, 513, 599}) {
    Case cut = x;
    cut.keys = {0, length};
    cut.K = x.K.topRows(length);
    cut.V = x.V.topRows(length);
    const auto padded = attend(x, AnyMask(attn::key_lengths(length))),
               trimmed = attend(cut, everything());
    EXPECT_TRUE(same_bits(padded.query, trimmed.query)) << "length " << length;
    EXPECT_TRUE(same_bits(padded.key.topRows(length), trimmed.key)) << "length " << length;
    EXPECT_TRUE(same_bits(padded.value.topRows(length), trimmed.value)) << "length " << length;
  }
}
TEST(GradientBits, OfPaddedQueriesAreThoseOfTrimmedOnes) {
  const Case x(300, 270, 19, 11);
  for (const Index rows : {1, 12, 95, 96, 97, 200, 299}) {
    std::vector<int> queries(300, 1);
    std::fill_n(queries.begin(), rows, 0);
    const auto padded = attend(x, AnyMask(attn::segments(queries, std::vector<int>(270, 0)))),
               trimmed = attend(queries_of(x, 0, 0, rows), everything());
    EXPECT_TRUE(same_bits(padded.query.topRows(rows), trimmed.query)) << rows << " rows";
    EXPECT_TRUE(same_bits(padded.key, trimmed.key)) << rows << " rows";
    EXPECT_TRUE(same_bits(padded.value, trimmed.value)) << rows << " rows";
  }
}
TEST(GradientBits, OfAMaskAreThoseOfTheSameMaskAsAMatrix) {
  const Case x({{0, 300}, {0, 600}, 4, 2}, 19, 11);
  const auto expect_same = [&](const AnyMask& mask, bool (*visible)(Index, Index)) {
    support::Bools keep(300, 600);
    for (Index i = 0; i < 300; ++i)
      for (Index j = 0; j < 600; ++j) keep(i, j) = visible(i, j);
    expect_same_gradients(attend(x, mask), attend(x, AnyMask(attn::keep(keep))));
  };
  expect_same(everything(), [](Index, Index) { return true; });
  expect_same(AnyMask(attn::causal()), [](Index i, Index j) { return j <= i; });
  expect_same(AnyMask(attn::window(40, 3)),
              [](Index i, Index j) { return i - 40 <= j && j <= i + 3; });
  expect_same(AnyMask(attn::key_lengths(333)), [](Index, Index j) { return j < 333; });
  expect_same(AnyMask(!attn::window(30, 100)),
              [](Index i, Index j) { return j < i - 30 || j > i + 100; });
}

// ---- What else the call is asked for --------------------------------------------------------

TEST(GradientBits, AskedApartAreThoseAskedTogether) {
  for (const Case& x : {one_head(), ragged()}) {
    Training<float> g = support::trained(x), apart = g;
    const auto forget = [&] {
      for (Matrix* m : {&apart.query, &apart.key, &apart.value}) m->setConstant(7);
    };
    forget();
    g.apart(x, attn::dquery(apart.query));
    g.apart(x, attn::dkey(apart.key));
    g.apart(x, attn::dvalue(apart.value));
    expect_same_gradients(apart, g);
    forget();
    g.apart(x, attn::dvalue(apart.value), attn::dkey(apart.key));
    g.apart(x, attn::dquery(apart.query));
    expect_same_gradients(apart, g);
    forget();
    g.apart(x, attn::dvalue(apart.value), attn::dquery(apart.query));
    g.apart(x, attn::dkey(apart.key));
    expect_same_gradients(apart, g);
  }
}
TEST(GradientBits, OfTheOutputDoNotChangeWhereTheStateIsSaved) {
  for (const Case& x : {one_head(), grouped(), ragged(), shared(), Case(1, 900, 16, 16)}) {
    Matrix Y;
    attn::attention(attn::heads(x.Q, x.heads), attn::heads(x.K, x.kv_heads),
                    attn::heads(x.V, x.kv_heads), attn::into(Y),
                    attn::sequences(x.queries, x.keys));
    EXPECT_TRUE(same_bits(support::trained(x).Y, Y));
  }
}
TEST(GradientBits, DoNotDependOnWhatTheWorkspaceHeld) {
  const Case x = ragged();
  // Some rows see nothing of what their neighbours see.
  const AnyMask mask(attn::mask([](Index query, Index) { return query % 3 != 1; }));
  const auto expected = attend(x, mask);
  attn::Workspace<float> workspace;
  for (const float stale :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e30f}) {
    std::fill_n(workspace.reserve(400000), 400000, stale);
    expect_same_gradients(support::trained(x, mask, attn::use(workspace)), expected);
  }
}
TEST(GradientBits, OfValuesDoNotDependOnTheirOtherFeatures) {
  const Case x(110, 300, 19, 40);
  const auto all = attend(x, everything());
  for (const Index d_v : {1, 7, 8, 9, 15, 16, 17, 31, 33}) {
    Case some(110, 300, 19, d_v);
    some.Q = x.Q;
    some.K = x.K;
    some.V = x.V.leftCols(d_v);
    some.dY = x.dY.leftCols(d_v);
    EXPECT_TRUE(same_bits(attend(some, everything()).value, all.value.leftCols(d_v))) << d_v;
  }
}

}  // namespace
