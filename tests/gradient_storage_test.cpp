// tests/gradient_storage_test.cpp: gradients of operands in any memory, to any memory: storage
// types, orders, views, blocks, fixed sizes.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <vector>

#include "support/gradient_case.h"
#include "support/scalar_names.h"

namespace {

using Eigen::Index;
using support::DynamicMatrix;
using support::GradientCase;
using support::same_bits;
using Matrix = DynamicMatrix<float>;
using ByColumns = Eigen::MatrixXf;

/// A batch of equal lengths, so that views may hold it.
const Index B = 3, H = 4, KH = 2, L = 14, M = 37, D = 5, DV = 3;
GradientCase<float> batch_case() {
  return {{{0, L, 2 * L, 3 * L}, {0, M, 2 * M, 3 * M}, H, KH}, D, DV};
}

// ---- Storage types --------------------------------------------------------------------------

template <class Storage>
class GradientStorage : public ::testing::Test {};
using StorageTypes = ::testing::Types<Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(GradientStorage, StorageTypes, support::ScalarNames);

// The operands are exact in float, so the gradients are those in float, rounded once.
TYPED_TEST(GradientStorage, ComputesInFloatAndRoundsOnce) {
  using Stored = DynamicMatrix<TypeParam>;
  GradientCase<float> x = batch_case();
  const auto rounded = [](Matrix& wide) {
    const Stored narrow = wide.template cast<TypeParam>();
    wide = narrow.template cast<float>();
    return narrow;
  };
  const Stored Q = rounded(x.Q), K = rounded(x.K), V = rounded(x.V), dY = rounded(x.dY);
  const auto expected = support::trained(x);

  attn::AttentionState<float> state;
  const auto q = attn::heads(Q, H), k = attn::heads(K, KH), v = attn::heads(V, KH);
  const auto batch = attn::sequence_length(L, M);
  Stored Y;
  attn::attention(q, k, v, batch, attn::into(Y), attn::save_state(state));
  Stored dQ, dK, dV;
  attn::attention_backward(q, k, v, dY, state, batch, attn::dquery(dQ), attn::dkey(dK),
                           attn::dvalue(dV));
  EXPECT_TRUE(same_bits(dQ, Stored(expected.query.template cast<TypeParam>())));
  EXPECT_TRUE(same_bits(dK, Stored(expected.key.template cast<TypeParam>())));
  EXPECT_TRUE(same_bits(dV, Stored(expected.value.template cast<TypeParam>())));

  // Into float nothing is rounded.
  Matrix wide_q, wide_k, wide_v;
  attn::attention_backward(q, k, v, x.dY, state, batch, attn::dquery(wide_q), attn::dkey(wide_k),
                           attn::dvalue(wide_v));
  EXPECT_TRUE(same_bits(wide_q, expected.query));
  EXPECT_TRUE(same_bits(wide_k, expected.key));
  EXPECT_TRUE(same_bits(wide_v, expected.value));

  // Added to, the sum is rounded once.
  const Stored old = support::uniform<TypeParam>(K.rows(), K.cols(), 9, 0.1);
  Stored sum = old;
  attn::attention_backward(q, k, v, dY, state, batch, attn::dkey(sum), attn::accumulate());
  EXPECT_TRUE(same_bits(
      sum, Stored((old.template cast<float>() + expected.key).template cast<TypeParam>())));
}

// ---- Orders and views -----------------------------------------------------------------------

class GradientMemory : public ::testing::Test {
 protected:
  const GradientCase<float> x = batch_case();
  const support::Training<float> expected = support::trained(x);
  const attn::detail::SequenceLength batch = attn::sequence_length(L, M);
};

TEST_F(GradientMemory, MayBeByColumns) {
  const ByColumns Q = x.Q, K = x.K, V = x.V, dY = x.dY;
  ByColumns dQ, dK, dV;
  attn::attention_backward(attn::heads(Q, H), attn::heads(K, KH), attn::heads(V, KH), dY,
                           expected.state, batch, attn::dquery(dQ), attn::dkey(dK),
                           attn::dvalue(dV));
  EXPECT_TRUE(same_bits(dQ, expected.query));
  EXPECT_TRUE(same_bits(dK, expected.key));
  EXPECT_TRUE(same_bits(dV, expected.value));
}

TEST_F(GradientMemory, MayBeBlocksWhoseSurroundingsStay) {
  Matrix q = Matrix::Constant(50, 30, 9);
  ByColumns k = ByColumns::Constant(20, 120, 9), v = ByColumns::Constant(130, 20, 9);
  auto dQ = q.block(2, 5, B * L, H * D);
  auto dK = k.transpose().block(3, 4, B * M, KH * D);
  auto dV = v.block(7, 1, B * M, KH * DV);
  attn::attention_backward(attn::heads(x.Q, H), attn::heads(x.K, KH), attn::heads(x.V, KH),
                           2 * (0.5f * x.dY), expected.state, batch, attn::dquery(dQ),
                           attn::dkey(attn::heads(dK, KH)), attn::dvalue(dV));
  EXPECT_TRUE(same_bits(dQ, expected.query));
  EXPECT_TRUE(same_bits(dK, expected.key));
  EXPECT_TRUE(same_bits(dV, expected.value));
  EXPECT_EQ((q.array() == 9.f).count(), q.size() - dQ.size());
  EXPECT_EQ((k.array() == 9.f).count(), k.size() - dK.size());
  EXPECT_EQ((v.array() == 9.f).count(), v.size() - dV.size());
}

/// [B, H, L, d] of heads side by side in the columns of stacked rows, and back.
std::vector<float> by_heads(const Matrix& stacked, Index heads, Index length) {
  const Index d = stacked.cols() / heads;
  std::vector<float> memory;
  for (Index b = 0; b < stacked.rows() / length; ++b)
    for (Index h = 0; h < heads; ++h)
      for (Index i = 0; i < length; ++i)
        for (Index c = 0; c < d; ++c) memory.push_back(stacked(b * length + i, h * d + c));
  return memory;
}
TEST_F(GradientMemory, MayBeViewsOfOtherFrameworks) {
  const auto q = by_heads(x.Q, H, L), k = by_heads(x.K, KH, M), v = by_heads(x.V, KH, M),
             y = by_heads(x.dY, H, L);
  std::vector<float> dq(q.size(), 9), dk(k.size(), 9), dv(v.size(), 9), out(y.size());
  const auto Q = attn::bhld(q.data(), B, H, L, D), K = attn::bhld(k.data(), B, KH, M, D),
             V = attn::bhld(v.data(), B, KH, M, DV);
  attn::AttentionState<float> state;
  attn::attention(Q, K, V, attn::into(attn::bhld(out.data(), B, H, L, DV)),
                  attn::save_state(state));
  attn::attention_backward(Q, K, V, attn::bhld(y.data(), B, H, L, DV), state,
                           attn::dquery(attn::bhld(dq.data(), B, H, L, D)),
                           attn::dkey(attn::bhld(dk.data(), B, KH, M, D)),
                           attn::dvalue(attn::bhld(dv.data(), B, KH, M, DV)));
  EXPECT_EQ(out, by_heads(expected.Y, H, L));
  EXPECT_EQ(dq, by_heads(expected.query, H, L));
  EXPECT_EQ(dk, by_heads(expected.key, KH, M));
  EXPECT_EQ(dv, by_heads(expected.value, KH, M));
}

TEST_F(GradientMemory, MayBeOfFixedSize) {
  const GradientCase<float> one(13, 37, 8, 11);
  const auto dynamic = support::trained(one);
  const Eigen::Matrix<float, 13, 8> Q = one.Q;
  const Eigen::Matrix<float, 37, 8> K = one.K;
  const Eigen::Matrix<float, 37, 11> V = one.V;
  const Eigen::Matrix<float, 13, 11> dY = one.dY;
  attn::AttentionState<float> state;
  Eigen::Matrix<float, 13, 11> Y;
  Eigen::Matrix<float, 13, 8> dQ;
  Eigen::Matrix<float, 37, 8> dK;
  Eigen::Matrix<float, 37, 11> dV;
  attn::attention(Q, K, V, attn::into(Y), attn::save_state(state));
  attn::attention_backward(Q, K, V, dY, state, attn::dquery(dQ), attn::dkey(dK), attn::dvalue(dV));
  EXPECT_TRUE(same_bits(Y, dynamic.Y));
  EXPECT_TRUE(same_bits(dQ, dynamic.query));
  EXPECT_TRUE(same_bits(dK, dynamic.key));
  EXPECT_TRUE(same_bits(dV, dynamic.value));
}

// ---- The state ------------------------------------------------------------------------------

TEST_F(GradientMemory, OfAFunctorIsThatOfTheFunction) {
  attn::ScaledDotProductAttention<float> attention;
  attn::AttentionState<float> state;
  const auto q = attn::heads(x.Q, H), k = attn::heads(x.K, KH), v = attn::heads(x.V, KH);
  support::Training<float> g;
  for (int step = 0; step < 2; ++step) {
    attention(q, k, v, batch, attn::into(g.Y), attn::save_state(state));
    attention.backward(q, k, v, x.dY, state, batch, attn::dquery(g.query), attn::dkey(g.key),
                       attn::dvalue(g.value));
    expect_same_gradients(g, expected);
  }
}

TEST_F(GradientMemory, TakesAStateForOneCallAfterAnother) {
  support::Training<float> g = support::trained(GradientCase<float>(40, 70, 9, 13));
  g.forward(x);  // smaller
  g.backward(x);
  expect_same_gradients(g, expected);
  const attn::AttentionState<float> copy = g.state;
  g.forward(GradientCase<float>(3, 5, 2, 2));
  g.state = copy;
  g.backward(x);
  expect_same_gradients(g, expected);
  EXPECT_EQ(g.state.queries(), B * L);
  EXPECT_EQ(g.state.heads(), H);
  EXPECT_EQ(g.state.value_dim(), DV);
  EXPECT_FALSE(g.state.empty());
  EXPECT_TRUE(attn::AttentionState<float>().empty());
}

// Of another library's forward pass: its output and its log-sum-exp.
TEST_F(GradientMemory, MayComeFromAnOutputAndItsLogsumexp) {
  Matrix Y, l;
  attn::attention(attn::heads(x.Q, H), attn::heads(x.K, KH), attn::heads(x.V, KH), batch,
                  attn::into(Y), attn::save_logsumexp(l));
  support::Training<float> g;
  g.state = attn::AttentionState<float>::from(Y, l);
  g.backward(x);
  expect_gradients(g, support::reference_gradient(x.Q, x.K, x.V, x.dY, x.reference()));
}

}  // namespace
