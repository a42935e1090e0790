// tests/linear_gradient_errors_test.cpp: what a linear layer's backward pass refuses, in words and before anything is written; what throws.
// build: -Og
// SPDX-License-Identifier: MIT
#include <attn/layout.h>
#include <attn/linear_gradient.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "support/error_of.h"
#include "support/matrix_matchers.h"
#include "support/random_linear.h"

namespace {

using attn::Linear;
using attn::LinearGradients;
using attn::LinearOptions;
using attn::LinearState;
using Eigen::Index;
using Eigen::MatrixXf;
using support::error_of;
using support::numbers;
using support::random_linear;
using support::same_bits;

class LinearBackward : public ::testing::Test {
 protected:
  LinearBackward() {
    (void)linear(X, attn::gelu(), attn::save_state(state));
    g.kernel().setConstant(3);
  }
  /// The message of a call that leaves dX and g as they are.
  template <class... Arguments>
  std::string refusal(const MatrixXf& x, const Arguments&... arguments) {
    const MatrixXf before = dX;
    const std::string error =
        error_of([&] { linear.backward(x, arguments..., attn::dweights(g), attn::dinput(dX)); });
    EXPECT_TRUE(same_bits(dX, before));
    EXPECT_TRUE((g.kernel().array() == 3).all());
    return error;
  }

  Linear<float> linear = random_linear<float>(LinearOptions(3, 4).bias());
  MatrixXf X = numbers(5, 3), dY = numbers(5, 4), dX = numbers(2, 2);
  LinearState<float> state;
  LinearGradients<float> g{linear.options()};
};

TEST_F(LinearBackward, RefusesWhatDoesNotFit) {
  EXPECT_EQ(refusal(numbers(5, 4), dY),
            "attn::Linear::backward: the input has 4 features, the layer takes 3");
  EXPECT_EQ(refusal(X, numbers(4, 4)),
            "attn::Linear::backward: output gradient is 4x4 in 1 head, needs 5x4 (query rows x "
            "output features) in 1 head");
  EXPECT_EQ(refusal(X, numbers(5, 3)),
            "attn::Linear::backward: output gradient is 5x3 in 1 head, needs 5x4 (query rows x "
            "output features) in 1 head");
  EXPECT_EQ(refusal(X, dY, attn::residual()),
            "attn::Linear::backward: residual() adds the input, 3 features, to the output, 4; "
            "widths must agree, or name another: residual(X)");
  EXPECT_EQ(refusal(X, dY, attn::residual(X)),
            "attn::Linear::backward: residual is 5x3 in 1 head, needs 5x4 (query rows x output "
            "features) in 1 head");
  EXPECT_EQ(refusal(X, dY, attn::parallel(0)),
            "attn::Linear::backward: 0 threads asked for, needs at least 1");
  EXPECT_EQ(
      error_of([&] { linear.backward(attn::bhld(X.data(), 1, 3, 5, 1), dY, attn::dweights(g)); }),
      "attn::Linear::backward: the input has 3 heads, needs 1");
}

TEST_F(LinearBackward, RefusesOutputsThatDoNotFit) {
  Eigen::Matrix<float, 4, 3> fixed;
  EXPECT_EQ(error_of([&] { linear.backward(X, dY, attn::dinput(fixed)); }),
            "attn::Linear::backward: dinput is 4x3, needs 5x3");
  EXPECT_EQ(refusal(X, dY, attn::accumulate()),
            "attn::Linear::backward: dinput is 2x2, needs 5x3: accumulate() adds to what it holds");
  LinearGradients<float> other(LinearOptions(3, 5).bias()), without(LinearOptions(3, 4));
  EXPECT_EQ(error_of([&] { linear.backward(X, dY, attn::dweights(other)); }),
            "attn::Linear::backward: dweights: the gradient of the weight is 3x5, needs 3x4: make "
            "it from the layer's options()");
  EXPECT_EQ(error_of([&] { linear.backward(X, dY, attn::dweights(without)); }),
            "attn::Linear::backward: dweights: the gradient of the bias is 1x0, needs 1x4: make it "
            "from the layer's options()");
}

TEST_F(LinearBackward, RefusesTheStateOfAnotherCall) {
  const LinearState<float> empty;
  EXPECT_EQ(refusal(X, dY, empty, attn::gelu()),
            "attn::Linear::backward: the state is empty: give save_state(state) to the forward "
            "call");
  EXPECT_EQ(refusal(numbers(6, 3), numbers(6, 4), state, attn::gelu()),
            "attn::Linear::backward: the state is of 5 rows, this call has 6");
  EXPECT_EQ(refusal(X, dY, state, attn::silu()),
            "attn::Linear::backward: the forward pass had gelu(), this call silu()");
  EXPECT_EQ(refusal(X, dY, state),
            "attn::Linear::backward: the forward pass had gelu(), this call none");
  LinearState<float> plain, own;
  (void)linear(X, attn::save_state(plain));
  EXPECT_EQ(refusal(X, dY, plain, attn::activation([](auto x) { return x; })),
            "attn::Linear::backward: the forward pass had no activation, this call activation()");
  auto wider = random_linear<float>(LinearOptions(3, 5)), deeper = random_linear<float>({2, 4});
  (void)wider(X, attn::gelu(), attn::save_state(own));
  EXPECT_EQ(refusal(X, dY, own, attn::gelu()),
            "attn::Linear::backward: the state is of 5 output features, this call has 4");
  (void)deeper(numbers(5, 2), attn::gelu(), attn::save_state(own));
  EXPECT_EQ(refusal(X, dY, own, attn::gelu()),
            "attn::Linear::backward: the state is of 2 input features, this call has 3");
}

TEST_F(LinearBackward, RefusesAnOutputThatOverlapsWhatIsReadOrAnother) {
  MatrixXf memory = numbers(5, 9);
  const MatrixXf before = memory;
  EXPECT_EQ(error_of([&] {
              linear.backward(memory.leftCols(3), dY, attn::dinput(memory.middleCols(2, 3)));
            }),
            "attn::Linear::backward: dinput overlaps the input; write to memory of its own");
  EXPECT_EQ(error_of([&] {
              linear.backward(X, memory.leftCols(4), attn::dinput(memory.middleCols(3, 3)));
            }),
            "attn::Linear::backward: dinput overlaps output gradient; write to memory of its own");
  EXPECT_TRUE(same_bits(memory, before));
  EXPECT_EQ(error_of([&] { linear.backward(X, dY, attn::dinput(X)); }),
            "attn::Linear::backward: dinput overlaps the input; write to memory of its own");
  Eigen::Map<MatrixXf> in_weights(g.kernel().data(), 4, 3);
  EXPECT_EQ(error_of([&] {
              linear.backward(X.topRows(4), dY.topRows(4), attn::dweights(g),
                              attn::dinput(in_weights));
            }),
            "attn::Linear::backward: dweights overlaps dinput; write to memory of its own");
  auto narrow = random_linear<float>(LinearOptions(1, 4).bias());
  LinearGradients<float> of_narrow(narrow.options());
  EXPECT_EQ(error_of([&] {
              Eigen::Map<MatrixXf> bias(of_narrow.bias().data(), 4, 1);
              narrow.backward(bias, dY.topRows(4), attn::dweights(of_narrow));
            }),
            "attn::Linear::backward: dweights overlaps the input; write to memory of its own");
}

TEST_F(LinearBackward, RefusesALayerThatWasMovedFrom) {
  const Linear<float> moved = std::move(linear);
  EXPECT_EQ(refusal(X, dY),
            "attn::Linear::backward: the layer holds nothing (it was moved from): assign another "
            "to it");
}

struct Refused : std::runtime_error {
  Refused() : std::runtime_error("thrown on purpose") {}
};

TEST_F(LinearBackward, ACallThatIsRefusedLeavesTheStateAndOneThatThrowsEmptiesIt) {
  MatrixXf expected;
  linear.backward(X, dY, state, attn::gelu(), attn::dinput(expected));
  Eigen::Matrix<float, 5, 5> fixed;
  EXPECT_NE(error_of([&] {
              linear(numbers(6, 3), attn::into(fixed), attn::gelu(), attn::save_state(state));
            }),
            "nothing was refused");
  linear.backward(X, dY, state, attn::gelu(), attn::dinput(dX));
  EXPECT_TRUE(same_bits(dX, expected));

  const auto throws = attn::activation([](float) -> float { throw Refused(); });
  EXPECT_THROW((void)linear(X, throws, attn::save_state(state)), Refused);
  EXPECT_TRUE(state.empty());
  (void)linear(X, attn::gelu(), attn::save_state(state));
  EXPECT_FALSE(state.empty());
}

/// Throws behind its first task.
struct ThrowingPool {
  template <class F>
  void parallel_for(int, const F& f) {
    f(0);
    throw Refused();
  }
};

TEST(LinearBackwardThrows, ExceptionsReachTheCallerAndTheNextCallIsRight) {
  auto linear = random_linear<float>(LinearOptions(96, 700).bias());
  const MatrixXf X = numbers(400, 96), dY = numbers(400, 700);
  MatrixXf expected, dX;
  LinearState<float> state;
  (void)linear(X, attn::gelu(), attn::save_state(state));
  linear.backward(X, dY, state, attn::gelu(), attn::dinput(expected));
  ThrowingPool pool;
  EXPECT_THROW(linear.backward(X, dY, state, attn::gelu(), attn::dinput(dX), attn::on(pool, 4)),
               Refused);
  linear.backward(X, dY, state, attn::gelu(), attn::dinput(dX));
  EXPECT_TRUE(same_bits(dX, expected));
}

}  // namespace
