// tests/multi_head_attention_test.cpp: the layer against an oracle of plain loops: shapes, calls, operands, bits.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>

#include <cmath>
#include <type_traits>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random_layer.h"
#include "support/reference_multi_head.h"
#include "support/scalar_names.h"
#include "support/textbook.h"

namespace {

using attn::MultiHeadAttention;
using attn::MultiHeadOptions;
using Eigen::Index;
using Eigen::MatrixXf;
using support::DynamicMatrix;
using support::LayerCall;
using support::near;
using support::random_layer;
using support::Reference;
using support::reference_multi_head;
using support::same_bits;
using support::uniform;
using support::widened;
using support::widened_layer;

/// The bar of the project: absolute, on unit-scale weights and inputs in [−1, 1].
template <class Scalar>
constexpr double kTolerance = std::is_same_v<Scalar, float> ? 1e-6 : 1e-14;

template <class Layer>
LayerCall call_of(const Layer& layer) {
  LayerCall call;
  call.attention.heads = layer.options().heads();
  call.attention.kv_heads = layer.options().kv_heads();
  return call;
}
template <class Layer, class Q, class K, class V>
Reference expected(const Layer& layer, const Q& query, const K& key, const V& value,
                   const LayerCall& call) {
  return reference_multi_head(widened_layer(layer.weights()), widened(query), widened(key),
                              widened(value), call)
      .output;
}

template <class Scalar>
class MultiHead : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(MultiHead, Scalars, support::ScalarNames);

// ---- Shapes ---------------------------------------------------------------------------------

TYPED_TEST(MultiHead, AgreesWithTheOracleInEveryShape) {
  const MultiHeadOptions shapes[] = {
      MultiHeadOptions(1, 1),
      MultiHeadOptions(64, 8),
      MultiHeadOptions(64, 8).in_bias(),
      MultiHeadOptions(60, 5).out_bias(),
      MultiHeadOptions(33, 3).in_bias().out_bias(),
      MultiHeadOptions(16, 4).key_dim(7),
      MultiHeadOptions(16, 4).value_dim(5).in_bias(),
      MultiHeadOptions(20, 6).key_dim(3).value_dim(50).kv_heads(2).out_bias(),
      MultiHeadOptions(48, 6).kv_heads(3).in_bias().out_bias(),
      MultiHeadOptions(48, 4).kv_heads(1),
      MultiHeadOptions(24, 4).output_features(9).out_bias(),
      MultiHeadOptions(24, 4).output_features(130),
  };
  for (const MultiHeadOptions& shape : shapes) {
    auto mha = random_layer<TypeParam>(shape);
    for (const Index L : {1, 7, 13, 50}) {
      const auto X = uniform<TypeParam>(L, shape.d_model(), 20);
      const DynamicMatrix<TypeParam> Y = mha(X);
      EXPECT_TRUE(near(Y, expected(mha, X, X, X, call_of(mha)), kTolerance<TypeParam>))
          << "d_model " << shape.d_model() << ", " << shape.heads() << " heads, L " << L;
    }
  }
}

TYPED_TEST(MultiHead, AttendsToOtherInputsOfOtherWidths) {
  const MultiHeadOptions shape =
      MultiHeadOptions(24, 4).key_features(10).value_features(37).in_bias().kv_heads(2);
  auto mha = random_layer<TypeParam>(shape);
  const auto Xq = uniform<TypeParam>(9, 24, 1), Xk = uniform<TypeParam>(21, 10, 2),
             Xv = uniform<TypeParam>(21, 37, 3);
  const DynamicMatrix<TypeParam> Y = mha(Xq, Xk, Xv);
  EXPECT_TRUE(near(Y, expected(mha, Xq, Xk, Xv, call_of(mha)), kTolerance<TypeParam>));

  auto cross = random_layer<TypeParam>(MultiHeadOptions(24, 4).key_features(10));
  const DynamicMatrix<TypeParam> Z = cross(Xq, Xk);
  EXPECT_TRUE(near(Z, expected(cross, Xq, Xk, Xk, call_of(cross)), kTolerance<TypeParam>));
}

// Rows around the tile's and the piece's bounds, widths around the panel's, deep inputs.
TYPED_TEST(MultiHead, AgreesWithTheOracleAtEveryTileBound) {
  using Size = attn::kernel::TileSize<TypeParam>;
  constexpr Index R = Size::rows, P = Size::panel;
  for (const Index width : {P - 1, P, P + 1, 2 * P + 1}) {
    auto mha = random_layer<TypeParam>(MultiHeadOptions(width, 1).in_bias().out_bias());
    for (const Index L : {R - 1, R, R + 1, 2 * R + 1}) {
      if (L < 1) continue;
      const auto X = uniform<TypeParam>(L, width, 4);
      EXPECT_TRUE(near(mha(X), expected(mha, X, X, X, call_of(mha)), kTolerance<TypeParam>))
          << width << " features, " << L << " rows";
    }
  }
  auto mha = random_layer<TypeParam>(MultiHeadOptions(3, 1));
  const auto X = uniform<TypeParam>(2 * Size::max_piece_rows + 3, 3, 4);
  EXPECT_TRUE(near(mha(X), expected(mha, X, X, X, call_of(mha)), kTolerance<TypeParam>));

  // So deep that a piece is cut to few rows.
  auto deep = random_layer<TypeParam>(MultiHeadOptions(2, 1).key_features(9000));
  const auto Xk = uniform<TypeParam>(70, 9000, 5);
  const auto Xq = uniform<TypeParam>(3, 2, 6);
  EXPECT_TRUE(near(deep(Xq, Xk), expected(deep, Xq, Xk, Xk, call_of(deep)), kTolerance<TypeParam>));
}

// Wide layers: the errors of long sums grow with them, the formula's by hand more than ours.
TYPED_TEST(MultiHead, OfWidth512KeepsTheBarAndErrsLessThanTheTextbook) {
  using Matrix = DynamicMatrix<TypeParam>;
  const Index L = 40, E = 512, H = 8, d = E / H;
  auto mha = random_layer<TypeParam>(MultiHeadOptions(E, H).in_bias().out_bias());
  const Matrix X = uniform<TypeParam>(L, E, 1);
  const auto& w = mha.weights();
  const auto project = [](const Matrix& x, const auto& weight, const auto& bias) {
    Matrix y = x * weight;
    y.rowwise() += bias;
    return y;
  };
  const Matrix Q = project(X, w.query, w.query_bias), K = project(X, w.key, w.key_bias),
               V = project(X, w.value, w.value_bias);
  Matrix O(L, E);
  for (Index h = 0; h < H; ++h) {
    O.middleCols(h * d, d) = support::textbook_attention<TypeParam>(
        Q.middleCols(h * d, d), K.middleCols(h * d, d), V.middleCols(h * d, d),
        TypeParam(1) / std::sqrt(TypeParam(int(d))));
  }
  const Matrix textbook = project(O, w.output, w.output_bias);
  const Reference exact = expected(mha, X, X, X, call_of(mha));
  const auto error = support::worst_error(mha(X), exact);
  EXPECT_LE(error, support::worst_error(textbook, exact));
  EXPECT_LE(error, kTolerance<TypeParam>);
  const Matrix one = X.topRows(1);  // whose values are no mean of many
  EXPECT_TRUE(near(mha(one), expected(mha, one, one, one, call_of(mha)), kTolerance<TypeParam>));
}

TYPED_TEST(MultiHead, AddsAResidual) {
  auto mha = random_layer<TypeParam>(MultiHeadOptions(24, 4).out_bias());
  const auto X = uniform<TypeParam>(11, 24, 1), Other = uniform<TypeParam>(11, 24, 2);
  LayerCall call = call_of(mha);
  call.residual = widened(X);
  EXPECT_TRUE(near(mha(X, attn::residual()), expected(mha, X, X, X, call), kTolerance<TypeParam>));
  EXPECT_TRUE(same_bits(mha(X, attn::residual()), attn::residual_add(X, mha(X))));
  call.residual = widened(Other);
  EXPECT_TRUE(
      near(mha(X, attn::residual(Other)), expected(mha, X, X, X, call), kTolerance<TypeParam>));
}

// ---- Calls ----------------------------------------------------------------------------------

using Matrix = DynamicMatrix<float>;  // of which the tests above have compiled most calls

TEST(MultiHeadCalls, KnowOneInputThatStandsForSeveral) {
  auto mha = random_layer<float>(MultiHeadOptions(24, 4).in_bias());
  const Matrix X = uniform<float>(15, 24, 1), M = uniform<float>(8, 24, 2);
  const Matrix self = mha(X), copy = X;
  EXPECT_TRUE(same_bits(Matrix(mha(X, X)), self));
  EXPECT_TRUE(same_bits(Matrix(mha(X, X, X)), self));
  EXPECT_TRUE(same_bits(Matrix(mha(X, copy, X)), self));
  EXPECT_TRUE(same_bits(Matrix(mha(X, X, copy)), self));
  EXPECT_TRUE(same_bits(Matrix(mha(1.0f * X)), self));
  const Matrix cross = mha(X, M), same = M;
  EXPECT_TRUE(same_bits(Matrix(mha(X, M, same)), cross));
  EXPECT_FALSE(same_bits(cross, self));
}

TEST(MultiHeadCalls, ReturnTheQuerysTypeOrWriteAnywhere) {
  auto mha = random_layer<float>(MultiHeadOptions(24, 4).output_features(10).out_bias());
  const MatrixXf X = uniform<float>(15, 24, 1), other = uniform<float>(15, 10, 2);
  const auto Y = mha(X);
  static_assert(std::is_same_v<std::decay_t<decltype(Y)>, MatrixXf>);
  const Matrix rows = X;
  const auto Z = mha(rows);
  static_assert(std::is_same_v<std::decay_t<decltype(Z)>, Matrix>);
  EXPECT_TRUE(same_bits(MatrixXf(Z), Y));

  MatrixXf resized;
  mha(X, attn::into(resized));
  EXPECT_TRUE(same_bits(resized, Y));
  MatrixXf turned(10, 15), big = MatrixXf::Constant(20, 12, 3);
  mha(X, attn::into(turned.transpose()));
  EXPECT_TRUE(same_bits(MatrixXf(turned.transpose()), Y));
  mha(X, attn::into(big.block(2, 1, 15, 10)));
  EXPECT_TRUE(same_bits(MatrixXf(big.block(2, 1, 15, 10)), Y));
  EXPECT_EQ((big.array() == 3.f).count(), 240 - 150);

  MatrixXf residual = other;
  const Matrix added = other, sum = mha(rows, attn::residual(added));
  mha(X, attn::into(residual), attn::residual(residual));
  EXPECT_TRUE(same_bits(residual, sum));
}

TEST(MultiHeadCalls, MayWriteOverTheirInputs) {
  auto mha = random_layer<float>(MultiHeadOptions(24, 4).in_bias().out_bias());
  const Matrix X = uniform<float>(15, 24, 1), M = uniform<float>(15, 24, 2);
  MatrixXf Y = X;
  mha(Y, attn::into(Y), attn::residual());
  EXPECT_TRUE(same_bits(Y, Matrix(mha(X, attn::residual()))));
  Y = M;
  mha(X, Y, attn::into(Y));
  EXPECT_TRUE(same_bits(Y, Matrix(mha(X, M))));
  auto wider = random_layer<float>(MultiHeadOptions(24, 4).output_features(30));
  Y = X;
  wider(Y, attn::into(Y));  // resized, after it was read
  EXPECT_TRUE(same_bits(Y, Matrix(wider(X))));
}

TEST(MultiHeadCalls, ReadEveryLayoutAndBatch) {
  const Index B = 3, L = 7, E = 24;
  auto mha = random_layer<float>(MultiHeadOptions(E, 4).in_bias());
  const DynamicMatrix<float> X = uniform<float>(B * L, E, 1);
  const DynamicMatrix<float> Y = mha(X, attn::sequence_length(L), attn::causal());
  for (Index b = 0; b < B; ++b) {  // a batch is its sequences, one by one
    const DynamicMatrix<float> alone = mha(X.middleRows(b * L, L), attn::causal());
    EXPECT_TRUE(same_bits(alone, DynamicMatrix<float>(Y.middleRows(b * L, L))));
  }
  const DynamicMatrix<float> ragged = mha(X, attn::sequences({0, 2, 2, 21}));
  const DynamicMatrix<float> last = mha(X.bottomRows(19));
  EXPECT_TRUE(same_bits(DynamicMatrix<float>(ragged.bottomRows(19)), last));

  // [L, B, E], PyTorch's default, and [B, L, E].
  std::vector<float> lbe(std::size_t(L * B * E)), out(lbe.size());
  for (Index b = 0; b < B; ++b)
    for (Index i = 0; i < L; ++i)
      for (Index c = 0; c < E; ++c) lbe[std::size_t((i * B + b) * E + c)] = X(b * L + i, c);
  mha(attn::lbhd(lbe.data(), L, B, 1, E), attn::into(attn::lbhd(out.data(), L, B, 1, E)),
      attn::causal(), attn::residual());
  const DynamicMatrix<float> added =
      mha(X, attn::sequence_length(L), attn::causal(), attn::residual());
  for (Index b = 0; b < B; ++b)
    for (Index i = 0; i < L; ++i)
      for (Index c = 0; c < E; ++c)
        ASSERT_EQ(out[std::size_t((i * B + b) * E + c)], added(b * L + i, c));
  DynamicMatrix<float> Z(B * L, E);
  mha(attn::lbhd(lbe.data(), L, B, 1, E), attn::into(attn::blhd(Z.data(), B, L, 1, E)),
      attn::causal());
  EXPECT_TRUE(same_bits(Z, Y));
}

// A row's bits know nothing of the other rows, the storage order or fixed sizes (or threads: parallel_test.cpp).
TEST(MultiHeadCalls, HaveTheSameBitsHowEverARowIsReached) {
  auto mha = random_layer<float>(MultiHeadOptions(64, 8).in_bias().out_bias());
  const DynamicMatrix<float> X = uniform<float>(61, 64, 1);
  const DynamicMatrix<float> Y = mha(X, attn::causal());
  for (const Index L : {1, 2, 5, 12, 13, 40}) {
    EXPECT_TRUE(same_bits(DynamicMatrix<float>(mha(X.topRows(L), attn::causal())),
                          DynamicMatrix<float>(Y.topRows(L))))
        << L;
  }
  const MatrixXf columns = X;
  EXPECT_TRUE(same_bits(DynamicMatrix<float>(mha(columns, attn::causal())), Y));

  MultiHeadAttention<float, 64, 8> fixed(mha.options());
  fixed.edit([&](auto& w) {
    w.query = mha.weights().query, w.key = mha.weights().key, w.value = mha.weights().value;
    w.output = mha.weights().output;
    w.query_bias = mha.weights().query_bias, w.key_bias = mha.weights().key_bias;
    w.value_bias = mha.weights().value_bias, w.output_bias = mha.weights().output_bias;
  });
  EXPECT_TRUE(same_bits(fixed(X, attn::causal()), Y));
  const Eigen::Matrix<float, Eigen::Dynamic, 64, Eigen::RowMajor, 20, 64> bounded = X.topRows(17);
  const DynamicMatrix<float> few = fixed(bounded, attn::causal());
  EXPECT_TRUE(same_bits(few, DynamicMatrix<float>(Y.topRows(17))));
}

TEST(MultiHeadCalls, TakeInputsStoredNarrowly) {
  auto mha = random_layer<float>(MultiHeadOptions(24, 4).in_bias());
  const DynamicMatrix<Eigen::bfloat16> X = uniform<Eigen::bfloat16>(15, 24, 1);
  const DynamicMatrix<float> wide = X.cast<float>();
  const DynamicMatrix<Eigen::bfloat16> Y = mha(X);
  EXPECT_TRUE(same_bits(
      Y, DynamicMatrix<Eigen::bfloat16>(DynamicMatrix<float>(mha(wide)).cast<Eigen::bfloat16>())));
  DynamicMatrix<float> Z;
  mha(wide, X, attn::into(Z));
  EXPECT_TRUE(same_bits(Z, DynamicMatrix<float>(mha(wide))));
}

TEST(MultiHeadCalls, AreValidOnEmptyInputs) {
  auto mha = random_layer<float>(MultiHeadOptions(8, 2).in_bias().out_bias());
  const Matrix none(0, 8), some = uniform<float>(3, 8, 1);
  EXPECT_EQ(Matrix(mha(none)).rows(), 0);
  const Matrix Y = mha(some, none);  // nothing to attend to: zeros, and the output's bias
  for (Index i = 0; i < 3; ++i)
    EXPECT_TRUE(same_bits(Matrix(Y.row(i)), Matrix(mha.weights().output_bias)));
}

TEST(MultiHeadCalls, SaveWhatAttentionSaves) {
  auto mha = random_layer<float>(MultiHeadOptions(24, 4).in_bias());
  const DynamicMatrix<float> X = uniform<float>(9, 24, 1);
  LayerCall call = call_of(mha);
  call.attention.save_weights = true;
  const auto result =
      reference_multi_head(widened_layer(mha.weights()), widened(X), widened(X), widened(X), call);
  DynamicMatrix<float> Y, l, W, average;
  mha(X, attn::into(Y), attn::save_logsumexp(l), attn::save_weights(W));
  EXPECT_TRUE(same_bits(Y, DynamicMatrix<float>(mha(X))));
  EXPECT_TRUE(near(l, result.logsumexp, 2e-6));
  EXPECT_TRUE(near(W, result.weights, 1e-6));
  mha(X, attn::into(Y), attn::save_weights(average, attn::average_heads()));
  EXPECT_TRUE(same_bits(Y, DynamicMatrix<float>(mha(X))));
  Reference mean = Reference::Zero(9, 9);
  for (Index h = 0; h < 4; ++h) mean += result.weights.middleCols(9 * h, 9) / 4;
  EXPECT_TRUE(near(average, mean, 1e-6));
}

// Scalars without packets go through the same code at width 1.
TEST(MultiHeadCalls, ComputeInAnyScalar) {
  auto mha = random_layer<long double>(MultiHeadOptions(6, 2).in_bias().out_bias());
  const auto X = uniform<long double>(7, 6, 1);
  LayerCall call = call_of(mha);
  call.residual = X;
  EXPECT_TRUE(near(mha(X, attn::residual()), expected(mha, X, X, X, call), 1e-17));
}

// ---- Storage ---------------------------------------------------------------------------------

template <class Storage>
class MultiHeadStorage : public ::testing::Test {};
using Narrow = ::testing::Types<Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(MultiHeadStorage, Narrow, support::ScalarNames);

/// Weights stored narrowly give the bits of a float layer that holds the same numbers.
TYPED_TEST(MultiHeadStorage, IsWidenedExactly) {
  const auto options = MultiHeadOptions(70, 5).in_bias().out_bias();
  auto narrow = random_layer<TypeParam>(options);
  MultiHeadAttention<float> wide(options);
  wide.edit([&](auto& w) {
    const auto& n = narrow.weights();
    w.query = n.query.template cast<float>(), w.key = n.key.template cast<float>();
    w.value = n.value.template cast<float>(), w.output = n.output.template cast<float>();
    w.query_bias = n.query_bias.template cast<float>();
    w.key_bias = n.key_bias.template cast<float>();
    w.value_bias = n.value_bias.template cast<float>();
    w.output_bias = n.output_bias.template cast<float>();
  });
  const DynamicMatrix<float> X = uniform<float>(50, 70, 1);
  EXPECT_TRUE(same_bits(narrow(X), wide(X)));
}

// ---- The projection by itself ------------------------------------------------------------------

TYPED_TEST(MultiHead, ProjectsAsTheFormulaDoes) {
  using S = attn::detail::Simd<TypeParam>;
  using Panels = attn::kernel::PanelWeights<TypeParam, TypeParam>;
  using Sink = attn::kernel::RowsSink<TypeParam>;
  const Index K = 67, N = 41, L = 29;
  const auto X = uniform<TypeParam>(L, K, 1), W = uniform<TypeParam>(K, N, 2, 0.2),
             b = uniform<TypeParam>(1, N, 3);
  attn::detail::PackedProjection<TypeParam, Eigen::Dynamic> packed;
  packed.pack(W, b);
  const Panels weights = packed.view();
  attn::Workspace<TypeParam> strips, rows;
  TypeParam* const x = strips.reserve(L * weights.depth());
  const Sink sink{rows.reserve(L * Sink::stride_for(N)), Sink::stride_for(N)};
  attn::kernel::pack_strips<S>([&](Index i) { return X.data() + i * K; }, 1, L, K, weights.depth(),
                               x);
  attn::kernel::project_piece<S>(x, 0, L, weights, static_cast<TypeParam*>(nullptr), sink);
  DynamicMatrix<TypeParam> Y(L, N);
  for (Index i = 0; i < L; ++i)
    for (Index n = 0; n < N; ++n) Y(i, n) = *sink.address(i, n);
  EXPECT_TRUE(near(Y, support::project(widened(X), widened(W), widened(b)), kTolerance<TypeParam>));
}

}  // namespace
