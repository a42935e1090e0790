// tests/structured_mask_test.cpp: masks with a structure of their own: packed documents, prefixes, trees, coarse blocks, functors.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "support/any_mask.h"
#include "support/mask_cases.h"

namespace {

using attn::align;
using Eigen::Index;
using Eigen::MatrixXf;
using namespace support;  // cases, rules and expectations

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

/// Most tests here share one instantiation of the engine, for masks of any kind; a few calls keep the mask's own type.
template <class Mask>
AnyMask any(Mask mask) {
  return AnyMask(std::move(mask));
}

/// Ids of `count` tokens: documents of 1 to `most` tokens one after the other, or in any order.
std::vector<int> documents(Index count, Index most, bool ordered, std::uint32_t seed) {
  std::mt19937 engine(seed);
  std::vector<int> ids;
  for (int id = 3; Index(ids.size()) < count; id += 2) {
    for (Index n = 1 + Index(engine() % std::uint32_t(most)); n > 0; --n) ids.push_back(id);
  }
  ids.resize(at(count));
  if (!ordered) {
    for (int& id : ids) id = int(engine() % 5) * (engine() % 2 ? 1 : -1);
  }
  return ids;
}

// ---- Pictures, as the README shows them -----------------------------------------------------

/// Who sees whom, four keys a row: '#' and '.'.
template <class... Options>
std::string picture(Index queries, const Options&... options) {
  const MatrixXf Q = MatrixXf::Zero(queries, 2), K = MatrixXf::Zero(4, 2);
  MatrixXf W, Y;
  attn::attention(Q, K, K, attn::into(Y), attn::save_weights(W), options...);
  std::string seen;
  for (Index i = 0; i < queries; ++i) {
    for (Index j = 0; j < 4; ++j) seen += W(i, j) > 0 ? '#' : '.';
    if (i + 1 < queries) seen += ' ';
  }
  return seen;
}

TEST(MaskPictures, AreTheReadmes) {
  Eigen::Matrix<bool, 2, 2> coarse;
  coarse << 1, 0, 1, 1;
  Eigen::Matrix<bool, 4, 4> B;
  B << 1, 0, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0;
  EXPECT_EQ(picture(4, any(attn::causal())), "#... ##.. ###. ####");
  EXPECT_EQ(picture(4, any(attn::window(1, 0))), "#... ##.. .##. ..##");
  EXPECT_EQ(picture(4, any(attn::window(1, 1))), "##.. ###. .### ..##");
  EXPECT_EQ(picture(4, any(attn::prefix_lm(2))), "##.. ##.. ###. ####");
  EXPECT_EQ(picture(4, any(attn::key_lengths(3))), "###. ###. ###. ###.");
  EXPECT_EQ(picture(4, any(attn::key_range(1, 4))), ".### .### .### .###");
  EXPECT_EQ(picture(4, any(attn::segments({7, 7, 9, 9}))), "##.. ##.. ..## ..##");
  EXPECT_EQ(picture(4, any(attn::segments({7, 9, 7, 9}))), "#.#. .#.# #.#. .#.#");
  EXPECT_EQ(picture(4, any(attn::tree({-1, 0, 0, 1}))), "#... ##.. #.#. ##.#");
  EXPECT_EQ(picture(4, any(attn::block_sparse(coarse, 2))), "##.. ##.. #### ####");
  EXPECT_EQ(picture(4, any(attn::keep(B))), "#..# .#.. ##.. ....");
  EXPECT_EQ(picture(4, any(attn::hide(B))), ".##. #.## ..## ####");
  EXPECT_EQ(
      picture(4, any(attn::mask([](Index query, Index key) { return (query - key) % 2 == 0; }))),
      "#.#. .#.# #.#. .#.#");
  EXPECT_EQ(picture(4, any(attn::causal() && attn::window(1, -1))), "#... ##.. .##. ..##");
  EXPECT_EQ(picture(4, any(attn::window(0, 0) || attn::key_lengths(1))), "#... ##.. #.#. #..#");
  EXPECT_EQ(picture(4, any(attn::causal() && !attn::window(0, 0))), ".... #... ##.. ###.");
  EXPECT_EQ(picture(2, attn::causal(align::upper_left)), "#... ##..");
  EXPECT_EQ(picture(2, attn::causal(align::lower_right)), "###. ####");
  EXPECT_EQ(picture(2, attn::causal_from(0)), "#... ##..");
  EXPECT_EQ(picture(2, attn::causal_from(2)), "###. ####");
}

// ---- segments -------------------------------------------------------------------------------

TEST(Union, KeepsTheGapWhicheverPartComesFirst) {
  const std::vector<Case> cases = {{{0, 37}, {0, 37}}, {{0, 300}, {0, 300}}};
  const Rule rule = [](const Pair& at) {
    return at.key < 5 || (at.key >= at.position - 40 && at.key <= at.position);
  };
  expect_mask(cases, any(attn::key_lengths(5) || attn::window(40, 0)), rule);
  expect_mask(cases, any(attn::window(40, 0) || attn::key_lengths(5)), rule);
}

// Two runs of keys with a gap between them, of which the first holds a NaN that one row sees.
TEST(Union, KeepsANaNOfItsFirstPartFromRowsThatDoNotSeeIt) {
  const MatrixXf Q = support::uniform<float>(20, 4, 1), K = support::uniform<float>(200, 4, 2);
  MatrixXf V = support::uniform<float>(200, 4, 3), Y;
  V(3, 1) = std::numeric_limits<float>::quiet_NaN();
  attn::attention(Q, K, V, attn::into(Y),
                  any((attn::key_lengths(4) || attn::key_range(128, 200)) &&
                      attn::mask([](Index query, Index key) { return key != 3 || query == 0; })));
  EXPECT_TRUE(std::isnan(Y(0, 1)));
  EXPECT_TRUE(Y.bottomRows(19).allFinite());
}

TEST(Segments, SeeTheKeysOfTheirOwnId) {
  for (const bool ordered : {true, false}) {
    for (const Index most : {3, 40, 200}) {
      for (const Case& c : square_cases()) {
        const std::vector<int> ids = documents(c.queries.back(), most, ordered, 5);
        expect_mask({c}, attn::segments(ids), [&](const Pair& p) {
          return ids[at(p.token)] == ids[at(c.keys[at(p.sequence)] + p.key)];
        });
      }
    }
  }
}

TEST(Segments, OfKeysMayHaveIdsOfTheirOwn) {
  for (const bool ordered : {true, false}) {
    for (const Case& c : all_cases()) {
      const std::vector<int> queries = documents(c.queries.back(), 9, ordered, 6),
                             keys = documents(c.keys.back(), 30, ordered, 7);
      expect_mask({c}, any(attn::segments(queries, keys)), [&](const Pair& p) {
        const Index first = c.keys.size() == 2 ? 0 : c.keys[at(p.sequence)];
        return queries[at(p.token)] == keys[at(first + p.key)];
      });
    }
  }
}

TEST(Segments, OfUnorderedQueriesOnOrderedKeysSkipWhatNobodyAsksFor) {
  const Case c = {{0, 50}, {0, 300}};
  const std::vector<int> queries = documents(50, 9, false, 8), keys = documents(300, 30, true, 9);
  std::vector<int> every(queries);
  for (int& id : every) id = 3 + 2 * (std::abs(id) * 3);
  expect_mask({c}, any(attn::segments(every, keys)),
              [&](const Pair& p) { return every[at(p.token)] == keys[at(p.key)]; });
}

TEST(Segments, OfTheLongestSequenceServeAll) {
  const Case c = {{0, 5, 17}, {0, 9, 21}, 2, 1};
  const std::vector<int> queries = documents(12, 4, true, 5), keys = documents(12, 5, true, 6);
  expect_mask({c}, any(attn::segments(queries, keys)),
              [&](const Pair& p) { return queries[at(p.row)] == keys[at(p.key)]; });
}

TEST(Segments, WithoutACommonIdGiveZeros) {
  expect_mask({{{0, 3}, {0, 40}}}, any(attn::segments({1, 2, 3}, std::vector<int>(40, 7))),
              [](const Pair&) { return false; });
}

// ---- prefix_lm ------------------------------------------------------------------------------

TEST(PrefixLm, SeesThePrefixBothWaysAndTheRestCausally) {
  for (const Index n : {0, 1, 20, 37}) {
    expect_mask({{{0, 37}, {0, 37}}, {{0, 300}, {0, 300}}}, any(attn::prefix_lm(n)),
                [=](const Pair& p) { return p.key < n || p.key <= p.position; });
  }
}

TEST(PrefixLm, TakesALengthForEachSequence) {
  const Case c = all_cases()[6];  // keys 9, 0, 66
  const std::vector<Index> lengths = {4, 0, 65};
  const Rule rule = [&](const Pair& p) {
    return p.key < lengths[at(p.sequence)] || p.key <= p.position;
  };
  const Offset offset = [](Index, Index, Index) { return Index(2); };
  expect_attends(c, rule, offset, attn::prefix_lm(lengths), attn::query_offset(2));
  expect_attends(c, rule, offset, attn::query_offset(2), attn::prefix_lm({4, 0, 65}));
  expect_honest(c, rule, offset, attn::prefix_lm(lengths));
}

// ---- rows without a key -----------------------------------------------------------------------

TEST(EveryMask, MayLeaveRowsWithoutAKeyWhoseWeightsAreSaved) {
  struct Never {
    bool operator()(Index, Index) const { return false; }
    attn::KeyRange keys(const attn::QueryRows&) const { return {0, 0}; }
  };
  for (const Index keys : {1, 4, 31, 300}) {
    for (const Index rows : {1, 3, 20}) {
      const std::vector<int> ids(at(rows), 7);
      std::vector<int> above(at(keys), 8), apart(at(keys), 8), below(at(keys), 6);
      for (std::size_t j = 0; j < apart.size(); j += 2) apart[j] = 6;
      const Bools none = Bools::Constant(rows, keys, false);
      const AnyMask masks[] = {
          any(attn::segments(ids, above)),
          any(attn::segments(ids, below)),
          any(attn::segments(ids, apart)),
          any(attn::key_lengths(0)),
          any(attn::key_range(keys, keys)),
          any(attn::causal() && attn::key_range(keys, keys)),
          any(attn::window(3, 0) && attn::key_lengths(0)),
          any(attn::prefix_lm(0) && attn::key_lengths(0)),
          any(attn::keep(none)),
          any(attn::hide(!none.array())),
          any(attn::block_sparse(none, 1)),
          any(attn::mask([](Index, Index) { return false; })),
          any(attn::mask(Never())),
          any(!attn::window(-1, -1)),
          any(attn::tree(std::vector<int>(at(rows), -1)) && attn::key_lengths(0)),
          any(any(attn::segments(ids, above)) || any(attn::key_lengths(0))),
          any(any(attn::segments(ids, apart)) && !any(attn::key_lengths(0))),
      };
      const MatrixXf Q = uniform<float>(rows, 4, 1), K = uniform<float>(keys, 4, 2);
      for (const AnyMask& mask : masks) {
        SCOPED_TRACE(testing::Message()
                     << "mask " << &mask - masks << ", " << rows << " x " << keys);
        MatrixXf Y, W;
        attn::attention(Q, K, K, attn::into(Y), attn::save_weights(W), mask);
        EXPECT_TRUE(Y.isZero(0));
        EXPECT_TRUE(W.isZero(0));
      }
    }
  }
}

TEST(EveryMask, IsNotAskedAboutKeysBehindTheLastWhereAPacketIsOneScalar) {
  // Panels are padded to four keys there, whose flags are not: B ends where its memory does.
  using Matrix = DynamicMatrix<long double>;
  for (const Index keys : {1, 2, 3, 5}) {
    const Matrix Q = uniform<long double>(3, 2, 1), K = uniform<long double>(keys, 2, 2);
    DynamicMatrix<bool> B = DynamicMatrix<bool>::Constant(3, keys, true);
    B(0, 0) = false;
    const Matrix Y = attn::attention(Q, K, K, attn::block_sparse(B, 1));
    ReferenceOptions asked;
    asked.visible = [](Index, Index, Index i, Index j) { return i > 0 || j > 0; };
    EXPECT_TRUE(near(Y, reference_attention(Q, K, K, asked).output, 1e-17));
  }
}

// ---- tree -----------------------------------------------------------------------------------

/// Token t continues some token before it, or is a root.
std::vector<int> random_tree(Index size, std::uint32_t seed) {
  std::mt19937 engine(seed);
  std::vector<int> parents;
  for (Index t = 0; t < size; ++t) parents.push_back(int(engine() % std::uint32_t(t + 1)) - 1);
  return parents;
}
/// By the parents themselves, upwards from the query's token.
bool is_ancestor(const int* parents, Index token, Index key) {
  while (token > key) token = parents[token];
  return token == key;
}

TEST(Tree, SeesAncestorsAndItself) {
  for (const Index size : {1, 2, 37, 300}) {
    const std::vector<int> parents = random_tree(size, 3);
    expect_mask({{{0, size}, {0, size}}}, attn::tree(parents),
                [&](const Pair& p) { return is_ancestor(parents.data(), p.row, p.key); });
  }
}

TEST(Tree, StandsBehindAPrefixThatAllSee) {
  const std::vector<int> parents = random_tree(20, 4);
  for (const Index rows : {20, 33}) {  // 13 rows before the tree are causal
    for (const Index keys : {33, 90}) {
      const Case c = {{0, rows}, {0, keys}, 4, 2};
      const Rule rule = [&](const Pair& p) {
        const Index token = p.row - (rows - 20), first = keys - 20;
        if (token < 0 || p.key < first) return p.key <= p.position;
        return is_ancestor(parents.data(), token, p.key - first);
      };
      expect_honest(c, rule, kLowerRight, attn::tree(parents));
      expect_attends(c, rule, kLowerRight, attn::tree(parents), attn::query_offset(keys - rows));
      expect_attends(c, rule, kLowerRight, attn::tree(parents), attn::causal(align::lower_right));
    }
  }
}

TEST(Tree, OfEachSequenceIsItsOwn) {
  const Case c = {{0, 8, 8, 21}, {0, 8, 8, 21}};
  std::vector<int> parents = random_tree(8, 5), second = random_tree(13, 6);
  parents.insert(parents.end(), second.begin(), second.end());
  expect_mask({c}, attn::tree(parents), [&](const Pair& p) {
    return is_ancestor(p.sequence == 0 ? parents.data() : second.data(), p.row, p.key);
  });
}

TEST(Tree, LeavesOutDeadBranchesAmongAncestors) {
  std::vector<int> parents;  // every seventh token is a leaf, the others one chain
  for (int t = 0; t < 150; ++t) parents.push_back(t % 7 == 0 && t > 0 ? t - 2 : t - 1);
  for (const Index prefix : {0, 40}) {
    expect_honest(
        {{0, 150}, {0, 150 + prefix}},
        [&](const Pair& p) {
          return p.key < prefix || is_ancestor(parents.data(), p.row, p.key - prefix);
        },
        kLowerRight, attn::tree(parents));
  }
}

TEST(Tree, OfOneChainIsCausal) {
  std::vector<int> chain;
  for (int t = 0; t < 70; ++t) chain.push_back(t - 1);
  expect_mask({{{0, 70}, {0, 70}}}, any(attn::tree(chain)), kCausal);
}

// ---- block_sparse ---------------------------------------------------------------------------

TEST(BlockSparse, SeesWholeBlocks) {
  for (const Index block : {1, 3, 16, 32, 100}) {
    for (const Case& c : all_cases()) {
      const Bools B = random_bools((c.longest_query() + block - 1) / block,
                                   (c.longest_key() + block - 1) / block, 11, 0.4);
      expect_mask({c}, attn::block_sparse(B, block),
                  [&](const Pair& p) { return B(p.row / block, p.key / block); });
    }
  }
}

TEST(BlockSparse, MayBeOneForEachHead) {
  const Case c = {{0, 40}, {0, 130}, 4, 2};
  const Index rows = 3, columns = 9, block = 16;
  const Bools B = random_bools(rows, 4 * columns, 12, 0.4);
  expect_mask({c}, any(attn::block_sparse(attn::heads(B, 4), block)),
              [&](const Pair& p) { return B(p.row / block, p.head * columns + p.key / block); });
}

TEST(BlockSparse, MayBeOneForEachSequence) {
  const Case c = {{0, 20, 25}, {0, 40, 90}, 2, 1};
  const Index rows = 2, columns = 4, block = 15;
  const Bools stacked = random_bools(2 * rows, columns, 13);
  expect_mask({c}, any(attn::block_sparse(stacked, block)), [&](const Pair& p) {
    return stacked(p.sequence * rows + p.row / block, p.key / block);
  });
  const DynamicMatrix<bool> memory = random_bools(2 * 2 * rows, columns, 14);
  expect_mask({c}, any(attn::block_sparse(attn::bhld(memory.data(), 2, 2, rows, columns), block)),
              [&](const Pair& p) {
                return memory((p.sequence * 2 + p.head) * rows + p.row / block, p.key / block);
              });
}

TEST(BlockSparse, CombinesWithOthers) {
  const Case c = {{0, 100}, {0, 100}};
  const Bools B = random_bools(7, 7, 15);
  expect_mask({c}, any(!attn::block_sparse(B, 16) && attn::causal()),
              [&](const Pair& p) { return !B(p.row / 16, p.key / 16) && p.key <= p.position; });
  expect_mask({c}, any(attn::block_sparse(B, 16) || attn::window(2, 0)), [&](const Pair& p) {
    return B(p.row / 16, p.key / 16) || (p.key <= p.position && p.key >= p.position - 2);
  });
}

// ---- mask(functor) --------------------------------------------------------------------------

TEST(FunctorMask, MayLookAtThePairOrAtAllOfItsPlace) {
  expect_mask(all_cases(),
              any(attn::mask([](Index query, Index key) { return (query + key) % 3 == 0; })),
              [](const Pair& p) { return (p.position + p.key) % 3 == 0; });
  expect_mask(all_cases(), any(attn::mask([](auto query, auto key) { return key <= query; })),
              kCausal);
  expect_mask(all_cases(), attn::mask([](attn::At a) {
                return (a.sequence + 2 * a.head + a.query + a.key) % 5 < 2;
              }),
              [](const Pair& p) { return (p.sequence + 2 * p.head + p.position + p.key) % 5 < 2; });
}

bool dilated(Index query, Index key) { return key <= query && (query - key) % 4 == 0; }

TEST(FunctorMask, MayBeAFunctionAndSeesThePositionsOfTheCall) {
  const Rule rule = [](const Pair& p) { return dilated(p.position, p.key); };
  for (const Case& c : all_cases()) {
    expect_attends(
        c, rule, [](Index, Index, Index) { return Index(7); }, attn::mask(dilated),
        attn::query_offset(7));
  }
}

/// Causal, with the ranges that follow.
struct Ranged {
  mutable long asked = 0;
  bool operator()(attn::At a) const {
    ++asked;
    return a.key <= a.query;
  }
  attn::KeyRange keys(const attn::QueryRows& rows) const { return {0, rows.last().position + 1}; }
  attn::KeyRange full_keys(const attn::QueryRows& rows) const {
    return {0, rows.first().position + 1};
  }
};

TEST(FunctorMask, IsBoundedByItsRanges) {
  expect_mask(all_cases(), any(attn::mask(Ranged())), kCausal);
  expect_mask(all_cases(), any(!attn::mask(Ranged()) || attn::window(1, 0)),
              [](const Pair& p) { return p.key > p.position || p.key >= p.position - 1; });
  // Asked on the boundary only: a row's own panel, and one more where the rows of a strip end in two.
  const Index L = 512;
  const MatrixXf Q = uniform<float>(L, 8, 1);
  const Ranged ranged;
  const MatrixXf Y = attn::attention(Q, Q, Q, attn::mask(ranged));
  EXPECT_TRUE(same_bits(Y, attn::attention(Q, Q, Q, attn::causal())));
  EXPECT_GT(ranged.asked, L);
  EXPECT_LE(ranged.asked, 2 * L * attn::kernel::TileSize<float>::panel);
}

/// Only the last keys are seen; the range says so for many rows, not for few.
struct LooseForFew {
  bool operator()(Index, Index key) const { return key >= 250; }
  attn::KeyRange keys(const attn::QueryRows& rows) const {
    return {rows.end - rows.begin > 50 ? 250 : 0, 256};
  }
};

TEST(FunctorMask, MayKnowMoreOfManyRowsThanOfFew) {
  // What the rows together are known not to see is not packed. The scratch holds NaN from the call before.
  const MatrixXf Q = uniform<float>(60, 4, 1), K = uniform<float>(256, 4, 2);
  const MatrixXf NaN = MatrixXf::Constant(256, 4, std::numeric_limits<float>::quiet_NaN());
  attn::ScaledDotProductAttention<float> sdpa;
  MatrixXf Y;
  sdpa(Q, K, NaN, attn::into(Y));
  sdpa(Q, K, K, attn::into(Y), attn::mask(LooseForFew()) || attn::key_lengths(1));
  EXPECT_TRUE(
      same_bits(Y, attn::attention(Q, K, K, attn::key_range(250, 256) || attn::key_lengths(1))));
}

TEST(FunctorMask, OwnsATemporaryAndRefersToAnLvalue) {
  const Case c = {{0, 30}, {0, 30}};
  const auto made = [] {
    const std::vector<Index> limits(30, 4);
    return attn::mask([limits](Index query, Index key) { return key < limits[at(query)]; });
  }();
  expect_attends(
      c, [](const Pair& p) { return p.key < 4; }, kFromZero, made);
  Index limit = 4;
  const auto below = [&limit](Index, Index key) { return key < limit; };
  const auto option = attn::mask(below);
  limit = 9;
  expect_attends(
      c, [](const Pair& p) { return p.key < 9; }, kFromZero, option);
}

}  // namespace
