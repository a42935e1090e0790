// tests/size_limits_test.cpp: the ends of the integers that a user can pass anywhere: each is right or refused in words.
// build: -Og
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <new>
#include <string>
#include <vector>

#include "support/any_mask.h"
#include "support/error_of.h"
#include "support/matrix_matchers.h"
#include "support/random.h"

namespace {

using Eigen::Index;
using Eigen::MatrixXf;
using support::AnyMask;
using support::error_of;

constexpr Index kMax = std::numeric_limits<Index>::max(), kMin = std::numeric_limits<Index>::min();
constexpr int kMaxInt = std::numeric_limits<int>::max();
constexpr auto kRefused = "nothing was refused";

/// Which of `keys` keys the rows see, one string for each row: by the engine, whose weights are the values' coefficients here.
std::vector<std::string> seen(Index rows, Index keys, const AnyMask& mask, Index offset = 0) {
  static attn::ScaledDotProductAttention<float> sdpa;
  const MatrixXf Q = MatrixXf::Zero(rows, 1), K = MatrixXf::Zero(keys, 1),
                 V = MatrixXf::Identity(keys, keys);
  MatrixXf W;
  sdpa(Q, K, V, attn::into(W), mask, attn::query_offset(offset));
  std::vector<std::string> picture;
  for (Index i = 0; i < rows; ++i) {
    picture.emplace_back();
    for (Index j = 0; j < keys; ++j) picture.back() += W(i, j) > 0 ? '#' : '.';
  }
  return picture;
}
template <class Mask>
std::vector<std::string> seen(Index rows, Index keys, const Mask& mask, Index offset = 0) {
  return seen(rows, keys, AnyMask(mask), offset);
}
using Picture = std::vector<std::string>;
Picture same(Index rows, const std::string& row) { return Picture(std::size_t(rows), row); }

// ---- Ids and positions ----------------------------------------------------------------------

TEST(SegmentIds, AreAnyIntegers) {
  const std::vector<Index> ascending = {kMin, kMin, -1, 0, kMax - 1, kMax, kMax},
                           mixed = {kMax, kMin, 0, kMax, kMin, kMax, -1};
  for (const auto& ids : {ascending, mixed}) {
    Picture expected;
    for (const Index query : ids) {
      expected.emplace_back();
      for (const Index key : ids) expected.back() += query == key ? '#' : '.';
    }
    EXPECT_EQ(seen(7, 7, attn::segments(ids)), expected);
  }
  EXPECT_EQ(seen(2, 3, attn::segments({kMax, kMin}, {kMin, 0, kMax})), (Picture{"..#", "#.."}));
  EXPECT_EQ(seen(2, 3, attn::segments({kMin, kMax}, {kMax, 0, kMin})), (Picture{"..#", "#.."}));
}

TEST(QueryOffset, AtTheEndsPutsQueriesBeyondAllKeys) {
  for (const Index far : {kMax, kMax - 1, kMax / 2 + 1, kMax / 2, kMax / 4 + 9}) {
    EXPECT_EQ(seen(2, 3, attn::causal(), far), same(2, "###")) << far;
    EXPECT_EQ(seen(2, 3, attn::causal(), -far), same(2, "...")) << far;
    EXPECT_EQ(seen(2, 3, attn::prefix_lm(2), far), same(2, "###"));
    EXPECT_EQ(seen(2, 3, attn::prefix_lm(2), -far), same(2, "##."));
    for (const Index side : {Index(5), kMax / 4}) {
      EXPECT_EQ(seen(2, 3, attn::window(side, side), far), same(2, "..."));
      EXPECT_EQ(seen(2, 3, attn::window(side, side), -far), same(2, "..."));
      EXPECT_EQ(seen(2, 3, attn::window(-1, side), far), same(2, "###"));
      EXPECT_EQ(seen(2, 3, attn::window(side, -1), -far), same(2, "###"));
    }
    EXPECT_EQ(seen(2, 3, attn::window(kMax, kMax), far), same(2, "###"));
    EXPECT_EQ(seen(2, 3, !attn::causal() || attn::window(0, 0), far), same(2, "..."));
    EXPECT_EQ(seen(2, 3, attn::tree({-1, 0}), far), same(2, "###"));
  }
  EXPECT_EQ(seen(2, 3, attn::causal(), kMin), same(2, "..."));
  EXPECT_EQ(seen(2, 4, attn::window(kMax / 4, 0), kMax / 4), (Picture{"####", ".###"}));
}

TEST(QueryOffset, AtTheEndsIsNamedInEveryWay) {
  const MatrixXf S = MatrixXf::Zero(2, 2);
  const auto sees_all = [&](const auto&... options) {
    return attn::softmax(S, options...) == MatrixXf::Constant(2, 2, 0.5f);
  };
  const auto sees_none = [&](const auto&... options) { return attn::softmax(S, options...) == S; };
  EXPECT_TRUE(sees_all(attn::causal_from(kMax)));
  EXPECT_TRUE(sees_none(attn::causal_from(kMin)));
  EXPECT_TRUE(sees_all(attn::causal(), attn::query_offset({kMax})));
  EXPECT_TRUE(sees_none(attn::causal(), attn::query_offset(kMin)));
  EXPECT_TRUE(sees_all(attn::window(kMax, kMax)));
}

TEST(QueryOffset, AtTheEndsIsRefusedWhereItIsReadAsANumber) {
  using namespace attn;
  const auto even = mask([](Index query, Index key) { return (query - key) % 2 == 0; });
  const auto steeper = score([](auto s, auto at) { return s - at.query; });
  const auto shorter = score([](float s, At) { return s; });
  using Even = decltype(even);
  static_assert(detail::PositionOf<detail::bare_t<Even>>::read &&
                detail::PositionOf<decltype(causal() && !even)>::read &&
                detail::PositionOf<decltype(even || causal())>::read);
  static_assert(detail::PositionOf<decltype(alibi(1.f))>::read &&
                detail::PositionOf<decltype(rotary(pairing::interleaved))>::read &&
                detail::PositionOf<detail::bare_t<decltype(steeper)>>::read &&
                detail::PositionOf<detail::bare_t<decltype(shorter)>>::read);
  static_assert(!detail::PositionOf<decltype(causal() || window(1, 1))>::read &&
                !detail::PositionOf<decltype(softcap(1.f))>::read);
  const MatrixXf X = MatrixXf::Zero(2, 2);
  const std::string needs =
      ", needs at most " + std::to_string(kMax / 4 * 2) +
      " either way where rotary(), alibi(), score() or mask(f) reads positions";
  for (const Index far : {kMax, kMin, kMax / 2 + 1}) {
    const std::string offset = "the query offset is " + std::to_string(far);
    EXPECT_EQ(error_of([&] { (void)softmax(X, even, query_offset(far)); }),
              "attn::softmax: " + offset + needs);
    EXPECT_EQ(error_of([&] { (void)rotate(X, rotary(pairing::interleaved), query_offset(far)); }),
              "attn::rotate: " + offset + needs);
  }
  EXPECT_EQ(softmax(X, even, query_offset(kMax / 4 * 2)), MatrixXf::Identity(2, 2));
}

TEST(Window, SidesAreCountsOrMinusOne) {
  const MatrixXf S = MatrixXf::Zero(2, 2);
  for (const Index bad : {Index(-2), kMin}) {
    const std::string end = "): both sides are counts of keys, or -1 for unbounded";
    EXPECT_EQ(error_of([&] { (void)attn::softmax(S, attn::window(bad, 0)); }),
              "attn::softmax: window(" + std::to_string(bad) + ", 0" + end);
    EXPECT_EQ(error_of([&] { (void)attn::softmax(S, attn::window(0, bad)); }),
              "attn::softmax: window(0, " + std::to_string(bad) + end);
  }
}

// ---- Lengths, lists, blocks ----------------------------------------------------------------

TEST(KeyCounts, AtTheEndsAreRefused) {
  const MatrixXf S = MatrixXf::Zero(2, 2);
  const auto refused = [&](const auto& mask) {
    return error_of([&] { (void)attn::softmax(S, mask, attn::query_offset(0)); });
  };
  for (const Index bad : {kMax, kMin, Index(-1), Index(3)}) {
    const std::string n = std::to_string(bad);
    EXPECT_EQ(refused(attn::key_lengths(bad)), "attn::softmax: key_lengths of sequence 0 is [0, " +
                                                   n +
                                                   "), needs 0 <= begin <= end <= 2 (its keys)");
    EXPECT_EQ(refused(attn::key_range(bad, kMax)),
              "attn::softmax: key_range of sequence 0 is [" + n + ", " + std::to_string(kMax) +
                  "), needs 0 <= begin <= end <= 2 (its keys)");
    EXPECT_EQ(refused(attn::prefix_lm(bad)),
              "attn::softmax: prefix_lm of sequence 0 is " + n + ", needs 0 <= n <= 2 (its keys)");
  }
  for (const Index bad : {kMax, kMin, Index(-2), Index(1)}) {
    EXPECT_EQ(refused(attn::tree({-1, bad})), "attn::softmax: tree: the parent of token 1 is " +
                                                  std::to_string(bad) +
                                                  ", needs a token before it, or -1 for a root");
  }
}

TEST(BlockSparse, TakesBlocksOfAnySize) {
  const Eigen::Matrix<bool, 1, 1> all = Eigen::Matrix<bool, 1, 1>::Constant(true);
  for (const Index block : {Index(3), kMax / 4, kMax / 2, kMax}) {
    EXPECT_EQ(seen(2, 3, attn::block_sparse(all, block)), same(2, "###")) << block;
    EXPECT_EQ(seen(2, 3, !attn::block_sparse(all, block)), same(2, "...")) << block;
  }
  for (const Index block : {Index(0), Index(-1), kMin}) {
    EXPECT_EQ(error_of([&] { seen(2, 3, attn::block_sparse(all, block)); }),
              "attn::ScaledDotProductAttention: block_sparse: blocks of " + std::to_string(block) +
                  ", needs at least 1");
  }
}

// Ranges that a user's own mask gives are taken as far as there are keys.
TEST(MaskFunctor, MayGiveRangesBeyondAllKeys) {
  struct First {
    bool operator()(Index, Index key) const { return key < 1; }
    attn::KeyRange keys(const attn::QueryRows&) const { return {kMin, kMax}; }
    attn::KeyRange full_keys(const attn::QueryRows&) const { return {kMin, 1}; }
  };
  EXPECT_EQ(seen(2, 3, attn::mask(First())), same(2, "#.."));
  EXPECT_EQ(seen(2, 3, !attn::mask(First())), same(2, ".##"));
  EXPECT_EQ(seen(2, 3, attn::mask(First()) || attn::key_range(2, 3)), same(2, "#.#"));
}

TEST(ListsOfUnsigned, AreRefusedBeyondTheIndex) {
  const std::vector<std::uint64_t> bad = {0, std::numeric_limits<std::uint64_t>::max()};
  const std::string message =
      "attn: a list of offsets, lengths, positions or ids holds 18446744073709551615, needs at "
      "most 9223372036854775807";
  EXPECT_EQ(error_of([&] { (void)attn::segments(bad); }), message);
  EXPECT_EQ(error_of([&] { (void)attn::sequences(std::vector<std::uint64_t>(bad)); }), message);
  const std::vector<std::uint64_t> good = {7, std::uint64_t(kMax)};
  EXPECT_EQ(seen(2, 2, attn::segments(good)), (Picture{"#.", ".#"}));
}

TEST(AlibiSlopes, AreRefusedWhereTheyCannotBeCounted) {
  for (const Index heads : {kMax, kMax / 2 + 2, kMax / 64}) {
    EXPECT_EQ(error_of([&] { (void)attn::alibi_slopes(heads); }),
              "attn::alibi_slopes: heads is " + std::to_string(heads) + ", needs at most " +
                  std::to_string(attn::detail::kMostNumbers) + " in all");
  }
}

// ---- Operands -------------------------------------------------------------------------------

using View = attn::TensorView<const float>;

/// The refusal of a call on views; the output stays as it is.
std::string refusal(const View& q, const View& k, const View& v) {
  static attn::ScaledDotProductAttention<float> sdpa;
  MatrixXf Y = MatrixXf::Constant(2, 2, 42);
  const std::string message = error_of([&] { sdpa(q, k, v, attn::into(Y)); });
  EXPECT_TRUE(Y == MatrixXf::Constant(2, 2, 42)) << message;
  return message;
}

TEST(StridedViews, OfNegativeSizesAreRefused) {
  const std::vector<float> memory(64, 1.f);
  const float* const p = memory.data();
  const std::string function = "attn::ScaledDotProductAttention: ",
                    end = ", needs sizes of at least 0";
  const View good = attn::bhld(p, 1, 1, 2, 2);
  EXPECT_EQ(refusal(good, attn::bhld(p, 1, 1, -7, 2), attn::bhld(p, 1, 1, -7, 2)),
            function + "key is a view of [1, 1, -7, 2]" + end);
  EXPECT_EQ(refusal(attn::blhd(p, 1, -1, 1, 2), good, good),
            function + "query is a view of [1, 1, -1, 2]" + end);
  EXPECT_EQ(refusal(good, good, attn::lbhd(p, 2, -3, 1, 2)),
            function + "value is a view of [-3, 1, 2, 2]" + end);
  EXPECT_EQ(refusal(attn::bhld(p, 1, -2, 2, -2), good, good),
            function + "query is a view of [1, -2, 2, -2]" + end);
  EXPECT_EQ(refusal(attn::bhld(p, kMin, kMin, kMin, kMin), good, good),
            function + "query is a view of [" + std::to_string(kMin) + ", " + std::to_string(kMin) +
                ", " + std::to_string(kMin) + ", " + std::to_string(kMin) + "]" + end);
}

TEST(StridedViews, BeyondWhatCanBeCountedAreRefused) {
  const std::vector<float> memory(64, 1.f);
  const float* const p = memory.data();
  const View good = attn::bhld(p, 1, 1, 2, 2);
  const auto expect_uncounted = [&](const View& bad) {
    for (const std::string& message :
         {refusal(bad, good, good), refusal(good, bad, good), refusal(good, good, bad)}) {
      EXPECT_NE(message.find(" numbers and as far a reach"), std::string::npos) << message;
    }
  };
  for (const Index huge : {kMax, kMax / 2 + 1, Index(1) << 33}) {
    expect_uncounted(attn::bhld(p, 1, huge, huge, 2));
    expect_uncounted(attn::blhd(p, huge, huge, huge, huge));
    expect_uncounted(attn::lbhd(p, huge, 0, huge, huge));
    expect_uncounted(View{p, 1, huge, huge, 2, 0, 0, 0, 1});  // one number in place of all
  }
  for (const Index stride : {kMax, kMin, kMin / 2}) {
    expect_uncounted(View{p, 1, 1, 2, 2, 0, 0, stride, 1});
    expect_uncounted(View{p, 1, 1, 1, 2, 0, stride, 2, 1});
  }
  const Index heads = Index(1) << 26, keys = Index(1) << 30;
  EXPECT_EQ(refusal(View{p, 1, heads, 1, 1, 0, 0, 0, 1}, View{p, 1, 1, keys, 1, 0, 0, 0, 1},
                    View{p, 1, 1, keys, 1, 0, 0, 0, 1}),
            "attn::ScaledDotProductAttention: keys x heads is 1073741824 x 67108864, needs at most "
            "1125899906842624 in all");
}

TEST(Heads, AtTheEndsAreRefused) {
  const MatrixXf X = MatrixXf::Ones(2, 2);
  MatrixXf Y;
  for (const Index n : {kMax, kMin, Index(0), Index(-1)}) {
    EXPECT_EQ(error_of([&] {
                attn::attention(attn::heads(X, n), attn::heads(X, n), attn::heads(X, n),
                                attn::into(Y));
              }),
              n < 1 ? "attn::attention: query is given as heads(query, " + std::to_string(n) +
                          "), needs at least 1 head"
                    : "attn::attention: query has 2 columns, needs a multiple of its " +
                          std::to_string(n) + " heads");
  }
}

TEST(Batches, AtTheEndsAreRefused) {
  const MatrixXf X = MatrixXf::Ones(2, 2);
  MatrixXf Y;
  const auto refused = [&](const auto& batch) {
    return error_of(
        [&] { attn::rotate(X, attn::rotary(attn::pairing::half_split), attn::into(Y), batch); });
  };
  for (const Index n : {kMax, kMin, Index(-1)})
    EXPECT_NE(refused(attn::sequence_length(n)), kRefused) << n;
  for (const Index n : {kMax, kMin}) {
    EXPECT_NE(refused(attn::sequences({0, n})), kRefused) << n;
    EXPECT_NE(refused(attn::sequences({0, n, 2})), kRefused) << n;
    EXPECT_NE(refused(attn::sequences({n, 2})), kRefused) << n;
  }
  const MatrixXf none(0, 2);
  attn::rotate(none, attn::rotary(attn::pairing::half_split), attn::into(Y),
               attn::sequence_length(kMax));
  EXPECT_EQ(Y.rows(), 0);
}

TEST(Rotary, DimsAndPositionsAtTheEndsAreRefused) {
  const MatrixXf X = MatrixXf::Ones(2, 2);
  const auto turn = attn::rotary(attn::pairing::half_split);
  for (const Index n : {kMax, kMax - 1, kMin, Index(0), Index(-1), Index(-2)}) {
    EXPECT_EQ(
        error_of([&] { (void)attn::rotate(X, turn.dims(n)); }),
        "attn::rotate: rotary: a head has 2 features, " + std::to_string(n) +
            " are to turn, two by two: needs an even number from 2 to 2, as .dims(n) says it");
  }
  for (const Index p : {kMax, kMin, (Index(1) << 53) + 1}) {
    EXPECT_EQ(error_of([&] {
                (void)attn::rotate(X, turn.positions({Index(0), p}));
              }),
              "attn::rotate: rotary: X position " + std::to_string(p) +
                  " is beyond the 9007199254740992 that a double counts to, either way");
  }
  for (const Index p : {Index(1) << 53, -(Index(1) << 53)})
    EXPECT_TRUE(attn::rotate(X, turn.positions({p, p})).allFinite());
  for (const double base : {0., -1., 1e-300, 5e-324, std::numeric_limits<double>::infinity(),
                            std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_NE(error_of([&] {
                (void)attn::rotate(X, attn::rotary(attn::pairing::half_split, base));
              }).find(", needs a finite number above zero under which all angles are finite"),
              std::string::npos)
        << base;
  }
}

TEST(QueryRows, AndPartsOfKeysAtTheEnds) {
  static attn::ScaledDotProductAttention<float> sdpa;
  const MatrixXf X = MatrixXf::Ones(2, 2);
  MatrixXf Y, W;
  const auto call = [&](Index row, Index chunk) {
    return error_of([&] {
      sdpa(X, X, X, attn::into(Y), attn::save_weights(W, attn::query_rows({row})),
           attn::split_keys(chunk));
    });
  };
  for (const Index row : {kMax, kMin, Index(-1), Index(2)}) {
    EXPECT_EQ(call(row, 256), "attn::ScaledDotProductAttention: query_rows: entry 0 is " +
                                  std::to_string(row) + ", the call has 2 query rows");
  }
  for (const Index chunk : {kMin, Index(-1), Index(0)}) {
    EXPECT_EQ(call(0, chunk), "attn::ScaledDotProductAttention: split_keys(" +
                                  std::to_string(chunk) + "), needs at least 1 key");
  }
  for (const Index chunk : {kMax, kMax - 1, kMax / 2}) EXPECT_EQ(call(1, chunk), kRefused);
  EXPECT_EQ(Y, X);
}

// ---- Sizes of caches, layers and scratch -----------------------------------------------------

const std::vector<Index> kSizes = {
    1, 3, 100, Index(1) << 16, (Index(1) << 32) + 1, Index(1) << 48, kMax / 64, kMax - 1, kMax};

template <class Storage>
void expect_enough_bytes(Index capacity, Index heads, Index dim, Index value_dim, Index sequences) {
  const auto options =
      attn::KeyValueCacheOptions(capacity, heads, dim).value_dim(value_dim).sequences(sequences);
  const long double numbers = static_cast<long double>(sequences) * heads * capacity *
                              (static_cast<long double>(dim) + static_cast<long double>(value_dim));
  for (const auto& asked : {options, options.ring(capacity), options.ring(1).pinned(capacity)}) {
    std::size_t bytes = 0;
    const std::string message =
        error_of([&] { bytes = attn::KeyValueCache<Storage>::bytes_needed(asked); });
    if (message == kRefused) {
      ASSERT_GE(static_cast<long double>(bytes), numbers * sizeof(Storage));
    } else {
      ASSERT_GT(numbers * 1000000, 0x1p50L) << message;
      ASSERT_NE(message.find(" in all"), std::string::npos) << message;
    }
  }
}

TEST(CacheSizes, AreEnoughBytesOrRefused) {
  for (const Index capacity : kSizes) {
    for (const Index heads : kSizes) {
      for (const Index dim : kSizes) {
        expect_enough_bytes<float>(capacity, heads, dim, dim, 1);
        expect_enough_bytes<long double>(capacity, heads, 1, dim, 1);
        expect_enough_bytes<std::int8_t>(capacity, 1, dim, 1, heads);
      }
    }
  }
}

TEST(CacheSizes, ThatAreNegativeAreRefused) {
  using Options = attn::KeyValueCacheOptions;
  const auto refused = [](const Options& options) {
    return error_of([&] { (void)attn::KeyValueCache<float>::bytes_needed(options); });
  };
  for (const Index n : {Index(-1), Index(-7), kMin}) {
    const std::string end = " is " + std::to_string(n) + ", needs at least 1",
                      start = "attn::KeyValueCache: ";
    EXPECT_EQ(refused(Options(n, 1, 1)), start + "capacity" + end);
    EXPECT_EQ(refused(Options(1, n, 1)), start + "kv_heads" + end);
    EXPECT_EQ(refused(Options(1, 1, n).value_dim(1)), start + "key_dim" + end);
    EXPECT_EQ(refused(Options(1, 1, 1).value_dim(n)), start + "value_dim" + end);
    EXPECT_EQ(refused(Options(1, 1, 1).sequences(n)), start + "sequences" + end);
    EXPECT_EQ(refused(Options(1, 1, 1).ring(n)), start + "the ring's window" + end);
    EXPECT_EQ(refused(Options(1, 1, 1).ring(1).pinned(n)),
              start + std::to_string(n) +
                  " tokens are pinned; pinned(n) needs n >= 0 and a ring(window)");
  }
  static_assert(!Options(1, 1, 1).is_ring() && Options(1, 1, 1).ring(-1).is_ring() &&
                Options(1, 1, 1).window() == 0 && Options(1, 1, 5).value_dim() == 5);
}

TEST(CacheCalls, AtTheEndsAreRefused) {
  const MatrixXf X = MatrixXf::Ones(2, 4);
  attn::KeyValueCache<float> cache(attn::KeyValueCacheOptions(8, 1, 4).sequences(2));
  for (const Index n : {kMax, kMin, Index(-1), Index(2)}) {
    EXPECT_NE(error_of([&] { (void)cache.length(n); }), kRefused);
    EXPECT_NE(error_of([&] { (void)cache.room(n); }), kRefused);
    EXPECT_NE(error_of([&] { cache.truncate(n, 0); }), kRefused);
    EXPECT_NE(error_of([&] { cache.clear(n); }), kRefused);
    EXPECT_NE(error_of([&] { cache.copy(n, 0); }), kRefused);
    EXPECT_NE(error_of([&] { cache.copy(0, n); }), kRefused);
    EXPECT_NE(error_of([&] { cache.append(X, X, attn::cache_sequences({n})); }), kRefused);
    EXPECT_NE(error_of([&] { cache.truncate(n); }), kRefused);
  }
  EXPECT_EQ(cache.length(0) + cache.length(1), 0);
}

TEST(LayerSizes, AreCountableOrRefused) {
  for (const Index model : kSizes) {
    for (const Index heads : kSizes) {
      for (const Index dim : kSizes) {
        for (const Index wide : kSizes) {
          const auto options = attn::MultiHeadOptions(model, heads)
                                   .key_dim(dim)
                                   .value_dim(wide)
                                   .key_features(wide)
                                   .kv_heads(1);
          const auto widest = static_cast<long double>(std::max(dim, wide));
          const long double most = std::max(widest * wide, widest * model * heads);
          const std::string message = error_of([&] { options.check("layer"); });
          ASSERT_TRUE(message == kRefused ? most <= 0x1p50L : most > 0x1p50L) << message;
        }
      }
    }
  }
}

TEST(LayerSizes, ThatAreNegativeAreRefused) {
  using Options = attn::MultiHeadOptions;
  for (const Index n : {Index(-1), Index(0), kMin}) {
    const auto refused = [&](const char* name, const Options& options) {
      EXPECT_EQ(error_of([&] { options.check("layer"); }),
                std::string("layer: ") + name + " is " + std::to_string(n) + ", needs at least 1");
    };
    refused("d_model", Options(n, 1));
    refused("heads", Options(4, n));
    refused("kv_heads", Options(4, 2).kv_heads(n));
    refused("key_dim", Options(4, 2).key_dim(n));
    refused("value_dim", Options(4, 2).value_dim(n));
    refused("key_features", Options(4, 2).key_features(n));
    refused("value_features", Options(4, 2).value_features(n));
    refused("output_features", Options(4, 2).output_features(n));
  }
}

TEST(ReservedShapes, AreCountableOrRefused) {
  using Attention = attn::ScaledDotProductAttention<float>;
  using Shape = attn::AttentionShape;
  const auto scalars = [](const Shape& shape) {
    Index n = -1;
    const std::string message = error_of([&] { n = Attention::scratch_scalars(shape); });
    EXPECT_TRUE(message == kRefused ? 0 <= n && n <= Index(1) << 52 : n == -1) << n << message;
    return message;
  };
  for (const Index a : kSizes) {
    for (const Index b : kSizes) {
      for (const Index c : kSizes) {
        for (const int workers : {1, 1000, kMaxInt}) {
          scalars({a, b, c, 8, 1, 1, 1, workers});
          scalars({8, a, b, c, 1, 1, 1, workers, 8, 8});
          scalars({a, 8, 8, 8, b, 1, c, workers, c, 0});
          scalars({a, b, 8, 8, 8, 8, c, workers, 8, a});
          scalars({8, a, 8, 8, b, b, c, workers});
        }
      }
    }
  }
  const std::string start = "attn::ScaledDotProductAttention::reserve: ";
  const Shape good{8, 8, 8, 8, 2, 1, 1, 1, 2, 1};
  EXPECT_EQ(scalars(good), kRefused);
  const auto refused = [&](Index Shape::*member, const char* name, Index least) {
    for (const Index n : {least - 1, kMin}) {
      Shape bad = good;
      bad.*member = n;
      EXPECT_EQ(scalars(bad), start + name + " is " + std::to_string(n) + ", needs at least " +
                                  std::to_string(least));
    }
  };
  refused(&Shape::queries, "queries", 0);
  refused(&Shape::keys, "keys", 0);
  refused(&Shape::key_dim, "key_dim", 0);
  refused(&Shape::value_dim, "value_dim", 0);
  refused(&Shape::heads, "heads", 1);
  refused(&Shape::kv_heads, "kv_heads", 1);
  refused(&Shape::sequences, "sequences", 0);
  refused(&Shape::rotary_dims, "rotary_dims", 0);
  refused(&Shape::split_keys, "split_keys", 0);
  Shape idle = good, uneven = good;
  idle.workers = 0;
  uneven.kv_heads = 3;
  EXPECT_EQ(scalars(idle), start + "workers is 0, needs at least 1");
  EXPECT_EQ(scalars(uneven), start + "heads is 2, needs a multiple of kv_heads, 3");
}

TEST(ReservedShapes, OfALayerAreRefusedBeforeAnythingIsTaken) {
  attn::MultiHeadAttention<float> mha(attn::MultiHeadOptions(4, 2));
  const auto refused = [&](Index queries, Index keys, Index sequences, int workers = 1) {
    attn::LayerShape shape;
    shape.queries = queries;
    shape.keys = keys;
    shape.sequences = sequences;
    shape.workers = workers;
    attn::AttentionShape decoded{queries, keys, 2, 2, 2, 2, sequences, workers};
    return error_of([&] { mha.reserve(shape); }) != kRefused &&
           error_of([&] { mha.reserve_decode(decoded); }) != kRefused;
  };
  for (const Index n : {kMax, kMin, Index(-1), Index(1) << 60}) {
    EXPECT_TRUE(refused(n, n, 1)) << n;
    EXPECT_TRUE(refused(4, 4, n)) << n;
  }
  EXPECT_TRUE(refused(4, 4, 4, 0));
  EXPECT_TRUE(refused(4, 4, 4, std::numeric_limits<int>::min()));
}

TEST(ReservedShapes, OfAStateAreCountableOrRefused) {
  using Shape = attn::AttentionShape;
  attn::AttentionState<float> state;
  const auto refused = [&](const Shape& shape) {
    try {
      return error_of([&] { state.reserve(shape); }) != kRefused;
    } catch (const std::bad_alloc&) {
      return false;
    }
  };
  const Index far = Index(1) << 26;  // 2⁷⁸ numbers, in counts that are few enough each
  EXPECT_TRUE(refused({far, 8, 8, far, 1, 1, far >> 4}));
  EXPECT_TRUE(refused({far, 8, 8, far}));
  EXPECT_TRUE(refused({kMax, 8, 8, 8}));
  EXPECT_FALSE(refused({8, 8, 8, 8, 2, 1, 3}));
}

TEST(LinearSizes, AreCountableOrRefused) {
  for (const Index in : kSizes) {
    for (const Index out : kSizes) {
      const long double weights = static_cast<long double>(in) * static_cast<long double>(out);
      const std::string message = error_of([&] { attn::LinearOptions(in, out).check("linear"); });
      ASSERT_TRUE(message == kRefused ? weights <= 0x1p50L : weights > 0x1p50L) << message;
    }
  }
  attn::Linear<float> linear(attn::LinearOptions(4, 3));
  for (const Index n : {kMax, kMin, Index(-1), Index(1) << 60})
    EXPECT_NE(error_of([&] { linear.reserve(n); }), kRefused) << n;
  EXPECT_NE(error_of([&] { linear.reserve(4, 0); }), kRefused);
  EXPECT_EQ(error_of([&] { linear.reserve(Index(1) << 40, kMaxInt); }), kRefused);
}

// ---- Threads --------------------------------------------------------------------------------

/// Runs all workers on the calling thread, and remembers how many were asked for.
struct CountingPool {
  int most = 0;
  template <class F>
  void parallel_for(int n, F f) {
    most = std::max(most, n);
    for (int worker = 0; worker < n; ++worker) f(worker);
  }
};

TEST(Workers, AreAsManyAsAMachineCanHave) {
  const MatrixXf X = support::uniform<float>(6, 4, 1);
  CountingPool pool;
  attn::ScaledDotProductAttention<float> sdpa;
  MatrixXf Y;
  for (const Index n : {Index(300000000), Index(kMaxInt), (Index(1) << 32) + 1, kMax}) {
    sdpa(X, X, X, attn::into(Y), attn::on(pool, n));
    EXPECT_TRUE(support::same_bits(Y, attn::attention(X, X, X))) << n;
    EXPECT_LE(pool.most, 1024);
  }
  for (const Index n : {kMin, -(Index(1) << 32) + 1, Index(0)}) {
    EXPECT_NE(error_of([&] { sdpa(X, X, X, attn::into(Y), attn::on(pool, n)); }), kRefused) << n;
    EXPECT_LT(attn::parallel(n).workers(), 1);
  }
  EXPECT_LE(attn::parallel(kMax).workers(), 1024);
  EXPECT_GE(attn::parallel(kMax).workers(), 1);
}

// ---- The facility ---------------------------------------------------------------------------

TEST(Count, StaysAtTheEndInsteadOfPassingIt) {
  using attn::detail::Count;
  const auto value = [](Count n) { return n.value(); };
  EXPECT_EQ(value(Count(3) * 4 + 5), 17);
  EXPECT_EQ(value(Count(kMax) + 1), kMax);
  EXPECT_EQ(value(Count(kMax) * 2), kMax);
  EXPECT_EQ(value(Count(kMax / 2 + 1) * 2), kMax);
  EXPECT_EQ(value(Count(kMax) * 0), 0);
  EXPECT_EQ(value(Count(-5) * 7), 0);
  EXPECT_EQ(value(Count::magnitude(kMin)), kMax);
  EXPECT_EQ(value(Count::magnitude(-3)), 3);
}

TEST(OverflowChecks, InStandardCppAgreeWithTheCompilers) {
  using namespace attn::detail;
  std::vector<Index> numbers = {0, 1, 2, 3, 7, kMax / 3, kMax / 2, kMax / 2 + 1, kMax - 1, kMax};
  for (int bit = 30; bit < 34; ++bit) numbers.push_back((Index(1) << bit) - bit % 3);
  for (const Index a : numbers) {
    for (const Index b : numbers) {
      Index x = 0, y = 0;
      ASSERT_EQ(sum_overflows(a, b, x), portable_sum_overflows(a, b, y)) << a << ' ' << b;
      ASSERT_TRUE(x == y || sum_overflows(a, b, x)) << a << ' ' << b;
      x = y = 0;
      ASSERT_EQ(product_overflows(a, b, x), portable_product_overflows(a, b, y)) << a << ' ' << b;
      ASSERT_TRUE(x == y || product_overflows(a, b, x)) << a << ' ' << b;
    }
  }
}

}  // namespace
