// tests/linear_gradient_bits_test.cpp: the gradients of a linear layer have the same bits for any threads, batch, storage order and sizes
// known to the compiler; dW is the sum of its runs of 96 rows.
// SPDX-License-Identifier: MIT
#include <attn/linear_gradient.h>
#include <gtest/gtest.h>

#include <unsupported/Eigen/CXX11/ThreadPool>

#include "support/matrix_matchers.h"
#include "support/random_linear.h"
#include "support/threads.h"

namespace {

using attn::Linear;
using attn::LinearGradients;
using attn::LinearOptions;
using attn::LinearState;
using Eigen::Index;
using support::random_linear;
using support::same_bits;
using support::uniform;
using Matrix = support::DynamicMatrix<float>;

class LinearGradientBits : public ::testing::Test {
 protected:
  static constexpr Index kRows = 301, kIn = 90, kOut = 210;

  LinearGradientBits() {
    (void)linear(X, attn::gelu(), attn::save_state(state));
    linear.backward(X, dY, state, attn::gelu(), attn::dweights(g), attn::dinput(dX));
  }
  template <class... Options>
  void expect_same(const Options&... options) {
    LinearGradients<float> weights(linear.options());
    Matrix input;
    LinearState<float> of_call;
    (void)linear(X, attn::gelu(), attn::save_state(of_call), options...);
    linear.backward(X, dY, of_call, attn::gelu(), attn::dweights(weights), attn::dinput(input),
                    options...);
    EXPECT_TRUE(same_bits(weights.kernel(), g.kernel()));
    EXPECT_TRUE(same_bits(weights.bias(), g.bias()));
    EXPECT_TRUE(same_bits(input, dX));
  }

  Linear<float> linear = random_linear<float>(LinearOptions(kIn, kOut).bias());
  Matrix X = uniform<float>(kRows, kIn, 4), dY = uniform<float>(kRows, kOut, 5);
  LinearState<float> state;
  LinearGradients<float> g{linear.options()};
  Matrix dX;
};

TEST_F(LinearGradientBits, ThreadsChangeNone) {
  support::Threads pool;
  for (const int threads : {1, 2, 3, 8}) {
    SCOPED_TRACE(threads);
    expect_same(attn::parallel(threads));
    expect_same(attn::on(pool, threads));
  }
  Eigen::ThreadPool eigen_pool(3);
  expect_same(attn::on(eigen_pool));
  attn::Workspace<float> workspace;
  expect_same(attn::use(workspace), attn::on(pool, 2));
}

TEST_F(LinearGradientBits, ARowOfTheInputsGradientIsTheSameInEveryBatch) {
  for (const Index rows : {1, 2, 11, 12, 13, 97}) {
    for (const Index first : {Index(0), Index(5), kRows - rows}) {
      LinearState<float> of_some;
      Matrix input;
      (void)linear(X.middleRows(first, rows), attn::gelu(), attn::save_state(of_some));
      linear.backward(X.middleRows(first, rows), dY.middleRows(first, rows), of_some, attn::gelu(),
                      attn::dinput(input));
      EXPECT_TRUE(same_bits(input, dX.middleRows(first, rows))) << rows << " rows from " << first;
    }
  }
}

// Runs of 96 rows, one after the other, each a chain from +0.
TEST_F(LinearGradientBits, WeightsAreSumsOverRunsOfRows) {
  const Index run = attn::kernel::TileSize<float>::gradient_rows;
  ASSERT_EQ(run, 96);
  LinearGradients<float> sum(linear.options());
  for (Index first = 0; first < kRows; first += run) {
    const Index rows = std::min(run, kRows - first);
    LinearState<float> of_run;
    (void)linear(X.middleRows(first, rows), attn::gelu(), attn::save_state(of_run));
    LinearGradients<float> part(linear.options());
    linear.backward(X.middleRows(first, rows), dY.middleRows(first, rows), of_run, attn::gelu(),
                    attn::dweights(part));
    sum.kernel() += part.kernel();
    sum.bias() += part.bias();
  }
  EXPECT_TRUE(same_bits(sum.kernel(), g.kernel()));
  EXPECT_TRUE(same_bits(sum.bias(), g.bias()));
}

TEST_F(LinearGradientBits, StorageOrdersChangeNone) {
  const Eigen::MatrixXf x = X, dy = dY;
  Eigen::MatrixXf input;
  LinearGradients<float> weights(linear.options());
  for (const int threads : {1, 3}) {
    linear.backward(x, dy, state, attn::gelu(), attn::dweights(weights), attn::dinput(input),
                    attn::parallel(threads));
    EXPECT_TRUE(same_bits(Matrix(input), dX));
    EXPECT_TRUE(same_bits(weights.kernel(), g.kernel()));
    EXPECT_TRUE(same_bits(weights.bias(), g.bias()));
  }
}

TEST(LinearGradientFixedBits, SizesKnownToTheCompilerChangeNone) {
  const LinearOptions sizes = LinearOptions(24, 40).bias();
  Linear<float, 24, 40> fixed(sizes);
  auto linear = random_linear<float>(sizes);
  fixed.set(linear.weights().kernel(), linear.weights().bias());
  const Eigen::Matrix<float, 7, 24> X = uniform<float>(7, 24, 1);
  const Eigen::Matrix<float, 7, 40> dY = uniform<float>(7, 40, 2);
  LinearState<float> state;
  LinearGradients<float, 24, 40> g(sizes);
  LinearGradients<float> expected(sizes);
  Eigen::Matrix<float, 7, 24> dX;
  Matrix input;
  (void)fixed(X, attn::silu(), attn::save_state(state));
  fixed.backward(X, dY, state, attn::silu(), attn::dweights(g), attn::dinput(dX));
  (void)linear(Matrix(X), attn::silu(), attn::save_state(state));
  linear.backward(Matrix(X), Matrix(dY), state, attn::silu(), attn::dweights(expected),
                  attn::dinput(input));
  EXPECT_TRUE(same_bits(Matrix(g.kernel()), Matrix(expected.kernel())));
  EXPECT_TRUE(same_bits(Matrix(g.bias()), Matrix(expected.bias())));
  EXPECT_TRUE(same_bits(Matrix(dX), input));
}

}  // namespace
