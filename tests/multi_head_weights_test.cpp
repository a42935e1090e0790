// tests/multi_head_weights_test.cpp: a layer's weights: how they are written, views of other frameworks, initialisers.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>

#include <cmath>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "support/error_of.h"
#include "support/matrix_matchers.h"
#include "support/random_layer.h"

namespace {

using attn::MultiHeadAttention;
using attn::MultiHeadOptions;
using Eigen::Index;
using Eigen::MatrixXf;
using support::error_of;
using support::random_layer;
using support::same_bits;
using support::uniform;

std::vector<float> counted(std::size_t n, float first) {
  std::vector<float> numbers(n);
  std::iota(numbers.begin(), numbers.end(), first);
  return numbers;
}
template <class Scalar>
MatrixXf row(std::initializer_list<Scalar> numbers) {
  MatrixXf m(1, Index(numbers.size()));
  Index n = 0;
  for (const Scalar x : numbers) m(0, n++) = float(x);
  return m;
}

// ---- Writing ------------------------------------------------------------------------------------

TEST(LayerWeights, AreZeroAtFirst) {
  MultiHeadAttention<float> mha(MultiHeadOptions(8, 2).in_bias().out_bias());
  const MatrixXf X = uniform<float>(3, 8, 1);
  EXPECT_EQ(MatrixXf(mha(X)), MatrixXf::Zero(3, 8));
  EXPECT_EQ(mha.weights().query_bias.size(), 8);
  EXPECT_EQ(MultiHeadAttention<float>(MultiHeadOptions(8, 2)).weights().query_bias.size(), 0);
}

TEST(LayerWeights, TakeEffectAtOnceHowEverTheyAreSet) {
  const auto options = MultiHeadOptions(6, 2).key_features(5).value_features(4).value_dim(7);
  auto mha = random_layer<float>(options);
  const MatrixXf Xq = uniform<float>(3, 6, 1), Xk = uniform<float>(4, 5, 2),
                 Xv = uniform<float>(4, 4, 3);
  const MatrixXf Y = mha(Xq, Xk, Xv);
  MultiHeadAttention<float> other(options);
  other.set_query(mha.weights().query);
  other.set_key(mha.weights().key);
  other.set_value(mha.weights().value);
  other.set_output(mha.weights().output);
  EXPECT_TRUE(same_bits(MatrixXf(other(Xq, Xk, Xv)), Y));
  MultiHeadAttention<float> biased(MultiHeadOptions(6, 2).in_bias().out_bias());
  const MatrixXf W = uniform<float>(6, 6, 4);
  const Eigen::RowVectorXf b = uniform<float>(1, 6, 5);
  biased.set_output(W, b);
  EXPECT_TRUE(same_bits(biased.weights().output, W));
  EXPECT_TRUE(same_bits(MatrixXf(biased(W)), MatrixXf(b.replicate(6, 1))));  // values are zero
  EXPECT_EQ(error_of([&] { biased.set_key(W, b.head(5)); }),
            "attn::MultiHeadAttention: the key bias is 1x5, needs 1x6");
  other.edit([](auto& w) { w.output *= 2; });
  EXPECT_TRUE(same_bits(MatrixXf(other(Xq, Xk, Xv)), MatrixXf(2 * Y)));
  EXPECT_TRUE(same_bits(other.weights().output, MatrixXf(2 * mha.weights().output)));
}

TEST(LayerWeights, StayAsTheyWereWhereAnEditFails) {
  auto mha = random_layer<float>(MultiHeadOptions(6, 2).in_bias());
  const auto copy = mha;
  const MatrixXf X = uniform<float>(3, 6, 1), Y = mha(X);
  EXPECT_EQ(error_of([&] {
              mha.edit([](auto& w) {
                w.query.setZero();
                w.key.resize(6, 5);
              });
            }),
            "attn::MultiHeadAttention::edit: the key weight is 6x5, needs 6x6");
  EXPECT_EQ(error_of([&] { mha.edit([](auto& w) { w.value_bias.resize(0); }); }),
            "attn::MultiHeadAttention::edit: the value bias is 1x0, needs 1x6");
  EXPECT_EQ(error_of([&] { mha.edit([](auto& w) { w.output_bias.setZero(6); }); }),
            "attn::MultiHeadAttention::edit: the output bias is given, the layer has none; it has "
            "where it is made with MultiHeadOptions(...).out_bias()");
  EXPECT_EQ(error_of([&] { mha.edit([](auto& w) { w.kv_heads = 1; }); }),
            "attn::MultiHeadAttention::edit: the weights have 2 heads on 1, the layer 2 on 2");
  EXPECT_EQ(error_of([&] { mha.set_output(X); }),
            "attn::MultiHeadAttention: the output weight is 3x6, needs 6x6");
  EXPECT_THROW(mha.edit([](auto& w) {
    w.query.setZero();
    throw std::runtime_error("the user's");
  }),
               std::runtime_error);
  EXPECT_TRUE(same_bits(mha.weights().query, copy.weights().query));
  EXPECT_TRUE(same_bits(MatrixXf(mha(X)), Y));
}

TEST(LayerWeights, AreCopiedWithTheLayer) {
  auto mha = random_layer<float>(MultiHeadOptions(6, 2));
  const MatrixXf X = uniform<float>(3, 6, 1), Y = mha(X);
  auto copy = mha;
  mha.edit([](auto& w) { w.value.setZero(); });
  EXPECT_TRUE(same_bits(MatrixXf(copy(X)), Y));
  copy = mha;
  EXPECT_EQ(MatrixXf(copy(X)), MatrixXf::Zero(3, 6));
}

/// Sizes around those of panels; what a copy could lose: NaN, -0, infinity.
template <class Scalar>
void expect_every_bit_back() {
  const auto options =
      MultiHeadOptions(33, 4).key_dim(8).value_dim(7).kv_heads(2).value_features(65).biases();
  attn::MultiHeadWeights<Scalar> given(options);
  support::randomize(given, 3);
  given.query(0, 31) = given.output_bias(32) = Scalar(-0.0f);
  given.value(64, 13) = given.key_bias(15) = Scalar(std::nanf(""));
  given.output(27, 32) = given.query_bias(0) = Scalar(INFINITY);
  MultiHeadAttention<Scalar> mha(options);
  mha.edit([&](auto& w) { w = given; });
  mha.edit([](auto&) {});
  const auto& w = mha.weights();
  EXPECT_TRUE(same_bits(w.query, given.query));
  EXPECT_TRUE(same_bits(w.key, given.key));
  EXPECT_TRUE(same_bits(w.value, given.value));
  EXPECT_TRUE(same_bits(w.output, given.output));
  EXPECT_TRUE(same_bits(w.query_bias, given.query_bias));
  EXPECT_TRUE(same_bits(w.key_bias, given.key_bias));
  EXPECT_TRUE(same_bits(w.value_bias, given.value_bias));
  EXPECT_TRUE(same_bits(w.output_bias, given.output_bias));
}
TEST(LayerWeights, ComeBackBitByBit) {
  expect_every_bit_back<float>();
  expect_every_bit_back<double>();
  expect_every_bit_back<Eigen::half>();
  expect_every_bit_back<Eigen::bfloat16>();
}

TEST(LayerWeights, AreHeldOnce) {
  constexpr std::size_t kNumbers = 4 * 64 * 64;
  EXPECT_LT(sizeof(MultiHeadAttention<float, 64, 8>), kNumbers * 5);
  EXPECT_LT(sizeof(MultiHeadAttention<Eigen::half, 64, 8>), kNumbers * 3);
}

// ---- PyTorch ------------------------------------------------------------------------------------
// E = 4, two heads. in_proj_weight [12, 4] holds 0 … 47 row by row: its first four rows are q_proj_weight, and y = x·Wᵀ, so our
// column n of `query` is its row n: column 0 is (0, 1, 2, 3), row 0 is (0, 4, 8, 12).

TEST(PyTorchWeights, AreReadAsTheModuleMeansThem) {
  const auto in = counted(48, 0), bias = counted(12, 100), out = counted(16, 200),
             out_bias = counted(4, 300);
  attn::PyTorchView<const float> view;
  view.in_proj_weight = in.data();
  view.in_proj_bias = bias.data();
  view.out_proj_weight = out.data();
  view.out_proj_bias = out_bias.data();
  MultiHeadAttention<float> mha(MultiHeadOptions(4, 2).in_bias().out_bias());
  mha.edit([&](auto& w) { attn::load(w, view); });
  const auto& w = mha.weights();
  EXPECT_EQ(MatrixXf(w.query.row(0)), row({0, 4, 8, 12}));
  EXPECT_EQ(MatrixXf(w.query.row(3)), row({3, 7, 11, 15}));
  EXPECT_EQ(MatrixXf(w.key.row(0)), row({16, 20, 24, 28}));
  EXPECT_EQ(MatrixXf(w.value.row(1)), row({33, 37, 41, 45}));
  EXPECT_EQ(MatrixXf(w.output.row(0)), row({200, 204, 208, 212}));
  EXPECT_EQ(MatrixXf(w.query_bias), row({100, 101, 102, 103}));
  EXPECT_EQ(MatrixXf(w.key_bias), row({104, 105, 106, 107}));
  EXPECT_EQ(MatrixXf(w.value_bias), row({108, 109, 110, 111}));
  EXPECT_EQ(MatrixXf(w.output_bias), row({300, 301, 302, 303}));

  std::vector<float> in_back(48), bias_back(12), out_back(16), out_bias_back(4);
  attn::PyTorchView<float> back;
  back.in_proj_weight = in_back.data();
  back.in_proj_bias = bias_back.data();
  back.out_proj_weight = out_back.data();
  back.out_proj_bias = out_bias_back.data();
  attn::store(w, back);
  EXPECT_EQ(in_back, in);
  EXPECT_EQ(bias_back, bias);
  EXPECT_EQ(out_back, out);
  EXPECT_EQ(out_bias_back, out_bias);
}

// One token, so that the attention weight is 1 and the output is W_o·(W_v·x + b_v) + b_o as the module writes it:
// x = (1, 0, 0, −1) gives W_v·x = first − last column of rows 32 … 35 etc. = −3 each; + (108 … 111) = (105, 106, 107, 108);
// out row 0: 200·105 + 201·106 + 202·107 + 203·108 = 85844, + 300 = 86144.
TEST(PyTorchWeights, GiveTheModulesOutput) {
  const auto in = counted(48, 0), bias = counted(12, 100), out = counted(16, 200),
             out_bias = counted(4, 300);
  attn::PyTorchView<const float> view;
  view.in_proj_weight = in.data();
  view.in_proj_bias = bias.data();
  view.out_proj_weight = out.data();
  view.out_proj_bias = out_bias.data();
  MultiHeadAttention<double> mha(MultiHeadOptions(4, 2).in_bias().out_bias());
  mha.edit([&](auto& w) { attn::load(w, view); });
  const Eigen::RowVector4d x(1, 0, 0, -1), y = mha(x);
  EXPECT_EQ(y(0), 86144);
  EXPECT_EQ(y(1), 86144 + 4 * (105 + 106 + 107 + 108) + 1);
}

TEST(PyTorchWeights, MayBeSeparateForInputsOfOtherWidths) {
  // embed_dim 2, kdim 3, vdim 1: q_proj [2, 2], k_proj [2, 3], v_proj [2, 1].
  const auto q = counted(4, 0), k = counted(6, 10), v = counted(2, 20), out = counted(4, 30);
  attn::PyTorchView<const float> view;
  view.q_proj_weight = q.data();
  view.k_proj_weight = k.data();
  view.v_proj_weight = v.data();
  view.out_proj_weight = out.data();
  MultiHeadAttention<float> mha(MultiHeadOptions(2, 1).key_features(3).value_features(1));
  mha.edit([&](auto& w) { attn::load(w, view); });
  MatrixXf key(3, 2), value(1, 2), query(2, 2);
  key << 10, 13, 11, 14, 12, 15;
  value << 20, 21;
  query << 0, 2, 1, 3;
  EXPECT_EQ(mha.weights().query, query);
  EXPECT_EQ(mha.weights().key, key);
  EXPECT_EQ(mha.weights().value, value);
  std::vector<double> q_back(4), k_back(6), v_back(2), out_back(4);
  attn::PyTorchView<double> back;
  back.q_proj_weight = q_back.data();
  back.k_proj_weight = k_back.data();
  back.v_proj_weight = v_back.data();
  back.out_proj_weight = out_back.data();
  attn::store(mha.weights(), back);
  EXPECT_EQ(k_back, std::vector<double>(k.begin(), k.end()));
  EXPECT_EQ(out_back, std::vector<double>(out.begin(), out.end()));
}

TEST(PyTorchWeights, AreRefusedWhereTheModuleIsAnother) {
  const auto numbers = counted(48, 0);
  const float* p = numbers.data();
  MultiHeadAttention<float> mha(MultiHeadOptions(4, 2).in_bias());
  MultiHeadAttention<float> wide(MultiHeadOptions(4, 2).key_features(3));
  const auto refusal = [](auto& layer, const attn::PyTorchView<const float>& view) {
    return error_of([&] { layer.edit([&](auto& w) { attn::load(w, view); }); });
  };
  attn::PyTorchView<const float> view;
  EXPECT_EQ(refusal(mha, view),
            "attn::load: needs either in_proj_weight or q_, k_ and v_proj_weight, has neither");
  view.in_proj_weight = view.q_proj_weight = p;
  EXPECT_EQ(refusal(mha, view),
            "attn::load: needs either in_proj_weight or q_, k_ and v_proj_weight, has both");
  view.q_proj_weight = nullptr;
  EXPECT_EQ(refusal(wide, view),
            "attn::load: in_proj_weight joins inputs of one width, query has 4 features, key 3, "
            "value 3: give q_, k_ and v_proj_weight");
  EXPECT_EQ(refusal(mha, view),
            "attn::load: needs either in_proj_bias or q_, k_ and v_proj_bias, has neither");
  view.in_proj_bias = p;
  EXPECT_EQ(refusal(mha, view), "attn::load: out_proj_weight is null, the layer has one");
  view.out_proj_weight = view.out_proj_bias = p;
  EXPECT_EQ(refusal(mha, view),
            "attn::load: out_proj_bias is given, the layer has none; it has where it is made with "
            "MultiHeadOptions(...).in_bias() and .out_bias()");
  view.in_proj_weight = nullptr;
  view.q_proj_weight = view.v_proj_weight = p;
  EXPECT_EQ(refusal(mha, view), "attn::load: k_proj_weight is null, the layer has one");
}

// ---- Keras --------------------------------------------------------------------------------------
// d_model 3, two heads, d_k 2, d_v 1. The query kernel [3, 2, 2] holds 0 … 11: feature 1, head 1 holds (6, 7), which is row 1,
// columns 2 and 3 of ours. The output kernel [2, 1, 3] holds 40 … 45: head 1 is row 1 of ours.

TEST(KerasWeights, AreReadAsTheLayerMeansThem) {
  const auto q = counted(12, 0), k = counted(12, 12), v = counted(6, 24), o = counted(6, 40),
             qb = counted(4, 50), kb = counted(4, 60), vb = counted(2, 70), ob = counted(3, 80);
  const attn::KerasView<const float> view{q.data(),  k.data(),  v.data(),  o.data(),
                                          qb.data(), kb.data(), vb.data(), ob.data()};
  MultiHeadAttention<float> mha(
      MultiHeadOptions(3, 2).key_dim(2).value_dim(1).in_bias().out_bias());
  mha.edit([&](auto& w) { attn::load(w, view); });
  const auto& w = mha.weights();
  EXPECT_EQ(MatrixXf(w.query.row(1)), row({4, 5, 6, 7}));
  EXPECT_EQ(MatrixXf(w.key.row(2)), row({20, 21, 22, 23}));
  EXPECT_EQ(MatrixXf(w.value.row(1)), row({26, 27}));
  EXPECT_EQ(MatrixXf(w.output.row(1)), row({43, 44, 45}));
  EXPECT_EQ(MatrixXf(w.query_bias), row({50, 51, 52, 53}));
  EXPECT_EQ(MatrixXf(w.value_bias), row({70, 71}));
  EXPECT_EQ(MatrixXf(w.output_bias), row({80, 81, 82}));

  std::vector<float> back[8];
  float* parts[8];
  const std::vector<float>* all[] = {&q, &k, &v, &o, &qb, &kb, &vb, &ob};
  for (int n = 0; n < 8; ++n) {
    back[n].resize(all[n]->size());
    parts[n] = back[n].data();
  }
  attn::store(w, attn::KerasView<float>{parts[0], parts[1], parts[2], parts[3], parts[4], parts[5],
                                        parts[6], parts[7]});
  for (int n = 0; n < 8; ++n) EXPECT_EQ(back[n], *all[n]) << n;
}

// One token: y_o = Σ_{h,e} (Σ_i x_i V[i, h, e] + b[h, e]) O[h, e, o] + b_o, by Keras' einsum. x = (1, 2, 0):
//   head 0: 24 + 2·26 + 70 = 146;  head 1: 25 + 2·27 + 71 = 150;  y_0 = 146·40 + 150·43 + 80 = 12370.
TEST(KerasWeights, GiveTheLayersOutput) {
  const auto q = counted(12, 0), k = counted(12, 12), v = counted(6, 24), o = counted(6, 40),
             qb = counted(4, 50), kb = counted(4, 60), vb = counted(2, 70), ob = counted(3, 80);
  MultiHeadAttention<float> mha(
      MultiHeadOptions(3, 2).key_dim(2).value_dim(1).in_bias().out_bias());
  mha.edit([&](auto& w) {
    attn::load(w, attn::KerasView<const float>{q.data(), k.data(), v.data(), o.data(), qb.data(),
                                               kb.data(), vb.data(), ob.data()});
  });
  const Eigen::RowVector3f x(1, 2, 0), y = mha(x);
  EXPECT_EQ(y(0), 12370);
}

TEST(KerasWeights, AreRefusedWhereTheLayerIsAnother) {
  const auto numbers = counted(48, 0);
  const float* p = numbers.data();
  MultiHeadAttention<float> mha(MultiHeadOptions(4, 2).out_bias());
  const auto refusal = [&](const attn::KerasView<const float>& view) {
    return error_of([&] { mha.edit([&](auto& w) { attn::load(w, view); }); });
  };
  attn::KerasView<const float> view{p, p, p, p};
  EXPECT_EQ(refusal(view), "attn::load: output_bias is null, the layer has one");
  view.key_bias = p;
  EXPECT_EQ(refusal(view),
            "attn::load: key_bias is given, the layer has none; it has where it is made with "
            "MultiHeadOptions(...).in_bias() and .out_bias()");
  view.key_bias = view.value_kernel = nullptr;
  EXPECT_EQ(refusal(view), "attn::load: value_kernel is null, the layer has one");
}

// ---- Initialisers ---------------------------------------------------------------------------------

// The 10000th number of a default std::mt19937 is 4123659995 by the standard, so the engine is the same everywhere; what is made
// of it is ours. The first two numbers of seed 5489 are 3499211612 and 581869302: u = (3499211612·2³² + 581869302) / 2⁶⁴ to 53 bits.
TEST(Initializers, DeriveFromTheEnginesBits) {
  std::mt19937 engine;
  const double high = 3499211612.0, low = std::floor(581869302.0 / 2048);
  EXPECT_EQ(attn::detail::uniform_unit(engine), high * 0x1p-32 + low * 0x1p-53);
  std::mt19937_64 wide;
  std::mt19937_64 same;
  EXPECT_EQ(attn::detail::uniform_unit(wide), double(same() >> 11) * 0x1p-53);
  // 2³¹ − 2 values from 1 on: 30 bits a draw, the first 1 · 16807 − 1 = 16806; 282475249 − 1 gives the next 23 of its 30.
  std::minstd_rand0 narrow;
  EXPECT_EQ(attn::detail::uniform_unit(narrow),
            16806 * 0x1p-30 + std::floor(282475248.0 / 128) * 0x1p-53);
}

/// The largest number of a matrix is just below the limit, the mean near 0.
void expect_uniform(const MatrixXf& w, double limit) {
  EXPECT_LE(w.cwiseAbs().maxCoeff(), limit);
  EXPECT_GE(w.cwiseAbs().maxCoeff(), 0.98 * limit);
  EXPECT_NEAR(w.cast<double>().mean(), 0, 0.05 * limit);
}

TEST(Initializers, FollowKerasRule) {
  MultiHeadAttention<float> mha(
      MultiHeadOptions(64, 4).key_dim(20).value_dim(10).in_bias().out_bias());
  mha.edit([](auto& w) { support::randomize(w, 1); });
  std::mt19937 engine(1);
  mha.edit([&](auto& w) { attn::glorot_uniform(w, engine); });
  // Kernel [64, 4, 20]: fan_in 64·4, fan_out 64·20. Kernel [4, 10, 64]: fan_in 4·10, fan_out 4·64.
  expect_uniform(mha.weights().query, std::sqrt(6.0 / (256 + 1280)));
  expect_uniform(mha.weights().key, std::sqrt(6.0 / (256 + 1280)));
  expect_uniform(mha.weights().value, std::sqrt(6.0 / (256 + 640)));
  expect_uniform(mha.weights().output, std::sqrt(6.0 / (40 + 256)));
  EXPECT_EQ(mha.weights().query_bias.cwiseAbs().maxCoeff(), 0);
  EXPECT_EQ(mha.weights().output_bias.cwiseAbs().maxCoeff(), 0);
}

TEST(Initializers, FollowPyTorchsRule) {
  MultiHeadAttention<float> mha(MultiHeadOptions(64, 4).in_bias().out_bias());
  mha.edit([](auto& w) { support::randomize(w, 1); });
  std::mt19937 engine(1);
  mha.edit([&](auto& w) { attn::pytorch_uniform(w, engine); });
  expect_uniform(mha.weights().query, std::sqrt(6.0 / 256));  // [192, 64]
  expect_uniform(mha.weights().key, std::sqrt(6.0 / 256));
  expect_uniform(mha.weights().value, std::sqrt(6.0 / 256));
  expect_uniform(mha.weights().output, 1.0 / 8);
  EXPECT_EQ(mha.weights().value_bias.cwiseAbs().maxCoeff(), 0);
  MultiHeadAttention<float> cross(MultiHeadOptions(64, 4).key_features(100));
  cross.edit([&](auto& w) { attn::pytorch_uniform(w, engine); });
  expect_uniform(cross.weights().query, std::sqrt(6.0 / 128));
  expect_uniform(cross.weights().value, std::sqrt(6.0 / 164));
}

TEST(Initializers, GiveTheSameNumbersInEveryStorage) {
  const auto options = MultiHeadOptions(8, 2);
  const auto with = [&](auto layer) {
    std::mt19937 engine(7);
    layer.edit([&](auto& w) { attn::glorot_uniform(w, engine); });
    return MatrixXf(layer.weights().output.template cast<float>());
  };
  const MatrixXf numbers = with(MultiHeadAttention<float>(options));
  EXPECT_TRUE(same_bits(with(MultiHeadAttention<double>(options)), numbers));
  EXPECT_TRUE(same_bits(with(MultiHeadAttention<Eigen::half>(options)),
                        MatrixXf(numbers.cast<Eigen::half>().cast<float>())));
  EXPECT_TRUE(same_bits(with(MultiHeadAttention<float, 8, 2>()), numbers));
}

}  // namespace
