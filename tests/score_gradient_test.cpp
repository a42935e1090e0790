// tests/score_gradient_test.cpp: the gradients of what modifies scores are the oracle's: of biases in
// every shape that broadcasts, of slopes, logits, the scale, and through softcap and score functors.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <vector>

#include "support/error_of.h"
#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/reference_gradient.h"
#include "support/special_values.h"
#include "support/threads.h"

namespace {

using attn::At;
using Eigen::Index;
using Eigen::MatrixXf;
using Eigen::VectorXf;
using support::near;
using support::Reference;
using support::reference_gradient;
using support::ReferenceGradient;
using support::ReferenceOptions;
using support::same_bits;

/// Three ragged sequences, four heads on two, positions from 3, causal: rows that see one block of
/// keys, part of one, and two.
struct Batch {
  std::vector<Index> queries = {0, 4, 41, 161}, keys = {0, 35, 80, 380};
  Index heads, kv_heads, offset = 180;
  MatrixXf Q, K, V, dY, dl;

  explicit Batch(Index all_heads = 4, Index all_kv_heads = 2)
      : heads(all_heads),
        kv_heads(all_kv_heads),
        Q(support::uniform<float>(161, heads * 7, 1, 2)),
        K(support::uniform<float>(380, kv_heads * 7, 2, 2)),
        V(support::uniform<float>(380, kv_heads * 5, 3)),
        dY(support::uniform<float>(161, heads * 5, 4)),
        dl(support::uniform<float>(161, heads, 5)) {}

  ReferenceOptions asked() const {
    ReferenceOptions options;
    options.heads = heads;
    options.kv_heads = kv_heads;
    options.query_offsets = queries;
    options.key_offsets = keys;
    options.visible = [this](Index, Index, Index i, Index j) { return j <= i + offset; };
    return options;
  }
  ReferenceGradient expected(const ReferenceOptions& options,
                             support::GradientInputs inputs = {}) const {
    inputs.logsumexp = support::widened(dl);
    return reference_gradient(Q, K, V, dY, options, inputs);
  }
  auto shape() const {
    return attn::options(attn::sequences(queries, keys), attn::causal_from(offset));
  }
  /// The gradients of queries and keys, and those that `asks` names.
  struct Gradients {
    MatrixXf query, key;
  };
  template <class Options, class... Asks>
  Gradients differentiate(const Options& options, Asks&&... asks) const {
    attn::AttentionState<float> state;
    const auto q = attn::heads(Q, heads);
    const auto k = attn::heads(K, kv_heads), v = attn::heads(V, kv_heads);
    (void)attn::attention(q, k, v, shape(), options, attn::save_state(state));
    Gradients g{MatrixXf::Zero(Q.rows(), Q.cols()), MatrixXf::Zero(K.rows(), K.cols())};
    attn::attention_backward(q, k, v, dY, state, shape(), options, attn::dlogsumexp(dl),
                             attn::dquery(g.query), attn::dkey(g.key), asks...);
    return g;
  }
};
void expect_near(const Batch::Gradients& actual, const ReferenceGradient& expected) {
  EXPECT_TRUE(near(actual.query, expected.query, 4e-6));
  EXPECT_TRUE(near(actual.key, expected.key, 4e-6));
}

// ---- bias -----------------------------------------------------------------------------------

/// A bias of rank 4 and its gradient, in one order of memory or the other.
struct Biases {
  Index sequences, heads, rows, keys;
  bool by_columns;
  std::vector<float> bias, gradient;

  Biases(Index b, Index h, Index i, Index j, bool columns)
      : sequences(b), heads(h), rows(i), keys(j), by_columns(columns) {
    const Index n = b * h * i * j;
    const MatrixXf numbers = support::uniform<float>(1, n, 8);
    bias.assign(numbers.data(), numbers.data() + n);
    gradient.assign(std::size_t(n), 17);
  }
  template <class T>
  attn::TensorView<T> view(T* data) const {
    const Index all = rows * keys;
    return {data,
            sequences,
            heads,
            rows,
            keys,
            heads * all,
            all,
            by_columns ? 1 : keys,
            by_columns ? rows : 1};
  }
  std::size_t at(Index b, Index h, Index i, Index j) const {
    const auto v = view(bias.data());
    return std::size_t((b % sequences) * v.sequence_stride + (h % heads) * v.head_stride +
                       (i % rows) * v.token_stride + (j % keys) * v.feature_stride);
  }
  void expect_near(const ReferenceGradient& expected, const ReferenceOptions& asked) const {
    Reference sums = Reference::Zero(1, Index(gradient.size()));
    support::for_each_pair(expected.added, asked,
                           [&](Index b, Index i, Index, Index h, Index j, long double x) {
                             sums(0, Index(at(b, h, i, j))) += x;
                           });
    const Eigen::Map<const Eigen::RowVectorXf> actual(gradient.data(), Index(gradient.size()));
    EXPECT_TRUE(near(actual, sums, 4e-6L * (1 + sums.cwiseAbs().maxCoeff())));
  }
};

void expect_sums_over_what_the_bias_broadcasts_over(const Batch& x) {
  for (int shape = 0; shape < 32; ++shape) {
    Biases B(shape & 1 ? 3 : 1, shape & 2 ? x.heads : 1, shape & 4 ? 120 : 1, shape & 8 ? 300 : 1,
             (shape & 16) != 0);
    SCOPED_TRACE(testing::Message() << "[" << B.sequences << ", " << B.heads << ", " << B.rows
                                    << ", " << B.keys << "] by columns " << B.by_columns);
    ReferenceOptions asked = x.asked();
    asked.bias = [&](Index b, Index h, Index i, Index j) {
      return static_cast<long double>(B.bias[B.at(b, h, i, j)]);
    };
    const auto bias = attn::bias(B.view<const float>(B.bias.data()));
    const auto g = x.differentiate(attn::options(bias), attn::dbias(B.view(B.gradient.data())));
    const auto expected = x.expected(asked);
    expect_near(g, expected);
    B.expect_near(expected, asked);

    const auto serial = B.gradient;
    for (const Index threads : {1, 2, 3, 8}) {
      support::Threads pool;
      std::fill(B.gradient.begin(), B.gradient.end(), 3.f);
      const auto of_threads = x.differentiate(attn::options(bias, attn::on(pool, threads)),
                                              attn::dbias(B.view(B.gradient.data())));
      EXPECT_EQ(B.gradient, serial) << threads << " threads";
      EXPECT_TRUE(same_bits(of_threads.query, g.query));
      EXPECT_TRUE(same_bits(of_threads.key, g.key));
    }
    std::fill(B.gradient.begin(), B.gradient.end(), 3.f);
    x.differentiate(attn::options(bias), attn::accumulate(),
                    attn::dbias(B.view(B.gradient.data())));
    for (std::size_t n = 0; n < serial.size(); ++n) ASSERT_EQ(B.gradient[n], 3.f + serial[n]) << n;
  }
}

TEST(BiasGradient, IsSummedOverWhatTheBiasBroadcastsOver) {
  expect_sums_over_what_the_bias_broadcasts_over(Batch());
  // 96 rows end among the heads of a query.
  expect_sums_over_what_the_bias_broadcasts_over(Batch(5, 1));
}

TEST(BiasGradient, OfAMatrixHasItsRowsAndColumns) {
  const Batch x;
  ReferenceOptions asked = x.asked();
  MatrixXf B;
  asked.bias = [&](Index b, Index h, Index i, Index j) {
    const Index row = B.rows() == 1 ? 0 : B.rows() == 161 ? x.queries[std::size_t(b)] + i : i;
    const Index keys = B.cols() % 300 == 0 ? 300 : 1;
    return static_cast<long double>(
        B(row, (B.cols() == keys ? 0 : h * keys) + (keys == 1 ? 0 : j)));
  };
  for (const Index rows : {1, 120, 161}) {  // all rows, those of the longest sequence, the batch's
    for (const Index keys : {1, 300}) {
      for (const Index heads : {1, 4}) {
        SCOPED_TRACE(testing::Message() << rows << " x " << heads << " * " << keys);
        B = support::uniform<float>(rows, heads * keys, 9);
        MatrixXf dB, dB_by_heads = MatrixXf::Zero(rows, heads * keys);
        Eigen::Matrix<Eigen::bfloat16, -1, -1, Eigen::RowMajor> narrow;
        const auto bias = attn::bias(attn::heads(B, heads));
        x.differentiate(attn::options(bias), attn::dbias(dB));
        x.differentiate(attn::options(bias), attn::dbias(attn::heads(dB_by_heads, heads)));
        x.differentiate(attn::options(bias), attn::dbias(narrow));
        const Reference expected =
            support::bias_gradient(x.expected(asked).added, asked, rows, heads, keys);
        const long double tolerance = 4e-6L * (1 + expected.cwiseAbs().maxCoeff());
        EXPECT_TRUE(near(dB, expected, tolerance));
        EXPECT_TRUE(same_bits(dB_by_heads, dB));
        EXPECT_TRUE(same_bits(narrow, dB.cast<Eigen::bfloat16>()));
      }
    }
  }
}

// ---- slopes, logits, scale ------------------------------------------------------------------

TEST(HeadGradients, AreSumsOverRows) {
  const Batch x;
  const std::vector<float> slopes = {0.5f, 0.03f, 0, 0.125f}, logits = {0.5f, -3, 4, 0};
  const float cap = 1.5f, scale = 0.625f;
  ReferenceOptions asked = x.asked();
  asked.scale = static_cast<long double>(scale);
  asked.softcap = static_cast<long double>(cap);
  asked.sinks.assign(logits.begin(), logits.end());
  asked.bias = [&](Index, Index h, Index i, Index j) {
    return -static_cast<long double>(slopes[std::size_t(h)]) *
           static_cast<long double>(std::abs(i + x.offset - j));
  };
  const auto expected = x.expected(asked);
  const auto alibi =
      support::alibi_gradient(expected.added, asked, [&](Index, Index i) { return i + x.offset; });

  const auto options = attn::options(attn::scale(scale), attn::softcap(cap));
  const auto by_head = attn::options(attn::alibi(slopes), attn::sink(logits));
  VectorXf dalibi;
  Eigen::RowVectorXf dsink(2);
  float dscale = 7;
  const auto g = x.differentiate(attn::options(options, by_head), attn::dalibi(dalibi),
                                 attn::dsink(dsink), attn::dscale(dscale));
  expect_near(g, expected);
  ASSERT_EQ(dalibi.size(), 4);
  ASSERT_EQ(dsink.size(), 4);
  for (Index h = 0; h < 4; ++h) {
    const auto of_slope = alibi[std::size_t(h)], of_sink = expected.sinks[std::size_t(h)];
    EXPECT_NEAR(dalibi[h], double(of_slope), 2e-6 * double(100 + std::abs(of_slope))) << h;
    EXPECT_NEAR(dsink[h], double(of_sink), 4e-6 * double(1 + std::abs(of_sink))) << h;
  }
  EXPECT_NEAR(dscale, double(expected.scale), 4e-6 * double(1 + std::abs(expected.scale)));

  const VectorXf one = dalibi;
  const Eigen::RowVectorXf one_sink = dsink;
  const float one_scale = dscale;
  for (const Index threads : {1, 2, 3, 8}) {
    support::Threads pool;
    x.differentiate(attn::options(options, by_head, attn::on(pool, threads)), attn::dalibi(dalibi),
                    attn::dsink(dsink), attn::dscale(dscale));
    EXPECT_TRUE(same_bits(dalibi, one));
    EXPECT_TRUE(same_bits(dsink, one_sink));
    EXPECT_EQ(dscale, one_scale);
  }
  x.differentiate(attn::options(options, by_head), attn::accumulate(), attn::dalibi(dalibi),
                  attn::dsink(dsink), attn::dscale(dscale));
  EXPECT_TRUE(same_bits(dalibi, one * 2));
  EXPECT_TRUE(same_bits(dsink, one_sink * 2));
  EXPECT_EQ(dscale, 2 * one_scale);
}

TEST(HeadGradients, OfOneNumberAreSumsOverHeads) {
  const Batch x;
  ReferenceOptions asked = x.asked();
  asked.sinks = {0.75L, 0.75L, 0.75L, 0.75L};
  asked.bias = [&](Index, Index, Index i, Index j) {
    return -0.25L * static_cast<long double>(std::abs(i + x.offset - j));
  };
  const auto expected = x.expected(asked);
  const auto alibi =
      support::alibi_gradient(expected.added, asked, [&](Index, Index i) { return i + x.offset; });
  VectorXf dalibi(1), dsink;
  x.differentiate(
      attn::options(attn::alibi(std::vector<float>{0.25f}), attn::sink(std::vector<float>{0.75f})),
      attn::dalibi(dalibi), attn::dsink(dsink));
  ASSERT_EQ(dalibi.size(), 1);
  ASSERT_EQ(dsink.size(), 1);
  long double of_slope = 0, of_sink = 0;
  for (std::size_t h = 0; h < 4; ++h) of_slope += alibi[h], of_sink += expected.sinks[h];
  EXPECT_NEAR(dalibi[0], double(of_slope), 2e-6 * double(100 + std::abs(of_slope)));
  EXPECT_NEAR(dsink[0], double(of_sink), 4e-6 * double(1 + std::abs(of_sink)));
}

// ---- score ----------------------------------------------------------------------------------

/// s + ½ tanh(s) − 0.002·|p − j|·s: a slope that differs from pair to pair.
struct Bent {
  template <class Score, class Place>
  auto operator()(Score s, const Place& at) const {
    return s + 0.5f * tanh(s) - 0.002f * abs(at.query - at.key) * s;
  }
};
struct BentAlone {
  template <class Score>
  auto operator()(Score s, const At& at) const {
    using std::tanh;
    return s + 0.5f * tanh(s) - 0.002f * float(std::abs(at.query - at.key)) * s;
  }
};
float bent(float s, At at) { return BentAlone()(s, at); }
float bent_slope(float s, At at) {
  const float t = std::tanh(s);
  return 1 + 0.5f * (1 - t * t) - 0.002f * float(std::abs(at.query - at.key));
}
float wrong_slope(float s, At at) { return 1.01f * bent_slope(s, at); }

/// Behind softcap, bias and alibi, in front of a mask.
struct BentScores {
  Batch x;
  MatrixXf B = support::uniform<float>(120, 300, 8);
  ReferenceOptions asked = x.asked();
  support::GradientInputs inputs;
  BentScores() {
    asked.visible = [this](Index, Index, Index i, Index j) { return j <= i + x.offset; };
    asked.softcap = 1.5L;
    asked.bias = [this](Index, Index, Index i, Index j) {
      return static_cast<long double>(B(i, j)) -
             0.0078125L * static_cast<long double>(std::abs(i + x.offset - j));
    };
    asked.modify = [this](long double s, Index, Index, Index i, Index j) {
      return s + 0.5L * std::tanh(s) -
             static_cast<long double>(0.002f) *
                 static_cast<long double>(std::abs(i + x.offset - j)) * s;
    };
    inputs.slope = [this](long double s, Index, Index, Index i, Index j) {
      const long double t = std::tanh(s);
      return 1 + 0.5L * (1 - t * t) -
             static_cast<long double>(0.002f) *
                 static_cast<long double>(std::abs(i + x.offset - j));
    };
  }
  auto options() const {
    return attn::options(attn::softcap(1.5f), attn::bias(B), attn::alibi(0.0078125f));
  }
};

TEST(ScoreGradient, GoesThroughFunctorsByTheirSlopes) {
  const BentScores bent_scores;
  const Batch& x = bent_scores.x;
  const auto expected = x.expected(bent_scores.asked, bent_scores.inputs);
  const Reference dbias = support::bias_gradient(expected.added, bent_scores.asked, 120, 1, 300);
  const auto differentiate = [&](const auto& score, auto&&... asks) {
    MatrixXf dB;
    const auto g =
        x.differentiate(attn::options(bent_scores.options(), score), attn::dbias(dB), asks...);
    EXPECT_TRUE(near(dB, dbias, 1e-6 * (1 + dbias.cwiseAbs().maxCoeff())));
    return g;
  };
  const auto near_expected = [&](const Batch::Gradients& g) {
    return near(g.query, expected.query, 1e-6L * (1 + expected.query.cwiseAbs().maxCoeff())) &&
           near(g.key, expected.key, 1e-6L * (1 + expected.key.cwiseAbs().maxCoeff()));
  };
  EXPECT_TRUE(near_expected(differentiate(attn::score(Bent()))));
  EXPECT_TRUE(near_expected(differentiate(attn::score(attn::one_by_one(BentAlone())))));
  EXPECT_TRUE(near_expected(differentiate(attn::score(bent, bent_slope))));
  const auto wrong =
      x.differentiate(attn::options(bent_scores.options(), attn::score(bent, wrong_slope)));
  EXPECT_FALSE(near_expected(wrong));
}

TEST(ScoreGradient, IsShownForEveryVisiblePairOnce) {
  const BentScores bent_scores;
  const Batch& x = bent_scores.x;
  const auto expected = x.expected(bent_scores.asked, bent_scores.inputs);
  Reference shown = Reference::Zero(161, 4 * 300);
  Eigen::MatrixXi calls = Eigen::MatrixXi::Zero(161, 4 * 300);
  x.differentiate(attn::options(bent_scores.options(), attn::score(Bent())),
                  attn::dscore([&](float ds, At at) {
                    const Index row = x.queries[std::size_t(at.sequence)] + at.query - x.offset;
                    shown(row, at.head * 300 + at.key) += static_cast<long double>(ds);
                    ++calls(row, at.head * 300 + at.key);
                  }));
  EXPECT_TRUE(near(shown, expected.modified, 1e-6));
  support::for_each_pair(expected.modified, bent_scores.asked,
                         [&](Index b, Index i, Index token, Index h, Index j, long double) {
                           const Index keys = x.keys[std::size_t(b) + 1] - x.keys[std::size_t(b)];
                           ASSERT_EQ(calls(token, h * 300 + j), j < keys && j <= i + x.offset);
                         });
}

/// Where a row sees one key, its weight is exp(s − m) = 1 only if both passes give s to the last bit.
TEST(ScoreGradient, SeesTheScoresOfTheForwardPassToTheBit) {
  const Index L = 150;
  const MatrixXf Q = support::uniform<float>(L, 5, 1, 2), K = support::uniform<float>(L, 5, 2, 2),
                 V = support::uniform<float>(L, 3, 3), dY = support::uniform<float>(L, 3, 4);
  const auto expect_one = [&](const auto& score) {
    const auto alone = attn::mask([](At at) { return at.key == at.query; });
    const auto options = attn::options(alone, attn::softcap(3.f), attn::alibi(0.3f), score);
    attn::AttentionState<float> state;
    (void)attn::attention(Q, K, V, options, attn::save_state(state));
    MatrixXf dV, dQ;
    attn::attention_backward(Q, K, V, dY, state, options, attn::dvalue(dV), attn::dquery(dQ));
    EXPECT_TRUE(same_bits(dV, dY));
  };
  // Products and sums that a compiler fuses, or not.
  const auto f = [](auto s, const auto& at) {
    return s * 1.1f + s * (0.3f * float(at.key)) - 0.7f * s * float(at.query);
  };
  expect_one(attn::score(
      [](auto s, auto at) { return s * 1.1f + s * (0.3f * at.key) - exp(0.01f * at.query) * s; }));
  expect_one(attn::score(attn::one_by_one(f)));
  expect_one(attn::score([&](float s, At at) { return f(s, at); }, [](float, At) { return 1.f; }));
}

/// What a functor or a bias hides contributes nothing and is not shown, whatever it holds.
TEST(ScoreGradient, OfAHiddenPairIsNothing) {
  const Index L = 40, hidden = 17;
  const MatrixXf Q = support::uniform<float>(L, 5, 1), V = support::uniform<float>(L, 3, 3),
                 dY = support::uniform<float>(L, 3, 4);
  MatrixXf K = support::uniform<float>(L, 5, 2);
  const auto run = [&](float planted, const auto&... options) {
    K.row(hidden).setConstant(planted);
    MatrixXf W = V;
    W.row(hidden).setConstant(planted);
    attn::AttentionState<float> state;
    (void)attn::attention(Q, K, W, options..., attn::save_state(state));
    std::array<MatrixXf, 4> g;
    VectorXf dalibi;
    const auto shown = [&](float ds, At at) { EXPECT_TRUE(at.key != hidden && ds == ds); };
    attn::attention_backward(Q, K, W, dY, state, options..., attn::dquery(g[0]), attn::dkey(g[1]),
                             attn::dvalue(g[2]), attn::dalibi(dalibi), attn::dscore(shown));
    g[3] = dalibi;
    return g;
  };
  const auto expect_same = [&](const auto&... options) {
    const auto plain = run(1, options...);
    EXPECT_TRUE(same_bits(plain[1].row(hidden), MatrixXf::Zero(1, 5)));
    for (const float planted :
         {support::kNaN<float>, support::kInfinity<float>, -support::kInfinity<float>, 3e38f}) {
      const auto g = run(planted, options...);
      for (std::size_t n = 0; n < 4; ++n) EXPECT_TRUE(same_bits(g[n], plain[n])) << planted;
    }
  };
  MatrixXf B = MatrixXf::Zero(L, L);
  B.col(hidden).setConstant(-support::kInfinity<float>);
  const auto bends = attn::score([](auto s, auto) { return s * s - 2 * s; });
  const auto hides = attn::score([](auto s, auto at) {
    return select(at.key == float(hidden), -support::kInfinity<float>, s * exp(s));
  });
  const auto alibi = attn::alibi(0.1f);
  expect_same(attn::softcap(2.f), alibi, hides);
  expect_same(attn::softcap(2.f), alibi, attn::mask([](At at) { return at.key != hidden; }), bends);
  expect_same(attn::softcap(2.f), alibi, attn::bias(B),
              attn::score([](auto s, auto) { return s * abs(s); }));
}

// ---- What is refused ------------------------------------------------------------------------

TEST(ScoreGradientErrors, SayWhatDoesNotFit) {
  const MatrixXf X = support::uniform<float>(6, 4, 1);
  MatrixXf B = support::uniform<float>(6, 12, 2);
  const auto bias = attn::bias(attn::heads(B, 2));
  const auto slopes = attn::options(bias, attn::alibi({0.5, 0.25}), attn::sink({1., 2.}));
  attn::AttentionState<float> state;
  const auto x = attn::heads(X, 2);
  (void)attn::attention(x, x, x, slopes, attn::save_state(state));
  MatrixXf dQ = MatrixXf::Constant(6, 4, 7);
  const auto error = [&](const auto&... options) {
    const std::string message = support::error_of(
        [&] { attn::attention_backward(x, x, x, X, state, slopes, attn::dquery(dQ), options...); });
    EXPECT_TRUE(same_bits(dQ, MatrixXf::Constant(6, 4, 7)));
    return message;
  };
  const std::string here = "attn::attention_backward: ";
  MatrixXf narrow(6, 11), unsized;
  EXPECT_EQ(error(attn::dbias(narrow.leftCols(6))), here + "dbias is 6x6, needs 6x12");
  const std::string sizes = ", needs [1, 2, 6, 6] as the bias (sequences, heads, queries, keys)";
  EXPECT_EQ(error(attn::dbias(attn::bhld(B.data(), 1, 1, 6, 12))),
            here + "dbias is [1, 1, 6, 12]" + sizes);
  EXPECT_EQ(error(attn::dbias(attn::bhld(B.data(), 2, 1, 6, 6))),
            here + "dbias is [2, 1, 6, 6]" + sizes);
  EXPECT_EQ(error(attn::accumulate(), attn::dbias(unsized)),
            here + "dbias is 0x0, needs 6x12: accumulate() adds to what it holds");
  EXPECT_EQ(error(attn::dbias(B)), here + "dbias overlaps bias; write to memory of its own");
  EXPECT_EQ(error(attn::dbias(dQ)), here + "dbias overlaps dquery; write to memory of its own");
  EXPECT_EQ(error(attn::dscale(dQ(1, 1))),
            here + "dscale overlaps dquery; write to memory of its own");
  Eigen::Vector3f three;
  VectorXf fits(2);
  EXPECT_EQ(error(attn::dalibi(three)), here + "dalibi is 3x1, needs 2x1");
  EXPECT_EQ(error(attn::dsink(three.transpose())), here + "dsink is 1x3, needs 1x2");
  VectorXf empty;
  EXPECT_EQ(error(attn::accumulate(), attn::dalibi(empty)),
            here + "dalibi is 0x1, needs 2x1: accumulate() adds to what it holds");
  EXPECT_EQ(error(attn::dsink(fits), attn::dalibi(fits)),
            here + "dsink overlaps dalibi; write to memory of its own");
}

}  // namespace
