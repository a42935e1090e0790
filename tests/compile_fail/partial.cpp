// SPDX-License-Identifier: MIT
// States of attention over part of the keys (partial.h).
//
// expect 1: save_partial: a partial state has no finished rows: give into\(\), residual\(\), sink\(\)
// expect 2: save_partial: a partial state has no finished rows: give into\(\), residual\(\), sink\(\)
// expect 3: save_partial: a partial state has no finished rows: give into\(\), residual\(\), sink\(\)
// expect 4: save_partial: without dropout\(\), save_entropy\(\), save_weights\(\)
// expect 5: save_partial: without dropout\(\), save_entropy\(\), save_weights\(\)
// expect 6: save_partial: the partial state has another scalar than the call computes in
// expect 7: save_partial twice in one call
// expect 8: save_partial: the partial state is const or a temporary
// expect 9: a Partial is of attention\(Q, K, V\) in one process, not of a layer
// expect 10: attn::finish: its options are into\(Y\), residual\(X\), sink\(\)
// expect 11: attn::finish: the output must compute in the scalar of the partial state
// expect 12: residual\(\) without a matrix is the layer's
// expect 13: unused|ignoring return value|nodiscard
#include <attn/attn.h>

using Eigen::MatrixXd;
using Eigen::MatrixXf;

void call(const MatrixXf& Q, attn::Partial<float>& p, attn::Partial<double>& wide,
          attn::MultiHeadAttention<float>& mha, MatrixXf& Y, MatrixXd& D) {
  const attn::Partial<float> constant = p;
#if CASE == 1
  attn::attention(Q, Q, Q, attn::save_partial(p), attn::into(Y));
#elif CASE == 2
  attn::attention(Q, Q, Q, attn::save_partial(p), attn::sink());
#elif CASE == 3
  attn::attention(Q, Q, Q, attn::save_partial(p), attn::save_logsumexp(Y));
#elif CASE == 4
  attn::attention(Q, Q, Q, attn::save_partial(p), attn::dropout(0.1, 7));
#elif CASE == 5
  attn::attention(Q, Q, Q, attn::save_partial(p), attn::save_weights(Y));
#elif CASE == 6
  attn::attention(Q, Q, Q, attn::save_partial(wide));
#elif CASE == 7
  attn::attention(Q, Q, Q, attn::save_partial(p), attn::save_partial(p));
#elif CASE == 8
  attn::save_partial(constant);
#else
  attn::attention(Q, Q, Q, attn::save_partial(p), attn::causal());
#endif
#if CASE == 9
  mha(Q, attn::save_partial(p));
#else
  Y = mha(Q);
#endif
#if CASE == 10
  attn::finish(p, attn::into(Y), attn::causal());
#elif CASE == 11
  attn::finish(p, attn::into(D));
#elif CASE == 12
  attn::finish(p, attn::into(Y), attn::residual());
#elif CASE == 13
  attn::finish(p);
#else
  attn::finish(p, attn::into(Y), attn::residual(Q), attn::sink());
#endif
  attn::finish(wide, attn::into(D));
  Y = attn::finish(attn::merge(p, p, constant));
}
