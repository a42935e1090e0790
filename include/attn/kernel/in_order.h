// attn/kernel/in_order.h: chunks that add to the same sums do so in one order, whichever workers
// they have.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>

#include "../types.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     chunk n adds to what belongs to a block of keys once each chunk before it, down to a
//          first one, has passed that block or is done
// PICTURE  worker 0   chunk 0: block 0, 1, 2, 3, …               all chunks go through their blocks
//          worker 1      chunk 1: block 0, 1, 2, 3, …            upwards: they follow each other a
//          worker 2         chunk 2: block 0, 1, 2, …            block apart
// WHY      the order of additions is that of one worker: no partial sums, no locked additions, the
//          same bits
// EDGES    chunks are drawn in their order, so what is waited for is being done by a worker that
//          runs, also where the workers run one after the other: no deadlock. A chunk that is left
//          by an exception is done
class Turns {
 public:
  /// A chunk's own; at its end the chunk is done.
  class Turn {
   public:
    Turn(Turns& turns, Index number, int worker) : turns_(turns), number_(number) {
      Slot& slot = turns_.slot(number);
      // The one that had the slot before.
      if (number >= kSlots) turns_.wait(number - kSlots, kDone);
      slot.worker = worker;
    }
    ~Turn() { publish(kDone); }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

    /// All keys before this one are passed, and all that is common to the chunks is prepared.
    void reach(Index key) { publish(std::uint64_t(key) + 1); }
    /// Waits until the chunks from `first` on have passed the key.
    void wait(Index first, Index key) { turns_.wait_all(first, number_, std::uint64_t(key) + 2); }
    /// Waits until chunks [first, end) are done.
    void wait_done(Index first, Index end) { turns_.wait_all(first, end, kDone); }
    /// Which worker has a chunk before this one, or this one, once it has begun.
    int worker_of(Index number, int) {
      turns_.wait(number, 1);
      return turns_.slot(number).worker;
    }

   private:
    void publish(std::uint64_t progress) {
      turns_.slot(number_).progress.store(base(number_) + progress, std::memory_order_release);
    }

    Turns& turns_;
    const Index number_;
  };

 private:
  /// Chunks under way at once; as many as there may be workers.
  static constexpr Index kSlots = 1024;
  static constexpr std::uint64_t kDone = std::uint64_t(1) << 40;
  struct Slot {
    std::atomic<std::uint64_t> progress{0};
    int worker = 0;
  };

  static std::uint64_t base(Index number) { return std::uint64_t(number / kSlots) * kDone; }
  Slot& slot(Index number) { return slots_[number % kSlots]; }
  bool passed(Index number, std::uint64_t progress) {
    return slot(number).progress.load(std::memory_order_acquire) >= base(number) + progress;
  }
  void wait(Index number, std::uint64_t progress) {
    for (int n = 0; !passed(number, progress); ++n) {
      if (n >= 100) std::this_thread::yield();
    }
  }
  void wait_all(Index first, Index end, std::uint64_t progress) {
    Index done = done_.load(std::memory_order_acquire);
    for (Index number = std::max(first, done); number < end; ++number) {
      wait(number, progress);
      if (number == done && passed(number, kDone)) ++done;
    }
    if (done > done_.load(std::memory_order_relaxed)) done_.store(done, std::memory_order_release);
  }

  std::atomic<Index> done_{0};  ///< chunks before it are, and maybe more
  Slot slots_[std::size_t{kSlots}];
};

/// One worker alone: its chunks follow each other.
class NoTurns {
 public:
  class Turn {
   public:
    Turn(NoTurns&, Index, int) {}
    void reach(Index) {}
    void wait(Index, Index) {}
    void wait_done(Index, Index) {}
    int worker_of(Index, int worker) { return worker; }
  };
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
