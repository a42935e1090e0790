// SPDX-License-Identifier: MIT
// The weights of a layer as an optimiser asks for them (parameters.h).
//
// expect 1: expected the weights of a layer or their gradients, .* written by edit
// expect 2: the weights of two kinds of layers have no parameters in common
// expect 3: a functor is missing
// expect 4: expected a vector, not a matrix
// expect 5: the weights are const: those of a layer are written by edit
// expect 6: dweights: the gradients are const
// expect 7: dweights: the gradients are a temporary
// expect 8: dweights: expected the gradients of a layer's weights: write
// expect 9: the output is a temporary matrix: its result would be lost
// expect 10: a gradient among the options of a forward call
#include <attn/attn.h>

using attn::LinearOptions;
using Eigen::MatrixXf;
using Eigen::VectorXf;

void walk(attn::Linear<float>& linear, attn::LinearWeights<float>& w,
          const attn::LinearGradients<float>& g, attn::MultiHeadGradients<float>& of_layer) {
  const auto nothing = [](const char*, const auto&...) {};
#if CASE == 1
  attn::for_each_parameter(linear, nothing);
#else
  attn::for_each_parameter(linear.weights(), nothing);
#endif
#if CASE == 2
  attn::for_each_parameter(w, of_layer, nothing);
#else
  attn::for_each_parameter(w, g, nothing);
#endif
#if CASE == 3
  attn::for_each_parameter(w);
#else
  attn::for_each_parameter(w, nothing);
#endif
  VectorXf x;
  MatrixXf m;
#if CASE == 4
  attn::flatten(w, m);
#else
  attn::flatten(w, x);
#endif
#if CASE == 5
  attn::unflatten(x, linear.weights());
#else
  linear.edit([&](auto& weights) { attn::unflatten(x, weights); });
#endif
#if CASE == 6
  (void)attn::dweights(g);
#else
  (void)attn::dweights(w);
#endif
#if CASE == 7
  (void)attn::dweights(attn::LinearGradients<float>(LinearOptions(3, 4)));
#else
  (void)attn::dweights(of_layer);
#endif
#if CASE == 8
  (void)attn::dweights(m);
#endif
#if CASE == 9
  attn::flatten(w, VectorXf(16));
#else
  attn::flatten(w, x.head(16));
#endif
#if CASE == 10
  m = attn::attention(m, m, m, attn::dweights(w));
#endif
}
