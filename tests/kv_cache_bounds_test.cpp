// tests/kv_cache_bounds_test.cpp: a cache at its bounds: keys cut by a mask where few rows read them as they are stored, and
// as many tokens as a ring takes at a time.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <limits>

#include "support/matrix_matchers.h"
#include "support/random.h"

namespace {

using Eigen::Index;
using support::same_bits;
using Matrix = support::DynamicMatrix<float>;

// The keys behind the length are stored beside the others, in one panel with them.
TEST(CacheOfFewRows, ShowsNoKeyBehindALength) {
  const Matrix Q = support::uniform<float>(1, 20, 1), K = support::uniform<float>(100, 20, 2);
  attn::KeyValueCache<float> cache(attn::KeyValueCacheOptions(100, 1, 20));
  cache.append(K, K);
  attn::ScaledDotProductAttention<float> sdpa;
  Matrix Y, of_matrices;
  for (Index keys = 1; keys <= 100; ++keys) {
    sdpa(Q, cache, attn::into(Y), attn::all_keys(), attn::key_lengths({keys}));
    sdpa(Q, K, K, attn::into(of_matrices), attn::key_lengths({keys}));
    EXPECT_TRUE(same_bits(Y, of_matrices)) << keys << " keys";
  }
}

// A step of the products takes several keys, the last one also what stood behind them before.
TEST(CacheThatWasCleared, HoldsNothingOfWhatStoodBehindItsEnd) {
  const Matrix X = support::uniform<float>(40, 20, 1),
               V = Matrix::Constant(40, 20, std::numeric_limits<float>::quiet_NaN());
  attn::KeyValueCache<float> cache(attn::KeyValueCacheOptions(40, 1, 20));
  attn::ScaledDotProductAttention<float> sdpa;
  Matrix Y, of_matrices;
  for (Index keys = 13; keys <= 36; ++keys) {
    const Matrix K = X.topRows(keys);
    cache.clear();
    cache.append(X, V);
    cache.clear();
    cache.append(K, K);
    sdpa(K, cache, attn::into(Y));
    sdpa(K, K, K, attn::into(of_matrices), attn::causal());
    EXPECT_TRUE(same_bits(Y, of_matrices)) << keys << " keys";
  }
}

// Wherever in its blocks it stands, what it takes it attends.
TEST(Ring, AttendsAllThatItTakesAtATime) {
  constexpr Index kWindow = 40, kDim = 64;
  attn::KeyValueCache<float> ring(attn::KeyValueCacheOptions(80, 1, kDim).ring(kWindow));
  const Index room = ring.room();
  const Matrix X = support::uniform<float>(room, kDim, 1);
  attn::ScaledDotProductAttention<float> sdpa;
  Matrix Y;
  for (Index before = 0; before < 600; ++before) {
    // What matters is where in a block the first row's window begins; blocks are of 64 keys or more.
    if (before % 13 != 0 && std::abs(before % 64 - kWindow + 1) > 2) continue;
    ring.clear();
    for (Index n = 0; n < before; n += room) {
      const Index part = std::min(room, before - n);
      ring.append(X.topRows(part), X.topRows(part));
    }
    ring.append(X, X);
    EXPECT_NO_THROW(sdpa(X, ring, attn::into(Y))) << before;
  }
}
// And no token more, which would be one row whose keys are lost.
TEST(Ring, TakesNoMoreThanItAttends) {
  attn::KeyValueCache<float> ring(attn::KeyValueCacheOptions(80, 1, 64).ring(40));
  const Matrix X = support::uniform<float>(ring.room() + 1, 64, 1);
  EXPECT_THROW(ring.append(X, X), std::invalid_argument);
}

}  // namespace
