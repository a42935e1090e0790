// SPDX-License-Identifier: MIT
// Outputs that cannot be written, and results that would be lost (output.h, call/output_memory.h, attention.h).
//
// expect 1: the output is const
// expect 2: the output is a temporary matrix: its result would be lost
// expect 3: the output is not writable memory \(a Map, Ref or Block of const\)
// expect 4: the output is an expression, which has no memory to write to: write into\(Y\)
// expect 5: the output is const \(heads\(\) of a const matrix, of an expression or of a temporary\)
// expect 6: the output is const \(heads\(\) of a const matrix, of an expression or of a temporary\)
// expect 7: the output is const
// expect 8: the output is an Eigen matrix, heads\(Y, n\) of one, or a strided view
// expect 9: save_logsumexp, save_max_logit, save_entropy: expected a matrix to write to, query rows x heads
// expect 10: the output is const
// expect 11: ignoring return value|unused-result
// expect 12: the output is const
// expect 13: the output is not writable memory
// expect 14: ignoring return value|unused-result
// expect 15: ignoring return value|unused-result
// expect 16: merge: its outputs are matrices, no views
#include <attn/attn.h>

using Eigen::Map;
using Eigen::MatrixXf;

void call(const MatrixXf& Q, const MatrixXf& K, const MatrixXf& V, MatrixXf& Y, MatrixXf& l,
          const MatrixXf& const_Y, float* memory) {
#if CASE == 1
  attn::attention(Q, K, V, attn::into(const_Y));
#else
  attn::attention(Q, K, V, attn::into(Y));
#endif
#if CASE == 2
  attn::attention(Q, K, V, attn::into(MatrixXf(6, 6)));
#else
  attn::attention(Q, K, V, attn::into(Y.leftCols(6)));
#endif
#if CASE == 3
  attn::attention(Q, K, V, attn::into(Map<const MatrixXf>(memory, 6, 6)));
#else
  attn::attention(Q, K, V, attn::into(Map<MatrixXf>(memory, 6, 6)));
#endif
#if CASE == 4
  attn::attention(Q, K, V, attn::into(2 * Y));
#else
  attn::attention(Q, K, V, attn::into(Y.transpose()));
#endif
#if CASE == 5
  attn::attention(Q, K, V, attn::into(attn::heads(const_Y, 2)));
#else
  attn::attention(Q, K, V, attn::into(attn::heads(Y, 2)));
#endif
#if CASE == 6
  attn::attention(Q, K, V, attn::into(attn::heads(MatrixXf(6, 6), 2)));
#else
  attn::attention(Q, K, V, attn::into(attn::heads(Y.leftCols(6), 2)));
#endif
#if CASE == 7
  attn::attention(Q, K, V, attn::into(attn::bhld(Q.data(), 1, 1, 6, 6)));
#else
  attn::attention(Q, K, V, attn::into(attn::bhld(memory, 1, 1, 6, 6)));
#endif
#if CASE == 8
  attn::attention(Q, K, V, attn::into(memory));
#else
  attn::attention(Q, K, V, attn::into(attn::blhd(memory, 1, 6, 1, 6)));
#endif
#if CASE == 9
  Y = attn::attention(Q, K, V, attn::save_logsumexp(attn::heads(l, 2)));
#else
  Y = attn::attention(Q, K, V, attn::save_logsumexp(l));
#endif
#if CASE == 10
  Y = attn::attention(Q, K, V, attn::save_logsumexp(const_Y));
#else
  Y = attn::attention(Q, K, V, attn::save_logsumexp(l.col(0)));
#endif
#if CASE == 11
  attn::attention(Q, K, V, attn::causal());
#else
  attn::attention(Q, K, V, attn::causal(), attn::into(Y));
#endif
#if CASE == 12
  const auto block = Y.leftCols(6);
  attn::attention(Q, K, V, attn::into(block));
#else
  auto block = Y.leftCols(6);
  attn::attention(Q, K, V, attn::into(block));
#endif
#if CASE == 13
  attn::attention(Q, K, V, attn::into(const_Y.leftCols(6)));
#else
  attn::attention(Q, K, V, attn::into(Eigen::Ref<MatrixXf>(Y)));
#endif
#if CASE == 14
  attn::residual_add(Q, V);
#else
  attn::residual_add(Q, V, attn::into(Y));
#endif
  attn::ScaledDotProductAttention<float> sdpa;
#if CASE == 15
  sdpa(Q, K, V);
#else
  sdpa(Q, K, V, attn::into(Y));
#endif
#if CASE == 16
  attn::merge(Y, l, Y, l, attn::into(Y), attn::save_logsumexp(attn::bhld(memory, 1, 1, 6, 1)));
#else
  attn::merge(Y, l, Y, l, attn::into(Y), attn::save_logsumexp(l));
#endif
}
