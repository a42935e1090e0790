// tests/saved_test.cpp: what a call saves beside its output: weights, scores, largest logits, entropies, log-sum-exp.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "support/batch_case.h"
#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/reference_attention.h"
#include "support/scalar_names.h"
#include "support/special_values.h"
#include "support/threads.h"

namespace {

using Eigen::Index;
using Eigen::MatrixXf;
using support::kInfinity;
using support::near;
using support::Reference;
using support::ReferenceOptions;
using support::same_bits;
using support::uniform;
using Case = support::BatchCase;

/// Everything that a call saves.
template <class Scalar>
struct Saved {
  support::DynamicMatrix<Scalar> l, m, e, W, S;
};

template <class Scalar>
struct Call {
  using Matrix = support::DynamicMatrix<Scalar>;
  Case c;
  Matrix Q, K, V, B;
  support::DynamicMatrix<bool> M;
  double softcap = 3;

  explicit Call(const Case& of)
      : c(of),
        Q(uniform<Scalar>(of.queries.back(), of.heads * 5, 1, of.range)),
        K(uniform<Scalar>(of.keys.back(), of.kv_heads * 5, 2, of.range)),
        V(uniform<Scalar>(of.keys.back(), of.kv_heads * 3, 3)),
        B(uniform<Scalar>(of.queries.back(), of.heads * of.longest_key(), 4)),
        M(support::random_bools(of.queries.back(), of.heads * of.longest_key(), 5, of.visible)) {
    if (of.visible < 1) {
      M.row(of.queries.back() / 2).setConstant(false);  // a row that sees nothing
      for (Index j = 0; j < M.cols(); ++j) M(0, j) = j % of.longest_key() == of.longest_key() - 1;
    }
  }

  template <class... Options>
  Matrix operator()(const Options&... options) const {
    Matrix Y;
    attn::attention(attn::heads(Q, c.heads), attn::heads(K, c.kv_heads), attn::heads(V, c.kv_heads),
                    attn::into(Y), attn::sequences(c.queries, c.keys), attn::softcap(softcap),
                    attn::bias(attn::heads(B, c.heads)), attn::keep(attn::heads(M, c.heads)),
                    options...);
    return Y;
  }

  /// Saves everything, the scores as they are masked.
  Matrix operator()(Saved<Scalar>& s) const {
    return (*this)(attn::save_logsumexp(s.l), attn::save_max_logit(s.m), attn::save_entropy(s.e),
                   attn::save_weights(s.W), attn::save_scores(s.S, attn::stage::masked));
  }
  support::ReferenceResult expected() const {
    ReferenceOptions asked;
    asked.heads = c.heads;
    asked.kv_heads = c.kv_heads;
    asked.query_offsets = c.queries;
    asked.key_offsets = c.keys;
    asked.softcap = static_cast<long double>(Scalar(softcap));
    asked.save_weights = asked.save_scores = true;
    const auto column = [this](Index h, Index j) { return h * c.longest_key() + j; };
    const auto token = [this](Index b, Index i) { return c.queries[std::size_t(b)] + i; };
    asked.bias = [=, this_B = support::widened(B)](Index b, Index h, Index i, Index j) {
      return this_B(token(b, i), column(h, j));
    };
    asked.visible = [=](Index b, Index h, Index i, Index j) {
      return M(token(b, i), column(h, j));
    };
    return support::reference_attention(Q, K, V, asked);
  }
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {{0, 1}, {0, 1}},
      {{0, 7}, {0, 33}, 1, 1, 0.5},
      {{0, 50}, {0, 530}, 1, 1, 0.7, 4},                    // several blocks; maxima that move
      {{0, 13}, {0, 300}, 6, 2, 0.02},                      // grouped heads, most pairs hidden
      {{0, 5, 5, 22, 23}, {0, 9, 12, 12, 290}, 4, 2, 0.5},  // ragged, a sequence without keys
      {{0, 3, 20}, {0, 70}, 2, 1, 0.8},                     // keys that serve both sequences
  };
  return all;
}
std::string name_of(const Case& c) {
  return std::to_string(c.queries.back()) + " queries, " + std::to_string(c.keys.back()) + " keys";
}

template <class Scalar>
class SavedOutputs : public testing::Test {
 protected:
  static constexpr double kEpsilon = double(std::numeric_limits<Scalar>::epsilon());
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(SavedOutputs, Scalars, support::ScalarNames);

TYPED_TEST(SavedOutputs, AgreeWithTheFormulaAndChangeNoBitOfTheOutput) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(name_of(c));
    const Call<TypeParam> call(c);
    const auto expected = call.expected();
    Saved<TypeParam> saved;
    const auto Y = call(saved);
    auto& [l, m, e, W, S] = saved;
    EXPECT_TRUE(same_bits(Y, call()));
    const double tolerance = 32 * this->kEpsilon * c.range;
    EXPECT_TRUE(near(l, expected.logsumexp, tolerance));
    EXPECT_TRUE(near(m, expected.max_logit, tolerance));
    EXPECT_TRUE(near(e, expected.entropy, tolerance));
    EXPECT_TRUE(near(W, expected.weights, tolerance));
    EXPECT_TRUE(near(S, expected.masked, tolerance));

    for (const auto& [at, scores] : {std::pair{attn::stage::scaled, &expected.scaled},
                                     std::pair{attn::stage::softcapped, &expected.softcapped},
                                     std::pair{attn::stage::biased, &expected.biased}}) {
      EXPECT_TRUE(same_bits(call(attn::save_scores(S, at)), Y));
      EXPECT_TRUE(near(S, *scores, tolerance)) << "stage " << int(at);
    }
  }
}

TYPED_TEST(SavedOutputs, OfChosenRowsAreTheRowsOfTheWhole) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(name_of(c));
    const Call<TypeParam> call(c);
    support::DynamicMatrix<TypeParam> W, S, some_W, some_S;
    const auto Y = call(attn::save_weights(W), attn::save_scores(S, attn::stage::masked));
    std::vector<std::vector<Index>> choices(1);
    for (Index i = 0; i < Y.rows(); i += 1 + i % 5) choices[0].push_back(i);
    for (Index i = 0; i < Y.rows(); ++i) choices.push_back({i});
    for (const std::vector<Index>& rows : choices) {
      const auto again =
          call(attn::save_weights(some_W, attn::query_rows(rows)),
               attn::save_scores(some_S, attn::stage::masked, attn::query_rows(rows)));
      EXPECT_TRUE(same_bits(again, Y));
      ASSERT_EQ(some_W.rows(), Index(rows.size()));
      for (std::size_t n = 0; n < rows.size(); ++n) {
        EXPECT_TRUE(same_bits(some_W.row(Index(n)), W.row(rows[n]))) << "row " << rows[n];
        EXPECT_TRUE(same_bits(some_S.row(Index(n)), S.row(rows[n]))) << "row " << rows[n];
      }
      some_W.setConstant(-1);
      some_S.setConstant(-1);
    }
    (void)call(attn::save_weights(some_W, attn::query_rows(std::vector<Index>())),
               attn::save_scores(some_S, attn::stage::scaled, attn::query_rows({0})));
    EXPECT_EQ(some_W.rows(), 0);
    EXPECT_EQ(some_S.rows(), 1);
  }
}

TEST(SavedWeights, AveragedOverHeadsAreTheMeanForAnyNumberOfThreads) {
  support::Threads pool;
  std::vector<Case> some = cases();
  some.push_back({{0, 700}, {0, 40}, 6, 2, 0.9});  // several chunks for each worker
  for (const Case& c : some) {
    SCOPED_TRACE(name_of(c));
    const Call<float> call(c);
    const Reference expected = call.expected().weights;
    Reference mean = Reference::Zero(expected.rows(), c.longest_key());
    for (Index h = 0; h < c.heads; ++h)
      mean += expected.middleCols(h * c.longest_key(), c.longest_key()) / c.heads;
    MatrixXf W, again;
    const auto Y = call(attn::save_weights(W, attn::average_heads()));
    EXPECT_TRUE(same_bits(Y, call()));
    EXPECT_TRUE(near(W, mean, 4e-6));
    for (const int workers : {1, 2, 3, 7}) {
      again.setConstant(-1);
      EXPECT_TRUE(same_bits(
          call(attn::save_weights(again, attn::average_heads()), attn::on(pool, workers)), Y));
      EXPECT_TRUE(same_bits(again, W)) << workers << " workers";
    }
    const std::vector<Index> rows = {0};
    (void)call(attn::save_weights(again, attn::average_heads(), attn::query_rows(rows)));
    EXPECT_TRUE(same_bits(again, W.row(0)));
  }
}

/// Each of two key/value heads sees a block of keys of its own.
struct HalfForEachHead {
  bool operator()(attn::At at) const { return (at.key < 256) == (at.head < 2); }
  attn::KeyRange keys(const attn::QueryRows& rows) const {
    return rows.head_begin < 2 ? attn::KeyRange{0, 256} : attn::KeyRange{256, rows.keys};
  }
  attn::KeyRange full_keys(const attn::QueryRows& rows) const { return keys(rows); }
};
TEST(SavedWeights, AveragedKeepWhatOtherHeadsSaw) {
  const MatrixXf Q = MatrixXf::Zero(3, 8), K = uniform<float, Eigen::ColMajor>(512, 4, 1);
  MatrixXf W;
  (void)attn::attention(attn::heads(Q, 4), attn::heads(K, 2), attn::heads(K, 2),
                        attn::mask(HalfForEachHead()),
                        attn::save_weights(W, attn::average_heads()));
  EXPECT_TRUE(near(W, MatrixXf::Constant(3, 512, 1 / 512.f), 1e-9));
}

// ---- where to, and as what ------------------------------------------------------------------------

struct Heads {
  MatrixXf Q = uniform<float, Eigen::ColMajor>(8, 4 * 5, 1),
           K = uniform<float, Eigen::ColMajor>(66, 2 * 5, 2),
           V = uniform<float, Eigen::ColMajor>(66, 2 * 3, 3);

  /// Two sequences of 4 queries and 33 keys.
  template <class... Options>
  MatrixXf operator()(const Options&... options) const {
    return attn::attention(attn::heads(Q, 4), attn::heads(K, 2), attn::heads(V, 2),
                           attn::sequence_length(4, 33), attn::causal(attn::align::lower_right),
                           options...);
  }
};

TEST(SavedOutputs, GoToAnyMemory) {
  const Heads call;
  MatrixXf W, S, l, m, e;
  const MatrixXf Y = call(attn::save_weights(W), attn::save_scores(S, attn::stage::masked),
                          attn::save_logsumexp(l), attn::save_max_logit(m), attn::save_entropy(e));
  ASSERT_EQ(W.cols(), 4 * 33);

  // [B, H, Lq, Lk] and [B, H, Lq]
  std::vector<float> w(2 * 4 * 4 * 33), s(w.size()), rows(3 * 2 * 4 * 4);
  const auto per_row = [&](int n) { return attn::bhld(rows.data() + 32 * n, 2, 4, 4, 1); };
  EXPECT_TRUE(
      same_bits(call(attn::save_weights(attn::bhld(w.data(), 2, 4, 4, 33)),
                     attn::save_scores(attn::bhld(s.data(), 2, 4, 4, 33), attn::stage::masked),
                     attn::save_logsumexp(per_row(0)), attn::save_max_logit(per_row(1)),
                     attn::save_entropy(per_row(2))),
                Y));
  for (Index b = 0; b < 2; ++b) {
    for (Index h = 0; h < 4; ++h) {
      for (Index i = 0; i < 4; ++i) {
        const std::size_t row = std::size_t((b * 4 + h) * 4 + i);
        EXPECT_EQ(rows[row], l(b * 4 + i, h));
        EXPECT_EQ(rows[32 + row], m(b * 4 + i, h));
        EXPECT_EQ(rows[64 + row], e(b * 4 + i, h));
        for (Index j = 0; j < 33; ++j) {
          ASSERT_EQ(w[row * 33 + std::size_t(j)], W(b * 4 + i, h * 33 + j));
          ASSERT_EQ(s[row * 33 + std::size_t(j)], S(b * 4 + i, h * 33 + j));
        }
      }
    }
  }

  // Parts of a matrix that is larger, transposed, and heads of one.
  MatrixXf large = MatrixXf::Constant(4 * 33 + 2, 10, 7);
  const MatrixXf before = large;
  (void)call(attn::save_weights(large.block(1, 1, 4 * 33, 8).transpose()));
  EXPECT_TRUE(same_bits(large.block(1, 1, 4 * 33, 8).transpose(), W));
  large.block(1, 1, 4 * 33, 8) = before.block(1, 1, 4 * 33, 8);
  EXPECT_TRUE(same_bits(large, before));
  MatrixXf of_heads(8, 4 * 33);
  (void)call(attn::save_weights(attn::heads(of_heads, 4)));
  EXPECT_TRUE(same_bits(of_heads, W));
}

TEST(SavedOutputs, OfFixedSizesAreThoseOfDynamicOnes) {
  const Eigen::Matrix4f X = uniform<float, Eigen::ColMajor>(4, 4, 1);
  const MatrixXf Q = X;
  Eigen::Matrix4f fixed_W;
  Eigen::Vector4f fixed_e;
  MatrixXf W, e;
  const Eigen::Matrix4f fixed_Y = attn::attention(
      X, X, X, attn::causal(), attn::save_weights(fixed_W), attn::save_entropy(fixed_e));
  const MatrixXf Y =
      attn::attention(Q, Q, Q, attn::causal(), attn::save_weights(W), attn::save_entropy(e));
  EXPECT_TRUE(same_bits(fixed_Y, Y));
  EXPECT_TRUE(same_bits(fixed_W, W));
  EXPECT_TRUE(same_bits(fixed_e, e));
}

TEST(SavedOutputs, AreRoundedOnceToTheirStorage) {
  const Heads call;
  MatrixXf W, S, l, m, e;
  (void)call(attn::save_weights(W), attn::save_scores(S, attn::stage::masked),
             attn::save_logsumexp(l), attn::save_max_logit(m), attn::save_entropy(e));
  support::DynamicMatrix<Eigen::half> half_W;
  support::DynamicMatrix<Eigen::bfloat16> narrow_S;
  Eigen::MatrixXd wide_e;
  (void)call(attn::save_weights(half_W), attn::save_scores(narrow_S, attn::stage::masked),
             attn::save_entropy(wide_e));
  EXPECT_TRUE(same_bits(half_W, W.cast<Eigen::half>()));
  EXPECT_TRUE(same_bits(narrow_S, S.cast<Eigen::bfloat16>()));
  EXPECT_TRUE(same_bits(wide_e, e.cast<double>()));
}

TEST(SavedOutputs, OfHalfOperandsWithAResidualLeaveTheOutputAlone) {
  using Half = support::DynamicMatrix<Eigen::half>;
  const Half Q = uniform<float>(9, 5, 1).cast<Eigen::half>(),
             K = uniform<float>(300, 5, 2).cast<Eigen::half>(),
             V = uniform<float>(300, 5, 3).cast<Eigen::half>();
  MatrixXf W, e, l, m;
  const Half without = attn::attention(Q, K, V, attn::residual(Q));
  const Half Y =
      attn::attention(Q, K, V, attn::residual(Q), attn::save_weights(W), attn::save_entropy(e),
                      attn::save_max_logit(m), attn::save_logsumexp(l));
  EXPECT_TRUE(same_bits(Y, without));
  ReferenceOptions asked;
  asked.save_weights = true;
  const auto expected = support::reference_attention(Q, K, V, asked);
  EXPECT_TRUE(near(W, expected.weights, 1e-6));
  EXPECT_TRUE(near(e, expected.entropy, 4e-6));
  EXPECT_TRUE(near(m, expected.max_logit, 1e-6));
  EXPECT_TRUE(near(l, expected.logsumexp, 4e-6));
}

TEST(SavedOutputs, OfScalarsWithoutPackets) {
  using Matrix = support::DynamicMatrix<long double>;
  const Matrix Q = uniform<long double>(5, 4, 1), K = uniform<long double>(270, 4, 2),
               V = uniform<long double>(270, 2, 3);
  Matrix W, S, e, m;
  (void)attn::attention(Q, K, V, attn::save_weights(W), attn::save_scores(S, attn::stage::masked),
                        attn::save_entropy(e), attn::save_max_logit(m));
  ReferenceOptions asked;
  asked.save_weights = asked.save_scores = true;
  const auto expected = support::reference_attention(Q, K, V, asked);
  EXPECT_TRUE(near(W, expected.weights, 1e-17));
  EXPECT_TRUE(near(S, expected.masked, 1e-17));
  EXPECT_TRUE(near(e, expected.entropy, 1e-17));
  EXPECT_TRUE(near(m, expected.max_logit, 1e-17));
}

// ---- exact values, and what must not matter ---------------------------------------------------------

TEST(SavedOutputs, OfEvenAndOfSingleKeysAreExact) {
  // Zero queries: all scores are 0, so a row that sees n keys weighs each 1/n and has entropy log n.
  const MatrixXf Q = MatrixXf::Zero(4, 2), K = uniform<float, Eigen::ColMajor>(4, 2, 1);
  MatrixXf W, e, m;
  (void)attn::attention(Q, K, K, attn::causal(), attn::save_weights(W), attn::save_entropy(e),
                        attn::save_max_logit(m));
  for (Index i = 0; i < 4; ++i) {
    EXPECT_EQ(m(i, 0), 0);
    EXPECT_NEAR(e(i, 0), std::log(float(i + 1)), 1e-7);
    for (Index j = 0; j < 4; ++j) EXPECT_EQ(W(i, j), j <= i ? 1 / float(i + 1) : 0.f);
  }
  EXPECT_EQ(e(0, 0), 0);
}

TEST(SavedOutputs, OfHugeScoresAreNumbers) {
  // From the lowest float to a score of 1e32 the maximum moves by more than a float holds exactly.
  MatrixXf Q(1, 1), K(2, 1), W, e, m;
  Q << 1e20f;
  K << 1e12f, 0.5e12f;
  (void)attn::attention(Q, K, K, attn::save_weights(W), attn::save_entropy(e),
                        attn::save_max_logit(m));
  EXPECT_EQ(W(0, 0), 1);
  EXPECT_EQ(W(0, 1), 0);
  EXPECT_EQ(e(0, 0), 0);
  EXPECT_EQ(m(0, 0), 1e20f * 1e12f);
}

TYPED_TEST(SavedOutputs, OfOneQueryAreThoseOfTheLastRowOfMany) {
  // Few queries that see all keys are attended where the keys lie, many where they are packed.
  using Matrix = support::DynamicMatrix<TypeParam>;
  const Matrix Q = uniform<TypeParam>(601, 12, 1), K = uniform<TypeParam>(601, 12, 2, 2),
               V = uniform<TypeParam>(601, 5, 3);
  Matrix saved[2][4];
  const auto attend = [&](const auto& queries, Matrix(&to)[4]) {
    return Matrix(attn::attention(queries, K, V, attn::causal(attn::align::lower_right),
                                  attn::save_weights(to[0]),
                                  attn::save_scores(to[1], attn::stage::masked),
                                  attn::save_entropy(to[2]), attn::save_max_logit(to[3])));
  };
  const Matrix all = attend(Q.topRows(601), saved[0]), last = attend(Q.bottomRows(1), saved[1]);
  EXPECT_TRUE(same_bits(last, all.bottomRows(1)));
  for (int n = 0; n < 4; ++n)
    EXPECT_TRUE(same_bits(saved[1][n], saved[0][n].bottomRows(1))) << "output " << n;
  ReferenceOptions asked;
  asked.save_weights = asked.save_scores = true;
  const auto expected = support::reference_attention(Q.bottomRows(1), K, V, asked);
  EXPECT_TRUE(near(saved[1][0], expected.weights, 32 * this->kEpsilon));
  EXPECT_TRUE(near(saved[1][1], expected.masked, 32 * this->kEpsilon));
  EXPECT_TRUE(near(saved[1][2], expected.entropy, 64 * this->kEpsilon));
  EXPECT_TRUE(near(saved[1][3], expected.max_logit, 32 * this->kEpsilon));
}

TEST(SavedOutputs, OfRotatedKeysAreThoseOfTheCall) {
  // Columns of the weights times the values: the output itself, whatever happened to the scores on the way.
  const MatrixXf Q = uniform<float, Eigen::ColMajor>(7, 8, 1),
                 K = uniform<float, Eigen::ColMajor>(300, 8, 2),
                 V = uniform<float, Eigen::ColMajor>(300, 3, 3);
  const auto turned = attn::rotary(attn::pairing::half_split);
  MatrixXf W, S, plain;
  const MatrixXf Y =
      attn::attention(Q, K, V, turned, attn::query_offset(293), attn::save_weights(W),
                      attn::save_scores(S, attn::stage::scaled));
  EXPECT_TRUE(near(W * V, Y, 1e-6));
  const MatrixXf q = attn::rotate(Q, turned, attn::query_offset(293)), k = attn::rotate(K, turned);
  EXPECT_TRUE(near(S, q * k.transpose() / std::sqrt(8.f), 2e-6));
}

TEST(SavedScores, CallAFunctorForEveryPairOfTheCallAndNoOther) {
  const MatrixXf Q = uniform<float, Eigen::ColMajor>(5, 4, 1),
                 K = uniform<float, Eigen::ColMajor>(19, 4, 2);
  MatrixXf called = MatrixXf::Zero(5, 19), S;
  const auto relative = [&called](float s, attn::At at) {
    EXPECT_LT(at.key, 19);
    called(at.query, at.key) = 1;
    return s + float(at.key);
  };
  (void)attn::attention(Q, K, K, attn::causal_from(0), attn::score(relative),
                        attn::save_scores(S, attn::stage::biased));
  EXPECT_TRUE((called.array() == 1).all());
  MatrixXf expected = Q * K.transpose() / 2;
  for (Index j = 0; j < 19; ++j) expected.col(j).array() += float(j);
  EXPECT_TRUE(near(S, expected, 4e-6));
}

TEST(SavedOutputs, CountASinkAsOneMoreKey) {
  // Scores 0 and a sink of log 2: two keys with half of the weight, nothing with the other half.
  const MatrixXf Q = MatrixXf::Zero(1, 2), K = uniform<float, Eigen::ColMajor>(2, 2, 1);
  MatrixXf W, e, m, l;
  (void)attn::attention(Q, K, K, attn::sink(std::log(2.f)), attn::save_weights(W),
                        attn::save_entropy(e), attn::save_max_logit(m), attn::save_logsumexp(l));
  EXPECT_NEAR(W(0, 0), 0.25, 1e-7);
  EXPECT_NEAR(W(0, 1), 0.25, 1e-7);
  EXPECT_NEAR(e(0, 0), 1.5 * std::log(2.), 1e-6);  // ½ log 2 + 2 · ¼ log 4
  EXPECT_EQ(m(0, 0), std::log(2.f));
  EXPECT_NEAR(l(0, 0), std::log(4.), 1e-6);
}

TEST(SavedOutputs, OverwriteWhatWasThereAlsoWhereNoRowLooks) {
  // 600 keys under a narrow window: most panels and blocks are never visited.
  const Case c{{0, 600}, {0, 600}};
  const Call<float> call(c);
  MatrixXf W = MatrixXf::Constant(600, 600, NAN), S = W;
  (void)attn::attention(call.Q, call.K, call.V, attn::causal(), attn::window(3, 0),
                        attn::save_weights(W), attn::save_scores(S, attn::stage::masked));
  ReferenceOptions asked;
  asked.visible = [](Index, Index, Index i, Index j) { return j <= i && j >= i - 3; };
  asked.save_weights = asked.save_scores = true;
  const auto expected = support::reference_attention(call.Q, call.K, call.V, asked);
  EXPECT_TRUE(near(W, expected.weights, 1e-6));
  EXPECT_TRUE(near(S, expected.masked, 1e-6));
  (void)attn::attention(call.Q, call.K, call.V, attn::causal(), attn::window(3, 0),
                        attn::save_weights(W), attn::save_scores(S, attn::stage::scaled));
  EXPECT_TRUE(near(S, expected.scaled, 1e-6));
}

TEST(SavedOutputs, OfARowDependOnThatRowAlone) {
  const Case c{{0, 90}, {0, 530}, 1, 1, 0.6, 2};
  const Call<float> call(c);
  Saved<float> all, one;
  (void)call(all);
  for (const Index row : {0, 1, 44, 45, 89}) {
    Call<float> alone({{0, 1}, {0, 530}});
    alone.Q = call.Q.row(row);
    alone.K = call.K;
    alone.B = call.B.row(row);
    alone.M = call.M.row(row);
    for (Index j = 0; j < 530; ++j) {
      if (!call.M(row, j)) alone.K.row(j).setConstant(NAN);
    }
    (void)alone(one);
    EXPECT_TRUE(same_bits(one.W, all.W.row(row))) << row;
    EXPECT_TRUE(same_bits(one.S, all.S.row(row))) << row;
    EXPECT_TRUE(same_bits(one.l, all.l.row(row))) << row;
    EXPECT_TRUE(same_bits(one.m, all.m.row(row))) << row;
    EXPECT_TRUE(same_bits(one.e, all.e.row(row))) << row;
  }
}

TEST(SavedOutputs, ShowNaNInTheRowsThatSeeItAndZerosForHiddenPairs) {
  Call<float> call({{0, 3}, {0, 40}});
  call.K(7, 0) = NAN;
  call.M.setConstant(true);
  call.M(1, 7) = false;  // row 1 does not see it
  call.M(2, 8) = false;
  Saved<float> saved;
  (void)call(saved);
  const auto& [l, m, e, W, S] = saved;
  for (const Index i : {0, 2}) {
    EXPECT_TRUE(std::isnan(e(i, 0)) && std::isnan(m(i, 0)) && std::isnan(l(i, 0)));
    EXPECT_TRUE(std::isnan(W(i, 7)) && std::isnan(W(i, 39)));
    EXPECT_TRUE(std::isnan(S(i, 7)) && std::isfinite(S(i, 39)));
  }
  EXPECT_EQ(W(2, 8), 0);
  EXPECT_TRUE(std::isfinite(e(1, 0)) && std::isfinite(m(1, 0)) && W.row(1).allFinite());
  EXPECT_NEAR(W.row(1).sum(), 1, 1e-6);

  // An infinite score takes all the weight, which no number is.
  call.K(7, 0) = 0;
  call.B(0, 7) = kInfinity<float>;
  (void)call(saved);
  EXPECT_TRUE(std::isnan(e(0, 0)) && std::isnan(m(0, 0)) && std::isnan(W(0, 7)));
  EXPECT_TRUE(std::isfinite(m(1, 0)));
}

}  // namespace
