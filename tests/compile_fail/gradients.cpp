// SPDX-License-Identifier: MIT
// The backward pass and the state of a forward one (gradient.h, attention_state.h), options(…).
//
// expect 1: a gradient among the options of a forward call
// expect 2: attention_backward: gradients need the keys and values as matrices, which a KeyValueCache is not
// expect 3: save_state: gradients need the keys and values as matrices, which a KeyValueCache is not
// expect 4: into\(\) and save_...\(\) are outputs of the forward call
// expect 5: into\(\) and save_...\(\) are outputs of the forward call
// expect 6: into\(\) and save_...\(\) are outputs of the forward call
// expect 7: no gradient is asked for: add dquery\(dQ\)
// expect 8: dquery twice in one call
// expect 9: the output is a temporary matrix: its result would be lost
// expect 10: the output is const
// expect 11: save_state: the state has another scalar than the call computes in
// expect 12: attention_backward: the state has another scalar than the call computes in
// expect 13: query, key, value and output gradient must compute in one scalar
// expect 14: a gradient is written in the scalar that the call computes in
// expect 15: a const functor has no scratch of its own
// expect 16: residual\(\) without a matrix is the layer's
// expect 17: attention_backward: unknown option
// expect 18: an option without its parentheses
// expect 19: an AttentionState is of attention\(Q, K, V\), not of a layer
// expect 20: save_state twice in one call
// expect 21: accumulate\(\) twice in one call
// expect 22: dlogsumexp twice in one call
// expect 23: unknown option
// expect 24: the output gradient is an Eigen matrix
// expect 25: attention_backward: unknown option
// expect 26: attention_backward: unknown option
#include <attn/attn.h>

using Eigen::MatrixXd;
using Eigen::MatrixXf;

MatrixXf forward(const MatrixXf& Q, attn::AttentionState<float>& state,
                 const attn::KeyValueCache<float>& cache,
                 const attn::MultiHeadAttention<float>& mha, attn::Workspace<float>& workspace) {
  MatrixXf dQ;
  attn::AttentionState<double> wide;
  MatrixXf Y = attn::attention(Q, Q, Q, attn::save_state(state));
#if CASE == 1
  Y = attn::attention(Q, Q, Q, attn::dquery(dQ));
#elif CASE == 3
  Y = attn::attention(Q, cache, attn::save_state(state));
#elif CASE == 11
  Y = attn::attention(Q, Q, Q, attn::save_state(wide));
#elif CASE == 18
  Y = attn::attention(Q, Q, Q, attn::options(attn::softcap(3.f), attn::causal));
#elif CASE == 19
  Y = mha(Q, attn::use(workspace), attn::save_state(state));
#elif CASE == 20
  Y = attn::attention(Q, Q, Q, attn::save_state(state), attn::options(attn::save_state(state)));
#elif CASE == 23
  Y = attn::attention(Q, Q, Q, attn::options(attn::softcap(3.f), 3));
#else
  Y = attn::attention(Q, cache);
  Y = mha(Q, attn::use(workspace));
  Y = attn::attention(Q, Q, Q, attn::options(attn::softcap(3.f), attn::causal()));
#endif
  return Y;
}

void backward(const MatrixXf& Q, const attn::AttentionState<float>& state,
              const attn::AttentionState<double>& wide, const attn::KeyValueCache<float>& cache,
              const attn::ScaledDotProductAttention<float>& sdpa,
              attn::Workspace<float>& workspace) {
  MatrixXf dQ, Y;
  MatrixXd dY;
  const MatrixXf constant = Q;
#if CASE == 2
  attn::attention_backward(Q, cache, Q, state, attn::dquery(dQ));
#elif CASE == 4
  attn::attention_backward(Q, Q, Q, Q, state, attn::dquery(dQ), attn::into(Y));
#elif CASE == 5
  attn::attention_backward(Q, Q, Q, Q, state, attn::dquery(dQ), attn::save_logsumexp(Y));
#elif CASE == 6
  attn::AttentionState<float> again;
  attn::attention_backward(Q, Q, Q, Q, state, attn::dquery(dQ), attn::save_state(again));
#elif CASE == 7
  attn::attention_backward(Q, Q, Q, Q, state, attn::causal());
#elif CASE == 8
  attn::attention_backward(Q, Q, Q, Q, state, attn::dquery(dQ), attn::dquery(Y));
#elif CASE == 9
  attn::attention_backward(Q, Q, Q, Q, state, attn::dquery(MatrixXf()));
#elif CASE == 10
  attn::attention_backward(Q, Q, Q, Q, state, attn::dquery(constant));
#elif CASE == 12
  attn::attention_backward(Q, Q, Q, Q, wide, attn::dquery(dQ));
#elif CASE == 13
  attn::attention_backward(Q, Q, Q, dY, state, attn::dquery(dQ));
#elif CASE == 14
  attn::attention_backward(Q, Q, Q, Q, state, attn::dquery(dY));
#elif CASE == 15
  sdpa.backward(Q, Q, Q, Q, state, attn::dquery(dQ));
#elif CASE == 16
  attn::attention_backward(Q, Q, Q, Q, state, attn::dquery(dQ), attn::residual());
#elif CASE == 17
  attn::attention_backward(Q, Q, Q, Q, state, attn::dquery(dQ), 3);
#elif CASE == 21
  attn::attention_backward(Q, Q, Q, Q, state, attn::dquery(dQ), attn::accumulate(),
                           attn::accumulate());
#elif CASE == 22
  attn::attention_backward(Q, Q, Q, Q, state, attn::dquery(dQ), attn::dlogsumexp(Q),
                           attn::dlogsumexp(Q));
#elif CASE == 25
  attn::attention_backward(Q, Q, Q, Q, state, attn::dquery(dQ), attn::dinput(Y));
#elif CASE == 26
  attn::LinearGradients<float> g(attn::LinearOptions(1, 1));
  attn::attention_backward(Q, Q, Q, Q, state, attn::dquery(dQ), attn::dweights(g));
#elif CASE == 24
  attn::attention_backward(Q, Q, Q, 3, state, attn::dquery(dQ));
#else
  attn::attention_backward(Q, Q, Q, Q, state, attn::dquery(dQ), attn::causal(), attn::residual(Q),
                           attn::accumulate(), attn::dlogsumexp(Q));
  attn::attention_backward(Q, Q, Q, Q, state, attn::dkey(dQ));
  sdpa.backward(Q, Q, Q, Q, state, attn::options(attn::dquery(dQ), attn::use(workspace)));
#endif
}
