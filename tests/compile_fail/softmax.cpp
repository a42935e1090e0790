// SPDX-License-Identifier: MIT
// Softmax, merge, residual_add and threads: operands and options that make no sense (softmax.h, residual.h, options.h).
//
// expect 1: attn::softmax: expected a dense Eigen matrix of scores
// expect 2: attn::softmax: its options are into\(P\), colwise\(\), query_offset\(\), and masks
// expect 3: attn::softmax: masks are for rows: without colwise\(\)
// expect 4: attn::softmax: expected real scores: cast<float>\(\) them first
// expect 5: attn::softmax: scores and output must compute in one scalar: cast one of them
// expect 6: attn::merge: its options are into\(O\) and save_logsumexp\(l\)
// expect 7: attn::residual_add: expected two dense Eigen matrices
// expect 8: attn: threads asked for twice: one of parallel\(n\) and on\(pool\)
#include <attn/attn.h>

using Eigen::MatrixXd;
using Eigen::MatrixXf;
using Eigen::MatrixXi;

struct Pool {
  template <class F>
  void parallel_for(int n, const F& f) {
    for (int i = 0; i < n; ++i) f(i);
  }
};

void call(const MatrixXf& S, const MatrixXi& I, MatrixXf& P, MatrixXd& D, Pool& pool) {
#if CASE == 1
  P = attn::softmax(3);
#else
  P = attn::softmax(S);
#endif
#if CASE == 2
  attn::softmax(S, attn::into(P), attn::scale(2.0f));
#else
  attn::softmax(2.0f * S, attn::into(P));
#endif
#if CASE == 3
  attn::softmax(S, attn::into(P), attn::colwise(), attn::causal());
#else
  attn::softmax(S, attn::into(P), attn::causal());
#endif
#if CASE == 4
  attn::softmax(I, attn::into(P));
#else
  attn::softmax(I.cast<float>(), attn::into(P));
#endif
#if CASE == 5
  attn::softmax(S, attn::into(D));
#else
  attn::softmax(S.cast<double>(), attn::into(D));
#endif
#if CASE == 6
  P = attn::merge(S, S, S, S, attn::causal());
#else
  P = attn::merge(S, S, S, S);
#endif
#if CASE == 7
  P = attn::residual_add(S, 3);
#else
  P = attn::residual_add(S, S);
#endif
#if CASE == 8
  attn::attention(S, S, S, attn::into(P), attn::parallel(2), attn::on(pool, 2));
#else
  attn::attention(S, S, S, attn::into(P), attn::on(pool, 2));
#endif
}
