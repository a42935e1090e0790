// tests/linear_errors_test.cpp: what a linear layer and the activations refuse, in words and before anything is written; what throws.
// build: -Og
// SPDX-License-Identifier: MIT
#include <attn/layout.h>
#include <attn/linear.h>
#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <stdexcept>

#include "support/error_of.h"
#include "support/matrix_matchers.h"
#include "support/random_linear.h"

namespace {

using attn::Linear;
using attn::LinearOptions;
using Eigen::Index;
using Eigen::MatrixXf;
using support::error_of;
using support::numbers;
using support::random_linear;
using support::same_bits;

TEST(LinearErrors, SizesThatMakeNoLayer) {
  EXPECT_EQ(error_of([] { Linear<float>(LinearOptions(0, 3)); }),
            "attn::Linear: in_features is 0, needs at least 1");
  EXPECT_EQ(error_of([] { Linear<float>(LinearOptions(3, -1)); }),
            "attn::Linear: out_features is -1, needs at least 1");
  const Index most = std::numeric_limits<Index>::max();
  EXPECT_NE(error_of([&] {
              Linear<float>(LinearOptions(most, most));
            }).find("attn::Linear: in_features x out_features is"),
            std::string::npos);
  EXPECT_EQ(error_of([] { Linear<float, 3, 4>(LinearOptions(3, 5)); }),
            "attn::Linear: its type has 3 input and 4 output features, the options 3 and 5; other "
            "sizes want Linear<Scalar>(options)");
}

TEST(LinearErrors, WeightsOfAnotherShape) {
  Linear<float> linear(LinearOptions(3, 4).bias()), without(LinearOptions(3, 4));
  EXPECT_EQ(error_of([&] { linear.set(MatrixXf(5, 4)); }),
            "attn::Linear::set: the weight is 5x4, needs 3x4");
  EXPECT_EQ(error_of([&] { linear.set(MatrixXf(4, 3)); }),
            "attn::Linear::set: the weight is 4x3, needs 3x4, in x out: write W.transpose()");
  EXPECT_EQ(error_of([&] { linear.set(MatrixXf(3, 4), MatrixXf(2, 2)); }),
            "attn::Linear::set: the bias is 2x2, needs 4 numbers");
  EXPECT_EQ(error_of([&] { linear.edit([](auto& w) { w.bias().resize(3); }); }),
            "attn::Linear::edit: the bias is 1x3, needs 4 numbers");
  EXPECT_EQ(error_of([&] { without.edit([](auto& w) { w.bias().setOnes(4); }); }),
            "attn::Linear::edit: the bias is given, the layer has none; it has where it is made "
            "with LinearOptions(...).bias()");
}

class LinearCalls : public ::testing::Test {
 protected:
  /// The message of a call that leaves Y as it is.
  template <class... Arguments>
  std::string refusal(const Arguments&... arguments) {
    const MatrixXf before = Y;
    const std::string error = error_of([&] { linear(arguments..., attn::into(Y)); });
    EXPECT_TRUE(same_bits(Y, before));
    return error;
  }

  Linear<float> linear = random_linear<float>(LinearOptions(3, 4).bias());
  MatrixXf X = numbers(5, 3), Y = numbers(5, 4);
};

TEST_F(LinearCalls, RefuseWhatDoesNotFit) {
  EXPECT_EQ(refusal(numbers(5, 4)), "attn::Linear: the input has 4 features, the layer takes 3");
  EXPECT_EQ(refusal(attn::bhld(X.data(), 1, 3, 5, 1)),
            "attn::Linear: the input has 3 heads, needs 1");
  EXPECT_EQ(refusal(X, attn::residual(numbers(4, 4))),
            "attn::Linear: residual is 4x4 in 1 head, needs 5x4 (query rows x output features) in "
            "1 head");
  EXPECT_EQ(refusal(X, attn::residual()),
            "attn::Linear: residual() adds the input, 3 features, to the output, 4; widths must "
            "agree, or name another: residual(X)");
  EXPECT_EQ(refusal(X, attn::parallel(0)), "attn::Linear: 0 threads asked for, needs at least 1");
  Eigen::Matrix<float, 5, 5> fixed;
  EXPECT_EQ(error_of([&] { linear(X, attn::into(fixed)); }),
            "attn::Linear: output is 5x5, needs 5x4");
  Linear<float> moved = std::move(linear);
  EXPECT_EQ(refusal(X),
            "attn::Linear: the layer holds nothing (it was moved from): assign another to it");
}

TEST_F(LinearCalls, RefuseAnOutputThatOverlapsWhatIsRead) {
  MatrixXf memory = numbers(5, 9);
  const MatrixXf before = memory;
  EXPECT_EQ(error_of([&] { linear(memory.leftCols(3), attn::into(memory.middleCols(2, 4))); }),
            "attn::Linear: output overlaps the input; write to memory of its own");
  EXPECT_EQ(error_of([&] {
              linear(X, attn::into(memory.middleCols(2, 4)),
                     attn::residual(memory.middleCols(3, 4)));
            }),
            "attn::Linear: output overlaps residual without being the same matrix; write to memory "
            "of its own");
  EXPECT_TRUE(same_bits(memory, before));
  auto square = random_linear<float>(LinearOptions(3, 3));
  EXPECT_EQ(error_of([&] { square(X, attn::into(X)); }),
            "attn::Linear: output overlaps the input; write to memory of its own");
}

TEST_F(LinearCalls, ReserveRefusesWhatCannotBeCounted) {
  EXPECT_EQ(error_of([&] { linear.reserve(-1); }),
            "attn::Linear::reserve: rows is -1, needs at least 0");
  EXPECT_EQ(error_of([&] { linear.reserve(1, 0); }),
            "attn::Linear::reserve: workers is 0, needs at least 1");
  EXPECT_NE(error_of([&] {
              linear.reserve(std::numeric_limits<Index>::max());
            }).find("attn::Linear::reserve: rows x out_features is"),
            std::string::npos);
}

TEST(ActivationErrors, OutputsOfAnotherShapeAndOverlaps) {
  MatrixXf X = numbers(5, 3);
  Eigen::Matrix<float, 4, 3> fixed;
  EXPECT_EQ(error_of([&] { attn::gelu(X, attn::into(fixed)); }),
            "attn::activation: output is 4x3, needs 5x3");
  EXPECT_EQ(error_of([&] { attn::gelu(X.leftCols(2), attn::into(X.rightCols(2))); }),
            "attn::activation: output overlaps the input without being the same matrix; write to "
            "memory of its own");
}

struct Refused : std::runtime_error {
  Refused() : std::runtime_error("thrown on purpose") {}
};
/// Throws before it runs anything, or behind its first task.
struct ThrowingPool {
  bool first;
  template <class F>
  void parallel_for(int, const F& f) {
    if (!first) f(0);
    throw Refused();
  }
};

TEST(LinearThrows, ExceptionsReachTheCallerAndTheNextCallIsRight) {
  auto linear = random_linear<float>(LinearOptions(512, 700).bias());
  const MatrixXf X = numbers(40, 512), expected = linear(X, attn::gelu());
  std::atomic<int> calls{0};
  const auto throws = attn::activation([&calls](float x) {
    if (++calls == 1000) throw Refused();
    return x;
  });
  MatrixXf Y;
  EXPECT_THROW(linear(X, attn::into(Y), throws), Refused);
  for (const bool first : {true, false}) {
    ThrowingPool pool{first};
    EXPECT_THROW(linear(X, attn::into(Y), attn::on(pool, 4)), Refused);
  }
  linear(X, attn::into(Y), attn::gelu());
  EXPECT_TRUE(same_bits(Y, expected));
}

}  // namespace
