// tests/training_test.cpp: the blocks of examples/training: each held to central differences in
// double, by what enters it and by every weight.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "../examples/training/adam.h"
#include "../examples/training/cross_entropy.h"
#include "../examples/training/decoder_block.h"
#include "../examples/training/embedding.h"
#include "../examples/training/encoder_block.h"
#include "../examples/training/mean_pool.h"
#include "../examples/training/parameters.h"

namespace {

using training::Batch;
using training::Engine;
using training::Index;
using Matrix = training::Matrix<double>;

constexpr Index kWidth = 8, kHeads = 2, kHidden = 12;

Matrix random_matrix(Index rows, Index cols, unsigned seed) {
  Engine engine(seed);
  return Matrix::NullaryExpr(rows, cols, [&] { return 2 * training::uniform(engine) - 1; });
}

/// d loss / d x by central differences; `loss` reads x.
double difference(double& x, const std::function<double()>& loss) {
  const double h = 1e-5, was = x;
  x = was + h;
  const double up = loss();
  x = was - h;
  const double down = loss();
  x = was;
  return (up - down) / (2 * h);
}

/// The largest distance of a gradient from differences, number by number.
template <class Gradient>
double error_of(Matrix& X, const Gradient& gradient, const std::function<double()>& loss) {
  EXPECT_EQ(X.rows(), gradient.rows());
  EXPECT_EQ(X.cols(), gradient.cols());
  double largest = 0;
  for (Index i = 0; i < X.rows(); ++i) {
    for (Index c = 0; c < X.cols(); ++c)
      largest = std::max(largest, std::abs(difference(X(i, c), loss) - gradient(i, c)));
  }
  return largest;
}

/// The same of every weight of a model. Each is moved by the door that optimisers use.
template <class Model>
double error_of_weights(Model& model, const std::function<double()>& loss) {
  std::vector<double> gradients;
  training::for_each_gradient(model, [&](const auto& g) {
    for (Index i = 0; i < g.size(); ++i) gradients.push_back(g.data()[i]);
  });
  const auto move = [&](std::size_t which, double by) {
    std::size_t n = 0;
    training::for_each_parameter(model, [&](const std::string&, auto& weight, const auto&) {
      const std::size_t size = std::size_t(weight.size());
      if (n <= which && which < n + size) weight.data()[which - n] += by;
      n += size;
    });
    EXPECT_EQ(n, gradients.size());
  };
  double largest = 0;
  for (std::size_t n = 0; n < gradients.size(); ++n) {
    const double h = 1e-5;
    move(n, h);
    const double up = loss();
    move(n, -2 * h);
    const double down = loss();
    move(n, h);
    largest = std::max(largest, std::abs((up - down) / (2 * h) - gradients[n]));
  }
  return largest;
}

/// loss = Σ W ∘ Y: its gradient by Y is W.
double weighed(const Matrix& Y, const Matrix& W) { return Y.cwiseProduct(W).sum(); }

/// One block as a model.
template <class Block>
struct Alone {
  Block& block;
  template <class Visit>
  void each_layer(const Visit& visit) {
    visit("block", block);
  }
};
template <class Block>
struct AloneOfMany {
  Block& block;
  template <class Visit>
  void each_layer(const Visit& visit) {
    block.each_layer("block.", visit);
  }
};

const Batch kBatch({{1, 2, 3}, {4}, {0, 2, 2, 1, 5}});
const Batch kMemory({{1, 2}, {4, 4, 4}, {0}});

TEST(Training, EmbeddingIsTokensAndPositions) {
  Engine engine(1);
  training::Embedding<double> words(6, kWidth, 10, engine);
  const Matrix X = words.forward(kBatch);
  ASSERT_EQ(X.rows(), 9);
  for (Index c = 0; c < kWidth; ++c) {
    const double angle = 2 / std::pow(10000.0, double(c / 2 * 2) / kWidth);
    EXPECT_NEAR(X(6, c),
                std::sqrt(8.0) * words.table(2, c) + (c % 2 ? std::cos(angle) : std::sin(angle)),
                1e-14);
  }
  // Token by token, as a decoder reads.
  Batch token;
  token.add({2});
  EXPECT_EQ(words.forward(token, 2), X.row(6));
  EXPECT_THROW((void)words.forward(token, 10), std::invalid_argument);

  const Matrix W = random_matrix(9, kWidth, 2);
  words.backward(kBatch, W);
  Alone<training::Embedding<double>> model{words};
  EXPECT_LT(error_of_weights(model, [&] { return weighed(words.forward(kBatch), W); }), 1e-8);
}

TEST(Training, LayerNorm) {
  training::LayerNorm<double> norm(kWidth);
  norm.scale = random_matrix(1, kWidth, 1);
  norm.shift = random_matrix(1, kWidth, 2);
  Matrix X = random_matrix(5, kWidth, 3);
  const Matrix W = random_matrix(5, kWidth, 4), before = random_matrix(5, kWidth, 5);
  const auto loss = [&] { return weighed(norm.forward(X), W); };
  loss();
  Matrix dX = before;
  norm.backward(W, dX);
  EXPECT_LT(error_of(X, Matrix(dX - before), loss), 1e-8);
  Alone<training::LayerNorm<double>> model{norm};
  EXPECT_LT(error_of_weights(model, loss), 1e-8);
}

TEST(Training, MeanPool) {
  Matrix X = random_matrix(9, kWidth, 1);
  const Matrix W = random_matrix(3, kWidth, 2);
  EXPECT_LT(error_of(X, training::mean_pool_backward(W, kBatch),
                     [&] { return weighed(training::mean_pool(X, kBatch), W); }),
            1e-8);
}

TEST(Training, CrossEntropy) {
  Matrix logits = random_matrix(5, 4, 1), dlogits, unused;
  const std::vector<int> targets = {3, 0, training::kIgnored, 1, 1};
  logits.row(2).setConstant(1e6);  // padding holds anything
  const auto loss = [&] { return training::cross_entropy(logits, targets, unused).loss; };
  const training::Judged judged = training::cross_entropy(logits, targets, dlogits);
  EXPECT_EQ(judged.rows, 4);
  double expected = 0;
  Index correct = 0;
  for (const Index i : {0, 1, 3, 4}) {
    const int target = targets[std::size_t(i)];
    expected += std::log(logits.row(i).array().exp().sum()) - logits(i, target);
    correct += logits.row(i).maxCoeff() <= logits(i, target);
  }
  EXPECT_NEAR(judged.loss, expected / 4, 1e-14);
  EXPECT_EQ(judged.correct, correct);
  EXPECT_EQ(judged.accuracy(), double(correct) / 4);
  EXPECT_TRUE(dlogits.row(2).isZero(0));
  EXPECT_LT(error_of(logits, dlogits, loss), 1e-8);
}

TEST(Training, FeedForward) {
  Engine engine(1);
  training::FeedForward<double> block(kWidth, kHidden, engine);
  Matrix X = random_matrix(5, kWidth, 2), R = random_matrix(5, kWidth, 3);
  const Matrix W = random_matrix(5, kWidth, 4);
  const auto loss = [&] { return weighed(block.forward(X, R, 1), W); };
  loss();
  const Matrix dX = block.backward(X, W, 1);
  EXPECT_LT(error_of(X, dX, loss), 1e-8);
  EXPECT_LT(error_of(R, W, loss), 1e-8);
  AloneOfMany<training::FeedForward<double>> model{block};
  EXPECT_LT(error_of_weights(model, loss), 1e-8);
}

TEST(Training, EncoderBlockOverARaggedBatchWithDropout) {
  Engine engine(1);
  training::EncoderBlock<double> block(kWidth, kHeads, kHidden, engine);
  Matrix X = random_matrix(9, kWidth, 2);
  const Matrix W = random_matrix(9, kWidth, 3);
  const auto call = attn::options(attn::sequences(kBatch.offsets), attn::dropout(0.3, 1, 2));
  const auto loss = [&] { return weighed(block.forward(X, 1, call), W); };
  loss();
  const Matrix dX = block.backward(X, W, 1, call);
  EXPECT_LT(error_of(X, dX, loss), 1e-8);
  AloneOfMany<training::EncoderBlock<double>> model{block};
  EXPECT_LT(error_of_weights(model, loss), 1e-8);
}

TEST(Training, DecoderBlockOverARaggedBatch) {
  Engine engine(1);
  training::DecoderBlock<double> block(kWidth, kHeads, kHidden, engine);
  Matrix X = random_matrix(9, kWidth, 2), memory = random_matrix(6, kWidth, 3);
  const Matrix W = random_matrix(9, kWidth, 4), before = random_matrix(6, kWidth, 5);
  const auto self = attn::options(attn::causal(), attn::sequences(kBatch.offsets));
  const auto cross = attn::options(attn::sequences(kBatch.offsets, kMemory.offsets));
  const auto loss = [&] { return weighed(block.forward(X, memory, 1, self, cross), W); };
  loss();
  Matrix dmemory = before;
  const Matrix dX = block.backward(X, memory, W, dmemory, 1, self, cross);
  EXPECT_LT(error_of(X, dX, loss), 1e-8);
  EXPECT_LT(error_of(memory, Matrix(dmemory - before), loss), 1e-8);
  AloneOfMany<training::DecoderBlock<double>> model{block};
  EXPECT_LT(error_of_weights(model, loss), 1e-8);
}

// ---- Adam --------------------------------------------------------------------------------------

/// Two weights, one vector.
struct TwoWeights {
  Matrix weight = Matrix::Constant(1, 2, 1.0), gradient = Matrix::Zero(1, 2);
  template <class F>
  void for_each_parameter(const F& f) {
    f("weight", weight, gradient);
  }
  template <class F>
  void for_each_gradient(const F& f) const {
    f(gradient);
  }
};

TEST(Adam, WarmsUpAndDecaysInStraightLines) {
  training::AdamOptions options;
  options.rate = 0.5, options.warm_up = 4, options.steps = 12;
  const training::Adam<double> adam(options);
  EXPECT_DOUBLE_EQ(adam.rate(1), 0.125);
  EXPECT_DOUBLE_EQ(adam.rate(4), 0.5);
  EXPECT_DOUBLE_EQ(adam.rate(8), 0.25);
  EXPECT_DOUBLE_EQ(adam.rate(12), 0);
  EXPECT_DOUBLE_EQ(adam.rate(13), 0);
}

TEST(Adam, TakesTheStepsOfTheFormula) {
  training::AdamOptions options;
  options.rate = 0.1, options.warm_up = 1, options.steps = 101;
  options.beta1 = 0.5, options.beta2 = 0.75, options.epsilon = 0.25, options.largest_norm = 10;
  training::Adam<double> adam(options);
  TwoWeights two;
  Alone<TwoWeights> model{two};

  // Step 1: m = g/2, v = g²/4; both unbiased: g, g². Step 0.1 · g / (|g| + 0.25).
  two.gradient << 3, -4;
  adam.step(model);
  EXPECT_NEAR(two.weight(0, 0), 1 - 0.1 * 3 / 3.25, 1e-15);
  EXPECT_NEAR(two.weight(0, 1), 1 + 0.1 * 4 / 4.25, 1e-15);

  // Step 2: m = (3/2)/2 + 1/2 = 1.25, over 1 − 1/4; v = (9/4)·3/4 + 1/4 = 31/16, over 1 − 9/16.
  // Its rate is 0.1 · 99/100.
  const double was = two.weight(0, 0);
  two.gradient << 1, 0;
  adam.step(model);
  EXPECT_NEAR(two.weight(0, 0),
              was - 0.099 * (1.25 / 0.75) / (std::sqrt(31.0 / 16 / (7.0 / 16)) + 0.25), 1e-15);
}

TEST(Adam, ClipsByTheNormOfAllGradientsTogether) {
  training::AdamOptions options;
  options.rate = 0.1, options.warm_up = 1, options.largest_norm = 1, options.epsilon = 1;
  training::Adam<double> adam(options);
  TwoWeights two;
  Alone<TwoWeights> model{two};
  two.gradient << 30, -40;  // of norm 50: becomes 0.6, −0.8
  adam.step(model);
  EXPECT_NEAR(two.weight(0, 0), 1 - 0.1 * 0.6 / 1.6, 1e-15);
  EXPECT_NEAR(two.weight(0, 1), 1 + 0.1 * 0.8 / 1.8, 1e-15);
}

}  // namespace
