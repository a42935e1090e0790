// tests/multi_head_gradient_test.cpp: the gradients of the layer by its weights, biases and inputs
// are the oracle's, in every shape and batch.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>

#include "support/layer_gradient_case.h"
#include "support/scalar_names.h"
#include "support/textbook.h"

namespace {

using attn::MultiHeadOptions;
using Eigen::Index;
using support::BatchCase;
using support::DynamicMatrix;
using support::Inputs;
using support::LayerCase;
using support::near;
using support::Reference;
using support::same_bits;
using support::trained_layer;

template <class Scalar>
class MultiHeadGradient : public ::testing::Test {
 protected:
  using Case = LayerCase<Scalar>;

  template <Inputs given>
  static void expect_formula(Case x) {
    const MultiHeadOptions& o = x.mha.options();
    SCOPED_TRACE(testing::Message()
                 << x.Xq.rows() << " x " << x.Xk.rows() << ", d_model " << o.d_model() << ", heads "
                 << o.heads() << " on " << o.kv_heads() << " of " << o.key_dim() << " and "
                 << o.value_dim());
    expect_gradients(trained_layer<given>(x, attn::options()),
                     expected_gradient(x, given, x.reference()), given);
  }
};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(MultiHeadGradient, Scalars, support::ScalarNames);

// ---- Shapes ---------------------------------------------------------------------------------

// One token, one head, one feature: its weight is 1, whatever the query and the key.
//   x = 2, v = 3·x + ½ = 6.5, y = 4·v − 1, dy = 1.5
//   dW_o = v·dy, dv = 4·dy = 6, dW_v = x·dv, dx = 3·dv
TYPED_TEST(MultiHeadGradient, IsWhatOneFindsByHand) {
  LayerCase<TypeParam> x(MultiHeadOptions(1, 1).biases(), 1);
  x.mha.edit([](auto& w) {
    w.value(0) = 3, w.value_bias(0) = TypeParam(0.5);
    w.output(0) = 4, w.output_bias(0) = -1;
  });
  x.Xq << 2;
  x.dY << TypeParam(1.5);
  const auto g = trained_layer<Inputs::one>(x, attn::options());
  EXPECT_EQ(g.Y(0), 25);
  EXPECT_EQ(g.weights.output(0), TypeParam(6.5 * 1.5));
  EXPECT_EQ(g.weights.output_bias(0), TypeParam(1.5));
  EXPECT_EQ(g.weights.value(0), 12);
  EXPECT_EQ(g.weights.value_bias(0), 6);
  EXPECT_EQ(g.query(0), 18);
  for (const auto* of : {&g.weights.query, &g.weights.key}) EXPECT_EQ((*of)(0), 0);
  for (const auto* of : {&g.weights.query_bias, &g.weights.key_bias}) EXPECT_EQ((*of)(0), 0);
}

TYPED_TEST(MultiHeadGradient, IsTheFormulaInEveryShape) {
  for (const MultiHeadOptions& shape : {
           MultiHeadOptions(1, 1).biases(),
           MultiHeadOptions(64, 8),
           MultiHeadOptions(64, 8).in_bias(),
           MultiHeadOptions(60, 5).out_bias(),
           MultiHeadOptions(33, 3).biases(),
           MultiHeadOptions(16, 4).key_dim(7),
           MultiHeadOptions(16, 4).value_dim(5).in_bias(),
           MultiHeadOptions(20, 6).key_dim(3).value_dim(50).kv_heads(2).out_bias(),
           MultiHeadOptions(48, 6).kv_heads(3).biases(),
           MultiHeadOptions(48, 4).kv_heads(1),
           MultiHeadOptions(24, 4).output_features(9).out_bias(),
           MultiHeadOptions(24, 4).output_features(130),
       }) {
    for (const Index rows : {1, 7, 13, 50})
      this->template expect_formula<Inputs::one>({shape, rows});
  }
}
TYPED_TEST(MultiHeadGradient, IsTheFormulaForInputsOfOtherWidths) {
  const auto shape = MultiHeadOptions(24, 4).kv_heads(2).value_dim(5).output_features(19).biases();
  for (const auto& [queries, keys] :
       {std::pair<Index, Index>{9, 21}, {1, 40}, {40, 1}, {100, 130}}) {
    const BatchCase batch{{0, queries}, {0, keys}};
    this->template expect_formula<Inputs::three>(
        {shape.key_features(10).value_features(37), batch});
    this->template expect_formula<Inputs::three>({shape, batch});
    this->template expect_formula<Inputs::two>({shape.key_features(10), batch});
    this->template expect_formula<Inputs::two>({MultiHeadOptions(24, 4), batch});
  }
}
// Rows around the bounds of tiles, of pieces and of the runs that weight gradients sum over, widths
// around the panel's, and deep ones.
TYPED_TEST(MultiHeadGradient, IsTheFormulaAtEveryBound) {
  using Size = attn::kernel::TileSize<TypeParam>;
  constexpr Index R = Size::rows, P = Size::panel;
  for (const Index width : {P - 1, P, P + 1, 2 * P + 1}) {
    for (const Index rows : {R - 1, R, R + 1, 2 * R + 1}) {
      if (rows < 1 || width < 1) continue;
      this->template expect_formula<Inputs::one>({MultiHeadOptions(width, 1).biases(), rows});
    }
  }
  for (const Index rows : {95, 96, 97, 191, 192, 193, 300}) {
    this->template expect_formula<Inputs::one>({MultiHeadOptions(6, 2).biases(), rows});
    this->template expect_formula<Inputs::three>(
        {MultiHeadOptions(7, 1).key_features(5).value_features(3).biases(),
         BatchCase{{0, rows}, {0, 296 - rows / 2}}});
  }
  this->template expect_formula<Inputs::one>(
      {MultiHeadOptions(3, 1), 2 * Size::max_piece_rows + 3});
  this->template expect_formula<Inputs::two>(
      {MultiHeadOptions(2, 1).key_features(900), BatchCase{{0, 3}, {0, 70}}});
}
TYPED_TEST(MultiHeadGradient, IsTheFormulaForEveryBatch) {
  const auto shape = MultiHeadOptions(12, 4).kv_heads(2).biases();
  for (const std::vector<Index>& lengths : std::vector<std::vector<Index>>{
           {0, 5, 5, 45}, {0, 9, 12}, {0, 1, 2, 3, 4}, {0, 96, 192, 200}}) {
    this->template expect_formula<Inputs::one>({shape, BatchCase{lengths, lengths}});
    this->template expect_formula<Inputs::two>({shape, BatchCase{lengths, lengths}});
  }
  for (const BatchCase& batch : std::vector<BatchCase>{
           {{0, 5, 17, 18, 48}, {0, 9, 9, 75, 150}},  // one sequence without keys
           {{0, 3, 20, 120}, {0, 33}},                // keys that serve all sequences
           {{0, 50, 101}, {0, 100}}}) {
    this->template expect_formula<Inputs::two>({shape, batch});
    this->template expect_formula<Inputs::three>({shape.value_features(7), batch});
  }
}

// ---- Sums -----------------------------------------------------------------------------------

// accumulate() adds all gradients to what is there, rounded once.
TYPED_TEST(MultiHeadGradient, IsAddedToWhatIsThere) {
  LayerCase<TypeParam> x(MultiHeadOptions(24, 4).kv_heads(2).biases(),
                         BatchCase{{0, 5, 17, 118}, {0, 9, 9, 275}});
  const auto g = trained_layer<Inputs::three>(x, attn::options());
  auto sum = g, expected = g;
  std::uint32_t seed = 50;
  const auto start = [&](auto& start_of, auto& expected_of) {
    start_of = support::uniform<TypeParam>(start_of.rows(), start_of.cols(), seed++);
    expected_of += start_of;
  };
  support::for_each_weight(sum.weights, expected.weights,
                           [&](const char*, auto& a, auto& b) { start(a, b); });
  start(sum.query, expected.query);
  start(sum.key, expected.key);
  start(sum.value, expected.value);
  sum.template backward<Inputs::three>(x.mha, x, attn::options(), attn::accumulate());
  expect_same_gradients(sum, expected);
}

// ---- Accuracy -------------------------------------------------------------------------------

/// The layer's gradient by hand in Eigen, one sequence of self-attention with biases.
template <class Scalar>
struct TextbookLayer {
  using Matrix = DynamicMatrix<Scalar>;
  attn::MultiHeadGradients<Scalar> weights;
  Matrix input;

  explicit TextbookLayer(const LayerCase<Scalar>& x) : weights(x.mha.options()) {
    const auto w = x.mha.weights();
    const Index H = x.heads, d = w.key_dim();
    const auto project = [](const Matrix& X, const auto& W, const auto& b) {
      Matrix Y = X * W;
      Y.rowwise() += b;
      return Y;
    };
    const Matrix Q = project(x.Xq, w.query, w.query_bias), K = project(x.Xq, w.key, w.key_bias),
                 V = project(x.Xq, w.value, w.value_bias), dM = x.dY * w.output.transpose();
    Matrix M(Q.rows(), Q.cols()), dQ = M, dK = M, dV = M;
    for (Index h = 0; h < H; ++h) {
      const auto of = [&](const Matrix& all) { return Matrix(all.middleCols(h * d, d)); };
      M.middleCols(h * d, d) = support::textbook_attention<Scalar>(
          of(Q), of(K), of(V), Scalar(1) / std::sqrt(Scalar(int(d))));
      const auto g = support::textbook_gradient<Scalar>(of(Q), of(K), of(V), of(dM));
      dQ.middleCols(h * d, d) = g.query;
      dK.middleCols(h * d, d) = g.key;
      dV.middleCols(h * d, d) = g.value;
    }
    weights.query = x.Xq.transpose() * dQ;
    weights.key = x.Xq.transpose() * dK;
    weights.value = x.Xq.transpose() * dV;
    weights.output = M.transpose() * x.dY;
    weights.query_bias = dQ.colwise().sum();
    weights.key_bias = dK.colwise().sum();
    weights.value_bias = dV.colwise().sum();
    weights.output_bias = x.dY.colwise().sum();
    input = dQ * w.query.transpose() + dK * w.key.transpose() + dV * w.value.transpose();
  }
};

TYPED_TEST(MultiHeadGradient, ErrsByTwiceWhatTheFormulaByHandErrsByAtMost) {
  for (const auto& [rows, width, heads] :
       {std::tuple<Index, Index, Index>{113, 60, 4}, {256, 64, 4}, {40, 256, 8}, {500, 24, 3}}) {
    SCOPED_TRACE(testing::Message() << rows << " rows of " << width);
    LayerCase<TypeParam> x(MultiHeadOptions(width, heads).biases(), rows);
    const auto g = trained_layer<Inputs::one>(x, attn::options());
    const TextbookLayer<TypeParam> h(x);
    const auto expected = expected_gradient(x, Inputs::one, x.reference());
    const long double epsilon = std::numeric_limits<TypeParam>::epsilon();
    // A sum that is 0 but for rounding, as that by the biases of keys, is measured by its terms.
    const auto expect_as_good = [&](const char* name, const auto& ours, const auto& theirs,
                                    const Reference& exact) {
      const long double size = exact.cwiseAbs().maxCoeff();
      EXPECT_LE(double(support::worst_error(ours, exact)),
                double(2 * support::worst_error(theirs, exact) + 2 * epsilon * (1 + size)))
          << name;
    };
    expect_as_good("input", g.query, h.input, expected.query);
    expect_as_good("query", g.weights.query, h.weights.query, expected.weights.query);
    expect_as_good("key", g.weights.key, h.weights.key, expected.weights.key);
    expect_as_good("value", g.weights.value, h.weights.value, expected.weights.value);
    expect_as_good("output", g.weights.output, h.weights.output, expected.weights.output);
    expect_as_good("query bias", g.weights.query_bias, h.weights.query_bias,
                   expected.weights.query_bias);
    expect_as_good("key bias", g.weights.key_bias, h.weights.key_bias, expected.weights.key_bias);
    expect_as_good("value bias", g.weights.value_bias, h.weights.value_bias,
                   expected.weights.value_bias);
    expect_as_good("output bias", g.weights.output_bias, h.weights.output_bias,
                   expected.weights.output_bias);
  }
}

// ---- Nothing --------------------------------------------------------------------------------

TYPED_TEST(MultiHeadGradient, OfNothingIsNothing) {
  using Matrix = DynamicMatrix<TypeParam>;
  const auto options = MultiHeadOptions(8, 2).biases();
  for (const auto& [queries, keys] : {std::pair<Index, Index>{0, 7}, {7, 0}, {0, 0}}) {
    LayerCase<TypeParam> x(options, BatchCase{{0, queries}, {0, keys}});
    const auto g = trained_layer<Inputs::three>(x, attn::options());
    const attn::MultiHeadGradients<TypeParam> zero(options);
    auto expected = zero;
    if (queries > 0) expected.output_bias = x.dY.colwise().sum();
    support::for_each_weight(
        g.weights, expected, [](const char* name, const auto& by, const auto& exact) {
          EXPECT_TRUE(near(by, exact, std::is_same_v<TypeParam, float> ? 1e-6L : 1e-14L)) << name;
        });
    EXPECT_TRUE(same_bits(g.query, Matrix(Matrix::Zero(queries, 8))));
    EXPECT_TRUE(same_bits(g.key, Matrix(Matrix::Zero(keys, 8))));
    EXPECT_TRUE(same_bits(g.value, Matrix(Matrix::Zero(keys, 8))));
  }
  LayerCase<TypeParam> none(options, 0);
  EXPECT_EQ(trained_layer<Inputs::one>(none, attn::options()).query.rows(), 0);
  EXPECT_EQ(trained_layer<Inputs::one>(none, attn::options()).query.cols(), 8);
}

}  // namespace
