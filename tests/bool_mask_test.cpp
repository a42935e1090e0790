// tests/bool_mask_test.cpp: masks by matrix: keep and hide.
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

/// B(row or token, [head ·] Lk + key) as a rule.
Rule rule_of(const Bools& B, const Case& c, bool stacked, Index heads, bool polarity) {
  const Index keys = c.longest_key();
  return [=](const Pair& at) {
    return B(stacked ? at.token : at.row, (heads == 1 ? 0 : at.head) * keys + at.key) == polarity;
  };
}

TEST(KeepMask, OfLqByLkServesAllSequencesAndHeads) {
  for (const Case& c : all_cases()) {
    const Bools B = support::random_bools(c.longest_query(), c.longest_key(), 5);
    expect_mask({c}, attn::keep(B), rule_of(B, c, false, 1, true));
  }
}

TEST(HideMask, IsKeepWithTheOtherPolarity) {
  for (const Case& c : all_cases()) {
    const Bools B = support::random_bools(c.longest_query(), c.longest_key(), 6, 0.2);
    expect_mask({c}, attn::hide(B), rule_of(B, c, false, 1, false));
  }
}

TEST(KeepMask, OfStackedRowsHasOneForEachToken) {
  for (const Case& c : all_cases()) {
    const Bools B = support::random_bools(c.queries.back(), c.longest_key(), 7);
    expect_mask({c}, attn::keep(B), rule_of(B, c, true, 1, true));
  }
}

TEST(KeepMask, OfHeadsHasOneForEachHead) {
  for (const Case& c : all_cases()) {
    const Bools shared = support::random_bools(c.longest_query(), c.heads * c.longest_key(), 8);
    expect_mask({c}, attn::keep(attn::heads(shared, c.heads)),
                rule_of(shared, c, false, c.heads, true));
    const Bools stacked = support::random_bools(c.queries.back(), c.heads * c.longest_key(), 9);
    expect_mask({c}, attn::keep(attn::heads(stacked, c.heads)),
                rule_of(stacked, c, true, c.heads, true));
  }
}

TEST(KeepMask, OfAStridedViewBroadcastsDimensionsOfOne) {
  const Case c = {{0, 4, 8, 12}, {0, 35, 70, 105}, 4, 2};
  const Index B = 3, H = 4, Lq = 4, Lk = 35;
  const Bools memory = support::random_bools(B * H * Lq * Lk, 1, 10);
  for (int which = 0; which < 16; ++which) {
    const Index b = which & 1 ? B : 1, h = which & 2 ? H : 1, q = which & 4 ? Lq : 1,
                k = which & 8 ? Lk : 1;
    SCOPED_TRACE(testing::Message() << "[" << b << ", " << h << ", " << q << ", " << k << "]");
    const auto at = [=](Index size, Index i) { return size == 1 ? 0 : i; };
    expect_mask({c}, attn::keep(attn::bhld(memory.data(), b, h, q, k)), [&](const Pair& p) {
      return memory(((at(b, p.sequence) * h + at(h, p.head)) * q + at(q, p.row)) * k +
                    at(k, p.key));
    });
  }
}

TEST(KeepMask, TakesAnyMatrixOfBool) {
  const Case c = {{0, 21}, {0, 45}};
  const Bools B = support::random_bools(21, 45, 11);
  const Rule rule = rule_of(B, c, false, 1, true);
  const support::DynamicMatrix<bool> row_major = B;
  const Bools transposed = B.transpose();
  Bools big = Bools::Constant(30, 50, true);
  big.block(4, 3, 21, 45) = B;
  const MatrixXf numbers = B.cast<float>();
  expect_attends(c, rule, kFromZero, attn::keep(row_major));
  expect_attends(c, rule, kFromZero, attn::keep(transposed.transpose()));
  expect_attends(c, rule, kFromZero, attn::keep(big.block(4, 3, 21, 45)));
  expect_attends(c, rule, kFromZero, attn::keep(numbers.array() > 0));
  expect_attends(c, rule, kFromZero, attn::hide(numbers.array() == 0));
}

TEST(KeepMask, OwnsTheExpressionItWasMadeOf) {
  const Case c = {{0, 21}, {0, 45}};
  const Bools B = support::random_bools(21, 45, 12);
  const auto stored = [&] {
    const MatrixXf numbers = B.cast<float>();
    return attn::keep(numbers.array() > 0) && !attn::hide(Bools(B));
  }();
  expect_attends(c, rule_of(B, c, false, 1, true), kFromZero, stored);
}

}  // namespace
