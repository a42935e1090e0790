// bench/multi_head_bench.cpp: the multi-head layer, projections with bias, beside the same by hand in Eigen.
// SPDX-License-Identifier: MIT

#include <attn/attn.h>
#include <benchmark/benchmark.h>

#include <string>

#include "support/layer_by_hand.h"
#include "support/layer_reference.h"
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
  state.counters["max_err"] = max_error(layer_reference(weights, w.heads, x), y);
  if (w.threads > 1) return measure_threads(state, flops(w), w.threads, library);

  LayerByHand by_hand(weights, w.heads, {0, w.tokens});
  by_hand(x, y);
  state.counters["textbook_max_err"] = max_error(layer_reference(weights, w.heads, x), y);
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
