// SPDX-License-Identifier: MIT
// What the README's snippets take for granted: 12 tokens of 8 heads with 64 features, or two heads of keys. readme.cmake puts
// the snippets behind this.

#include <attn/attn.h>

#include <cstdio>
#include <exception>
#include <random>
#include <vector>

void snippets() {
  using Eigen::Index;
  using Eigen::MatrixXf;
  const Index N = 2, H = 8, L = 6, d = 64, n = 12;
  std::srand(1);
  const MatrixXf Q = MatrixXf::Random(n, H * d), K = MatrixXf::Random(n, H * d),
                 V = MatrixXf::Random(n, H * d), K2 = MatrixXf::Random(n, 2 * d),
                 V2 = MatrixXf::Random(n, 2 * d);
  const MatrixXf B = MatrixXf::Random(n, n), X = Q, Xq = Q, Xkv = K, x = Q.topRows(1);
  const Eigen::Matrix<bool, Eigen::Dynamic, Eigen::Dynamic> M = B.array() < 0.5f;
  const float *q = Q.data(), *k = K.data(), *v = V.data();
  std::vector<float> outputs(std::size_t(Q.size()));
  float* y = outputs.data();
  const float slope = 0.1f;
  const std::vector<float> table(std::size_t(2 * n), 0.5f);
  const MatrixXf W1 = MatrixXf::Random(512, 2048), W2 = W1.transpose();
  const Eigen::RowVectorXf b1 = W1.row(0), b2 = W2.row(0);
  const std::vector<float> parameters(3 * 512 * 512, 0.01f);
  const float *in_weight = parameters.data(), *in_bias = in_weight, *out_weight = in_weight,
              *out_bias = in_weight;
