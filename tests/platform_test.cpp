// tests/platform_test.cpp: every public header once against its formula, in a program that compiles fast: what tells whether a
// compiler and its target serve at all. Most of it shares few instantiations, so that a check costs little.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "support/any_mask.h"
#include "support/layer_gradient_case.h"
#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/random_linear.h"
#include "support/scalar_names.h"
#include "support/special_values.h"
#if ATTN_EXCEPTIONS
#include "support/error_of.h"
#endif

namespace {

using Eigen::Index;
using Eigen::MatrixXf;
using support::near;
using support::reference_attention;
using support::ReferenceOptions;
using support::same_bits;
using support::uniform;
using RowMatrixXf = support::DynamicMatrix<float>;
using support::AnyMask;

// ---- The build ------------------------------------------------------------------------------

// A flag without its effect (an instruction set that Eigen does not take up) would try nothing new.
TEST(Build, HasThePacketsThatItsLineOfPlatformsNames) {
#if defined(ATTN_EXPECTED_LANES)
  EXPECT_EQ(attn::detail::Simd<float>::width, ATTN_EXPECTED_LANES);
#else
  GTEST_SKIP() << "tests/platforms/lines does not say for this build";
#endif
}

TEST(Build, HasNeonWhereTheCompilerHas) {
#if defined(__ARM_NEON) && !defined(EIGEN_DONT_VECTORIZE)
  constexpr bool compiler = true;
#else
  constexpr bool compiler = false;
#endif
#if defined(EIGEN_VECTORIZE_NEON)
  constexpr bool eigen = true;
#else
  constexpr bool eigen = false;
#endif
  EXPECT_EQ(compiler, eigen);
  EXPECT_EQ(attn::detail::kExactDivision, !compiler || sizeof(void*) == 8);
}

TEST(Build, HasTheVersionAsThreeNumbers) {
  EXPECT_GE(ATTN_VERSION_MAJOR + ATTN_VERSION_MINOR + ATTN_VERSION_PATCH, 1);
}

TEST(Build, HasNativeBfloat16OnlyWithItsInstruction) {
#if defined(__AVX512BF16__) && defined(EIGEN_VECTORIZE_AVX512)
  EXPECT_TRUE(attn::has_native_bfloat16);
#else
  EXPECT_FALSE(attn::has_native_bfloat16);
#endif
}

// ---- Attention ------------------------------------------------------------------------------

struct Small {
  const RowMatrixXf Q = uniform<float>(23, 12, 1, 2), K = uniform<float>(41, 12, 2, 2),
                    V = uniform<float>(41, 19, 3);
  static const Small& get() {
    static const Small small;
    return small;
  }
};

template <class Scalar>
class AttentionOf : public ::testing::Test {};
using Scalars = ::testing::Types<double, Eigen::half>;
TYPED_TEST_SUITE(AttentionOf, Scalars, support::ScalarNames);

TYPED_TEST(AttentionOf, EachScalarIsTheFormula) {
  const auto Q = uniform<TypeParam>(23, 12, 1, 2), K = uniform<TypeParam>(41, 12, 2, 2),
             V = uniform<TypeParam>(41, 19, 3);
  const long double unit =
      static_cast<long double>(static_cast<double>(Eigen::NumTraits<TypeParam>::epsilon()));
  EXPECT_TRUE(near(attn::attention(Q, K, V), reference_attention(Q, K, V).output, 8 * unit));
}

/// A ragged batch of grouped heads, by the one instantiation of its test.
RowMatrixXf batch(const RowMatrixXf& Q, const RowMatrixXf& K, const RowMatrixXf& V,
                  const std::vector<Index>& queries, const std::vector<Index>& keys,
                  int threads = 1) {
  RowMatrixXf Y;
  attn::attention(attn::heads(Q, 4), attn::heads(K, 2), attn::heads(V, 2), attn::into(Y),
                  attn::sequences(queries, keys), attn::parallel(threads));
  return Y;
}
class Batch : public ::testing::Test {
 protected:
  const RowMatrixXf Q = uniform<float>(40, 48, 4), K = uniform<float>(90, 24, 5),
                    V = uniform<float>(90, 14, 6);
  const std::vector<Index> queries = {0, 5, 5, 40}, keys = {0, 33, 40, 90};
  const RowMatrixXf Y = batch(Q, K, V, queries, keys);
};
TEST_F(Batch, IsTheFormula) {
  ReferenceOptions options;
  options.heads = 4;
  options.kv_heads = 2;
  options.query_offsets = queries;
  options.key_offsets = keys;
  EXPECT_TRUE(near(Y, reference_attention(Q, K, V, options).output, 1e-6));
}
TEST_F(Batch, OfOneSequenceHasTheSameBits) {
  EXPECT_TRUE(
      same_bits(batch(Q.bottomRows(35), K.bottomRows(50), V.bottomRows(50), {0, 35}, {0, 50}),
                RowMatrixXf(Y.bottomRows(35))));
}
TEST_F(Batch, OnThreadsHasTheSameBits) {
  EXPECT_TRUE(same_bits(batch(Q, K, V, queries, keys, 3), Y));
}

TEST(Layout, OfAnotherFrameworksMemoryHasTheSameBits) {
  const RowMatrixXf Q = uniform<float>(23, 24, 4), K = uniform<float>(41, 24, 5);
  const RowMatrixXf Y = attn::attention(attn::heads(Q, 2), attn::heads(K, 2), attn::heads(K, 2));
  std::vector<float> q(23 * 24), k(41 * 24), y(23 * 24);  // [1, 2, L, 12]
  const auto split = [](const RowMatrixXf& x, std::vector<float>& memory) {
    std::size_t n = 0;
    for (Index h = 0; h < 2; ++h) {
      for (Index i = 0; i < x.rows(); ++i) {
        for (Index c = 0; c < 12; ++c) memory[n++] = x(i, 12 * h + c);
      }
    }
  };
  split(Q, q);
  split(K, k);
  attn::attention(attn::bhld(q.data(), 1, 2, 23, 12), attn::bhld(k.data(), 1, 2, 41, 12),
                  attn::bhld(k.data(), 1, 2, 41, 12),
                  attn::into(attn::bhld(y.data(), 1, 2, 23, 12)));
  std::vector<float> expected(y.size());
  split(Y, expected);
  EXPECT_EQ(y, expected);
}

TEST(Workspace, IsReusedWithTheSameBits) {
  attn::ScaledDotProductAttention<float> sdpa;
  RowMatrixXf first, second;
  const Small& x = Small::get();
  sdpa(x.Q, x.K, x.V, attn::into(first));
  sdpa(x.Q, x.K, x.V, attn::into(second));
  EXPECT_TRUE(same_bits(first, second));
  EXPECT_TRUE(near(first, reference_attention(x.Q, x.K, x.V).output, 1e-6));
}

TEST(Partial, MergedIsTheFormula) {
  const RowMatrixXf Q = uniform<float>(3, 12, 1, 2), K = uniform<float>(600, 12, 2, 2),
                    V = uniform<float>(600, 5, 3);
  attn::Partial<float> whole, part;
  for (Index first = 0; first < 600; first += 256) {
    const Index keys = std::min<Index>(256, 600 - first);
    const RowMatrixXf k = K.middleRows(first, keys), v = V.middleRows(first, keys);
    attn::attention(Q, k, v, attn::save_partial(part));
    whole.merge(part);
  }
  const RowMatrixXf Y = attn::finish(whole);
  EXPECT_TRUE(near(Y, reference_attention(Q, K, V).output, 1e-6));
}

// ---- Masks ----------------------------------------------------------------------------------

/// Under a mask, by the one instantiation of its tests.
struct Masked {
  RowMatrixXf Y, logsumexp;
  Masked(const RowMatrixXf& Q, const AnyMask& mask) {
    const Small& x = Small::get();
    attn::attention(Q, x.K, x.V, attn::into(Y), attn::save_logsumexp(logsumexp), mask);
  }
};
/// 41 queries on 41 keys under a mask, against the pairs of a rule.
template <class Mask, class Rule>
void expect_pairs(const Mask& mask, const Rule& visible) {
  const Small& x = Small::get();
  const RowMatrixXf Q = uniform<float>(41, 12, 8, 2);
  const Masked masked(Q, AnyMask(mask));
  ReferenceOptions options;
  options.visible = [&](Index, Index, Index i, Index j) { return visible(i, j); };
  EXPECT_TRUE(near(masked.Y, reference_attention(Q, x.K, x.V, options).output, 1e-6));
}
TEST(Mask, Causal) {
  expect_pairs(attn::causal(), [](Index i, Index j) { return j <= i; });
}
TEST(Mask, Window) {
  expect_pairs(attn::window(5, 2), [](Index i, Index j) { return i - 5 <= j && j <= i + 2; });
}
TEST(Mask, PrefixLm) {
  expect_pairs(attn::prefix_lm(9), [](Index i, Index j) { return j <= i || j < 9; });
}
TEST(Mask, KeyLengths) {
  expect_pairs(attn::key_lengths(17), [](Index, Index j) { return j < 17; });
}
TEST(Mask, KeyRange) {
  expect_pairs(attn::key_range(5, 31), [](Index, Index j) { return 5 <= j && j < 31; });
}
TEST(Mask, Segments) {
  std::vector<int> ids(41, 3);
  for (std::size_t i = 20; i < 41; ++i) ids[i] = int(i % 2);
  expect_pairs(attn::segments(ids),
               [&](Index i, Index j) { return ids[std::size_t(i)] == ids[std::size_t(j)]; });
}
TEST(Mask, Tree) {
  std::vector<int> parents(41);
  for (int i = 0; i < 41; ++i) parents[std::size_t(i)] = i == 0 ? -1 : (i - 1) / 2;
  expect_pairs(attn::tree(parents), [&](Index i, Index j) {
    int at = int(i);
    while (at > j) at = parents[std::size_t(at)];
    return at == j;
  });
}
TEST(Mask, BlockSparse) {
  const auto B = support::random_bools(6, 6, 9);
  expect_pairs(attn::block_sparse(B, 8), [&](Index i, Index j) { return B(i / 8, j / 8); });
}
TEST(Mask, Keep) {
  const auto B = support::random_bools(41, 41, 10);
  expect_pairs(attn::keep(B), [&](Index i, Index j) { return B(i, j); });
}
TEST(Mask, Hide) {
  const auto B = support::random_bools(41, 41, 11);
  expect_pairs(attn::hide(B), [&](Index i, Index j) { return !B(i, j); });
}
TEST(Mask, OfAFunctor) {
  const auto rule = [](Index i, Index j) { return (i * j) % 3 == 0; };
  expect_pairs(attn::mask(rule), rule);
}
TEST(Mask, Algebra) {
  expect_pairs((attn::causal() && !attn::window(0, 0)) || attn::key_lengths(3),
               [](Index i, Index j) { return j < i || j < 3; });
}

// ---- Scores ---------------------------------------------------------------------------------

TEST(Score, OfEveryModifierInItsOrder) {
  const Small& x = Small::get();
  const RowMatrixXf B = uniform<float>(23, 41, 12, 2);
  RowMatrixXf Y, l, W, S;
  attn::attention(x.Q, x.K, x.V, attn::into(Y), attn::scale(0.4f), attn::softcap(3.0f),
                  attn::bias(B), attn::alibi({0.125f}), attn::sink({0.5f}), attn::save_logsumexp(l),
                  attn::save_weights(W));
  ReferenceOptions options;
  options.scale = 0.4f;
  options.softcap = 3;
  options.bias = [&](Index, Index, Index i, Index j) {
    return static_cast<long double>(B(i, j)) - 0.125L * std::abs(static_cast<long double>(i - j));
  };
  options.sinks = {0.5L};
  options.save_weights = true;
  const auto expected = reference_attention(x.Q, x.K, x.V, options);
  EXPECT_TRUE(near(Y, expected.output, 2e-6));
  EXPECT_TRUE(near(l, expected.logsumexp, 2e-6));
  EXPECT_TRUE(near(W, expected.weights, 1e-6));
}

ReferenceOptions by_distance() {
  ReferenceOptions options;
  options.modify = [](long double s, Index, Index, Index i, Index j) {
    return s - static_cast<long double>(std::abs(i - j)) / 8;
  };
  return options;
}
TEST(Score, OfAFunctorOfLanes) {
  const Small& x = Small::get();
  const auto relative = attn::score([](auto s, auto at) { return s - abs(at.query - at.key) / 8; });
  EXPECT_TRUE(near(attn::attention(x.Q, x.K, x.V, relative),
                   reference_attention(x.Q, x.K, x.V, by_distance()).output, 1e-6));
}
// ---- Rotary positions -----------------------------------------------------------------------

class Rotary : public ::testing::Test {
 protected:
  const RowMatrixXf X = uniform<float>(70, 30, 13);
  void expect(attn::pairing pairs, bool interleaved) const {
    EXPECT_TRUE(
        near(attn::rotate(attn::heads(X, 3), attn::rotary(pairs, 500), attn::query_offset(-3)),
             support::reference_rotary(support::widened(X), 3, support::counted(70, -3),
                                       {interleaved, 500, 10}),
             1e-6));
  }
};
TEST_F(Rotary, TurnsHalves) { expect(attn::pairing::half_split, false); }
TEST_F(Rotary, TurnsNeighbours) { expect(attn::pairing::interleaved, true); }

// ---- Softmax --------------------------------------------------------------------------------

class Softmax : public ::testing::Test {
 protected:
  const RowMatrixXf S = uniform<float>(9, 37, 14, 5);
  support::Reference weights = support::widened(S).array().exp();
  Eigen::Matrix<long double, Eigen::Dynamic, 1> sums = weights.rowwise().sum();
  void SetUp() override { weights.array().colwise() /= sums.array(); }
};
TEST_F(Softmax, OfRows) { EXPECT_TRUE(near(attn::softmax(S), weights, 1e-6)); }
TEST_F(Softmax, OfColumns) {
  EXPECT_TRUE(near(attn::softmax(S.transpose(), attn::colwise()), weights.transpose(), 1e-6));
}
TEST_F(Softmax, OfLogarithms) {
  EXPECT_TRUE(near(attn::log_softmax(S), support::Reference(weights.array().log()), 2e-6));
}
TEST_F(Softmax, OfLogSumExp) {
  EXPECT_TRUE(near(attn::logsumexp(S), support::Reference(sums.array().log()), 2e-6));
}
TEST_F(Softmax, OfAStateOneByOne) {
  attn::SoftmaxState<float> left, right;
  for (Index j = 0; j < 37; ++j) (j < 20 ? left : right).update(S(0, j));
  EXPECT_NEAR(merge(left, right).logsumexp(), double(std::log(sums(0))), 2e-6);
}
TEST_F(Softmax, MergesResultsOfDisjointKeys) {
  const Small& x = Small::get();
  const Masked a(x.Q, AnyMask(attn::key_lengths(9))), b(x.Q, AnyMask(attn::key_range(9, 41)));
  EXPECT_TRUE(near(attn::merge(a.Y, a.logsumexp, b.Y, b.logsumexp),
                   reference_attention(x.Q, x.K, x.V).output, 1e-6));
}

// ---- Linear layers, activations, residuals --------------------------------------------------

TEST(Activation, IsTheFormula) {
  const RowMatrixXf X = uniform<float>(7, 21, 15, 6);
  const auto expect = [&](const auto& function, long double (*exact)(long double)) {
    EXPECT_TRUE(near(function(X), support::Reference(support::widened(X).unaryExpr(exact)), 2e-6));
  };
  expect(attn::relu, support::relu_of);
  expect(attn::gelu, support::gelu_of);
  expect(attn::gelu_tanh, support::gelu_tanh_of);
  expect(attn::silu, support::silu_of);
}

TEST(Residual, IsTheSum) {
  const RowMatrixXf X = uniform<float>(7, 21, 15), Y = uniform<float>(7, 21, 16);
  EXPECT_TRUE(same_bits(attn::residual_add(X, Y), RowMatrixXf(X + Y)));
}

TEST(Linear, IsTheFormula) {
  auto linear = support::random_linear<float>(attn::LinearOptions(20, 37).bias());
  const RowMatrixXf X = uniform<float>(11, 20, 17), R = uniform<float>(11, 37, 18);
  EXPECT_TRUE(near(
      linear(X, attn::gelu(), attn::residual(R)),
      support::reference_linear(linear.weights(), X, support::gelu_of, support::widened(R)), 2e-6));
}
TEST(Linear, OfNarrowWeightsIsTheFormula) {
  auto linear = support::random_linear<Eigen::bfloat16>(attn::LinearOptions(20, 37).bias());
  const RowMatrixXf X = uniform<float>(11, 20, 17);
  EXPECT_TRUE(
      near(linear(X), support::reference_linear(linear.weights(), X, support::unchanged), 2e-6));
}
TEST(Linear, HasTheGradientOfTheFormula) {
  auto linear = support::random_linear<float>(attn::LinearOptions(20, 37).bias());
  const RowMatrixXf X = uniform<float>(11, 20, 17), dY = uniform<float>(11, 37, 18);
  attn::LinearState<float> state;
  attn::LinearGradients<float> g(linear.options());
  RowMatrixXf Y, dX;
  linear(X, attn::into(Y), attn::save_state(state));
  linear.backward(X, dY, state, attn::dinput(dX), attn::dweights(g));
  const RowMatrixXf W = linear.weights().kernel();
  support::Reference input = support::Reference::Zero(11, 20), weight = input, bias = input;
  weight.setZero(20, 37);
  bias.setZero(1, 37);
  for (Index i = 0; i < 11; ++i) {
    for (Index n = 0; n < 37; ++n) {
      const auto dy = static_cast<long double>(dY(i, n));
      bias(0, n) += dy;
      for (Index c = 0; c < 20; ++c) {
        input(i, c) += dy * static_cast<long double>(W(c, n));
        weight(c, n) += dy * static_cast<long double>(X(i, c));
      }
    }
  }
  EXPECT_TRUE(near(dX, input, 8e-6));
  EXPECT_TRUE(near(g.kernel(), weight, 8e-6));
  EXPECT_TRUE(near(g.bias(), bias, 8e-6));
}

// ---- The layer ------------------------------------------------------------------------------

attn::MultiHeadOptions layer_sizes() { return attn::MultiHeadOptions(24, 4).kv_heads(2).biases(); }

TEST(Layer, HasTheFormulaItsGradientAndItsBitsOverACache) {
  const auto turned = attn::rotary(attn::pairing::half_split);
  support::LayerCase<float> x(layer_sizes(), 37);
  const auto g =
      support::trained_layer<support::Inputs::one>(x, attn::options(attn::causal(), turned));
  auto call = x.reference();
  call.attention.visible = [](Index, Index, Index i, Index j) { return j <= i; };
  call.rotary = support::ReferenceRotary{};
  call.query_positions = call.key_positions = support::counted(37);
  const auto w = support::widened_layer(x.mha.weights());
  const auto input = support::widened(x.Xq);
  EXPECT_TRUE(near(g.Y, support::reference_multi_head(w, input, input, input, call).output, 4e-6));
  support::expect_gradients(g, expected_gradient(x, support::Inputs::one, call),
                            support::Inputs::one);

  if (!support::kRoundsEachStep) GTEST_SKIP() << "x87 rounds where it stores";
  attn::KeyValueCache<float> cache(attn::KeyValueCacheOptions(37, 2, 6));
  RowMatrixXf Y(37, 24);
  for (Index done = 0, n = 23; done < 37; done += n, n = 1)
    x.mha.decode(x.Xq.middleRows(done, n), cache, attn::into(Y.middleRows(done, n)), turned);
  EXPECT_TRUE(same_bits(Y, g.Y));
}

TEST(Layer, LoadsTheWeightsOfAFramework) {
  std::vector<float> in(48), out(16);
  for (std::size_t i = 0; i < 48; ++i) in[i] = float(i);
  for (std::size_t i = 0; i < 16; ++i) out[i] = float(i) / 2;
  attn::PyTorchView<const float> module;
  module.in_proj_weight = in.data();
  module.out_proj_weight = out.data();
  attn::MultiHeadAttention<float> mha(attn::MultiHeadOptions(4, 2));
  mha.edit([&](auto& w) { attn::load(w, module); });
  const auto w = mha.weights();
  EXPECT_EQ(w.query(1, 2), in[2 * 4 + 1]);
  EXPECT_EQ(w.value(3, 0), in[8 * 4 + 3]);
  EXPECT_EQ(w.output(1, 3), out[3 * 4 + 1]);
}

// The same numbers with every standard library, and in every order of bytes.
TEST(Layer, HasTheInitialWeightsOfEveryOtherPlatform) {
  attn::MultiHeadWeights<float> w(attn::MultiHeadOptions(24, 4));
  std::mt19937 engine(42);
  attn::glorot_uniform(w, engine);
  std::uint32_t digest = 0;
  Index count = 0;
  attn::for_each_parameter(w, [&](const char*, const auto& part) {
    for (Index i = 0; i < part.rows(); ++i) {
      for (Index j = 0; j < part.cols(); ++j, ++count) {
        const float number = part(i, j);
        std::uint32_t bits;
        std::memcpy(&bits, &number, sizeof bits);
        digest = digest * 31 + bits;
      }
    }
  });
  EXPECT_EQ(count, 4 * 24 * 24);
  EXPECT_EQ(digest, 2144796430u);
}

// ---- The cache ------------------------------------------------------------------------------

template <class Stored>
class Cache : public ::testing::Test {};
using Storages = ::testing::Types<float, std::int8_t>;
TYPED_TEST_SUITE(Cache, Storages, support::ScalarNames);

TYPED_TEST(Cache, IsTheFormulaAndHasTheBitsOfThePrompt) {
  const RowMatrixXf Q = uniform<float>(40, 48, 4), K = uniform<float>(40, 24, 5),
                    V = uniform<float>(40, 14, 6);
  const auto attend = [](const RowMatrixXf& queries, const attn::KeyValueCache<TypeParam>& cache) {
    return RowMatrixXf(attn::attention(attn::heads(queries, 4), cache));
  };
  const auto sizes = attn::KeyValueCacheOptions(40, 2, 12).value_dim(7);
  attn::KeyValueCache<TypeParam> at_once(sizes), one_by_one(sizes);
  at_once.append(K, V);
  const RowMatrixXf Y = attend(Q, at_once);
  for (Index i = 0; i < 40; ++i) {
    one_by_one.append(K.row(i), V.row(i));
    EXPECT_TRUE(same_bits(attend(Q.row(i), one_by_one), RowMatrixXf(Y.row(i)))) << i;
  }
  ReferenceOptions options;
  options.heads = 4;
  options.kv_heads = 2;
  options.visible = [](Index, Index, Index i, Index j) { return j <= i; };
  const double tolerance = std::is_same_v<TypeParam, float> ? 1e-6 : 1e-2;
  EXPECT_TRUE(near(Y, reference_attention(Q, K, V, options).output, tolerance));
}

// ---- Gradients and dropout ------------------------------------------------------------------

TEST(Gradient, OfEveryModifierIsTheFormulas) {
  const support::GradientCase<float> x(23, 41, 12, 7);
  const RowMatrixXf B = uniform<float>(23, 41, 12);
  const auto drop = attn::dropout(0.3, 42, 7);
  const auto call = attn::options(attn::causal_from(9), attn::bias(B), attn::alibi({0.125f}),
                                  attn::sink({0.5f}), attn::scale(0.4f), drop);
  support::Training<float> g;
  RowMatrixXf dB;
  Eigen::VectorXf dslope, dlogit;
  float dscale = 0;
  g.forward(x, call);
  g.backward(x, call, attn::dbias(dB), attn::dalibi(dslope), attn::dsink(dlogit),
             attn::dscale(dscale));
  ReferenceOptions options = x.reference();
  options.scale = 0.4f;
  options.bias = [&](Index, Index, Index i, Index j) {
    return static_cast<long double>(B(i, j)) -
           0.125L * std::abs(static_cast<long double>(i + 9 - j));
  };
  options.sinks = {0.5L};
  options.visible = [](Index, Index, Index i, Index j) { return j <= i + 9; };
  options.keeps = [&](Index b, Index h, Index i, Index j) {
    return attn::keeps(drop, {b, h, i + 9, j});
  };
  options.dropped = drop.dropped / 65536.0L;
  const auto expected = support::reference_gradient(x.Q, x.K, x.V, x.dY, options);
  support::expect_gradients(g, expected);
  EXPECT_TRUE(support::near_gradient<float>(dB, expected.added));
  EXPECT_NEAR(dlogit(0), double(expected.sinks[0]), 4e-6);
  EXPECT_NEAR(dscale, double(expected.scale), 2e-5);
  long double of_slope = 0;
  for (Index i = 0; i < 23; ++i) {
    for (Index j = 0; j < 41; ++j)
      of_slope -= expected.added(i, j) * static_cast<long double>(std::abs(i + 9 - j));
  }
  EXPECT_NEAR(dslope(0), double(of_slope), 1e-4);
}

TEST(Dropout, DropsThePairsOfEveryOtherPlatform) {
  std::string kept;
  for (Index key = 0; key < 64; ++key)
    kept += attn::keeps(attn::dropout(0.5, 1, 2), {3, 4, 5, key}) ? '1' : '0';
  EXPECT_EQ(kept, "1001100001110010001110101100101000100101100001110111011111100111");
}

// ---- Errors ---------------------------------------------------------------------------------

#if ATTN_EXCEPTIONS
TEST(Errors, SayWhatDoesNotFit) {
  const MatrixXf Q(3, 4), K(5, 6), V(7, 4);
  MatrixXf Y = MatrixXf::Constant(1, 1, 8);
  const auto error = support::error_of([&] { attn::attention(Q, K, V, attn::into(Y)); });
  EXPECT_NE(error.find("attn::attention: "), std::string::npos) << error;
  EXPECT_EQ(Y, MatrixXf::Constant(1, 1, 8));
}
TEST(Errors, RefuseATokenBeyondTheCache) {
  attn::KeyValueCache<float> cache(attn::KeyValueCacheOptions(2, 1, 4));
  const MatrixXf K = MatrixXf::Zero(3, 4);
  const auto error = support::error_of([&] { cache.append(K, K); });
  EXPECT_NE(error.find("attn::KeyValueCache::append: "), std::string::npos) << error;
  EXPECT_EQ(cache.length(), 0);
}
#elif GTEST_HAS_DEATH_TEST
TEST(ErrorsDeathTest, EndTheProgramWithTheirMessage) {
  const MatrixXf Q(3, 4), K(5, 6), V(7, 4);
  EXPECT_DEATH(static_cast<void>(attn::attention(Q, K, V)), "attn::attention: ");
}
#endif

}  // namespace
