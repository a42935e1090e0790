// bench/multi_head_bench.cpp: the multi-head layer, projections with bias, beside the same by hand in Eigen.
// SPDX-License-Identifier: MIT

#include <attn/attn.h>
#include <benchmark/benchmark.h>

#include <cmath>
#include <string>

#include "support/layer_by_hand.h"
#include "support/measure.h"
#include "support/operands.h"
#include "support/row.h"
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

/// The largest error of some rows, against the formula in double (whose own error is a millionth of float's).
double max_error(const LayerWorkload& w, const LayerWeights& weights, const RowMatrix<float>& x,
                 const RowMatrix<float>& y) {
  const auto project = [](const Eigen::MatrixXd& in, const DenseWeights& dense) {
    Eigen::MatrixXd out = in * dense.weight.cast<double>();
    out.rowwise() += dense.bias.cast<double>();
    return out;
  };
  const Eigen::MatrixXd wide = x.cast<double>();
  const Eigen::MatrixXd q = project(wide, weights.query), k = project(wide, weights.key),
                        v = project(wide, weights.value);
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
  return (project(o, weights.output) - y.cast<double>()).cwiseAbs().maxCoeff();
}

void measure(benchmark::State& state, const LayerWorkload& w) {
  Uniform uniform(3);
  const LayerWeights weights(w.d_model, uniform);
  RowMatrix<float> x(w.tokens, w.d_model), y(w.tokens, w.d_model);
  fill(x, uniform);

  attn::MultiHeadAttention<float> mha(
      attn::MultiHeadOptions(w.d_model, w.heads).in_bias().out_bias());
  mha.edit([&](auto& to) { weights.copy_to(to); });
  const auto library = [&](int workers) {
    if (workers == 1) {
      mha(x, attn::into(y));
    } else {
      mha(x, attn::into(y), threads(workers));
    }
  };
  library(w.threads);
  state.counters["max_err"] = max_error(w, weights, x, y);
  if (w.threads > 1) return measure_threads(state, flops(w), w.threads, library);

  LayerByHand by_hand(weights, w.heads, {0, w.tokens});
  by_hand(x, y);
  state.counters["textbook_max_err"] = max_error(w, weights, x, y);
  measure_beside(
      state, flops(w), [&] { library(1); }, [&] { by_hand(x, y); });
}

const bool registered = [] {
  for (const LayerWorkload& w : kLayers) {
    const std::string name =
        std::string("multi_head/") + w.name + "/threads:" + std::to_string(w.threads);
    add_row(name, [&w](benchmark::State& state) { measure(state, w); });
  }
  return true;
}();

}  // namespace
}  // namespace bench
