// SPDX-License-Identifier: MIT
// The layer's own conditions (multi_head_attention.h).
//
// expect 1: a const layer has no scratch of its own: add the option use\(workspace\)
// expect 2: takes X, \(Xq, Xkv\) or \(Xq, Xk, Xv\), then options
// expect 3: inputs, weights and output must compute in one scalar
// expect 4: the inputs are matrices, tokens x features, or strided views of one head
// expect 5: d_model is a multiple of the heads
// expect 6: d_model and heads are both compile-time sizes, or neither
// expect 7: weights of compile-time size lie in the object, which these are too large for
// expect 8: residual\(\) without a matrix is the layer's, which adds its query input
// expect 9: two residuals in one call
// expect 10: a strided view has no matrix of its own shape to return
// expect 11: a matrix among the options: write what it is
// expect 12: inputs, weights and output must compute in one scalar
// expect 13: the residual must compute in the layer's scalar
// expect 14: a projection is set from a dense Eigen matrix
// expect 15: the random engine has fewer than two values
// expect 16: the cache computes in another scalar than the layer
// expect 17: a KeyValueCache among the arguments: write decode\(x, cache\)
// expect 18: a const layer has no scratch of its own: add the option use\(workspace\)
#include <attn/attn.h>

using attn::MultiHeadAttention;
using Eigen::MatrixXf;

struct Engine {
  using result_type = unsigned;
  static constexpr unsigned min() { return 3; }
#if CASE == 15
  static constexpr unsigned max() { return 3; }
#else
  static constexpr unsigned max() { return 4; }
#endif
  unsigned operator()() { return 3; }
};

void call(const MatrixXf& X, MatrixXf& Y, MultiHeadAttention<float>& mha,
          const MultiHeadAttention<float>& shared, attn::Workspace<float>& ws, const float* p,
          Engine& engine, attn::KeyValueCache<std::int8_t>& cache,
          attn::KeyValueCache<double>& wide) {
#if CASE == 1
  shared(X, attn::into(Y));
#else
  shared(X, attn::into(Y), attn::use(ws));
#endif
#if CASE == 2
  mha(X, X, X, X, attn::into(Y));
#else
  mha(X, X, X, attn::residual(X), attn::into(Y));
#endif
#if CASE == 3
  mha(X.cast<double>(), attn::into(Y));
#else
  mha(X.cast<Eigen::half>(), attn::into(Y));
#endif
#if CASE == 4
  mha(attn::heads(X, 2), attn::into(Y));
#else
  mha(X, attn::into(attn::heads(Y, 1)));
#endif
#if CASE == 5
  MultiHeadAttention<float, 8, 3> uneven;
#else
  MultiHeadAttention<float, 8, 2> uneven;
#endif
#if CASE == 6
  MultiHeadAttention<float, 8>* half_fixed = nullptr;
  (*half_fixed)(X, attn::into(Y));
#endif
#if CASE == 7
  MultiHeadAttention<float, 512, 8> large;
#else
  MultiHeadAttention<float> large(attn::MultiHeadOptions(512, 8));
#endif
#if CASE == 8
  Y = attn::attention(X, X, X, attn::residual());
#else
  Y = attn::attention(X, X, X, attn::residual(X));
#endif
#if CASE == 9
  Y = mha(X, attn::residual(), attn::residual(X));
#else
  Y = mha(X, attn::residual());
#endif
#if CASE == 10
  (void)mha(attn::lbhd(p, 2, 1, 1, 4));
#else
  mha(attn::lbhd(p, 2, 1, 1, 4), attn::into(Y));
#endif
#if CASE == 11
  mha(X, attn::causal(), Y);
#else
  mha(X, attn::causal(), attn::into(Y));
#endif
  Eigen::MatrixXd Yd;
#if CASE == 12
  mha(X, attn::into(Yd));
#else
  mha(X, attn::into(Y));
#endif
#if CASE == 13
  mha(X, attn::into(Y), attn::residual(X.cast<double>()));
#else
  mha(X, attn::into(Y), attn::residual(X.cast<Eigen::half>()));
#endif
#if CASE == 14
  mha.set_query(3);
#else
  mha.set_query(X.cast<double>());
#endif
  mha.edit([&](auto& w) { attn::glorot_uniform(w, engine); });
#if CASE == 16
  mha.decode(X, wide, attn::into(Y));
#else
  mha.decode(X, cache, attn::into(Y));
#endif
#if CASE == 17
  mha(X, cache, attn::into(Y));
#endif
#if CASE == 18
  shared.decode(X, cache, attn::into(Y));
#else
  shared.decode(X, cache, attn::into(Y), attn::use(ws));
#endif
  (void)wide;
}
