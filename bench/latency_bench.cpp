// bench/latency_bench.cpp: how long single small calls take, from the fastest to the slowest of many: sizes that
// the compiler knows beside the same ones in dynamic matrices.
// SPDX-License-Identifier: MIT

#include <attn/attn.h>
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

#include "support/operands.h"
#include "support/row.h"
#include "support/workloads.h"

namespace bench {
namespace {

constexpr std::size_t kCalls = 100000;

/// Nanoseconds of single calls in their order of size, those of reading the clock taken off: the
/// least that two readings are apart.
class Latencies {
 public:
  template <class Call>
  explicit Latencies(const Call& call) {
    for (std::size_t n = 0; n < 1000; ++n) call();  // warm
    clock_ = sorted([] {}).front();
    sorted_ = sorted(call);
  }
  double clock() const { return clock_; }
  /// The latency that this share of the calls does not pass.
  double percentile(double share) const {
    const auto last = static_cast<double>(sorted_.size() - 1);
    return std::max(0.0, sorted_[static_cast<std::size_t>(share * last)] - clock_);
  }

 private:
  using Clock = std::chrono::steady_clock;

  template <class Call>
  static std::vector<double> sorted(const Call& call) {
    std::vector<double> nanoseconds(kCalls);
    for (double& taken : nanoseconds) {
      const auto start = Clock::now();
      call();
      taken = std::chrono::duration<double, std::nano>(Clock::now() - start).count();
    }
    std::sort(nanoseconds.begin(), nanoseconds.end());
    return nanoseconds;
  }

  double clock_;
  std::vector<double> sorted_;
};

template <class Call>
void measure(benchmark::State& state, const Call& call) {
  auto& counters = state.counters;
  for (auto _ : state) {
    const Latencies latencies(call);
    counters["ns_min"] = latencies.percentile(0);
    counters["ns_median"] = latencies.percentile(0.5);
    counters["ns_p99"] = latencies.percentile(0.99);
    counters["ns_p999"] = latencies.percentile(0.999);
    counters["ns_worst"] = latencies.percentile(1);
    counters["ns_clock"] = latencies.clock();
    counters["ms_min"] = 1e-6 * latencies.percentile(0);
  }
}

/// One head of as many queries as keys; Rows and Cols: its sizes or Eigen::Dynamic.
template <int Rows, int Cols>
void measure_head(benchmark::State& state, Index length, Index size) {
  using Matrix = Eigen::Matrix<float, Rows, Cols, Eigen::RowMajor>;
  Uniform uniform(3);
  Matrix q(length, size), k(length, size), v(length, size), y(length, size);
  for (Matrix* m : {&q, &k, &v}) fill(*m, uniform);
  attn::ScaledDotProductAttention<float> attend;
  measure(state, [&] {
    attend(q, k, v, attn::into(y));
    benchmark::DoNotOptimize(y.data());
    benchmark::ClobberMemory();
  });
}

/// The first of the named workloads: all its heads in one call.
void measure_tiny(benchmark::State& state) {
  constexpr Workload w = kWorkloads[0];
  const Index length = w.queries, size = w.head_size, all = w.query_heads * size;
  Uniform uniform(3);
  RowMatrix<float> q(length, all), k(length, all), v(length, all), y(length, all);
  for (auto* m : {&q, &k, &v}) fill(*m, uniform);
  attn::ScaledDotProductAttention<float> attend;
  const auto heads = [](auto& m) { return attn::heads(m, w.query_heads); };
  measure(state, [&] { attend(heads(q), heads(k), heads(v), attn::into(heads(y))); });
}

const bool registered = [] {
  add_row("latency/dynamic_1x1",
          [](auto& state) { measure_head<Eigen::Dynamic, Eigen::Dynamic>(state, 1, 1); });
  add_row("latency/fixed_8x8", [](auto& state) { measure_head<8, 8>(state, 8, 8); });
  add_row("latency/dynamic_8x8",
          [](auto& state) { measure_head<Eigen::Dynamic, Eigen::Dynamic>(state, 8, 8); });
  add_row("latency/fixed_16x32", [](auto& state) { measure_head<16, 32>(state, 16, 32); });
  add_row("latency/dynamic_16x32",
          [](auto& state) { measure_head<Eigen::Dynamic, Eigen::Dynamic>(state, 16, 32); });
  add_row("latency/tiny", measure_tiny);
  return true;
}();

}  // namespace
}  // namespace bench
