// SPDX-License-Identifier: MIT
// softmax.h alone: what its own documentation names.
#include <attn/softmax.h>

using Eigen::MatrixXf;

void all(const MatrixXf& S, MatrixXf& P, MatrixXf& l) {
  P = attn::softmax(S);
  attn::softmax(S, attn::into(P), attn::colwise());
  attn::softmax(S, attn::into(P), attn::causal(attn::align::lower_right) || attn::window(1, 0),
                attn::keep(S.array() > 0));
  attn::softmax(S, attn::into(P), attn::query_offset(0), attn::causal());
  P = attn::log_softmax(S);
  l = attn::logsumexp(S);
  attn::merge(S, l, S, l, attn::into(P), attn::save_logsumexp(l));
  attn::SoftmaxState<float> a, b;
  a = attn::merge(a, b);
}
