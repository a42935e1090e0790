// tests/kv_cache_test.cpp: a cache's rows have the bits of the prompt, however their tokens came, and those of attention without
// a cache; batches, chosen sequences, memory of the caller, copies.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>

#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/scalar_names.h"

namespace {

using Eigen::Index;
using support::DynamicMatrix;
using support::same_bits;
using support::uniform;

/// Queries, keys and values of one sequence under 4 query and 2 key/value heads of 24 and 40 features.
template <class Scalar>
struct Tokens {
  static constexpr Index kHeads = 4, kKvHeads = 2, kKeyDim = 24, kValueDim = 40;
  using Matrix = DynamicMatrix<Scalar>;
  Matrix Q, K, V;
  explicit Tokens(Index length, std::uint32_t seed = 1)
      : Q(uniform<Scalar>(length, kHeads * kKeyDim, seed, 2)),
        K(uniform<Scalar>(length, kKvHeads * kKeyDim, seed + 1, 2)),
        V(uniform<Scalar>(length, kKvHeads * kValueDim, seed + 2)) {}

  static attn::KeyValueCacheOptions options(Index capacity) {
    return attn::KeyValueCacheOptions(capacity, kKvHeads, kKeyDim).value_dim(kValueDim);
  }
  Index length() const { return Q.rows(); }
  Matrix plain() const {
    return attn::attention(attn::heads(Q, kHeads), attn::heads(K, kKvHeads),
                           attn::heads(V, kKvHeads), attn::causal());
  }
};

template <class Storage>
using input_t = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

/// One instantiation for all tests of a storage type.
template <class Storage>
DynamicMatrix<input_t<Storage>> attend(const DynamicMatrix<input_t<Storage>>& Q,
                                       const attn::KeyValueCache<Storage>& cache) {
  return attn::attention(attn::heads(Q, 4), cache);
}

template <class Storage>
class KvCacheBits : public ::testing::Test {
 protected:
  using Scalar = input_t<Storage>;

  /// All rows of the tokens, appended and attended in chunks of the given lengths, the last repeated.
  static DynamicMatrix<Scalar> in_chunks(const Tokens<Scalar>& x,
                                         const std::vector<Index>& lengths) {
    attn::KeyValueCache<Storage> cache(x.options(x.length()));
    DynamicMatrix<Scalar> Y(x.length(), x.kHeads * x.kValueDim);
    for (Index done = 0, n = 0; done < x.length(); ++n) {
      const Index at = std::min<Index>(n, Index(lengths.size()) - 1),
                  count = std::min(lengths[std::size_t(at)], x.length() - done);
      cache.append(x.K.middleRows(done, count), x.V.middleRows(done, count));
      Y.middleRows(done, count) = attend<Storage>(x.Q.middleRows(done, count), cache);
      done += count;
    }
    EXPECT_EQ(cache.length(), x.length());
    return Y;
  }
};
using Storages = ::testing::Types<float, double, Eigen::half, Eigen::bfloat16, std::int8_t>;
TYPED_TEST_SUITE(KvCacheBits, Storages, support::ScalarNames);

TYPED_TEST(KvCacheBits, AreThePromptsInChunksOfAnySizeAndTokenByToken) {
  const Tokens<input_t<TypeParam>> x(600);
  const auto prompt = this->in_chunks(x, {600});
  for (const std::vector<Index>& chunks : std::vector<std::vector<Index>>{
           {1}, {2}, {3, 1, 7}, {5, 16}, {17}, {31, 1}, {100}, {255, 1, 1, 300}, {256}, {599}}) {
    EXPECT_TRUE(same_bits(this->in_chunks(x, chunks), prompt)) << "chunks of " << chunks[0];
  }
}

TYPED_TEST(KvCacheBits, OfTheFirstRowsDoNotDependOnWhatFollows) {
  const Tokens<input_t<TypeParam>> x(70);
  const auto prompt = this->in_chunks(x, {70});
  for (Index length : {1, 2, 15, 16, 17, 33, 64}) {
    attn::KeyValueCache<TypeParam> cache(x.options(1000));
    cache.append(x.K.topRows(length), x.V.topRows(length));
    EXPECT_TRUE(same_bits(attend<TypeParam>(x.Q.topRows(length), cache), prompt.topRows(length)));
    EXPECT_TRUE(same_bits(attend<TypeParam>(x.Q.row(length - 1), cache), prompt.row(length - 1)));
  }
}

TYPED_TEST(KvCacheBits, AreTheSameInABatchAndForChosenSequences) {
  using Matrix = DynamicMatrix<input_t<TypeParam>>;
  const Tokens<input_t<TypeParam>> x(61, 1), y(300, 11), z(9, 21);
  attn::KeyValueCache<TypeParam> cache(x.options(301).sequences(3));
  const auto stacked = [](const Matrix& a, const Matrix& b, const Matrix& c) {
    Matrix all(a.rows() + b.rows() + c.rows(), a.cols());
    all << a, b, c;
    return all;
  };
  // A ragged prompt but for the last token of each; then those, in two calls of chosen sequences.
  const auto head = [](const Matrix& m) { return Matrix(m.topRows(m.rows() - 1)); };
  cache.append(stacked(head(x.K), head(y.K), head(z.K)), stacked(head(x.V), head(y.V), head(z.V)),
               attn::sequences({0, 60, 359, 367}));
  const auto last = [](const Matrix& m) { return Matrix(m.bottomRows(1)); };
  cache.append(stacked(last(z.K), last(x.K), Matrix(0, x.K.cols())),
               stacked(last(z.V), last(x.V), Matrix(0, x.V.cols())), attn::sequence_length(1),
               attn::cache_sequences({2, 0}));
  cache.append(last(y.K), last(y.V), attn::cache_sequences({1}));
  EXPECT_EQ(cache.length(0), 61);
  EXPECT_EQ(cache.length(1), 300);
  EXPECT_EQ(cache.length(2), 9);

  const auto of_x = this->in_chunks(x, {61}), of_y = this->in_chunks(y, {300}),
             of_z = this->in_chunks(z, {9});
  const Matrix all = attn::attention(attn::heads(stacked(x.Q, y.Q, z.Q), 4), cache,
                                     attn::sequences({0, 61, 361, 370}), attn::parallel(2));
  EXPECT_TRUE(same_bits(all, stacked(of_x, of_y, of_z)));
  const Matrix some =
      attn::attention(attn::heads(stacked(last(y.Q), last(z.Q), last(y.Q)), 4), cache,
                      attn::sequence_length(1), attn::cache_sequences({1, 2, 1}));
  EXPECT_TRUE(same_bits(some, stacked(last(of_y), last(of_z), last(of_y))));
}

TYPED_TEST(KvCacheBits, StayAfterTruncationAndCopies) {
  using Matrix = DynamicMatrix<input_t<TypeParam>>;
  const Tokens<input_t<TypeParam>> x(330);
  const Matrix prompt = this->in_chunks(x, {330});
  const auto junk = Matrix::Constant(64, x.K.cols(), 7).eval();
  const auto junk_values = Matrix::Constant(64, x.V.cols(), -9).eval();
  for (Index length : {0, 1, 3, 16, 31, 32, 33, 255, 256, 257, 300}) {
    attn::KeyValueCache<TypeParam> cache(x.options(400).sequences(2));
    const auto only = attn::cache_sequences({0});
    cache.append(x.K.topRows(length), x.V.topRows(length), only);
    for (Index rejected : {1, 5, 40, 64}) {
      cache.append(junk.topRows(rejected), junk_values.topRows(rejected), only);
      cache.truncate(0, length);
    }
    cache.copy(0, 1);
    attn::KeyValueCache<TypeParam> whole = cache;
    const auto rest = [&](attn::KeyValueCache<TypeParam>& c, Index sequence) {
      const auto chosen = attn::cache_sequences({sequence});
      c.append(x.K.bottomRows(330 - length), x.V.bottomRows(330 - length), chosen);
      return Matrix(attn::attention(attn::heads(x.Q, 4), c, chosen));
    };
    EXPECT_TRUE(same_bits(rest(cache, 0), prompt)) << length;
    EXPECT_TRUE(same_bits(rest(cache, 1), prompt)) << length;
    EXPECT_TRUE(same_bits(rest(whole, 0), prompt)) << length;
  }
}

template <class Scalar>
class KvCacheOfScalars : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(KvCacheOfScalars, Scalars, support::ScalarNames);

TYPED_TEST(KvCacheOfScalars, HaveTheBitsOfAttentionWithoutOne) {
  for (Index length : {1, 2, 5, 16, 33, 255, 256, 257, 700}) {
    const Tokens<TypeParam> x(length, std::uint32_t(length));
    attn::KeyValueCache<TypeParam> cache(x.options(700));
    cache.append(x.K, x.V);
    EXPECT_TRUE(same_bits(attend<TypeParam>(x.Q, cache), x.plain())) << length;
  }
}

// Narrow numbers that need no rounding on the way in are those of attention on narrow operands.
TEST(KvCacheOfHalf, HasTheBitsOfAttentionOnHalf) {
  const Tokens<float> x(300);
  const DynamicMatrix<Eigen::half> K = x.K.cast<Eigen::half>(), V = x.V.cast<Eigen::half>();
  attn::KeyValueCache<Eigen::half> cache(x.options(300)), rounded(x.options(300));
  cache.append(K, V);
  rounded.append(x.K, x.V);
  const DynamicMatrix<float> plain =
      attn::attention(attn::heads(x.Q, 4), attn::heads(K, 2), attn::heads(V, 2), attn::causal());
  EXPECT_TRUE(same_bits(attend<Eigen::half>(x.Q, cache), plain));
  EXPECT_TRUE(same_bits(attend<Eigen::half>(x.Q, rounded), plain));
}

TEST(KvCache, TakesTokensFromAnyLayout) {
  const Tokens<float> x(48);
  attn::KeyValueCache<float> cache(x.options(24).sequences(2)), other(cache), third(cache);
  const auto two = attn::sequence_length(24);
  cache.append(x.K, x.V, two);
  // Column-major and reversed columns, expressions, heads() said; memory [B, H, L, d].
  const DynamicMatrix<float, Eigen::ColMajor> K = x.K, V = x.V / 2;
  other.append(attn::heads(K, 2), attn::heads(2 * V, 2), two);
  std::vector<float> keys, values;
  for (Index b = 0; b < 2; ++b) {
    for (Index h = 0; h < 2; ++h) {
      for (Index t = 0; t < 24; ++t) {
        for (Index c = 0; c < 24; ++c) keys.push_back(x.K(b * 24 + t, h * 24 + c));
        for (Index c = 0; c < 40; ++c) values.push_back(x.V(b * 24 + t, h * 40 + c));
      }
    }
  }
  third.append(attn::bhld(keys.data(), 2, 2, 24, 24), attn::bhld(values.data(), 2, 2, 24, 40));
  const auto rows = [&](const attn::KeyValueCache<float>& c) {
    return DynamicMatrix<float>(attn::attention(attn::heads(x.Q, 4), c, two));
  };
  EXPECT_TRUE(same_bits(rows(other), rows(cache)));
  EXPECT_TRUE(same_bits(rows(third), rows(cache)));
  // Queries and output [L, B, H, d].
  const DynamicMatrix<float> expected = rows(cache);
  std::vector<float> queries(48 * 4 * 24), output(48 * 4 * 40);
  for (Index b = 0; b < 2; ++b) {
    for (Index t = 0; t < 24; ++t) {
      for (Index c = 0; c < 4 * 24; ++c)
        queries[std::size_t((t * 2 + b) * 4 * 24 + c)] = x.Q(b * 24 + t, c);
    }
  }
  attn::attention(attn::lbhd(queries.data(), 24, 2, 4, 24), cache,
                  attn::into(attn::lbhd(output.data(), 24, 2, 4, 40)));
  for (Index b = 0; b < 2; ++b) {
    for (Index t = 0; t < 24; ++t) {
      for (Index c = 0; c < 4 * 40; ++c)
        ASSERT_EQ(output[std::size_t((t * 2 + b) * 4 * 40 + c)], expected(b * 24 + t, c));
    }
  }
  const DynamicMatrix<float> without_heads = attn::attention(x.Q, cache, two);
  EXPECT_TRUE(same_bits(without_heads, rows(cache)));
}

TEST(KvCache, IsServedByTheFunctorToo) {
  const Tokens<float> x(40);
  attn::KeyValueCache<float> cache(x.options(40));
  cache.append(x.K, x.V);
  attn::ScaledDotProductAttention<float> sdpa;
  attn::Workspace<float> workspace;
  DynamicMatrix<float> Y, Z;
  sdpa(attn::heads(x.Q, 4), cache, attn::into(Y));
  std::as_const(sdpa)(attn::heads(x.Q, 4), cache, attn::into(Z), attn::use(workspace));
  EXPECT_TRUE(same_bits(Y, x.plain()));
  EXPECT_TRUE(same_bits(Z, x.plain()));
  EXPECT_TRUE(same_bits(DynamicMatrix<float>(sdpa(attn::heads(x.Q, 4), cache)), x.plain()));
}

TEST(KvCache, IsSharedByThreadsThatOnlyAttend) {
  const Tokens<float> x(300);
  attn::KeyValueCache<float> cache(x.options(300));
  cache.append(x.K, x.V);
  const attn::ScaledDotProductAttention<float> sdpa;
  DynamicMatrix<float> Y[3];
  std::vector<std::thread> threads;
  for (auto& y : Y) {
    threads.emplace_back([&] {
      attn::Workspace<float> workspace;
      sdpa(attn::heads(x.Q, 4), cache, attn::into(y), attn::use(workspace));
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& y : Y) EXPECT_TRUE(same_bits(y, x.plain()));
}

TEST(KvCache, LiesInTheCallersMemoryAtAnyAlignment) {
  const Tokens<float> x(40);
  const auto options = x.options(40);
  const std::size_t bytes = attn::KeyValueCache<float>::bytes_needed(options);
  std::vector<unsigned char> memory(bytes + 64, 0xff);
  for (const std::size_t shift : {0u, 1u, 32u, 63u}) {
    attn::KeyValueCache<float> cache(options, memory.data() + shift, bytes);
    cache.append(x.K, x.V);
    EXPECT_TRUE(same_bits(attend<float>(x.Q, cache), x.plain()));
    attn::KeyValueCache<float> copied = cache;  // has memory of its own
    cache.clear();
    EXPECT_TRUE(same_bits(attend<float>(x.Q, copied), x.plain()));
    EXPECT_EQ(memory[shift + bytes], 0xff);
  }
}

TEST(KvCache, IsARegularValue) {
  const Tokens<float> x(40);
  attn::KeyValueCache<float> empty, cache(x.options(40)), same(x.options(40)), other(x.options(7));
  EXPECT_EQ(empty.sequences(), 0);
  cache.append(x.K, x.V);
  same = cache;
  other = cache;
  attn::KeyValueCache<float> moved = std::move(cache);
  EXPECT_EQ(cache.sequences(), 0);  // NOLINT(bugprone-use-after-move): holds nothing
  moved.truncate(3);
  EXPECT_EQ(same.length(), 40);
  EXPECT_EQ(other.length(), 40);
  EXPECT_EQ(moved.length(), 3);
  EXPECT_TRUE(same_bits(attend<float>(x.Q, same), x.plain()));
  EXPECT_TRUE(same_bits(attend<float>(x.Q, other), x.plain()));
  cache = std::move(other);
  EXPECT_TRUE(same_bits(attend<float>(x.Q, cache), x.plain()));
  empty = moved;
  EXPECT_EQ(empty.length(), 3);
}

TEST(KvCache, OfKeysPackedOnceServesAnyNumberOfQueries) {
  const Tokens<float> x(50), y(90, 7);
  attn::KeyValueCache<float> memory(x.options(50));
  memory.append(x.K, x.V);
  const DynamicMatrix<float> plain =
      attn::attention(attn::heads(y.Q, 4), attn::heads(x.K, 2), attn::heads(x.V, 2));
  const DynamicMatrix<float> one = attn::attention(attn::heads(y.Q, 4), memory, attn::all_keys());
  EXPECT_TRUE(same_bits(one, plain));
  // One cached sequence, a batch of queries.
  const DynamicMatrix<float> batch =
      attn::attention(attn::heads(y.Q, 4), memory, attn::all_keys(), attn::sequence_length(30));
  EXPECT_TRUE(same_bits(batch, plain));
  const DynamicMatrix<float> windowed =
      attn::attention(attn::heads(y.Q, 4), attn::heads(x.K, 2), attn::heads(x.V, 2),
                      attn::window(9, 3), attn::query_offset(5));
  const DynamicMatrix<float> windowed_cache = attn::attention(
      attn::heads(y.Q, 4), memory, attn::all_keys(), attn::window(9, 3), attn::query_offset(5));
  EXPECT_TRUE(same_bits(windowed_cache, windowed));
}

TEST(KvCache, OfNoTokensGivesEmptyResults) {
  const Tokens<float> x(3);
  attn::KeyValueCache<float> cache(x.options(40));
  cache.append(x.K.topRows(0), x.V.topRows(0));
  EXPECT_EQ(cache.length(), 0);
  EXPECT_EQ(attend<float>(x.Q.topRows(0), cache).rows(), 0);
  const DynamicMatrix<float> nothing =
      attn::attention(attn::heads(x.Q, 4), cache, attn::all_keys());
  EXPECT_TRUE(nothing.isZero(0));
}

}  // namespace
