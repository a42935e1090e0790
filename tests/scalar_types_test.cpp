// tests/scalar_types_test.cpp: half and bfloat16 as storage for any operand, and long double.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>

#include <cmath>
#include <limits>
#include <type_traits>

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
using MatrixF = DynamicMatrix<float>;

// ---- half and bfloat16 are storage ----------------------------------------------------------------------------------

/// Rounded once, to nearest: what the narrow scalar's own conversion does.
template <class Stored>
DynamicMatrix<Stored> rounded(const MatrixF& x) {
  DynamicMatrix<Stored> y(x.rows(), x.cols());
  for (Index i = 0; i < x.rows(); ++i) {
    for (Index j = 0; j < x.cols(); ++j) y(i, j) = static_cast<Stored>(x(i, j));
  }
  return y;
}

template <class Stored>
class Storage : public ::testing::Test {
 protected:
  using Matrix = DynamicMatrix<Stored>;
  using ByColumns = DynamicMatrix<Stored, Eigen::ColMajor>;
  const Matrix query = uniform<Stored>(29, 20, 1), key = uniform<Stored>(301, 20, 2),
               value = uniform<Stored>(301, 21, 3);
  const MatrixF q = query.template cast<float>(), k = key.template cast<float>(),
                v = value.template cast<float>();
};
using Narrow = ::testing::Types<Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(Storage, Narrow, support::ScalarNames);

TYPED_TEST(Storage, OfAllOperandsGivesTheFloatResultRoundedOnce) {
  const auto Y = attn::attention(this->query, this->key, this->value);
  static_assert(std::is_same_v<std::decay_t<decltype(Y)>, DynamicMatrix<TypeParam>>);
  const MatrixF in_float = attn::attention(this->q, this->k, this->v);
  EXPECT_TRUE(
      near(in_float, reference_attention(this->query, this->key, this->value).output, 1e-6));
  EXPECT_TRUE(same_bits(Y, rounded<TypeParam>(in_float)));
}

TYPED_TEST(Storage, OfEitherOrderGivesTheSameBits) {
  const typename TestFixture::ByColumns Q = this->query, K = this->key, V = this->value;
  EXPECT_TRUE(
      same_bits(attn::attention(Q, K, V), attn::attention(this->query, this->key, this->value)));
}

TYPED_TEST(Storage, OfKeysAndValuesServesFloatQueries) {
  const auto Y = attn::attention(this->q, this->key, this->value);
  static_assert(std::is_same_v<std::decay_t<decltype(Y)>, MatrixF>);
  EXPECT_TRUE(same_bits(Y, attn::attention(this->q, this->k, this->v)));
}

TYPED_TEST(Storage, OfQueriesAloneOrOfTheOutputAlone) {
  const MatrixF in_float = attn::attention(this->q, this->k, this->v);
  EXPECT_TRUE(
      same_bits(attn::attention(this->query, this->k, this->v), rounded<TypeParam>(in_float)));
  typename TestFixture::Matrix narrow;
  attn::attention(this->q, this->k, this->v, attn::into(narrow));
  EXPECT_TRUE(same_bits(narrow, rounded<TypeParam>(in_float)));
  MatrixF wide;
  attn::attention(this->query, this->key, this->value, attn::into(wide));
  EXPECT_TRUE(same_bits(wide, in_float));
}

TYPED_TEST(Storage, OfTheResidualIsAddedInFloatBeforeTheOneRounding) {
  const auto X = uniform<TypeParam>(29, 21, 4, 3);
  const MatrixF sum =
      X.template cast<float>() + MatrixF(attn::attention(this->q, this->k, this->v));
  EXPECT_TRUE(same_bits(attn::attention(this->query, this->key, this->value, attn::residual(X)),
                        rounded<TypeParam>(sum)));
  const MatrixF wide = attn::attention(this->q, this->k, this->v);
  EXPECT_TRUE(same_bits(attn::residual_add(X, wide), sum));
  EXPECT_TRUE(same_bits(attn::residual_add(wide, X), rounded<TypeParam>(sum)));
}

TYPED_TEST(Storage, OfABiasIsConverted) {
  const auto B = uniform<TypeParam>(29, 301, 5, 3);
  const MatrixF b = B.template cast<float>();
  const MatrixF in_float = attn::attention(this->q, this->k, this->v, attn::bias(b));
  EXPECT_TRUE(same_bits(attn::attention(this->query, this->key, this->value, attn::bias(B)),
                        rounded<TypeParam>(in_float)));
}

TYPED_TEST(Storage, OfAFunctorComputesInFloat) {
  attn::ScaledDotProductAttention<TypeParam> sdpa;
  static_assert(std::is_same_v<typename decltype(sdpa)::Compute, float>);
  typename TestFixture::Matrix Y;
  MatrixF l, l_in_float, y;
  sdpa(this->query, this->key, this->value, attn::into(Y), attn::save_logsumexp(l));
  attn::attention(this->q, this->k, this->v, attn::into(y), attn::save_logsumexp(l_in_float));
  EXPECT_TRUE(same_bits(l, l_in_float));
}

TYPED_TEST(Storage, OfOneKeyReturnsThatValueRow) {
  const typename TestFixture::Matrix K = this->key.topRows(1), V = this->value.topRows(1);
  EXPECT_TRUE(same_bits(attn::attention(this->query, K, V), V.replicate(29, 1)));
}

// ---- Scalars without packets ----------------------------------------------------------------------------------------

using LongMatrix = DynamicMatrix<long double>;

TEST(LongDouble, ErrsAtMostTwiceAsMuchAsTheFormulaByHand) {
  const long double epsilon = std::numeric_limits<long double>::epsilon();
  for (const Index keys : {1, 3, 4, 5, 255, 257, 600}) {
    for (const Index queries : {1, 2, 3, 17}) {
      const LongMatrix Q = uniform<long double>(queries, 59, 1) / 3,
                       K = uniform<long double>(keys, 59, 2) / 3,
                       V = uniform<long double>(keys, 9, 3) / 3;
      const LongMatrix exact = reference_attention(Q, K, V).output;
      const LongMatrix by_hand =
          support::textbook_attention<long double>(Q, K, V, 1 / std::sqrt(59.0L));
      EXPECT_TRUE(near(attn::attention(Q, K, V), exact,
                       2 * support::worst_error(by_hand, exact) + 4 * epsilon));
    }
  }
}

TEST(LongDouble, TakesMasksBiasAndResidual) {
  const LongMatrix Q = uniform<long double>(17, 5, 1), K = uniform<long double>(40, 5, 2),
                   V = uniform<long double>(40, 9, 3), X = uniform<long double>(17, 9, 4),
                   B = uniform<long double>(17, 40, 5);
  ReferenceOptions options;
  options.visible = [](Index, Index, Index i, Index j) { return j <= i + 23 && j < 31; };
  options.bias = [&](Index, Index, Index i, Index j) { return B(i, j); };
  options.softcap = 2;
  LongMatrix Y, l;
  attn::attention(Q, K, V, attn::causal_from(23), attn::key_lengths(31), attn::bias(B),
                  attn::softcap(2), attn::residual(X), attn::into(Y), attn::save_logsumexp(l));
  const auto exact = reference_attention(Q, K, V, options);
  const long double tolerance = 64 * std::numeric_limits<long double>::epsilon();
  EXPECT_TRUE(near(Y, exact.output + X, tolerance));
  EXPECT_TRUE(near(l, exact.logsumexp, tolerance));
}

}  // namespace
