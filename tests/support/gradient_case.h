// tests/support/gradient_case.h: a batch with operands and the gradient of its output, attended and
// taken back.
// SPDX-License-Identifier: MIT
#pragma once

#include <attn/attn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "batch_case.h"
#include "matrix_matchers.h"
#include "random.h"
#include "reference_gradient.h"

namespace support {

/// All numbers are in [−1, 1].
template <class Scalar_>
struct GradientCase : BatchCase {
  using Scalar = Scalar_;
  using Matrix = DynamicMatrix<Scalar>;
  Index key_dim, value_dim;
  Matrix Q, K, V, dY;

  GradientCase(BatchCase batch, Index d_k, Index d_v, std::uint32_t seed = 1)
      : BatchCase(std::move(batch)),
        key_dim(d_k),
        value_dim(d_v),
        Q(uniform<Scalar>(queries.back(), heads * d_k, seed)),
        K(uniform<Scalar>(keys.back(), kv_heads * d_k, seed + 1)),
        V(uniform<Scalar>(keys.back(), kv_heads * d_v, seed + 2)),
        dY(uniform<Scalar>(queries.back(), heads * d_v, seed + 3)) {}
  /// One sequence of one head.
  GradientCase(Index query_rows, Index key_rows, Index d_k, Index d_v, std::uint32_t seed = 1)
      : GradientCase(BatchCase{{0, query_rows}, {0, key_rows}}, d_k, d_v, seed) {}

  ReferenceOptions reference() const {
    ReferenceOptions options;
    options.heads = heads;
    options.kv_heads = kv_heads;
    options.query_offsets = queries;
    options.key_offsets = keys;
    return options;
  }
};

/// A forward call, what it left, and the gradients of the backward call after it.
template <class Scalar>
struct Training {
  using Matrix = DynamicMatrix<Scalar>;
  attn::AttentionState<Scalar> state;
  Matrix Y, query, key, value;

  template <class... Options>
  void forward(const GradientCase<Scalar>& x, const Options&... options) {
    attn::attention(attn::heads(x.Q, x.heads), attn::heads(x.K, x.kv_heads),
                    attn::heads(x.V, x.kv_heads), attn::into(Y), attn::sequences(x.queries, x.keys),
                    attn::save_state(state), options...);
  }
  /// Every gradient by an operand, and what the options ask for.
  template <class... Options>
  void backward(const GradientCase<Scalar>& x, const Options&... options) {
    apart(x, attn::dquery(query), attn::dkey(key), attn::dvalue(value), options...);
  }
  /// Only what the options ask for.
  template <class... Options>
  void apart(const GradientCase<Scalar>& x, const Options&... options) const {
    attn::attention_backward(attn::heads(x.Q, x.heads), attn::heads(x.K, x.kv_heads),
                             attn::heads(x.V, x.kv_heads), x.dY, state,
                             attn::sequences(x.queries, x.keys), options...);
  }
};
template <class Scalar, class... Options>
Training<Scalar> trained(const GradientCase<Scalar>& x, const Options&... options) {
  Training<Scalar> training;
  training.forward(x, options...);
  training.backward(x, options...);
  return training;
}

/// What a gradient in this scalar may err by, for operands in [−1, 1] and the default scale.
template <class Scalar>
long double gradient_tolerance(const Reference& expected) {
  const long double unit = std::is_same_v<Scalar, float> ? 1e-6L : 1e-14L;
  return unit * (1 + (expected.size() > 0 ? expected.cwiseAbs().maxCoeff() : 0));
}
template <class Scalar, class Actual>
::testing::AssertionResult near_gradient(const Eigen::DenseBase<Actual>& actual,
                                         const Reference& expected) {
  return near(actual, expected, gradient_tolerance<Scalar>(expected));
}

template <class Scalar>
void expect_gradients(const Training<Scalar>& actual, const ReferenceGradient& expected) {
  EXPECT_TRUE(near_gradient<Scalar>(actual.query, expected.query)) << "of the queries";
  EXPECT_TRUE(near_gradient<Scalar>(actual.key, expected.key)) << "of the keys";
  EXPECT_TRUE(near_gradient<Scalar>(actual.value, expected.value)) << "of the values";
}
template <class Scalar>
void expect_same_gradients(const Training<Scalar>& a, const Training<Scalar>& b) {
  EXPECT_TRUE(same_bits(a.query, b.query)) << "of the queries";
  EXPECT_TRUE(same_bits(a.key, b.key)) << "of the keys";
  EXPECT_TRUE(same_bits(a.value, b.value)) << "of the values";
}

}  // namespace support
