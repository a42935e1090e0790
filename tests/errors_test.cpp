// tests/errors_test.cpp: what is refused at run time, in which words, and that all is left as it was.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/error_of.h"
#include "support/matrix_matchers.h"
#include "support/random.h"

namespace {

using Eigen::Index;
using Eigen::MatrixXf;
using support::error_of;
using support::numbers;
using support::same_bits;

/// The call with these options is refused in these words; outputs keep their sizes and their bits.
template <class Query, class Key, class Value, class... Options>
void expect_refused(const std::string& message, const Query& Q, const Key& K, const Value& V,
                    const Options&... options) {
  const MatrixXf Y_before = numbers(2, 3, 91), l_before = numbers(1, 1, 92);
  MatrixXf Y = Y_before, l = l_before;
  EXPECT_EQ(error_of([&] {
              attn::attention(Q, K, V, attn::into(Y), options..., attn::save_logsumexp(l));
            }),
            message);
  EXPECT_TRUE(same_bits(Y, Y_before)) << message;
  EXPECT_TRUE(same_bits(l, l_before)) << message;
}

/// Operands of `n` heads; the heads() of every test here, so that they share one instantiation.
auto split(const MatrixXf& X, Index n = 1) { return attn::heads(X, n); }

// ---- Operands -----------------------------------------------------------------------------

TEST(OperandErrors, NameTheShapesThatDisagree) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4);
  expect_refused("attn::attention: value has 7 rows, key has 9; both need one row per key",
                 split(Q), split(K), split(numbers(7, 4)));
  expect_refused("attn::attention: value has 11 rows, key has 9; both need one row per key",
                 split(Q), split(K), split(numbers(11, 4)));
  expect_refused("attn::attention: key has 7 features, query has 8; both need d_k, for each head",
                 split(Q), split(numbers(9, 7)), split(V));
  expect_refused("attn::attention: key has 4 features, query has 8; both need d_k, for each head",
                 split(Q), split(K, 2), split(V, 2));
  expect_refused("attn::attention: query has 0 features, needs at least 1", split(numbers(6, 0)),
                 split(numbers(9, 0)), split(V));
}

TEST(OperandErrors, NameTheHeadsThatDoNotDivide) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4);
  expect_refused("attn::attention: query has 8 columns, needs a multiple of its 3 heads",
                 split(Q, 3), split(K), split(V));
  expect_refused("attn::attention: key has 8 columns, needs a multiple of its 5 heads", split(Q),
                 split(K, 5), split(V));
  expect_refused("attn::attention: value has 4 columns, needs a multiple of its 3 heads", split(Q),
                 split(K), split(V, 3));
  expect_refused("attn::attention: query is given as heads(query, 0), needs at least 1 head",
                 split(Q, 0), split(K), split(V));
  expect_refused("attn::attention: key is given as heads(key, -2), needs at least 1 head", split(Q),
                 split(K, -2), split(V));
  expect_refused("attn::attention: value has 2 heads, key has 4; both need one number", split(Q, 4),
                 split(K, 4), split(V, 2));
  expect_refused(
      "attn::attention: query has 2 heads, needs a multiple of the 4 heads of key and value",
      split(numbers(6, 4), 2), split(K, 4), split(V, 4));
  expect_refused(
      "attn::attention: query has 3 heads, needs a multiple of the 2 heads of key and value",
      split(numbers(6, 12), 3), split(K, 2), split(V, 2));
}

TEST(OperandErrors, AreTheFunctorsOwn) {
  attn::ScaledDotProductAttention<float> sdpa;
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(7, 4);
  MatrixXf Y(2, 3);
  EXPECT_EQ(error_of([&] { sdpa(Q, K, V, attn::into(Y)); }),
            "attn::ScaledDotProductAttention: value has 7 rows, key has 9; both need one row per "
            "key");
  EXPECT_EQ(Y.rows(), 2);
}

// ---- Batches ------------------------------------------------------------------------------

TEST(BatchErrors, SayWhatIsWrongWithOffsets) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4);
  const auto refused = [&](const std::string& message, const std::vector<int>& queries,
                           const std::vector<int>& keys) {
    expect_refused("attn::attention: sequences: " + message, split(Q), split(K), split(V),
                   attn::sequences(queries, keys));
  };
  const std::string kOffsets =
      ": offsets, not lengths; two sequences of 5 and 7 rows are {0, 5, 12}";
  refused("the row offsets of query must begin with 0" + kOffsets, {1, 6}, {0, 9});
  refused("the row offsets of query must begin with 0" + kOffsets, {}, {0, 9});
  refused("the row offsets of key must begin with 0" + kOffsets, {0, 6}, {2, 9});
  refused("row offset 2 of query is 3, below the one before, 4", {0, 4, 3, 6}, {0, 3, 6, 9});
  refused("row offset 1 of key is -1, below the one before, 0", {0, 2, 4, 6}, {0, -1, 6, 9});
  refused("the row offsets of query end at 5, it has 6 rows", {0, 2, 5}, {0, 3, 9});
  refused("the row offsets of key end at 12, it has 9 rows", {0, 2, 6}, {0, 3, 12});
}

TEST(BatchErrors, SayWhichCountsOfSequencesDisagree) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4);
  const std::string end = "; needs as many, or one that serves all";
  expect_refused("attn::attention: key has 2 sequences, query has 3" + end, split(Q), split(K),
                 split(V), attn::sequences({0, 1, 2, 6}, {0, 4, 9}));
  expect_refused("attn::attention: key has 3 sequences, query has 2" + end, split(Q), split(K),
                 split(V), attn::sequence_length(3, 3));
  expect_refused("attn::attention: key has 0 sequences, query has 1" + end, split(Q),
                 split(numbers(0, 8)), split(numbers(0, 4)), attn::sequences({0, 6}, {0}));
}

TEST(BatchErrors, SayWhichLengthDoesNotDivide) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4);
  const auto refused = [&](const std::string& message, Index queries, Index keys) {
    expect_refused("attn::attention: " + message, split(Q), split(K), split(V),
                   attn::sequence_length(queries, keys));
  };
  refused("sequence_length: query has 6 rows, needs a multiple of 4 (at least 1)", 4, 3);
  refused("sequence_length: key has 9 rows, needs a multiple of 2 (at least 1)", 3, 2);
  refused("sequence_length(0, 3): lengths are at least 1", 0, 3);
  refused("sequence_length(3, -1): lengths are at least 1", 3, -1);
}

TEST(BatchErrors, AStridedViewHoldsItsSequencesItself) {
  const MatrixXf memory = numbers(4, 24);
  const auto view = [&](Index sequences, Index tokens) {
    return attn::bhld(memory.data(), sequences, 1, tokens, 4);
  };
  const std::string end =
      " is a strided view, which holds its sequences itself; sequences() and sequence_length() are "
      "for stacked rows";
  expect_refused("attn::attention: query" + end, view(2, 3), view(2, 3), view(2, 3),
                 attn::sequence_length(3));
  expect_refused("attn::attention: query" + end, view(2, 3), view(2, 3), view(2, 3),
                 attn::sequences({0, 3}));
  expect_refused("attn::attention: value has 1 sequence, key has 2; both need one number",
                 view(2, 3), view(2, 3), view(1, 3));
  expect_refused(
      "attn::attention: key has 2 sequences, query has 4; needs as many, or one that "
      "serves all",
      view(4, 3), view(2, 3), view(2, 3));
}

// ---- Masks and positions ------------------------------------------------------------------

TEST(MaskErrors, PlainCausalAsksForAnAlignment) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4);
  const std::string message =
      "attn::attention: causal() with 6 queries and 9 keys: name the alignment: "
      "causal(align::lower_right) puts the last query at the last key, causal(align::upper_left) "
      "the first query at the first key, causal_from(n) the first query at key n";
  expect_refused(message, split(Q), split(K), split(V), attn::causal());
  expect_refused(message, split(Q), split(K), split(V), attn::window(2, 2) || !attn::causal());
}

TEST(MaskErrors, PlainCausalAsksInTheSequenceThatLeavesItOpen) {
  const MatrixXf Q = numbers(6, 8), K = numbers(7, 8), V = numbers(7, 4);
  const std::string message = error_of([&] {
    (void)attn::attention(split(Q), split(K), split(V), attn::causal(),
                          attn::sequences({0, 4, 6}, {0, 4, 7}));
  });
  EXPECT_EQ(message.substr(0, 56), "attn::attention: causal() with 2 queries and 3 keys: nam");
}

TEST(MaskErrors, OffsetsAreOneOrOneForEachSequence) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4);
  const std::string end =
      " has 2 offsets, the call has 3 sequences; needs one for each (or one for all)";
  expect_refused("attn::attention: causal_from" + end, split(Q), split(K), split(V),
                 attn::sequence_length(2, 3), attn::causal_from({1, 2}));
  expect_refused("attn::attention: query_offset" + end, split(Q), split(K), split(V),
                 attn::sequence_length(2, 3), attn::query_offset({1, 2}));
}

TEST(MaskErrors, WindowSidesAreCounts) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4);
  const std::string end = ": both sides are counts of keys, or -1 for unbounded";
  expect_refused("attn::attention: window(-2, 0)" + end, split(Q), split(K), split(V),
                 attn::window(-2, 0));
  expect_refused("attn::attention: window(3, -7)" + end, split(Q), split(K), split(V),
                 attn::window(3, -7));
}

TEST(MaskErrors, KeyBoundsLieWithinTheirSequence) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4);
  const auto refused = [&](const std::string& message, const auto& mask) {
    expect_refused("attn::attention: " + message, split(Q), split(K), split(V),
                   attn::sequence_length(2, 3), mask);
  };
  refused(
      "key_lengths has 2 entries, the call has 3 sequences; needs one for each (or one for "
      "all)",
      attn::key_lengths({1, 2}));
  refused("key_range has 4 entries, the call has 3 sequences; needs one for each (or one for all)",
          attn::key_range({0, 0, 0, 0}, {1, 1, 1, 1}));
  refused("key_range has 1 begins and 3 ends", attn::key_range({0}, {1, 2, 3}));
  refused("key_lengths of sequence 1 is [0, 4), needs 0 <= begin <= end <= 3 (its keys)",
          attn::key_lengths({3, 4, 1}));
  refused("key_lengths of sequence 0 is [0, -1), needs 0 <= begin <= end <= 3 (its keys)",
          attn::key_lengths({-1, 2, 1}));
  refused("key_lengths of sequence 0 is [0, 5), needs 0 <= begin <= end <= 3 (its keys)",
          attn::key_lengths(5));
  refused("key_range of sequence 2 is [2, 1), needs 0 <= begin <= end <= 3 (its keys)",
          attn::key_range({0, 1, 2}, {3, 3, 1}));
  refused("key_range of sequence 0 is [-1, 2), needs 0 <= begin <= end <= 3 (its keys)",
          attn::key_range(-1, 2));
}

TEST(MaskErrors, ARaggedBatchIsBoundedByEachSequence) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4);
  expect_refused(
      "attn::attention: key_lengths of sequence 1 is [0, 4), needs 0 <= begin <= end <= 2 (its "
      "keys)",
      split(Q), split(K), split(V), attn::sequences({0, 3, 6}, {0, 7, 9}), attn::key_lengths(4));
}

TEST(MaskErrors, PrefixAndTreeAskForAnOffset) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4);
  const std::string end =
      "() with 6 queries and 9 keys: name the offset: query_offset(n) puts the first query at key "
      "n, so 3 puts the last query at the last key";
  expect_refused("attn::attention: prefix_lm" + end, split(Q), split(K), split(V),
                 attn::prefix_lm(2));
  expect_refused("attn::attention: tree" + end, split(Q), split(K), split(V), attn::tree({-1, 0}));
}

TEST(MaskErrors, PrefixesLieWithinTheirKeys) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4);
  const auto refused = [&](const std::string& message, const auto& mask) {
    expect_refused("attn::attention: prefix_lm " + message, split(Q), split(K), split(V),
                   attn::sequence_length(2, 3), attn::query_offset(1), mask);
  };
  refused("has 2 entries, the call has 3 sequences; needs one for each (or one for all)",
          attn::prefix_lm({1, 2}));
  refused("of sequence 1 is 4, needs 0 <= n <= 3 (its keys)", attn::prefix_lm({3, 4, 1}));
  refused("of sequence 0 is -1, needs 0 <= n <= 3 (its keys)", attn::prefix_lm(-1));
}

TEST(MaskErrors, SegmentsHaveAnIdForEachToken) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4);
  const auto refused = [&](const std::string& message, const auto& batch, const auto& mask) {
    expect_refused("attn::attention: segments has " + message, split(Q), split(K), split(V), batch,
                   mask);
  };
  const auto whole = attn::sequences({0, 6}, {0, 9}),
             ragged = attn::sequences({0, 4, 6}, {0, 4, 9});
  refused("9 query ids, needs 6 (one for each query)", whole,
          attn::segments({1, 1, 1, 2, 2, 2, 3, 3, 3}));
  refused("6 key ids, needs 9 (one for each key)", whole, attn::segments({1, 1, 1, 2, 2, 2}));
  refused("2 key ids, needs 9 (one for each key)", whole,
          attn::segments({1, 1, 1, 2, 2, 2}, {1, 2}));
  refused("5 query ids, needs 6 (one for each query) or 4 (the longest sequence's, for all)",
          ragged, attn::segments({1, 1, 1, 2, 2}));
  refused("4 key ids, needs 9 (one for each key) or 5 (the longest sequence's, for all)", ragged,
          attn::segments({1, 1, 1, 2}));
}

TEST(MaskErrors, TreesHaveParentsBeforeTheirChildren) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4);
  const auto refused = [&](const std::string& message, const auto& mask) {
    expect_refused("attn::attention: tree" + message, split(Q), split(K), split(V),
                   attn::sequences({0, 4, 6}, {0, 4, 9}), attn::query_offset(0), mask);
  };
  refused(": the parent of token 1 is 1, needs a token before it, or -1 for a root",
          attn::tree({-1, 1}));
  refused(": the parent of token 0 is 2, needs a token before it, or -1 for a root",
          attn::tree({2, 0}));
  refused(": the parent of token 1 is -2, needs a token before it, or -1 for a root",
          attn::tree({-1, -2}));
  refused(" has 3 tokens, sequence 1 has 2 query rows; the tree's tokens are its last rows",
          attn::tree({-1, 0, 1}));
  // Six parents are those of both sequences, each counted from its own first row.
  refused(": the parent of token 1 is 4, needs a token before it, or -1 for a root",
          attn::tree({-1, 0, 1, 2, -1, 4}));
}

TEST(MaskErrors, BlocksCoverTheScores) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4);
  const auto B = support::random_bools(2, 3, 3);
  const auto refused = [&](const std::string& message, const auto& mask) {
    expect_refused("attn::attention: block_sparse" + message, split(Q, 2), split(K, 2), split(V, 2),
                   mask);
  };
  refused(": blocks of 0, needs at least 1", attn::block_sparse(B, 0));
  const std::string end = " for 2 heads and 1 sequence, or 1 in place of these";
  refused(
      " is 2x3 for 1 head and 1 sequence, needs 3x5 (blocks of 2 query rows x blocks of 2 "
      "keys)" +
          end,
      attn::block_sparse(B, 2));
  refused(
      " is 2x1 for 3 heads and 1 sequence, needs 2x3 (blocks of 3 query rows x blocks of 3 "
      "keys)" +
          end,
      attn::block_sparse(attn::heads(B, 3), 3));
  refused(
      " is 2x0 for 2 heads and 1 sequence, needs 2x3 (blocks of 3 query rows x blocks of 3 "
      "keys)" +
          end,
      attn::block_sparse(attn::heads(B, 2), 3));
}

// ---- Matrices shaped like the scores ------------------------------------------------------

const std::string kOneServesAll = "; one row, or one column a head, serves all";

TEST(ScoreShapeErrors, NameTheShapeThatIsNeeded) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4), B = numbers(5, 9);
  expect_refused(
      "attn::attention: bias is 5x9, needs 6x9 (query rows x keys of each head)" + kOneServesAll,
      split(Q), split(K), split(V), attn::bias(split(B)));
  expect_refused("attn::attention: bias has 3 heads, query has 2", split(Q, 2), split(K, 2),
                 split(V, 2), attn::bias(split(numbers(6, 27), 3)));
  expect_refused(
      "attn::attention: bias is 6x9, needs 6x18 (query rows x keys of each head)" + kOneServesAll,
      split(Q, 2), split(K, 2), split(V, 2), attn::bias(split(numbers(6, 9), 2)));
  expect_refused("attn::attention: bias is 6x18, needs 6x9 (query rows x keys of each head)" +
                     kOneServesAll + ". One for each head is named so: bias(heads(B, 2))",
                 split(Q, 2), split(K, 2), split(V, 2), attn::bias(split(numbers(6, 18))));
}

TEST(ScoreShapeErrors, NameTheMaskByItsPolarity) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4);
  const auto B = support::random_bools(6, 8, 3);
  expect_refused(
      "attn::attention: keep is 6x8, needs 6x9 (query rows x keys of each head)" + kOneServesAll,
      split(Q), split(K), split(V), attn::keep(B));
  expect_refused(
      "attn::attention: hide is 6x8, needs 6x9 (query rows x keys of each head)" + kOneServesAll,
      split(Q), split(K), split(V), attn::hide(B));
}

TEST(ScoreShapeErrors, OfABatchNameBothShapes) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4), B = numbers(3, 5);
  expect_refused(
      "attn::attention: bias is 3x5, needs 4x5 (longest query sequence x keys of each head) or 6x5 "
      "(a row for each query token)" +
          kOneServesAll,
      split(Q), split(K), split(V), attn::sequences({0, 4, 6}, {0, 4, 9}), attn::bias(split(B)));
}

TEST(ScoreShapeErrors, OfAStridedViewNameTheFourSizes) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4), memory = numbers(9, 99);
  expect_refused(
      "attn::attention: bias is [1, 3, 6, 9], needs [1, 2, 6, 9] (sequences, heads, queries, keys) "
      "or 1 in place of any",
      split(Q, 2), split(K, 2), split(V, 2), attn::bias(attn::bhld(memory.data(), 1, 3, 6, 9)));
  expect_refused(
      "attn::attention: bias is [3, 1, 2, 4], needs [3, 1, 2, 3] (sequences, heads, queries, keys) "
      "or 1 in place of any",
      split(Q), split(K), split(V), attn::sequence_length(2, 3),
      attn::bias(attn::bhld(memory.data(), 3, 1, 2, 4)));
}

// Numbers are what they are in the scalar of the call: beyond its ends they are refused.
TEST(ScoreErrors, SoftcapAndItsInverseAreFiniteAndAboveZero) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4);
  const std::vector<std::pair<double, std::string>> bad = {
      {0, "0"},
      {-1, "-1"},
      {1e-40, "1e-40"},
      {1e-300, "1e-300"},
      {1e32, "1e+32"},
      {3e38, "3e+38"},
      {1e300, "1e+300"},
      {-1e-300, "-1e-300"},
      {std::numeric_limits<double>::quiet_NaN(), "nan"},
      {std::numeric_limits<double>::infinity(), "inf"}};
  for (const auto& [cap, shown] : bad) {
    expect_refused("attn::attention: softcap is " + shown +
                       ", needs a finite cap above zero, neither so small that 1 / cap overflows "
                       "nor so large that s / cap vanishes",
                   split(Q), split(K), split(V), attn::softcap(cap));
  }
}

TEST(ScoreErrors, ScaleIsFinite) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4);
  using Limits = std::numeric_limits<double>;
  const std::vector<std::pair<double, std::string>> bad = {{1e39, "1e+39"},
                                                           {-1e300, "-1e+300"},
                                                           {Limits::infinity(), "inf"},
                                                           {Limits::quiet_NaN(), "nan"}};
  for (const auto& [scale, shown] : bad) {
    expect_refused("attn::attention: scale is " + shown + ", needs a finite number", split(Q),
                   split(K), split(V), attn::scale(scale));
  }
}

// ---- Numbers by head -----------------------------------------------------------------------

TEST(HeadNumberErrors, AreOneForEachHeadOrOneForAll) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4);
  const std::string end = " numbers, query has 4 heads; needs one for each (or one for all)";
  expect_refused("attn::attention: alibi has 3" + end, split(Q, 4), split(K, 4), split(V, 4),
                 attn::alibi({1., 2., 3.}));
  expect_refused("attn::attention: sink has 2" + end, split(Q, 4), split(K, 4), split(V, 4),
                 attn::sink({1., 2.}));
  expect_refused("attn::attention: sink has 0" + end, split(Q, 4), split(K, 4), split(V, 4),
                 attn::sink(std::vector<double>()));
}

TEST(HeadNumberErrors, SlopesAreFinite) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4);
  using Limits = std::numeric_limits<double>;
  const std::vector<std::pair<double, std::string>> bad = {
      {1e39, "1e+39"}, {-Limits::infinity(), "-inf"}, {Limits::quiet_NaN(), "nan"}};
  for (const auto& [slope, shown] : bad) {
    expect_refused("attn::attention: alibi: slope 2 is " + shown + ", needs a finite number",
                   split(Q, 4), split(K, 4), split(V, 4), attn::alibi({0., 1., slope, 0.}));
  }
}

TEST(HeadNumberErrors, SinksAreFiniteOrMinusInfinity) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4);
  using Limits = std::numeric_limits<double>;
  for (const double bad : {Limits::infinity(), Limits::quiet_NaN(), 1e300}) {
    expect_refused("attn::attention: sink: logit 1 is not a finite number (or -infinity)",
                   split(Q, 4), split(K, 4), split(V, 4), attn::sink({0., bad, 0., 0.}));
  }
}

TEST(HeadNumberErrors, SlopesAreForHeads) {
  EXPECT_EQ(error_of([] { (void)attn::alibi_slopes(0); }),
            "attn::alibi_slopes: 0 heads, needs at least 1");
}

// ---- Outputs and residuals ----------------------------------------------------------------

TEST(OutputErrors, NameTheSizeThatIsNeeded) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4);
  Eigen::Matrix<float, 6, 5> fixed = numbers(6, 5);
  const Eigen::Matrix<float, 6, 5> before = fixed;
  EXPECT_EQ(error_of([&] { attn::attention(split(Q), split(K), split(V), attn::into(fixed)); }),
            "attn::attention: output is 6x5, needs 6x4");
  EXPECT_TRUE(same_bits(fixed, before));

  MatrixXf big = numbers(9, 9);
  const MatrixXf big_before = big;
  EXPECT_EQ(error_of([&] {
              attn::attention(split(Q), split(K), split(V), attn::into(big.topLeftCorner(5, 4)));
            }),
            "attn::attention: output is 5x4, needs 6x4");
  EXPECT_EQ(
      error_of([&] {
        attn::attention(split(Q, 2), split(K, 2), split(V, 2), attn::into(attn::heads(big, 3)));
      }),
      "attn::attention: output is 9x9 in 3 heads, needs 6x4 (query rows x output features) in "
      "2 heads");
  EXPECT_EQ(error_of([&] {
              attn::attention(split(Q), split(K), split(V),
                              attn::into(attn::bhld(big.data(), 1, 2, 6, 4)));
            }),
            "attn::attention: output is a view of [1, 2, 6, 4], needs [1, 1, 6, 4] (sequences, "
            "heads, query rows, output features), sequences of equal length");
  EXPECT_TRUE(same_bits(big, big_before));
}

TEST(OutputErrors, ARaggedBatchDoesNotFitAStridedView) {
  const MatrixXf Q = numbers(6, 8), K = numbers(6, 8), V = numbers(6, 4);
  MatrixXf Y = numbers(6, 4, 5);
  const MatrixXf before = Y;
  EXPECT_EQ(error_of([&] {
              attn::attention(split(Q), split(K), split(V), attn::sequences({0, 3, 6}),
                              attn::into(attn::bhld(Y.data(), 2, 1, 3, 4)));
            }),
            "attn::attention: output is a view of [2, 1, 3, 4], needs [2, 1, 3, 4] (sequences, "
            "heads, query rows, output features), sequences of equal length");
  EXPECT_TRUE(same_bits(Y, before));
}

TEST(OutputErrors, ALogsumexpThatDoesNotFitLeavesTheOutputAsItWas) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4);
  const MatrixXf before = numbers(2, 3);
  MatrixXf Y = before;
  Eigen::Vector4f fixed = numbers(4, 1), fixed_before = fixed;
  EXPECT_EQ(error_of([&] { attn::attention(Q, K, V, attn::into(Y), attn::save_logsumexp(fixed)); }),
            "attn::attention: logsumexp is 4x1, needs 6x1");
  EXPECT_TRUE(same_bits(Y, before)) << "resized before the refusal";
  EXPECT_TRUE(same_bits(fixed, fixed_before));

  MatrixXf big = numbers(9, 9);
  EXPECT_EQ(
      error_of([&] { attn::attention(Q, K, V, attn::into(Y), attn::save_logsumexp(big.col(3))); }),
      "attn::attention: logsumexp is 9x1, needs 6x1");
  EXPECT_TRUE(same_bits(Y, before)) << "resized before the refusal";
}

TEST(OutputErrors, ARefusedOutputLeavesTheLogsumexpAsItWas) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4);
  const MatrixXf before = numbers(2, 3);
  MatrixXf l = before, big = numbers(9, 9);
  EXPECT_EQ(error_of([&] {
              attn::attention(Q, K, V, attn::into(big.leftCols(3)), attn::save_logsumexp(l));
            }),
            "attn::attention: output is 9x3, needs 6x4");
  EXPECT_TRUE(same_bits(l, before));
}

TEST(ResidualErrors, NameTheSizeThatIsNeeded) {
  const MatrixXf Q = numbers(6, 8), K = numbers(9, 8), V = numbers(9, 4);
  expect_refused(
      "attn::attention: residual is 6x5 in 1 head, needs 6x4 (query rows x output "
      "features) in 1 head",
      split(Q), split(K), split(V), attn::residual(split(numbers(6, 5))));
  expect_refused(
      "attn::attention: residual is 6x4 in 4 heads, needs 6x4 (query rows x output "
      "features) in 2 heads",
      split(Q, 2), split(K, 2), split(V, 2), attn::residual(split(numbers(6, 4), 4)));
  const MatrixXf X = numbers(6, 4);
  expect_refused(
      "attn::attention: residual is a view of [1, 1, 4, 6], needs [1, 1, 6, 4] "
      "(sequences, heads, query rows, output features), sequences of equal length",
      split(Q), split(K), split(V), attn::residual(attn::bhld(X.data(), 1, 1, 4, 6)));
}

TEST(ResidualErrors, OfResidualAddNameBothShapes) {
  const MatrixXf x = numbers(6, 4), y = numbers(4, 6);
  MatrixXf z = numbers(2, 3), z_before = z;
  EXPECT_EQ(error_of([&] { attn::residual_add(x, y, attn::into(z)); }),
            "attn::residual_add: x is 6x4, y is 4x6; both need one shape");
  EXPECT_TRUE(same_bits(z, z_before));
  EXPECT_EQ(error_of([&] { (void)attn::residual_add(x, y); }),
            "attn::residual_add: x is 6x4, y is 4x6; both need one shape");
  EXPECT_EQ(error_of([&] { attn::residual_add(x, x, attn::into(z.col(1))); }),
            "attn::residual_add: output is 2x1, needs 6x4");
  EXPECT_TRUE(same_bits(z, z_before));
}

}  // namespace
