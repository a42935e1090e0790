// bench/support/threads.h: threads for the library, and what the cores can do at once.
// SPDX-License-Identifier: MIT
#pragma once

#include <attn/parallel.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "machine.h"
#include "measure.h"
#include "read_speed.h"

namespace bench {

// WHAT  A pool of std::thread for attn::on(pool): parallel_for(n, f) runs f(0) on the caller and
//       f(1) ... f(n - 1) on a thread each, and returns when all are done.
// WHY   It needs no compiler flag. Its threads spin for a while before they sleep, as those of
//       OpenMP and of Eigen's pool do: waking a thread takes longer than all of `tiny`.
// EDGES One caller at a time. Threads are started by the first call that needs them, so that rows
//       of one thread run in a program of one thread.
class ThreadPool {
 public:
  ThreadPool() = default;
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool() {
    call_ = nullptr;
    open_round();
    for (std::thread& thread : threads_) thread.join();
  }

  template <class Function>
  void parallel_for(int n, const Function& f) {
    while (static_cast<int>(threads_.size()) < n - 1) {
      const int worker = static_cast<int>(threads_.size()) + 1;
      threads_.emplace_back([this, worker, seen = round_.load()] { serve(worker, seen); });
    }
    call_ = [](const void* function, int worker) {
      (*static_cast<const Function*>(function))(worker);
    };
    function_ = &f;
    wanted_ = n;
    running_.store(static_cast<int>(threads_.size()));
    open_round();
    f(0);
    const auto all_done = [&] { return running_.load(std::memory_order_acquire) == 0; };
    while (!spin_until(all_done)) std::this_thread::yield();
  }

 private:
  static constexpr double kSpinSeconds = 50e-6;

  template <class Condition>
  static bool spin_until(const Condition& condition) {
    for (const double end = now() + kSpinSeconds; now() < end;) {
      for (int i = 0; i < 100; ++i) {
        if (condition()) return true;
      }
    }
    return false;
  }

  void open_round() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      round_.fetch_add(1, std::memory_order_release);
    }
    opened_.notify_all();
  }

  void serve(int worker, unsigned seen) {
    const auto opened = [&] { return round_.load(std::memory_order_acquire) != seen; };
    for (;; ++seen) {
      if (!spin_until(opened)) {
        std::unique_lock<std::mutex> lock(mutex_);
        opened_.wait(lock, opened);
      }
      if (call_ == nullptr) return;
      if (worker < wanted_) call_(function_, worker);
      running_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable opened_;
  std::atomic<unsigned> round_{0};
  std::atomic<int> running_{0};
  void (*call_)(const void*, int) = nullptr;
  const void* function_ = nullptr;
  int wanted_ = 0;
};

inline ThreadPool& thread_pool() {
  static ThreadPool pool;
  return pool;
}

/// The library's option for n threads: by OpenMP where the program is compiled with it.
inline auto threads(int n) {
  if constexpr (attn::has_openmp) {
    return attn::parallel(n);
  } else {
    return attn::on(thread_pool(), n);
  }
}

/// Runs measure(worker) on n threads that start together, and returns all results.
template <class Measure>
std::vector<double> measure_together(int n, const Measure& measure) {
  std::vector<double> results(static_cast<std::size_t>(n));
  std::atomic<int> ready{0};
  thread_pool().parallel_for(n, [&](int worker) {
    for (++ready; ready.load() < n;) {
    }
    results[static_cast<std::size_t>(worker)] = measure(worker);
  });
  return results;
}

/// Operations per second of n threads at once, as multiply_add_peak().
template <class Scalar>
double multiply_add_peak(int n) {
  double sum = 0;
  for (const double rate : measure_together(n, [](int) { return multiply_add_peak<Scalar>(); })) {
    sum += rate;
  }
  return sum;
}

/// Seconds in which n threads read the memory, each a part of it.
inline double read_seconds(const void* memory, std::size_t bytes, ReadPattern pattern, int n) {
  if (n == 1) return read_seconds(memory, bytes, pattern);
  const std::size_t part = bytes / static_cast<std::size_t>(n);
  const auto seconds = measure_together(n, [&](int worker) {
    return read_seconds(static_cast<const char*>(memory) + static_cast<std::size_t>(worker) * part,
                        part, pattern);
  });
  return *std::max_element(seconds.begin(), seconds.end());
}

}  // namespace bench
