// tests/linear_gradient_malloc_test.cpp: training a linear layer allocates nothing from its second step on, with fixed sizes nothing at all.
// SPDX-License-Identifier: MIT
// build: -Og
#include "support/allocations.h"

#include <attn/linear_gradient.h>

#include <memory>

#include "support/matrix_matchers.h"
#include "support/random_linear.h"

namespace {

using attn::Linear;
using attn::LinearGradients;
using attn::LinearOptions;
using attn::LinearState;
using support::allocations_in;
using support::uniform;

template <class Layer, class Gradients>
void descend(Layer& linear, const Gradients& g) {
  linear.edit([&](auto& w) {
    attn::for_each_parameter(w, g, [](const char*, auto& p, const auto& dp) { p -= 0.001f * dp; });
  });
}

TEST(LinearTraining, AllocatesNothingFromTheSecondStepOn) {
  const auto X = uniform<float>(203, 37, 4), dY = uniform<float>(203, 45, 5);
  auto linear = support::random_linear<float>(LinearOptions(37, 45).bias());
  LinearGradients<float> g(linear.options());
  LinearState<float> state;
  Eigen::MatrixXf Y, dX;
  const auto step = [&] {
    linear(X, attn::gelu(), attn::into(Y), attn::save_state(state));
    linear.backward(X, dY, state, attn::gelu(), attn::dweights(g), attn::dinput(dX));
    descend(linear, g);
  };
  step();
  EXPECT_EQ(allocations_in(step), 0);
  EXPECT_EQ(allocations_in([&] {
              linear.backward(X, dY, state, attn::gelu(), attn::accumulate(), attn::dweights(g));
            }),
            0);
}

TEST(LinearTraining, AConstLayerTakesItsScratchFromTheWorkspace) {
  const auto X = uniform<Eigen::half>(103, 37, 4), dY = uniform<Eigen::half>(103, 45, 5);
  const auto linear = support::random_linear<Eigen::half>(LinearOptions(37, 45).bias());
  attn::Workspace<float> workspace;
  LinearGradients<Eigen::half> g(linear.options());
  Eigen::MatrixXf dX;
  const auto call = [&] {
    linear.backward(X, dY, attn::use(workspace), attn::dweights(g), attn::dinput(dX));
  };
  call();
  EXPECT_EQ(allocations_in(call), 0);
}

TEST(LinearTraining, AllocatesNothingWithFixedSizes) {
  const Eigen::Matrix<float, 9, 12> X = uniform<float>(9, 12, 4);
  const Eigen::Matrix<float, 9, 20> dY = uniform<float>(9, 20, 5);
  Eigen::Matrix<float, 9, 12> dX;
  Linear<float, 12, 20> linear(LinearOptions(12, 20).bias());
  LinearGradients<float, 12, 20> g(linear.options());
  EXPECT_EQ(allocations_in([&] {
              linear.backward(X, dY, attn::dweights(g), attn::dinput(dX));
              descend(linear, g);
            }),
            0);
}

// What edit() shows after set() is what was set.
TEST(LinearTraining, WeightsThatAreSetReplaceThoseThatAreKept) {
  auto linear = support::random_linear<float>(LinearOptions(5, 7));
  const auto X = uniform<float>(3, 5, 4), dY = uniform<float>(3, 7, 5);
  LinearGradients<float> g(linear.options());
  linear.backward(X, dY, attn::dweights(g));
  descend(linear, g);
  const Eigen::MatrixXf W = uniform<float>(5, 7, 6);
  linear.set(W);
  linear.edit([&](auto& w) { EXPECT_TRUE(support::same_bits(w.kernel(), W)); });
  EXPECT_TRUE(support::same_bits(linear.weights().kernel(), W));
}

}  // namespace
