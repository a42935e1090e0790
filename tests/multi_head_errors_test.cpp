// tests/multi_head_errors_test.cpp: what the layer refuses at run time, in which words, and that outputs are left as they were; so
// is the cache where decoding is refused or throws.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/error_of.h"
#include "support/matrix_matchers.h"
#include "support/random_layer.h"

namespace {

using attn::KeyValueCache;
using attn::KeyValueCacheOptions;
using attn::MultiHeadAttention;
using attn::MultiHeadOptions;
using Eigen::Index;
using Eigen::MatrixXf;
using support::error_of;
using support::numbers;
using support::random_layer;
using support::same_bits;
using support::uniform;

/// The call is refused in these words; the output keeps its size and its bits.
template <class Layer, class... Arguments>
void expect_refused(const std::string& message, Layer& mha, Arguments&&... arguments) {
  const MatrixXf before = numbers(2, 3, 91);
  MatrixXf Y = before;
  EXPECT_EQ(error_of([&] { mha(std::forward<Arguments>(arguments)..., attn::into(Y)); }), message);
  EXPECT_TRUE(same_bits(Y, before)) << message;
}

TEST(LayerSizes, ThatMakeNoLayer) {
  const auto refusal = [](const MultiHeadOptions& options) {
    return error_of([&] { MultiHeadAttention<float> mha(options); });
  };
  const std::string name = "attn::MultiHeadAttention: ";
  EXPECT_EQ(refusal(MultiHeadOptions(0, 1)), name + "d_model is 0, needs at least 1");
  EXPECT_EQ(refusal(MultiHeadOptions(8, 0)), name + "heads is 0, needs at least 1");
  EXPECT_EQ(refusal(MultiHeadOptions(8, 2).kv_heads(0)), name + "kv_heads is 0, needs at least 1");
  EXPECT_EQ(refusal(MultiHeadOptions(8, 4).kv_heads(3)),
            name + "4 heads, needs a multiple of the 3 key/value heads");
  EXPECT_EQ(refusal(MultiHeadOptions(8, 3)),
            name + "d_model is 8, needs a multiple of the 3 heads, or key_dim(n)");
  EXPECT_EQ(refusal(MultiHeadOptions(8, 2).key_dim(0)), name + "key_dim is 0, needs at least 1");
  EXPECT_EQ(refusal(MultiHeadOptions(8, 2).value_dim(-3)),
            name + "value_dim is -3, needs at least 1");
  EXPECT_EQ(refusal(MultiHeadOptions(8, 2).key_features(0)),
            name + "key_features is 0, needs at least 1");
  EXPECT_EQ(refusal(MultiHeadOptions(8, 2).value_features(0)),
            name + "value_features is 0, needs at least 1");
  EXPECT_EQ(refusal(MultiHeadOptions(8, 2).output_features(0)),
            name + "output_features is 0, needs at least 1");
  EXPECT_EQ(error_of([] { MultiHeadAttention<float, 8, 2> mha(MultiHeadOptions(8, 4)); }),
            name +
                "its type has d_model 8 and 2 heads, and all widths follow from them; other "
                "sizes want MultiHeadAttention<Scalar>");
}

TEST(LayerErrors, NameTheWidthsThatDisagree) {
  auto mha = random_layer<float>(MultiHeadOptions(8, 2).key_features(5).value_features(6));
  const MatrixXf Xq = numbers(4, 8), Xk = numbers(7, 5), Xv = numbers(7, 6);
  const std::string name = "attn::MultiHeadAttention: ";
  expect_refused(name + "query has 7 features, the layer takes 8", mha, numbers(4, 7), Xk, Xv);
  expect_refused(name + "key has 6 features, the layer takes 5", mha, Xq, numbers(7, 6), Xv);
  expect_refused(name + "value has 5 features, the layer takes 6", mha, Xq, Xk, numbers(7, 5));
  expect_refused(name + "key has 8 features, the layer takes 5", mha, Xq);
  expect_refused(name + "value has 8 rows, key has 7; both need one row per key", mha, Xq, Xk,
                 numbers(8, 6));
  std::vector<float> memory(2 * 3 * 2 * 4), out(memory.size());
  auto plain = random_layer<float>(MultiHeadOptions(8, 2));
  EXPECT_EQ(error_of([&] {
              plain(attn::bhld(memory.data(), 2, 2, 3, 4),
                    attn::into(attn::blhd(out.data(), 2, 3, 1, 8)));
            }),
            name +
                "query has 2 heads, needs 1: the layer projects whole rows and splits them "
                "itself");
}

struct Pool {
  template <class Task>
  void parallel_for(int n, const Task& task) const {
    for (int i = 0; i < n; ++i) task(i);
  }
};

TEST(LayerErrors, AreAttentionsForItsOptions) {
  Pool pool;
  auto mha = random_layer<float>(MultiHeadOptions(8, 2));
  const MatrixXf X = numbers(4, 8), M = numbers(6, 8), B = numbers(3, 3);
  expect_refused(
      "attn::MultiHeadAttention: bias is 3x3, needs 4x6 (query rows x keys of each head); one row, "
      "or one column a head, serves all",
      mha, X, M, attn::bias(B));
  expect_refused(
      "attn::MultiHeadAttention: causal() with 4 queries and 6 keys: name the alignment: "
      "causal(align::lower_right) puts the last query at the last key, causal(align::upper_left) "
      "the first query at the first key, causal_from(n) the first query at key n",
      mha, X, M, attn::causal());
  expect_refused("attn::MultiHeadAttention: 0 threads asked for, needs at least 1", mha, X,
                 attn::on(pool, 0));
  expect_refused(
      "attn::MultiHeadAttention: sequence_length: query has 4 rows, needs a multiple of "
      "3 (at least 1)",
      mha, X, attn::sequence_length(3));
}

TEST(LayerErrors, NameWhatTheResidualLacks) {
  auto mha = random_layer<float>(MultiHeadOptions(8, 2).output_features(5));
  const MatrixXf X = numbers(4, 8);
  expect_refused(
      "attn::MultiHeadAttention: residual() adds the query input, 8 features, to the output, 5; "
      "widths must agree, or name another: residual(X)",
      mha, X, attn::residual());
  expect_refused(
      "attn::MultiHeadAttention: residual is 4x8 in 1 head, needs 4x5 (query rows x "
      "output features) in 1 head",
      mha, X, attn::residual(X));
}

TEST(LayerErrors, KeepOutputsApart) {
  auto mha = random_layer<float>(MultiHeadOptions(8, 2));
  const MatrixXf X = numbers(4, 8);
  MatrixXf Y = numbers(3, 8), big = numbers(4, 20);
  EXPECT_EQ(error_of([&] { mha(X, attn::into(Y.topRows(2))); }),
            "attn::MultiHeadAttention: output is 2x8, needs 4x8");
  EXPECT_EQ(
      error_of([&] { mha(X, attn::into(big.leftCols(8)), attn::residual(big.middleCols(1, 8))); }),
      "attn::MultiHeadAttention: output overlaps residual without being the same matrix; "
      "write to memory of its own");
  EXPECT_EQ(error_of([&] {
              mha(X, attn::into(big.leftCols(8)), attn::save_logsumexp(big.middleCols(7, 2)));
            }),
            "attn::MultiHeadAttention: logsumexp overlaps output; write to memory of its own");
  EXPECT_EQ(error_of([&] {
              mha(X, attn::into(Y), attn::residual(big.leftCols(8)),
                  attn::save_logsumexp(big.middleCols(7, 2)));
            }),
            "attn::MultiHeadAttention: logsumexp overlaps residual; write to memory of its own");
}

// ---- Decoding ---------------------------------------------------------------------------------

/// A cache that holds 40 tokens of a layer, an output, and that nothing has happened to either.
class DecodeErrors : public ::testing::Test {
 protected:
  using Matrix = support::DynamicMatrix<float>;
  static constexpr Index kWidth = 24;
  static KeyValueCacheOptions cache_for(Index capacity) {
    return KeyValueCacheOptions(capacity, 2, 6).value_dim(10);
  }

  MultiHeadAttention<float> mha = random_layer<float>(
      MultiHeadOptions(kWidth, 4).kv_heads(2).value_dim(10).in_bias().out_bias());
  Matrix X = uniform<float>(50, kWidth, 3), whole = mha(X, attn::causal());
  KeyValueCache<float> cache{cache_for(50)};
  Matrix Y = Matrix::Constant(5, kWidth, 7);

  DecodeErrors() { (void)mha.decode(X.topRows(40), cache); }

  void expect_untouched() {
    EXPECT_EQ(cache.length(), 40);
    EXPECT_EQ(Y, Matrix::Constant(5, kWidth, 7));
    KeyValueCache<float> copy = cache;
    EXPECT_TRUE(same_bits(Matrix(mha.decode(X.bottomRows(10), copy)), whole.bottomRows(10)));
  }
  template <class... Options>
  std::string error(const Options&... options) {
    return error_of([&] { mha.decode(X.middleRows(40, 5), cache, attn::into(Y), options...); });
  }
};

TEST_F(DecodeErrors, NameBothNumbers) {
  KeyValueCache<float> other(KeyValueCacheOptions(50, 3, 8));
  EXPECT_EQ(error_of([&] { mha.decode(X, other, attn::into(Y)); }),
            "attn::MultiHeadAttention::decode: the cache has 3 heads of 8 and 8 features, the "
            "layer's keys and values 2 of 6 and 10");
  EXPECT_EQ(error_of([&] { mha.decode(X.leftCols(20), cache, attn::into(Y)); }),
            "attn::MultiHeadAttention::decode: query has 20 features, the layer takes 24");
  EXPECT_EQ(error_of([&] { (void)mha.decode(X.topRows(11), cache); }),
            "attn::KeyValueCache::append: 11 tokens for sequence 0, which holds 40 of at most 50");
  EXPECT_EQ(error(attn::sequence_length(1)).substr(0, 63),
            "attn::KeyValueCache::append: key has 5 sequences, the cache has");
  EXPECT_EQ(error(attn::cache_sequences({1})),
            "attn::KeyValueCache::append: cache_sequences: entry 0 is 1, the cache has 1 sequence");
  EXPECT_EQ(error(attn::rotary(attn::pairing::half_split)).substr(0, 80),
            "attn::KeyValueCache::append: called with rotary() of 6 features, half_split, seq");
  expect_untouched();
}

TEST_F(DecodeErrors, FoundAfterTheTokensWereAppendedTakeThemBack) {
  Matrix l(5, 1);
  EXPECT_NE(error(attn::save_logsumexp(l.leftCols(1))), "nothing was refused");  // four heads
  expect_untouched();
  const Matrix B = uniform<float>(5, 44, 1);
  EXPECT_NE(error(attn::bias(B)), "nothing was refused");  // 45 keys
  expect_untouched();
  EXPECT_NE(error(attn::split_keys(0)), "nothing was refused");
  expect_untouched();
}

TEST_F(DecodeErrors, AFunctorThatThrowsLeavesEverythingAsItWas) {
  const auto thrower = attn::mask([](Index, Index key) -> bool {
    if (key == 20) throw std::domain_error("thrown by a mask");
    return true;
  });
  EXPECT_THROW(mha.decode(X.middleRows(40, 5), cache, attn::into(Y), thrower), std::domain_error);
  expect_untouched();
}

TEST_F(DecodeErrors, ARingGoesOnAfterOne) {
  KeyValueCache<float> ring(cache_for(64).ring(20));
  const auto long_X = uniform<float>(700, kWidth, 5);
  const Matrix expected = mha(long_X, attn::causal() && attn::window(19, 0));
  bool armed = false;
  const auto thrower = attn::mask([&](Index, Index key) -> bool {
    if (armed && key % 16 == 0) throw std::domain_error("thrown by a mask");
    return true;
  });
  Matrix Z(1, kWidth);
  for (Index done = 0; done < 700; done += Z.rows()) {
    const Index count = std::min<Index>(1 + done % 40, 700 - done);
    Z.resize(count, kWidth);
    const auto call = [&] {
      mha.decode(long_X.middleRows(done, count), ring, attn::into(Z), thrower);
    };
    armed = count > 16;
    if (armed) {
      EXPECT_THROW(call(), std::domain_error);
    }
    armed = false;
    call();
    ASSERT_TRUE(same_bits(Z, expected.middleRows(done, count))) << done;
  }
}

}  // namespace
