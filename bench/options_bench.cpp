// bench/options_bench.cpp: what masks save, what score modifiers and saved pairs cost, beside the same call without them; what
// column-major matrices of pairs cost beside row-major ones.
// SPDX-License-Identifier: MIT

#include <attn/attn.h>
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <functional>
#include <limits>
#include <string>
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

/// A workload's operands and its functor.
class Subject {
 public:
  explicit Subject(const Workload& w) : w_(w), x_(w, 1), y_(x_.q.size()) {}

  template <class... Options>
  void operator()(const Options&... options) {
    const auto view = [&](auto* data, Index tokens) {
      return attn::bhld(data, w_.batch, w_.query_heads, tokens, w_.head_size);
    };
    attend_(view(x_.q.data(), w_.queries), view(x_.k.data(), w_.keys), view(x_.v.data(), w_.keys),
            attn::into(view(y_.data(), w_.queries)), options...);
  }
  /// Of the call that was made last.
  double error(const Rule& rule) const { return max_error(w_, x_, rule, y_.data()); }

 private:
  Workload w_;
  Operands<float> x_;
  Eigen::ArrayXf y_;
  attn::ScaledDotProductAttention<float> attend_;
};

/// A call and another beside it, in turn; returns the ratio of their times.
template <class Call, class Beside>
double compare(benchmark::State& state, const Workload& w, double share, Call call, Beside beside) {
  Units with(call);
  Units without(beside);
  for (auto _ : state) sample_in_turn(with, without, [&] { with.sample(); });
  const Samples& times = with.per_call();
  state.counters["ms_min"] = 1e3 * times.min();
  state.counters["ms_median"] = 1e3 * times.median();
  state.counters["samples"] = static_cast<double>(times.size());
  state.counters["GFLOPS"] = 1e-9 * flops(w) * share / times.min();
  return times.min() / without.per_call().min();
}

/// The call with the options and the one without, in turn.
template <class... Options>
void measure(benchmark::State& state, const Workload& w, const Rule& rule,
             const Options&... options) {
  Subject attend(w);
  attend(options...);
  state.counters["max_err"] = attend.error(rule);
  const double share = visible_share(w, rule);
  const double ratio = compare(
      state, w, share, [&] { attend(options...); }, [&] { attend(); });
  state.counters["visible_share"] = share;
  state.counters["vs_plain"] = ratio;
  state.counters["vs_share"] = ratio / share;
}

/// The call with an option on a column-major matrix and with that on a row-major one, in turn.
template <class ByColumns, class ByRows>
void measure_columns(benchmark::State& state, const Workload& w, const Rule& rule,
                     const ByColumns& by_columns, const ByRows& by_rows) {
  Subject attend(w);
  attend(by_columns);
  state.counters["max_err"] = attend.error(rule);
  state.counters["vs_row_major"] = compare(
      state, w, 1, [&] { attend(by_columns); }, [&] { attend(by_rows); });
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

double alibi(double s, Index h, Index i, Index j) {
  return s - std::exp2(-double(h + 1)) * double(std::abs(i - j));
}
double softcap(double s, Index, Index, Index) { return 30 * std::tanh(s / 30); }
double unmodified(double s, Index, Index, Index) { return s; }

/// What saves all pairs of heads side by side in a matrix: option(matrix). Row-major beside the call without, column-major beside
/// row-major.
template <class Option>
void add_saved(const std::string& name, const Option& option) {
  for (const Index length : {512, 1000, 1024}) {
    const Workload w = {"", 1, 4, 4, length, length, 64, Mask::kNone, Storage::kFloat};
    const std::string of_length = "saved/" + name + "_L" + std::to_string(length);
    const Index columns = w.query_heads * length;
    add(of_length + "/threads:1", [=](benchmark::State& state) {
      RowMatrix<float> pairs(length, columns);
      measure(state, w, unmodified, option(pairs));
    });
    add(of_length + "_colmajor/threads:1", [=](benchmark::State& state) {
      RowMatrix<float> by_rows(length, columns);
      Eigen::MatrixXf by_columns(length, columns);
      measure_columns(state, w, unmodified, option(by_columns), option(by_rows));
    });
  }
}

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
  add("score/bias1k_colmajor/threads:1", [](benchmark::State& state) {
    RowMatrix<float> by_rows(kPre1k.queries, kPre1k.keys);
    Uniform uniform(3);
    fill(by_rows, uniform);
    const Eigen::MatrixXf by_columns = by_rows;
    measure_columns(
        state, kPre1k, [&](double s, Index, Index i, Index j) { return s + double(by_rows(i, j)); },
        attn::bias(by_columns), attn::bias(by_rows));
  });

  add_saved("weights", [](auto& to) { return attn::save_weights(to); });
  add_saved("scores", [](auto& to) { return attn::save_scores(to, attn::stage::masked); });
  return true;
}();

}  // namespace
}  // namespace bench
