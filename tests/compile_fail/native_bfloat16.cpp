// SPDX-License-Identifier: MIT
// What native_bfloat16() is not for (native_bfloat16.h). Builds with its instruction and without
// refuse alike, but for case 6.
//
// expect 1: products of bfloat16 are added in float
// expect 2: native_bfloat16 twice in one call
// expect 3: a backward pass multiplies floats, and needs a forward pass that did
// expect 4: a backward pass multiplies floats: it is an option of forward calls
// expect 5: on a KeyValueCache of bfloat16 alone
// expect 6: this build has no instruction that multiplies bfloat16|products of bfloat16 are added in float
// expect 7: a backward pass multiplies floats: it is an option of forward calls
#include <attn/attn.h>

using Eigen::MatrixXd;
using Eigen::MatrixXf;

void call(const MatrixXf& Q, const MatrixXf& K, const MatrixXf& V, MatrixXf& Y, const MatrixXd& D,
          attn::AttentionState<float>& state, const attn::KeyValueCache<float>& cache,
          attn::MultiHeadAttention<float>& layer, const attn::MultiHeadState<float>& of_layer) {
#if CASE == 1
  MatrixXd E = attn::attention(D, D, D, attn::native_bfloat16());
#else
  MatrixXd E = attn::attention(D, D, D);
#endif
#if CASE == 2
  attn::attention(Q, K, V, attn::into(Y), attn::native_bfloat16(), attn::native_bfloat16());
#else
  attn::attention(Q, K, V, attn::into(Y));
#endif
#if CASE == 3
  attn::attention(Q, K, V, attn::into(Y), attn::native_bfloat16(), attn::save_state(state));
#else
  attn::attention(Q, K, V, attn::into(Y), attn::save_state(state));
#endif
#if CASE == 4
  attn::attention_backward(Q, K, V, Y, state, attn::dquery(Y), attn::native_bfloat16());
#else
  attn::attention_backward(Q, K, V, Y, state, attn::dquery(Y));
#endif
#if CASE == 5
  attn::attention(Q, cache, attn::into(Y), attn::native_bfloat16());
#else
  attn::attention(Q, cache, attn::into(Y));
#endif
#if CASE == 6
  const std::conditional_t<attn::has_native_bfloat16, MatrixXd, MatrixXf> X =
      Q.cast<typename std::conditional_t<attn::has_native_bfloat16, MatrixXd, MatrixXf>::Scalar>();
  const auto Z = attn::attention(X, X, X, attn::native_bfloat16());
#endif
#if CASE == 7
  layer.backward(Q, Y, of_layer, attn::dquery(Y), attn::native_bfloat16());
#else
  layer.backward(Q, Y, of_layer, attn::dquery(Y));
#endif
}
