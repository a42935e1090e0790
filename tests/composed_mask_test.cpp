// tests/composed_mask_test.cpp: masks by key, and && || ! of masks.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "support/mask_cases.h"

namespace {

using attn::align;
using Eigen::Index;
using Eigen::MatrixXf;
using namespace support;  // cases, rules and expectations

TEST(KeyLengths, CutEachSequence) {
  const Case c = all_cases()[6];
  const std::vector<int> lengths = {4, 0, 33};
  const Rule rule = [&](const Pair& at) { return at.key < lengths[std::size_t(at.sequence)]; };
  expect_mask({c}, attn::key_lengths(lengths), rule);
  expect_mask({c}, attn::key_lengths({4, 0, 33}), rule);
}

TEST(KeyLengths, OfOneEntryServeAllSequences) {
  const Case c = {{0, 5, 17}, {0, 9, 21}, 2, 1};
  const Rule rule = [](const Pair& at) { return at.key < 6; };
  expect_mask({c}, attn::key_lengths(6), rule);
  expect_mask({c}, attn::key_lengths({6}), rule);
}

TEST(KeyLengths, OfSharedKeysBelongToTheQueries) {
  const Case c = {{0, 3, 20}, {0, 33}, 2, 1};
  expect_mask({c}, attn::key_lengths({33, 2}),
              [](const Pair& at) { return at.key < (at.sequence == 0 ? 33 : 2); });
}

TEST(KeyRange, CutsBothEnds) {
  const Case c = all_cases()[6];
  const std::vector<Index> begin = {8, 0, 31}, end = {9, 0, 65};
  const Rule rule = [&](const Pair& at) {
    const auto b = std::size_t(at.sequence);
    return begin[b] <= at.key && at.key < end[b];
  };
  expect_mask({c}, attn::key_range(begin, end), rule);
  expect_mask({c}, attn::key_range({8, 0, 31}, {9, 0, 65}), rule);
  expect_mask({{{0, 5, 17}, {0, 9, 21}}}, attn::key_range(2, 7),
              [](const Pair& at) { return 2 <= at.key && at.key < 7; });
}

TEST(KeyRange, OfNothingGivesZerosAndMinusInfinity) {
  const MatrixXf Q = support::uniform<float>(9, 5, 1), K = support::uniform<float>(40, 5, 2);
  MatrixXf l;
  const MatrixXf Y = attn::attention(Q, K, K, attn::key_range(17, 17), attn::save_logsumexp(l));
  EXPECT_TRUE(same_bits(Y, MatrixXf::Zero(9, 5)));
  EXPECT_TRUE(same_bits(l, MatrixXf::Constant(9, 1, -std::numeric_limits<float>::infinity())));
}

TEST(ComposedMask, SeveralOptionsAreJoinedByAnd) {
  const Case c = all_cases()[5];  // 41 queries, 7 keys
  const Bools B = support::random_bools(41, 7, 13, 0.7);
  const Rule rule = [&](const Pair& at) {
    return B(at.row, at.key) && at.key <= at.position && at.key < 6 && at.key >= at.position - 3;
  };
  expect_attends(c, rule, kFromZero, attn::keep(B), attn::causal(align::upper_left),
                 attn::key_lengths(6), attn::window(3, -1));
  expect_attends(c, rule, kFromZero,
                 attn::window(3, -1) && attn::keep(B) && attn::causal(align::upper_left) &&
                     attn::key_lengths(6));
}

TEST(ComposedMask, OrKeepsBothParts) {
  // The first keys stay visible beside a sliding window; the gap between them is hidden.
  expect_mask({{{0, 37}, {0, 37}}, {{0, 300}, {0, 300}}, {{0, 5, 45}, {0, 5, 45}, 4, 2}},
              (attn::window(3, 0) || attn::key_lengths(1)) && attn::causal(), [](const Pair& at) {
                return (at.key >= at.position - 3 || at.key < 1) && at.key <= at.position;
              });
  expect_mask(all_cases(), attn::window(1, 0) || attn::window(0, 1),
              [](const Pair& at) { return std::abs(at.key - at.position) <= 1; });
}

TEST(ComposedMask, NotIsTheComplement) {
  expect_mask(all_cases(), !attn::window(2, 3),
              [](const Pair& at) { return at.key < at.position - 2 || at.key > at.position + 3; });
  expect_mask(all_cases(), !attn::causal(align::lower_right), std::not_fn(kCausal), kLowerRight);
  expect_mask(all_cases(), !attn::causal_from(-30), std::not_fn(kCausal),
              [](Index, Index, Index) { return Index(-30); });
  expect_mask(all_cases(), !attn::window(-1, -1), [](const Pair&) { return false; });
}

TEST(ComposedMask, OfAllOperatorsFollowsTheRule) {
  for (const Case& c : all_cases()) {
    const Bools B = support::random_bools(c.longest_query(), c.longest_key(), 14);
    expect_mask(
        {c},
        (!attn::keep(B) || attn::window(1, 0)) && !(attn::causal_from(-2) && attn::window(20, -1)),
        [&](const Pair& at) {
          const bool in_window = at.position - 1 <= at.key && at.key <= at.position;
          return (!B(at.row, at.key) || in_window) &&
                 !(at.key <= at.position && at.key >= at.position - 20);
        },
        [](Index, Index, Index) { return Index(-2); });
  }
}

TEST(ComposedMask, SharedWordsMeanTheSameAsConjunction) {
  const MatrixXf Q = support::uniform<float>(33, 5, 1), K = support::uniform<float>(33, 5, 2);
  const MatrixXf joined = attn::attention(Q, K, K, attn::causal() && attn::window(4, -1));
  const MatrixXf listed = attn::attention(Q, K, K, attn::window(4, -1), attn::causal());
  const MatrixXf window = attn::attention(Q, K, K, attn::window(4, 0));
  EXPECT_TRUE(same_bits(joined, listed));
  EXPECT_TRUE(same_bits(joined, window));
}

}  // namespace
