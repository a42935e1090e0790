// tests/one_header_test.cpp: attention.h alone has all that its own table of options names.
// build: -Og
// SPDX-License-Identifier: MIT
#include <attn/attention.h>
#include <gtest/gtest.h>

#include "support/error_of.h"

namespace {

using Eigen::MatrixXf;

TEST(AttentionHeader, NamesEveryOptionOfItsTable) {
  const MatrixXf Q = MatrixXf::Random(4, 8), K = MatrixXf::Random(4, 8), V = MatrixXf::Random(4, 8);
  const auto all = [&](auto&&... options) {
    MatrixXf Y;
    attn::attention(attn::heads(Q, 2), attn::heads(K, 2), attn::heads(V, 2), attn::into(Y),
                    options...);
    return Y;
  };
  const Eigen::Matrix<bool, Eigen::Dynamic, Eigen::Dynamic> see =
      Eigen::Matrix<bool, Eigen::Dynamic, Eigen::Dynamic>::Constant(4, 4, true);
  const std::vector<attn::Index> ids{0, 0, 1, 1}, parents{-1, 0};
  const auto masks = (attn::causal() || attn::prefix_lm(2) || attn::tree(parents)) &&
                     attn::window(3, 0) && attn::keep(see) && !attn::hide(see) &&
                     attn::key_lengths(4) && attn::key_range(0, 4) && attn::segments(ids) &&
                     attn::block_sparse(see, 1) &&
                     attn::mask([](attn::Index i, attn::Index j) { return j <= i; });
  MatrixXf logsumexp, largest, entropy, weights, scores;
  attn::Workspace<float> workspace;
  const MatrixXf Y =
      all(masks, attn::query_offset(0), attn::rotary(attn::pairing::half_split), attn::scale(0.5f),
          attn::softcap(30.f), attn::bias(MatrixXf::Zero(4, 4)), attn::alibi(attn::alibi_slopes(2)),
          attn::score([](auto s, auto) { return s; }), attn::sink(), attn::residual(Q),
          attn::save_logsumexp(logsumexp), attn::save_max_logit(largest),
          attn::save_entropy(entropy), attn::save_weights(weights),
          attn::save_scores(scores, attn::stage::masked), attn::sequences({0, 4}),
          attn::dropout(0.1, 1), attn::parallel(1), attn::split_keys(4), attn::use(workspace));
  EXPECT_EQ(Y.rows(), 4);
  EXPECT_TRUE(Y.allFinite());
}

// A message says what to write, also where the mistake is one of meaning.
TEST(AttentionHeader, MessagesSayWhatToWrite) {
  const MatrixXf Q = MatrixXf::Ones(4, 8), K = Q, V = Q;
  MatrixXf Y(4, 8);
  const auto error = [&](const auto& f) { return support::error_of(f); };
  EXPECT_EQ(error([&] { attn::attention(attn::heads(Q, 0), K, V, attn::into(Y)); }),
            "attn::attention: query is given as heads(query, 0), needs at least 1 head");
  EXPECT_EQ(error([&] { attn::attention(attn::heads(Q, 2), K, V, attn::into(Y)); }),
            "attn::attention: key has 8 features, query has 4; both need d_k, for each head. Heads "
            "of keys are named too: heads(K, 2)");
  EXPECT_EQ(error([&] {
              attn::attention(attn::heads(Q, 2), attn::heads(K, 2), attn::heads(V, 2),
                              attn::into(Y), attn::bias(MatrixXf::Zero(4, 8)));
            }),
            "attn::attention: bias is 4x8, needs 4x4 (query rows x keys of each head); one row, or "
            "one column a head, serves all. One for each head is named so: bias(heads(B, 2))");
  EXPECT_EQ(error([&] {
              attn::attention(Q, K, V, attn::into(Y), attn::sequences({2, 2}));
            }),
            "attn::attention: sequences: the row offsets of query must begin with 0: offsets, not "
            "lengths; two sequences of 5 and 7 rows are {0, 5, 12}");
  EXPECT_EQ(error([&] {
              attn::attention(Q.leftCols(7), K.leftCols(7), V, attn::into(Y),
                              attn::rotary(attn::pairing::half_split));
            }),
            "attn::attention: rotary: a head has 7 features, 7 are to turn, two by two: needs an "
            "even number from 2 to 7, as .dims(n) says it");
}

}  // namespace
