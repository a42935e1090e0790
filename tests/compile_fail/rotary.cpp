// SPDX-License-Identifier: MIT
// Rotary positions (rotary.h).
//
// expect 1: two rotary rotations in one call
// expect 2: attn::rotary: expected two matrices, the cosines and the sines
// expect 3: a strided view needs into
// expect 4: attn::rotate: takes into\(\), query_offset\(\), sequences\(\)
// expect 5: attn::rotate: X and the output must compute in one scalar
// expect 6: attn::rotate: expected a matrix, heads\(X, n\) or a strided view
#include <attn/attn.h>

using Eigen::MatrixXf;

void call(const MatrixXf& X, MatrixXf& Y, float* p) {
  const auto turn = attn::rotary(attn::pairing::half_split);
#if CASE == 1
  Y = attn::attention(X, X, X, turn, turn);
#else
  Y = attn::attention(X, X, X, turn);
#endif
#if CASE == 2
  Y = attn::rotate(X, attn::rotary(attn::pairing::half_split, X, 3));
#else
  Y = attn::rotate(X, attn::rotary(attn::pairing::half_split, X, X));
#endif
#if CASE == 3
  (void)attn::rotate(attn::bhld(p, 1, 1, 2, 4), turn);
#else
  attn::rotate(attn::bhld(p, 1, 1, 2, 4), turn, attn::into(Y));
#endif
#if CASE == 4
  Y = attn::rotate(X, turn, attn::causal());
#else
  Y = attn::rotate(X, turn, attn::query_offset(3));
#endif
  Eigen::MatrixXd Yd;
#if CASE == 5
  attn::rotate(X, turn, attn::into(Yd));
#else
  attn::rotate(X.cast<double>(), turn, attn::into(Yd));
#endif
#if CASE == 6
  attn::rotate(3, turn, attn::into(Y));
#else
  attn::rotate(attn::heads(X, 2), turn, attn::into(Y));
#endif
}
