// examples/01_attention.cpp: softmax(Q Kᵀ / √d_k) V and the residual, on the three numbers of a
// textbook example.
// SPDX-License-Identifier: MIT
//
// Q = [1 2 3], K = [2 3 4], V = [3 4 5], √d_k = 1. The row vectors can be read in two ways, and
// both are right: one token with three features, or three tokens with one feature each.
#include <attn/attn.h>

#include <iostream>

template <class Matrix>
void print(const char* name, const Matrix& m) {
  const Eigen::IOFormat format(8, 0, "  ", "\n", "  [ ", " ]");
  std::cout << name << '\n' << m.format(format) << "\n\n";
}

int main() {
  const Eigen::RowVector3d q(1, 2, 3), k(2, 3, 4), v(3, 4, 5);

  std::cout << "One token of three features: a single score, 1*2 + 2*3 + 3*4 = 20, and so the "
               "weight 1.\n\n";
  const auto one_token = attn::attention(q, k, v, attn::scale(1.0));
  print("Output: exactly V", one_token);
  print("x + Output, x = Q", attn::residual_add(q, one_token));

  std::cout << "Three tokens of one feature: row i of the weights is softmax(q_i * [2 3 4]).\n\n";
  const Eigen::Vector3d Q = q.transpose(), K = k.transpose(), V = v.transpose();
  print("Weights", attn::softmax(Q * K.transpose()));
  print("Output", attn::attention(Q, K, V, attn::scale(1.0)));
  print("x + Output, fused into the last pass",
        attn::attention(Q, K, V, attn::scale(1.0), attn::residual(Q)));
}
