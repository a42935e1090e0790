// SPDX-License-Identifier: MIT
// Queries, keys and values that cannot attend together (attention.h).
//
// expect 1: integer matrices have no softmax: cast<float>\(\) them first
// expect 2: complex matrices have no softmax
// expect 3: query, key, value and output must compute in one scalar: cast one of them
// expect 4: query, key, value and output must compute in one scalar: cast one of them
// expect 5: query, key, value and output must compute in one scalar: cast one of them
// expect 6: query, key and value are Eigen matrices, heads\(X, n\) of them, or strided views
// expect 7: query, key and value are Eigen matrices, heads\(X, n\) of them, or strided views
// expect 8: a strided view has no matrix of its own shape to return: write into\(bhld\(...\)\)
// expect 9: residual: the residual must compute in the query's scalar: cast it
// expect 10: use: the workspace has another scalar than the call computes in
// expect 11: residual_add: both operands and the output must compute in one scalar
// expect 12: heads: expected a dense Eigen matrix
// expect 13: the types of query and key have different numbers of columns: both need d_k
// expect 14: the types of key and value have different numbers of rows: both need one row per key
#include <attn/attn.h>

#include <vector>

using Eigen::MatrixXd;
using Eigen::MatrixXf;

void call(const MatrixXf& Q, const MatrixXd& D, const Eigen::MatrixXi& I, const Eigen::MatrixXcf& C,
          const Eigen::Matrix<Eigen::half, -1, -1>& H, std::vector<float>& memory, MatrixXf& Y,
          MatrixXd& Yd, attn::Workspace<float>& ws, attn::Workspace<double>& wd) {
#if CASE == 1
  (void)attn::attention(I, I, I);
#else
  Y = attn::attention(I.cast<float>(), I.cast<float>(), I.cast<float>());
#endif
#if CASE == 2
  (void)attn::attention(C, C, C);
#else
  Y = attn::attention(C.real(), C.imag(), C.real());
#endif
#if CASE == 3
  Y = attn::attention(Q, D, D);
#else
  Y = attn::attention(Q, D.cast<float>(), D.cast<float>());
#endif
#if CASE == 4
  Y = attn::attention(Q, Q, D);
#else
  Y = attn::attention(Q, Q, H);
#endif
#if CASE == 5
  attn::attention(Q, Q, Q, attn::into(Yd));
#else
  attn::attention(Q, Q, Q, attn::into(Y));
#endif
#if CASE == 6
  Y = attn::attention(memory, Q, Q);
#else
  Y = attn::attention(Eigen::Map<MatrixXf>(memory.data(), 2, 2), Q, Q);
#endif
#if CASE == 7
  Y = attn::attention(Q, 2.f, Q);
#else
  Y = attn::attention(Q, 2.f * Q, Q);
#endif
#if CASE == 8
  Y = attn::attention(attn::bhld(memory.data(), 1, 1, 2, 2), Q, Q);
#else
  attn::attention(attn::bhld(memory.data(), 1, 1, 2, 2), Q, Q, attn::into(Y));
#endif
#if CASE == 9
  Y = attn::attention(Q, Q, Q, attn::residual(D));
#else
  Y = attn::attention(Q, Q, Q, attn::residual(H));
#endif
#if CASE == 10
  Y = attn::attention(Q, Q, Q, attn::use(wd));
#else
  Y = attn::attention(H, Q, Q, attn::use(ws)).cast<float>();
#endif
#if CASE == 11
  Y = attn::residual_add(D, Q);
#else
  Y = attn::residual_add(D.cast<float>(), Q);
#endif
#if CASE == 12
  Y = attn::attention(attn::heads(memory, 2), Q, Q);
#else
  Y = attn::attention(attn::heads(Q, 2), Q, Q);
#endif
  const Eigen::Matrix<float, 4, 3> four = Eigen::Matrix<float, 4, 3>::Zero();
#if CASE == 13
  (void)attn::attention(four, four.transpose(), Q);
#else
  (void)attn::attention(four, four, Q);
#endif
#if CASE == 14
  (void)attn::attention(four, four, four.topRows<3>());
#else
  (void)attn::attention(four, four, four.topRows(4));
#endif
}
