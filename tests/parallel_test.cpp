// tests/parallel_test.cpp: several threads give the same bits, share the work, and hand exceptions to the caller.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cfenv>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <unsupported/Eigen/CXX11/ThreadPool>
#include <vector>

#include "support/error_of.h"
#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/random_layer.h"
#include "support/random_linear.h"

namespace {

using Eigen::Index;
using support::same_bits;
using Matrix = support::DynamicMatrix<float>;

/// The least a pool can be: parallel_for on threads made for the call, which have an environment of
/// their own as those of an older pool have; remembers which ran.
struct OwnPool {
  std::mutex mutex;
  std::set<std::thread::id> seen;

  template <class F>
  void parallel_for(int n, const F& f) {
    std::vector<std::thread> threads;
    for (int i = 0; i < n; ++i) {
      threads.emplace_back([&, i] {
        std::fesetenv(FE_DFL_ENV);
        {
          const std::lock_guard<std::mutex> lock(mutex);
          seen.insert(std::this_thread::get_id());
        }
        f(i);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
};

struct Operands {
  Matrix Q, K, V;
  Operands(Index queries, Index keys, Index heads, Index kv_heads, Index d)
      : Q(support::uniform<float>(queries, heads * d, 1)),
        K(support::uniform<float>(keys, kv_heads * d, 2)),
        V(support::uniform<float>(keys, kv_heads * d, 3)) {}
};

/// Serial, then with 2, 3 and 5 workers on each kind of executor: one answer.
template <class... Options>
void expect_same_bits(const Operands& x, Index query_heads, Index kv_heads,
                      const Options&... options) {
  const auto attend = [&](const auto&... more) {
    Matrix Y, l;
    attn::attention(attn::heads(x.Q, query_heads), attn::heads(x.K, kv_heads),
                    attn::heads(x.V, kv_heads), attn::into(Y), attn::save_logsumexp(l), options...,
                    more...);
    Matrix both(Y.rows(), Y.cols() + l.cols());
    both << Y, l;
    return both;
  };
  const Matrix serial = attend();
  OwnPool own;
  Eigen::ThreadPool pool(3);
  for (const int workers : {1, 2, 3, 5}) {
    EXPECT_TRUE(same_bits(attend(attn::parallel(workers)), serial)) << workers << " by OpenMP";
    EXPECT_TRUE(same_bits(attend(attn::on(own, workers)), serial)) << workers << " by parallel_for";
    EXPECT_TRUE(same_bits(attend(attn::on(pool, workers)), serial)) << workers << " by Schedule";
  }
  EXPECT_TRUE(same_bits(attend(attn::on(pool)), serial));
}

TEST(Parallel, OneHeadOfManyQueriesHasTheSameBits) {
  expect_same_bits(Operands(700, 500, 1, 1, 24), 1, 1);
}
TEST(Parallel, CausalGroupedHeadsHaveTheSameBits) {
  expect_same_bits(Operands(333, 333, 6, 2, 16), 6, 2, attn::causal());
}
TEST(Parallel, ARaggedBatchHasTheSameBits) {
  const std::vector<int> offsets{0, 5, 5, 300, 301, 420};
  expect_same_bits(Operands(420, 420, 2, 2, 8), 2, 2, attn::sequences(offsets), attn::causal());
}
TEST(Parallel, FewerRowsThanWorkersHaveTheSameBits) {
  expect_same_bits(Operands(1, 9000, 2, 2, 8), 2, 2);
}
TEST(Parallel, NoQueriesAtAllAreValid) {
  Operands x(0, 9, 1, 1, 4);
  OwnPool pool;
  EXPECT_EQ(Matrix(attn::attention(x.Q, x.K, x.V, attn::on(pool, 2))).rows(), 0);
}

// The layer too: projections and attention.
TEST(Parallel, ALayerHasTheSameBits) {
  auto mha = support::random_layer<float>(attn::MultiHeadOptions(64, 8).in_bias().out_bias());
  const Matrix X = support::uniform<float>(401, 64, 1), Y = mha(X, attn::causal());
  OwnPool pool;
  for (const int workers : {2, 3, 7}) {
    EXPECT_TRUE(same_bits(mha(X, attn::causal(), attn::parallel(workers)), Y));
    EXPECT_TRUE(same_bits(mha(X, attn::causal(), attn::on(pool, workers)), Y));
  }
}
// Its workers share rows and columns: more columns than rows, and the reverse.
TEST(Parallel, ALinearLayerHasTheSameBits) {
  auto linear = support::random_linear<float>(attn::LinearOptions(700, 530).bias());
  OwnPool pool;
  for (const Index rows : {1, 3, 100, 500}) {
    const Matrix X = support::uniform<float>(rows, 700, 1), Y = linear(X, attn::silu());
    for (const int workers : {2, 3, 8}) {
      EXPECT_TRUE(same_bits(linear(X, attn::silu(), attn::parallel(workers)), Y))
          << rows << " rows, " << workers << " workers";
      EXPECT_TRUE(same_bits(linear(X, attn::silu(), attn::on(pool, workers)), Y))
          << rows << " rows, " << workers << " workers";
    }
  }
}
TEST(Parallel, AConstLayerIsSharedByThreadsWithAWorkspaceEach) {
  const auto mha = support::random_layer<float>(attn::MultiHeadOptions(64, 8).in_bias());
  const Matrix X = support::uniform<float>(40, 64, 1);
  attn::Workspace<float> own;
  const Matrix Y = mha(X, attn::causal(), attn::use(own));
  std::vector<Matrix> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) {
    threads.emplace_back([&mha, &X, &result] {
      attn::Workspace<float> workspace;
      for (int n = 0; n < 20; ++n) mha(X, attn::causal(), attn::use(workspace), attn::into(result));
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_TRUE(same_bits(result, Y));
}

TEST(Parallel, WhatIsSavedHasTheSameBits) {
  const Operands x(420, 340, 6, 2, 5);
  OwnPool pool;
  const auto attend = [&](std::vector<Matrix>& to, int workers, const auto&... over) {
    return Matrix(
        attn::attention(attn::heads(x.Q, 6), attn::heads(x.K, 2), attn::heads(x.V, 2),
                        attn::sequences({0, 400, 420}, {0, 300, 340}), attn::window(90, 7),
                        attn::save_logsumexp(to[0]), attn::save_max_logit(to[1]),
                        attn::save_entropy(to[2]), attn::save_weights(to[3], over...),
                        attn::save_scores(to[4], attn::stage::biased), attn::on(pool, workers)));
  };
  const auto expect_same = [&](const auto&... over) {
    std::vector<Matrix> serial(5), saved(5);
    const Matrix Y = attend(serial, 1, over...);
    for (const int workers : {2, 5}) {
      EXPECT_TRUE(same_bits(attend(saved, workers, over...), Y));
      for (std::size_t n = 0; n < 5; ++n)
        EXPECT_TRUE(same_bits(saved[n], serial[n])) << "output " << n;
    }
  };
  expect_same();
  expect_same(attn::average_heads());
}

/// Counts how many tasks it is given.
struct CountingPool {
  int calls = 0, tasks = 0;
  template <class F>
  void parallel_for(int n, const F& f) {
    ++calls;
    tasks += n;
    for (int i = 0; i < n; ++i) f(i);
  }
};
/// Tasks of one call that is offered eight workers, and whose bits are those of a serial one.
template <class Call>
int tasks_of(const Call& call) {
  CountingPool pool;
  const Matrix Y = call(attn::on(pool, 8));
  attn::Workspace<float> workspace;
  EXPECT_TRUE(same_bits(Y, call(attn::use(workspace))));
  return pool.tasks;
}

TEST(Parallel, NoMoreWorkersAreWokenThanTheWorkPaysFor) {
  const auto attend = [](Index queries, Index keys, Index heads, Index d) {
    const Operands x(queries, keys, heads, heads, d);
    return tasks_of([&](const auto& means) -> Matrix {
      return attn::attention(attn::heads(x.Q, heads), attn::heads(x.K, heads),
                             attn::heads(x.V, heads), means);
    });
  };
  EXPECT_EQ(attend(16, 16, 1, 16), 0);  // the caller alone: the pool is not even asked
  EXPECT_EQ(attend(16, 16, 4, 16), 0);
  EXPECT_EQ(attend(1, 500, 8, 16), 0);
  EXPECT_EQ(attend(1024, 1024, 8, 16), 8);
  EXPECT_EQ(attend(1, 40000, 8, 16), 8);  // decoding: few products, many bytes
  // No worker without a chunk of rows.
  const Index chunk = attn::kernel::TileSize<float>::chunk_rows(600, 8);
  EXPECT_EQ(attend(600, 4000, 1, 16), (600 + chunk - 1) / chunk);
  int before = 0;
  for (const Index tokens : {16, 32, 64, 128, 256, 512, 1024}) {
    const int tasks = attend(tokens, tokens, 8, 16);
    EXPECT_GE(tasks, before) << tokens;
    before = tasks;
  }
}
TEST(Parallel, NoMoreWorkersOfALayerAreWokenThanTheWorkPaysFor) {
  auto mha = support::random_layer<float>(attn::MultiHeadOptions(64, 8));
  const auto tasks = [&](Index tokens) {
    const Matrix X = support::uniform<float>(tokens, 64, 1);
    return tasks_of([&](const auto& means) -> Matrix { return mha(X, means); });
  };
  EXPECT_EQ(tasks(16), 0);
  EXPECT_EQ(tasks(2000), 3 * 8);  // projected, attended, projected back
}
TEST(Parallel, ReserveMakesRoomForAnyNumberOfUsefulWorkers) {
  attn::AttentionShape shape{700, 300, 16, 16, 4, 2};
  shape.workers = 8;
  attn::Workspace<float> workspace;
  workspace.reserve(attn::ScaledDotProductAttention<float>::scratch_scalars(shape));
  const Index capacity = workspace.capacity();
  CountingPool pool;
  for (const Index queries : {1, 10, 20, 40, 70, 150, 700}) {
    const Operands x(queries, 300, 4, 2, 16);
    const Matrix Y = attn::attention(attn::heads(x.Q, 4), attn::heads(x.K, 2), attn::heads(x.V, 2),
                                     attn::on(pool, 8), attn::use(workspace));
    EXPECT_EQ(workspace.capacity(), capacity) << queries;
  }
  EXPECT_GT(pool.calls, 2);
}

TEST(Parallel, OneHeadReachesSeveralThreads) {
  const Operands x(2000, 300, 1, 1, 32);
  OwnPool pool;
  Matrix Y;
  attn::attention(x.Q, x.K, x.V, attn::into(Y), attn::on(pool, 4));
  EXPECT_EQ(pool.seen.size(), 4u);
}

TEST(Parallel, ACallFromInsideABusyPoolDoesNotWaitForItself) {
  const Operands x(600, 100, 1, 1, 16);
  const Matrix serial = attn::attention(x.Q, x.K, x.V);
  Eigen::ThreadPool pool(1);  // its only thread makes the call, so nobody is left to help
  Matrix Y;
  std::atomic<bool> done{false};
  pool.Schedule([&] {
    attn::attention(x.Q, x.K, x.V, attn::into(Y), attn::on(pool, 4));
    done = true;
  });
  while (!done) std::this_thread::yield();
  EXPECT_TRUE(same_bits(Y, serial));
}

/// A mask that throws in the middle of the work.
struct Thrower : attn::mask_base {
  attn::KeyRange keys(const attn::QueryRows& rows) const {
    if (rows.begin > 100) throw std::domain_error("thrown by a worker");
    return {0, rows.keys};
  }
  attn::KeyRange full_keys(const attn::QueryRows& rows) const { return {0, rows.keys}; }
  bool operator()(const attn::QueryRow&, Index) const { return true; }
  template <class S>
  typename S::Mask lanes(const attn::QueryRow&, Index) const {
    return S::less(S::set(typename S::Scalar(0)), S::set(typename S::Scalar(1)));
  }
  Thrower bind(const attn::detail::CallShape&) const { return {}; }
};

TEST(Parallel, AnExceptionInAWorkerReachesTheCaller) {
  const Operands x(900, 60, 1, 1, 8);
  OwnPool own;
  Eigen::ThreadPool pool(2);
  attn::ScaledDotProductAttention<float> sdpa;
  Matrix Y;
  for (int repeat = 0; repeat < 3; ++repeat) {
    EXPECT_THROW(sdpa(x.Q, x.K, x.V, attn::into(Y), Thrower{}, attn::on(own, 3)),
                 std::domain_error);
    EXPECT_THROW(sdpa(x.Q, x.K, x.V, attn::into(Y), Thrower{}, attn::on(pool, 3)),
                 std::domain_error);
    EXPECT_THROW(sdpa(x.Q, x.K, x.V, attn::into(Y), Thrower{}, attn::parallel(3)),
                 std::domain_error);
  }
  sdpa(x.Q, x.K, x.V, attn::into(Y), attn::on(pool, 3));  // and the functor and the pool live on
  EXPECT_TRUE(same_bits(Y, Matrix(attn::attention(x.Q, x.K, x.V))));
}

TEST(Parallel, WorkersTakeTheCallersRounding) {
  const Operands x(400, 300, 1, 1, 16);
  std::fesetround(FE_UPWARD);
  OwnPool own;
  Eigen::ThreadPool pool(2);
  const Matrix serial = attn::attention(x.Q, x.K, x.V);
  const Matrix threads = attn::attention(x.Q, x.K, x.V, attn::on(own, 3));
  const Matrix pooled = attn::attention(x.Q, x.K, x.V, attn::on(pool, 3));
  std::fesetround(FE_TONEAREST);
  EXPECT_TRUE(same_bits(threads, serial));
  EXPECT_TRUE(same_bits(pooled, serial));
  EXPECT_FALSE(
      same_bits(serial, Matrix(attn::attention(x.Q, x.K, x.V))));  // rounding upward does show
}

TEST(Parallel, ReserveMakesRoomForAllWorkers) {
  const Operands x(500, 200, 4, 2, 16);
  attn::AttentionShape shape{500, 200, 16, 16, 4, 2};
  shape.workers = 3;
  attn::Workspace<float> workspace;
  workspace.reserve(attn::ScaledDotProductAttention<float>::scratch_scalars(shape));
  const Index capacity = workspace.capacity();
  OwnPool pool;
  Matrix Y(500, 64);
  attn::attention(attn::heads(x.Q, 4), attn::heads(x.K, 2), attn::heads(x.V, 2), attn::into(Y),
                  attn::on(pool, 3), attn::use(workspace));
  attn::attention(attn::heads(x.Q, 4), attn::heads(x.K, 2), attn::heads(x.V, 2), attn::into(Y),
                  attn::use(workspace));
  EXPECT_EQ(workspace.capacity(), capacity);
}

TEST(Parallel, NoThreadsAreRefused) {
  const Operands x(5, 5, 1, 1, 4);
  Matrix Y = Matrix::Zero(5, 4);
  OwnPool pool;
  const auto error = [&](const auto& means) {
    return support::error_of([&] { attn::attention(x.Q, x.K, x.V, attn::into(Y), means); });
  };
  EXPECT_EQ(error(attn::on(pool, 0)), "attn::attention: 0 threads asked for, needs at least 1");
  EXPECT_EQ(error(attn::parallel(0)), "attn::attention: 0 threads asked for, needs at least 1");
  EXPECT_EQ(error(attn::parallel(-2)), "attn::attention: -2 threads asked for, needs at least 1");
  EXPECT_EQ(Y, Matrix::Zero(5, 4));
}

}  // namespace
