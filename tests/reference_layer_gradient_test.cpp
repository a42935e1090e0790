// tests/reference_layer_gradient_test.cpp: the oracle of the layers' backward passes is the slope
// of that of their forward passes, by every weight, bias and input.
// SPDX-License-Identifier: MIT
// build: -Og
#include <gtest/gtest.h>

#include <vector>

#include "support/matrix_matchers.h"
#include "support/random_linear.h"
#include "support/reference_layer_gradient.h"

namespace {

using support::counted;
using support::Index;
using support::LayerCall;
using support::Reference;
using support::ReferenceLayer;
using support::ReferenceLayerGradient;

Reference random(Index rows, Index cols, std::uint32_t seed, double range = 1) {
  return support::uniform<long double>(rows, cols, seed, range);
}

constexpr long double kTolerance = 1e-10L;

/// Each number of `of` against the central difference of the loss.
template <class Loss>
void expect_slopes(const Loss& loss, Reference& of, const Reference& gradient, const char* name) {
  constexpr long double kStep = 0x1p-21L;
  ASSERT_EQ(of.rows(), gradient.rows()) << name;
  ASSERT_EQ(of.cols(), gradient.cols()) << name;
  for (Index n = 0; n < of.size(); ++n) {
    long double& number = of.data()[n];
    const long double center = number;
    number = center + kStep;
    const long double above = loss();
    number = center - kStep;
    const long double below = loss();
    number = center;
    EXPECT_NEAR(double((above - below) / (2 * kStep) - gradient.data()[n]), 0, double(kTolerance))
        << "by number " << n << " of " << name;
  }
}

// ---- Multi-head attention -------------------------------------------------------------------

/// A layer of grouped heads, inputs of three widths, a ragged batch; the loss is Σ output ∘ Y.
struct Problem {
  Index heads = 4, kv_heads = 2, d_k = 4, d_v = 3;
  ReferenceLayer w{random(5, 16, 1),      random(3, 8, 2, 0.5),  random(6, 6, 3, 0.5),
                   random(12, 7, 4, 0.5), random(1, 16, 5, 0.5), random(1, 8, 6, 0.5),
                   random(1, 6, 7, 0.5),  random(1, 7, 8, 0.5)};
  Reference Xq = random(5, 5, 11), Xk = random(7, 3, 12), Xv = random(7, 6, 13);
  Reference output = random(5, 7, 14), bias;
  LayerCall call;

  Problem() {
    call.attention.heads = heads;
    call.attention.kv_heads = kv_heads;
    call.attention.query_offsets = {0, 3, 3, 5};
    call.attention.key_offsets = {0, 4, 7, 7};
  }
  long double loss() const {
    return support::reference_multi_head(w, Xq, Xk, Xv, call).output.cwiseProduct(output).sum();
  }
  ReferenceLayerGradient gradient() const {
    return support::reference_layer_gradient(w, Xq, Xk, Xv, output, call);
  }
};

void expect_gradients(Problem& x) {
  const ReferenceLayerGradient g = x.gradient();
  const auto loss = [&] { return x.loss(); };
  support::for_each_weight(x.w, g.weights, [&](const char* name, auto& weight, const auto& by) {
    expect_slopes(loss, weight, by, name);
  });
  expect_slopes(loss, x.Xq, g.query, "Xq");
  expect_slopes(loss, x.Xk, g.key, "Xk");
  expect_slopes(loss, x.Xv, g.value, "Xv");
  if (x.call.residual) expect_slopes(loss, *x.call.residual, x.output, "residual");
  if (x.bias.size() > 0)
    expect_slopes(loss, x.bias,
                  support::bias_gradient(g.attention.added, x.call.attention, 1, 4, 4), "bias");
}

TEST(ReferenceLayerGradient, IsTheSlopeByWeightsBiasesAndInputs) {
  Problem x;
  expect_gradients(x);
  x.call.residual = random(5, 7, 21);
  expect_gradients(x);
}
TEST(ReferenceLayerGradient, IsTheSlopeOfALayerWithoutBiases) {
  Problem x;
  for (Reference* b : {&x.w.query_bias, &x.w.key_bias, &x.w.value_bias, &x.w.output_bias})
    b->resize(0, 0);
  expect_gradients(x);
}
TEST(ReferenceLayerGradient, IsTheSlopeOfTurnedHeads) {
  Problem x;
  x.call.query_positions = {4, 5, 6, 2, 3};
  x.call.key_positions = {0, 1, 2, 3, 0, 1, 2};
  for (const support::ReferenceRotary& rotary :
       {support::ReferenceRotary{false, 100, 0}, {true, 100, 0}, {false, 100, 2}, {true, 100, 2}}) {
    x.call.rotary = rotary;
    expect_gradients(x);
  }
}
TEST(ReferenceLayerGradient, IsTheSlopeOfWhatAttentionIsAskedFor) {
  Problem x;
  x.bias = random(1, 16, 31);
  auto& attention = x.call.attention;
  attention.bias = [&x](Index, Index h, Index, Index j) { return x.bias(0, h * 4 + j); };
  attention.visible = [](Index, Index h, Index i, Index j) { return j <= i || h == 1; };
  attention.scale = 0.9L;
  attention.softcap = 1.3L;
  expect_gradients(x);
  attention.keeps = [](Index b, Index h, Index i, Index j) { return (b + h + i + 2 * j) % 5 != 0; };
  attention.dropped = 0.25L;
  x.call.rotary = support::ReferenceRotary{true, 100, 2};
  x.call.query_positions = {4, 5, 6, 2, 3};
  x.call.key_positions = counted(7);
  expect_gradients(x);
}
// What serves as several inputs, or as residual too, gets the sum.
TEST(ReferenceLayerGradient, OfWhatServesTwiceIsTheSum) {
  Problem x;
  x.w.key = random(5, 8, 2), x.w.value = random(5, 6, 3);
  x.w.output = random(12, 5, 4), x.w.output_bias = random(1, 5, 8);
  x.output = random(5, 5, 14);
  x.call.attention.key_offsets = {};
  const auto loss = [&] {
    x.Xk = x.Xv = x.Xq;
    x.call.residual = x.Xq;
    return x.loss();
  };
  loss();
  const ReferenceLayerGradient g = x.gradient();
  expect_slopes(loss, x.Xq, g.query + g.key + g.value + x.output, "X");
}

// ---- Linear ---------------------------------------------------------------------------------

using Function = long double (*)(long double);
void expect_linear_gradients(Function act, Function slope, Index biases) {
  Reference X = random(6, 5, 1, 2), W = random(5, 7, 2), b = random(biases, biases * 7, 3),
            R = random(6, 7, 4);
  const Reference output = random(6, 7, 5);
  const auto loss = [&] {
    return (support::project(X, W, b).unaryExpr(act) + R).cwiseProduct(output).sum();
  };
  const auto g = support::reference_linear_gradient(X, W, b, output, slope);
  expect_slopes(loss, X, g.input, "X");
  expect_slopes(loss, W, g.weight, "W");
  expect_slopes(loss, b, g.bias, "b");
  expect_slopes(loss, R, output, "R");
}
TEST(ReferenceLinearGradient, IsTheSlopeThroughEveryActivation) {
  for (const Index biases : {0, 1}) {
    expect_linear_gradients(support::unchanged, support::unchanged_slope, biases);
    expect_linear_gradients(support::relu_of, support::relu_slope, biases);
    expect_linear_gradients(support::gelu_of, support::gelu_slope, biases);
    expect_linear_gradients(support::gelu_tanh_of, support::gelu_tanh_slope, biases);
    expect_linear_gradients(support::silu_of, support::silu_slope, biases);
  }
}

}  // namespace
