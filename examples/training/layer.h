// examples/training/layer.h: attn's layers beside what their training needs, and their first
// weights.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>

#include "random.h"
#include "types.h"

namespace training {

/// What a block is told of threads: how many there may be, or one of attn's options, as on(pool, n).
inline auto on_threads(int workers) { return attn::parallel(workers); }
template <class Option>
const Option& on_threads(const Option& option) {
  return option;
}

/// One of attn's layers, the gradients of its weights, and the state between its two passes.
template <class Layer_, class Gradients, class State>
struct Trained {
  Layer_ layer;
  Gradients gradients;
  State state;

  template <class Options>
  explicit Trained(const Options& options) : layer(options), gradients(options) {}

  /// f(name, weight, gradient) for each; what f writes is packed anew.
  template <class F>
  void for_each_parameter(const F& f) {
    layer.edit([&](auto& weights) { attn::for_each_parameter(weights, gradients, f); });
  }
  /// f(gradient) for each.
  template <class F>
  void for_each_gradient(const F& f) const {
    attn::for_each_parameter(gradients, [&](const char*, const auto& gradient) { f(gradient); });
  }
};

template <class Scalar>
using Attention = Trained<attn::MultiHeadAttention<Scalar>, attn::MultiHeadGradients<Scalar>,
                          attn::MultiHeadState<Scalar>>;
template <class Scalar>
using Linear =
    Trained<attn::Linear<Scalar>, attn::LinearGradients<Scalar>, attn::LinearState<Scalar>>;

/// Glorot & Bengio 2010: U(−a, a), a = √(6 / (in + out)).
template <class Weight>
void glorot_uniform(Weight& weight, Engine& engine) {
  const double a = std::sqrt(6.0 / double(weight.rows() + weight.cols()));
  for (Index i = 0; i < weight.rows(); ++i) {
    for (Index c = 0; c < weight.cols(); ++c)
      weight(i, c) = typename Weight::Scalar(a * (2 * uniform(engine) - 1));
  }
}

/// Multi-head attention with biases.
template <class Scalar>
Attention<Scalar> make_attention(Index width, Index heads, Engine& engine) {
  Attention<Scalar> attention(attn::MultiHeadOptions(width, heads).biases());
  attention.layer.edit([&](auto& weights) { attn::glorot_uniform(weights, engine); });
  return attention;
}
/// A linear layer with a bias.
template <class Scalar>
Linear<Scalar> make_linear(Index in, Index out, Engine& engine) {
  Linear<Scalar> linear(attn::LinearOptions(in, out).bias());
  linear.layer.edit([&](auto& weights) { glorot_uniform(weights.kernel(), engine); });
  return linear;
}

}  // namespace training
