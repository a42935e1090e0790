// tests/multi_head_decode_test.cpp: a layer that decodes over a cache: the rows of its causal call, bit by bit. What it refuses:
// multi_head_errors_test.cpp.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/random_layer.h"
#include "support/scalar_names.h"
#include "support/threads.h"

namespace {

using attn::KeyValueCache;
using attn::KeyValueCacheOptions;
using attn::MultiHeadOptions;
using Eigen::Index;
using support::DynamicMatrix;
using support::near;
using support::random_layer;
using support::same_bits;
using support::uniform;

constexpr Index kWidth =
    24;  // of 4 query and 2 key/value heads, keys of 6 and values of 10 features
MultiHeadOptions sizes() {
  return MultiHeadOptions(kWidth, 4).kv_heads(2).value_dim(10).in_bias().out_bias();
}
KeyValueCacheOptions cache_for(Index capacity) {
  return KeyValueCacheOptions(capacity, 2, 6).value_dim(10);
}

/// All rows, decoded in chunks of the given lengths, the last of them repeated.
template <class Layer, class Matrix, class Cache, class... Options>
Matrix in_chunks(Layer& mha, const Matrix& X, Cache& cache, const std::vector<Index>& lengths,
                 const Options&... options) {
  Matrix Y(X.rows(), X.cols());
  for (Index done = 0, n = 0; done < X.rows(); ++n) {
    const auto at = std::min(std::size_t(n), lengths.size() - 1);
    const Index count = std::min(lengths[at], X.rows() - done);
    mha.decode(X.middleRows(done, count), cache, attn::into(Y.middleRows(done, count)), options...);
    done += count;
    EXPECT_EQ(cache.length(), done);
  }
  return Y;
}
const std::vector<std::vector<Index>>& chunkings() {
  static const std::vector<std::vector<Index>> all = {{1}, {300}, {40, 1}, {3, 1, 7}, {31, 64, 2}};
  return all;
}

template <class Scalar>
class Decode : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Decode, Scalars, support::ScalarNames);

TYPED_TEST(Decode, HasTheBitsOfTheCausalCallHoweverTokensCome) {
  auto mha = random_layer<TypeParam>(sizes());
  const auto X = uniform<TypeParam>(300, kWidth, 3);
  const DynamicMatrix<TypeParam> Y = mha(X, attn::causal(), attn::residual());
  for (const auto& chunks : chunkings()) {
    KeyValueCache<TypeParam> cache(cache_for(300));
    EXPECT_TRUE(same_bits(in_chunks(mha, X, cache, chunks, attn::residual()), Y)) << chunks[0];
  }
}

TEST(DecodeOf, KeysTurnOnTheirWayIn) {
  auto mha = random_layer<float>(sizes());
  const auto X = uniform<float>(300, kWidth, 3);
  const auto turned = attn::rotary(attn::pairing::half_split);
  const DynamicMatrix<float> Y = mha(X, attn::causal(), turned);
  for (const auto& chunks : chunkings()) {
    KeyValueCache<float> cache(cache_for(300));
    EXPECT_TRUE(same_bits(in_chunks(mha, X, cache, chunks, turned), Y)) << chunks[0];
  }
}

TEST(DecodeOf, ARingIsAWindow) {
  auto mha = random_layer<float>(sizes());
  const auto X = uniform<float>(900, kWidth, 3);
  const DynamicMatrix<float> Y = mha(X, attn::causal() && attn::window(99, 0));
  KeyValueCache<float> cache(cache_for(200).ring(100));
  EXPECT_TRUE(same_bits(in_chunks(mha, X, cache, {50, 1, 3, 90}), Y));
}

TEST(DecodeOf, ThreadsAndPartsOfKeysChangeNoBit) {
  auto mha = random_layer<float>(sizes());
  const auto X = uniform<float>(600, kWidth, 3);
  const auto split = attn::split_keys(256);
  const DynamicMatrix<float> Y = mha(X, attn::causal(), split);
  EXPECT_FALSE(same_bits(Y, DynamicMatrix<float>(mha(X, attn::causal()))));
  KeyValueCache<float> cache(cache_for(600));
  support::Threads pool;
  EXPECT_TRUE(same_bits(in_chunks(mha, X, cache, {300, 1, 290, 3}, split, attn::on(pool, 3)), Y));
}

template <class Storage>
class DecodeNarrow : public ::testing::Test {};
using Storages = ::testing::Types<Eigen::half, Eigen::bfloat16, std::int8_t>;
TYPED_TEST_SUITE(DecodeNarrow, Storages, support::ScalarNames);

TYPED_TEST(DecodeNarrow, CachesAgreeWithEachOtherInBitsAndWithFloatToTheirPrecision) {
  auto mha = random_layer<float>(sizes());
  const auto X = uniform<float>(300, kWidth, 3);
  const DynamicMatrix<float> exact = mha(X, attn::causal());
  KeyValueCache<TypeParam> whole(cache_for(300));
  const auto Y = in_chunks(mha, X, whole, {300});
  EXPECT_TRUE(near(Y, exact, 0.02));
  for (const auto& chunks : chunkings()) {
    KeyValueCache<TypeParam> cache(cache_for(300));
    EXPECT_TRUE(same_bits(in_chunks(mha, X, cache, chunks), Y)) << chunks[0];
  }
}

TEST(DecodeOf, NarrowWeightsKeepAFloatCache) {
  auto mha = random_layer<Eigen::bfloat16>(sizes());
  const auto X = uniform<float>(60, kWidth, 3);
  KeyValueCache<float> cache(cache_for(60));
  EXPECT_TRUE(
      same_bits(in_chunks(mha, X, cache, {50, 1}), DynamicMatrix<float>(mha(X, attn::causal()))));
}

TEST(DecodeOf, BatchesAreTheirSequencesAlone) {
  auto mha = random_layer<float>(sizes());
  const Index lengths[] = {40, 7, 21};
  std::vector<DynamicMatrix<float>> X, Y;
  for (int b = 0; b < 3; ++b) {
    X.push_back(uniform<float>(lengths[b] + 2, kWidth, std::uint32_t(b)));
    Y.push_back(mha(X.back(), attn::causal(), attn::residual()));
  }
  KeyValueCache<float> cache(cache_for(50).sequences(4));
  DynamicMatrix<float> prompts(68, kWidth), step(2, kWidth), Z;
  prompts << X[0].topRows(40), X[1].topRows(7), X[2].topRows(21);
  mha.decode(prompts, cache, attn::into(Z), attn::sequences({0, 40, 47, 68}),
             attn::cache_sequences({2, 0, 3}), attn::residual());
  EXPECT_TRUE(same_bits(Z.topRows(40), Y[0].topRows(40)));
  EXPECT_TRUE(same_bits(Z.middleRows(40, 7), Y[1].topRows(7)));
  EXPECT_TRUE(same_bits(Z.bottomRows(21), Y[2].topRows(21)));
  EXPECT_EQ(cache.length(0), 7);
  EXPECT_EQ(cache.length(1), 0);

  step << X[2].row(21), X[0].row(40);  // one token of two of them, in another order
  Z = mha.decode(step, cache, attn::sequence_length(1), attn::cache_sequences({3, 2}),
                 attn::residual());
  EXPECT_TRUE(same_bits(Z.row(0), Y[2].row(21)));
  EXPECT_TRUE(same_bits(Z.row(1), Y[0].row(40)));

  step << X[2].row(22), X[0].row(41);  // the same as a strided view [token, sequence, 1, feature]
  Z.setZero();
  mha.decode(attn::lbhd(step.data(), 1, 2, 1, kWidth), cache,
             attn::into(attn::lbhd(Z.data(), 1, 2, 1, kWidth)), attn::cache_sequences({3, 2}),
             attn::residual());
  EXPECT_TRUE(same_bits(Z.row(0), Y[2].row(22)));
  EXPECT_TRUE(same_bits(Z.row(1), Y[0].row(41)));
}

TEST(DecodeOf, AConstLayerBorrowsItsScratch) {
  const auto mha = random_layer<float>(sizes());
  const auto X = uniform<float>(9, kWidth, 3);
  attn::Workspace<float> workspace;
  KeyValueCache<float> cache(cache_for(9));
  const DynamicMatrix<float> Y = mha.decode(X, cache, attn::use(workspace));
  EXPECT_TRUE(same_bits(Y, DynamicMatrix<float>(mha(X, attn::causal(), attn::use(workspace)))));
  DynamicMatrix<float> Z = X;  // the output may be the input
  cache.clear();
  mha.decode(Z, cache, attn::into(Z), attn::residual(), attn::use(workspace));
  EXPECT_TRUE(same_bits(
      Z, DynamicMatrix<float>(mha(X, attn::causal(), attn::residual(), attn::use(workspace)))));
}

TEST(DecodeOf, WhatIsSavedCountsTheWholeSequence) {
  auto mha = random_layer<float>(sizes());
  const auto X = uniform<float>(30, kWidth, 3);
  DynamicMatrix<float> W, l, some_W, some_l;
  (void)mha(X, attn::causal(), attn::save_weights(W, attn::average_heads()),
            attn::save_logsumexp(l));
  KeyValueCache<float> cache(cache_for(30));
  (void)mha.decode(X.topRows(20), cache);
  (void)mha.decode(X.bottomRows(10), cache, attn::save_weights(some_W, attn::average_heads()),
                   attn::save_logsumexp(some_l));
  EXPECT_TRUE(same_bits(some_W, W.bottomRows(10)));
  EXPECT_TRUE(same_bits(some_l, l.bottomRows(10)));
}

}  // namespace
