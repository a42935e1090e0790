// tests/multi_head_gradient_calls_test.cpp: the gradients of the layer under all that a call of it
// may be asked for: masks, rotary positions, dropout, residuals, what modifies scores and its
// gradients.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <type_traits>
#include <vector>

#include "support/layer_gradient_case.h"
#include "support/scalar_names.h"

namespace {

using attn::MultiHeadOptions;
using Eigen::Index;
using support::BatchCase;
using support::DynamicMatrix;
using support::expect_same_weights;
using support::Inputs;
using support::LayerCall;
using support::LayerCase;
using support::near;
using support::near_gradient;
using support::Reference;
using support::same_bits;
using support::trained_layer;
using support::widened;

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

template <class Scalar>
class MultiHeadGradientCall : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(MultiHeadGradientCall, Scalars, support::ScalarNames);

// ---- Masks, positions, dropout, a bias --------------------------------------------------------

/// What one call is asked for, all told at run time: one instantiation for all of it.
struct Asked {
  attn::pairing pairs = attn::pairing::half_split;
  Index dims = 6, offset = 0;
  double base = 10000;
  double visible = 1;  ///< the part of all pairs
  double dropped = 0;
};

template <class Scalar>
struct Positioned {
  LayerCase<Scalar>& x;
  Asked asked;
  DynamicMatrix<bool> M;
  DynamicMatrix<Scalar> B, R;
  attn::detail::Dropout drop;

  Positioned(LayerCase<Scalar>& c, const Asked& a)
      : x(c),
        asked(a),
        M(support::random_bools(c.longest_query(), c.longest_key(), 41, a.visible)),
        B(support::uniform<Scalar>(c.longest_query(), c.heads * c.longest_key(), 42)),
        R(support::uniform<Scalar>(c.queries.back(), c.mha.options().output_features(), 43)),
        drop(attn::dropout(a.dropped, 77, 5)) {}

  auto call() const {
    return attn::options(attn::keep(M), attn::bias(attn::heads(B, x.heads)),
                         attn::rotary(asked.pairs, asked.base).dims(asked.dims), drop,
                         attn::query_offset(asked.offset), attn::residual(R));
  }
  LayerCall reference() const {
    LayerCall call = x.reference();
    auto& attention = call.attention;
    attention.visible = [this](Index, Index, Index i, Index j) { return bool(M(i, j)); };
    attention.bias = [this](Index, Index h, Index i, Index j) {
      return static_cast<long double>(B(i, h * x.longest_key() + j));
    };
    attention.keeps = [this](Index b, Index h, Index i, Index j) {
      return attn::keeps(drop, {b, h, i + asked.offset, j});
    };
    attention.dropped = drop.dropped / 65536.L;
    call.rotary = support::ReferenceRotary{asked.pairs == attn::pairing::interleaved,
                                           static_cast<long double>(asked.base), asked.dims};
    for (Index b = 0; b < x.sequences(); ++b) {
      for (Index i = 0; i < x.query_length(b); ++i)
        call.query_positions.push_back(i + asked.offset);
      if (b > 0 && x.keys.size() == 2) continue;
      for (Index j = 0; j < x.key_length(b); ++j) call.key_positions.push_back(j);
    }
    return call;
  }
};

template <Inputs given, class Scalar>
void expect_formula(LayerCase<Scalar> x, const Asked& asked) {
  SCOPED_TRACE(testing::Message() << asked.dims << " features turn, offset " << asked.offset
                                  << ", visible " << asked.visible << ", dropped "
                                  << asked.dropped);
  const Positioned<Scalar> positioned(x, asked);
  DynamicMatrix<Scalar> dB;
  const auto g = trained_layer<given>(x, positioned.call(), attn::dbias(dB));
  const LayerCall call = positioned.reference();
  const auto expected = expected_gradient(x, given, call);
  expect_gradients(g, expected, given);
  EXPECT_TRUE(near_gradient<Scalar>(
      dB, support::bias_gradient(expected.attention.added, call.attention, x.longest_query(),
                                 x.heads, x.longest_key())))
      << "by the bias";
}

const auto kShape = MultiHeadOptions(24, 4).kv_heads(2).key_dim(8).value_dim(5).biases();

TYPED_TEST(MultiHeadGradientCall, OfSelfAttentionIsTheFormula) {
  const LayerCase<TypeParam> x(kShape, BatchCase{{0, 5, 45, 45, 82}, {0, 5, 45, 45, 82}});
  for (const attn::pairing pairs : {attn::pairing::half_split, attn::pairing::interleaved}) {
    for (const Index dims : {2, 4, 8}) {
      Asked asked{pairs, dims};
      asked.base = 100;
      expect_formula<Inputs::one>(x, asked);
    }
  }
  expect_formula<Inputs::one>(x, {attn::pairing::half_split, 8, 3, 10000, 0.6, 0.3});
}
TYPED_TEST(MultiHeadGradientCall, OfCrossAttentionIsTheFormula) {
  const auto narrow = kShape.key_features(10).output_features(19);
  const BatchCase ragged{{0, 7, 7, 38}, {0, 12, 30, 139}}, shared{{0, 7, 7, 38}, {0, 33}};
  for (const BatchCase& batch : {ragged, shared}) {
    const LayerCase<TypeParam> x(narrow, batch), y(narrow.value_features(17), batch);
    expect_formula<Inputs::two>(x, {attn::pairing::interleaved, 4, 0, 100, 0.7, 0});
    expect_formula<Inputs::two>(x, {attn::pairing::half_split, 8, 5, 100, 0.2, 0.25});
    expect_formula<Inputs::three>(y, {attn::pairing::half_split, 4, 0, 100, 1, 0.5});
    expect_formula<Inputs::three>(y, {attn::pairing::interleaved, 6, -3, 100, 0.5, 0.1});
  }
}

// Positions of the rotation alone, by lists; keys in parts.
TYPED_TEST(MultiHeadGradientCall, OfExplicitPositionsIsTheFormula) {
  LayerCase<TypeParam> x(kShape, BatchCase{{0, 7, 18}, {0, 9, 31}});
  x.Xk.leftCols(3) *= TypeParam(0.5);
  LayerCall call = x.reference();
  for (Index i = 0; i < 18; ++i) call.query_positions.push_back(i * i % 29);
  for (Index j = 0; j < 31; ++j) call.key_positions.push_back(j * 7 % 31);
  call.rotary = support::ReferenceRotary{true, 100, 8};
  const auto g =
      trained_layer<Inputs::two>(x, attn::rotary(attn::pairing::interleaved, 100)
                                        .positions(call.query_positions, call.key_positions));
  expect_gradients(g, expected_gradient(x, Inputs::two, call), Inputs::two);
}

// ---- Residuals ------------------------------------------------------------------------------

TYPED_TEST(MultiHeadGradientCall, OfAQueryInputThatIsTheResidualHasTheOutputsToo) {
  LayerCase<TypeParam> x(MultiHeadOptions(24, 4).kv_heads(2).biases(),
                         BatchCase{{0, 5, 19}, {0, 5, 19}});
  const auto expect = [&](auto given) {
    constexpr Inputs kGiven = decltype(given)::value;
    auto expected = expected_gradient(x, kGiven, x.reference());
    expected.query += widened(x.dY);
    expect_gradients(trained_layer<kGiven>(x, attn::residual()), expected, kGiven);
  };
  expect(std::integral_constant<Inputs, Inputs::one>());
  expect(std::integral_constant<Inputs, Inputs::two>());
}
TYPED_TEST(MultiHeadGradientCall, DoesNotLookAtAnotherResidual) {
  LayerCase<TypeParam> x(MultiHeadOptions(24, 4).output_features(10).out_bias(), 19);
  const DynamicMatrix<TypeParam> R = support::uniform<TypeParam>(19, 10, 9);
  const auto g = trained_layer<Inputs::one>(x, attn::residual(R));
  EXPECT_TRUE(near(g.Y, widened(trained_layer<Inputs::one>(x, attn::options()).Y) + widened(R),
                   std::is_same_v<TypeParam, float> ? 1e-6 : 1e-14));
  expect_same_gradients(g, trained_layer<Inputs::one>(x, attn::options()));
}

// ---- One matrix that serves as several --------------------------------------------------------

// Whether the same matrix or a copy of it: what each input gets adds up.
TYPED_TEST(MultiHeadGradientCall, OfAMatrixThatServesTwiceIsTheSum) {
  LayerCase<TypeParam> x(MultiHeadOptions(24, 4).biases(), 21);
  x.Xk = x.Xv = x.Xq;
  const auto one = trained_layer<Inputs::one>(x, attn::options()),
             two = trained_layer<Inputs::two>(x, attn::options()),
             three = trained_layer<Inputs::three>(x, attn::options());
  const long double unit = std::is_same_v<TypeParam, float> ? 1e-6L : 1e-14L;
  EXPECT_TRUE(same_bits(two.query, three.query));
  EXPECT_TRUE(near(two.key, widened(three.key) + widened(three.value), unit));
  EXPECT_TRUE(near(one.query, widened(three.query) + widened(two.key), unit));
  expect_same_weights(one.weights, three.weights);
  expect_same_weights(two.weights, three.weights);

  // The very same matrix three times over.
  auto again = three;
  x.mha(x.Xq, x.Xq, x.Xq, attn::into(again.Y), attn::save_state(again.state));
  EXPECT_TRUE(same_bits(again.Y, three.Y));
  x.mha.backward(x.Xq, x.Xq, x.Xq, x.dY, again.state, attn::dweights(again.weights),
                 attn::dquery(again.query), attn::dkey(again.key), attn::dvalue(again.value));
  expect_same_gradients(again, three);
}

// ---- What else modifies scores --------------------------------------------------------------

TYPED_TEST(MultiHeadGradientCall, GivesTheGradientsOfWhatModifiesScores) {
  using Vector = Eigen::Matrix<TypeParam, Eigen::Dynamic, 1>;
  LayerCase<TypeParam> x(kShape, BatchCase{{0, 11, 40}, {0, 11, 40}});
  Vector slopes(4), sinks(4);
  slopes << 0.25, 0.125, -0.0625, 0.5;
  sinks << 0.5, -1, 0, 1.5;
  LayerCall call = x.reference();
  auto& attention = call.attention;
  attention.scale = 0.375L;
  attention.softcap = 2;
  attention.visible = [](Index, Index, Index i, Index j) { return j <= i; };
  attention.bias = [&](Index, Index h, Index i, Index j) {
    return -static_cast<long double>(slopes[h]) * static_cast<long double>(std::abs(i - j));
  };
  attention.modify = [](long double s, Index, Index h, Index, Index) {
    return s + std::tanh(s) / 2 + static_cast<long double>(h);
  };
  support::GradientInputs inputs;
  inputs.slope = [](long double s, Index, Index, Index, Index) {
    const long double t = std::tanh(s);
    return 1 + (1 - t * t) / 2;
  };
  attention.sinks.assign(sinks.begin(), sinks.end());
  // The loss depends on the log-sum-exp too.
  const DynamicMatrix<TypeParam> dl = support::uniform<TypeParam>(40, 4, 51);
  inputs.logsumexp = widened(dl);

  Vector dalibi, dsink;
  TypeParam dscale = 0, of_functor = 0;
  const auto functor = attn::score([](auto s, auto a) { return s + tanh(s) * 0.5f + a.head; });
  const auto g = trained_layer<Inputs::one>(
      x,
      attn::options(attn::causal(), attn::scale(TypeParam(0.375)), attn::softcap(TypeParam(2)),
                    attn::alibi(slopes), attn::sink(sinks), functor),
      attn::dlogsumexp(dl), attn::dalibi(dalibi), attn::dsink(dsink), attn::dscale(dscale),
      attn::dscore([&](TypeParam ds, attn::At) { of_functor += ds; }));
  const auto expected = expected_gradient(x, Inputs::one, call, inputs);
  expect_gradients(g, expected, Inputs::one);

  const auto slopes_expected = support::alibi_gradient(expected.attention.added, attention,
                                                       [](Index, Index i) { return i; });
  ASSERT_EQ(dalibi.size(), 4);
  ASSERT_EQ(dsink.size(), 4);
  const double unit = std::is_same_v<TypeParam, float> ? 1e-5 : 1e-13;
  for (Index h = 0; h < 4; ++h) {
    EXPECT_NEAR(double(dalibi[h]), double(slopes_expected[at(h)]), unit * 40) << "head " << h;
    EXPECT_NEAR(double(dsink[h]), double(expected.attention.sinks[at(h)]), unit) << "head " << h;
  }
  EXPECT_NEAR(double(dscale), double(expected.attention.scale), unit * 4);
  EXPECT_NEAR(double(of_functor), double(expected.attention.modified.sum()), unit * 4);
}

// A dropout of every part of the pairs, over the same call but for its seed: what the forward pass
// kept is what the backward pass takes back.
TYPED_TEST(MultiHeadGradientCall, TakesBackWhatDropoutKept) {
  LayerCase<TypeParam> x(MultiHeadOptions(12, 2), 70);
  for (const double p : {0.0, 0.1, 0.5, 0.9}) {
    for (const std::uint64_t stream : {0u, 1u}) {
      SCOPED_TRACE(testing::Message() << p << ", stream " << stream);
      const auto drop = attn::dropout(p, 3, stream);
      LayerCall call = x.reference();
      call.attention.keeps = [&](Index b, Index h, Index i, Index j) {
        return attn::keeps(drop, {b, h, i, j});
      };
      call.attention.dropped = drop.dropped / 65536.L;
      const auto g = trained_layer<Inputs::one>(x, drop);
      const auto expected = expected_gradient(x, Inputs::one, call);
      // Few pairs with large weights: as large as 1/(1 − p).
      const long double unit =
          (std::is_same_v<TypeParam, float> ? 1e-6L : 1e-14L) / static_cast<long double>(1 - p);
      support::for_each_weight(
          g.weights, expected.weights,
          [&](const char* name, const auto& by, const Reference& exact) {
            if (exact.size() + by.size() == 0) return;
            EXPECT_TRUE(near(by, exact, unit * (1 + exact.cwiseAbs().maxCoeff()))) << name;
          });
      EXPECT_TRUE(near(g.query, expected.query, unit * (1 + expected.query.cwiseAbs().maxCoeff())));
    }
  }
}

// An input that is computed where it is given is computed once, whatever it serves as.
TEST(MultiHeadGradientCalls, ExpressionsAreEvaluatedOnce) {
  attn::MultiHeadAttention<float> mha(MultiHeadOptions(8, 2));
  mha.edit([](auto& w) {
    attn::for_each_parameter(w, [](const char*, auto& part) { part.setRandom(); });
  });
  const Eigen::MatrixXf X = Eigen::MatrixXf::Random(5, 8), dY = Eigen::MatrixXf::Random(5, 8);
  int evaluated = 0;
  const auto counted = X.unaryExpr([&](float x) {
    ++evaluated;
    return x;
  });
  attn::MultiHeadState<float> state;
  Eigen::MatrixXf dX, expected;
  (void)mha(X, attn::save_state(state));
  mha.backward(X, dY, state, attn::dquery(expected));
  mha.backward(counted, dY, state, attn::dquery(dX));
  EXPECT_TRUE(same_bits(dX, expected));
  EXPECT_EQ(evaluated, X.size());
}

}  // namespace
