// tests/bits_test.cpp: a row's bits depend on its query, the keys it sees and the options, and on
// nothing else.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/scalar_names.h"

namespace {

using Eigen::Index;
using support::DynamicMatrix;
using support::same_bits;
using support::uniform;

// The calls that the tests share, so that each is instantiated once for a scalar.
template <class Scalar>
DynamicMatrix<Scalar> plain(const DynamicMatrix<Scalar>& Q, const DynamicMatrix<Scalar>& K,
                            const DynamicMatrix<Scalar>& V) {
  return attn::attention(Q, K, V);
}
template <class Scalar>
DynamicMatrix<Scalar> causal(const DynamicMatrix<Scalar>& Q, const DynamicMatrix<Scalar>& K,
                             const DynamicMatrix<Scalar>& V, Index offset) {
  return attn::attention(Q, K, V, attn::causal_from(offset));
}
template <class Scalar>
DynamicMatrix<Scalar> kept(const DynamicMatrix<Scalar>& Q, const DynamicMatrix<Scalar>& K,
                           const DynamicMatrix<Scalar>& V, const DynamicMatrix<bool>& keep) {
  return attn::attention(Q, K, V, attn::keep(keep));
}
template <class Scalar>
DynamicMatrix<Scalar> padded(const DynamicMatrix<Scalar>& Q, const DynamicMatrix<Scalar>& K,
                             const DynamicMatrix<Scalar>& V, Index length) {
  return attn::attention(Q, K, V, attn::key_lengths(length));
}
template <class Scalar>
DynamicMatrix<Scalar> windowed(const DynamicMatrix<Scalar>& Q, const DynamicMatrix<Scalar>& K,
                               const DynamicMatrix<Scalar>& V, Index left, Index right,
                               Index offset) {
  return attn::attention(Q, K, V, attn::window(left, right), attn::query_offset(offset));
}
template <class Scalar>
DynamicMatrix<Scalar> multi_head(const DynamicMatrix<Scalar>& Q, const DynamicMatrix<Scalar>& K,
                                 const DynamicMatrix<Scalar>& V, Index heads, Index kv_heads) {
  return attn::attention(attn::heads(Q, heads), attn::heads(K, kv_heads), attn::heads(V, kv_heads));
}

DynamicMatrix<bool> predicate(Index rows, Index cols, bool (*visible)(Index, Index)) {
  DynamicMatrix<bool> keep(rows, cols);
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < cols; ++j) keep(i, j) = visible(i, j);
  }
  return keep;
}

/// 300 queries and 600 keys: three key blocks, many strips of rows; ugly feature counts.
template <class Scalar>
class Bits : public ::testing::Test {
 protected:
  using Matrix = DynamicMatrix<Scalar>;
  const Matrix query = uniform<Scalar>(300, 59, 1, 2), key = uniform<Scalar>(600, 59, 2, 2),
               value = uniform<Scalar>(600, 41, 3);
  const std::vector<Index> some_rows{0, 1, 2, 5, 6, 7, 11, 12, 13, 149, 255, 256, 298, 299};
};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Bits, Scalars, support::ScalarNames);

TYPED_TEST(Bits, OfARowAreThoseItHasAlone) {
  const auto all = plain<TypeParam>(this->query, this->key, this->value);
  for (const Index i : this->some_rows) {
    EXPECT_TRUE(same_bits(plain<TypeParam>(this->query.row(i), this->key, this->value), all.row(i)))
        << "row " << i;
  }
  for (const Index rows : {2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 23, 24, 25}) {
    EXPECT_TRUE(same_bits(plain<TypeParam>(this->query.middleRows(9, rows), this->key, this->value),
                          all.middleRows(9, rows)))
        << rows << " rows";
  }
}

TYPED_TEST(Bits, OfARowAreThoseItHasAmongThousands) {
  const DynamicMatrix<TypeParam> Q = this->query.replicate(4, 1).topRows(1030);
  EXPECT_TRUE(same_bits(plain<TypeParam>(Q, this->key, this->value).bottomRows(130),
                        plain<TypeParam>(this->query, this->key, this->value).topRows(130)));
}

TYPED_TEST(Bits, OfACausalRowAreThoseOfItsKeysAlone) {
  const auto all = causal<TypeParam>(this->query, this->key, this->value, 0);
  const auto late = causal<TypeParam>(this->query, this->key, this->value, 290);
  for (const Index i : this->some_rows) {
    const auto& [Q, K, V] = std::tie(this->query, this->key, this->value);
    EXPECT_TRUE(
        same_bits(plain<TypeParam>(Q.row(i), K.topRows(i + 1), V.topRows(i + 1)), all.row(i)))
        << "row " << i;
    EXPECT_TRUE(same_bits(causal<TypeParam>(Q.row(i), K, V, i), all.row(i))) << "row " << i;
    const Index seen = i + 291;
    EXPECT_TRUE(
        same_bits(plain<TypeParam>(Q.row(i), K.topRows(seen), V.topRows(seen)), late.row(i)))
        << "row " << i;
  }
}

TYPED_TEST(Bits, OfPaddedKeysAreThoseOfTrimmedOnes) {
  for (const Index length :
       {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 255, 256, 257, 300, 511, 513, 599}) {
    const auto& [Q, K, V] = std::tie(this->query, this->key, this->value);
    EXPECT_TRUE(same_bits(padded<TypeParam>(Q, K, V, length),
                          plain<TypeParam>(Q, K.topRows(length), V.topRows(length))))
        << "length " << length;
  }
}

TYPED_TEST(Bits, DoNotDependOnWhatHiddenKeysHold) {
  auto K = this->key, V = this->value;
  K.bottomRows(300).setConstant(TypeParam(1e30));
  V.bottomRows(300).setConstant(TypeParam(-1e30));
  EXPECT_TRUE(same_bits(causal<TypeParam>(this->query, K, V, 0),
                        causal<TypeParam>(this->query, this->key, this->value, 0)));
  EXPECT_TRUE(same_bits(padded<TypeParam>(this->query, K, V, 300),
                        padded<TypeParam>(this->query, this->key, this->value, 300)));
}

TYPED_TEST(Bits, OfCausalAndWindowAreThoseOfTheSameMaskAsAMatrix) {
  const auto& [Q, K, V] = std::tie(this->query, this->key, this->value);
  EXPECT_TRUE(same_bits(causal<TypeParam>(Q, K, V, 290),
                        kept<TypeParam>(Q, K, V, predicate(300, 600, [](Index i, Index j) {
                                          return j <= i + 290;
                                        }))));
  EXPECT_TRUE(same_bits(windowed<TypeParam>(Q, K, V, 40, 3, 200),
                        kept<TypeParam>(Q, K, V, predicate(300, 600, [](Index i, Index j) {
                                          return i + 160 <= j && j <= i + 203;
                                        }))));
  EXPECT_TRUE(same_bits(
      padded<TypeParam>(Q, K, V, 333),
      kept<TypeParam>(Q, K, V, predicate(300, 600, [](Index, Index j) { return j < 333; }))));
}

TYPED_TEST(Bits, OfARowUnderAMaskAreThoseItHasAlone) {
  const auto& [Q, K, V] = std::tie(this->query, this->key, this->value);
  DynamicMatrix<bool> keep = support::random_bools(300, 600, 7, 0.02);
  for (Index i = 0; i < 300; i += 3)
    keep.row(i).head(400).setConstant(false);  // blocks unseen by some
  const auto all = kept<TypeParam>(Q, K, V, keep);
  const auto band = windowed<TypeParam>(Q, K, V, 40, 3, 200);
  for (const Index i : this->some_rows) {
    EXPECT_TRUE(same_bits(kept<TypeParam>(Q.row(i), K, V, keep.row(i)), all.row(i))) << "row " << i;
    EXPECT_TRUE(same_bits(windowed<TypeParam>(Q.row(i), K, V, 40, 3, 200 + i), band.row(i)))
        << "row " << i;
  }
}

TYPED_TEST(Bits, OfABatchAreThoseOfItsSequencesAlone) {
  const auto& [Q, K, V] = std::tie(this->query, this->key, this->value);
  const std::vector<Index> q{0, 1, 1, 34, 47, 300}, k{0, 257, 260, 261, 293, 600};
  const DynamicMatrix<TypeParam> ragged = attn::attention(Q, K, V, attn::sequences(q, k));
  for (std::size_t b = 0; b + 1 < q.size(); ++b) {
    const Index rows = q[b + 1] - q[b], keys = k[b + 1] - k[b];
    EXPECT_TRUE(same_bits(ragged.middleRows(q[b], rows),
                          plain<TypeParam>(Q.middleRows(q[b], rows), K.middleRows(k[b], keys),
                                           V.middleRows(k[b], keys))))
        << "sequence " << b;
  }

  const DynamicMatrix<TypeParam> equal = attn::attention(Q, K, V, attn::sequence_length(50, 100));
  for (Index b = 0; b < 6; ++b) {
    EXPECT_TRUE(same_bits(equal.middleRows(50 * b, 50),
                          plain<TypeParam>(Q.middleRows(50 * b, 50), K.middleRows(100 * b, 100),
                                           V.middleRows(100 * b, 100))))
        << "sequence " << b;
  }

  const DynamicMatrix<TypeParam> shared = attn::attention(Q, K, V, attn::sequence_length(50, 600));
  EXPECT_TRUE(same_bits(shared, plain<TypeParam>(Q, K, V)));
}

TYPED_TEST(Bits, OfAHeadAreThoseItHasAlone) {
  const auto& [Q, K, V] = std::tie(this->query, this->key, this->value);
  for (const Index kv_heads : {1, 2, 4}) {
    const Index heads = 4, d_k = 14, d_v = 10;
    const DynamicMatrix<TypeParam> q = Q.leftCols(heads * d_k), k = K.leftCols(kv_heads * d_k),
                                   v = V.leftCols(kv_heads * d_v);
    const auto all = multi_head<TypeParam>(q, k, v, heads, kv_heads);
    for (Index h = 0; h < heads; ++h) {
      const Index from = h / (heads / kv_heads);
      EXPECT_TRUE(
          same_bits(all.middleCols(h * d_v, d_v),
                    plain<TypeParam>(q.middleCols(h * d_k, d_k), k.middleCols(from * d_k, d_k),
                                     v.middleCols(from * d_v, d_v))))
          << "head " << h << " of " << heads << " over " << kv_heads;
    }
  }
}

TYPED_TEST(Bits, DoNotDependOnTheOtherFeaturesOfTheValues) {
  const auto& [Q, K, V] = std::tie(this->query, this->key, this->value);
  const auto all = plain<TypeParam>(Q, K, V);
  for (const Index d_v : {1, 7, 8, 9, 15, 16, 17, 31, 33, 40}) {
    EXPECT_TRUE(same_bits(plain<TypeParam>(Q, K, V.leftCols(d_v)), all.leftCols(d_v)));
  }
}

TYPED_TEST(Bits, DoNotDependOnTheStorageOrder) {
  using ByColumns = DynamicMatrix<TypeParam, Eigen::ColMajor>;
  const ByColumns q = this->query, k = this->key, v = this->value;
  for (const Index keys : {1, 7, 8, 9, 31, 33, 257, 600}) {
    const DynamicMatrix<TypeParam> Y = attn::attention(q, k.topRows(keys), v.topRows(keys));
    EXPECT_TRUE(same_bits(
        Y, plain<TypeParam>(this->query, this->key.topRows(keys), this->value.topRows(keys))))
        << keys << " keys";
  }
  // The residual too, and where it is the output itself.
  const auto by_rows = plain<TypeParam>(this->query, this->key, this->value);
  DynamicMatrix<TypeParam> expected(by_rows.rows(), by_rows.cols());
  attn::attention(this->query, this->key, this->value, attn::into(expected),
                  attn::residual(by_rows));
  ByColumns x = by_rows;
  attn::attention(q, k, v, attn::into(x), attn::residual(x));
  EXPECT_TRUE(same_bits(DynamicMatrix<TypeParam>(x), expected));
}

TYPED_TEST(Bits, DoNotDependOnFixedOrDynamicSizes) {
  const Eigen::Matrix<TypeParam, 13, 8> q = this->query.topLeftCorner(13, 8);
  const Eigen::Matrix<TypeParam, 37, 8> k = this->key.topLeftCorner(37, 8);
  const Eigen::Matrix<TypeParam, 37, 11> v = this->value.topLeftCorner(37, 11);
  EXPECT_TRUE(same_bits(attn::attention(q, k, v), plain<TypeParam>(q, k, v)));
}

TYPED_TEST(Bits, DoNotDependOnWhatElseIsSaved) {
  DynamicMatrix<TypeParam> Y, l;
  attn::attention(this->query, this->key, this->value, attn::into(Y), attn::save_logsumexp(l));
  EXPECT_TRUE(same_bits(Y, plain<TypeParam>(this->query, this->key, this->value)));

  DynamicMatrix<TypeParam> y, one;
  attn::attention(this->query.row(299).eval(), this->key, this->value, attn::into(y),
                  attn::save_logsumexp(one));
  EXPECT_TRUE(same_bits(one, l.row(299)));
}

TYPED_TEST(Bits, DoNotDependOnWhatTheWorkspaceHeld) {
  const auto& [Q, K, V] = std::tie(this->query, this->key, this->value);
  attn::Workspace<TypeParam> workspace;
  for (const TypeParam stale : {std::numeric_limits<TypeParam>::quiet_NaN(),
                                std::numeric_limits<TypeParam>::infinity(), TypeParam(1e30)}) {
    for (const Index length : {1, 37, 259}) {
      std::fill_n(workspace.reserve(200000), 200000, stale);
      const DynamicMatrix<TypeParam> Y =
          attn::attention(Q, K, V, attn::key_lengths(length), attn::use(workspace));
      EXPECT_TRUE(same_bits(Y, padded<TypeParam>(Q, K, V, length)));
    }
  }
}

TYPED_TEST(Bits, OfTheFusedResidualAreThoseOfASeparateAddition) {
  const auto X = uniform<TypeParam>(300, 41, 9, 3);
  const auto& [Q, K, V] = std::tie(this->query, this->key, this->value);
  const std::vector<Index> offsets{0, 7, 300}, key_offsets{0, 257, 600};
  const DynamicMatrix<TypeParam> fused =
      attn::attention(Q, K, V, attn::residual(X), attn::sequences(offsets, key_offsets));
  const DynamicMatrix<TypeParam> attended =
      attn::attention(Q, K, V, attn::sequences(offsets, key_offsets));
  const DynamicMatrix<TypeParam> separate = X + attended;
  EXPECT_TRUE(same_bits(fused, separate));
}

TYPED_TEST(Bits, OfARowThatSeesOneKeyAreThatValueRow) {
  const auto& [Q, K, V] = std::tie(this->query, this->key, this->value);
  EXPECT_TRUE(
      same_bits(plain<TypeParam>(Q, K.topRows(1), V.topRows(1)), V.topRows(1).replicate(300, 1)));
  EXPECT_TRUE(same_bits(windowed<TypeParam>(Q, K, V, 0, 0, 0), V.topRows(300)));
  EXPECT_TRUE(same_bits(causal<TypeParam>(Q, K, V, 0).topRows(1), V.topRows(1)));

  // Among rows that see others, with values of every magnitude and scores of thousands.
  DynamicMatrix<bool> keep = support::random_bools(300, 600, 8);
  keep.row(17).setConstant(false);
  keep(17, 431) = true;
  DynamicMatrix<TypeParam> k = K * TypeParam(1000), v = V;
  for (Index c = 0; c < v.cols(); ++c) v(431, c) *= std::pow(TypeParam(10), TypeParam(c - 20));
  EXPECT_TRUE(same_bits(kept<TypeParam>(Q, k, v, keep).row(17), v.row(431)));
}

}  // namespace
