// SPDX-License-Identifier: MIT
// The linear layer's own conditions (linear.h, activation.h).
//
// expect 1: a const layer has no scratch of its own: add the option use\(workspace\)
// expect 2: a matrix among the options: write what it is
// expect 3: input, weights and output must compute in one scalar
// expect 4: the input is a matrix, rows x features, or a strided view of one head
// expect 5: an activation without its parentheses: write gelu\(\)
// expect 6: its options are into\(Y\), one of relu\(\)
// expect 7: two activations in one call
// expect 8: two residuals in one call
// expect 9: two outputs in one call
// expect 10: two workspaces in one call
// expect 11: threads asked for twice
// expect 12: input, weights and output must compute in one scalar
// expect 13: the residual must compute in the layer's scalar
// expect 14: a strided view has no matrix of its own shape to return
// expect 15: both compile-time sizes, or neither
// expect 16: sizes are at least 1
// expect 17: weights of compile-time size lie in the object
// expect 18: bare numbers do not say which size is which
// expect 19: a layer without sizes
// expect 20: takes dense Eigen matrices, the weight and maybe the bias
// expect 21: is called with lanes of numbers
// expect 22: a functor with a signature takes one number and returns another
// expect 23: unknown option
// expect 24: its options are into\(Y\), one of relu\(\)
// expect 25: expected a dense Eigen matrix
// expect 26: the matrix and the output must compute in one scalar
// expect 27: this scalar has no erfc
// expect 28: lanes have no single truth
#include <attn/attn.h>

#include <string>

using attn::Linear;
using Eigen::MatrixXf;

/// A scalar of its own, which knows no erfc.
struct Number {
  float x;
};

void call(const MatrixXf& X, MatrixXf& Y, Linear<float>& linear, const Linear<float>& shared,
          attn::Workspace<float>& ws, const float* p) {
#if CASE == 1
  shared(X, attn::into(Y));
#else
  shared(X, attn::into(Y), attn::use(ws));
#endif
#if CASE == 2
  linear(X, Y, attn::into(Y));
#else
  linear(X, attn::residual(Y), attn::into(Y));
#endif
#if CASE == 3
  linear(X.cast<double>(), attn::into(Y));
#else
  linear(X.cast<Eigen::half>(), attn::into(Y));
#endif
#if CASE == 4
  linear(attn::heads(X, 2), attn::into(Y));
#else
  linear(attn::lbhd(p, 2, 1, 1, 4), attn::into(Y));
#endif
#if CASE == 5
  linear(X, attn::into(Y), attn::gelu);
#else
  linear(X, attn::into(Y), attn::gelu());
#endif
#if CASE == 6
  linear(X, attn::into(Y), attn::causal());
#endif
#if CASE == 7
  linear(X, attn::into(Y), attn::relu(), attn::silu());
#endif
#if CASE == 8
  linear(X, attn::into(Y), attn::residual(), attn::residual(Y));
#else
  linear(X, attn::into(Y), attn::residual());
#endif
#if CASE == 9
  linear(X, attn::into(Y), attn::into(Y));
#endif
#if CASE == 10
  linear(X, attn::into(Y), attn::use(ws), attn::use(ws));
#endif
#if CASE == 11
  linear(X, attn::into(Y), attn::parallel(2), attn::parallel(2));
#else
  linear(X, attn::into(Y), attn::parallel(2));
#endif
  Eigen::MatrixXd Yd;
#if CASE == 12
  linear(X, attn::into(Yd));
#endif
#if CASE == 13
  linear(X, attn::into(Y), attn::residual(X.cast<double>()));
#else
  linear(X, attn::into(Y), attn::residual(X.cast<Eigen::half>()));
#endif
#if CASE == 14
  (void)linear(attn::lbhd(p, 2, 1, 1, 4));
#else
  (void)linear(X);
#endif
#if CASE == 15
  Linear<float, 8>* half_fixed = nullptr;
  (*half_fixed)(X, attn::into(Y));
#endif
#if CASE == 16
  Linear<float, 8, 0> empty(attn::LinearOptions(8, 0));
#else
  Linear<float, 8, 1> narrow;
#endif
#if CASE == 17
  Linear<float, 512, 512> large;
#else
  Linear<float> large(attn::LinearOptions(512, 512));
#endif
#if CASE == 18
  Linear<float> bare(512, 2048);
#endif
#if CASE == 19
  Linear<float> unsized;
#endif
#if CASE == 20
  linear.set(3);
#else
  linear.set(X.cast<double>(), Y.col(0));
#endif
#if CASE == 21
  linear(X, attn::into(Y), attn::activation([](auto x, auto) { return x; }));
#else
  linear(X, attn::into(Y), attn::activation([](auto x) { return max(x, 0); }));
#endif
#if CASE == 22
  linear(X, attn::into(Y), attn::activation([](const std::string& x) { return x; }));
#else
  linear(X, attn::into(Y), attn::activation([](float x) { return 2 * x; }));
#endif
#if CASE == 23
  attn::attention(X, X, X, attn::into(Y), attn::gelu());
#endif
#if CASE == 24
  linear(X, attn::into(Y), [](auto x) { return x; });
#endif
#if CASE == 25
  (void)attn::gelu(3);
#else
  Y = attn::gelu(X);
#endif
#if CASE == 26
  attn::gelu(X, attn::into(Yd));
#else
  attn::gelu(X, attn::into(Y));
#endif
#if CASE == 27
  (void)attn::detail::gelu_lanes<attn::detail::Simd<Number>>(Number{1});
#endif
#if CASE == 28
  linear(X, attn::into(Y), attn::activation([](auto x) { return x > 0 ? x : -x; }));
#else
  linear(X, attn::into(Y), attn::activation([](auto x) { return select(x > 0, x, -x); }));
#endif
  (void)Yd;
}
