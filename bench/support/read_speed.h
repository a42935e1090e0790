// bench/support/read_speed.h: how fast this core reads memory at most, measured: the best of several ways.
// SPDX-License-Identifier: MIT
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "machine.h"
#include "measure.h"

// WHAT  read_seconds(): one pass over memory with the widest loads, as 1, 2, 4 or 8 streams side by side, each asked for ahead
//       or left to hardware. fastest_pattern(): which of these is the limit of this core, over this memory, in this run.
// WHY   One stream reads 0.7 of the best on some processors and all of it on others: how many lines hardware fetches ahead is counted
//       by stream. What decodes is held against the best, else it would look better where hardware is worse.
// EDGES Eight sums of integers, so that no latency of floating point is in the way. What is left behind whole rounds is not read.

namespace bench {

/// A way to read memory: parallel streams, and the bytes that each asks for ahead, 0: none.
struct ReadPattern {
  int streams = 1;
  int ahead = 0;
};
inline constexpr ReadPattern kReadPatterns[] = {{1, 0}, {1, 2048}, {2, 0}, {2, 2048},
                                                {4, 0}, {4, 2048}, {8, 0}, {8, 2048}};

// A packet, and the same in memory of any type, wherever it lies.
#if ATTN_BENCH_X86
typedef std::uint64_t ReadPacket __attribute__((vector_size(kVectorBytes)));
typedef ReadPacket StoredPacket __attribute__((may_alias, aligned(1)));
#else
using ReadPacket = std::uint64_t;
using StoredPacket = ReadPacket;
#endif

template <int Streams>
double read_streams(const void* memory, std::size_t bytes, std::size_t ahead) {
  constexpr std::size_t kSums = 8, kEach = kSums / Streams;
  constexpr std::size_t kLine = 64 / sizeof(ReadPacket) == 0 ? 1 : 64 / sizeof(ReadPacket);
  const StoredPacket* const data = static_cast<const StoredPacket*>(memory);
  const std::size_t part = bytes / sizeof(ReadPacket) / kSums * kSums / Streams;
  const std::size_t asked = ahead / sizeof(ReadPacket);
  ReadPacket sums[kSums] = {};
  const double start = now();
  for (std::size_t i = 0; i < part; i += kEach) {
    for (std::size_t stream = 0; stream < Streams; ++stream) {
      const StoredPacket* const from = data + stream * part + i;
#if ATTN_BENCH_X86
      if (asked != 0) {
        for (std::size_t k = 0; k < kEach; k += kLine) __builtin_prefetch(from + asked + k);
      }
#endif
      for (std::size_t k = 0; k < kEach; ++k) sums[stream * kEach + k] += from[k];
    }
  }
  for (ReadPacket& sum : sums) benchmark::DoNotOptimize(sum);
  return now() - start;
}

inline double read_seconds(const void* memory, std::size_t bytes, ReadPattern pattern) {
  const auto ahead = static_cast<std::size_t>(pattern.ahead);
  switch (pattern.streams) {
    case 1:
      return read_streams<1>(memory, bytes, ahead);
    case 2:
      return read_streams<2>(memory, bytes, ahead);
    case 4:
      return read_streams<4>(memory, bytes, ahead);
    default:
      return read_streams<8>(memory, bytes, ahead);
  }
}

/// The pattern whose best of five readings is the shortest, taken in turn. read(pattern): seconds for as much memory each.
template <class Read>
ReadPattern fastest_pattern(const Read& read) {
  constexpr int kRounds = 5, kPatterns = sizeof kReadPatterns / sizeof *kReadPatterns;
  double best[kPatterns];
  std::fill_n(best, kPatterns, 1e9);
  for (int round = 0; round < kRounds; ++round) {
    for (int n = 0; n < kPatterns; ++n) best[n] = std::min(best[n], read(kReadPatterns[n]));
  }
  return kReadPatterns[std::min_element(best, best + kPatterns) - best];
}

/// A call beside a reading of as much memory by the fastest pattern: the bandwidth of a shared machine varies more from second to
/// second than between the two.
class BesideReading {
 public:
  explicit BesideReading(ReadPattern pattern) : pattern_(pattern) {}

  ReadPattern pattern() const { return pattern_; }
  void add(double bytes, double reading, double seconds) {
    bandwidths_.add(bytes / reading);
    fractions_.add(reading / seconds);
  }
  double bandwidth() const { return bandwidths_.median(); }
  double fraction() const { return fractions_.median(); }
  void report(benchmark::UserCounters& counters) const {
    counters["bandwidth_GBs"] = 1e-9 * bandwidth();
    counters["bandwidth_fraction"] = fraction();
    counters["read_streams"] = pattern_.streams;
    counters["read_ahead"] = pattern_.ahead;
  }

 private:
  ReadPattern pattern_;
  Samples bandwidths_, fractions_;
};

}  // namespace bench
