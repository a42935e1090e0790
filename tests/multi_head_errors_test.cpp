// tests/multi_head_errors_test.cpp: what the layer refuses at run time, in which words, and that outputs are left as they were.
// SPDX-License-Identifier: MIT
// build: -O0
#include <attn/attn.h>

#include <vector>

#include "support/error_of.h"
#include "support/matrix_matchers.h"
#include "support/random_layer.h"

namespace {

using attn::MultiHeadAttention;
using attn::MultiHeadOptions;
using Eigen::Index;
using Eigen::MatrixXf;
using support::error_of;
using support::numbers;
using support::random_layer;
using support::same_bits;

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

}  // namespace
