// tests/support/reference_layer_gradient.h: the oracle of the backward passes of layers, the linear
// one and that of multi-head attention: plain loops in long double around that of attention.
// SPDX-License-Identifier: MIT
//
//   Y = X·W + b             ∂X = ∂Y·Wᵀ,  ∂W = Xᵀ·∂Y,  ∂b = Σ of the rows of ∂Y
//   Y = act(X·W + b) + R    the same from ∂Y ∘ act'(X·W + b);  ∂R = ∂Y
//   MHA                     each projection so, and between them the gradient of attention, its
//                           queries and keys turned back
//
// The gradient by each of the three inputs is that of the input alone: where one matrix serves as
// several, or as residual, its gradient is the sum, which is the caller's to take.
// This file shares nothing with the library.
#pragma once

#include "reference_gradient.h"
#include "reference_multi_head.h"

namespace support {

struct ReferenceProjectionGradient {
  Reference input, weight, bias;  ///< the bias of size 0 where there is none
};
/// Of y = project(x, w, b), by its gradient.
inline ReferenceProjectionGradient project_back(const Reference& x, const Reference& w,
                                                const Reference& b, const Reference& output) {
  ReferenceProjectionGradient g{Reference::Zero(x.rows(), x.cols()),
                                Reference::Zero(w.rows(), w.cols()),
                                Reference::Zero(b.rows(), b.cols())};
  for (Index i = 0; i < x.rows(); ++i) {
    for (Index n = 0; n < w.cols(); ++n) {
      for (Index c = 0; c < w.rows(); ++c) {
        g.input(i, c) += output(i, n) * w(c, n);
        g.weight(c, n) += x(i, c) * output(i, n);
      }
      if (b.cols() > 0) g.bias(0, n) += output(i, n);
    }
  }
  return g;
}

/// Of act(X·W + b), by its gradient; slope(z) is act'(z).
template <class Slope>
ReferenceProjectionGradient reference_linear_gradient(const Reference& x, const Reference& w,
                                                      const Reference& b, const Reference& output,
                                                      const Slope& slope) {
  Reference before = project(x, w, b);
  for (Index i = 0; i < before.rows(); ++i) {
    for (Index n = 0; n < before.cols(); ++n) before(i, n) = output(i, n) * slope(before(i, n));
  }
  return project_back(x, w, b, before);
}

// The slopes of the activations in random_linear.h.
inline long double unchanged_slope(long double) { return 1; }
inline long double relu_slope(long double x) { return x > 0 ? 1.0L : 0.0L; }
/// Φ(x) + x·φ(x).
inline long double gelu_slope(long double x) {
  return std::erfc(-x * 0.707106781186547524400844362104849039L) / 2 +
         x * 0.398942280401432677939946059934381868L * std::exp(-x * x / 2);
}
inline long double gelu_tanh_slope(long double x) {
  constexpr long double kFactor = 0.797884560802865355879892119868763737L;
  const long double t = std::tanh(kFactor * (x + 0.044715L * x * x * x));
  return (1 + t) / 2 + x / 2 * (1 - t * t) * kFactor * (1 + 3 * 0.044715L * x * x);
}
inline long double silu_slope(long double x) {
  const long double sigmoid = 1 / (1 + std::exp(-x));
  return sigmoid * (1 + x * (1 - sigmoid));
}

struct ReferenceLayerGradient {
  ReferenceLayer weights;       ///< by the weights, each in its shape
  Reference query, key, value;  ///< by the inputs
  ReferenceGradient attention;  ///< by what enters the attention between the projections
};

inline ReferenceLayerGradient reference_layer_gradient(
    const ReferenceLayer& w, const Reference& query, const Reference& key, const Reference& value,
    const Reference& output, const LayerCall& call, const GradientInputs& inputs = {}) {
  const ReferenceHeads heads = reference_heads(w, query, key, value, call);
  const auto of_output = project_back(heads.mixed.output, w.output, w.output_bias, output);
  ReferenceGradient between = reference_gradient(heads.query, heads.key, heads.value,
                                                 of_output.input, call.attention, inputs);
  if (call.rotary) {
    const ReferenceOptions& attention = call.attention;
    between.query = turned_back(between.query, attention.heads, call.query_positions, *call.rotary);
    between.key = turned_back(between.key, attention.kv_heads, call.key_positions, *call.rotary);
  }
  const auto of_query = project_back(query, w.query, w.query_bias, between.query),
             of_key = project_back(key, w.key, w.key_bias, between.key),
             of_value = project_back(value, w.value, w.value_bias, between.value);
  return {{of_query.weight, of_key.weight, of_value.weight, of_output.weight, of_query.bias,
           of_key.bias, of_value.bias, of_output.bias},
          of_query.input,
          of_key.input,
          of_value.input,
          std::move(between)};
}

/// Calls f(name, weight, gradient) with each weight and bias of two layers' weights, also those of
/// size 0.
template <class Weights, class Gradients, class F>
void for_each_weight(Weights& w, Gradients& g, const F& f) {
  f("query", w.query, g.query);
  f("key", w.key, g.key);
  f("value", w.value, g.value);
  f("output", w.output, g.output);
  f("query_bias", w.query_bias, g.query_bias);
  f("key_bias", w.key_bias, g.key_bias);
  f("value_bias", w.value_bias, g.value_bias);
  f("output_bias", w.output_bias, g.output_bias);
}

}  // namespace support
