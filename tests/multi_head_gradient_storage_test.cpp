// tests/multi_head_gradient_storage_test.cpp: gradients of layers and inputs that are stored
// narrowly, and of inputs in any memory, to any memory.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <type_traits>
#include <vector>

#include "support/layer_gradient_case.h"
#include "support/scalar_names.h"

namespace {

using attn::MultiHeadAttention;
using attn::MultiHeadGradients;
using attn::MultiHeadOptions;
using attn::MultiHeadState;
using Eigen::Index;
using support::BatchCase;
using support::DynamicMatrix;
using support::expect_same_weights;
using support::Inputs;
using support::LayerCase;
using support::near;
using support::same_bits;
using support::trained_layer;
using Matrix = DynamicMatrix<float>;

// ---- Storage types --------------------------------------------------------------------------

template <class Storage>
class MultiHeadGradientStorage : public ::testing::Test {
 protected:
  using Stored = DynamicMatrix<Storage>;
  static Stored rounded(Matrix& wide) {
    const Stored narrow = wide.template cast<Storage>();
    wide = narrow.template cast<float>();
    return narrow;
  }
  static Stored narrow(const Matrix& wide) { return wide.template cast<Storage>(); }
};
using StorageTypes = ::testing::Types<Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(MultiHeadGradientStorage, StorageTypes, support::ScalarNames);

const auto kShape = MultiHeadOptions(24, 4).kv_heads(2).biases();

// The weights are exact in float, so the gradients are those of a float layer.
TYPED_TEST(MultiHeadGradientStorage, OfWeightsAreInFloat) {
  static_assert(std::is_same_v<MultiHeadGradients<TypeParam>, attn::MultiHeadWeights<float>>);
  LayerCase<float> x(kShape, 37);
  auto narrow = support::random_layer<TypeParam>(kShape, 3);
  const auto weights = narrow.weights();
  x.mha.edit([&](auto& w) {
    support::for_each_weight(w, weights, [](const char*, auto& to, const auto& from) {
      to = from.template cast<float>();
    });
  });
  const auto expected = trained_layer<Inputs::one>(x, attn::options());
  auto g = expected;
  g.query.setZero();
  g.weights = MultiHeadGradients<float>(kShape);
  g.template forward<Inputs::one>(narrow, x);
  EXPECT_TRUE(same_bits(g.Y, expected.Y));
  g.template backward<Inputs::one>(narrow, x);
  expect_same_gradients(g, expected);
}

// Inputs, outputs and their gradients too: rounded once.
TYPED_TEST(MultiHeadGradientStorage, OfInputsAreRoundedOnce) {
  using Narrow = DynamicMatrix<TypeParam>;
  LayerCase<float> x(kShape, BatchCase{{0, 17}, {0, 41}});
  const Narrow Xq = this->rounded(x.Xq), Xk = this->rounded(x.Xk), dY = this->rounded(x.dY);
  const auto expected = trained_layer<Inputs::two>(x, attn::residual());

  MultiHeadState<float> state;
  MultiHeadGradients<float> g(kShape);
  Narrow Y, dXq, dXk;
  x.mha(Xq, Xk, attn::into(Y), attn::residual(), attn::save_state(state));
  x.mha.backward(Xq, Xk, dY, state, attn::residual(), attn::dweights(g), attn::dquery(dXq),
                 attn::dkey(dXk));
  EXPECT_TRUE(same_bits(Y, this->narrow(expected.Y)));
  EXPECT_TRUE(same_bits(dXq, this->narrow(expected.query)));
  EXPECT_TRUE(same_bits(dXk, this->narrow(expected.key)));
  expect_same_weights(g, expected.weights);

  // Into float nothing is rounded.
  Matrix wide_query, wide_key;
  x.mha.backward(Xq, Xk, dY, state, attn::residual(), attn::dquery(wide_query),
                 attn::dkey(wide_key));
  EXPECT_TRUE(same_bits(wide_query, expected.query));
  EXPECT_TRUE(same_bits(wide_key, expected.key));

  // Added to, the sum is rounded once: under a residual, of three.
  const Narrow old_query = support::uniform<TypeParam>(17, 24, 8, 0.1),
               old_key = support::uniform<TypeParam>(41, 24, 9, 0.1);
  Narrow query = old_query, key = old_key;
  x.mha.backward(Xq, Xk, dY, state, attn::residual(), attn::dquery(query), attn::dkey(key),
                 attn::accumulate());
  EXPECT_TRUE(same_bits(query, this->narrow(old_query.template cast<float>() + expected.query)));
  EXPECT_TRUE(same_bits(key, this->narrow(old_key.template cast<float>() + expected.key)));
}

// One scalar for keys, another for queries.
TEST(MultiHeadGradientStorage, OfInputsOfTwoKinds) {
  LayerCase<float> x(kShape, BatchCase{{0, 17}, {0, 41}});
  const DynamicMatrix<Eigen::bfloat16> Xk = x.Xk.cast<Eigen::bfloat16>();
  x.Xk = Xk.cast<float>();
  const auto expected = trained_layer<Inputs::two>(x, attn::options());
  auto g = expected;
  g.query.setZero();
  x.mha(x.Xq, Xk, attn::into(g.Y), attn::save_state(g.state));
  x.mha.backward(x.Xq, Xk, x.dY, g.state, attn::dweights(g.weights), attn::dquery(g.query),
                 attn::dkey(g.key));
  EXPECT_TRUE(same_bits(g.Y, expected.Y));
  expect_same_gradients(g, expected);
}

// Scalars without packets go through the same code at width 1.
TEST(MultiHeadGradientStorage, OfLongDoubleIsTheFormula) {
  auto mha = support::random_layer<long double>(kShape);
  const auto X = support::uniform<long double>(13, 24, 1),
             dY = support::uniform<long double>(13, 24, 2);
  DynamicMatrix<long double> Y, dX;
  MultiHeadState<long double> state;
  MultiHeadGradients<long double> g(kShape);
  mha(X, attn::causal(), attn::into(Y), attn::save_state(state));
  mha.backward(X, dY, state, attn::causal(), attn::dweights(g), attn::dquery(dX));
  support::LayerCall call;
  call.attention.heads = 4, call.attention.kv_heads = 2;
  call.attention.visible = [](Index, Index, Index i, Index j) { return j <= i; };
  const auto expected =
      support::reference_layer_gradient(support::widened_layer(mha.weights()), X, X, X, dY, call);
  EXPECT_TRUE(near(dX, expected.query + expected.key + expected.value, 1e-17));
  support::for_each_weight(g, expected.weights,
                           [](const char* name, const auto& by, const auto& exact) {
                             EXPECT_TRUE(near(by, exact, 1e-17)) << name;
                           });
}

// ---- Memory ---------------------------------------------------------------------------------

class MultiHeadGradientMemory : public ::testing::Test {
 protected:
  static constexpr Index B = 3, L = 7, M = 11, E = 24, Ek = 10;
  LayerCase<float> x{kShape.key_features(Ek),
                     BatchCase{{0, L, 2 * L, 3 * L}, {0, M, 2 * M, 3 * M}}};
  support::LayerTraining<float> expected = trained_layer<Inputs::two>(x, attn::residual());
  MultiHeadGradients<float> g{x.mha.options()};
};

TEST_F(MultiHeadGradientMemory, MayBeBlocksWhoseSurroundingsStay) {
  Matrix query = Matrix::Constant(30, 40, 9);
  Eigen::MatrixXf key = Eigen::MatrixXf::Constant(20, 40, 9);
  auto dXq = query.block(2, 5, B * L, E);
  auto dXk = key.transpose().block(3, 4, B * M, Ek);
  x.mha.backward(1 * x.Xq, x.Xk, 2 * (0.5f * x.dY), expected.state,
                 attn::sequences(x.queries, x.keys), attn::residual(), attn::dquery(dXq),
                 attn::dkey(dXk), attn::dweights(g));
  EXPECT_TRUE(same_bits(dXq, expected.query));
  EXPECT_TRUE(same_bits(dXk, expected.key));
  expect_same_weights(g, expected.weights);
  EXPECT_EQ((query.array() == 9.f).count(), query.size() - dXq.size());
  EXPECT_EQ((key.array() == 9.f).count(), key.size() - dXk.size());
}

/// [L, B, E], PyTorch's default, of stacked sequences.
std::vector<float> time_major(const Matrix& stacked, Index sequences) {
  const Index length = stacked.rows() / sequences;
  std::vector<float> memory;
  for (Index i = 0; i < length; ++i)
    for (Index b = 0; b < sequences; ++b)
      for (Index c = 0; c < stacked.cols(); ++c) memory.push_back(stacked(b * length + i, c));
  return memory;
}
TEST_F(MultiHeadGradientMemory, MayBeViewsOfOtherFrameworks) {
  const auto q = time_major(x.Xq, B), k = time_major(x.Xk, B), dy = time_major(x.dY, B);
  std::vector<float> y(q.size()), dq(q.size(), 9), dk(k.size(), 9);
  const auto view = [](auto& memory, Index length, Index features) {
    return attn::lbhd(memory.data(), length, B, 1, features);
  };
  attn::MultiHeadState<float> state;
  x.mha(view(q, L, E), view(k, M, Ek), attn::residual(), attn::into(view(y, L, E)),
        attn::save_state(state));
  EXPECT_EQ(y, time_major(expected.Y, B));
  x.mha.backward(view(q, L, E), view(k, M, Ek), view(dy, L, E), state, attn::residual(),
                 attn::dweights(g), attn::dquery(view(dq, L, E)), attn::dkey(view(dk, M, Ek)));
  EXPECT_EQ(dq, time_major(expected.query, B));
  EXPECT_EQ(dk, time_major(expected.key, B));
  expect_same_weights(g, expected.weights);
}

}  // namespace
