// bench/support/row.h: one row of the table: what is measured beside a call, and what the row says of it.
// SPDX-License-Identifier: MIT
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <exception>
#include <functional>
#include <string>

#include "machine.h"
#include "measure.h"
#include "threads.h"

namespace bench {

/// Registers the row that body(state) fills; what it throws stands in the row's place.
inline void add_row(const std::string& name, const std::function<void(benchmark::State&)>& body) {
  benchmark::RegisterBenchmark(name.c_str(), [body](benchmark::State& state) {
    try {
      body(state);
    } catch (const std::exception& error) {
      state.SetLabel(error.what());
      state.SkipWithError(error.what());
    }
  });
}

/// The peak of n threads, measured between the samples, so that its clock frequency is theirs.
class Peak {
 public:
  explicit Peak(int n) : n_(n) {}
  void probe() {
    best_ = std::max(best_, n_ == 1 ? multiply_add_peak<float>() : multiply_add_peak<float>(n_));
  }
  /// More of it: AVX-512 takes a while to reach its speed after narrower work.
  void probe_long() {
    for (const double end = now() + 0.02; now() < end;) probe();
  }
  double best() const { return best_; }

 private:
  int n_;
  double best_ = 0;
};

inline void report_times(const Samples& times, benchmark::UserCounters& counters) {
  counters["ms_min"] = 1e3 * times.min();
  counters["ms_median"] = 1e3 * times.median();
  counters["samples"] = static_cast<double>(times.size());
}
/// Of a call that arithmetic limits.
inline void report(const Samples& times, double flops, const Peak& peak,
                   benchmark::UserCounters& counters) {
  report_times(times, counters);
  counters["GFLOPS"] = 1e-9 * flops / times.min();
  counters["peak_GFLOPS"] = 1e-9 * peak.best();
  counters["peak_fraction"] = flops / times.min() / peak.best();
}

/// The library on one thread in turn with the formula by hand, both beside the peak. `sample_others`
/// measures what else the library is compared with. Returns the seconds of a call of the library.
template <class Library, class ByHand, class SampleOthers>
double measure_beside(benchmark::State& state, double flops, const Library& library,
                      const ByHand& by_hand, const SampleOthers& sample_others) {
  Units library_units([&] { library(); });
  Units by_hand_units([&] { by_hand(); });
  Peak peak(1);
  for (auto _ : state) {
    sample_in_turn(library_units, by_hand_units, [&] {
      peak.probe();
      library_units.sample();
      sample_others();
    });
    peak.probe_long();
  }
  const double seconds = library_units.per_call().min(), beside = by_hand_units.per_call().min();
  report(library_units.per_call(), flops, peak, state.counters);
  state.counters["textbook_ms"] = 1e3 * beside;
  state.counters["vs_textbook"] = seconds / beside;
  return seconds;
}
template <class Library, class ByHand>
double measure_beside(benchmark::State& state, double flops, const Library& library,
                      const ByHand& by_hand) {
  return measure_beside(state, flops, library, by_hand, [] {});
}

/// library(n), on n threads, in turn with library(1).
template <class Library>
void measure_threads(benchmark::State& state, double flops, int n, const Library& library) {
  Units several([&] { library(n); });
  Units one([&] { library(1); });
  Peak peak(n);
  for (auto _ : state) {
    const double end = now() + time_budget();
    for (int turn = 0; turn < 3 || now() < end; ++turn) {
      peak.probe();
      several.sample();
      one.sample();
    }
    peak.probe_long();
  }
  report(several.per_call(), flops, peak, state.counters);
  state.counters["one_thread_ms"] = 1e3 * one.per_call().min();
  state.counters["vs_one_thread"] = one.per_call().min() / several.per_call().min();
}

/// What the backward pass takes beside the forward one, operation by operation, where both took
/// `seconds` for `flops`.
inline void report_forward(const Samples& forward, double forward_flops, double seconds,
                           double flops, benchmark::UserCounters& counters) {
  const double alone = forward.min();
  counters["forward_ms"] = 1e3 * alone;
  counters["backward_over_forward"] =
      (seconds - alone) / alone * forward_flops / (flops - forward_flops);
}

}  // namespace bench
