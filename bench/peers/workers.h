// bench/peers/workers.h: heads, or parts of rows, over threads, for libraries that are called head
// by head.
// SPDX-License-Identifier: MIT
#pragma once

#include "../support/threads.h"
#include "../support/workloads.h"

namespace bench {

/// f(worker, head) for each head.
template <class Function>
void for_each_head(int workers, Index heads, const Function& f) {
  const auto work = [&](int worker) {
    for (Index head = worker; head < heads; head += workers) f(worker, head);
  };
  if (workers == 1) return work(0);
  thread_pool().parallel_for(workers, work);
}

/// f(worker, first row, rows) for the part of each worker.
template <class Function>
void for_each_part(int workers, Index rows, const Function& f) {
  for_each_head(workers, workers, [&](int worker, Index part) {
    const Index first = rows * part / workers;
    f(worker, first, rows * (part + 1) / workers - first);
  });
}

}  // namespace bench
