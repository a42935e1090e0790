// tests/kv_cache_call_test.cpp: all that a call of attention takes, on a cache: masks, scores, rotary, saved outputs, a ring. The
// bits are those of the same call on the whole matrices with the offset named.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>

#include <vector>

#include "support/mask_cases.h"
#include "support/matrix_matchers.h"
#include "support/random.h"

namespace {

using Eigen::Index;
using support::same_bits;
using support::uniform;
using Matrix = support::DynamicMatrix<float>;

constexpr Index kHeads = 4, kKvHeads = 2, kDim = 20;

attn::KeyValueCacheOptions sizes(Index capacity) {
  return attn::KeyValueCacheOptions(capacity, kKvHeads, kDim);
}

/// A sequence of 300 tokens, of which the last 37 are queries.
struct Operands {
  static constexpr Index kKeys = 300, kRows = 37, kOffset = kKeys - kRows;
  Matrix Q = uniform<float>(kRows, kHeads*kDim, 1, 2),
         K = uniform<float>(kKeys, kKvHeads*kDim, 2, 2),
         V = uniform<float>(kKeys, kKvHeads*kDim, 3);
  attn::KeyValueCache<float> cache{sizes(400)};
  Operands() { cache.append(K, V); }

  template <class... Options>
  Matrix cached(const Options&... options) const {
    return attn::attention(attn::heads(Q, kHeads), cache, options...);
  }
  template <class... Options>
  Matrix plain(const Options&... options) const {
    return attn::attention(attn::heads(Q, kHeads), attn::heads(K, kKvHeads),
                           attn::heads(V, kKvHeads), options...);
  }
};

TEST(KvCacheCall, SeesTheKeysOfATreeOfCandidates) {
  const Operands x;
  const std::vector<int> parents{-1, 0, 0, 1, 1, 2, 5};
  EXPECT_TRUE(same_bits(x.cached(attn::tree(parents)),
                        x.plain(attn::tree(parents), attn::query_offset(x.kOffset))));
}

// A token of the tree sees what it would see if its branch had been appended alone.
TEST(KvCacheCall, GivesCandidatesOfATreeTheBitsOfTheirBranchAlone) {
  const auto Q = uniform<float>(7, kHeads * kDim, 11, 2),
             K = uniform<float>(7, kKvHeads * kDim, 12, 2),
             V = uniform<float>(7, kKvHeads * kDim, 13);
  const Operands x;
  attn::KeyValueCache<float> cache = x.cache;
  cache.append(K, V);
  const std::vector<int> parents{-1, 0, 0, 1, 1, 2, 5};
  const Matrix candidates = attn::attention(attn::heads(Q, kHeads), cache, attn::tree(parents));
  // Tokens 0 and 1 are a branch whose keys stand side by side in both caches.
  attn::KeyValueCache<float> branch = x.cache;
  for (Index t : {0, 1}) {
    branch.append(K.row(t), V.row(t));
    const Matrix alone = attn::attention(attn::heads(Matrix(Q.row(t)), kHeads), branch);
    EXPECT_TRUE(same_bits(alone, Matrix(candidates.row(t))));
  }
}

TEST(KvCacheCall, TakesScoresResidualAndEverythingThatIsSaved) {
  const Operands x;
  const std::vector<int> ids(x.kRows, 3);
  std::vector<int> key_ids(x.kKeys, 3);
  for (std::size_t j = 0; j < key_ids.size(); j += 3) key_ids[j] = 4;
  const auto B = uniform<float>(x.kRows, x.kKeys, 4), X = uniform<float>(x.kRows, kHeads * kDim, 5);
  struct Saved {
    Matrix l, m, e, W, S;
  } of_cache, of_plain;
  const auto call = [&](Saved& s, const auto& attend, const auto&... more) {
    return attend(attn::segments(ids, key_ids) && attn::window(200, 0), attn::softcap(5.f),
                  attn::bias(B), attn::alibi(0.01f), attn::sink({0.5f, 0.f, -1.f, 2.f}),
                  attn::residual(X), attn::save_logsumexp(s.l), attn::save_max_logit(s.m),
                  attn::save_entropy(s.e), attn::save_weights(s.W),
                  attn::save_scores(s.S, attn::stage::biased), more...);
  };
  const Matrix Y = call(of_cache, [&](const auto&... options) { return x.cached(options...); });
  const Matrix Z = call(
      of_plain, [&](const auto&... options) { return x.plain(options...); },
      attn::causal_from(x.kOffset));
  EXPECT_TRUE(same_bits(Y, Z));
  EXPECT_TRUE(same_bits(of_cache.l, of_plain.l));
  EXPECT_TRUE(same_bits(of_cache.m, of_plain.m));
  EXPECT_TRUE(same_bits(of_cache.e, of_plain.e));
  EXPECT_TRUE(same_bits(of_cache.W, of_plain.W));
  EXPECT_TRUE(same_bits(of_cache.S, of_plain.S));
}

TEST(KvCacheCall, TakesMasksThatSpeakOfCausalityInPlaceOfItsOwn) {
  const Operands x;
  const Matrix whole =
      x.plain(attn::prefix_lm(280) && attn::key_lengths(290), attn::query_offset(x.kOffset));
  EXPECT_TRUE(same_bits(x.cached(attn::prefix_lm(280) && attn::key_lengths(290)), whole));
  EXPECT_TRUE(same_bits(x.cached(attn::causal()), x.cached()));
}

TEST(KvCacheCall, TakesTheUsersMaskAndScoreAtPositionsInTheSequence) {
  const Operands x;
  const auto mask = attn::mask([](Index query, Index key) { return (query + key) % 3 != 0; });
  const auto score =
      attn::score([](auto s, auto at) { return s - 0.01f * abs(at.query - at.key); });
  EXPECT_TRUE(same_bits(x.cached(mask, score), x.plain(mask, score, attn::causal_from(x.kOffset))));
}

TEST(KvCacheCall, TakesABatchOfRaggedLengthsWithTablesOfItsLongest) {
  const auto Q = uniform<float>(5, kHeads * kDim, 1, 2),
             K = uniform<float>(90, kKvHeads * kDim, 2, 2),
             V = uniform<float>(90, kKvHeads * kDim, 3);
  attn::KeyValueCache<float> cache(sizes(60).sequences(3));
  cache.append(K, V, attn::sequences({0, 20, 78, 90}));
  const auto keep = support::random_bools(5, 58, 7, 0.7);
  Matrix W, W_plain;
  const Matrix Y = attn::attention(attn::heads(Q, kHeads), cache, attn::sequences({0, 1, 4, 5}),
                                   attn::keep(keep), attn::save_weights(W));
  const Matrix Z =
      attn::attention(attn::heads(Q, kHeads), attn::heads(K, kKvHeads), attn::heads(V, kKvHeads),
                      attn::sequences({0, 1, 4, 5}, {0, 20, 78, 90}), attn::keep(keep),
                      attn::save_weights(W_plain), attn::causal(attn::align::lower_right));
  EXPECT_TRUE(same_bits(Y, Z));
  EXPECT_TRUE(same_bits(W, W_plain));
}

class KvCacheRotary : public ::testing::TestWithParam<attn::pairing> {};
TEST_P(KvCacheRotary, TurnsKeysOnTheirWayInByTheirPositions) {
  const Operands x;
  const auto rotary = attn::rotary(GetParam());
  const Matrix plain = x.plain(rotary, attn::causal_from(x.kOffset));
  for (const std::vector<Index>& chunks :
       std::vector<std::vector<Index>>{{300}, {1}, {31, 33, 5}}) {
    attn::KeyValueCache<float> cache(sizes(300));
    for (Index done = 0, n = 0; done < 300; ++n) {
      const Index count = std::min(chunks[std::size_t(n) % chunks.size()], 300 - done);
      cache.append(x.K.middleRows(done, count), x.V.middleRows(done, count), rotary);
      done += count;
    }
    const Matrix Y = attn::attention(attn::heads(x.Q, kHeads), cache, rotary);
    EXPECT_TRUE(same_bits(Y, plain));
  }
}
INSTANTIATE_TEST_SUITE_P(Pairings, KvCacheRotary,
                         ::testing::Values(attn::pairing::interleaved, attn::pairing::half_split));

TEST(KvCacheRotary, TakesGivenAnglesPositionsAndFewerFeaturesForABatch) {
  const auto Q = uniform<float>(4, kHeads * kDim, 1, 2),
             K = uniform<float>(50, kKvHeads * kDim, 2, 2),
             V = uniform<float>(50, kKvHeads * kDim, 3);
  const Matrix cosines = uniform<float>(70, 6, 4), sines = uniform<float>(70, 6, 5);
  std::vector<Index> key_ids, query_ids{40, 41, 9, 5};
  for (Index j = 0; j < 50; ++j) key_ids.push_back((j * 7) % 60);
  const auto rotary =
      attn::rotary(attn::pairing::half_split, cosines, sines).positions(query_ids, key_ids);
  attn::KeyValueCache<float> cache(sizes(40).sequences(2));
  cache.append(K, V, rotary, attn::sequences({0, 38, 50}));
  const Matrix Y =
      attn::attention(attn::heads(Q, kHeads), cache, attn::sequences({0, 3, 4}), rotary);
  const Matrix Z = attn::attention(
      attn::heads(Q, kHeads), attn::heads(K, kKvHeads), attn::heads(V, kKvHeads), rotary,
      attn::sequences({0, 3, 4}, {0, 38, 50}), attn::causal(attn::align::lower_right));
  EXPECT_TRUE(same_bits(Y, Z));
}

/// The mask that every call on a cache has, as an option.
struct OfCache : attn::mask_base {
  attn::detail::CacheMask bound;
  attn::detail::CacheMask bind(const attn::detail::CallShape&) const { return bound; }
};

TEST(KvCacheMask, AnswersTheEngineTruly) {
  for (const bool causal : {true, false}) {
    for (const Index window : {1, 2, 7, 40, 1000}) {
      for (const Index pinned : {0, 1, 5, 90}) {
        OfCache mask;
        mask.bound.causal = causal;
        mask.bound.window = window;
        mask.bound.pinned = pinned;
        const support::Rule rule = [=](const support::Pair& p) {
          return (!causal || p.key <= p.position) &&
                 (p.key < pinned || p.key > p.position - window);
        };
        for (const support::Case& c : support::all_cases())
          support::expect_honest(c, rule, support::kLowerRight, mask);
      }
    }
  }
}

/// What a ring shows a row, as a mask on the whole matrices.
auto ring_mask(Index window, Index pinned) {
  return attn::mask([=](Index query, Index key) {
    return key <= query && (key > query - window || key < pinned);
  });
}

// Every block of the ring is used several times.
TEST(KvCacheRing, ShowsTheSameKeysHoweverThePromptWasCut) {
  const Index length = 3000;
  const auto Q = uniform<float>(length, 2 * kDim, 1, 2), K = uniform<float>(length, kDim, 2, 2),
             V = uniform<float>(length, kDim, 3);
  for (Index pinned : {0, 3, 300}) {
    for (Index window : {1, 100, 300}) {
      const Matrix plain = attn::attention(attn::heads(Q, 2), K, V, ring_mask(window, pinned),
                                           attn::query_offset(0));
      for (Index chunk : {7, 200, 0}) {
        const auto options =
            attn::KeyValueCacheOptions(window + 199, 1, kDim).ring(window).pinned(pinned);
        attn::KeyValueCache<float> cache(options);
        if (chunk == 0) chunk = cache.room();
        EXPECT_GE(cache.room(), 200);
        Matrix Y(length, 2 * kDim);
        for (Index done = 0; done < length; done += chunk) {
          const Index count = std::min(chunk, length - done);
          cache.append(K.middleRows(done, count), V.middleRows(done, count));
          Y.middleRows(done, count) =
              attn::attention(attn::heads(Matrix(Q.middleRows(done, count)), 2), cache);
        }
        EXPECT_TRUE(same_bits(Y, plain)) << window << ", " << pinned << ", " << chunk;
      }
    }
  }
}

// Wherever in a block the sequence stands, and also if the newest block gets a single token.
TEST(KvCacheRing, TakesAndAttendsAsManyTokensAsItHasRoomFor) {
  const Index dim = 4, window = 100;
  const auto options = attn::KeyValueCacheOptions(window, 1, dim).ring(window);
  const Index room = attn::KeyValueCache<float>(options).room();
  const auto X = uniform<float>(600 + room, dim, 1);
  const Matrix plain = attn::attention(X, X, X, ring_mask(window, 0), attn::query_offset(0));
  attn::KeyValueCache<float> before(options);
  for (Index first = 0; first < 600; ++first) {
    attn::KeyValueCache<float> cache = before;
    cache.append(X.middleRows(first, room), X.middleRows(first, room));
    const Matrix Y = attn::attention(Matrix(X.middleRows(first, room)), cache);
    ASSERT_TRUE(same_bits(Y, Matrix(plain.middleRows(first, room)))) << first;
    before.append(X.row(first), X.row(first));
  }
}

TEST(KvCacheRing, CountsPositionsFromTheFirstTokenForMasksAndRotary) {
  const Index length = 1500, last = 20;
  const auto Q = uniform<float>(last, 2 * kDim, 1, 2), K = uniform<float>(length, kDim, 2, 2),
             V = uniform<float>(length, kDim, 3);
  const auto rotary = attn::rotary(attn::pairing::interleaved);
  attn::KeyValueCache<float> cache(attn::KeyValueCacheOptions(120, 1, kDim).ring(100).pinned(4));
  for (Index done = 0; done < length; done += 100)
    cache.append(K.middleRows(done, 100), V.middleRows(done, 100), rotary);
  Matrix W, W_plain;
  const Matrix Y =
      attn::attention(attn::heads(Q, 2), cache, rotary, attn::alibi(0.01f),
                      attn::window(60, 0) || attn::key_range(0, 2), attn::save_weights(W));
  const Matrix Z =
      attn::attention(attn::heads(Q, 2), K, V, rotary, attn::alibi(0.01f),
                      (attn::window(60, 0) || attn::key_range(0, 2)) && ring_mask(100, 4),
                      attn::query_offset(length - last), attn::save_weights(W_plain));
  EXPECT_TRUE(same_bits(Y, Z));
  EXPECT_TRUE(same_bits(W, W_plain));
}

}  // namespace
