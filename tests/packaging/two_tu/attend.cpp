// SPDX-License-Identifier: MIT
// Causal attention of n tokens with d features, as a function called ATTEND. Plain pointers in its
// signature: Eigen's own matrices differ with the flags.

#include <attn/attn.h>

void ATTEND(const float* q, const float* k, const float* v, int n, int d, float* y) {
  using Matrix = Eigen::Map<Eigen::MatrixXf>;
  using ConstMatrix = Eigen::Map<const Eigen::MatrixXf>;
  Matrix Y(y, n, d);
  attn::attention(ConstMatrix(q, n, d), ConstMatrix(k, n, d), ConstMatrix(v, n, d), attn::into(Y),
                  attn::causal());
}
