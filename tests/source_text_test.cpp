// tests/source_text_test.cpp: the worked example of the text that this library follows, in its two readings.
// SPDX-License-Identifier: MIT
// build: -Og
//
// The text: Q = [1 2 3], K = [2 3 4], V = [3 4 5], √d_k = 1, a mask of ones (attend), then x + Output with x = Q.
#include <attn/attn.h>

#include "support/matrix_matchers.h"
#include "support/scalar_names.h"

namespace {

using support::near;

template <class Scalar>
class SourceText : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, long double>;
TYPED_TEST_SUITE(SourceText, Scalars, support::ScalarNames);

// One token of three features. Its one score is 1·2 + 2·3 + 3·4 = 20, its softmax exp(20 − 20) / 1 = 1, so the
// output is 1·[3 4 5] = [3 4 5], and x + Output = [1 2 3] + [3 4 5] = [4 6 8]: the text's final result.
TYPED_TEST(SourceText, ReadAsOneTokenOfThreeFeatures) {
  using Row = Eigen::Matrix<TypeParam, 1, 3>;
  const Row Q(1, 2, 3), K(2, 3, 4), V(3, 4, 5);
  const auto attend = Eigen::Matrix<bool, 1, 1>::Constant(true).eval();

  EXPECT_EQ(attn::attention(Q, K, V, attn::scale(1), attn::keep(attend)), Row(3, 4, 5));
  Row Y;
  Eigen::Matrix<TypeParam, 1, 1> logsumexp;
  attn::attention(Q, K, V, attn::scale(1), attn::into(Y), attn::save_logsumexp(logsumexp));
  EXPECT_EQ(logsumexp(0), TypeParam(20));
  EXPECT_EQ(attn::attention(Q, K, V, attn::scale(1), attn::keep(attend), attn::residual(Q)),
            Row(4, 6, 8));
  EXPECT_EQ(attn::residual_add(Q, Row(3, 4, 5)), Row(4, 6, 8));
}

// Three tokens of one feature, √d_k = √1 = 1, the default scale. Scores, row by row q·[2 3 4]:
//   [2 3 4]   exp(s − 4)  = [e⁻² e⁻¹ 1] = [0.1353353 0.3678794 1], sum 1.5032147
//             weights       [0.0900306 0.2447285 0.6652410]
//             output        3·0.0900306 + 4·0.2447285 + 5·0.6652410 = 4.5752104
//   [4 6 8]   exp(s − 8)  = [e⁻⁴ e⁻² 1] = [0.0183156 0.1353353 1], sum 1.1536509
//             weights       [0.0158762 0.1173104 0.8668133]            output 4.8509371
//   [6 9 12]  exp(s − 12) = [e⁻⁶ e⁻³ 1] = [0.0024788 0.0497871 1], sum 1.0522658
//             weights       [0.0023556 0.0473142 0.9503302]            output 4.9479746
// and x + Output = [5.5752104 6.8509371 7.9479746].
TYPED_TEST(SourceText, ReadAsThreeTokensOfOneFeature) {
  using Column = Eigen::Matrix<TypeParam, 3, 1>;
  const Column Q(1, 2, 3), K(2, 3, 4), V(3, 4, 5);
  const Eigen::Matrix<bool, 3, 3> attend = Eigen::Matrix<bool, 3, 3>::Constant(true);

  const Eigen::Vector3d output(4.5752104, 4.8509371, 4.9479746);
  EXPECT_TRUE(near(attn::attention(Q, K, V), output, 1e-6));
  EXPECT_TRUE(near(attn::attention(Q, K, V, attn::keep(attend)), output, 1e-6));
  EXPECT_TRUE(near(attn::attention(Q, K, V, attn::residual(Q)),
                   Eigen::Vector3d(5.5752104, 6.8509371, 7.9479746), 1e-6));

  // The values as rows of the identity: the outputs are then the weights themselves.
  const Eigen::Matrix<TypeParam, 3, 3> identity = Eigen::Matrix<TypeParam, 3, 3>::Identity();
  Eigen::Matrix3d weights;
  weights << 0.0900306, 0.2447285, 0.6652410,  //
      0.0158762, 0.1173104, 0.8668133,         //
      0.0023556, 0.0473142, 0.9503302;
  EXPECT_TRUE(near(attn::attention(Q, K, identity), weights, 1e-6));
}

}  // namespace
