// tests/score_functor_test.cpp: alibi, sinks and the user's own scores, with lanes and one key at a time.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <array>
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

/// Two ragged sequences, four heads on two, positions from 3.
struct Batch {
  std::vector<Index> queries = {0, 4, 41}, keys = {0, 35, 80};
  Index heads = 4, kv_heads = 2, offset = 3;
  MatrixXf Q = support::uniform<float>(41, 4 * 7, 1, 2),
           K = support::uniform<float>(80, 2 * 7, 2, 2), V = support::uniform<float>(80, 2 * 5, 3);

  ReferenceOptions asked() const {
    ReferenceOptions options;
    options.heads = heads;
    options.kv_heads = kv_heads;
    options.query_offsets = queries;
    options.key_offsets = keys;
    return options;
  }
};

/// Attention over the batch with this option is the oracle's with `asked`, output and log-sum-exp.
template <class... Option>
void expect_attends(const ReferenceOptions& asked, const Option&... option) {
  const Batch batch;
  MatrixXf l;
  const MatrixXf Y = attn::attention(
      attn::heads(batch.Q, batch.heads), attn::heads(batch.K, batch.kv_heads),
      attn::heads(batch.V, batch.kv_heads), attn::sequences(batch.queries, batch.keys),
      attn::query_offset(batch.offset), attn::save_logsumexp(l), option...);
  const auto expected = reference_attention(batch.Q, batch.K, batch.V, asked);
  EXPECT_TRUE(near(Y, expected.output, 2e-6));
  const double largest = l.array().isFinite().select(l.array().abs(), 0).maxCoeff();
  EXPECT_TRUE(near(l, expected.logsumexp, 6e-6 + 2e-7 * largest));
}

// ---- alibi ----------------------------------------------------------------------------------

TEST(Alibi, TakesSlopeTimesDistanceFromTheScore) {
  const Eigen::Vector4f slopes(0.5f, 0.03f, 0, 1.5f);
  ReferenceOptions asked = Batch().asked();
  asked.bias = [&](Index, Index h, Index i, Index j) {
    return -static_cast<long double>(slopes[h]) * std::abs(static_cast<long double>(i + 3 - j));
  };
  expect_attends(asked, attn::alibi(slopes));
  expect_attends(asked, attn::alibi(std::vector<float>(slopes.begin(), slopes.end())));
  expect_attends(asked, attn::alibi(slopes.cast<double>()));
  expect_attends(asked, attn::alibi(Eigen::MatrixXf(slopes.transpose().replicate(2, 1)).row(1)));
  expect_attends(asked, attn::alibi({0.5, double(0.03f), 0., 1.5}));
}

TEST(Alibi, OfOneSlopeServesAllHeads) {
  ReferenceOptions asked = Batch().asked();
  asked.bias = [&](Index, Index, Index i, Index j) {
    return -0.25L * std::abs(static_cast<long double>(i + 3 - j));
  };
  expect_attends(asked, attn::alibi(0.25));
  expect_attends(asked, attn::alibi({0.25}));
}

TEST(Alibi, OfMoreHeadsThanAListHoldsInPlace) {
  const MatrixXf Q = support::uniform<float>(5, 20 * 2, 1),
                 K = support::uniform<float>(9, 20 * 2, 2);
  const Eigen::VectorXf slopes = attn::alibi_slopes(20);
  const auto call = [&](const auto& option) {
    return MatrixXf(
        attn::attention(attn::heads(Q, 20), attn::heads(K, 20), attn::heads(K, 20), option));
  };
  EXPECT_TRUE(same_bits(call(attn::alibi(attn::alibi_slopes(20))), call(attn::alibi(slopes))));
  EXPECT_FALSE(same_bits(call(attn::alibi(slopes)), call(attn::alibi(0.5f))));
}

TEST(AlibiSlopes, OfAPowerOfTwoAreAGeometricSequence) {
  EXPECT_TRUE(near(
      attn::alibi_slopes(8),
      (Eigen::VectorXd(8) << 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625)
          .finished(),
      0));
  EXPECT_TRUE(near(attn::alibi_slopes(1), Eigen::VectorXd::Constant(1, 1. / 256), 0));
  EXPECT_TRUE(near(attn::alibi_slopes(2), Eigen::Vector2d(1. / 16, 1. / 256), 0));
  EXPECT_TRUE(
      near(attn::alibi_slopes<double>(16).head(2), Eigen::Vector2d(std::sqrt(0.5), 0.5), 1e-15));
}

TEST(AlibiSlopes, OfOtherCountsTakeEveryOtherOfTwiceAsMany) {
  // 3 heads: those of 2, then the first of 4. 12 heads: those of 8, then the 1st, 3rd, 5th, 7th of 16.
  EXPECT_TRUE(near(attn::alibi_slopes(3), Eigen::Vector3d(1. / 16, 1. / 256, 0.25), 0));
  const Eigen::VectorXd of_12 = attn::alibi_slopes<double>(12),
                        of_16 = attn::alibi_slopes<double>(16);
  EXPECT_TRUE(near(of_12.head(8), attn::alibi_slopes<double>(8), 0));
  for (Index h = 0; h < 4; ++h) EXPECT_EQ(of_12[8 + h], of_16[2 * h]);
}

// ---- sink -----------------------------------------------------------------------------------

TEST(Sink, StandsInTheDenominator) {
  ReferenceOptions asked = Batch().asked();
  asked.sinks = {0.5L, -3, 40, 0};
  expect_attends(asked, attn::sink({0.5, -3., 40., 0.}));
  const std::vector<float> logits = {0.5f, -3, 40, 0};
  expect_attends(asked, attn::sink(logits));
  asked.sinks = {0.75L, 0.75L, 0.75L, 0.75L};
  expect_attends(asked, attn::sink(0.75f));
}

TEST(Sink, WithoutALogitIsSoftmaxPlusOne) {
  // Scores 1 and 2: weights e / (1 + e + e²) and e² / (1 + e + e²).
  MatrixXf Q(1, 1), K(2, 1), V = MatrixXf::Identity(2, 2), l;
  Q << 1;
  K << 1, 2;
  const double e = std::exp(1.), sum = 1 + e + e * e;
  const MatrixXf Y =
      attn::attention(Q, K, V, attn::scale(1), attn::sink(), attn::save_logsumexp(l));
  EXPECT_NEAR(Y(0, 0), e / sum, 1e-7);
  EXPECT_NEAR(Y(0, 1), e * e / sum, 1e-7);
  EXPECT_NEAR(l(0, 0), std::log(sum), 1e-6);
}

TEST(Sink, IsNeitherScaledNorModifiedNorMasked) {
  ReferenceOptions asked = Batch().asked();
  asked.sinks = {1, 2, 3, 4};
  asked.scale = 0.1L;
  asked.softcap = 0.5L;
  asked.visible = [](Index, Index, Index i, Index j) { return j <= i + 3; };
  expect_attends(asked, attn::sink({1., 2., 3., 4.}), attn::scale(0.1), attn::softcap(0.5),
                 attn::causal());
}

TEST(Sink, LeavesZerosToARowThatSeesNobody) {
  const MatrixXf Q = support::uniform<float>(9, 5, 1), K = support::uniform<float>(40, 5, 2);
  MatrixXf l;
  const MatrixXf Y =
      attn::attention(Q, K, K, attn::key_lengths(0), attn::sink(1.5f), attn::save_logsumexp(l));
  EXPECT_TRUE(same_bits(Y, MatrixXf::Zero(9, 5)));
  EXPECT_TRUE(same_bits(l, MatrixXf::Constant(9, 1, 1.5f)));
}

TEST(Sink, OfMinusInfinityIsNone) {
  const MatrixXf Q = support::uniform<float>(9, 5, 1), K = support::uniform<float>(40, 5, 2);
  EXPECT_TRUE(
      same_bits(attn::attention(Q, K, K, attn::sink(-kInfinity<float>)), attn::attention(Q, K, K)));
}

// ---- score ----------------------------------------------------------------------------------

struct Relative {
  float slope;
  template <class Score, class At>
  auto operator()(Score s, const At& at) const {
    return s * 1.5f - slope * abs(at.query - at.key) + at.head * 0.25f;
  }
};
float relative(float s, attn::At at) {
  return s * 1.5f - 0.3f * float(std::abs(at.query - at.key)) + float(at.head) * 0.25f;
}
ReferenceOptions relative_asked() {
  ReferenceOptions asked = Batch().asked();
  asked.modify = [](long double s, Index, Index h, Index i, Index j) {
    return s * 1.5L -
           static_cast<long double>(0.3f) * std::abs(static_cast<long double>(i + 3 - j)) +
           0.25L * static_cast<long double>(h);
  };
  return asked;
}

TEST(ScoreFunctor, OfGenericSignatureIsCalledWithLanes) {
  expect_attends(relative_asked(), attn::score(Relative{0.3f}));
  expect_attends(relative_asked(), attn::score([](auto s, auto at) {
                   static_assert(decltype(s)::width == attn::detail::Simd<float>::width);
                   return 1.5 * s - 0.3f * abs(at.query - at.key) + at.head / 4;
                 }));
}

TEST(ScoreFunctor, OfOneSignatureIsCalledOneKeyAtATime) {
  expect_attends(relative_asked(), attn::score(relative));
  expect_attends(relative_asked(), attn::score(&relative));
  const auto lambda = [](float s, const attn::At& at) { return relative(s, at); };
  expect_attends(relative_asked(), attn::score(lambda));
  // A mutable call operator would not be const; other scalars of the score convert.
  expect_attends(relative_asked(), attn::score([](double s, attn::At at) -> float {
                   return relative(float(s), at);
                 }));
}

TEST(ScoreFunctor, UnderOneByOneIsCalledOneKeyAtATime) {
  expect_attends(relative_asked(), attn::score(attn::one_by_one([](auto s, auto at) {
                   static_assert(std::is_same_v<decltype(s), float>);
                   static_assert(std::is_same_v<decltype(at), attn::At>);
                   return relative(s, at);
                 })));
  const auto lvalue = [](auto s, auto at) { return relative(s, at); };
  expect_attends(relative_asked(), attn::score(attn::one_by_one(lvalue)));
}

TEST(ScoreFunctor, KnowsItsSequence) {
  ReferenceOptions asked = Batch().asked();
  asked.modify = [](long double s, Index b, Index, Index i, Index j) {
    return b == 0 ? s : i + 3 > j ? 2 * s : -s;
  };
  expect_attends(asked, attn::score([](auto s, auto at) {
                   return select(at.sequence == 0, s, select(at.query > at.key, 2 * s, -s));
                 }));
  expect_attends(asked, attn::score([](float s, attn::At at) {
                   return at.sequence == 0 ? s : at.query > at.key ? 2 * s : -s;
                 }));
}

TEST(ScoreFunctor, MayLookUpTables) {
  std::array<std::vector<float>, 4> tables;  // by head, then distance −34 … 39, clipped to ±9
  for (std::size_t h = 0; h < 4; ++h) {
    const auto numbers = support::uniform<float>(1, 19, std::uint32_t(30 + h), 3);
    tables[h].assign(numbers.data(), numbers.data() + 19);
  }
  ReferenceOptions asked = Batch().asked();
  asked.modify = [&](long double s, Index, Index h, Index i, Index j) {
    return s + static_cast<long double>(
                   tables[std::size_t(h)][std::size_t(std::clamp<Index>(i + 3 - j, -9, 9) + 9)]);
  };
  expect_attends(asked, attn::score([&](auto s, auto at) {
                   return s + lookup(tables[at.head], at.query - at.key + 9);
                 }));
  expect_attends(asked, attn::score([&](float s, attn::At at) {
                   return s + tables[std::size_t(at.head)]
                                    [std::size_t(std::clamp<Index>(at.query - at.key, -9, 9) + 9)];
                 }));
}

TEST(ScoreFunctor, MayHideByMinusInfinity) {
  ReferenceOptions asked = Batch().asked();
  asked.visible = [](Index, Index, Index i, Index j) { return (i + 3 - j) <= 5; };
  expect_attends(asked, attn::score([](auto s, auto at) {
                   return select(at.query - at.key <= 5, s, -kInfinity<float>);
                 }));
}

TEST(ScoreFunctor, ComesAfterSoftcapBiasAndAlibiAndBeforeTheMask) {
  const MatrixXf B = support::uniform<float>(37, 45, 9, 2);
  ReferenceOptions asked = Batch().asked();
  asked.softcap = 0.75L;
  asked.bias = [&](Index, Index, Index i, Index j) {
    return static_cast<long double>(B(i, j)) -
           0.125L * std::abs(static_cast<long double>(i + 3 - j));
  };
  asked.modify = [](long double s, Index, Index, Index, Index) { return s * s; };
  asked.visible = [](Index, Index, Index i, Index j) { return j <= i + 3; };
  expect_attends(asked, attn::causal(), attn::score([](auto s, auto) { return s * s; }),
                 attn::alibi(0.125f), attn::bias(B), attn::softcap(0.75f));
}

TEST(ScoreFunctor, IsCalledOneKeyAtATimeForPairsThatAreSeen) {
  const Index Lq = 50, Lk = 77;
  const MatrixXf Q = support::uniform<float>(Lq, 5, 1), K = support::uniform<float>(Lk, 5, 2);
  long strange = 0;
  Eigen::Matrix<bool, -1, -1> called = Eigen::Matrix<bool, -1, -1>::Constant(Lq, Lk, false);
  (void)attn::attention(Q, K, K, attn::causal_from(2), attn::score([&](float s, attn::At at) {
                          if (at.key > at.query || at.key >= Lk) {
                            ++strange;
                          } else {
                            called(at.query - 2, at.key) = true;
                          }
                          return s;
                        }));
  EXPECT_EQ(strange, 0);
  for (Index i = 0; i < Lq; ++i) {
    for (Index j = 0; j < Lk; ++j) EXPECT_EQ(called(i, j), j <= i + 2) << i << ", " << j;
  }
}

TEST(ScoreFunctor, ServesEveryScalar) {
  const Eigen::Matrix<long double, -1, -1> Q = support::uniform<long double>(9, 4, 1),
                                           K = support::uniform<long double>(30, 4, 2);
  ReferenceOptions asked;
  asked.modify = [](long double s, Index, Index, Index i, Index j) {
    return std::max(s, 0.125L) - std::tanh(0.5L * static_cast<long double>(std::abs(i - j)));
  };
  const auto lanes = attn::score(
      [](auto s, auto at) { return max(s, 0.125) - tanh(0.5 * abs(at.query - at.key)); });
  EXPECT_TRUE(
      near(attn::attention(Q, K, K, lanes), reference_attention(Q, K, K, asked).output, 1e-17));
  const Eigen::MatrixXd Qd = Q.cast<double>(), Kd = K.cast<double>();
  EXPECT_TRUE(near(attn::attention(Qd, Kd, Kd, lanes),
                   reference_attention(Qd, Kd, Kd, asked).output, 1e-14));
  const Eigen::Matrix<Eigen::bfloat16, -1, -1> Qb = Q.cast<Eigen::bfloat16>(),
                                               Kb = K.cast<Eigen::bfloat16>();
  EXPECT_TRUE(near(attn::attention(Qb.cast<float>(), Kb, Kb, lanes),
                   reference_attention(Qb, Kb, Kb, asked).output, 1e-6));
}

// ---- The same bits ----------------------------------------------------------------------------

/// Each row alone has the bits that it has among all.
template <class... Options>
void expect_rows_alone(const Options&... options) {
  const Index L = 75;
  const MatrixXf Q = support::uniform<float>(L, 6, 1, 2), K = support::uniform<float>(L, 6, 2, 2),
                 V = support::uniform<float>(L, 3, 3);
  const MatrixXf all = attn::attention(Q, K, V, attn::causal(), attn::query_offset(0), options...);
  for (Index i = 0; i < L; ++i) {
    const MatrixXf alone = attn::attention(MatrixXf(Q.row(i)), K, V, attn::causal(),
                                           attn::query_offset(i), options...);
    ASSERT_TRUE(same_bits(alone, all.row(i))) << "row " << i;
  }
}

TEST(ScoreBits, OfARowDoNotDependOnItsNeighbours) {
  expect_rows_alone(attn::alibi(0.3f), attn::sink(0.7f));
  expect_rows_alone(attn::softcap(0.9f), attn::score([](auto s, auto at) {
                      return s * 1.1f + s * (0.3f * at.key) - exp(0.01f * at.query) * s;
                    }));
  // Products and sums that a compiler fuses, or not.
  expect_rows_alone(attn::score([](float s, attn::At at) {
    return s * 1.1f + s * (0.3f * float(at.key)) - 0.7f * s * float(at.query);
  }));
}

}  // namespace
