// SPDX-License-Identifier: MIT
// The layer's backward pass and its state (multi_head_gradient.h).
//
// expect 1: dkey in self-attention: the gradient of the one input, .* is dquery
// expect 2: dvalue of a call whose value is its key, or its query
// expect 3: dvalue of a call whose value is its key, or its query
// expect 4: backward: no gradient is asked for: add dweights
// expect 5: dweights: the gradients are const
// expect 6: dweights: the gradients are a temporary
// expect 7: KeyValueCache
// expect 8: into\(\) and save_...\(\) are outputs of the forward call: .* dweights
// expect 9: into\(\) and save_...\(\) are outputs of the forward call: .* dweights
// expect 10: into\(\) and save_...\(\) are outputs of the forward call: .* dweights
// expect 11: a const layer has no scratch of its own: add the option use\(workspace\)
// expect 12: a MultiHeadState of the scalar that the layer computes in
// expect 13: inputs, weights and output gradient must compute in one scalar
// expect 14: a gradient is written in the scalar that the call computes in
// expect 15: dquery twice in one call
// expect 16: dweights twice in one call
// expect 17: backward: unknown option
// expect 18: the output is const
// expect 19: the output is a temporary matrix: its result would be lost
// expect 20: a gradient among the options of a forward call
// expect 21: a gradient among the options of a forward call
// expect 22: a MultiHeadState is of a layer, mha\(X, save_state\(state\)\)
// expect 23: an AttentionState is of attention\(Q, K, V\), not of a layer
// expect 24: dbias
// expect 25: backward: unknown option
// expect 26: takes the inputs of the forward call, X, \(Xq, Xkv\) or \(Xq, Xk, Xv\)
// expect 27: gradients need the keys and values of a call as matrices, which a KeyValueCache is not
// expect 28: dweights\(\) of another kind of layer
// expect 29: the weights' gradients have the scalar that the layer computes in
#include <attn/attn.h>

using attn::MultiHeadAttention;
using attn::MultiHeadGradients;
using attn::MultiHeadState;
using Eigen::MatrixXd;
using Eigen::MatrixXf;

void forward(const MatrixXf& X, MultiHeadAttention<float>& mha, MultiHeadState<float>& state,
             attn::AttentionState<float>& of_attention, MultiHeadState<double>& wide,
             MultiHeadGradients<float>& g, attn::KeyValueCache<float>& cache) {
  MatrixXf dX;
  MatrixXf Y = mha(X, attn::save_state(state));
#if CASE == 20
  Y = mha(X, attn::dquery(dX));
#endif
#if CASE == 21
  Y = mha(X, attn::dweights(g));
#endif
#if CASE == 22
  Y = attn::attention(X, X, X, attn::save_state(state));
#else
  Y = attn::attention(X, X, X, attn::save_state(of_attention));
#endif
#if CASE == 23
  Y = mha(X, attn::save_state(of_attention));
#endif
#if CASE == 27
  Y = mha.decode(X, cache, attn::save_state(state));
#else
  Y = mha.decode(X, cache);
#endif
  (void)wide;
}

void backward(const MatrixXf& X, const MatrixXf& dY, MultiHeadAttention<float>& mha,
              const MultiHeadAttention<float>& shared, const MultiHeadState<float>& state,
              const MultiHeadState<double>& wide, MultiHeadGradients<float>& g,
              const attn::KeyValueCache<float>& cache, attn::Workspace<float>& workspace) {
  MatrixXf dX, dXk, dXv, B = X, dB, Y;
  MatrixXd dWide;
  const MatrixXf constant = X;
  const MultiHeadGradients<float> constant_g = g;
  MultiHeadGradients<double> wide_g(mha.options());
  attn::LinearGradients<float> of_linear(attn::LinearOptions(1, 1));
  MultiHeadState<float> again;
#if CASE == 1
  mha.backward(X, dY, state, attn::dquery(dX), attn::dkey(dXk));
#elif CASE == 2
  mha.backward(X, dY, state, attn::dquery(dX), attn::dvalue(dXv));
#elif CASE == 3
  mha.backward(X, X, dY, state, attn::dquery(dX), attn::dvalue(dXv));
#elif CASE == 4
  mha.backward(X, dY, state, attn::causal());
#elif CASE == 5
  mha.backward(X, dY, state, attn::dweights(constant_g));
#elif CASE == 6
  mha.backward(X, dY, state, attn::dweights(MultiHeadGradients<float>(mha.options())));
#elif CASE == 7
  mha.backward(X, cache, dY, state, attn::dquery(dX));
#elif CASE == 8
  mha.backward(X, dY, state, attn::dquery(dX), attn::into(Y));
#elif CASE == 9
  mha.backward(X, dY, state, attn::dquery(dX), attn::save_logsumexp(Y));
#elif CASE == 10
  mha.backward(X, dY, state, attn::dquery(dX), attn::save_state(again));
#elif CASE == 11
  shared.backward(X, dY, state, attn::dquery(dX));
#elif CASE == 12
  mha.backward(X, dY, wide, attn::dquery(dX));
#elif CASE == 13
  mha.backward(X, dWide, state, attn::dquery(dX));
#elif CASE == 14
  mha.backward(X, dY, state, attn::dquery(dWide));
#elif CASE == 15
  mha.backward(X, dY, state, attn::dquery(dX), attn::dquery(dXk));
#elif CASE == 16
  mha.backward(X, dY, state, attn::dweights(g), attn::dweights(g));
#elif CASE == 17
  mha.backward(X, dY, state, attn::dquery(dX), 3);
#elif CASE == 18
  mha.backward(X, dY, state, attn::dquery(constant));
#elif CASE == 19
  mha.backward(X, dY, state, attn::dquery(MatrixXf()));
#elif CASE == 24
  mha.backward(X, dY, state, attn::dquery(dX), attn::dbias(dB));
#elif CASE == 25
  mha.backward(X, dY, state, attn::dquery(dX), attn::dinput(dXk));
#elif CASE == 26
  mha.backward(X, X, X, X, dY, state, attn::dquery(dX));
#elif CASE == 28
  mha.backward(X, dY, state, attn::dweights(of_linear));
#elif CASE == 29
  mha.backward(X, dY, state, attn::dweights(wide_g));
#else
  mha.backward(X, dY, state, attn::dquery(dX), attn::dweights(g), attn::bias(B), attn::dbias(dB));
  mha.backward(X, X, dY, state, attn::dquery(dX), attn::dkey(dXk), attn::residual());
  mha.backward(X, X, X, dY, state, attn::options(attn::dkey(dXk), attn::dvalue(dXv)),
               attn::residual(X), attn::accumulate());
  shared.backward(X, dY, state, attn::dquery(dX), attn::use(workspace), attn::causal());
#endif
}
