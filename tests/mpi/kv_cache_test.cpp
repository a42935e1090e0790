// tests/mpi/kv_cache_test.cpp: a cache on several ranks has the bits of one process under split_keys().
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <attn/mpi.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/error_of.h"
#include "support/matrix_matchers.h"
#include "support/random.h"

namespace {

using attn::KeyValueCacheOptions;
using attn::split_keys;
using Eigen::Index;
using Eigen::MatrixXf;
using support::error_of;
using support::same_bits;
using support::uniform;

/// A cache on one process, the same on all ranks, and tokens for both.
template <class Storage>
struct Caches {
  attn::mpi::Ranks ranks{MPI_COMM_WORLD};
  Index kv_heads, d_k, d_v;
  attn::KeyValueCache<Storage> one;
  attn::mpi::KeyValueCache<Storage> many;
  MatrixXf K, V;
  Index appended = 0;

  Caches(Index capacity, Index h_kv, Index key_dim, Index value_dim, Index chunk)
      : kv_heads(h_kv),
        d_k(key_dim),
        d_v(value_dim),
        one(options(capacity)),
        many(ranks, options(capacity), chunk),
        K(uniform<float>(capacity, h_kv * key_dim, 1, 3)),
        V(uniform<float>(capacity, h_kv * value_dim, 2)) {}

  KeyValueCacheOptions options(Index capacity) const {
    return KeyValueCacheOptions(capacity, kv_heads, d_k).value_dim(d_v);
  }
  template <class... Options>
  void append(Index tokens, const Options&... more) {
    const MatrixXf k = K.middleRows(appended, tokens), v = V.middleRows(appended, tokens);
    one.append(k, v, more...);
    many.append(k, v, more...);
    appended += tokens;
  }
};

template <class Storage>
class CacheOverRanks : public testing::Test {};
using Storages = testing::Types<float, Eigen::bfloat16, std::int8_t>;
TYPED_TEST_SUITE(CacheOverRanks, Storages, );

TYPED_TEST(CacheOverRanks, HasTheBitsOfSplitKeysWhileItGrows) {
  for (const Index kv_heads : {1, 2, 5}) {
    Caches<TypeParam> caches(2600, kv_heads, 8, 6, 200);  // parts of 256
    EXPECT_EQ(caches.many.part(), 256);
    const Index heads = 2 * kv_heads;
    for (const Index tokens : {700, 1, 67, 1, 200, 1500}) {
      caches.append(tokens);
      EXPECT_EQ(caches.many.length(), caches.appended);
      for (const Index rows : {Index(1), std::min<Index>(tokens, 40)}) {
        SCOPED_TRACE(std::to_string(rows) + " rows of " + std::to_string(caches.appended));
        const MatrixXf Q = uniform<float>(rows, heads * 8, 3, 3),
                       X = uniform<float>(rows, heads * 6, 4);
        MatrixXf l, m, own_l, own_m;
        const MatrixXf Y =
            attn::attention(attn::heads(Q, heads), caches.one, split_keys(256), attn::residual(X),
                            attn::sink({0.5}), attn::save_logsumexp(l), attn::save_max_logit(m));
        const MatrixXf own = attn::mpi::attention(
            attn::heads(Q, heads), caches.many, attn::residual(X), attn::sink({0.5}),
            attn::save_logsumexp(own_l), attn::save_max_logit(own_m));
        EXPECT_TRUE(same_bits(own, Y));
        EXPECT_TRUE(same_bits(own_l, l));
        EXPECT_TRUE(same_bits(own_m, m));
      }
    }
  }
}

/// Positions are those of the whole sequence, in every option that reads them.
TEST(CacheOverRanksOf, OptionsByPosition) {
  Caches<float> caches(1700, 2, 8, 5, 512);
  const auto turned = attn::rotary(attn::pairing::half_split);
  caches.append(900, turned);
  caches.append(650, turned);
  const MatrixXf Q = uniform<float>(30, 4 * 8, 3, 3), B = uniform<float>(30, 1550, 4);
  const auto options = attn::options(
      turned, attn::alibi({0.5, 0.25, 0.01, 0.1}), attn::window(1200, 0), attn::bias(B),
      attn::softcap(8.f), attn::mask([](Index i, Index j) { return (i + j) % 7 != 0; }),
      attn::score([](auto s, auto at) { return s + 0.001f * at.key - 0.1f * at.head; }));
  const MatrixXf Y = attn::attention(attn::heads(Q, 4), caches.one, options, split_keys(512)),
                 own = attn::mpi::attention(attn::heads(Q, 4), caches.many, options);
  EXPECT_TRUE(same_bits(own, Y));
}

TEST(CacheOverRanksOf, SequencesOfSeveralLengths) {
  const attn::mpi::Ranks ranks(MPI_COMM_WORLD);
  const auto options = KeyValueCacheOptions(1000, 2, 8).value_dim(6).sequences(3);
  attn::KeyValueCache<float> one(options);
  attn::mpi::KeyValueCache<float> many(ranks, options, 256);
  const std::vector<Index> tokens{0, 40, 940, 1240};
  const MatrixXf K = uniform<float>(1240, 16, 1), V = uniform<float>(1240, 12, 2),
                 Q = uniform<float>(3, 32, 3);
  const auto expect_same = [&] {
    const MatrixXf Y =
        attn::attention(attn::heads(Q, 4), one, attn::sequence_length(1), split_keys(256));
    MatrixXf own;
    attn::mpi::attention(attn::heads(Q, 4), many, attn::sequence_length(1), attn::into(own));
    EXPECT_TRUE(same_bits(own, Y));
  };
  one.append(K, V, attn::sequences(tokens));
  many.append(K, V, attn::sequences(tokens));
  expect_same();
  // Back to the middle of a part, to where one ends, and on from there; and one like another.
  one.truncate(1, 643), many.truncate(1, 643);
  expect_same();
  one.truncate(1, 512), many.truncate(1, 512);
  one.truncate(2, 131), many.truncate(2, 131);
  one.copy(2, 0), many.copy(2, 0);
  expect_same();
  const MatrixXf more_K = K.topRows(800), more_V = V.topRows(800);
  EXPECT_THROW(many.append(more_K, more_V, attn::sequences({0, 300, 301})), std::invalid_argument);
  one.append(more_K, more_V, attn::sequences({0, 300, 301, 800}));
  many.append(more_K, more_V, attn::sequences({0, 300, 301, 800}));
  expect_same();
}

TEST(CacheOverRanksOf, NothingYet) {
  Caches<float> caches(600, 2, 8, 6, 256);
  const MatrixXf Q = uniform<float>(3, 32, 3);
  const MatrixXf own = attn::mpi::attention(attn::heads(Q, 4), caches.many, attn::all_keys());
  EXPECT_EQ(own, MatrixXf::Zero(3, 24));
  caches.append(300);
  const MatrixXf Y = attn::attention(attn::heads(Q, 4), caches.one, attn::all_keys(),
                                     split_keys(256)),
                 later = attn::mpi::attention(attn::heads(Q, 4), caches.many, attn::all_keys());
  EXPECT_TRUE(same_bits(later, Y));
}

TEST(CacheOverRanksOf, MemoryIsSharedOut) {
  const attn::mpi::Ranks ranks(MPI_COMM_WORLD);
  const KeyValueCacheOptions options(64 * 256, 2, 64);
  const attn::KeyValueCache<float> one(options);
  const attn::mpi::KeyValueCache<float> many(ranks, options, 256);
  const auto share = std::size_t(64 / ranks.size() + (64 % ranks.size() != 0 ? 1 : 0));
  EXPECT_LT(many.bytes(), one.bytes() * (share + 1) / 64);
}

/// What f throws on this rank: "rank r failed: …" where another one failed.
template <class F>
std::string failure_of(const F& f) {
  try {
    f();
  } catch (const attn::mpi::RankFailed& other) {
    return "rank " + std::to_string(other.rank) + ": " + other.text;
  } catch (const std::exception& own) {
    return own.what();
  }
  return "nothing was thrown";
}

TEST(CacheOverRanksOf, AFailureOnOneRankReachesAll) {
  Caches<float> caches(900, 2, 8, 6, 256);
  const attn::mpi::Ranks& ranks = caches.ranks;
  caches.append(700);
  const MatrixXf Q = uniform<float>(3, 32, 3);
  const MatrixXf Y = attn::attention(attn::heads(Q, 4), caches.one, split_keys(256));
  const auto expect_works = [&] {
    EXPECT_TRUE(same_bits(MatrixXf(attn::mpi::attention(attn::heads(Q, 4), caches.many)), Y));
  };
  for (int bad = 0; bad < ranks.size(); ++bad) {
    const bool here = bad == ranks.rank();
    const auto expect = [&](const std::string& text, const std::string& failure) {
      EXPECT_EQ(failure, here ? text : "rank " + std::to_string(bad) + ": " + text);
    };
    // A wrong shape of the query, of an output, of what is appended.
    const MatrixXf narrow = Q.leftCols(here ? 28 : 32);
    expect("attn::mpi::attention: query has 7 features for each head, the cache 8",
           failure_of([&] { (void)attn::mpi::attention(attn::heads(narrow, 4), caches.many); }));
    MatrixXf small = MatrixXf::Zero(here ? 2 : 3, 24);
    expect("attn::mpi::attention: output is 2x24, needs 3x24", failure_of([&] {
             attn::mpi::attention(attn::heads(Q, 4), caches.many,
                                  attn::into(small.block(0, 0, small.rows(), 24)));
           }));
    const MatrixXf V = caches.V.topRows(here ? 49 : 50);
    expect(
        "attn::KeyValueCache::append: value has 49 rows in 1 sequence, key has 50 in 1; both "
        "need one row per key",
        failure_of([&] { caches.many.append(MatrixXf(caches.K.topRows(50)), V); }));
    EXPECT_EQ(caches.many.length(), 700);
    expect_works();
    // A mask that throws where it is asked: on a rank that has a part.
    if (bad < 3) {
      expect("thrown by a mask", failure_of([&] {
               (void)attn::mpi::attention(attn::heads(Q, 4), caches.many,
                                          attn::mask([here](Index, Index) -> bool {
                                            if (here) throw std::domain_error("thrown by a mask");
                                            return true;
                                          }));
             }));
      expect_works();
    }
  }
}

TEST(CacheOverRanksOf, CallsThatDifferAreRefusedOnAll) {
  Caches<float> caches(900, 2, 8, 6, 256);
  caches.append(300);
  if (caches.ranks.size() > 1) {
    const MatrixXf Q = uniform<float>(caches.ranks.rank() == 1 ? 3 : 2, 32, 3);
    EXPECT_EQ(
        error_of([&] { (void)attn::mpi::attention(attn::heads(Q, 4), caches.many); }),
        "attn::mpi::attention: query rows: 2 on one rank, 3 on another; needs the same on all");
    if (caches.ranks.rank() == 1) caches.many.truncate(299);
    const MatrixXf row = uniform<float>(1, 32, 3);
    EXPECT_EQ(error_of([&] { (void)attn::mpi::attention(attn::heads(row, 4), caches.many); }),
              "attn::mpi::attention: tokens of a sequence in the cache: 299 on one rank, 300 on "
              "another; needs the same on all");
    const Index more = caches.ranks.rank() == 1 ? 1 : 0;
    const auto refused = [&](const KeyValueCacheOptions& options) {
      return error_of([&] { attn::mpi::KeyValueCache<float>(caches.ranks, options, 256); });
    };
    EXPECT_EQ(refused(KeyValueCacheOptions(900 + more, 2, 8)),
              "attn::mpi::KeyValueCache: capacity: 900 on one rank, 901 on another; needs the same "
              "on all");
    EXPECT_EQ(refused(KeyValueCacheOptions(900, 2, 8).sequences(3 + more)),
              "attn::mpi::KeyValueCache: sequences: 3 on one rank, 4 on another; needs the same on "
              "all");
  }
  const KeyValueCacheOptions options(900, 2, 8);
  EXPECT_EQ(
      error_of([&] { attn::mpi::KeyValueCache<float>(caches.ranks, options.ring(100), 256); }),
      "attn::mpi::KeyValueCache: a ring lies in one piece: use KeyValueCache, whose memory "
      "does not grow with the context");
  EXPECT_EQ(error_of([&] { attn::mpi::KeyValueCache<float>(caches.ranks, options, 0); }),
            "attn::mpi::KeyValueCache: chunk is 0, needs at least 1");
}

}  // namespace
