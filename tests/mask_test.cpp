// tests/mask_test.cpp: masks by position: causal, window, query offsets.
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

TEST(CausalMask, SeesTheKeysUpToItself) { expect_mask(square_cases(), attn::causal(), kCausal); }

TEST(CausalMask, UpperLeftAlignsTheFirstRows) {
  expect_mask(all_cases(), attn::causal(align::upper_left), kCausal);
}

TEST(CausalMask, LowerRightAlignsTheLastRows) {
  expect_mask(all_cases(), attn::causal(align::lower_right), kCausal, kLowerRight);
}

TEST(CausalMask, FromAnOffsetMayBeNegative) {
  for (const Index offset : {0, 3, -4, 1000}) {
    expect_mask(all_cases(), attn::causal_from(offset), kCausal,
                [=](Index, Index, Index) { return offset; });
  }
}

TEST(CausalMask, TakesAnOffsetForEachSequence) {
  const std::vector<Index> offsets = {4, -3, 60};
  const Offset of_sequence = [&](Index b, Index, Index) { return offsets[std::size_t(b)]; };
  const Case c = all_cases()[6];
  expect_attends(c, kCausal, of_sequence, attn::causal_from(offsets));
  expect_attends(c, kCausal, of_sequence, attn::causal_from({4, -3, 60}));
  expect_attends(c, kCausal, of_sequence, attn::causal(), attn::query_offset(offsets));
  expect_attends(c, kCausal, of_sequence, attn::query_offset({4, -3, 60}), attn::causal());
}

TEST(QueryOffset, ReachesEveryMaskOfTheCall) {
  const Offset five = [](Index, Index, Index) { return Index(5); };
  const Rule band = [](const Pair& at) {
    return at.key <= at.position && at.key >= at.position - 2;
  };
  for (const Case& c : all_cases()) {
    expect_attends(c, band, five, attn::query_offset(5), attn::causal(), attn::window(2, -1));
    expect_attends(c, band, five, attn::window(2, -1) && attn::causal_from(5));
    expect_attends(c, band, five, attn::window(2, 0), attn::query_offset(5));
  }
}

TEST(QueryOffset, IsFoundAnywhereInTheMask) {
  const Rule rule = [](const Pair& at) {
    return !(at.key <= at.position) || at.key == at.position - 1;
  };
  for (const Case& c : all_cases()) {
    const auto own_window =
        !(!attn::window(1, -1) || !attn::window(-1, -1)) && !attn::window(0, -1);
    expect_attends(c, rule, kLowerRight, own_window || !attn::causal(align::lower_right));
  }
}

TEST(LowerRight, CountsFromTheKeyLength) {
  const Case c = all_cases()[6];  // keys 9, 0, 66
  const std::vector<Index> lengths = {7, 0, 40};
  const auto length = [&](Index b) { return lengths[std::size_t(b)]; };
  const Offset offset = [&](Index b, Index queries, Index) { return length(b) - queries; };
  const Rule rule = [&](const Pair& at) {
    return at.key <= at.position && at.key < length(at.sequence);
  };
  const auto causal = attn::causal(align::lower_right);
  expect_attends(c, rule, offset, causal, attn::key_lengths(lengths));
  expect_attends(c, rule, offset, attn::key_lengths(lengths), causal);
  expect_attends(c, rule, offset, attn::key_lengths(lengths) && causal);
  expect_attends(c, rule, offset, attn::window(-1, -1) && (causal && attn::key_lengths(lengths)));
}

TEST(LowerRight, CountsFromTheEndOfAKeyRange) {
  const Case c = {{0, 5, 9}, {0, 12, 21}};
  const Offset offset = [](Index b, Index queries, Index) { return (b == 0 ? 10 : 9) - queries; };
  const Rule rule = [](const Pair& at) {
    return at.key <= at.position && at.key >= (at.sequence == 0 ? 2 : 5);
  };
  expect_attends(c, rule, offset, attn::key_range({2, 5}, {10, 9}),
                 attn::causal(align::lower_right));
}

TEST(LowerRight, IsNotMovedByALengthThatDoesNotBindTheCall) {
  const Case c = {{0, 5}, {0, 12}};
  const Rule rule = [](const Pair& at) { return at.key <= at.position || at.key < 3; };
  expect_attends(c, rule, kLowerRight, attn::causal(align::lower_right) || attn::key_lengths(3));
}

TEST(WindowMask, SeesItsBandEndsIncluded) {
  for (const auto& [left, right] : {std::pair<Index, Index>{0, 0}, {3, 0}, {2, 4}, {40, 1}}) {
    const Index l = left, r = right;
    expect_mask(all_cases(), attn::window(l, r), [=](const Pair& at) {
      return at.position - l <= at.key && at.key <= at.position + r;
    });
  }
}

TEST(WindowMask, MinusOneIsUnbounded) {
  expect_mask(all_cases(), attn::window(-1, 2),
              [](const Pair& at) { return at.key <= at.position + 2; });
  expect_mask(all_cases(), attn::window(2, -1),
              [](const Pair& at) { return at.key >= at.position - 2; });
  expect_mask(all_cases(), attn::window(-1, -1), [](const Pair&) { return true; });
}

TEST(WindowMask, TakesAnyWidth) {
  const Index most = std::numeric_limits<Index>::max();
  for (const Index wide : {Index(1) << 40, most / 2, most}) {
    expect_mask(square_cases(), attn::window(wide, wide), [](const Pair&) { return true; });
  }
}

}  // namespace
