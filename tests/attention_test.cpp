// tests/attention_test.cpp: attention(…) and its functor against the oracle: accuracy, operands,
// outputs, score options.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/scalar_names.h"
#include "support/textbook.h"

namespace {

using Eigen::Index;
using support::DynamicMatrix;
using support::near;
using support::reference_attention;
using support::ReferenceOptions;
using support::same_bits;
using support::uniform;
using support::worst_error;

/// The bar of the project: absolute, inputs uniform in [−1, 1], default scale.
template <class Scalar>
constexpr double kTolerance = std::is_same_v<Scalar, float> ? 1e-6 : 1e-14;

template <class Scalar>
struct Operands {
  DynamicMatrix<Scalar> Q, K, V;
  Operands(Index queries, Index keys, Index key_dim, Index value_dim, double range = 1)
      : Q(uniform<Scalar>(queries, key_dim, 11, range)),
        K(uniform<Scalar>(keys, key_dim, 12, range)),
        V(uniform<Scalar>(keys, value_dim, 13)) {}
};

// One instantiation of the plain call for each scalar; the tests below share it.
template <class Scalar>
DynamicMatrix<Scalar> attend(const Operands<Scalar>& x) {
  return attn::attention(x.Q, x.K, x.V);
}
template <class Scalar>
DynamicMatrix<Scalar> attend(const DynamicMatrix<Scalar>& Q, const DynamicMatrix<Scalar>& K,
                             const DynamicMatrix<Scalar>& V) {
  return attn::attention(Q, K, V);
}

/// Heads, scale, softcap, bias and residual in one call, with the log-sum-exp.
template <class Scalar>
void attend_with_everything(const DynamicMatrix<Scalar>& Q, const DynamicMatrix<Scalar>& K,
                            const DynamicMatrix<Scalar>& V, Index heads, Index kv_heads,
                            Scalar scale, Scalar cap, const DynamicMatrix<Scalar>& B,
                            Index bias_heads, DynamicMatrix<Scalar>& Y, DynamicMatrix<Scalar>& l) {
  attn::attention(attn::heads(Q, heads), attn::heads(K, kv_heads), attn::heads(V, kv_heads),
                  attn::into(Y), attn::scale(scale), attn::softcap(cap),
                  attn::bias(attn::heads(B, bias_heads)), attn::save_logsumexp(l));
}

template <class Scalar>
class Attention : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Attention, Scalars, support::ScalarNames);

// ---- Accuracy
// -------------------------------------------------------------------------------------------------------

TYPED_TEST(Attention, AgreesWithTheOracleAtEveryTileBound) {
  using Size = attn::kernel::TileSize<TypeParam>;
  constexpr Index W = Size::width, P = Size::panel, R = Size::rows;
  const Index queries[] = {1, 2, R - 1, R, R + 1, 2 * R, 2 * R + 1, 3 * R - 1, 113};
  const Index keys[] = {1, 2, 3, W - 1, W, W + 1, P - 1, P, P + 1, 203, 255, 256, 257, 513};
  const Index key_dims[] = {1, 2, 3, 4, 5, 16, 59, 72};
  const Index value_dims[] = {1, W - 1, W, W + 1, P - 1, P, P + 1, 59, 2 * P + 1, 3 * P + W + 1};
  std::size_t n = 0;
  for (const Index Lq : queries) {
    for (const Index Lk : keys) {
      const Index d_k = key_dims[n % 8], d_v = value_dims[n % 10];
      ++n;
      if (Lq < 1 || Lk < 1 || d_v < 1) continue;
      const Operands<TypeParam> x(Lq, Lk, d_k, d_v);
      ASSERT_TRUE(near(attend(x), reference_attention(x.Q, x.K, x.V).output, kTolerance<TypeParam>))
          << Lq << " queries, " << Lk << " keys, d_k " << d_k << ", d_v " << d_v;
    }
  }
}

TYPED_TEST(Attention, AgreesWithTheOracleOnUglyShapes) {
  for (const Index d_k : {59, 72, 111, 257}) {
    const Operands<TypeParam> x(113, 203, d_k, 59);
    EXPECT_TRUE(near(attend(x), reference_attention(x.Q, x.K, x.V).output, kTolerance<TypeParam>))
        << "d_k " << d_k;
  }
}

TYPED_TEST(Attention, AgreesWithTheOracleAroundTheRowChunk) {
  constexpr Index chunk = attn::kernel::TileSize<TypeParam>::max_chunk_rows;
  for (const Index Lq : {chunk - 1, chunk, chunk + 1, 2 * chunk + 3}) {
    const Operands<TypeParam> x(Lq, 37, 9, 11);
    EXPECT_TRUE(near(attend(x), reference_attention(x.Q, x.K, x.V).output, kTolerance<TypeParam>))
        << Lq << " queries";
  }
}

TYPED_TEST(Attention, AgreesWithTheOracleWhereWideRowsMakeShortKeyBlocks) {
  using Size = attn::kernel::TileSize<TypeParam>;
  const Index d = 640;
  ASSERT_LT(Size::key_block(d, d), Size::max_key_block);
  for (const Index offset : {-1, 0, 1}) {
    const Operands<TypeParam> x(7, 2 * Size::key_block(d, d) + offset, d, d);
    EXPECT_TRUE(near(attend(x), reference_attention(x.Q, x.K, x.V).output, kTolerance<TypeParam>));
  }
}

// The longest length the tolerance is promised for; 4096 keys are 16 blocks, 1037 rows two chunks.
// Rows are checked by sample.
TYPED_TEST(Attention, AgreesWithTheOracleAtLength4096) {
  const Operands<TypeParam> x(1037, 4096, 64, 64);
  ReferenceOptions options;
  options.rows = {0, 1, 5, 6, 12, 511, 1023, 1024, 1025, 1036};
  const auto expected = reference_attention(x.Q, x.K, x.V, options).output;
  const auto actual = attend(x);
  for (const Index i : options.rows) {
    EXPECT_TRUE(near(actual.row(i), expected.row(i), kTolerance<TypeParam>)) << "row " << i;
  }
}

// (Of one query alone, Eigen's product sums in several chains and errs less. Here a row has the
// same bits alone as among others, so its error is measured there.)
TYPED_TEST(Attention, ErrsAtMostTwiceAsMuchAsTheFormulaByHand) {
  using std::sqrt;
  const double epsilon = std::numeric_limits<TypeParam>::epsilon();
  for (const double range : {1.0, 4.0}) {
    for (const auto& [Lq, Lk, d] : {std::array<Index, 3>{113, 203, 59},
                                    {64, 64, 64},
                                    {31, 1023, 72},
                                    {24, 4096, 64},
                                    {16, 16, 16},
                                    {48, 777, 128}}) {
      const Operands<TypeParam> x(Lq, Lk, d, d, range);
      const auto exact = reference_attention(x.Q, x.K, x.V).output;
      const TypeParam scale = 1 / sqrt(static_cast<TypeParam>(d));
      const auto by_hand = worst_error(support::textbook_attention(x.Q, x.K, x.V, scale), exact);
      const double few_ulp = 4 * epsilon * static_cast<double>(exact.cwiseAbs().maxCoeff());
      EXPECT_TRUE(near(attend(x), exact, 2 * by_hand + few_ulp))
          << Lq << " x " << Lk << ", d " << d << ", range " << range << ": by hand the error is "
          << by_hand;
    }
  }
}

// Scores are small integers away from ±10000 and exact, so only the softmax can lose them.
TYPED_TEST(Attention, IsStableForScoresOfPlusAndMinusTenThousand) {
  for (const int sign : {-1, 1}) {
    Operands<TypeParam> x(5, 300, 1, 7);
    x.Q.setOnes();
    for (Index j = 0; j < 300; ++j) x.K(j, 0) = static_cast<TypeParam>(sign * 10000 - (j * 7) % 13);
    EXPECT_TRUE(near(attend(x), reference_attention(x.Q, x.K, x.V).output, kTolerance<TypeParam>));
  }
}

// The maximum moves in every block, by more than exp can represent: what came before vanishes.
TYPED_TEST(Attention, ForgetsEarlierBlocksWhenALaterScoreIsFarAbove) {
  Operands<TypeParam> x(3, 1000, 1, 5);
  x.Q.setOnes();
  for (Index j = 0; j < 1000; ++j) x.K(j, 0) = static_cast<TypeParam>(200 * j);
  EXPECT_TRUE(near(attend(x), x.V.row(999).replicate(3, 1), kTolerance<TypeParam>));
  x.K *= -1;
  EXPECT_TRUE(near(attend(x), x.V.row(0).replicate(3, 1), kTolerance<TypeParam>));
}

// ---- Score options
// --------------------------------------------------------------------------------------------------

TYPED_TEST(Attention, AppliesScaleThenSoftcapThenBiasUnderEveryHead) {
  const Index heads = 4, kv_heads = 2, Lq = 19, Lk = 270, d_k = 5, d_v = 3;
  const auto Q = uniform<TypeParam>(Lq, heads * d_k, 21, 3);
  const auto K = uniform<TypeParam>(Lk, kv_heads * d_k, 22, 3);
  const auto V = uniform<TypeParam>(Lk, kv_heads * d_v, 23);
  for (const Index bias_heads : {Index(1), heads}) {
    for (const double scale : {0.7, -0.7, 0.0}) {
      const auto B = uniform<TypeParam>(Lq, bias_heads * Lk, 24, 2);
      ReferenceOptions options;
      options.heads = heads;
      options.kv_heads = kv_heads;
      options.scale = static_cast<TypeParam>(scale);
      options.softcap = 1.5L;
      options.bias = [&](Index, Index h, Index i, Index j) {
        return static_cast<long double>(B(i, (bias_heads == 1 ? 0 : h) * Lk + j));
      };
      const auto expected = reference_attention(Q, K, V, options);
      DynamicMatrix<TypeParam> Y, l;
      attend_with_everything<TypeParam>(Q, K, V, heads, kv_heads, static_cast<TypeParam>(scale),
                                        TypeParam(1.5), B, bias_heads, Y, l);
      EXPECT_TRUE(near(Y, expected.output, 2 * kTolerance<TypeParam>)) << "scale " << scale;
      EXPECT_TRUE(near(l, expected.logsumexp, 10 * kTolerance<TypeParam>)) << "scale " << scale;
    }
  }
}

TYPED_TEST(Attention, AveragesTheValuesUnderScaleZero) {
  const Operands<TypeParam> x(7, 100, 8, 5);
  const DynamicMatrix<TypeParam> mean =
      x.V.template cast<double>().colwise().mean().replicate(7, 1).template cast<TypeParam>();
  EXPECT_TRUE(near(attn::attention(x.Q, x.K, x.V, attn::scale(0)), mean, kTolerance<TypeParam>));
}

TYPED_TEST(Attention, AddsABias) {
  const Operands<TypeParam> x(14, 261, 8, 5);
  const auto B = uniform<TypeParam>(14, 261, 25, 4);
  ReferenceOptions options;
  options.bias = [&](Index, Index, Index i, Index j) { return static_cast<long double>(B(i, j)); };
  EXPECT_TRUE(near(attn::attention(x.Q, x.K, x.V, attn::bias(B)),
                   reference_attention(x.Q, x.K, x.V, options).output, kTolerance<TypeParam>));
}

TYPED_TEST(Attention, SavesTheLogSumExpInNaturalUnits) {
  for (const Index Lk : {1, 7, 256, 1000}) {
    const Operands<TypeParam> x(29, Lk, 59, 5);
    const auto exact = reference_attention(x.Q, x.K, x.V).logsumexp;
    DynamicMatrix<TypeParam> Y, l;
    attn::attention(x.Q, x.K, x.V, attn::into(Y), attn::save_logsumexp(l));
    const double relative = std::is_same_v<TypeParam, float> ? 1e-5 : 1e-13;
    ASSERT_EQ(l.rows(), 29);
    ASSERT_EQ(l.cols(), 1);
    for (Index i = 0; i < 29; ++i) {
      EXPECT_NEAR(static_cast<double>(l(i)), static_cast<double>(exact(i)),
                  relative * std::max(1.0, std::abs(static_cast<double>(exact(i)))))
          << Lk << " keys, row " << i;
    }
    EXPECT_TRUE(same_bits(Y, attend(x)));
  }
}

TYPED_TEST(Attention, AddsTheResidualAsResidualAddDoes) {
  const Operands<TypeParam> x(29, 203, 59, 21);
  const auto X = uniform<TypeParam>(29, 21, 26, 5);
  const DynamicMatrix<TypeParam> fused = attn::attention(x.Q, x.K, x.V, attn::residual(X));
  EXPECT_TRUE(same_bits(fused, attn::residual_add(X, attend(x))));
  const DynamicMatrix<TypeParam> sum = X + attend(x);
  EXPECT_TRUE(same_bits(fused, sum));
}

// ---- Outputs
// --------------------------------------------------------------------------------------------------------

TYPED_TEST(Attention, MayWriteOverTheQueries) {
  for (const Index Lq : {1, 7, 300, 1100}) {
    const Operands<TypeParam> x(Lq, 70, 12, 12);
    DynamicMatrix<TypeParam> Y = x.Q;
    attn::attention(Y, x.K, x.V, attn::into(Y));
    EXPECT_TRUE(same_bits(Y, attend(x))) << Lq << " queries";
  }
}

TYPED_TEST(Attention, MayWriteOverTheResidual) {
  const Operands<TypeParam> x(50, 70, 12, 9);
  const auto X = uniform<TypeParam>(50, 9, 27);
  const DynamicMatrix<TypeParam> expected = X + attend(x);
  DynamicMatrix<TypeParam> Y = X;
  attn::attention(x.Q, x.K, x.V, attn::into(Y), attn::residual(Y));
  EXPECT_TRUE(same_bits(Y, expected));
}

TYPED_TEST(Attention, MayWriteOverQueriesThatAreTheResidualWithHeads) {
  const Index heads = 3, d = 5;
  const auto Q = uniform<TypeParam>(700, heads * d, 31);
  const auto K = uniform<TypeParam>(41, d, 32);
  const auto V = uniform<TypeParam>(41, d, 33);
  ReferenceOptions options;
  options.heads = heads;
  const support::Reference expected =
      support::widened(Q) + reference_attention(Q, K, V, options).output;
  DynamicMatrix<TypeParam> Y = Q;
  attn::attention(attn::heads(Y, heads), K, V, attn::into(attn::heads(Y, heads)),
                  attn::residual(Y));
  EXPECT_TRUE(near(Y, expected, 2 * kTolerance<TypeParam>));
}

// ---- The functor
// ----------------------------------------------------------------------------------------------------

TYPED_TEST(Attention, AsAFunctorGivesTheSameBits) {
  const Operands<TypeParam> x(9, 333, 6, 19), y(31, 5, 72, 2);
  attn::ScaledDotProductAttention<TypeParam> sdpa;
  DynamicMatrix<TypeParam> Y;
  sdpa.reserve({9, 333, 6, 19});
  for (int call = 0; call < 3; ++call) {
    sdpa(x.Q, x.K, x.V, attn::into(Y));
    EXPECT_TRUE(same_bits(Y, attend(x)));
    sdpa(y.Q, y.K, y.V, attn::into(Y));
    EXPECT_TRUE(same_bits(Y, attend(y)));
  }
  auto copy = sdpa;
  copy(x.Q, x.K, x.V, attn::into(Y));
  EXPECT_TRUE(same_bits(Y, attend(x)));
}

TYPED_TEST(Attention, AsAConstFunctorTakesAWorkspace) {
  const Operands<TypeParam> x(9, 333, 6, 19);
  const attn::ScaledDotProductAttention<TypeParam> sdpa;
  attn::Workspace<TypeParam> workspace;
  DynamicMatrix<TypeParam> Y;
  sdpa(x.Q, x.K, x.V, attn::into(Y), attn::use(workspace));
  EXPECT_TRUE(same_bits(Y, attend(x)));
  attn::AttentionShape shape{9, 333, 6, 19};
  shape.saves_pairs = false;  // the call saved none
  EXPECT_GE(workspace.capacity(), sdpa.scratch_scalars(shape));
}

// ---- Empty inputs
// ---------------------------------------------------------------------------------------------------

TYPED_TEST(Attention, AcceptsEmptyInputs) {
  DynamicMatrix<TypeParam> Y, l;
  const auto call = [&](Index Lq, Index Lk, Index d_v) {
    const Operands<TypeParam> x(Lq, Lk, 4, d_v);
    attn::attention(x.Q, x.K, x.V, attn::into(Y), attn::save_logsumexp(l));
    EXPECT_EQ(Y.rows(), Lq);
    EXPECT_EQ(Y.cols(), d_v);
    EXPECT_EQ(l.rows(), Lq);
  };
  call(0, 5, 3);
  call(0, 0, 3);
  call(5, 7, 0);
  EXPECT_GT(l.minCoeff(), -10) << "the log-sum-exp does not depend on the values";
  call(5, 0, 3);
  EXPECT_TRUE(same_bits(Y, DynamicMatrix<TypeParam>::Zero(5, 3)));
  for (Index i = 0; i < 5; ++i) EXPECT_EQ(l(i), -std::numeric_limits<TypeParam>::infinity());
}

}  // namespace
