// tests/concurrency_test.cpp: every kind of call on several threads, small enough for ThreadSanitizer: workers of one call,
// calls inside parallel regions, and callers beside one another. All of them give the bits of one thread.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <thread>
#include <unsupported/Eigen/CXX11/ThreadPool>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/random_layer.h"
#include "support/random_linear.h"
#include "support/threads.h"

namespace {

using Eigen::Index;
using support::same_bits;
using support::uniform;
using Matrix = support::DynamicMatrix<float>;

constexpr int kWorkers = 3;

// Each call is worth three workers at least, and no more than that takes.
const Matrix Q = uniform<float>(300, 2 * 16, 1), K = uniform<float>(300, 2 * 16, 2),
             V = uniform<float>(300, 2 * 16, 3), dY = uniform<float>(300, 2 * 16, 4),
             B = uniform<float>(150, 150, 5);

/// What a call writes, under some means: one matrix.
struct Results {
  std::vector<Matrix> all;
  friend bool operator==(const Results& a, const Results& b) {
    if (a.all.size() != b.all.size()) return false;
    for (std::size_t n = 0; n < a.all.size(); ++n)
      if (!same_bits(a.all[n], b.all[n])) return false;
    return true;
  }
};
/// call(means…) by one thread, and twice by several.
template <class Call>
void expect_same(const Call& call) {
  attn::Workspace<float> workspace;
  const Results alone = call(attn::use(workspace));
  support::Threads threads;
  Eigen::ThreadPool pool(kWorkers);
  for (int n = 0; n < 2; ++n) {
    EXPECT_TRUE(call(attn::on(threads, kWorkers)) == alone) << "threads of their own";
    EXPECT_TRUE(call(attn::on(pool)) == alone) << "a pool";
  }
}

// One bias for all heads and sequences: chunks that share no keys add to the same elements, in turns.
template <class Means>
Results trained(const Means& means) {
  const auto call =
      attn::options(attn::bias(B), attn::sequence_length(150), attn::dropout(0.1, 7), means);
  attn::AttentionState<float> state;
  Matrix Y, dQ, dK, dV, dB;
  attn::attention(attn::heads(Q, 2), attn::heads(K, 2), attn::heads(V, 2), attn::into(Y),
                  attn::save_state(state), call);
  attn::attention_backward(attn::heads(Q, 2), attn::heads(K, 2), attn::heads(V, 2),
                           attn::heads(dY, 2), state, call, attn::dquery(dQ), attn::dkey(dK),
                           attn::dvalue(dV), attn::dbias(dB));
  return {{Y, dQ, dK, dV, dB}};
}
TEST(Workers, OfABackwardPassAddToOneBias) {
  expect_same([](const auto& means) { return trained(means); });
}

TEST(Workers, OfALayerAndItsBackwardPass) {
  const auto mha = support::random_layer<float>(attn::MultiHeadOptions(32, 2).in_bias());
  attn::MultiHeadGradients<float> g(mha.options());
  expect_same([&](const auto& means) {
    auto own = mha;
    attn::MultiHeadState<float> state;
    Matrix Y, dX;
    own(Q, attn::into(Y), attn::save_state(state), attn::causal(), means);
    own.backward(Q, dY, state, attn::causal(), means, attn::dweights(g), attn::dquery(dX));
    return Results{{Y, dX, Matrix(g.query), Matrix(g.output), Matrix(g.key_bias)}};
  });
}

TEST(Workers, OfALinearLayerAndItsBackwardPass) {
  const auto linear = support::random_linear<float>(attn::LinearOptions(200, 170).bias());
  const Matrix X = uniform<float>(150, 200, 1), d = uniform<float>(150, 170, 2);
  attn::LinearGradients<float> g(linear.options());
  expect_same([&](const auto& means) {
    auto own = linear;
    attn::LinearState<float> state;
    Matrix Y, dX;
    own(X, attn::into(Y), attn::gelu(), attn::save_state(state), means);
    own.backward(X, d, state, attn::gelu(), means, attn::dweights(g), attn::dinput(dX));
    return Results{{Y, dX, Matrix(g.kernel()), Matrix(g.bias())}};
  });
}

TEST(Workers, OfACacheAndWhatIsSavedInParts) {
  attn::KeyValueCache<float> cache(attn::KeyValueCacheOptions(2000, 2, 16));
  for (int n = 0; n < 6; ++n) cache.append(K, V);
  expect_same([&](const auto& means) {
    Matrix Y, l, Z;
    attn::attention(attn::heads(Q, 2), cache, attn::into(Y), attn::save_logsumexp(l), means);
    attn::attention(attn::heads(Q.topRows(2), 2), cache, attn::into(Z), attn::split_keys(256),
                    means);
    return Results{{Y, l, Z}};
  });
}

TEST(Workers, OfADecodingLayer) {
  const auto mha = support::random_layer<float>(attn::MultiHeadOptions(32, 2).in_bias());
  expect_same([&](const auto& means) {
    auto own = mha;
    attn::KeyValueCache<float> cache(attn::KeyValueCacheOptions(320, 2, 16));
    Matrix prompt, next;
    own.decode(Q, cache, attn::into(prompt), means);
    for (Index n = 0; n < 4; ++n) own.decode(Q.row(n), cache, attn::into(next), means);
    return Results{{prompt, next}};
  });
}

/// f(n) for n < callers, each on a thread of its own at the same time.
template <class F>
void beside_one_another(int callers, const F& f) {
  support::Threads().parallel_for(callers, f);
}

// Objects of their own, a cache that all read, and one pool for the workers of all.
TEST(Callers, BesideOneAnotherShareAPool) {
  attn::KeyValueCache<float> cache(attn::KeyValueCacheOptions(300, 2, 16));
  cache.append(K, V);
  attn::Workspace<float> workspace;
  const Matrix alone = attn::attention(attn::heads(Q, 2), cache, attn::use(workspace));
  Eigen::ThreadPool pool(2);
  std::vector<Matrix> results(3);
  beside_one_another(3, [&](int n) {
    attn::ScaledDotProductAttention<float> sdpa;
    for (int repeat = 0; repeat < 3; ++repeat)
      sdpa(attn::heads(Q, 2), cache, attn::into(results[std::size_t(n)]), attn::on(pool));
  });
  for (const Matrix& result : results) EXPECT_TRUE(same_bits(result, alone));
}

TEST(Callers, BesideOneAnotherTrainByThemselves) {
  attn::Workspace<float> workspace;
  const Results alone = trained(attn::use(workspace));
  bool same[3] = {};
  beside_one_another(3, [&](int n) {
    attn::Workspace<float> own;
    same[n] = trained(attn::use(own)) == alone;
  });
  for (const bool one : same) EXPECT_TRUE(one);
}

// A parallel region around the call: OpenMP then gives its own region one thread, or more.
TEST(Callers, InsideAParallelRegionMayAskForThreads) {
  attn::Workspace<float> workspace;
  const Matrix alone = attn::attention(attn::heads(Q, 2), attn::heads(K, 2), attn::heads(V, 2),
                                       attn::use(workspace));
  const Results gradients = trained(attn::use(workspace));
  bool same[4] = {};
#if defined(_OPENMP)
#pragma omp parallel for num_threads(4)
#endif
  for (int n = 0; n < 4; ++n) {
    Matrix Y;
    attn::attention(attn::heads(Q, 2), attn::heads(K, 2), attn::heads(V, 2), attn::into(Y),
                    attn::parallel(kWorkers));
    same[n] = same_bits(Y, alone) && trained(attn::parallel(kWorkers)) == gradients;
  }
  for (const bool one : same) EXPECT_TRUE(one);
}
TEST(Callers, InsideAPoolsTaskMayAskForItsThreads) {
  attn::Workspace<float> workspace;
  const Matrix alone = attn::attention(attn::heads(Q, 2), attn::heads(K, 2), attn::heads(V, 2),
                                       attn::use(workspace));
  Eigen::ThreadPool pool(2);
  Eigen::Barrier done(4);
  bool same[4] = {};
  for (bool& one : same) {
    pool.Schedule([&] {
      Matrix Y;
      attn::attention(attn::heads(Q, 2), attn::heads(K, 2), attn::heads(V, 2), attn::into(Y),
                      attn::on(pool));
      one = same_bits(Y, alone);
      done.Notify();
    });
  }
  done.Wait();
  for (const bool one : same) EXPECT_TRUE(one);
}

}  // namespace
