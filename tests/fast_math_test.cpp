// What must hold even under -ffast-math, where the compiler takes it that NaN and infinity do not
// exist: masks, empty rows and hidden keys. Values are therefore tested by their bits. The file is
// also a plain test of the same claims.
// SPDX-License-Identifier: MIT

#include <attn/attn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "support/special_values.h"

namespace {

using Eigen::Index;
using Eigen::MatrixXf;
using support::from_bits;

constexpr std::uint32_t kMinusInfinity = 0xff800000u, kNaN = 0x7fc00000u;

std::uint32_t bits(float x) {
  std::uint32_t b;
  std::memcpy(&b, &x, sizeof b);
  return b;
}
bool is_finite(float x) { return (bits(x) & 0x7f800000u) != 0x7f800000u; }

MatrixXf waves(Index rows, Index cols, float step) {
  MatrixXf X(rows, cols);
  for (Index i = 0; i < X.size(); ++i) X(i) = std::sin(step * static_cast<float>(i));
  return X;
}

// The formula over the keys that `sees(i, j)` keeps, in double; a row without keys gives zeros.
template <class Sees>
MatrixXf formula(const MatrixXf& Q, const MatrixXf& K, const MatrixXf& V, Sees sees) {
  MatrixXf Y(Q.rows(), V.cols());
  for (Index i = 0; i < Q.rows(); ++i) {
    double sum = 0;
    Eigen::VectorXd o = Eigen::VectorXd::Zero(V.cols());
    for (Index j = 0; j < K.rows(); ++j) {
      if (!sees(i, j)) continue;
      double score = 0;
      for (Index c = 0; c < Q.cols(); ++c)
        score += static_cast<double>(Q(i, c)) * static_cast<double>(K(j, c));
      const double p = std::exp(score / std::sqrt(static_cast<double>(Q.cols())));
      sum += p;
      for (Index c = 0; c < V.cols(); ++c) o(c) += p * static_cast<double>(V(j, c));
    }
    for (Index c = 0; c < V.cols(); ++c) Y(i, c) = sum > 0 ? static_cast<float>(o(c) / sum) : 0.f;
  }
  return Y;
}

struct FastMath : testing::Test {
  static constexpr Index kTokens = 150, kFeatures = 19;
  MatrixXf Q = waves(kTokens, kFeatures, 0.31f), K = waves(kTokens, kFeatures, 0.73f),
           V = waves(kTokens, kFeatures, 1.13f);

  static void expect_near(const MatrixXf& Y, const MatrixXf& expected) {
    for (Index i = 0; i < Y.size(); ++i) {
      ASSERT_TRUE(is_finite(Y(i))) << "element " << i;
      ASSERT_NEAR(Y(i), expected(i), 2e-6f) << "element " << i;
    }
  }
};

TEST_F(FastMath, PlainAttentionIsTheFormula) {
  const MatrixXf Y = attn::attention(Q, K, V);
  expect_near(Y, formula(Q, K, V, [](Index, Index) { return true; }));
}

TEST_F(FastMath, SoftcapIsTheFormula) {
  const MatrixXf Y = attn::attention(Q, K, V, attn::scale(2.f), attn::softcap(3.f));
  const Eigen::MatrixXd S =
      3 * (2.0 / 3 * Q.cast<double>() * K.cast<double>().transpose()).array().tanh();
  const Eigen::MatrixXd P = S.array().exp();
  const Eigen::MatrixXd O = P * V.cast<double>();
  expect_near(Y, (O.array().colwise() / P.rowwise().sum().array()).cast<float>());
}

TEST_F(FastMath, DoubleKeepsItsDigits) {
  const Eigen::MatrixXd q = Q.cast<double>(), k = K.cast<double>(), v = V.cast<double>();
  const Eigen::MatrixXd Y = attn::attention(q, k, v);
  const Eigen::MatrixXd P = (q * k.transpose() / std::sqrt(double(kFeatures))).array().exp();
  const Eigen::MatrixXd O = P * v;
  for (Index i = 0; i < Y.rows(); ++i) {
    const double sum = P.row(i).sum();
    for (Index c = 0; c < Y.cols(); ++c) ASSERT_NEAR(Y(i, c), O(i, c) / sum, 1e-13);
  }
}

TEST_F(FastMath, LargeScoresStayFinite) {
  const MatrixXf Y = attn::attention(100.f * Q, 100.f * K, V);
  for (Index i = 0; i < Y.size(); ++i) ASSERT_TRUE(is_finite(Y(i)));
  for (Index i = 0; i < Y.size(); ++i) ASSERT_LE(std::abs(Y(i)), 1.00001f);
}

TEST_F(FastMath, MasksHide) {
  const MatrixXf causal = attn::attention(Q, K, V, attn::causal());
  expect_near(causal, formula(Q, K, V, [](Index i, Index j) { return j <= i; }));
  const MatrixXf window = attn::attention(Q, K, V, attn::causal() && attn::window(5, 0));
  expect_near(window, formula(Q, K, V, [](Index i, Index j) { return j <= i && j >= i - 5; }));
  const Eigen::Array<bool, Eigen::Dynamic, Eigen::Dynamic> B =
      waves(kTokens, kTokens, 0.57f).array() > 0.2f;
  const MatrixXf kept = attn::attention(Q, K, V, attn::keep(B));
  expect_near(kept, formula(Q, K, V, [&](Index i, Index j) { return B(i, j); }));
}

TEST_F(FastMath, MasksAndScoresOfOnesOwnHide) {
  const auto third = [](Index i, Index j) { return (i + j) % 3 == 0; };
  expect_near(attn::attention(Q, K, V, attn::mask(third)), formula(Q, K, V, third));
  const MatrixXf scored =
      attn::attention(Q, K, V, attn::score([](auto s, auto at) {
                        return select(at.key <= at.query, s, from_bits(kMinusInfinity));
                      }));
  expect_near(scored, formula(Q, K, V, [](Index i, Index j) { return j <= i; }));
  const MatrixXf no_sink = attn::attention(Q, K, V, attn::sink(from_bits(kMinusInfinity)));
  expect_near(no_sink, formula(Q, K, V, [](Index, Index) { return true; }));
}

TEST_F(FastMath, MinusInfinityInABiasHides) {
  MatrixXf B = MatrixXf::Zero(kTokens, kTokens);
  for (Index j = 1; j < kTokens; j += 2) B.col(j).setConstant(from_bits(kMinusInfinity));
  B.row(7).setConstant(from_bits(kMinusInfinity));
  const MatrixXf Y = attn::attention(Q, K, V, attn::bias(B));
  expect_near(Y, formula(Q, K, V, [](Index i, Index j) { return i != 7 && j % 2 == 0; }));
}

TEST_F(FastMath, ARowThatSeesNothingIsZero) {
  MatrixXf l;
  MatrixXf Y(kTokens, kFeatures);
  Eigen::Array<bool, Eigen::Dynamic, Eigen::Dynamic> B(kTokens, kTokens);
  B.setConstant(true);
  B.row(3).setConstant(false);
  attn::attention(Q, K, V, attn::into(Y), attn::keep(B), attn::save_logsumexp(l));
  for (Index c = 0; c < kFeatures; ++c) EXPECT_EQ(bits(Y(3, c)), 0u);
  EXPECT_EQ(bits(l(3)), kMinusInfinity);
  EXPECT_TRUE(is_finite(l(2)));

  attn::attention(Q, K, V, attn::into(Y), attn::key_lengths(0));
  for (Index i = 0; i < Y.size(); ++i) EXPECT_EQ(bits(Y(i)), 0u);
}

TEST_F(FastMath, HiddenKeysAndValuesDoNotMatter) {
  const MatrixXf expected = attn::attention(Q, K, V, attn::causal());
  MatrixXf K_bad = K, V_bad = V;
  const Index last = kTokens - 1;
  K_bad.row(last).setConstant(from_bits(kNaN));
  V_bad.row(last).setConstant(from_bits(kNaN));
  const MatrixXf Y = attn::attention(Q, K_bad, V_bad, attn::causal());
  for (Index i = 0; i < last; ++i) {
    for (Index c = 0; c < kFeatures; ++c)
      ASSERT_EQ(bits(Y(i, c)), bits(expected(i, c))) << i << ", " << c;
  }
}

// The same of a layer's gradients, those of its weights among them; queries that see no key have
// none.
TEST_F(FastMath, HiddenTokensDoNotMatterToGradients) {
  attn::MultiHeadAttention<float> mha(attn::MultiHeadOptions(kFeatures, 1).biases());
  mha.edit([](auto& w) {
    float step = 0.17f;
    attn::for_each_parameter(w, [&](const char*, auto& p) {
      p = 0.3f * waves(p.rows(), p.cols(), step);
      step += 0.1f;
    });
  });
  const std::vector<Index> queries{0, 50, kTokens}, keys{0, 100, kTokens}, lengths{70, 0};
  const MatrixXf dY = waves(kTokens, kFeatures, 0.91f);
  struct Gradients {
    attn::MultiHeadGradients<float> weights;
    MatrixXf query, key;
  };
  const auto gradients = [&] {
    Gradients g{attn::MultiHeadGradients<float>(mha.options()), {}, {}};
    attn::MultiHeadState<float> state;
    const auto call = attn::options(attn::sequences(queries, keys), attn::key_lengths(lengths));
    MatrixXf Y;
    mha(Q, K, call, attn::into(Y), attn::save_state(state));
    mha.backward(Q, K, dY, state, call, attn::dweights(g.weights), attn::dquery(g.query),
                 attn::dkey(g.key));
    return g;
  };
  const auto expect_same = [](const char* name, const auto& a, const auto& b) {
    for (Index n = 0; n < a.size(); ++n) {
      ASSERT_TRUE(is_finite(a.data()[n])) << name << ", element " << n;
      ASSERT_EQ(bits(a.data()[n]), bits(b.data()[n])) << name << ", element " << n;
    }
  };
  const Gradients clean = gradients();
  for (Index i = 50; i < kTokens; ++i)
    for (Index c = 0; c < kFeatures; ++c) ASSERT_EQ(bits(clean.query(i, c)) << 1, 0u) << i;
  for (const std::uint32_t poison : {kNaN, 0x7f800000u}) {
    K.middleRows(70, 30).setConstant(from_bits(poison));
    K.bottomRows(50).setConstant(from_bits(poison));
    const Gradients g = gradients();
    attn::for_each_parameter(g.weights, clean.weights, expect_same);
    expect_same("query", g.query, clean.query);
    expect_same("key", g.key, clean.key);
  }
}

TEST_F(FastMath, OneKeyGivesItsValueExactly) {
  const MatrixXf Y = attn::attention(Q, K, V, attn::window(0, 0));
  for (Index i = 0; i < Y.size(); ++i) ASSERT_EQ(bits(Y(i)), bits(V(i)));
}

// The last token of a cache is what none of the rows before it sees, whatever it holds, in panels and in the newest rows alike.
template <class Storage>
void expect_hidden_in_a_cache(const MatrixXf& Q, const MatrixXf& K, const MatrixXf& V,
                              const MatrixXf& expected, float tolerance) {
  for (const Index tokens : {Index(64), Q.rows()}) {
    MatrixXf K_bad = K, V_bad = V;
    K_bad.row(tokens - 1).setConstant(from_bits(kNaN));
    V_bad.row(tokens - 1).setConstant(from_bits(kNaN));
    attn::KeyValueCache<Storage> cache(attn::KeyValueCacheOptions(Q.rows(), 1, Q.cols()));
    cache.append(K_bad.topRows(tokens), V_bad.topRows(tokens));
    const MatrixXf Y = attn::attention(Q.topRows(tokens), cache);
    for (Index i = 0; i < tokens - 1; ++i) {
      for (Index c = 0; c < Y.cols(); ++c) {
        ASSERT_TRUE(is_finite(Y(i, c))) << i << ", " << c;
        ASSERT_NEAR(Y(i, c), expected(i, c), tolerance) << i << ", " << c;
      }
    }
    for (Index c = 0; c < Y.cols(); ++c) ASSERT_FALSE(is_finite(Y(tokens - 1, c))) << c;
  }
}

TEST_F(FastMath, ACacheHidesWhatLiesAhead) {
  const MatrixXf expected = attn::attention(Q, K, V, attn::causal());
  expect_hidden_in_a_cache<float>(Q, K, V, expected, 0);
  expect_hidden_in_a_cache<Eigen::bfloat16>(Q, K, V, expected, 0.02f);
  expect_hidden_in_a_cache<std::int8_t>(Q, K, V, expected, 0.03f);
}

}  // namespace
