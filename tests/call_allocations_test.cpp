// tests/call_allocations_test.cpp: every call that has memory of its own to write to allocates nothing from the second one of
// the same sizes on (attention's options, layers and caches: no_malloc_test.cpp), and what calls keep is bounded.
// SPDX-License-Identifier: MIT
// build: -Og
#include "support/allocations.h"

#include <attn/attn.h>

#include <vector>

#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/random_layer.h"

namespace {

using Eigen::Index;
using support::allocations_in;
using support::uniform;
using Matrix = support::DynamicMatrix<float>;

/// Those of a second call.
template <class Call>
long allocations_in_second(const Call& call) {
  call();
  return allocations_in(call);
}

TEST(CallAllocations, OfSoftmaxAndItsKin) {
  const Matrix S = uniform<float>(37, 50, 1);
  Matrix P(37, 50), l(37, 1), columns(1, 50);
  EXPECT_EQ(allocations_in([&] {
              attn::softmax(S, attn::into(P), attn::causal(attn::align::lower_right));
              attn::log_softmax(S, attn::into(P), attn::colwise());
              attn::logsumexp(S, attn::into(l));
              attn::logsumexp(S, attn::into(columns), attn::colwise());
              attn::softmax(P, attn::into(P));
            }),
            0);
}

TEST(CallAllocations, OfMergeActivationsAndSums) {
  const Matrix A = uniform<float>(20, 24, 1), C = uniform<float>(20, 24, 2),
               la = uniform<float>(20, 2, 3), lc = uniform<float>(20, 2, 4);
  Matrix Y(20, 24), l(20, 2);
  EXPECT_EQ(allocations_in([&] {
              attn::merge(A, la, C, lc, attn::into(Y), attn::save_logsumexp(l));
              attn::relu(A, attn::into(Y));
              attn::gelu(A, attn::into(Y));
              attn::gelu_tanh(A, attn::into(Y));
              attn::silu(A, attn::into(Y));
              attn::residual_add(A, C, attn::into(Y));
            }),
            0);
}

TEST(CallAllocations, OfRotateWithALentWorkspace) {
  const Matrix X = uniform<float>(20, 24, 1);
  Matrix Y(20, 24);
  attn::Workspace<float> workspace;
  EXPECT_EQ(allocations_in_second([&] {
              attn::rotate(attn::heads(X, 2), attn::rotary(attn::pairing::interleaved),
                           attn::into(Y), attn::use(workspace));
            }),
            0);
}

TEST(CallAllocations, OfGradients) {
  const Matrix Q = uniform<float>(70, 24, 1), K = uniform<float>(90, 24, 2),
               V = uniform<float>(90, 24, 3), dY = uniform<float>(70, 24, 4);
  Matrix Y(70, 24), dQ(70, 24), dK(90, 24), dV(90, 24);
  attn::ScaledDotProductAttention<float> sdpa;
  attn::AttentionState<float> state, copied;
  const auto call = attn::options(attn::causal(attn::align::lower_right), attn::dropout(0.1, 3));
  const auto step = [&] {
    sdpa(Q, K, V, attn::into(Y), attn::save_state(state), call);
    sdpa.backward(Q, K, V, dY, state, call, attn::dquery(dQ), attn::dkey(dK), attn::dvalue(dV));
    copied = state;
  };
  EXPECT_EQ(allocations_in_second(step), 0);
  attn::Workspace<float> workspace;
  EXPECT_EQ(allocations_in_second([&] {
              attn::attention_backward(Q, K, V, dY, copied, call, attn::dquery(dQ), attn::dkey(dK),
                                       attn::dvalue(dV), attn::use(workspace));
            }),
            0);
}

// A fork of a prompt, rejected candidates, a ring.
TEST(CallAllocations, OfAllThatACacheDoes) {
  const Matrix X = uniform<float>(40, 2 * 8, 1), Q = uniform<float>(1, 4 * 8, 2);
  Matrix Y(3, 4 * 8);
  using Options = attn::KeyValueCacheOptions;
  attn::KeyValueCache<float> cache(Options(300, 2, 8).sequences(3)),
      ring(Options(64, 2, 8).sequences(3).ring(64));
  attn::ScaledDotProductAttention<float> sdpa;
  const auto round = [&](auto& of) {
    of.append(X, X, attn::cache_sequences({0}));
    of.copy(0, 1);
    of.copy(0, 2);
    of.truncate(1, 38);
    of.append(X.topRows(2), X.topRows(2), attn::cache_sequences({1}));
    sdpa(attn::heads(Q.replicate(3, 1), 4), of, attn::into(Y), attn::sequence_length(1),
         attn::cache_sequences({0, 1, 2}));
    of.clear();
  };
  EXPECT_EQ(allocations_in([&] {
              cache.append(X, X, attn::cache_sequences({0}));
              cache.copy(0, 1);
              cache.truncate(1, 38);
              cache.clear(0);
              cache.clear();
            }),
            0);
  // (The expression of the queries takes one.)
  EXPECT_EQ(allocations_in_second([&] { round(cache); }), 1);
  EXPECT_EQ(allocations_in_second([&] { round(ring); }), 1);
}

TEST(CallAllocations, OfWeightsThatAreEditedLoadedAndStored) {
  auto mha = support::random_layer<float>(attn::MultiHeadOptions(24, 4).in_bias());
  std::vector<float> memory(4 * 24 * 24 + 4 * 24);
  attn::MultiHeadWeights<float> w = mha.weights();
  Eigen::VectorXf flat(attn::parameter_count(w));
  EXPECT_EQ(allocations_in([&] {
              attn::flatten(w, flat);
              attn::unflatten(flat, w);
            }),
            0);
}

// ---- What calls keep ----------------------------------------------------------------------------

// Four heads of 4096 tokens, d = 64: the weights alone would be 256 MiB.
TEST(Scratch, OfLongSequencesIsThatOfAChunk) {
  using Attention = attn::ScaledDotProductAttention<float>;
  const attn::AttentionShape long4k{4096, 4096, 64, 64, 4, 4};
  attn::AttentionShape alone = long4k, longer = long4k;
  alone.saves_pairs = longer.saves_pairs = false;
  longer.queries = longer.keys = Index(1) << 20;
  const Index scalars = Attention::scratch_scalars(alone);
  RecordProperty("long4k_bytes", int(scalars * Index(sizeof(float))));
  EXPECT_LE(scalars * Index(sizeof(float)), 2 * 1024 * 1024);
  EXPECT_EQ(Attention::scratch_scalars(longer), scalars);
}

/// Bytes that a call takes and has given back at its end: counted by Eigen's and the standard's allocations.
TEST(Scratch, OfGradientsGrowsWithTheKeys) {
  const auto bytes = [](Index keys) {
    const Matrix Q = uniform<float>(64, 16, 1), K = uniform<float>(keys, 16, 2);
    Matrix Y, dQ, dK, dV;
    attn::AttentionState<float> state;
    attn::Workspace<float> workspace;
    const auto use = attn::use(workspace);
    attn::attention(Q, K, K, attn::into(Y), attn::save_state(state), use);
    attn::attention_backward(Q, K, K, Q, state, use, attn::dquery(dQ), attn::dkey(dK),
                             attn::dvalue(dV));
    return double(workspace.capacity()) * sizeof(float);
  };
  // Sums of keys and values: two rows of whole panels for each key, and nothing else that grows.
  const double panel = double(attn::kernel::TileSize<float>::panel),
               features = std::ceil(16 / panel) * panel;
  EXPECT_LE(bytes(2048) - bytes(1024), 1024 * 2 * features * sizeof(float) + 64);
}

}  // namespace
