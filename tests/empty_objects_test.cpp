// tests/empty_objects_test.cpp: what was never filled, or was moved from, refuses its use in words, and takes another's place.
// build: -Og
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "support/error_of.h"
#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/random_layer.h"

namespace {

using attn::AttentionShape;
using attn::MultiHeadOptions;
using Eigen::Index;
using support::error_of;
using support::same_bits;
using Matrix = support::DynamicMatrix<float>;
using Layer = attn::MultiHeadAttention<float>;

const std::string kNothing =
    ": the cache holds nothing (it was made without options, or moved from): assign "
    "KeyValueCache(options) to it";

attn::KeyValueCacheOptions cache_options() { return attn::KeyValueCacheOptions(20, 2, 4); }

/// Every member, and every call that takes a cache.
template <class Storage>
void expect_refused(attn::KeyValueCache<Storage>& cache) {
  const Matrix X = support::uniform<float>(3, 8, 1), before = X;
  const std::string own = "attn::KeyValueCache" + kNothing;
  EXPECT_EQ(error_of([&] { cache.append(X, X); }), "attn::KeyValueCache::append" + kNothing);
  EXPECT_EQ(error_of([&] { cache.append(attn::heads(X, 2), attn::heads(X, 2)); }),
            "attn::KeyValueCache::append" + kNothing);
  EXPECT_EQ(error_of([&] { (void)cache.length(); }), own);
  EXPECT_EQ(error_of([&] { (void)cache.room(); }), own);
  EXPECT_EQ(error_of([&] { cache.truncate(0); }), own);
  EXPECT_EQ(error_of([&] { cache.truncate(0, 0); }), own);
  EXPECT_EQ(error_of([&] { cache.clear(); }), own);
  EXPECT_EQ(error_of([&] { cache.clear(0); }), own);
  EXPECT_EQ(error_of([&] { cache.copy(0, 0); }), own);
  EXPECT_EQ(error_of([&] { (void)cache.shape(1, 2); }), own);
  for (const Index size : {cache.sequences(), cache.capacity(), cache.kv_heads(), cache.key_dim(),
                           cache.value_dim(), Index(cache.bytes())}) {
    EXPECT_EQ(size, 0);
  }

  Matrix Y = before;
  EXPECT_EQ(error_of([&] { attn::attention(X, cache, attn::into(Y)); }),
            "attn::attention" + kNothing);
  EXPECT_EQ(error_of([&] { (void)attn::attention(X, cache, attn::all_keys()); }),
            "attn::attention" + kNothing);
  Layer mha = support::random_layer<float>(MultiHeadOptions(8, 2));
  EXPECT_EQ(error_of([&] { mha.decode(X, cache, attn::into(Y)); }),
            "attn::MultiHeadAttention::decode" + kNothing);
  EXPECT_TRUE(same_bits(Y, before));

  attn::KeyValueCache<Storage> copied(cache), other{cache_options()};
  EXPECT_EQ(copied.bytes(), 0u);
  other = cache;
  EXPECT_EQ(other.sequences(), 0);
  cache = attn::KeyValueCache<Storage>(cache_options());
  cache.append(X, X);
  EXPECT_EQ(cache.length(), 3);
}

TEST(ACacheThatHoldsNothing, IsRefusedAndFilled) {
  attn::KeyValueCache<float> made, moved(cache_options()), borrowed;
  expect_refused(made);
  const auto taken = std::move(moved);
  expect_refused(moved);
  std::vector<unsigned char> memory(attn::KeyValueCache<float>::bytes_needed(cache_options()));
  borrowed = attn::KeyValueCache<float>(cache_options(), memory.data(), memory.size());
  attn::KeyValueCache<float> assigned;
  assigned = std::move(borrowed);
  expect_refused(borrowed);
  EXPECT_EQ(taken.capacity(), assigned.capacity());
  attn::KeyValueCache<std::int8_t> narrow;
  expect_refused(narrow);
}

TEST(ALayerThatWasMovedFrom, IsRefusedAndFilled) {
  const Matrix X = support::uniform<float>(3, 8, 1), before = X;
  Layer moved = support::random_layer<float>(MultiHeadOptions(8, 2));
  const Layer taken = std::move(moved);
  Matrix Y = before;
  const std::string nothing = ": the layer holds nothing (it was moved from): assign another to it";
  const auto expect_nothing = [&](Layer& mha) {
    EXPECT_EQ(error_of([&] { mha(X, attn::into(Y)); }), "attn::MultiHeadAttention" + nothing);
    EXPECT_EQ(error_of([&] { (void)mha(X); }), "attn::MultiHeadAttention" + nothing);
    EXPECT_EQ(error_of([&] { mha.edit([](auto& w) { w.query.setOnes(8, 8); }); }),
              "attn::MultiHeadAttention::edit" + nothing);
    EXPECT_EQ(error_of([&] { mha.set_query(Matrix::Ones(8, 8)); }),
              "attn::MultiHeadAttention::edit" + nothing);
    attn::KeyValueCache<float> cache(cache_options());
    EXPECT_EQ(error_of([&] { mha.decode(X, cache, attn::into(Y)); }),
              "attn::MultiHeadAttention::decode" + nothing);
    EXPECT_EQ(cache.length(), 0);
    std::vector<float> in(192), out(64);
    attn::PyTorchView<float> view;
    view.in_proj_weight = in.data();
    view.out_proj_weight = out.data();
    EXPECT_EQ(error_of([&] { attn::store(mha.weights(), view); }),
              "attn::MultiHeadAttention::weights" + nothing);
  };
  expect_nothing(moved);
  Layer copied(moved);
  expect_nothing(copied);
  EXPECT_TRUE(same_bits(Y, before));
  moved = taken;
  attn::Workspace<float> workspace;
  EXPECT_TRUE(same_bits(moved(X), taken(X, attn::use(workspace))));
}

TEST(AFunctorThatWasMovedFrom, StartsAnew) {
  const Matrix X = support::uniform<float>(30, 8, 1), expected = attn::attention(X, X, X);
  attn::ScaledDotProductAttention<float> sdpa;
  attn::Workspace<float> workspace;
  Matrix Y;
  for (int n = 0; n < 2; ++n) {
    sdpa(X, X, X, attn::into(Y));
    EXPECT_TRUE(same_bits(Y, expected));
    attn::attention(X, X, X, attn::into(Y), attn::use(workspace));
    EXPECT_TRUE(same_bits(Y, expected));
    const auto taken = std::move(sdpa);
    const auto taken_too = std::move(workspace);
    EXPECT_GT(taken_too.capacity(), 0);
    EXPECT_EQ(workspace.capacity(), 0);
  }
}

TEST(AShapeThatNoCallHas, IsNotReserved) {
  attn::ScaledDotProductAttention<float> sdpa;
  const auto refusal = [&](Index heads, Index kv_heads, int workers) {
    AttentionShape shape{9, 9, 8, 8, heads, kv_heads};
    shape.workers = workers;
    Layer mha(MultiHeadOptions(8, 2));
    const std::string message = error_of([&] { sdpa.reserve(shape); });
    EXPECT_EQ(error_of([&] { (void)sdpa.scratch_scalars(shape); }), message);
    EXPECT_EQ(error_of([&] { mha.reserve_decode(shape); }),
              "attn::MultiHeadAttention::reserve_decode" + message.substr(message.find(": ")))
        << "under its own name";
    return message;
  };
  const std::string name = "attn::ScaledDotProductAttention::reserve: ";
  EXPECT_EQ(refusal(4, 0, 1), name + "kv_heads is 0, needs at least 1");
  EXPECT_EQ(refusal(0, 1, 1), name + "heads is 0, needs at least 1");
  EXPECT_EQ(refusal(4, 3, 1), name + "heads is 4, needs a multiple of kv_heads, 3");
  EXPECT_EQ(refusal(2, 1, 0), name + "workers is 0, needs at least 1");
  attn::LayerShape shape;
  shape.queries = shape.keys = 4;
  shape.workers = 0;
  Layer mha(MultiHeadOptions(8, 2));
  EXPECT_EQ(error_of([&] { mha.reserve(shape); }),
            "attn::MultiHeadAttention::reserve: workers is 0, needs at least 1");
}

}  // namespace
