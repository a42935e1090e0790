// attn/parallel.h: several threads for one call: parallel(n) with OpenMP, on(pool) with Eigen's or
// any thread pool; split_keys(n).
// SPDX-License-Identifier: MIT
//
// Serial unless asked, and no global state. The work is cut by sequence, key/value head and rows of
// queries; workers take the next piece when they are done with one, the costliest (last) rows of a
// head first, so that causal and ragged work is shared by cost. No more workers are woken than the
// work pays for, one for some 10 µs of it (kernel/tile_size.h). Which worker computes a row changes
// no bit of it. Workers take over the caller's floating-point environment (flush-to-zero,
// rounding); an exception in a worker, or of the pool, reaches the caller once all workers have
// stopped.
// One query against many keys is a single piece of work, unless split_keys(chunk) cuts the keys as
// well.
#pragma once

#include <atomic>
#include <cfenv>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <type_traits>
#include <utility>

#include "base/check.h"
#include "base/asked.h"
#include "types.h"

namespace attn {
inline namespace ATTN_ABI {

/// parallel(n) has threads behind it: the program is compiled with OpenMP. Without, it runs on the
/// calling thread.
inline constexpr bool has_openmp = ATTN_OPENMP != 0;

namespace detail {

/// One task that several workers run at once: each of them as task(worker). Keeps the first
/// exception for the caller.
template <class Task>
class SharedTask {
 public:
  explicit SharedTask(const Task& task) : task_(task) { std::fegetenv(&environment_); }

  /// Runs the task as one worker, under the caller's floating-point environment.
  void operator()(int worker) {
    std::fenv_t own;
    std::fegetenv(&own);
    std::fesetenv(&environment_);
    ATTN_TRY { task_(worker); }
    ATTN_CATCH_ALL {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
    }
    std::fesetenv(&own);
  }
  /// On the calling thread, after all workers have returned.
  void finish() {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  const Task& task_;
  std::fenv_t environment_;
  std::mutex mutex_;
  std::exception_ptr failure_;
};

/// Up to n workers: no more than a machine has cores, so that shares of scratch can be counted.
constexpr int bounded_workers(Index n) {
  constexpr Index most = 1024;
  return int(n < -most ? -most : n > most ? most : n);
}

/// The calling thread alone.
struct Serial {
  static constexpr bool kAlone = true;     ///< never more than one worker
  static constexpr bool kMayFail = false;  ///< run() may throw what the task did not
  int workers() const { return 1; }
  template <class Task>
  void run(int, const Task& task) const {
    task(0);
  }
};

struct ExecutorOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: threads asked for twice: one of parallel(n) and on(pool)");
  }
};
/// parallel(n).
struct Parallel : option_base {
  using Kind = ExecutorOption;
  static constexpr bool kAlone = false, kMayFail = false;
  int count;
  explicit Parallel(Index n) : count(bounded_workers(n)) {}
  int workers() const { return has_openmp || count < 1 ? count : 1; }
  template <class Task>
  void run(int workers, const Task& task) const {
    if (workers == 1) return task(0);
    SharedTask<Task> shared(task);
    ATTN_OPENMP_FOR(workers)
    for (int worker = 0; worker < workers; ++worker) shared(worker);
    shared.finish();
  }
};

template <class Pool, class = void>
struct has_parallel_for : std::false_type {};
template <class Pool>
struct has_parallel_for<Pool, std::void_t<decltype(std::declval<Pool&>().parallel_for(
                                  0, std::declval<void (*)(int)>()))>> : std::true_type {};

/// on(pool). Two kinds of pool: parallel_for(n, f) runs f(0) … f(n − 1) and returns (or throws)
/// when all are done; Schedule(f) queues f and NumThreads() tells how many threads there are
/// (Eigen::ThreadPool).
template <class Pool>
struct OnPool : option_base {
  using Kind = ExecutorOption;
  static constexpr bool kAlone = false, kMayFail = true;
  Pool* pool;
  int count;
  OnPool(Pool& p, Index n) : pool(&p), count(bounded_workers(n)) {}
  int workers() const { return count; }

  template <class Task>
  void run(int workers, const Task& task) const {
    if (workers == 1) return task(0);
    SharedTask<Task> shared(task);
    if constexpr (has_parallel_for<Pool>::value) {
      pool->parallel_for(workers, [&shared](auto worker) { shared(int(worker)); });
    } else {
      schedule(workers, shared);
    }
    shared.finish();
  }

 private:
  /// What queued tasks and the caller agree on. It outlives the call in tasks that start too late
  /// and find it closed, so a call from inside a busy pool cannot wait for itself.
  struct Roll {
    std::mutex mutex;
    std::condition_variable left;
    int joined = 1, running = 0;  // the caller is worker 0
    bool closed = false;
  };
  /// Whichever way the caller leaves, the pool's exceptions among them: from then on nobody joins,
  /// and those who have are waited for, as they use what is the caller's.
  struct Closing {
    Roll& roll;
    ~Closing() {
      std::unique_lock<std::mutex> lock(roll.mutex);
      roll.closed = true;
      roll.left.wait(lock, [&] { return roll.running == 0; });
    }
  };

  template <class Shared>
  void schedule(int workers, Shared& shared) const {
    const auto roll = std::make_shared<Roll>();
    const Closing closing{*roll};
    for (int n = 1; n < workers; ++n) {
      pool->Schedule([roll, &shared] {
        int worker;
        {
          const std::lock_guard<std::mutex> lock(roll->mutex);
          if (roll->closed) return;
          worker = roll->joined++;
          ++roll->running;
        }
        shared(worker);
        const std::lock_guard<std::mutex> lock(roll->mutex);
        if (--roll->running == 0) roll->left.notify_one();
      });
    }
    shared(0);
  }
};

struct SplitKeysOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: two split_keys in one call");
  }
};
/// split_keys(chunk).
struct SplitKeys : option_base {
  using Kind = SplitKeysOption;
  Index chunk;
  explicit SplitKeys(Index keys) : chunk(keys) {}
  void check(const char* function) const {
    if (chunk < 1) fail(text(function, ": split_keys(", chunk, "), needs at least 1 key"));
  }
};

}  // namespace detail

/// Up to n threads by OpenMP (1024 at most), the caller among them; fewer where the work does not
/// pay for n. Scratch grows to one share for each.
///
/// Requires   n ≥ 1                                          (std::invalid_argument from the call otherwise)
inline detail::Parallel parallel(Index n) { return detail::Parallel(n); }

/// The same by up to n threads of a pool (default: all it has; 1024 at most): an Eigen::ThreadPool
/// (anything with Schedule(f) and NumThreads()), or any object with parallel_for(n, f).
template <class Pool>
detail::OnPool<Pool> on(Pool& pool, Index n) {
  return detail::OnPool<Pool>(pool, n);
}
template <class Pool>
auto on(Pool& pool) -> decltype(detail::OnPool<Pool>(pool, int(pool.NumThreads()))) {
  return detail::OnPool<Pool>(pool, int(pool.NumThreads()));
}

/// Cuts the keys of each sequence at multiples of chunk, rounded up to whole blocks of keys (256,
/// or 128 or 64 where a key and its value together have more than 256 or 512 floats): each part is
/// attended by itself, and the parts' results are merged in the order of the keys, as states of
/// partial.h are.
/// Where a call has too few rows and heads for its threads (decoding), these share the parts.
///
/// Requires   chunk ≥ 1                                      (std::invalid_argument from the call otherwise)
/// Semantics  the parts decide the last bits, the threads do not: with one, the result is the same
/// Cost       one exp and d_v multiplications a row and part; scratch for a result of each part and
///            row where parts are shared
inline detail::SplitKeys split_keys(Index chunk) { return detail::SplitKeys(chunk); }

}  // namespace ATTN_ABI
}  // namespace attn
