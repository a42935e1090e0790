// tests/throw_test.cpp: pools and functors that throw at their n-th call, for every n: the exception reaches the caller, nothing
// that is gone is used, and the next call is right.
// build: -Og
// SPDX-License-Identifier: MIT
//
// Allocations that throw: allocation_failure_test.cpp.
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/random_layer.h"

namespace {

using Eigen::Index;
using support::same_bits;
using support::uniform;
using Matrix = support::DynamicMatrix<float>;

struct Refused : std::runtime_error {
  Refused() : std::runtime_error("thrown on purpose") {}
};

/// Throws at the call that it is set to, from then on never again.
class Fuse {
 public:
  void set(int calls) { left_ = calls; }
  void operator()() {
    if (left_.fetch_sub(1) == 1) throw Refused();
  }

 private:
  std::atomic<int> left_{0};
};

/// When the tasks of a pool run: on threads of their own at once, on the caller's thread within Schedule(), or when the pool is told
/// to, which may be long after the call.
enum class Runs { at_once, within, late };

/// Throws instead of queueing its task, or after that.
class ThrowingPool {
 public:
  ThrowingPool(Runs runs, bool after_queueing) : runs_(runs), after_(after_queueing) {}
  ThrowingPool(const ThrowingPool&) = delete;
  ~ThrowingPool() { run_late(); }

  Fuse fuse;

  int NumThreads() const { return 4; }
  void Schedule(std::function<void()> task) {
    if (!after_) fuse();
    if (runs_ == Runs::within) {
      task();
    } else if (runs_ == Runs::late) {
      tasks_.push_back(std::move(task));
    } else {
      threads_.emplace_back(std::move(task));
    }
    if (after_) fuse();
  }
  void run_late() {
    for (const auto& task : tasks_) task();
    for (std::thread& thread : threads_) thread.join();
    tasks_.clear();
    threads_.clear();
  }

 private:
  Runs runs_;
  bool after_;
  std::vector<std::function<void()>> tasks_;
  std::vector<std::thread> threads_;
};

/// call() with the fuse set to 1, 2, …: it throws until there are fewer calls than that. After each, check(whether it threw); the
/// number of those.
template <class Call, class Check>
int throw_at_each(Fuse& fuse, const Call& call, const Check& check) {
  for (int n = 1;; ++n) {
    bool threw = false;
    fuse.set(n);
    try {
      call();
    } catch (const Refused&) {
      threw = true;
    }
    fuse.set(0);
    check(threw);
    if (!threw || ::testing::Test::HasFailure()) return n - 1;
  }
}

struct Operands {
  Matrix Q = uniform<float>(9, 8, 1), K = uniform<float>(40, 8, 2), V = uniform<float>(40, 8, 3);
};

/// The same with work for several workers.
struct ManyOperands {
  Matrix Q = uniform<float>(40, 64, 1), K = uniform<float>(300, 64, 2),
         V = uniform<float>(300, 64, 3);

  template <class... Options>
  void attend(attn::ScaledDotProductAttention<float>& sdpa, const Options&... options) const {
    sdpa(attn::heads(Q, 8), attn::heads(K, 8), attn::heads(V, 8), options...);
  }
  Matrix expected() const {
    attn::ScaledDotProductAttention<float> sdpa;
    Matrix Y;
    attend(sdpa, attn::into(Y));
    return Y;
  }
};

template <class Check>
void with_every_pool(const Check& check) {
  for (const Runs runs : {Runs::at_once, Runs::within, Runs::late}) {
    for (const bool after_queueing : {false, true}) {
      SCOPED_TRACE(int(runs) * 2 + int(after_queueing));
      ThrowingPool pool(runs, after_queueing);
      check(pool);
    }
  }
}

TEST(APoolThatThrows, LeavesAttentionUsable) {
  const ManyOperands x;
  const Matrix expected = x.expected();
  with_every_pool([&](ThrowingPool& pool) {
    attn::ScaledDotProductAttention<float> sdpa;
    Matrix Y;
    const auto call = [&] { x.attend(sdpa, attn::into(Y), attn::on(pool)); };
    const int thrown = throw_at_each(pool.fuse, call, [&](bool) {
      pool.run_late();
      call();
      pool.run_late();
      EXPECT_TRUE(same_bits(Y, expected));
    });
    EXPECT_EQ(thrown, 3) << "the caller is one of four workers";
  });
}

// A queued task may start when the caller's frame is gone: its tasks are late, and the call is over.
TEST(APoolThatThrows, IsNotRunBehindTheCall) {
  const ManyOperands x;
  ThrowingPool pool(Runs::late, true);
  {
    attn::ScaledDotProductAttention<float> sdpa;
    Matrix Y(40, 64);
    pool.fuse.set(2);
    EXPECT_THROW(x.attend(sdpa, attn::into(Y), attn::on(pool)), Refused);
  }
  pool.run_late();
}

/// A layer that decodes some tokens behind twenty.
struct Decoding {
  static constexpr Index kBefore = 20;
  Index tokens;
  attn::MultiHeadAttention<float> mha;
  attn::KeyValueCache<float> cache;
  Matrix X, whole, Y, before;

  Decoding(Index n, Index d_model)
      : tokens(n),
        mha(support::random_layer<float>(attn::MultiHeadOptions(d_model, 2))),
        cache(attn::KeyValueCacheOptions(kBefore + n, 2, d_model / 2)),
        X(uniform<float>(kBefore + n, d_model, 1)),
        Y(uniform<float>(n, d_model, 2)) {
    before = Y;
    whole = mha(X, attn::causal());
    (void)mha.decode(X.topRows(kBefore), cache);
  }
  template <class... Options>
  void decode(const Options&... options) {
    mha.decode(X.bottomRows(tokens), cache, attn::into(Y), options...);
  }
  /// Either it threw and nothing has happened, or it is done; then back to the beginning.
  void expect_all_or_nothing(bool threw) {
    ASSERT_EQ(cache.length(), threw ? kBefore : kBefore + tokens);
    EXPECT_TRUE(same_bits(Y, threw ? before : Matrix(whole.bottomRows(tokens))));
    cache.truncate(kBefore);
    decode();
    EXPECT_TRUE(same_bits(Y, whole.bottomRows(tokens)));
    cache.truncate(kBefore);
    Y = before;
  }
};

TEST(APoolThatThrows, LeavesTheCacheAndTheOutputOfDecodeAsTheyWere) {
  with_every_pool([](ThrowingPool& pool) {
    Decoding d(200, 128);  // work for several workers
    const int thrown = throw_at_each(
        pool.fuse, [&] { d.decode(attn::on(pool)); },
        [&](bool threw) {
          pool.run_late();
          d.expect_all_or_nothing(threw);
        });
    EXPECT_GE(thrown, 5) << "projected, attended, projected back: each by several workers";
  });
}

TEST(APoolThatThrows, MayDoSoInParallelFor) {
  struct Pool {
    Fuse fuse;
    void parallel_for(int n, const std::function<void(int)>& f) {
      for (int i = 0; i < n; ++i) {
        fuse();
        f(i);
      }
    }
  } pool;
  const ManyOperands x;
  const Matrix expected = x.expected();
  attn::ScaledDotProductAttention<float> sdpa;
  Matrix Y;
  const auto call = [&] { x.attend(sdpa, attn::into(Y), attn::on(pool, 3)); };
  EXPECT_EQ(throw_at_each(pool.fuse, call,
                          [&](bool) {
                            call();
                            EXPECT_TRUE(same_bits(Y, expected));
                          }),
            3);
}

TEST(AFunctorThatThrows, LeavesAttentionUsable) {
  const Operands x;
  const Matrix expected = attn::attention(x.Q, x.K, x.V);
  attn::ScaledDotProductAttention<float> sdpa;
  Matrix Y, l;
  Fuse fuse;
  const auto by_score = [&] {
    sdpa(x.Q, x.K, x.V, attn::into(Y), attn::save_logsumexp(l),
         attn::score([&](float s, attn::At) { return fuse(), s; }));
  };
  const auto by_mask = [&] {
    sdpa(x.Q, x.K, x.V, attn::into(Y), attn::save_logsumexp(l), attn::mask([&](Index, Index) {
           fuse();
           return true;
         }));
  };
  const auto right = [&](const auto& call) {
    return [&](bool) {
      call();
      EXPECT_TRUE(same_bits(Y, expected));
    };
  };
  EXPECT_GE(throw_at_each(fuse, by_score, right(by_score)), 9 * 40);
  EXPECT_GE(throw_at_each(fuse, by_mask, right(by_mask)), 9 * 40);
}

TEST(AFunctorThatThrows, LeavesTheCacheAndTheOutputOfDecodeAsTheyWere) {
  Decoding d(5, 8);
  Fuse fuse;
  const int thrown = throw_at_each(
      fuse, [&] { d.decode(attn::score([&](float s, attn::At) { return fuse(), s; })); },
      [&](bool threw) { d.expect_all_or_nothing(threw); });
  EXPECT_GE(thrown, 2 * (21 + 22 + 23 + 24 + 25));
}

TEST(AFunctorThatThrows, StopsAllWorkers) {
  const ManyOperands x;
  const Matrix expected = x.expected();
  Fuse fuse;
  ThrowingPool pool(Runs::at_once, false);
  attn::ScaledDotProductAttention<float> sdpa;
  Matrix Y;
  const auto call = [&] {
    x.attend(sdpa, attn::into(Y), attn::on(pool),
             attn::score([&](float s, attn::At) { return fuse(), s; }));
    pool.run_late();
  };
  for (const int n : {1, 40, 41, 200, 8 * 40 * 300}) {
    fuse.set(n);
    EXPECT_THROW(call(), Refused) << n;
    fuse.set(0);
    pool.run_late();
    call();
    EXPECT_TRUE(same_bits(Y, expected)) << n;
  }
}

}  // namespace
