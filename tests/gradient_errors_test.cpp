// tests/gradient_errors_test.cpp: what a backward pass refuses, in which words, its outputs
// untouched.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "support/error_of.h"
#include "support/matrix_matchers.h"
#include "support/random.h"

namespace {

using attn::heads;
using Eigen::Index;
using Eigen::MatrixXf;
using support::same_bits;
using support::uniform;
using State = attn::AttentionState<float>;

/// A call of two sequences, its state, and gradients that hold something.
struct Call {
  Index query_heads = 4, kv_heads = 2;
  std::vector<Index> queries{0, 3, 7}, keys{0, 4, 9}, lengths{4, 5}, offsets{1, 1};
  double scale = 0.5, softcap = 3;
  std::uint64_t stream = 7;
  MatrixXf Q = uniform<float>(7, 4 * 3, 1), K = uniform<float>(9, 2 * 3, 2),
           V = uniform<float>(9, 2 * 2, 3), dY = uniform<float>(7, 4 * 2, 4),
           B = MatrixXf::Ones(1, 5);
  MatrixXf dQ = MatrixXf::Constant(2, 2, 5.f), dK = dQ, dV = dQ;

  template <class... Options>
  State forward(const Options&... options) const {
    State state;
    MatrixXf Y;
    attn::attention(heads(Q, query_heads), heads(K, kv_heads), heads(V, kv_heads), attn::into(Y),
                    attn::sequences(queries, keys), attn::query_offset(offsets),
                    attn::key_lengths(lengths), attn::scale(scale), attn::softcap(softcap),
                    attn::save_state(state), options...);
    return state;
  }
  template <class... Options>
  void backward(const State& state, const Options&... options) {
    attn::attention_backward(heads(Q, query_heads), heads(K, kv_heads), heads(V, kv_heads), dY,
                             state, attn::sequences(queries, keys), attn::query_offset(offsets),
                             attn::key_lengths(lengths), attn::scale(scale), attn::softcap(softcap),
                             attn::dquery(dQ), attn::dkey(dK), attn::dvalue(dV), options...);
  }
  /// What the pass says; its outputs are as they were.
  template <class... Options>
  std::string error(const State& state, const Options&... options) {
    const MatrixXf before = dQ, before_key = dK, before_value = dV;
    const std::string said = support::error_of([&] { backward(state, options...); });
    EXPECT_TRUE(same_bits(dQ, before) && same_bits(dK, before_key) && same_bits(dV, before_value));
    const std::string name = "attn::attention_backward: ";
    EXPECT_EQ(said.substr(0, name.size()), name);
    return said.substr(std::min(said.size(), name.size()));
  }
};

TEST(GradientErrors, ACallOfTheSameStatePasses) {
  Call call;
  call.backward(call.forward());
  EXPECT_EQ(call.dQ.rows(), 7);
  EXPECT_EQ(call.dK.cols(), 2 * 3);
  EXPECT_EQ(call.dV.rows(), 9);
}

TEST(GradientErrors, StatesOfOtherSizes) {
  Call call;
  EXPECT_EQ(call.error(State()), "the state is empty: give save_state(state) to the forward call");
  State state = call.forward();
  const State moved = std::move(state);
  EXPECT_TRUE(state.empty());
  EXPECT_EQ(call.error(state), "the state is empty: give save_state(state) to the forward call");

  Call other;
  other.queries = {0, 3, 6};
  other.Q = uniform<float>(6, 4 * 3, 1);
  EXPECT_EQ(call.error(other.forward()),
            "the state is of 4 heads and 6 query rows, this call has 4 and 7");
  other = Call();
  other.query_heads = 2;
  other.Q = uniform<float>(7, 2 * 3, 1);
  EXPECT_EQ(call.error(other.forward()),
            "the state is of 2 heads and 7 query rows, this call has 4 and 7");
  other = Call();
  other.V = uniform<float>(9, 2 * 5, 1);
  EXPECT_EQ(call.error(other.forward()),
            "the state is of 5 output features for each head, this call has 2");
}

TEST(GradientErrors, StatesOfOtherCalls) {
  Call call, other;
  other.queries = {0, 7}, other.keys = {0, 9}, other.lengths = {5}, other.offsets = {1};
  EXPECT_EQ(call.error(other.forward()), "the forward pass had 1 sequence, this call has 2");
  other = Call();
  other.keys = {0, 4, 8}, other.lengths = {4, 4};
  other.K = uniform<float>(8, 2 * 3, 1), other.V = uniform<float>(8, 2 * 2, 1);
  EXPECT_EQ(call.error(other.forward()), "the forward pass had 8 keys, this call has 9");
  other = Call();
  other.kv_heads = 1;
  other.K = uniform<float>(9, 3, 1), other.V = uniform<float>(9, 2, 1);
  EXPECT_EQ(call.error(other.forward()), "the forward pass had 1 key/value head, this call has 2");
  other = Call();
  other.Q = uniform<float>(7, 4 * 5, 1), other.K = uniform<float>(9, 2 * 5, 1);
  EXPECT_EQ(call.error(other.forward()),
            "the forward pass had 5 features of queries and keys, this call has 3");
  other = Call();
  other.queries = {0, 4, 7};
  EXPECT_EQ(call.error(other.forward()),
            "the forward pass had other lengths of the sequences than this call");
  other = Call();
  other.keys = {0, 5, 9}, other.lengths = {4, 4};
  EXPECT_EQ(call.error(other.forward()),
            "the forward pass had other lengths of the sequences than this call");
  other = Call();
  other.offsets = {1, 2};
  EXPECT_EQ(call.error(other.forward()), "the forward pass had other query offsets than this call");
  other = Call();
  other.lengths = {4, 3};
  EXPECT_EQ(call.error(other.forward()), "the forward pass had other key lengths than this call");
}

TEST(GradientErrors, StatesOfOtherOptions) {
  Call call, other;
  other.scale = 0.25;
  EXPECT_EQ(call.error(other.forward()), "the forward pass had scale(0.25), this call scale(0.5)");
  other = Call();
  other.softcap = 50;
  EXPECT_EQ(call.error(other.forward()), "the forward pass had softcap(50), this call softcap(3)");
  EXPECT_EQ(call.error(call.forward(attn::bias(call.B))),
            "the forward pass had a bias, this call none");
  EXPECT_EQ(call.error(call.forward(attn::sink())), "the forward pass had a sink, this call none");
  EXPECT_EQ(call.error(call.forward(), attn::bias(call.B)),
            "this call has a bias, the forward pass had none");
}

TEST(GradientErrors, StatesOfAnotherDropout) {
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

TEST(GradientErrors, OutputGradientsOfOtherShapes) {
  Call call;
  const State state = call.forward();
  call.dY = uniform<float>(7, 7, 1);
  EXPECT_EQ(call.error(state), "output gradient has 7 columns, needs heads · d_v = 8");
  call.dY = uniform<float>(6, 8, 1);
  EXPECT_EQ(call.error(state),
            "output gradient is 6x8 in 1 head, needs 7x8 (query rows x output features) in 4 "
            "heads");
  call.dY = uniform<float>(7, 8, 1);
  EXPECT_EQ(call.error(state, attn::dlogsumexp(call.dY)),
            "dlogsumexp is 7x8 in 1 head, needs 7x4 (query rows x one number) in 4 heads");
  EXPECT_EQ(call.error(state, attn::parallel(0)), "0 threads asked for, needs at least 1");
}

// One gradient alone, into memory of its own kind.
struct Alone : Call {
  template <class Gradient>
  std::string error(const Gradient& gradient) const {
    const State state = Call::forward();
    return support::error_of([&] {
      attn::attention_backward(heads(Q, 4), heads(K, 2), heads(V, 2), dY, state,
                               attn::sequences(queries, keys), attn::query_offset(offsets),
                               attn::key_lengths(lengths), attn::scale(scale),
                               attn::softcap(softcap), gradient);
    });
  }
};

TEST(GradientErrors, GradientsOfOtherShapes) {
  const Alone call;
  MatrixXf small = MatrixXf::Constant(7, 11, 5.f), keys = MatrixXf::Constant(8, 6, 5.f);
  Eigen::Ref<MatrixXf> block(small);
  EXPECT_EQ(call.error(attn::dquery(block)),
            "attn::attention_backward: dquery is 7x11, needs 7x12");
  EXPECT_EQ(call.error(attn::dkey(heads(keys, 2))),
            "attn::attention_backward: dkey is 8x6 in 2 heads, needs 9x6 (key rows x key features) "
            "in 2 heads");
  EXPECT_EQ(call.error(attn::dvalue(heads(keys, 2))),
            "attn::attention_backward: dvalue is 8x6 in 2 heads, needs 9x4 (key rows x value "
            "features) in 2 heads");
  EXPECT_TRUE((small.array() == 5.f).all() && (keys.array() == 5.f).all());
}

TEST(GradientErrors, SumsNeedWhatTheyAddTo) {
  Call call;
  const State state = call.forward();
  EXPECT_EQ(call.error(state, attn::accumulate()),
            "dquery is 2x2, needs 7x12: accumulate() adds to what it holds");
  call.dQ = MatrixXf::Ones(7, 12);
  EXPECT_EQ(call.error(state, attn::accumulate()),
            "dkey is 2x2, needs 9x6: accumulate() adds to what it holds");
  call.dK = MatrixXf::Ones(9, 6), call.dV = MatrixXf::Ones(9, 4);
  call.backward(state, attn::accumulate());
  const MatrixXf sum = call.dQ;
  call.backward(state);
  EXPECT_TRUE(support::near(sum, (call.dQ.array() + 1).matrix(), 1e-6));
}

TEST(GradientErrors, GradientsInMemoryOfOthers) {
  Alone call;
  const auto error = [&](MatrixXf& M, const auto& gradient) {
    const MatrixXf before = M;
    const std::string said = call.error(gradient);
    EXPECT_TRUE(same_bits(M, before));
    return said;
  };
  const std::string rest = "; write to memory of its own";
  EXPECT_EQ(error(call.Q, attn::dquery(call.Q)),
            "attn::attention_backward: dquery overlaps query" + rest);
  EXPECT_EQ(error(call.K, attn::dkey(call.K)),
            "attn::attention_backward: dkey overlaps key" + rest);
  EXPECT_EQ(error(call.V, attn::dvalue(call.V)),
            "attn::attention_backward: dvalue overlaps value" + rest);
  EXPECT_EQ(error(call.dY, attn::dquery(call.dY)),
            "attn::attention_backward: dquery overlaps output gradient" + rest);
}

TEST(GradientErrors, GradientsInOneMatrix) {
  Alone call;
  MatrixXf one = MatrixXf::Constant(2, 2, 5.f), l = MatrixXf::Zero(7, 4);
  EXPECT_EQ(call.error(attn::options(attn::dkey(one), attn::dvalue(one))),
            "attn::attention_backward: dvalue overlaps dkey; write to memory of its own");
  EXPECT_EQ(call.error(attn::options(attn::dquery(l), attn::dlogsumexp(l))),
            "attn::attention_backward: dquery overlaps dlogsumexp; write to memory of its own");
  MatrixXf bias = MatrixXf::Zero(1, 5);
  const State state = call.forward(attn::bias(bias));
  const std::string said = support::error_of(
      [&] { call.backward(state, attn::bias(bias.leftCols(5)), attn::dbias(bias)); });
  EXPECT_EQ(said, "attn::attention_backward: dbias overlaps bias; write to memory of its own");
  EXPECT_TRUE((one.array() == 5.f).all() && (bias.array() == 0.f).all());
}

TEST(GradientErrors, TheFunctorSpeaksInItsOwnName) {
  const Call call;
  attn::ScaledDotProductAttention<float> sdpa;
  MatrixXf dQ;
  EXPECT_EQ(support::error_of(
                [&] { sdpa.backward(call.Q, call.Q, call.Q, call.Q, State(), attn::dquery(dQ)); }),
            "attn::ScaledDotProductAttention::backward: the state is empty: give save_state(state) "
            "to the forward call");
}

}  // namespace
