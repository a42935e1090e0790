// tests/long_sequence_test.cpp: a million tokens under a window: sampled rows against the formula, and against the same row
// by itself, bit by bit.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "support/matrix_matchers.h"
#include "support/random.h"

namespace {

using Eigen::Index;
using Matrix = support::DynamicMatrix<float>;

TEST(LongSequence, OfAMillionTokensIsItsWindows) {
  constexpr Index kTokens = Index(1) << 20, kWindow = 64, kFeatures = 8;
  const Matrix Q = support::uniform<float>(kTokens, kFeatures, 1),
               K = support::uniform<float>(kTokens, kFeatures, 2),
               V = support::uniform<float>(kTokens, kFeatures, 3);
  Matrix Y(kTokens, kFeatures);
  attn::ScaledDotProductAttention<float> sdpa;
  sdpa(Q, K, V, attn::into(Y), attn::window(kWindow, 0));

  for (const Index row : {Index(0), Index(1), Index(63), Index(64), Index(65), Index(255),
                          Index(256), Index(1023), Index(1024), Index(4096), Index(123457),
                          kTokens / 2 - 1, kTokens / 2, kTokens - 2, kTokens - 1}) {
    const Index first = std::max<Index>(row - kWindow, 0), keys = row - first + 1;
    const Eigen::MatrixXd q = Q.row(row).cast<double>(),
                          k = K.middleRows(first, keys).cast<double>(),
                          v = V.middleRows(first, keys).cast<double>();
    Eigen::VectorXd weights(keys);
    for (Index j = 0; j < keys; ++j)
      weights(j) = std::exp(q.row(0).dot(k.row(j)) / std::sqrt(double(kFeatures)));
    const Eigen::RowVectorXd expected = weights.transpose() * v / weights.sum();
    EXPECT_LE((Y.row(row).cast<double>() - expected).cwiseAbs().maxCoeff(), 2e-7) << row;

    Matrix alone(1, kFeatures);
    sdpa(Q.row(row), K, V, attn::into(alone), attn::window(kWindow, 0), attn::query_offset(row));
    EXPECT_TRUE(support::same_bits(alone, Matrix(Y.row(row)))) << row;
  }
}

}  // namespace
