// bench/attention_bench.cpp: attention over the named workloads, beside the formula by hand; on two
// threads beside one; odd sizes beside their even neighbours.
// SPDX-License-Identifier: MIT

#include <attn/attn.h>
#include <benchmark/benchmark.h>

#include <algorithm>
#include <exception>
#include <functional>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "support/library.h"
#include "support/machine.h"
#include "support/measure.h"
#include "support/operands.h"
#include "support/reference.h"
#include "support/textbook.h"
#include "support/threads.h"
#include "support/workloads.h"

namespace bench {
namespace {

/// A workload with its operands, and what may be timed on them.
template <class Stored>
class Subject {
 public:
  using Scalar = compute_t<Stored>;

  explicit Subject(const Workload& w)
      : w_(w),
        operands_(w),
        bias_(w.mask == Mask::kBias ? w.queries : 0, w.keys),
        y_(output_size(w)),
        library_(w),
        textbook_(w) {
    Uniform uniform(3);
    fill(bias_, uniform);
  }

  void library(int n) { library_(operands_.next(), bias_, y_.data(), n); }
  void textbook() { textbook_(operands_.next(), bias_, y_.data()); }
  double library_error(int n) {
    library_(operands_.first(), bias_, y_.data(), n);
    return error();
  }
  double textbook_error() {
    textbook_(operands_.first(), bias_, y_.data());
    return error();
  }

  double bytes() const { return static_cast<double>(operands_.first().key_value_bytes()); }
  /// Mean seconds for which n threads read the next `sets` sets of keys and values.
  double reading(ReadPattern pattern, int sets, int n) {
    double seconds = 0;
    for (int i = 0; i < sets; ++i)
      seconds += operands_.next().seconds_to_read_keys_and_values(pattern, n);
    return seconds / sets;
  }

 private:
  double error() const { return max_error(w_, operands_.first(), bias_, y_.data()); }

  Workload w_;
  Rotation<Stored> operands_;
  RowMatrix<Scalar> bias_;
  Eigen::Array<Stored, Eigen::Dynamic, 1> y_;
  Library<Stored> library_;
  Textbook<Stored> textbook_;
};

/// What the machine can do at most with n threads, measured beside each sample of the library.
template <class Stored>
class Limit {
 public:
  Limit(const Workload& w, Subject<Stored>& subject, int n)
      : w_(w), subject_(subject), n_(n), beside_(pattern()) {}

  /// Samples the library beside the limit, and returns the seconds of one call.
  template <class Call>
  double sample(Units<Call>& units) {
    if (!is_bound_by_memory(w_)) {
      // The peak between the runs, so that its clock frequency is theirs.
      probe();
      return units.sample();
    }
    // Each run beside a reading of the same amount from the same rotation.
    const double reading = subject_.reading(beside_.pattern(), units.calls(), n_);
    const double seconds = units.sample();
    beside_.add(subject_.bytes(), reading, seconds);
    return seconds;
  }
  void finish() {
    // More of it at the end: AVX-512 takes a while to reach its speed after narrower work.
    if (is_bound_by_memory(w_)) return;
    for (const double end = now() + 0.02; now() < end;) probe();
  }

  void report(double seconds, benchmark::UserCounters& counters) const {
    if (is_bound_by_memory(w_)) {
      beside_.report(counters);
    } else {
      counters["peak_GFLOPS"] = 1e-9 * peak_;
      counters["peak_fraction"] = flops(w_) / seconds / peak_;
    }
  }

 private:
  using Scalar = compute_t<Stored>;
  ReadPattern pattern() {
    if (!is_bound_by_memory(w_)) return {};
    return fastest_pattern([&](ReadPattern p) { return subject_.reading(p, 1, n_); });
  }
  void probe() {
    peak_ = std::max(peak_, n_ == 1 ? multiply_add_peak<Scalar>() : multiply_add_peak<Scalar>(n_));
  }

  Workload w_;
  Subject<Stored>& subject_;
  int n_;
  double peak_ = 0;
  BesideReading beside_;
};

void report_times(const Workload& w, const Samples& times, benchmark::UserCounters& counters) {
  counters["ms_min"] = 1e3 * times.min();
  counters["ms_median"] = 1e3 * times.median();
  counters["samples"] = static_cast<double>(times.size());
  counters["GFLOPS"] = 1e-9 * flops(w) / times.min();
}

/// On one thread, in turn with the formula by hand and, where there is one, the even neighbour.
template <class Stored>
void measure(benchmark::State& state, const Workload& w, const Workload* even) {
  Subject<Stored> subject(w);
  auto& counters = state.counters;
  counters["max_err"] = subject.library_error(1);
  counters["textbook_max_err"] = subject.textbook_error();

  Units library([&] { subject.library(1); });
  Units textbook([&] { subject.textbook(); });
  std::optional<Subject<Stored>> neighbour;
  std::optional<Units<std::function<void()>>> beside;
  if (even != nullptr) {
    neighbour.emplace(*even);
    beside.emplace([&] { neighbour->library(1); });
  }
  Limit<Stored> limit(w, subject, 1);
  for (auto _ : state) {
    sample_in_turn(library, textbook, [&] {
      limit.sample(library);
      if (beside) beside->sample();
    });
    limit.finish();
  }

  const double seconds = library.per_call().min();
  report_times(w, library.per_call(), counters);
  limit.report(seconds, counters);
  counters["textbook_ms"] = 1e3 * textbook.per_call().min();
  counters["vs_textbook"] = seconds / textbook.per_call().min();
  if (beside) {
    const double even_seconds = beside->per_call().min();
    counters["neighbour_ms"] = 1e3 * even_seconds;
    counters["vs_neighbour"] = flops(w) / seconds / (flops(*even) / even_seconds);
  }
}

/// On n threads, in turn with one. Their ratio is that of the minima, and where memory is the limit
/// the median ratio of runs side by side.
template <class Stored>
void measure_threads(benchmark::State& state, const Workload& w, int n) {
  Subject<Stored> subject(w);
  auto& counters = state.counters;
  counters["max_err"] = subject.library_error(n);

  Units several([&] { subject.library(n); });
  Units one([&] { subject.library(1); });
  Limit<Stored> limit(w, subject, n);
  Samples ratios;
  for (auto _ : state) {
    const double end = now() + time_budget();
    for (int turn = 0; turn < 3 || now() < end; ++turn) {
      const double seconds = limit.sample(several);
      ratios.add(one.sample() / seconds);
    }
    limit.finish();
  }

  const double seconds = several.per_call().min(), alone = one.per_call().min();
  report_times(w, several.per_call(), counters);
  limit.report(seconds, counters);
  counters["one_thread_ms"] = 1e3 * alone;
  counters["vs_one_thread"] = is_bound_by_memory(w) ? ratios.median() : alone / seconds;
}

using Body = std::function<void(benchmark::State&)>;
void add(const std::string& name, const Body& body) {
  benchmark::RegisterBenchmark(name.c_str(), [body](benchmark::State& state) {
    try {
      body(state);
    } catch (const std::exception& error) {
      state.SetLabel(error.what());
      state.SkipWithError(error.what());
    }
  });
}

/// Calls f with a value of the type that the workload is stored in.
template <class Function>
void with_storage(const Workload& w, const Function& f) {
  switch (w.storage) {
    case Storage::kFloat:
      return f(float());
    case Storage::kDouble:
      return f(double());
    case Storage::kBfloat16:
      return f(Eigen::bfloat16());
  }
}

const bool registered = [] {
  for (const Workload& w : kWorkloads) {
    const std::string name = std::string("attention/") + w.name;
    add(name + "/threads:1", [&w](benchmark::State& state) {
      with_storage(w, [&](auto stored) { measure<decltype(stored)>(state, w, nullptr); });
    });
    add(name + "/threads:2", [&w](benchmark::State& state) {
      with_storage(w, [&](auto stored) { measure_threads<decltype(stored)>(state, w, 2); });
    });
  }
  for (const OddWorkload& pair : kOddWorkloads) {
    add(std::string("odd/") + pair.odd.name + "/threads:1",
        [&pair](benchmark::State& state) { measure<float>(state, pair.odd, &pair.even); });
  }
  return true;
}();

}  // namespace
}  // namespace bench
