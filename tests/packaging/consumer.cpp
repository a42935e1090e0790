// SPDX-License-Identifier: MIT
// A user's first program: returns 0 if attention is there and right.

#include <attn/attn.h>

#include <cmath>
#include <cstdio>

int main() {
  // One token: its weight is 1, so that the output is its value.
  Eigen::MatrixXf Q(1, 3), K(1, 3), V(1, 3);
  Q << 1, 2, 3;
  K << 2, 3, 4;
  V << 3, 4, 5;
  Eigen::MatrixXf Y = attn::attention(Q, K, V);
  const bool one_token = (Y.array() == V.array()).all();

  // Three tokens of one feature. Causal: the first sees itself, the second weighs two keys whose
  // scores differ by 2.
  Q.transposeInPlace();
  K.transposeInPlace();
  V.transposeInPlace();
  attn::attention(Q, K, V, attn::into(Y), attn::causal());
  const float second = 3 + 1 / (1 + std::exp(-2.f));
  const bool three_tokens = Y.rows() == 3 && Y(0) == 3 && std::abs(Y(1) - second) < 1e-5f;

  std::printf("attn: %s, %s\n", one_token ? "right" : "wrong", three_tokens ? "right" : "wrong");
  return one_token && three_tokens ? 0 : 1;
}
