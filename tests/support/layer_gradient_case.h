// tests/support/layer_gradient_case.h: a layer and a batch of its inputs, attended and taken back.
// SPDX-License-Identifier: MIT
#pragma once

#include "gradient_case.h"
#include "random_layer.h"
#include "reference_layer_gradient.h"

namespace support {

/// Which matrices a call is given: X, (Xq, Xkv), (Xq, Xk, Xv). One that serves as several gets the
/// sum of the gradients.
enum class Inputs { one, two, three };

/// Weights of unit scale, inputs and output gradients in [−1, 1]. With fewer inputs than three the
/// last one given stands for the others.
template <class Scalar_>
struct LayerCase : BatchCase {
  using Scalar = Scalar_;
  using Matrix = DynamicMatrix<Scalar>;
  attn::MultiHeadAttention<Scalar> mha;
  Matrix Xq, Xk, Xv, dY;

  LayerCase(const attn::MultiHeadOptions& options, BatchCase batch, std::uint32_t seed = 1)
      : BatchCase(std::move(batch)),
        mha(random_layer<Scalar>(options, seed)),
        Xq(uniform<Scalar>(queries.back(), options.d_model(), seed + 20)),
        Xk(uniform<Scalar>(keys.back(), options.key_features(), seed + 21)),
        Xv(uniform<Scalar>(keys.back(), options.value_features(), seed + 22)),
        dY(uniform<Scalar>(queries.back(), options.output_features(), seed + 23)) {
    heads = options.heads();
    kv_heads = options.kv_heads();
  }
  /// Self-attention of one sequence.
  LayerCase(const attn::MultiHeadOptions& options, Index rows, std::uint32_t seed = 1)
      : LayerCase(options, BatchCase{{0, rows}, {0, rows}}, seed) {}

  LayerCall reference() const {
    LayerCall call;
    call.attention.heads = heads;
    call.attention.kv_heads = kv_heads;
    call.attention.query_offsets = queries;
    call.attention.key_offsets = keys;
    return call;
  }
};

/// The gradients of one call, where inputs that are one matrix have one.
struct ExpectedLayerGradient {
  ReferenceLayer weights;
  Reference query, key, value;
  ReferenceGradient attention;
};
template <class Scalar>
ExpectedLayerGradient expected_gradient(const LayerCase<Scalar>& x, Inputs given,
                                        const LayerCall& call, const GradientInputs& inputs = {}) {
  const Reference query = widened(x.Xq), key = given == Inputs::one ? query : widened(x.Xk),
                  value = given == Inputs::three ? widened(x.Xv) : key;
  ReferenceLayerGradient g = reference_layer_gradient(widened_layer(x.mha.weights()), query, key,
                                                      value, widened(x.dY), call, inputs);
  ExpectedLayerGradient sums{g.weights, g.query, g.key, g.value, std::move(g.attention)};
  if (given == Inputs::two) sums.key += g.value;
  if (given == Inputs::one) sums.query += g.key + g.value;
  return sums;
}

/// A forward call, what it left, and the gradients of the backward call after it.
template <class Scalar_>
struct LayerTraining {
  using Scalar = Scalar_;
  using Matrix = DynamicMatrix<Scalar>;
  attn::MultiHeadState<Scalar> state;
  attn::MultiHeadGradients<Scalar> weights;
  Matrix Y, query, key, value;

  explicit LayerTraining(const attn::MultiHeadOptions& options) : weights(options) {}

  template <Inputs given, class Layer, class... Options>
  void forward(Layer& mha, const LayerCase<Scalar>& x, const Options&... options) {
    const auto call = [&](const auto&... inputs) {
      mha(inputs..., attn::into(Y), attn::sequences(x.queries, x.keys), attn::save_state(state),
          options...);
    };
    if constexpr (given == Inputs::one) {
      call(x.Xq);
    } else if constexpr (given == Inputs::two) {
      call(x.Xq, x.Xk);
    } else {
      call(x.Xq, x.Xk, x.Xv);
    }
  }
  /// Every gradient by weights and inputs, and what the options ask for.
  template <Inputs given, class Layer, class... Options>
  void backward(Layer& mha, const LayerCase<Scalar>& x, const Options&... options) {
    const auto batch = attn::sequences(x.queries, x.keys);
    if constexpr (given == Inputs::one) {
      mha.backward(x.Xq, x.dY, state, batch, attn::dweights(weights), attn::dquery(query),
                   options...);
    } else if constexpr (given == Inputs::two) {
      mha.backward(x.Xq, x.Xk, x.dY, state, batch, attn::dweights(weights), attn::dquery(query),
                   attn::dkey(key), options...);
    } else {
      mha.backward(x.Xq, x.Xk, x.Xv, x.dY, state, batch, attn::dweights(weights),
                   attn::dquery(query), attn::dkey(key), attn::dvalue(value), options...);
    }
  }
};

/// Both passes with one call's options, which may be several in attn::options(…); the backward pass
/// with what else it is asked for.
template <Inputs given, class Scalar, class Call, class... Asked>
LayerTraining<Scalar> trained_layer(LayerCase<Scalar>& x, const Call& call, const Asked&... asked) {
  LayerTraining<Scalar> training(x.mha.options());
  training.template forward<given>(x.mha, x, call);
  training.template backward<given>(x.mha, x, call, asked...);
  return training;
}

template <class Scalar>
void expect_gradients(const LayerTraining<Scalar>& actual, const ExpectedLayerGradient& expected,
                      Inputs given) {
  // The bias of the keys shifts all scores of a row alike: but for rotary its gradient is 0, a sum
  // of terms as large as those of the key weight's.
  const long double of_keys = gradient_tolerance<Scalar>(expected.weights.key);
  for_each_weight(
      actual.weights, expected.weights,
      [&](const char* name, const auto& by, const Reference& exact) {
        if (exact.size() + by.size() == 0) return;
        const long double tolerance = gradient_tolerance<Scalar>(exact);
        EXPECT_TRUE(
            near(by, exact,
                 &exact == &expected.weights.key_bias ? std::max(tolerance, of_keys) : tolerance))
            << "by the weights: " << name;
      });
  EXPECT_TRUE(near_gradient<Scalar>(actual.query, expected.query)) << "by the (query) input";
  if (given == Inputs::one) return;
  EXPECT_TRUE(near_gradient<Scalar>(actual.key, expected.key)) << "by the key input";
  if (given == Inputs::two) return;
  EXPECT_TRUE(near_gradient<Scalar>(actual.value, expected.value)) << "by the value input";
}

template <class Weights, class Others>
void expect_same_weights(const Weights& a, const Others& b) {
  for_each_weight(a, b, [](const char* name, const auto& of_a, const auto& of_b) {
    EXPECT_TRUE(same_bits(of_a, of_b)) << "by the weights: " << name;
  });
}
/// Inputs that the call was not given have gradients of size 0.
template <class Scalar>
void expect_same_gradients(const LayerTraining<Scalar>& a, const LayerTraining<Scalar>& b) {
  expect_same_weights(a.weights, b.weights);
  EXPECT_TRUE(same_bits(a.query, b.query)) << "by the (query) input";
  EXPECT_TRUE(same_bits(a.key, b.key)) << "by the key input";
  EXPECT_TRUE(same_bits(a.value, b.value)) << "by the value input";
}

}  // namespace support
