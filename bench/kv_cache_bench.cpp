// bench/kv_cache_bench.cpp: decoding over a key/value cache of each storage type, appending to it, and a step of a layer, beside
// reading as much memory.
// SPDX-License-Identifier: MIT

#include <attn/attn.h>
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "support/machine.h"
#include "support/measure.h"
#include "support/operands.h"
#include "support/reference.h"
#include "support/row.h"
#include "support/workloads.h"

namespace bench {
namespace {

constexpr Workload workload(const char* name) {
  for (const Workload& w : kWorkloads) {
    const char *a = w.name, *b = name;
    for (; *a != '\0' && *a == *b; ++a, ++b) {
    }
    if (*a == *b) return w;
  }
  return kWorkloads[0];
}
constexpr Workload kDecode = workload("dec4k"), kGrouped = workload("gqa4k");

attn::KeyValueCacheOptions cache_options(const Workload& w) {
  return attn::KeyValueCacheOptions(w.keys, w.key_heads, w.head_size).value_dim(w.value_size);
}
template <class T>
attn::TensorView<const T> view(const Eigen::Array<T, Eigen::Dynamic, 1>& x, Index heads,
                               Index tokens, Index features, Strides s) {
  return {x.data(), 1, heads, tokens, features, s.sequence, s.head, s.token, s.feature};
}

/// A full cache in memory that can be read beside it.
template <class Stored>
class FullCache {
 public:
  FullCache(const Workload& w, const Operands<float>& x)
      : memory_(attn::KeyValueCache<Stored>::bytes_needed(cache_options(w))),
        cache_(cache_options(w), memory_.data(), memory_.size()) {
    cache_.append(view(x.k, w.key_heads, w.keys, w.head_size, key_strides(w)),
                  view(x.v, w.key_heads, w.keys, w.value_size, value_strides(w)));
  }
  const attn::KeyValueCache<Stored>& cache() const { return cache_; }
  std::size_t bytes() const { return memory_.size(); }
  double seconds_to_read(ReadPattern pattern) const {
    return read_seconds(memory_.data(), memory_.size(), pattern);
  }

 private:
  std::vector<unsigned char> memory_;
  attn::KeyValueCache<Stored> cache_;
};

/// Caches to take in turn, all of the same numbers: so many that between two uses of one 4 x the last-level cache has been read.
template <class Stored>
class Decoding {
 public:
  Decoding(const Workload& w, const Operands<float>& x) : w_(w), x_(x), y_(output_size(w)) {
    const std::size_t bytes = attn::KeyValueCache<Stored>::bytes_needed(cache_options(w)),
                      count = 4 * last_level_cache_bytes() / bytes + 2;
    caches_.reserve(count);
    for (std::size_t i = 0; i < count; ++i) caches_.emplace_back(w, x);
  }

  void operator()() {
    attend_(view(x_.q, w_.query_heads, 1, w_.head_size, query_strides(w_)), next().cache(),
            attn::into(attn::bhld(y_.data(), 1, w_.query_heads, 1, w_.value_size)));
  }
  double bytes() const { return static_cast<double>(caches_[0].bytes()); }
  /// Mean seconds for reading the memory of the next caches.
  double reading(ReadPattern pattern, int caches) {
    double seconds = 0;
    for (int i = 0; i < caches; ++i) seconds += next().seconds_to_read(pattern);
    return seconds / caches;
  }
  double error() const { return max_error(w_, x_, RowMatrix<float>(), y_.data()); }

 private:
  const FullCache<Stored>& next() {
    position_ = (position_ + 1) % caches_.size();
    return caches_[position_];
  }

  Workload w_;
  const Operands<float>& x_;
  std::vector<FullCache<Stored>> caches_;
  Eigen::Array<float, Eigen::Dynamic, 1> y_;
  attn::ScaledDotProductAttention<float> attend_;
  std::size_t position_ = 0;
};

/// In turn with the cache of floats, where it is another.
template <class Stored>
void measure_decoding(benchmark::State& state, const Workload& w) {
  const Operands<float> x(w, 1);
  Decoding<Stored> narrow(w, x);
  std::optional<Decoding<float>> wide;
  if (!std::is_same_v<Stored, float>) wide.emplace(w, x);
  Units units([&] { narrow(); });
  std::optional<Units<std::function<void()>>> wide_units;
  if (wide) wide_units.emplace([&] { (*wide)(); });
  state.counters["max_err"] = narrow.error();

  BesideReading beside(fastest_pattern([&](ReadPattern p) { return narrow.reading(p, 1); }));
  Samples ratios;
  for (auto _ : state) {
    const double end = now() + time_budget();
    for (int turn = 0; turn < 3 || now() < end; ++turn) {
      const double reading = narrow.reading(beside.pattern(), units.calls()),
                   seconds = units.sample();
      beside.add(narrow.bytes(), reading, seconds);
      if (wide_units) ratios.add(wide_units->sample() / seconds);
    }
  }
  report_times(units.per_call(), state.counters);
  beside.report(state.counters);
  state.counters["GFLOPS"] = 1e-9 * flops(w) / units.per_call().min();
  if (wide) state.counters["vs_float"] = ratios.median();
}

/// Tokens that the time of an append is averaged over: one or two panels of keys.
constexpr Index kTokens = 32;

/// One token after the other until the cache is full; then it is emptied.
template <class Stored>
void measure_append(benchmark::State& state) {
  const Workload& w = kDecode;
  const RowMatrix<float> rows = [] {
    RowMatrix<float> m(kTokens, 2 * kDecode.key_heads * kDecode.head_size);
    Uniform uniform(5);
    fill(m, uniform);
    return m;
  }();
  attn::KeyValueCache<Stored> cache(cache_options(w));
  Samples times;
  for (auto _ : state) {
    const double end = now() + time_budget();
    while (now() < end) {
      const double start = now();
      for (Index n = 0; n < kTokens; ++n) {
        const auto row = rows.row(cache.length() % rows.rows());
        cache.append(row.head(rows.cols() / 2), row.tail(rows.cols() / 2));
      }
      times.add((now() - start) / static_cast<double>(kTokens));
      if (cache.room() < kTokens) cache.clear();
    }
  }
  report_times(times, state.counters);
  state.counters["max_err"] = 0;
}

/// A step of a layer behind 1024 tokens, beside reading its weights and its cache.
void measure_step(benchmark::State& state) {
  constexpr Index kWidth = 512, kHeads = 8, kCached = 1024, kSteps = 32;
  attn::MultiHeadAttention<float> mha(attn::MultiHeadOptions(kWidth, kHeads));
  Uniform uniform(7);
  mha.edit([&](auto& weights) {
    for (auto* m : {&weights.query, &weights.key, &weights.value, &weights.output}) {
      fill(*m, uniform);
      *m *= std::sqrt(3.0f / static_cast<float>(kWidth));
    }
  });
  RowMatrix<float> x(kCached + 1, kWidth), y(1, kWidth), whole;
  fill(x, uniform);
  attn::KeyValueCache<float> cache(
      attn::KeyValueCacheOptions(kCached + kSteps, kHeads, kWidth / kHeads));
  (void)mha.decode(x.topRows(kCached), cache);
  mha.decode(x.bottomRows(1), cache, attn::into(y));
  whole = mha(x, attn::causal());
  state.counters["max_err"] = static_cast<double>((whole.bottomRows(1) - y).cwiseAbs().maxCoeff());

  Units units([&] {
    if (cache.room() == 0) cache.truncate(kCached);
    mha.decode(x.bottomRows(1), cache, attn::into(y));
  });
  const std::vector<float> memory(std::size_t(4 * kWidth * kWidth + 2 * kCached * kWidth), 1.0f);
  const std::size_t bytes = memory.size() * sizeof(float);
  const auto read = [&](ReadPattern p) { return read_seconds(memory.data(), bytes, p); };
  BesideReading beside(fastest_pattern(read));
  Units reading([&] { read(beside.pattern()); });
  for (auto _ : state) {
    const double end = now() + time_budget();
    for (int turn = 0; turn < 3 || now() < end; ++turn)
      beside.add(static_cast<double>(bytes), reading.sample(), units.sample());
  }
  report_times(units.per_call(), state.counters);
  beside.report(state.counters);
}

void add(const std::string& name, const std::function<void(benchmark::State&)>& body) {
  benchmark::RegisterBenchmark(name.c_str(), [body](benchmark::State& state) {
    try {
      body(state);
    } catch (const std::exception& error) {
      state.SetLabel(error.what());
      state.SkipWithError(error.what());
    }
  });
}

template <class Stored>
void add_storage(const std::string& storage) {
  for (const Workload* w : {&kDecode, &kGrouped}) {
    add(std::string("cache/") + w->name + "_" + storage + "/threads:1",
        [w](benchmark::State& state) { measure_decoding<Stored>(state, *w); });
  }
  add("cache/append_" + storage + "/threads:1", measure_append<Stored>);
}

const bool registered = [] {
  add_storage<float>("float");
  add_storage<Eigen::bfloat16>("bfloat16");
  add_storage<std::int8_t>("int8");
  add("cache/mha512_step/threads:1", measure_step);
  return true;
}();

}  // namespace
}  // namespace bench
