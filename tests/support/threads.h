// tests/support/threads.h: the least that on(pool) takes: threads made for one call.
// SPDX-License-Identifier: MIT
#pragma once

#include <thread>
#include <vector>

namespace support {

/// Runs f(0) … f(n − 1), each on a thread of its own.
struct Threads {
  template <class F>
  void parallel_for(int n, const F& f) {
    std::vector<std::thread> threads;
    for (int i = 0; i < n; ++i) threads.emplace_back([&f, i] { f(i); });
    for (std::thread& thread : threads) thread.join();
  }
};

}  // namespace support
