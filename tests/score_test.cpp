// tests/score_test.cpp: scale, softcap and bias, and the order in which they act.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/reference_attention.h"
#include "support/special_values.h"

namespace {

using Eigen::Index;
using Eigen::MatrixXf;
using support::kInfinity;
using support::near;
using support::reference_attention;
using support::ReferenceOptions;
using support::same_bits;

struct Operands {
  MatrixXf Q, K, V;
};
Operands operands(Index queries, Index keys, Index heads = 1, Index kv_heads = 1) {
  return {support::uniform<float>(queries, heads * 7, 1, 2),
          support::uniform<float>(keys, kv_heads * 7, 2, 2),
          support::uniform<float>(keys, kv_heads * 5, 3)};
}

// ---- scale ----------------------------------------------------------------------------------

TEST(Scale, MultipliesTheScores) {
  const auto [Q, K, V] = operands(23, 300);
  for (const float scale : {1.f, 0.3f, -0.7f, 4.f}) {
    ReferenceOptions asked;
    asked.scale = scale;
    EXPECT_TRUE(near(attn::attention(Q, K, V, attn::scale(scale)),
                     reference_attention(Q, K, V, asked).output, 2e-6))
        << scale;
  }
}

TEST(Scale, TakesAnyNumber) {
  const auto [Q, K, V] = operands(23, 50);
  const MatrixXf two = attn::attention(Q, K, V, attn::scale(2.f));
  EXPECT_TRUE(same_bits(attn::attention(Q, K, V, attn::scale(2)), two));
  EXPECT_TRUE(same_bits(attn::attention(Q, K, V, attn::scale(2.0)), two));
  EXPECT_TRUE(same_bits(attn::attention(Q, K, V, attn::scale(2L)), two));
}

TEST(Scale, IsOneOverTheRootOfTheFeaturesOfAHead) {
  const MatrixXf Q = support::uniform<float>(9, 32, 1), K = support::uniform<float>(9, 32, 2);
  EXPECT_TRUE(same_bits(attn::attention(attn::heads(Q, 2), attn::heads(K, 2), attn::heads(K, 2)),
                        attn::attention(attn::heads(Q, 2), attn::heads(K, 2), attn::heads(K, 2),
                                        attn::scale(0.25f))));
}

TEST(Scale, OfZeroIsTheMeanOfTheVisibleValues) {
  const auto [Q, K, V] = operands(6, 6);
  const MatrixXf Y = attn::attention(Q, K, V, attn::scale(0), attn::causal());
  for (Index i = 0; i < 6; ++i) {
    EXPECT_TRUE(near(Y.row(i), V.topRows(i + 1).colwise().mean(), 1e-6));
  }
}

TEST(Scale, OfNegativeSignDoesNotShowHiddenKeys) {
  const auto [Q, K, V] = operands(40, 40);
  ReferenceOptions asked;
  asked.scale = -3;
  asked.visible = [](Index, Index, Index i, Index j) { return j <= i; };
  EXPECT_TRUE(near(attn::attention(Q, K, V, attn::scale(-3), attn::causal()),
                   reference_attention(Q, K, V, asked).output, 4e-6));
}

// ---- softcap --------------------------------------------------------------------------------

TEST(Softcap, SquashesTheScores) {
  auto [Q, K, V] = operands(23, 300);
  Q.row(0).setZero();
  for (const float cap : {3e-39f, 1e-37f, 0.1f, 1.f, 30.f, 1e30f, 1e31f}) {
    ReferenceOptions asked;
    asked.softcap = cap;
    asked.scale = 2;
    EXPECT_TRUE(near(attn::attention(Q, K, V, attn::softcap(cap), attn::scale(2)),
                     reference_attention(Q, K, V, asked).output, 4e-6))
        << cap;
  }
}

TEST(Softcap, TakesAnyNumber) {
  const auto [Q, K, V] = operands(9, 20);
  const MatrixXf three = attn::attention(Q, K, V, attn::softcap(3.f));
  EXPECT_TRUE(same_bits(attn::attention(Q, K, V, attn::softcap(3)), three));
  EXPECT_TRUE(same_bits(attn::attention(Q, K, V, attn::softcap(3.0)), three));
}

TEST(Softcap, BoundsTheWeightsOfHugeScores) {
  // Scores ±1e6 under a cap of 1: weights e : 1/e.
  MatrixXf Q(1, 1), K(2, 1), V(2, 1);
  Q << 1000;
  K << 1000, -1000;
  V << 1, 0;
  const double e = std::exp(1.);
  EXPECT_NEAR(attn::attention(Q, K, V, attn::softcap(1))(0, 0), e / (e + 1 / e), 1e-6);
}

TEST(Softcap, DoesNotRaiseHiddenKeys) {
  const auto [Q, K, V] = operands(40, 40);
  ReferenceOptions asked;
  asked.softcap = 0.5;
  asked.visible = [](Index, Index, Index i, Index j) { return j <= i; };
  EXPECT_TRUE(near(attn::attention(Q, K, V, attn::softcap(0.5f), attn::causal()),
                   reference_attention(Q, K, V, asked).output, 1e-6));
}

// ---- bias -----------------------------------------------------------------------------------

struct Batch {
  std::vector<Index> queries = {0, 4, 16}, keys = {0, 35, 80};
  Index heads = 4, kv_heads = 2, longest_query = 12, longest_key = 45;
};

/// Attention over the batch with this bias equals the formula with `value(b, h, i, token, j)`.
template <class Option, class Value>
void expect_bias(const Option& option, const Value& value) {
  const Batch batch;
  const auto [Q, K, V] = operands(16, 80, batch.heads, batch.kv_heads);
  ReferenceOptions asked;
  asked.heads = batch.heads;
  asked.kv_heads = batch.kv_heads;
  asked.query_offsets = batch.queries;
  asked.key_offsets = batch.keys;
  asked.bias = [&](Index b, Index h, Index i, Index j) {
    return static_cast<long double>(value(b, h, i, batch.queries[std::size_t(b)] + i, j));
  };
  MatrixXf l;
  const MatrixXf Y = attn::attention(
      attn::heads(Q, batch.heads), attn::heads(K, batch.kv_heads), attn::heads(V, batch.kv_heads),
      option, attn::sequences(batch.queries, batch.keys), attn::save_logsumexp(l));
  const auto expected = reference_attention(Q, K, V, asked);
  EXPECT_TRUE(near(Y, expected.output, 2e-6));
  EXPECT_TRUE(near(l, expected.logsumexp, 6e-6));
}

TEST(Bias, OfLqByLkServesAllSequencesAndHeads) {
  const Batch batch;
  const MatrixXf B = support::uniform<float>(batch.longest_query, batch.longest_key, 5, 3);
  expect_bias(attn::bias(B), [&](Index, Index, Index i, Index, Index j) { return B(i, j); });
  const support::DynamicMatrix<float> row_major = B;
  expect_bias(attn::bias(row_major),
              [&](Index, Index, Index i, Index, Index j) { return B(i, j); });
}

TEST(Bias, OfStackedRowsHasOneForEachToken) {
  const MatrixXf B = support::uniform<float>(16, Batch().longest_key, 6, 3);
  expect_bias(attn::bias(B),
              [&](Index, Index, Index, Index token, Index j) { return B(token, j); });
}

TEST(Bias, OfHeadsHasOneForEachHead) {
  const Batch batch;
  const Index keys = batch.longest_key;
  const MatrixXf shared = support::uniform<float>(batch.longest_query, batch.heads * keys, 7, 3);
  expect_bias(attn::bias(attn::heads(shared, batch.heads)),
              [&](Index, Index h, Index i, Index, Index j) { return shared(i, h * keys + j); });
  const MatrixXf stacked = support::uniform<float>(16, batch.heads * keys, 8, 3);
  expect_bias(
      attn::bias(attn::heads(stacked, batch.heads)),
      [&](Index, Index h, Index, Index token, Index j) { return stacked(token, h * keys + j); });
}

TEST(Bias, OfOneRowServesAllQueriesAndOfOneColumnAllKeys) {
  const Batch batch;
  const Index keys = batch.longest_key;
  const MatrixXf row = support::uniform<float>(1, keys, 21, 3),
                 rows_of_heads = support::uniform<float>(1, batch.heads * keys, 22, 3),
                 column = support::uniform<float>(batch.longest_query, 1, 23, 3),
                 stacked = support::uniform<float>(16, batch.heads, 24, 3);
  const Eigen::RowVectorXf vector = row;
  expect_bias(attn::bias(row), [&](Index, Index, Index, Index, Index j) { return row(0, j); });
  expect_bias(attn::bias(vector), [&](Index, Index, Index, Index, Index j) { return vector(j); });
  expect_bias(
      attn::bias(attn::heads(rows_of_heads, batch.heads)),
      [&](Index, Index h, Index, Index, Index j) { return rows_of_heads(0, h * keys + j); });
  expect_bias(attn::bias(column), [&](Index, Index, Index i, Index, Index) { return column(i); });
  expect_bias(attn::bias(attn::heads(stacked, batch.heads)),
              [&](Index, Index h, Index, Index token, Index) { return stacked(token, h); });
}

TEST(Bias, OfAStridedViewBroadcastsDimensionsOfOne) {
  const Batch batch;
  const Index B = 2, H = batch.heads, Lq = batch.longest_query, Lk = batch.longest_key;
  const MatrixXf memory = support::uniform<float>(B * H * Lq * Lk, 1, 9, 3);
  for (int which = 0; which < 16; ++which) {
    const Index b = which & 1 ? B : 1, h = which & 2 ? H : 1, q = which & 4 ? Lq : 1,
                k = which & 8 ? Lk : 1;
    SCOPED_TRACE(testing::Message() << "[" << b << ", " << h << ", " << q << ", " << k << "]");
    const auto at = [](Index size, Index i) { return size == 1 ? 0 : i; };
    expect_bias(attn::bias(attn::bhld(memory.data(), b, h, q, k)),
                [&](Index s, Index n, Index i, Index, Index j) {
                  return memory(((at(b, s) * h + at(h, n)) * q + at(q, i)) * k + at(k, j));
                });
  }
}

TEST(Bias, MayHaveAScalarOfItsOwn) {
  const Batch batch;
  const Eigen::MatrixXd wide =
      support::uniform<double>(batch.longest_query, batch.longest_key, 10, 3);
  expect_bias(attn::bias(wide), [&](Index, Index, Index i, Index, Index j) { return wide(i, j); });
  const Eigen::Matrix<Eigen::half, -1, -1> narrow = wide.cast<Eigen::half>();
  expect_bias(attn::bias(narrow), [&](Index, Index, Index i, Index, Index j) {
    return static_cast<float>(narrow(i, j));
  });
  const Eigen::MatrixXi whole = (wide * 2).cast<int>();
  expect_bias(attn::bias(whole),
              [&](Index, Index, Index i, Index, Index j) { return whole(i, j); });
}

TEST(Bias, OwnsTheExpressionItWasMadeOf) {
  const Batch batch;
  const MatrixXf B = support::uniform<float>(batch.longest_query, batch.longest_key, 11);
  const auto doubled = [&] {
    const MatrixXf copy = B;
    return attn::bias(2 * copy);
  }();
  expect_bias(doubled, [&](Index, Index, Index i, Index, Index j) { return 2 * B(i, j); });
}

TEST(Bias, OfMinusInfinityHides) {
  const auto [Q, K, V] = operands(20, 70);
  const auto seen = support::random_bools(20, 70, 12);
  const MatrixXf B =
      seen.select(MatrixXf::Zero(20, 70), MatrixXf::Constant(20, 70, -kInfinity<float>));
  ReferenceOptions asked;
  asked.visible = [&](Index, Index, Index i, Index j) { return seen(i, j); };
  EXPECT_TRUE(near(attn::attention(Q, K, V, attn::bias(B)),
                   reference_attention(Q, K, V, asked).output, 1e-6));
}

TEST(Bias, OfMinusInfinityEverywhereGivesZeros) {
  const auto [Q, K, V] = operands(20, 70);
  MatrixXf B = support::uniform<float>(20, 70, 13), l;
  B.row(3).setConstant(-kInfinity<float>);
  const MatrixXf Y = attn::attention(Q, K, V, attn::bias(B), attn::save_logsumexp(l));
  EXPECT_TRUE(same_bits(Y.row(3), MatrixXf::Zero(1, 5)));
  EXPECT_EQ(l(3, 0), -kInfinity<float>);
  EXPECT_TRUE((l.topRows(3).array() > -kInfinity<float>).all());
}

// ---- The order: scale → softcap → bias → mask -----------------------------------------------

// One query, two keys, scores 2 and 0, values 1 and 0: the output is the first weight,
// 1 / (1 + exp(−d)), d being the difference of the scores as they enter the softmax.
double weight(double difference) { return 1 / (1 + std::exp(-difference)); }

TEST(ScoreOrder, IsScaleThenSoftcapThenBias) {
  MatrixXf Q(1, 1), K(2, 1), V(2, 1), B(1, 2);
  Q << 1;
  K << 2, 0;
  V << 1, 0;
  B << 1, 0;
  const auto option = [&](const auto&... options) {
    return double(attn::attention(Q, K, V, options...)(0, 0));
  };
  // scale 3: 6; cap 2: 2·tanh(3); bias: + 1
  const double right = weight(2 * std::tanh(3.) + 1);
  EXPECT_NEAR(option(attn::scale(3), attn::softcap(2), attn::bias(B)), right, 1e-6);
  EXPECT_NEAR(option(attn::bias(B), attn::softcap(2), attn::scale(3)), right, 1e-6);
  EXPECT_NEAR(option(attn::softcap(2), attn::bias(B), attn::scale(3)), right, 1e-6);
  // What other orders would give.
  for (const double difference : {3 * (2 * std::tanh(1.)) + 1,      // softcap, scale, bias
                                  2 * std::tanh((6. + 1) / 2),      // scale, bias, softcap
                                  3 * (2 * std::tanh(1.) + 1),      // softcap, bias, scale
                                  2 * std::tanh(3. * (2 + 1) / 2),  // bias, scale, softcap
                                  3 * (2 * std::tanh((2. + 1) / 2))}) {
    EXPECT_GT(std::abs(weight(difference) - right), 1e-3);
  }
}

TEST(ScoreOrder, PutsTheMaskLast) {
  // Were the mask before the softcap or the bias, the second key would come back.
  MatrixXf Q(1, 1), K(2, 1), V(2, 1), B(1, 2);
  Q << 1;
  K << 2, 0;
  V << 1, 5;
  B << -3, 100;
  EXPECT_EQ(attn::attention(Q, K, V, attn::causal(attn::align::upper_left), attn::softcap(2),
                            attn::bias(B), attn::scale(-2))(0, 0),
            1.f);
  B << -3, kInfinity<float>;
  EXPECT_EQ(attn::attention(Q, K, V, attn::key_lengths(1), attn::bias(B))(0, 0), 1.f);
}

}  // namespace
