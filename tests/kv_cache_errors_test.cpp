// tests/kv_cache_errors_test.cpp: what a cache refuses, in which words; cache and outputs are then as they were, also where a
// functor throws. Allocations that fail: allocation_failure_test.cpp.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>

#include <string>
#include <vector>

#include "support/error_of.h"
#include "support/matrix_matchers.h"
#include "support/random.h"

namespace {

using Eigen::Index;
using support::error_of;
using support::uniform;
using Matrix = support::DynamicMatrix<float>;

/// Three sequences of 5, 0 and 2 tokens, under 2 heads of 6 and 4 features, in memory that can be compared byte by byte.
class KvCacheErrors : public ::testing::Test {
 protected:
  const attn::KeyValueCacheOptions options =
      attn::KeyValueCacheOptions(20, 2, 6).value_dim(4).sequences(3);
  std::vector<unsigned char> memory =
      std::vector<unsigned char>(attn::KeyValueCache<float>::bytes_needed(options));
  attn::KeyValueCache<float> cache{options, memory.data(), memory.size()};
  const Matrix K = uniform<float>(7, 12, 1), V = uniform<float>(7, 8, 2),
               Q = uniform<float>(4, 24, 3);
  Matrix Y = Matrix::Constant(4, 16, 42);

  void SetUp() override { cache.append(K, V, attn::sequences({0, 5, 5, 7})); }

  /// The message of a call that changes nothing.
  template <class Call>
  std::string refusal(Call&& call) {
    const std::vector<unsigned char> before = memory;
    const std::string message = error_of(call);
    EXPECT_EQ(memory, before) << message;
    EXPECT_EQ(Y.size(), 64);
    EXPECT_TRUE(Y == Matrix::Constant(4, 16, 42)) << message;
    return message;
  }
  template <class... Options>
  std::string of_append(Index rows, Index key_width, Index value_rows, Index value_width,
                        const Options&... more) {
    const Matrix keys = uniform<float>(rows, key_width, 5),
                 values = uniform<float>(value_rows, value_width, 6);
    return refusal([&] { cache.append(keys, values, more...); });
  }
  template <class... Options>
  std::string of_attention(const Options&... more) {
    return refusal([&] { attn::attention(attn::heads(Q, 4), cache, attn::into(Y), more...); });
  }
};

#define EXPECT_SAYS(message, part) EXPECT_NE((message).find(part), std::string::npos) << (message)

TEST_F(KvCacheErrors, NameWhatAnAppendDoesNotFit) {
  const auto at = attn::cache_sequences({1});
  EXPECT_SAYS(of_append(2, 13, 2, 8, at),
              "append: key has 1 head of 13 features, the cache 2 of 6");
  EXPECT_SAYS(of_append(2, 12, 2, 9, at), "value has 1 head of 9 features, the cache 2 of 4");
  EXPECT_SAYS(of_append(2, 12, 3, 8, at), "value has 3 rows in 1 sequence, key has 2 in 1");
  EXPECT_SAYS(of_append(21, 12, 21, 8, at),
              "21 tokens for sequence 1, which holds 0 of at most 20");
  EXPECT_SAYS(of_append(16, 12, 16, 8, attn::cache_sequences({0})),
              "16 tokens for sequence 0, which holds 5 of at most 20");
  EXPECT_SAYS(of_append(2, 12, 2, 8), "key has 1 sequence, the cache has 3; say how rows fall");
  // The last of several does not fit: the others are not written either.
  EXPECT_SAYS(of_append(21, 12, 21, 8, attn::sequences({0, 1, 2, 21})),
              "19 tokens for sequence 2, which holds 2 of at most 20");
}

TEST_F(KvCacheErrors, NameSequencesThatDoNotExist) {
  EXPECT_SAYS(of_append(2, 12, 2, 8, attn::cache_sequences({3})),
              "cache_sequences: entry 0 is 3, the cache has 3 sequences");
  EXPECT_SAYS(of_append(2, 12, 2, 8, attn::cache_sequences({0, -1}), attn::sequence_length(1)),
              "cache_sequences: entry 1 is -1, the cache has 3 sequences");
  EXPECT_SAYS(of_append(2, 12, 2, 8, attn::cache_sequences({2, 2}), attn::sequence_length(1)),
              "cache_sequences names sequence 2 twice");
  EXPECT_SAYS(of_append(2, 12, 2, 8, attn::cache_sequences({0, 1})),
              "cache_sequences has 2 entries, key has 1 sequence");
  EXPECT_SAYS(of_append(2, 12, 2, 8, attn::cache_sequences({0}), attn::sequence_length(2, 1)),
              "the batch names rows of queries and of keys");
  EXPECT_SAYS(refusal([&] { (void)cache.length(3); }), "length: sequence 3, the cache has 3");
  EXPECT_SAYS(refusal([&] { (void)cache.room(-1); }), "room: sequence -1, the cache has 3");
  EXPECT_SAYS(refusal([&] { cache.copy(0, 3); }), "copy: sequence 3, the cache has 3");
  EXPECT_SAYS(refusal([&] { cache.clear(4); }), "sequence 4, the cache has 3");
}

TEST_F(KvCacheErrors, NameWhatCannotBeTruncated) {
  EXPECT_SAYS(refusal([&] { cache.truncate(0, 6); }), "truncate: to 6 tokens, sequence 0 holds 5");
  EXPECT_SAYS(refusal([&] { cache.truncate(0, -1); }), "truncate: to -1 tokens");
  EXPECT_SAYS(refusal([&] { cache.truncate(2); }), "truncate: to 2 tokens, sequence 1 holds 0");
}

TEST_F(KvCacheErrors, NameWhatAttentionDoesNotFit) {
  const auto first = attn::cache_sequences({0});
  EXPECT_SAYS(of_attention(), "query has 1 sequence, the cache has 3");
  EXPECT_SAYS(of_attention(attn::cache_sequences({7})), "entry 0 is 7, the cache has 3 sequences");
  EXPECT_SAYS(of_attention(attn::cache_sequences({2})),
              "query has 4 rows in sequence 0, the cache holds 2 tokens; rows are the last");
  EXPECT_SAYS(of_attention(attn::cache_sequences({2})), "all_keys()");
  EXPECT_SAYS(of_attention(first, attn::sequence_length(2, 4), attn::all_keys()),
              "the batch names rows of keys, which a cache knows itself");
  EXPECT_SAYS(
      of_attention(first, attn::rotary(attn::pairing::half_split)),
      "called with rotary() of 6 features, half_split, sequence 0 of the cache was appended "
      "without rotary()");
  EXPECT_SAYS(of_attention(first, attn::key_lengths(6)), "needs 0 <= begin <= end <= 5");
  EXPECT_SAYS(refusal([&] { attn::attention(attn::heads(Q, 3), cache, attn::into(Y), first); }),
              "query has 8 features for each head, the cache 6");
  EXPECT_SAYS(refusal([&] {
                attn::attention(attn::heads(Matrix(Q.leftCols(18)), 3), cache, attn::into(Y),
                                first);
              }),
              "query has 3 heads, needs a multiple of the cache's 2");
  Matrix wrong = Matrix::Zero(4, 15);
  EXPECT_SAYS(refusal([&] {
                attn::attention(attn::heads(Q, 4), cache, attn::into(wrong.leftCols(14)), first);
              }),
              "output is 4x14, needs 4x16");
}

TEST_F(KvCacheErrors, NameKeysTurnedOnceAndNotAlways) {
  const auto rotary = attn::rotary(attn::pairing::interleaved).dims(4);
  EXPECT_SAYS(of_append(1, 12, 1, 8, attn::cache_sequences({0}), rotary),
              "called with rotary() of 4 features, interleaved, sequence 0 was appended without "
              "rotary() before");
  cache.append(K.topRows(1), V.topRows(1), attn::cache_sequences({1}), rotary);
  EXPECT_SAYS(of_append(1, 12, 1, 8, attn::cache_sequences({1})),
              "called without rotary(), sequence 1 was appended with rotary() of 4 features");
  EXPECT_SAYS(of_attention(attn::cache_sequences({1})),
              "called without rotary(), sequence 1 of the cache was appended with rotary() of 4");
  EXPECT_SAYS(of_append(1, 12, 1, 8, attn::cache_sequences({1}),
                        attn::rotary(attn::pairing::interleaved).dims(4).positions({1, 2})),
              "2 positions for the 1 row of key");
  const Matrix angles = Matrix::Ones(1, 2);
  EXPECT_SAYS(of_append(1, 12, 1, 8, attn::cache_sequences({1}),
                        attn::rotary(attn::pairing::interleaved, angles, angles)),
              "key position 1 is not among the 1 row of cosines and sines");
  cache.clear(1);
  cache.append(K.topRows(1), V.topRows(1), attn::cache_sequences({1}));  // empty: as it likes
}

TEST_F(KvCacheErrors, NameOutputsAndOperandsInTheCachesMemory) {
  float* const inside = reinterpret_cast<float*>(memory.data()) + 64;
  Eigen::Map<Matrix> Z(inside, 4, 16);
  EXPECT_SAYS(refusal([&] {
                attn::attention(attn::heads(Q, 4), cache, attn::into(Z),
                                attn::cache_sequences({0}));
              }),
              "output overlaps the cache");
  Eigen::Map<Matrix> keys(inside, 1, 12);
  EXPECT_SAYS(refusal([&] { cache.append(keys, V.topRows(1), attn::cache_sequences({0})); }),
              "the cache overlaps key");
}

TEST(KvCacheOptionErrors, NameTheSizes) {
  using Options = attn::KeyValueCacheOptions;
  const auto of = [](const Options& options) {
    return error_of([&] { attn::KeyValueCache<float> cache(options); });
  };
  EXPECT_SAYS(of(Options(0, 1, 8)), "capacity is 0, needs at least 1");
  EXPECT_SAYS(of(Options(9, 0, 8)), "kv_heads is 0, needs at least 1");
  EXPECT_SAYS(of(Options(9, 1, 0)), "key_dim is 0, needs at least 1");
  EXPECT_SAYS(of(Options(9, 1, 8).value_dim(-3)), "value_dim is -3, needs at least 1");
  EXPECT_SAYS(of(Options(9, 1, 8).sequences(0)), "sequences is 0, needs at least 1");
  EXPECT_SAYS(of(Options(9, 1, 8).ring(0)), "the ring's window is 0, needs at least 1");
  EXPECT_SAYS(of(Options(9, 1, 8).ring(10)),
              "capacity is 9, needs at least the ring's window of 10");
  EXPECT_SAYS(of(Options(9, 1, 8).pinned(1)),
              "1 token is pinned; pinned(n) needs n >= 0 and a ring");
  unsigned char few[100];
  EXPECT_SAYS(error_of([&] { attn::KeyValueCache<float>(Options(9, 1, 8), few, sizeof few); }),
              "the memory given is too small, needs ");
}

TEST(KvCacheRingErrors, NameWhatTheRingHasLost) {
  attn::KeyValueCache<float> cache(attn::KeyValueCacheOptions(100, 1, 6).ring(100));
  const Matrix K = uniform<float>(1000, 6, 1), Q = uniform<float>(1000, 6, 2);
  const Index room = cache.room();
  EXPECT_SAYS(error_of([&] { cache.append(K, K); }),
              "1000 tokens for sequence 0 of a ring that takes " + std::to_string(room));
  for (Index done = 0; done < 1000; done += 100)
    cache.append(K.middleRows(done, 100), K.middleRows(done, 100));
  Matrix Y;
  EXPECT_SAYS(error_of([&] { attn::attention(Q, cache, attn::into(Y)); }),
              "query row 0 of sequence 0 is at position 0 and sees keys from 0, of which the ring "
              "has lost those before ");
  EXPECT_EQ(Y.size(), 0);
  EXPECT_SAYS(error_of([&] { cache.truncate(300); }),
              "truncate: to 300 tokens, of which the ring's window needs those from 201");
  EXPECT_EQ(cache.length(), 1000);
  EXPECT_SAYS(error_of([&] { attn::attention(Q, cache, attn::into(Y), attn::all_keys()); }),
              "all_keys() on a ring");
  cache.truncate(990);
  EXPECT_EQ(cache.length(), 990);
  cache.clear();
  cache.append(K.topRows(1), K.topRows(1));
  attn::attention(Q.topRows(1), cache, attn::into(Y));
  EXPECT_TRUE(Y == K.topRows(1));
}

struct Thrown {};

TEST_F(KvCacheErrors, LeaveTheCacheAsItWasWhenAFunctorThrows) {
  const std::vector<unsigned char> before = memory;
  int asked = 0;
  const auto throwing = attn::score([&asked](float s, attn::At) {
    if (++asked == 7) throw Thrown();
    return s;
  });
  EXPECT_THROW(attn::attention(attn::heads(Q, 4), cache, attn::into(Y), attn::cache_sequences({0}),
                               throwing),
               Thrown);
  EXPECT_EQ(memory, before);
  // An expression that throws while it is evaluated, before anything is written.
  int evaluated = 0;
  const auto element = [&evaluated](float x) {
    if (++evaluated == 5) throw Thrown();
    return x;
  };
  EXPECT_THROW(
      cache.append(K.topRows(1), V.topRows(1).unaryExpr(element), attn::cache_sequences({0})),
      Thrown);
  EXPECT_EQ(memory, before);
  EXPECT_EQ(cache.length(), 5);
}

}  // namespace
