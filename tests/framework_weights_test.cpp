// tests/framework_weights_test.cpp: weights as GPT-2 and BERT store them: joined kernels, and biases
// of query, key and value apart.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/framework_weights.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "support/error_of.h"

namespace {

using attn::JoinedView;
using attn::MultiHeadOptions;
using attn::PyTorchView;
using Eigen::Index;
using Eigen::MatrixXf;
using support::error_of;
using Weights = attn::MultiHeadWeights<float>;

std::vector<float> counted(std::size_t n, float first) {
  std::vector<float> numbers(n);
  std::iota(numbers.begin(), numbers.end(), first);
  return numbers;
}
MatrixXf row(std::initializer_list<float> numbers) {
  MatrixXf m(1, Index(numbers.size()));
  std::copy(numbers.begin(), numbers.end(), m.data());
  return m;
}

TEST(Biases, AreOfAllFourProjections) {
  const Weights w(MultiHeadOptions(4, 2).kv_heads(1).output_features(3).biases());
  EXPECT_EQ(w.query_bias.size(), 4);
  EXPECT_EQ(w.key_bias.size(), 2);
  EXPECT_EQ(w.value_bias.size(), 2);
  EXPECT_EQ(w.output_bias.size(), 3);
}

// ---- Joined kernels -----------------------------------------------------------------------------
// d_model 3, two heads on one of d 2: query has 4 columns, key and value 2 each. joined_kernel [3, 8]
// holds 0 … 23 row by row: row 1 is 8 … 15, of which 8 … 11 are query's, 12 and 13 key's, 14 and 15
// value's. output_kernel [4, 3] holds 30 … 41.

struct Joined {
  std::vector<float> kernel = counted(24, 0), bias = counted(8, 100), output = counted(12, 30),
                     output_bias = counted(3, 200);
  JoinedView<const float> view{kernel.data(), bias.data(), output.data(), output_bias.data()};
  MultiHeadOptions options = MultiHeadOptions(3, 2).key_dim(2).kv_heads(1);
};

TEST(JoinedWeights, FallIntoQueryKeyAndValueByColumns) {
  const Joined joined;
  Weights w(joined.options.biases());
  attn::load(w, joined.view);
  EXPECT_EQ(MatrixXf(w.query.row(1)), row({8, 9, 10, 11}));
  EXPECT_EQ(MatrixXf(w.key.row(1)), row({12, 13}));
  EXPECT_EQ(MatrixXf(w.value.row(2)), row({22, 23}));
  EXPECT_EQ(MatrixXf(w.output.row(3)), row({39, 40, 41}));
  EXPECT_EQ(MatrixXf(w.query_bias), row({100, 101, 102, 103}));
  EXPECT_EQ(MatrixXf(w.key_bias), row({104, 105}));
  EXPECT_EQ(MatrixXf(w.value_bias), row({106, 107}));
  EXPECT_EQ(MatrixXf(w.output_bias), row({200, 201, 202}));

  std::vector<double> kernel(24), bias(8), output(12), output_bias(3);
  attn::store(w, JoinedView<double>{kernel.data(), bias.data(), output.data(), output_bias.data()});
  EXPECT_EQ(kernel, std::vector<double>(joined.kernel.begin(), joined.kernel.end()));
  EXPECT_EQ(bias, std::vector<double>(joined.bias.begin(), joined.bias.end()));
  EXPECT_EQ(output, std::vector<double>(joined.output.begin(), joined.output.end()));
  EXPECT_EQ(output_bias, std::vector<double>(joined.output_bias.begin(), joined.output_bias.end()));
}

// c_attn is [in, 3E] where in_proj_weight is [3E, in]: the same weights, turned.
TEST(JoinedWeights, AreTheModulesTurned) {
  const Index E = 4;
  const auto in = counted(48, 0), out = counted(16, 60);
  std::vector<float> joined(48), output(16);
  for (Index n = 0; n < 3 * E; ++n) {
    for (Index c = 0; c < E; ++c) joined[std::size_t(c * 3 * E + n)] = in[std::size_t(n * E + c)];
  }
  for (Index n = 0; n < E; ++n) {
    for (Index c = 0; c < E; ++c) output[std::size_t(c * E + n)] = out[std::size_t(n * E + c)];
  }
  PyTorchView<const float> module;
  module.in_proj_weight = in.data();
  module.out_proj_weight = out.data();
  Weights turned(MultiHeadOptions(E, 2)), w(MultiHeadOptions(E, 2));
  attn::load(turned, module);
  attn::load(w, JoinedView<const float>{joined.data(), nullptr, output.data()});
  EXPECT_EQ(w.query, turned.query);
  EXPECT_EQ(w.key, turned.key);
  EXPECT_EQ(w.value, turned.value);
  EXPECT_EQ(w.output, turned.output);
}

TEST(JoinedWeights, AreRefusedWhereTheLayerIsAnother) {
  const Joined joined;
  const auto refusal = [](const MultiHeadOptions& options, const JoinedView<const float>& view) {
    Weights w(options);
    return error_of([&] { attn::load(w, view); });
  };
  const std::string none =
      " is given, the layer has none; it has where it is made with "
      "MultiHeadOptions(...).in_bias() and .out_bias()";
  EXPECT_EQ(refusal(joined.options, joined.view), "attn::load: joined_bias" + none);
  EXPECT_EQ(refusal(joined.options.in_bias(), joined.view), "attn::load: output_bias" + none);
  auto view = joined.view;
  view.joined_bias = nullptr;
  EXPECT_EQ(refusal(joined.options.biases(), view),
            "attn::load: joined_bias is null, the layer has one");
  view = joined.view;
  view.output_kernel = nullptr;
  EXPECT_EQ(refusal(joined.options.biases(), view),
            "attn::load: output_kernel is null, the layer has one");
  EXPECT_EQ(refusal(joined.options.biases(), {}),
            "attn::load: joined_kernel is null, the layer has one");
  EXPECT_EQ(refusal(MultiHeadOptions(4, 2).key_features(3), joined.view),
            "attn::load: joined_kernel joins inputs of one width, query has 4 features, key 3, "
            "value 3: give a KerasView, a kernel for each");
}

TEST(JoinedWeights, AreNotStoredOntoEachOther) {
  const Joined joined;
  Weights w(joined.options.biases());
  attn::load(w, joined.view);
  std::vector<float> memory(60), before = memory;
  JoinedView<float> view{memory.data(), memory.data() + 24, memory.data() + 20, memory.data() + 50};
  EXPECT_EQ(error_of([&] { attn::store(w, view); }),
            "attn::store: a part of the view overlaps a part of the view; write to memory of its "
            "own");
  EXPECT_EQ(memory, before);
}

// ---- Biases apart, as BERT's query, key and value have them ---------------------------------------

struct Apart {
  std::vector<float> q = counted(4, 0), k = counted(4, 10), v = counted(4, 20),
                     out = counted(4, 30), qb = counted(2, 40), kb = counted(2, 50),
                     vb = counted(2, 60);
  PyTorchView<const float> view;

  Apart() {
    view.q_proj_weight = q.data();
    view.k_proj_weight = k.data();
    view.v_proj_weight = v.data();
    view.out_proj_weight = out.data();
    view.q_proj_bias = qb.data();
    view.k_proj_bias = kb.data();
    view.v_proj_bias = vb.data();
  }
};

TEST(SeparateBiases, AreReadAndWritten) {
  const Apart apart;
  Weights w(MultiHeadOptions(2, 1).in_bias());
  attn::load(w, apart.view);
  EXPECT_EQ(MatrixXf(w.query.row(0)), row({0, 2}));
  EXPECT_EQ(MatrixXf(w.query_bias), row({40, 41}));
  EXPECT_EQ(MatrixXf(w.key_bias), row({50, 51}));
  EXPECT_EQ(MatrixXf(w.value_bias), row({60, 61}));

  std::vector<float> in(12), joined(6), out(4);
  PyTorchView<float> back;
  back.in_proj_weight = in.data();
  back.in_proj_bias = joined.data();
  back.out_proj_weight = out.data();
  attn::store(w, back);
  EXPECT_EQ(joined, (std::vector<float>{40, 41, 50, 51, 60, 61}));
}

// Weights and biases are joined or apart for themselves: a module with kdim has the former apart.
TEST(SeparateBiases, AreNoMatterOfTheWeights) {
  const Apart apart;
  const auto joined = counted(6, 70);
  auto view = apart.view;
  view.in_proj_bias = joined.data();
  view.q_proj_bias = view.k_proj_bias = view.v_proj_bias = nullptr;
  Weights w(MultiHeadOptions(2, 1).in_bias());
  attn::load(w, view);
  EXPECT_EQ(MatrixXf(w.key_bias), row({72, 73}));
}

TEST(SeparateBiases, AreRefusedWhereTheLayerIsAnother) {
  const Apart apart;
  const auto refusal = [](const MultiHeadOptions& options, const PyTorchView<const float>& view) {
    Weights w(options);
    return error_of([&] { attn::load(w, view); });
  };
  const MultiHeadOptions plain(2, 1);
  const auto biased = plain.in_bias();
  EXPECT_EQ(refusal(plain, apart.view),
            "attn::load: q_proj_bias is given, the layer has none; it has where it is made with "
            "MultiHeadOptions(...).in_bias() and .out_bias()");
  auto view = apart.view;
  view.in_proj_bias = apart.qb.data();
  EXPECT_EQ(refusal(biased, view),
            "attn::load: needs either in_proj_bias or q_, k_ and v_proj_bias, has both");
  view = apart.view;
  view.k_proj_bias = nullptr;
  EXPECT_EQ(refusal(biased, view), "attn::load: k_proj_bias is null, the layer has one");
  view.q_proj_bias = view.v_proj_bias = nullptr;
  EXPECT_EQ(refusal(biased, view),
            "attn::load: needs either in_proj_bias or q_, k_ and v_proj_bias, has neither");
}

}  // namespace
