// bench/attention_bench.cpp: attention over the named workloads, beside the formula by hand.
// SPDX-License-Identifier: MIT

#include <attn/attn.h>
#include <benchmark/benchmark.h>

#include <algorithm>
#include <exception>
#include <string>
#include <vector>

#include "support/machine.h"
#include "support/measure.h"
#include "support/operands.h"
#include "support/reference.h"
#include "support/textbook.h"
#include "support/workloads.h"

namespace bench {
namespace {

/// The library on a workload, through its functor and views of [batch, head, token, feature].
template <class Stored>
class Library {
 public:
  using Scalar = compute_t<Stored>;

  explicit Library(const Workload& w) : w_(w) {
    for (Index b = 0; b < w.batch; ++b) key_lengths_.push_back(static_cast<int>(key_length(w, b)));
  }

  void operator()(const Operands<Stored>& x, const RowMatrix<Scalar>& bias, Stored* y) {
    const auto q = attn::bhld(x.q.data(), w_.batch, w_.query_heads, w_.queries, w_.head_size);
    const auto k = attn::bhld(x.k.data(), w_.batch, w_.key_heads, w_.keys, w_.head_size);
    const auto v = attn::bhld(x.v.data(), w_.batch, w_.key_heads, w_.keys, w_.head_size);
    const auto out = [&] {
      return attn::into(attn::bhld(y, w_.batch, w_.query_heads, w_.queries, w_.head_size));
    };
    switch (w_.mask) {
      case Mask::kNone:
        return attend_(q, k, v, out());
      case Mask::kCausal:
        return attend_(q, k, v, out(), attn::causal());
      case Mask::kBias:
        return attend_(q, k, v, out(), attn::bias(bias));
      case Mask::kKeyLengths:
        return attend_(q, k, v, out(), attn::key_lengths(key_lengths_));
    }
  }

 private:
  Workload w_;
  std::vector<int> key_lengths_;
  attn::ScaledDotProductAttention<Scalar> attend_;
};

template <class Stored>
void measure(benchmark::State& state, const Workload& w) {
  using Scalar = compute_t<Stored>;
  Rotation<Stored> operands(w);
  RowMatrix<Scalar> bias(w.mask == Mask::kBias ? w.queries : 0, w.keys);
  Uniform uniform(3);
  fill(bias, uniform);
  Eigen::Array<Stored, Eigen::Dynamic, 1> y(operands.first().q.size());

  Library<Stored> library(w);
  Textbook<Stored> textbook(w);
  auto& counters = state.counters;
  library(operands.first(), bias, y.data());
  counters["max_err"] = max_error(w, operands.first(), bias, y.data());
  textbook(operands.first(), bias, y.data());
  counters["textbook_max_err"] = max_error(w, operands.first(), bias, y.data());

  Units library_units([&] { library(operands.next(), bias, y.data()); });
  Units textbook_units([&] { textbook(operands.next(), bias, y.data()); });
  double peak = 0;
  Samples bandwidths;
  Samples bandwidth_fractions;
  const auto bytes = static_cast<double>(operands.first().key_value_bytes());
  for (auto _ : state) {
    if (is_bound_by_memory(w)) {
      // Each run beside a reading of the same amount from the same rotation: the bandwidth of a
      // shared machine varies more from second to second than between the two.
      sample_in_turn(library_units, textbook_units, [&] {
        double reading = 0;
        for (int i = 0; i < library_units.calls(); ++i) {
          reading += operands.next().seconds_to_read_keys_and_values();
        }
        reading /= library_units.calls();
        bandwidths.add(bytes / reading);
        bandwidth_fractions.add(reading / library_units.sample());
      });
    } else {
      // The peak between the runs, so that its clock frequency is theirs.
      const auto probe = [&] { peak = std::max(peak, multiply_add_peak<Scalar>()); };
      sample_in_turn(library_units, textbook_units, [&] {
        probe();
        library_units.sample();
      });
      // More of it at the end: AVX-512 takes a while to reach its speed after narrower work.
      for (const double end = now() + 0.02; now() < end;) probe();
    }
  }

  const Samples& times = library_units.per_call();
  counters["ms_min"] = 1e3 * times.min();
  counters["ms_median"] = 1e3 * times.median();
  counters["samples"] = static_cast<double>(times.size());
  counters["GFLOPS"] = 1e-9 * flops(w) / times.min();
  counters["textbook_ms"] = 1e3 * textbook_units.per_call().min();
  counters["vs_textbook"] = times.min() / textbook_units.per_call().min();
  if (is_bound_by_memory(w)) {
    counters["bandwidth_GBs"] = 1e-9 * bandwidths.median();
    counters["bandwidth_fraction"] = bandwidth_fractions.median();
  } else {
    counters["peak_GFLOPS"] = 1e-9 * peak;
    counters["peak_fraction"] = flops(w) / times.min() / peak;
  }
}

void run(benchmark::State& state, const Workload& w) {
  try {
    switch (w.storage) {
      case Storage::kFloat:
        return measure<float>(state, w);
      case Storage::kDouble:
        return measure<double>(state, w);
      case Storage::kBfloat16:
        return measure<Eigen::bfloat16>(state, w);
    }
  } catch (const std::exception& error) {
    state.SetLabel(error.what());
    state.SkipWithError(error.what());
  }
}

const bool registered = [] {
  for (const Workload& w : kWorkloads) {
    const std::string name = std::string("attention/") + w.name + "/threads:1";
    benchmark::RegisterBenchmark(name.c_str(), [&w](benchmark::State& state) { run(state, w); });
  }
  return true;
}();

}  // namespace
}  // namespace bench
