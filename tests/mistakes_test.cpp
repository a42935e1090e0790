// tests/mistakes_test.cpp: the likeliest mistakes that compile (README.md, Mistakes): what is said, or why it is none. Those that
// do not compile: tests/compile_fail/mistakes.cpp.
// build: -Og
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "support/error_of.h"
#include "support/matrix_matchers.h"
#include "support/random.h"

namespace {

using Eigen::MatrixXf;
using support::error_of;
using support::numbers;
using support::same_bits;
using BoolMatrix = Eigen::Matrix<bool, Eigen::Dynamic, Eigen::Dynamic>;

/// The operands of most tests here: 6 queries, 9 keys, 16 columns.
struct Operands {
  MatrixXf Q = numbers(6, 16), K = numbers(9, 16, 1), V = numbers(9, 16, 2), Y;
};
auto two(const MatrixXf& X) { return attn::heads(X, 2); }

/// The message holds what is to be written.
void expect_says(const std::string& message, const std::string& words) {
  EXPECT_NE(message.find(words), std::string::npos) << message << "\nshould say: " << words;
}

TEST(Mistakes, HeadsOfQueriesAlone) {
  const Operands o;
  expect_says(error_of([&] { (void)attn::attention(two(o.Q), o.K, o.V); }),
              "key has 16 features, query has 8; both need d_k, for each head. Heads of keys are "
              "named too: heads(K, 2)");
}

TEST(Mistakes, HeadsThatDoNotDivide) {
  const Operands o;
  expect_says(
      error_of([&] { (void)attn::attention(attn::heads(o.Q, 3), attn::heads(o.K, 2), two(o.V)); }),
      "query has 16 columns, needs a multiple of its 3 heads");
  expect_says(error_of([] { attn::MultiHeadAttention<float> mha(attn::MultiHeadOptions(16, 3)); }),
              "d_model is 16, needs a multiple of the 3 heads, or key_dim(n)");
}

// Where there are as many queries as keys nothing shows it: the head of attention.h says which way is right.
TEST(Mistakes, TokensInColumns) {
  const Operands o;
  const MatrixXf Q = o.Q.transpose(), K = o.K.transpose(), V = o.V.transpose();
  expect_says(error_of([&] { (void)attn::attention(two(Q), two(K), two(V)); }),
              "key has 9 columns, needs a multiple of its 2 heads");
  expect_says(error_of([&] { (void)attn::attention(Q, K, V); }),
              "key has 9 features, query has 6; both need d_k, for each head. A row is a token: "
              "where tokens are columns, write Q.transpose(), K.transpose()");
  EXPECT_TRUE(same_bits(attn::attention(Q.transpose(), K.transpose(), V.transpose()),
                        attn::attention(o.Q, o.K, o.V)));

  const char* const says =
      "has 9 features, the layer takes 6. A row is a token: where tokens are columns, write "
      "X.transpose()";
  const MatrixXf X = MatrixXf::Ones(6, 9);
  attn::MultiHeadAttention<float> mha(attn::MultiHeadOptions(6, 2));
  expect_says(error_of([&] { (void)mha(X); }), says);
  attn::Linear<float> linear(attn::LinearOptions(6, 4));
  expect_says(error_of([&] { (void)linear(X); }), says);
}

TEST(Mistakes, AMaskOrABiasWithKeysInRows) {
  const Operands o;
  const BoolMatrix keys_in_rows = BoolMatrix::Constant(9, 6, true);
  expect_says(error_of([&] {
                (void)attn::attention(two(o.Q), two(o.K), two(o.V), attn::keep(keys_in_rows));
              }),
              "keep is 9x6, needs 6x9 (query rows x keys of each head); one row, or one column a "
              "head, serves all. Transposed it fits: keep(B.transpose())");
  expect_says(error_of([&] {
                (void)attn::attention(two(o.Q), two(o.K), two(o.V), attn::bias(numbers(9, 6)));
              }),
              "Transposed it fits: bias(B.transpose())");
}

TEST(Mistakes, ABiasForEachHeadWithoutHeads) {
  const Operands o;
  expect_says(error_of([&] {
                (void)attn::attention(two(o.Q), two(o.K), two(o.V), attn::bias(numbers(6, 18)));
              }),
              "bias is 6x18, needs 6x9 (query rows x keys of each head); one row, or one column a "
              "head, serves all. One for each head is named so: bias(heads(B, 2))");
}

TEST(Mistakes, PolarityIsInTheName) {
  const Operands o;
  const BoolMatrix seen = numbers(6, 9).array() > 0;
  EXPECT_TRUE(same_bits(attn::attention(o.Q, o.K, o.V, attn::keep(seen)),
                        attn::attention(o.Q, o.K, o.V, attn::hide(!seen.array()))));
}

TEST(Mistakes, CausalWhereQueriesAndKeysAreNotAsMany) {
  const Operands o;
  expect_says(error_of([&] { (void)attn::attention(o.Q, o.K, o.V, attn::causal()); }),
              "causal() with 6 queries and 9 keys: name the alignment: causal(align::lower_right)");
}

TEST(Mistakes, LengthsInsteadOfOffsets) {
  const Operands o;
  expect_says(error_of([&] {
                (void)attn::attention(o.Q, o.K, o.V, attn::sequences({2, 4}, {4, 5}));
              }),
              "must begin with 0: offsets, not lengths; two sequences of 5 and 7 rows are {0, 5, "
              "12}");
}

TEST(Mistakes, ThePlaceOfAnOperandAsOutput) {
  Operands o;
  const MatrixXf whole = attn::attention(o.Q, o.K, o.V);
  MatrixXf in_place = o.Q;
  attn::attention(in_place, o.K, o.V, attn::into(in_place));
  EXPECT_TRUE(same_bits(in_place, whole));
  in_place = o.Q;
  in_place = attn::attention(in_place, o.K, o.V);
  EXPECT_TRUE(same_bits(in_place, whole));
  expect_says(error_of([&] { attn::attention(o.Q, o.K, o.V, attn::into(o.K)); }),
              "output overlaps key; write to memory of its own");
}

// What auto keeps is a matrix, or owns what would vanish with the line. (Sanitizers watch over it.)
TEST(Mistakes, AutoOutlivesItsLine) {
  const Operands o;
  const auto Y = attn::attention(o.Q, o.K, o.V);
  EXPECT_TRUE((std::is_same_v<decltype(Y), const MatrixXf>));
  const auto Q = attn::heads(MatrixXf(o.Q * 1.f), 2);
  const auto options = attn::options(attn::keep(numbers(6, 9).array() > 0),
                                     attn::bias(MatrixXf(numbers(6, 9) * 2.f)));
  const BoolMatrix seen = numbers(6, 9).array() > 0;
  const MatrixXf bias = numbers(6, 9) * 2.f;
  EXPECT_TRUE(
      same_bits(attn::attention(Q, two(o.K), two(o.V), options),
                attn::attention(two(o.Q), two(o.K), two(o.V), attn::keep(seen), attn::bias(bias))));
}

// Nobody can see that rows are padding. NaN in them shows it: in every row without key_lengths(), in none with.
TEST(Mistakes, APaddedBatchWithoutLengths) {
  MatrixXf K = numbers(6, 16), V = numbers(6, 16, 1);
  const MatrixXf Q = numbers(6, 16, 2);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const int padding : {2, 4, 5}) {  // sequences of 2 and 1 tokens, padded to 3
    K.row(padding).setConstant(nan);
    V.row(padding).setConstant(nan);
  }
  EXPECT_TRUE(attn::attention(Q, K, V, attn::sequence_length(3)).array().isNaN().all());
  EXPECT_FALSE(attn::attention(Q, K, V, attn::sequence_length(3), attn::key_lengths({2, 1}))
                   .array()
                   .isNaN()
                   .any());
}

TEST(Mistakes, OddFeaturesToTurnInPairs) {
  const Operands o;
  const MatrixXf Q = o.Q.leftCols(15), K = o.K.leftCols(15);
  expect_says(
      error_of([&] { (void)attn::attention(Q, K, o.V, attn::rotary(attn::pairing::half_split)); }),
      "a head has 15 features, 15 are to turn, two by two: needs an even number from 2 to "
      "15, as .dims(n) says it");
}

TEST(Mistakes, BiasesForALayerWithoutThem) {
  attn::MultiHeadAttention<float> mha(attn::MultiHeadOptions(16, 2));
  expect_says(error_of([&] { mha.edit([](auto& w) { w.query_bias = MatrixXf::Zero(1, 16); }); }),
              "the query bias is given, the layer has none; it has where it is made with "
              "MultiHeadOptions(...).in_bias()");
}

}  // namespace
