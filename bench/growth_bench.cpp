// bench/growth_bench.cpp: how time and scratch grow with the length, decoding and causal.
// SPDX-License-Identifier: MIT

#include <attn/attn.h>
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "support/machine.h"
#include "support/measure.h"
#include "support/operands.h"

namespace bench {
namespace {

constexpr Index kShortest = 128, kLongest = 32768, kFeatures = 64;
constexpr Index kPoints = 9;

enum class Growth { kDecode, kCausal };

// WHAT  One head of 64 features. Decoding: one query, L keys. Causal: L queries, L keys.
// WHY   Decoding walks over keys and values of 4 x the last-level cache and more, so that every
//       length reads from memory: from caches, time would grow by steps where keys leave them.
// EDGES The exponent is that of the upper half of the lengths: a call's fixed cost and the mask's
//       boundary weigh on the shortest.
class Walk {
 public:
  Walk(Growth growth, Index length) : causal_(growth == Growth::kCausal), length_(length) {
    const auto row_bytes = static_cast<Index>(2 * kFeatures * sizeof(float));
    const Index rows = causal_ ? length
                               : length + static_cast<Index>(4 * last_level_cache_bytes()) /
                                              row_bytes / length * length;
    Uniform uniform(17);
    for (auto* m : {&query_, &output_}) m->resize(causal_ ? length : 1, kFeatures);
    for (auto* m : {&key_, &value_}) m->resize(rows, kFeatures);
    for (auto* m : {&query_, &key_, &value_}) fill(*m, uniform);
  }

  void operator()() {
    first_ = first_ + 2 * length_ > key_.rows() ? 0 : first_ + length_;
    const auto k = key_.middleRows(first_, length_), v = value_.middleRows(first_, length_);
    if (causal_) {
      attend_(query_, k, v, attn::into(output_), attn::causal(), attn::use(workspace_));
    } else {
      attend_(query_, k, v, attn::into(output_), attn::use(workspace_));
    }
  }

  double flops() const {
    const auto length = static_cast<double>(length_);
    const double pairs = causal_ ? length * (length + 1) / 2 : length;
    return 4 * pairs * kFeatures;
  }
  double operand_bytes() const {
    return static_cast<double>(2 * (query_.rows() + length_) * kFeatures) * sizeof(float);
  }
  double workspace_bytes() const {
    return static_cast<double>(workspace_.capacity()) * sizeof(float);
  }

 private:
  bool causal_;
  Index length_, first_ = 0;
  RowMatrix<float> query_, key_, value_, output_;
  attn::Workspace<float> workspace_;
  const attn::ScaledDotProductAttention<float> attend_;
};

/// Slope of the least-squares line through (log length, log seconds).
double fitted_exponent(const std::vector<double>& lengths, const std::vector<double>& seconds) {
  const auto n = static_cast<double>(lengths.size());
  double x = 0, y = 0, xx = 0, xy = 0;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    const double a = std::log(lengths[i]), b = std::log(seconds[i]);
    x += a, y += b, xx += a * a, xy += a * b;
  }
  return (n * xy - x * y) / (n * xx - x * x);
}

/// The points of one table that have run; the last one carries the exponent.
struct Series {
  std::vector<double> lengths, seconds;
};

void measure(benchmark::State& state, Growth growth, Index length, Series& series) {
  Walk walk(growth, length);
  Units units([&] { walk(); });
  for (auto _ : state) {
    const double end = now() + time_budget() / double(kPoints);
    for (int turn = 0; turn < 3 || now() < end; ++turn) units.sample();
  }
  const Samples& times = units.per_call();
  auto& counters = state.counters;
  counters["length"] = static_cast<double>(length);
  counters["ms_min"] = 1e3 * times.min();
  counters["ms_median"] = 1e3 * times.median();
  counters["samples"] = static_cast<double>(times.size());
  counters["GFLOPS"] = 1e-9 * walk.flops() / times.min();
  counters["workspace_bytes"] = walk.workspace_bytes();
  counters["operand_bytes"] = walk.operand_bytes();

  // Decoding shares memory with others: its median is steadier than its minimum.
  if (length * length < kShortest * kLongest) return;
  series.lengths.push_back(static_cast<double>(length));
  series.seconds.push_back(growth == Growth::kDecode ? times.median() : times.min());
  if (length == kLongest && series.lengths.size() > 1) {
    counters["exponent"] = fitted_exponent(series.lengths, series.seconds);
  }
}

const bool registered = [] {
  for (const auto& [growth, name] : {std::pair(Growth::kDecode, "growth/decode/"),
                                     std::pair(Growth::kCausal, "growth/causal/")}) {
    static Series tables[2];
    for (Index length = kShortest; length <= kLongest; length *= 2) {
      benchmark::RegisterBenchmark((name + std::to_string(length)).c_str(),
                                   [growth = growth, length](benchmark::State& state) {
                                     try {
                                       measure(state, growth, length,
                                               tables[static_cast<int>(growth)]);
                                     } catch (const std::exception& error) {
                                       state.SetLabel(error.what());
                                       state.SkipWithError(error.what());
                                     }
                                   });
    }
  }
  return true;
}();

}  // namespace
}  // namespace bench
