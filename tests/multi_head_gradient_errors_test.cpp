// tests/multi_head_gradient_errors_test.cpp: what the layer's backward pass refuses, in which
// words, its outputs untouched.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "support/error_of.h"
#include "support/matrix_matchers.h"
#include "support/random_layer.h"
#include "support/threads.h"

namespace {

using attn::MultiHeadAttention;
using attn::MultiHeadGradients;
using attn::MultiHeadOptions;
using Eigen::Index;
using Eigen::MatrixXf;
using support::numbers;
using support::same_bits;
using State = attn::MultiHeadState<float>;

const auto kShape =
    MultiHeadOptions(8, 4).kv_heads(2).value_dim(3).key_features(5).output_features(6).biases();

/// A call of two sequences, its state, and gradients that hold something.
struct Call {
  MultiHeadOptions shape = kShape;
  MultiHeadAttention<float> mha = support::random_layer<float>(shape);
  std::vector<Index> queries{0, 3, 7}, keys{0, 4, 9}, lengths{4, 5}, offsets{1, 1};
  double scale = 0.5;
  MatrixXf Xq = numbers(7, 8, 1), Xkv = numbers(9, 5, 2), dY = numbers(7, 6, 3);
  MatrixXf dXq = MatrixXf::Constant(2, 2, 5.f), dXkv = dXq;
  MultiHeadGradients<float> g{shape};

  Call() { g.query.setConstant(5), g.output_bias.setConstant(5); }

  template <class... Options>
  State forward(const Options&... options) {
    State state;
    MatrixXf Y;
    mha(Xq, Xkv, attn::into(Y), attn::sequences(queries, keys), attn::query_offset(offsets),
        attn::key_lengths(lengths), attn::scale(scale), attn::save_state(state), options...);
    return state;
  }
  template <class... Options>
  void backward(const State& state, const Options&... options) {
    mha.backward(Xq, Xkv, dY, state, attn::sequences(queries, keys), attn::query_offset(offsets),
                 attn::key_lengths(lengths), attn::scale(scale), attn::dweights(g),
                 attn::dquery(dXq), attn::dkey(dXkv), options...);
  }
  /// What the pass says; its outputs are as they were.
  template <class... Options>
  std::string error(const State& state, const Options&... options) {
    const MatrixXf query = dXq, key = dXkv;
    const MultiHeadGradients<float> weights = g;
    const std::string said = support::error_of([&] { backward(state, options...); });
    EXPECT_TRUE(same_bits(dXq, query) && same_bits(dXkv, key)) << said;
    attn::for_each_parameter(g, weights, [&](const char* name, const auto& now, const auto& then) {
      EXPECT_TRUE(same_bits(now, then)) << name << " after " << said;
    });
    const std::string name = "attn::MultiHeadAttention::backward: ";
    EXPECT_EQ(said.substr(0, name.size()), name);
    return said.substr(std::min(said.size(), name.size()));
  }
};

TEST(MultiHeadGradientErrors, ACallOfTheSameStatePasses) {
  Call call;
  call.backward(call.forward());
  EXPECT_EQ(call.dXq.rows(), 7);
  EXPECT_EQ(call.dXq.cols(), 8);
  EXPECT_EQ(call.dXkv.rows(), 9);
  EXPECT_EQ(call.dXkv.cols(), 5);
}

TEST(MultiHeadGradientErrors, StatesOfOtherSizes) {
  Call call;
  EXPECT_TRUE(State().empty());
  EXPECT_EQ(call.error(State()), "the state is empty: give save_state(state) to the forward call");

  Call other;
  other.queries = {0, 3, 6};
  other.Xq = numbers(6, 8, 1);
  EXPECT_EQ(call.error(other.forward()),
            "the state is of 4 heads and 6 query rows, this call has 4 and 7");
  other = Call();
  other.mha = support::random_layer<float>(
      MultiHeadOptions(8, 2).key_dim(2).value_dim(3).key_features(5).output_features(6));
  EXPECT_EQ(call.error(other.forward()),
            "the state is of 2 heads and 7 query rows, this call has 4 and 7");
}

// A state that another layer, or another batch, filled.
TEST(MultiHeadGradientErrors, StatesOfOtherCalls) {
  Call call;
  const auto of_layer = [&](const MultiHeadOptions& shape) {
    Call other;
    other.mha = support::random_layer<float>(shape);
    return call.error(other.forward());
  };
  EXPECT_EQ(of_layer(kShape.kv_heads(1)), "the forward pass had 1 key/value head, this call has 2");
  EXPECT_EQ(of_layer(kShape.value_dim(4)),
            "the state is of 4 output features for each head, this call has 3");
  EXPECT_EQ(of_layer(kShape.key_dim(5)),
            "the forward pass had 5 features of queries and keys, this call has 2");

  Call other;
  other.queries = {0, 7}, other.keys = {0, 9}, other.lengths = {5}, other.offsets = {1};
  EXPECT_EQ(call.error(other.forward()), "the forward pass had 1 sequence, this call has 2");
  other = Call();
  other.keys = {0, 4, 8}, other.lengths = {4, 4}, other.Xkv = numbers(8, 5, 2);
  EXPECT_EQ(call.error(other.forward()), "the forward pass had 8 keys, this call has 9");
  other = Call();
  other.queries = {0, 4, 7};
  EXPECT_EQ(call.error(other.forward()),
            "the forward pass had other lengths of the sequences than this call");
  other = Call();
  other.offsets = {1, 2};
  EXPECT_EQ(call.error(other.forward()), "the forward pass had other query offsets than this call");
  other = Call();
  other.lengths = {4, 3};
  EXPECT_EQ(call.error(other.forward()), "the forward pass had other key lengths than this call");
}

TEST(MultiHeadGradientErrors, StatesOfOtherOptions) {
  Call call, other;
  other.scale = 0.25;
  EXPECT_EQ(call.error(other.forward()), "the forward pass had scale(0.25), this call scale(0.5)");
  const MatrixXf B = MatrixXf::Ones(1, 5);
  EXPECT_EQ(call.error(call.forward(attn::bias(B))), "the forward pass had a bias, this call none");
  EXPECT_EQ(call.error(call.forward(), attn::bias(B)),
            "this call has a bias, the forward pass had none");
  EXPECT_EQ(call.error(call.forward(attn::sink())), "the forward pass had a sink, this call none");
  EXPECT_EQ(call.error(call.forward(), attn::softcap(3.f)),
            "this call has a softcap, the forward pass had none");
  const auto turn = attn::rotary(attn::pairing::half_split);
  EXPECT_EQ(call.error(call.forward(turn)), "the forward pass had rotary, this call none");
  EXPECT_EQ(call.error(call.forward(), turn), "this call has rotary, the forward pass had none");
}
// A mask of another kind than the key lengths that both calls have.
TEST(MultiHeadGradientErrors, StatesWithoutTheMask) {
  auto mha = support::random_layer<float>(MultiHeadOptions(8, 2));
  const MatrixXf X = numbers(7, 8, 1), dY = numbers(7, 8, 2);
  State plain, causal;
  MatrixXf Y, dX = MatrixXf::Constant(2, 2, 5.f);
  mha(X, attn::into(Y), attn::save_state(plain));
  mha(X, attn::into(Y), attn::causal(), attn::save_state(causal));
  const std::string name = "attn::MultiHeadAttention::backward: ";
  EXPECT_EQ(support::error_of([&] { mha.backward(X, dY, causal, attn::dquery(dX)); }),
            name + "the forward pass had a mask, this call none");
  EXPECT_EQ(
      support::error_of([&] { mha.backward(X, dY, plain, attn::causal(), attn::dquery(dX)); }),
      name + "this call has a mask, the forward pass had none");
  EXPECT_TRUE(same_bits(dX, MatrixXf::Constant(2, 2, 5.f)));
}

TEST(MultiHeadGradientErrors, StatesOfAnotherDropout) {
  Call call;
  const auto drop = attn::dropout(0.1, 42, 7);
  const State with = call.forward(drop);
  EXPECT_EQ(call.error(with), "the forward pass had dropout(0.1, 42, 7), this call none");
  EXPECT_EQ(call.error(call.forward(), drop),
            "the forward pass had no dropout, this call dropout(0.1, 42, 7)");
  EXPECT_EQ(call.error(with, attn::dropout(0.1, 42, 8)),
            "the forward pass had dropout(0.1, 42, 7), this call dropout(0.1, 42, 8)");
  EXPECT_EQ(call.error(with, attn::dropout(0.1, 43, 7)),
            "the forward pass had dropout(0.1, 42, 7), this call dropout(0.1, 43, 7)");
  EXPECT_EQ(call.error(with, attn::dropout(0.2, 42, 7)),
            "the forward pass had dropout(0.1, 42, 7), this call dropout(0.2, 42, 7)");
  call.backward(with, drop);
}

TEST(MultiHeadGradientErrors, InputsOfOtherWidths) {
  Call call;
  const State state = call.forward();
  call.Xq = numbers(7, 9, 1);
  EXPECT_EQ(call.error(state), "query has 9 features, the layer takes 8");
  call = Call();
  call.Xkv = numbers(9, 8, 1);
  EXPECT_EQ(call.error(state), "key has 8 features, the layer takes 5");
}

TEST(MultiHeadGradientErrors, OutputGradientsOfOtherShapes) {
  Call call;
  const State state = call.forward();
  call.dY = numbers(7, 8, 1);
  EXPECT_EQ(call.error(state),
            "output gradient is 7x8 in 1 head, needs 7x6 (query rows x output features) in 1 head");
  call.dY = numbers(6, 6, 1);
  EXPECT_EQ(call.error(state),
            "output gradient is 6x6 in 1 head, needs 7x6 (query rows x output features) in 1 head");
  call.dY = numbers(7, 6, 1);
  EXPECT_EQ(call.error(state, attn::parallel(0)), "0 threads asked for, needs at least 1");
}

TEST(MultiHeadGradientErrors, WeightGradientsOfOtherShapes) {
  Call call;
  const State state = call.forward();
  call.g.value = MatrixXf::Ones(3, 4);
  EXPECT_EQ(call.error(state),
            "dweights: the gradient of the value weight is 3x4, needs 5x6: make it from the "
            "layer's options()");
  call = Call();
  call.g.key_bias.resize(0);
  EXPECT_EQ(call.error(state),
            "dweights: the gradient of the key bias is 1x0, needs 1x4: make it from the layer's "
            "options()");
  call = Call();
  call.g = MultiHeadGradients<float>(MultiHeadOptions(12, 4).biases());
  EXPECT_EQ(call.error(state).substr(0, 46), "dweights: the gradient of the query weight is ");
}

/// Some outputs of a call, into memory of their own kind.
struct Alone : Call {
  const State state = Call::forward();
  template <class... Gradients>
  std::string error(const Gradients&... gradients) {
    return support::error_of([&] {
      mha.backward(Xq, Xkv, dY, state, attn::sequences(queries, keys), attn::query_offset(offsets),
                   attn::key_lengths(lengths), attn::scale(scale), gradients...);
    });
  }
};

TEST(MultiHeadGradientErrors, InputGradientsOfOtherShapes) {
  Alone call;
  MatrixXf query = MatrixXf::Constant(7, 7, 5.f), key = MatrixXf::Constant(8, 5, 5.f);
  Eigen::Ref<MatrixXf> of_query(query), of_key(key);
  EXPECT_EQ(call.error(attn::dquery(of_query)),
            "attn::MultiHeadAttention::backward: dquery is 7x7, needs 7x8");
  EXPECT_EQ(call.error(attn::dkey(of_key)),
            "attn::MultiHeadAttention::backward: dkey is 8x5, needs 9x5");
  EXPECT_TRUE((query.array() == 5.f).all() && (key.array() == 5.f).all());
}

TEST(MultiHeadGradientErrors, SumsNeedWhatTheyAddTo) {
  Call call;
  const State state = call.forward();
  EXPECT_EQ(call.error(state, attn::accumulate()),
            "dquery is 2x2, needs 7x8: accumulate() adds to what it holds");
  call.dXq = MatrixXf::Ones(7, 8);
  EXPECT_EQ(call.error(state, attn::accumulate()),
            "dkey is 2x2, needs 9x5: accumulate() adds to what it holds");
  call.dXkv = MatrixXf::Ones(9, 5);
  call.backward(state, attn::accumulate());
}

TEST(MultiHeadGradientErrors, GradientsInMemoryOfOthers) {
  Alone call;
  const auto error = [&](MatrixXf& M, const auto& gradient) {
    const MatrixXf before = M;
    const std::string said = call.error(gradient);
    EXPECT_TRUE(same_bits(M, before)) << said;
    const std::string name = "attn::MultiHeadAttention::backward: ";
    EXPECT_EQ(said.substr(0, name.size()), name);
    return said.substr(std::min(said.size(), name.size()));
  };
  const std::string rest = "; write to memory of its own";
  EXPECT_EQ(error(call.Xq, attn::dquery(call.Xq)), "dquery overlaps query" + rest);
  EXPECT_EQ(error(call.Xkv, attn::dkey(call.Xkv)), "dkey overlaps key" + rest);
  EXPECT_EQ(error(call.dY, attn::dquery(call.dY)), "dquery overlaps output gradient" + rest);
  EXPECT_EQ(error(call.dY, attn::dkey(call.dY)), "dkey overlaps output gradient" + rest);
  MatrixXf one = MatrixXf::Constant(2, 2, 5.f);
  EXPECT_EQ(error(one, attn::options(attn::dquery(one), attn::dkey(one))),
            "dkey overlaps dquery" + rest);
  // The gradients of weights are memory like any other.
  Eigen::Map<MatrixXf> in_weights(call.g.query.data(), 7, 8);
  call.g.query.setConstant(5);
  EXPECT_NE(call.error(attn::options(attn::dweights(call.g), attn::dquery(in_weights))),
            "nothing was refused");
  EXPECT_TRUE((call.g.query.array() == 5.f).all());
  Eigen::Map<MatrixXf> input(call.g.query.data(), 7, 8);
  EXPECT_NE(support::error_of([&] {
              call.mha.backward(input, call.Xkv, call.dY, call.state,
                                attn::sequences(call.queries, call.keys),
                                attn::query_offset(call.offsets), attn::key_lengths(call.lengths),
                                attn::scale(call.scale), attn::dweights(call.g));
            }),
            "nothing was refused");
  EXPECT_TRUE((call.g.query.array() == 5.f).all());
}

TEST(MultiHeadGradientErrors, TheStateIsWhatTheLastCallLeft) {
  Call call;
  State state = call.forward();
  // A forward call that is refused leaves it as it was.
  const auto refused = support::error_of([&] {
    MatrixXf Y;
    call.mha(numbers(7, 3, 1), call.Xkv, attn::into(Y), attn::save_state(state));
  });
  EXPECT_EQ(refused, "attn::MultiHeadAttention: query has 3 features, the layer takes 8");
  EXPECT_FALSE(state.empty());
  call.backward(state);
}

TEST(MultiHeadGradientErrors, AStateThatWasMovedFromIsEmpty) {
  Call call;
  State state = call.forward();
  const State moved = std::move(state);
  EXPECT_TRUE(state.empty());
  EXPECT_EQ(call.error(state), "the state is empty: give save_state(state) to the forward call");
  state = moved;
  call.backward(state);
}

TEST(MultiHeadGradientErrors, ALayerThatHoldsNothing) {
  Call call;
  const State state = call.forward();
  const auto moved = std::move(call.mha);
  EXPECT_EQ(call.error(state), "the layer holds nothing (it was moved from): assign another to it");
}

TEST(MultiHeadGradientErrors, AResidualThatHasOtherWidths) {
  Call call;
  const State state = call.forward();
  EXPECT_EQ(call.error(state, attn::residual()),
            "residual() adds the query input, 8 features, to the output, 6; widths must agree, or "
            "name another: residual(X)");
}

// ---- Exceptions -----------------------------------------------------------------------------

// A functor that throws: in the forward pass, where the state is empty then; in the backward pass,
// on whichever worker. The calls after it are as if it had not been.
TEST(MultiHeadGradientThrows, ExceptionsReachTheCallerAndTheNextCallIsRight) {
  auto mha = support::random_layer<float>(MultiHeadOptions(8, 2).biases());
  const MatrixXf X = numbers(300, 8, 1), dY = numbers(300, 8, 2);
  bool armed = false;
  const auto thrower = attn::mask([&](Index query, Index key) -> bool {
    if (armed && query == 250 && key == 100) throw std::domain_error("thrown by a mask");
    return key <= query;
  });
  support::Threads pool;
  State state;
  MatrixXf Y, dX;
  MultiHeadGradients<float> g(mha.options());
  const auto call = attn::options(thrower, attn::on(pool, 3));
  const auto forward = [&] { mha(X, attn::into(Y), attn::save_state(state), call); };
  const auto backward = [&] {
    mha.backward(X, dY, state, call, attn::dweights(g), attn::dquery(dX));
  };
  forward();
  backward();
  const MatrixXf expected = dX, output = Y;
  const MultiHeadGradients<float> weights = g;
  armed = true;
  EXPECT_THROW(backward(), std::domain_error);
  armed = false;
  backward();
  EXPECT_TRUE(same_bits(dX, expected));
  armed = true;
  EXPECT_THROW(forward(), std::domain_error);
  EXPECT_TRUE(state.empty());
  armed = false;
  EXPECT_EQ(support::error_of(backward),
            "attn::MultiHeadAttention::backward: the state is empty: give save_state(state) to the "
            "forward call");
  forward();
  EXPECT_TRUE(same_bits(Y, output));
  backward();
  EXPECT_TRUE(same_bits(dX, expected));
  attn::for_each_parameter(g, weights, [](const char* name, const auto& now, const auto& then) {
    EXPECT_TRUE(same_bits(now, then)) << name;
  });
}

// A layer that has been trained keeps the matrices that edit() shows.
TEST(MultiHeadTraining, AnEditThatIsRefusedOrThrowsLeavesALayerAsItWas) {
  Call call;
  for (int step = 0; step < 2; ++step) {
    call.backward(call.forward());
    call.mha.edit([&](auto& w) { w.query -= 0.5f * call.g.query; });
  }
  const auto before = call.mha.weights();
  const auto expect_as_before = [&] {
    const auto expect_same = [](const char* name, const auto& now, const auto& then) {
      EXPECT_TRUE(same_bits(now, then)) << name;
    };
    attn::for_each_parameter(call.mha.weights(), before, expect_same);
    call.mha.edit([&](auto& w) { attn::for_each_parameter(w, before, expect_same); });
  };
  EXPECT_THROW(call.mha.edit([](auto& w) {
    w.query.setZero();
    throw std::domain_error("thrown by an edit");
  }),
               std::domain_error);
  expect_as_before();
  EXPECT_THROW(call.mha.edit([](auto& w) {
    w.query.setZero();
    w.key.resize(3, 3);
  }),
               std::invalid_argument);
  expect_as_before();
  // Another layer's weights, after which those that were kept are none of its own.
  const auto other = support::random_layer<float>(kShape, 9);
  call.mha = other;
  call.mha.edit([&](auto& w) { EXPECT_TRUE(same_bits(w.query, other.weights().query)); });
}

}  // namespace
