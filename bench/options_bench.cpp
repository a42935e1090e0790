// bench/options_bench.cpp: what masks save and what score modifiers cost, beside the same call without them.
// SPDX-License-Identifier: MIT

#include <attn/attn.h>
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <functional>
#include <limits>
#include <vector>

#include "support/measure.h"
#include "support/operands.h"
#include "support/workloads.h"

namespace bench {
namespace {

/// The score of a pair as the option leaves it, by (s, head, query, key); −∞ hides it.
using Rule = std::function<double(double, Index, Index, Index)>;
constexpr double kHidden = -std::numeric_limits<double>::infinity();

constexpr Workload kPre1k = {"", 1, 8, 8, 1024, 1024, 64, Mask::kNone, Storage::kFloat};
constexpr Workload kLong4k = {"", 1, 4, 4, 4096, 4096, 64, Mask::kNone, Storage::kFloat};

/// Largest error of some rows, by the formula in double.
double max_error(const Workload& w, const Operands<float>& x, const Rule& rule, const float* y) {
  const Index d = w.head_size;
  double worst = 0;
  for (Index h = 0; h < w.query_heads; ++h) {
    for (const Index i : {Index(0), w.queries / 3 + 7 * h, w.queries - 1}) {
      const float *q = x.q.data() + (h * w.queries + i) * d, *k = x.k.data() + h * w.keys * d,
                  *v = x.v.data() + h * w.keys * d;
      std::vector<double> row(static_cast<std::size_t>(d), 0.0);
      double sum = 0;
      for (Index j = 0; j < w.keys; ++j) {
        double s = 0;
        for (Index c = 0; c < d; ++c) s += double(q[c]) * double(k[j * d + c]);
        s = rule(s / std::sqrt(double(d)), h, i, j);
        if (s == kHidden) continue;
        const double p = std::exp(s);
        sum += p;
        for (Index c = 0; c < d; ++c) row[static_cast<std::size_t>(c)] += p * double(v[j * d + c]);
      }
      for (Index c = 0; c < d; ++c) {
        const double exact = row[static_cast<std::size_t>(c)] / sum,
                     error = std::abs(double(y[(h * w.queries + i) * d + c]) - exact);
        if (!(error <= worst)) worst = error;
      }
    }
  }
  return worst;
}

double visible_share(const Workload& w, const Rule& rule) {
  double pairs = 0;
  for (Index i = 0; i < w.queries; ++i) {
    for (Index j = 0; j < w.keys; ++j) pairs += rule(0, 0, i, j) == kHidden ? 0 : 1;
  }
  return pairs / (double(w.queries) * double(w.keys));
}

/// The call with the options and the one without, in turn.
template <class... Options>
void measure(benchmark::State& state, const Workload& w, const Rule& rule,
             const Options&... options) {
  const Operands<float> x(w, 1);
  Eigen::ArrayXf y(x.q.size());
  attn::ScaledDotProductAttention<float> attend;
  const auto call = [&](const auto&... asked) {
    const auto view = [&](auto* data, Index tokens) {
      return attn::bhld(data, w.batch, w.query_heads, tokens, w.head_size);
    };
    attend(view(x.q.data(), w.queries), view(x.k.data(), w.keys), view(x.v.data(), w.keys),
           attn::into(view(y.data(), w.queries)), asked...);
  };
  call(options...);
  state.counters["max_err"] = max_error(w, x, rule, y.data());

  const double share = visible_share(w, rule);
  Units with([&] { call(options...); });
  Units without([&] { call(); });
  for (auto _ : state) sample_in_turn(with, without, [&] { with.sample(); });
  const Samples& times = with.per_call();
  state.counters["ms_min"] = 1e3 * times.min();
  state.counters["ms_median"] = 1e3 * times.median();
  state.counters["samples"] = static_cast<double>(times.size());
  state.counters["GFLOPS"] = 1e-9 * flops(w) * share / times.min();
  state.counters["visible_share"] = share;
  state.counters["vs_plain"] = times.min() / without.per_call().min();
  state.counters["vs_share"] = times.min() / without.per_call().min() / share;
}

using Body = std::function<void(benchmark::State&)>;
void add(const char* name, const Body& body) {
  benchmark::RegisterBenchmark(name, [body](benchmark::State& state) {
    try {
      body(state);
    } catch (const std::exception& error) {
      state.SetLabel(error.what());
      state.SkipWithError(error.what());
    }
  });
}

double alibi(double s, Index h, Index i, Index j) {
  return s - std::exp2(-double(h + 1)) * double(std::abs(i - j));
}
double softcap(double s, Index, Index, Index) { return 30 * std::tanh(s / 30); }
double unmodified(double s, Index, Index, Index) { return s; }

const bool registered = [] {
  add("mask/window255_long4k/threads:1", [](benchmark::State& state) {
    measure(
        state, kLong4k,
        [](double s, Index, Index i, Index j) { return j <= i && i - j <= 255 ? s : kHidden; },
        attn::causal(), attn::window(255, 0));
  });
  add("mask/segments512_long4k/threads:1", [](benchmark::State& state) {
    std::vector<int> ids;
    for (int i = 0; i < 4096; ++i) ids.push_back(i / 512);
    measure(
        state, kLong4k,
        [](double s, Index, Index i, Index j) { return i / 512 == j / 512 ? s : kHidden; },
        attn::segments(ids));
  });
  add("mask/block_sparse128_long4k/threads:1", [](benchmark::State& state) {
    Eigen::Matrix<bool, Eigen::Dynamic, Eigen::Dynamic> blocks(32, 32);
    Uniform uniform(11);
    for (Index i = 0; i < 32; ++i) {
      for (Index j = 0; j < 32; ++j) blocks(i, j) = i == j;
      for (Index more = 0; more < 7;) {  // a quarter of each row
        bool& block = blocks(i, std::min<Index>(Index((uniform() + 1) * 16), 31));
        more += block ? 0 : 1;
        block = true;
      }
    }
    measure(
        state, kLong4k,
        [&](double s, Index, Index i, Index j) { return blocks(i / 128, j / 128) ? s : kHidden; },
        attn::block_sparse(blocks, 128));
  });

  add("score/alibi_pre1k/threads:1", [](benchmark::State& state) {
    measure(state, kPre1k, alibi, attn::alibi(attn::alibi_slopes(8)));
  });
  add("score/alibi_lanes_pre1k/threads:1", [](benchmark::State& state) {
    const Eigen::VectorXf slopes = attn::alibi_slopes(8);
    measure(state, kPre1k, alibi, attn::score([&](auto s, auto at) {
              return s - slopes[at.head] * abs(at.query - at.key);
            }));
  });
  add("score/alibi_one_by_one_pre1k/threads:1", [](benchmark::State& state) {
    const Eigen::VectorXf slopes = attn::alibi_slopes(8);
    measure(state, kPre1k, alibi, attn::score([&](float s, attn::At at) {
              return s - slopes[at.head] * float(std::abs(at.query - at.key));
            }));
  });
  add("score/softcap_pre1k/threads:1",
      [](benchmark::State& state) { measure(state, kPre1k, softcap, attn::softcap(30.f)); });
  add("score/softcap_lanes_pre1k/threads:1", [](benchmark::State& state) {
    measure(state, kPre1k, softcap,
            attn::score([](auto s, auto) { return 30.f * tanh(s * (1 / 30.f)); }));
  });
  add("score/unmodified_one_by_one_pre1k/threads:1", [](benchmark::State& state) {
    measure(state, kPre1k, unmodified, attn::score([](float s, attn::At) { return s; }));
  });
  return true;
}();

}  // namespace
}  // namespace bench
