// bench/multi_head_bench.cpp: the multi-head layer, projections with bias, beside the same by hand in Eigen.
// SPDX-License-Identifier: MIT

#include <attn/attn.h>
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <string>
#include <vector>

#include "support/machine.h"
#include "support/measure.h"
#include "support/operands.h"
#include "support/threads.h"

namespace bench {
namespace {

struct LayerWorkload {
  const char* name;
  Index tokens, d_model, heads;
  int threads;
};
constexpr LayerWorkload kLayers[] = {
    {"mha512", 512, 512, 8, 1},
    {"mha512", 512, 512, 8, 2},
    {"seed", 10, 64, 8, 1},
};

/// Four projections of 2·L·d_model² operations each, and the two products of attention.
constexpr double flops(const LayerWorkload& w) {
  const auto tokens = static_cast<double>(w.tokens), width = static_cast<double>(w.d_model);
  return 8 * tokens * width * width + 4 * tokens * tokens * width;
}

/// Weights of unit scale (uniform, of variance 1 / d_model) and biases.
struct LayerWeights {
  RowMatrix<float> query, key, value, output;
  Eigen::RowVectorXf query_bias, key_bias, value_bias, output_bias;

  explicit LayerWeights(Index d) {
    Uniform uniform(11);
    for (auto* w : {&query, &key, &value, &output}) {
      w->resize(d, d);
      fill(*w, uniform);
      *w *= std::sqrt(3.0f / static_cast<float>(d));
    }
    for (auto* b : {&query_bias, &key_bias, &value_bias, &output_bias}) {
      b->resize(d);
      fill(*b, uniform);
    }
  }
};

// WHAT  Q, K, V = X W + b; for each head S = scale Q_h K_hᵀ, softmax by rows, O_h = P V_h; Y = O W + b. As textbook.h: Eigen's own
//       products with noalias, all memory allocated beforehand, heads as blocks of columns, the division of O_h, not of P.
class LayerByHand {
 public:
  LayerByHand(const LayerWorkload& w, const LayerWeights& weights)
      : w_(w),
        weights_(weights),
        q_(w.tokens, w.d_model),
        k_(q_),
        v_(q_),
        o_(q_),
        scores_(w.tokens, w.tokens),
        sums_(w.tokens) {}

  void operator()(const RowMatrix<float>& x, RowMatrix<float>& y) {
    project(x, weights_.query, weights_.query_bias, q_);
    project(x, weights_.key, weights_.key_bias, k_);
    project(x, weights_.value, weights_.value_bias, v_);
    const Index d = w_.d_model / w_.heads;
    const float scale = 1 / std::sqrt(static_cast<float>(d));
    for (Index h = 0; h < w_.heads; ++h) {
      scores_.noalias() = scale * q_.middleCols(h * d, d) * k_.middleCols(h * d, d).transpose();
      for (Index i = 0; i < w_.tokens; ++i) {
        auto row = scores_.row(i);
        row = (row.array() - row.maxCoeff()).exp();
        sums_(i) = row.sum();
      }
      auto o = o_.middleCols(h * d, d);
      o.noalias() = scores_ * v_.middleCols(h * d, d);
      o.array().colwise() /= sums_.array();
    }
    project(o_, weights_.output, weights_.output_bias, y);
  }

 private:
  static void project(const RowMatrix<float>& x, const RowMatrix<float>& w,
                      const Eigen::RowVectorXf& b, RowMatrix<float>& y) {
    y.noalias() = x * w;
    y.rowwise() += b;
  }

  LayerWorkload w_;
  const LayerWeights& weights_;
  RowMatrix<float> q_, k_, v_, o_, scores_;
  Eigen::VectorXf sums_;
};

/// The largest error of some rows, against the formula in double (whose own error is a millionth of float's).
double max_error(const LayerWorkload& w, const LayerWeights& weights, const RowMatrix<float>& x,
                 const RowMatrix<float>& y) {
  const auto project = [](const Eigen::MatrixXd& in, const RowMatrix<float>& weight,
                          const Eigen::RowVectorXf& b) {
    Eigen::MatrixXd out = in * weight.cast<double>();
    out.rowwise() += b.cast<double>();
    return out;
  };
  const Eigen::MatrixXd wide = x.cast<double>();
  const Eigen::MatrixXd q = project(wide, weights.query, weights.query_bias),
                        k = project(wide, weights.key, weights.key_bias),
                        v = project(wide, weights.value, weights.value_bias);
  Eigen::MatrixXd o(w.tokens, w.d_model);
  const Index d = w.d_model / w.heads;
  for (Index h = 0; h < w.heads; ++h) {
    const auto columns = [&](const Eigen::MatrixXd& m) { return m.middleCols(h * d, d); };
    Eigen::MatrixXd p = columns(q) * columns(k).transpose() / std::sqrt(static_cast<double>(d));
    for (Index i = 0; i < w.tokens; ++i) {
      p.row(i) = (p.row(i).array() - p.row(i).maxCoeff()).exp();
      p.row(i) /= p.row(i).sum();
    }
    o.middleCols(h * d, d) = p * columns(v);
  }
  return (project(o, weights.output, weights.output_bias) - y.cast<double>()).cwiseAbs().maxCoeff();
}

void measure(benchmark::State& state, const LayerWorkload& w) {
  const LayerWeights weights(w.d_model);
  RowMatrix<float> x(w.tokens, w.d_model), y(w.tokens, w.d_model);
  Uniform uniform(3);
  fill(x, uniform);

  attn::MultiHeadAttention<float> mha(
      attn::MultiHeadOptions(w.d_model, w.heads).in_bias().out_bias());
  mha.edit([&](auto& to) {
    to.query = weights.query, to.key = weights.key, to.value = weights.value;
    to.output = weights.output;
    to.query_bias = weights.query_bias, to.key_bias = weights.key_bias;
    to.value_bias = weights.value_bias, to.output_bias = weights.output_bias;
  });
  LayerByHand by_hand(w, weights);
  Units library_units([&] {
    if (w.threads == 1) {
      mha(x, attn::into(y));
    } else {
      mha(x, attn::into(y), threads(w.threads));
    }
  });
  state.counters["max_err"] = max_error(w, weights, x, y);
  // Beside one thread the formula by hand, beside several the library on one.
  Units beside_units([&] {
    if (w.threads == 1) {
      by_hand(x, y);
    } else {
      mha(x, attn::into(y));
    }
  });
  if (w.threads == 1) state.counters["textbook_max_err"] = max_error(w, weights, x, y);

  double peak = 0;
  const auto probe = [&] {
    const double seen =
        w.threads == 1 ? multiply_add_peak<float>() : multiply_add_peak<float>(w.threads);
    peak = std::max(peak, seen);
  };
  for (auto _ : state) {
    sample_in_turn(library_units, beside_units, [&] {
      probe();
      library_units.sample();
    });
    for (const double end = now() + 0.02; now() < end;) probe();
  }
  const Samples& times = library_units.per_call();
  auto& counters = state.counters;
  counters["ms_min"] = 1e3 * times.min();
  counters["ms_median"] = 1e3 * times.median();
  counters["samples"] = static_cast<double>(times.size());
  counters["GFLOPS"] = 1e-9 * flops(w) / times.min();
  const double beside = beside_units.per_call().min();
  counters[w.threads == 1 ? "textbook_ms" : "one_thread_ms"] = 1e3 * beside;
  if (w.threads == 1) {
    counters["vs_textbook"] = times.min() / beside;
  } else {
    counters["vs_one_thread"] = beside / times.min();
  }
  counters["peak_GFLOPS"] = 1e-9 * peak;
  counters["peak_fraction"] = flops(w) / times.min() / peak;
}

const bool registered = [] {
  for (const LayerWorkload& w : kLayers) {
    const std::string name =
        std::string("multi_head/") + w.name + "/threads:" + std::to_string(w.threads);
    benchmark::RegisterBenchmark(name.c_str(), [&w](benchmark::State& state) {
      try {
        measure(state, w);
      } catch (const std::exception& error) {
        state.SetLabel(error.what());
        state.SkipWithError(error.what());
      }
    });
  }
  return true;
}();

}  // namespace
}  // namespace bench
