// SPDX-License-Identifier: MIT
// The functor's own conditions (attention.h).
//
// expect 1: a const functor has no scratch of its own: add the option use\(workspace\)
// expect 2: the operands compute in another scalar than this functor's
// expect 3: query, key and value are Eigen matrices, heads\(X, n\) of them, or strided views
#include <attn/attn.h>

using Eigen::MatrixXf;

void call(const MatrixXf& Q, MatrixXf& Y, const attn::ScaledDotProductAttention<float>& shared,
          attn::Workspace<float>& ws, attn::ScaledDotProductAttention<double>& sdpa) {
#if CASE == 1
  shared(Q, Q, Q, attn::into(Y));
#else
  shared(Q, Q, Q, attn::into(Y), attn::use(ws));
#endif
  Eigen::MatrixXd Yd;
#if CASE == 2
  sdpa(Q, Q, Q, attn::into(Y));
#else
  sdpa(Q.cast<double>(), Q.cast<double>(), Q.cast<double>(), attn::into(Yd));
#endif
#if CASE == 3
  sdpa(3, Q, Q, attn::into(Yd));
#else
  sdpa(Yd, Yd, Yd, attn::into(Yd.transpose()));
#endif
}
