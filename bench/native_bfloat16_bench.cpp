// bench/native_bfloat16_bench.cpp: whether native_bfloat16() pays on this processor: how many of its
// instructions run in the time of one multiply-add of floats, and what attention takes with and
// without.
// SPDX-License-Identifier: MIT

#include <attn/attn.h>
#include <benchmark/benchmark.h>

#include <algorithm>
#include <stdexcept>

#include "support/machine.h"
#include "support/measure.h"
#include "support/operands.h"
#include "support/reference.h"
#include "support/row.h"
#include "support/workloads.h"

namespace bench {
namespace {

constexpr Workload kBf1k = {"", 1, 8, 8, 1024, 1024, 64, Mask::kNone, Storage::kBfloat16};
constexpr Workload kBf1kD128 = {"", 1, 8, 8, 1024, 1024, 128, Mask::kNone, Storage::kBfloat16};

/// Instructions a second, of 16 sums, in one burst of some 0.2 ms: independent chains in registers,
/// as multiply_add_peak() has them; variables, because g++ keeps an array on the stack.
template <class Native>
ATTN_NOINLINE double native_rate(Native) {
  if constexpr (Native::value) {
    using Pairs = attn::detail::BfloatPairs;
    constexpr int kSteps = 25000;
    const auto x = Pairs::set({Eigen::bfloat16(0.5f), Eigen::bfloat16(0.5f)});
    auto a = x, b = x, c = x, d = x, e = x, f = x, g = x, h = x, i = x, j = x, k = x, l = x;
    const double start = now();
    for (int n = 0; n < kSteps; ++n) {
      Pairs::accumulate(x, x, a), Pairs::accumulate(x, x, b), Pairs::accumulate(x, x, c);
      Pairs::accumulate(x, x, d), Pairs::accumulate(x, x, e), Pairs::accumulate(x, x, f);
      Pairs::accumulate(x, x, g), Pairs::accumulate(x, x, h), Pairs::accumulate(x, x, i);
      Pairs::accumulate(x, x, j), Pairs::accumulate(x, x, k), Pairs::accumulate(x, x, l);
    }
    auto sum = a + b + c + d + e + f + g + h + i + j + k + l;
    benchmark::DoNotOptimize(sum);
    return 12.0 * kSteps / (now() - start);
  } else {
    return 0;
  }
}

class Subject {
 public:
  explicit Subject(const Workload& w) : w_(w), x_(w, 1), y_(x_.q.size()) {}

  template <class... Options>
  void operator()(const Options&... options) {
    const auto view = [&](auto* data, Index heads, Index tokens) {
      return attn::bhld(data, w_.batch, heads, tokens, w_.head_size);
    };
    attend_(view(x_.q.data(), w_.query_heads, w_.queries), view(x_.k.data(), w_.key_heads, w_.keys),
            view(x_.v.data(), w_.key_heads, w_.keys),
            attn::into(view(y_.data(), w_.query_heads, w_.queries)), options...);
  }
  double error() const { return max_error(w_, x_, RowMatrix<float>(0, 0), y_.data()); }

 private:
  Workload w_;
  Operands<Eigen::bfloat16> x_;
  Eigen::Array<Eigen::bfloat16, Eigen::Dynamic, 1> y_;
  attn::ScaledDotProductAttention<float> attend_;
};

/// With the option and without it, in turn.
template <class Native>
void measure(benchmark::State& state, const Workload& w, Native native) {
  if constexpr (Native::value) {
    Subject attend(w);
    attend(attn::native_bfloat16());
    state.counters["max_err"] = attend.error();
    Units with([&] { attend(attn::native_bfloat16()); });
    Units without([&] { attend(); });
    Peak peak(1);
    double rate = 0;
    for (auto _ : state) {
      sample_in_turn(with, without, [&] {
        peak.probe();
        rate = std::max(rate, native_rate(native));
        with.sample();
      });
    }
    report_times(with.per_call(), state.counters);
    const double seconds = with.per_call().min(), beside = without.per_call().min();
    state.counters["GFLOPS"] = 1e-9 * flops(w) / seconds;
    state.counters["float_ms"] = 1e3 * beside;
    state.counters["vs_float_products"] = beside / seconds;
    state.counters["native_rate"] = rate / (peak.best() / (2 * 16));
  } else {
    throw std::runtime_error("this build has no instruction that multiplies bfloat16");
  }
}

const bool registered = [] {
  const auto add = [](const char* name, const Workload& w) {
    add_row(name, [&w](benchmark::State& state) {
      measure(state, w, std::bool_constant<attn::has_native_bfloat16>());
    });
  };
  add("bf16/bf1k", kBf1k);
  add("bf16/bf1k_d128", kBf1kD128);
  return true;
}();

}  // namespace
}  // namespace bench
