// tests/eigen_types_test.cpp: any Eigen type goes in and out, and gives the bits of the plain call.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>

#include <type_traits>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random.h"

namespace {

using Eigen::Index;
using Eigen::MatrixXf;
using RowMatrixXf = support::DynamicMatrix<float>;
using support::same_bits;
using support::uniform;

class EigenTypes : public ::testing::Test {
 protected:
  const RowMatrixXf Q = uniform<float>(13, 12, 11), K = uniform<float>(37, 12, 12),
                    V = uniform<float>(37, 19, 13);
  const RowMatrixXf expected = attn::attention(Q, K, V);
};

TEST_F(EigenTypes, OfThePlainCallAreRight) {
  EXPECT_TRUE(support::near(expected, support::reference_attention(Q, K, V).output, 1e-6));
}

TEST_F(EigenTypes, MixStorageOrdersFreely) {
  const MatrixXf q = Q, k = K, v = V;
  const auto by_columns = attn::attention(q, k, v);
  const auto query_by_rows = attn::attention(Q, k, V);
  const auto value_by_columns = attn::attention(q, K, v);
  EXPECT_TRUE(same_bits(by_columns, expected));
  EXPECT_TRUE(same_bits(query_by_rows, expected));
  EXPECT_TRUE(same_bits(value_by_columns, expected));
  static_assert(std::is_same_v<std::decay_t<decltype(by_columns)>, MatrixXf>);
  static_assert(std::is_same_v<std::decay_t<decltype(query_by_rows)>, RowMatrixXf>);
  static_assert(std::is_same_v<std::decay_t<decltype(value_by_columns)>, MatrixXf>);
}

TEST_F(EigenTypes, MayBeMapsWithBothStridesRefsAndBlocks) {
  using Stride = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
  std::vector<float> memory(13 * 50, 99.0f);
  Eigen::Map<RowMatrixXf, 0, Stride> q(memory.data() + 1, 13, 12, Stride(50, 3));
  q = Q;
  MatrixXf storage = MatrixXf::Constant(50, 30, 99.0f);
  storage.block(3, 4, 37, 12) = K;
  const Eigen::Ref<const MatrixXf, 0, Eigen::OuterStride<>> k = storage.block(3, 4, 37, 12);
  RowMatrixXf frame = RowMatrixXf::Constant(50, 30, 99.0f);
  frame.bottomRightCorner(37, 19) = V;
  EXPECT_TRUE(same_bits(attn::attention(q, k, frame.bottomRightCorner(37, 19)), expected));
}

TEST_F(EigenTypes, MayRunBackwardsThroughMemory) {
  using Stride = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
  const RowMatrixXf k = K.colwise().reverse(), v = V.colwise().reverse();
  const Eigen::Map<const RowMatrixXf, 0, Stride> K_reversed(k.data() + 36 * 12, 37, 12,
                                                            Stride(-12, 1)),
      V_reversed(v.data() + 36 * 19, 37, 19, Stride(-19, 1));
  EXPECT_TRUE(same_bits(attn::attention(Q, K_reversed, V_reversed), expected));
}

TEST_F(EigenTypes, MayBeExpressionsTransposesAndArrays) {
  const MatrixXf Q_transposed = Q.transpose();
  const Eigen::ArrayXXf v = V.array();
  EXPECT_TRUE(same_bits(attn::attention(Q_transposed.transpose(), K * 1.0f, v), expected));
  EXPECT_TRUE(same_bits(attn::attention(RowMatrixXf(Q), MatrixXf(K), v.matrix()), expected));
}

TEST_F(EigenTypes, MayHaveFixedSizesAndThenReturnThem) {
  const Eigen::Matrix<float, 13, 12, Eigen::RowMajor> q = Q;
  const Eigen::Matrix<float, 37, 12> k = K;
  const Eigen::Matrix<float, 37, 19> v = V;
  const auto Y = attn::attention(q, k, v);
  static_assert(
      std::is_same_v<std::decay_t<decltype(Y)>, Eigen::Matrix<float, 13, 19, Eigen::RowMajor>>);
  EXPECT_TRUE(same_bits(Y, expected));
}

TEST_F(EigenTypes, MayBeVectors) {
  const Eigen::RowVectorXf q = Q.row(4);
  const Eigen::VectorXf v = V.col(3);
  const auto y = attn::attention(q, K, v);  // one query, one value feature
  static_assert(
      std::is_same_v<std::decay_t<decltype(y)>, Eigen::Matrix<float, 1, 1, Eigen::RowMajor>>);
  EXPECT_EQ(y(0, 0), expected(4, 3));

  const auto row = attn::attention(q, K, V);
  static_assert(std::is_same_v<std::decay_t<decltype(row)>, Eigen::RowVectorXf>);
  EXPECT_TRUE(same_bits(row, expected.row(4)));

  const auto column = attn::attention(MatrixXf(Q), K, v);
  static_assert(std::is_same_v<std::decay_t<decltype(column)>, Eigen::VectorXf>);
  EXPECT_TRUE(same_bits(column, expected.col(3)));
}

TEST_F(EigenTypes, AsOutputsAreMapsRefsAndArrays) {
  using Stride = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
  std::vector<float> memory(13 * 60, 99.0f);
  Eigen::Map<RowMatrixXf, 0, Stride> mapped(memory.data() + 1, 13, 19, Stride(60, 3));
  attn::attention(Q, K, V, attn::into(mapped));
  EXPECT_TRUE(same_bits(mapped, expected));
  mapped.setConstant(99.0f);
  for (const float element : memory) ASSERT_EQ(element, 99.0f) << "written between the strides";

  Eigen::ArrayXXf array;
  attn::attention(Q, K, V, attn::into(array));
  EXPECT_TRUE(same_bits(array, expected));

  MatrixXf storage(20, 19);
  Eigen::Ref<MatrixXf> ref = storage.topRows(13);
  attn::attention(Q, K, V, attn::into(ref));
  EXPECT_TRUE(same_bits(storage.topRows(13), expected));
}

TEST_F(EigenTypes, WithIntoNothingIsReturned) {
  RowMatrixXf Y;
  static_assert(std::is_void_v<decltype(attn::attention(Q, K, V, attn::into(Y)))>);
}

TEST_F(EigenTypes, AsOutputsAreResizedWherePlainAndFilledWhereViews) {
  RowMatrixXf Y(2, 3);
  attn::attention(Q, K, V, attn::into(Y));
  EXPECT_TRUE(same_bits(Y, expected));

  MatrixXf by_columns;
  attn::attention(Q, K, V, attn::into(by_columns));
  EXPECT_TRUE(same_bits(by_columns, expected));

  RowMatrixXf frame = RowMatrixXf::Constant(17, 25, 77.0f);
  attn::attention(Q, K, V, attn::into(frame.block(2, 3, 13, 19)));
  EXPECT_TRUE(same_bits(frame.block(2, 3, 13, 19), expected));
  frame.block(2, 3, 13, 19).setConstant(77.0f);
  EXPECT_TRUE((frame.array() == 77.0f).all()) << "an element around the block was written";

  RowMatrixXf turned(19, 13);
  attn::attention(Q, K, V, attn::into(turned.transpose()));
  EXPECT_TRUE(same_bits(turned.transpose(), expected));
}

TEST_F(EigenTypes, InOptionsAreHeldWithoutDangling) {
  const RowMatrixXf B = uniform<float>(13, 37, 25, 4), X = uniform<float>(13, 19, 26, 5);
  const MatrixXf bias_by_columns = B, residual_by_columns = X;
  const RowMatrixXf biased = attn::attention(Q, K, V, attn::bias(B), attn::residual(X));
  support::ReferenceOptions options;
  options.bias = [&](Index, Index, Index i, Index j) { return static_cast<long double>(B(i, j)); };
  const support::Reference exact = support::reference_attention(Q, K, V, options).output;
  EXPECT_TRUE(support::near(biased, exact + support::widened(X), 2e-6));

  EXPECT_TRUE(same_bits(
      attn::attention(Q, K, V, attn::bias(bias_by_columns), attn::residual(residual_by_columns)),
      biased));
  const auto bias = attn::bias(B * 1.0f);  // expressions: evaluated here and owned by the options
  const auto residual = attn::residual(RowMatrixXf(X));
  EXPECT_TRUE(same_bits(attn::attention(Q, K, V, bias, residual), biased));
}

}  // namespace
