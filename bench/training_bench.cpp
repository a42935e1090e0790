// bench/training_bench.cpp: forward and backward pass of the multi-head layer, beside the same by hand
// in Eigen; on two threads beside one.
// SPDX-License-Identifier: MIT

#include <attn/attn.h>
#include <benchmark/benchmark.h>

#include <cmath>
#include <functional>
#include <string>

#include "support/layer_gradient_by_hand.h"
#include "support/measure.h"
#include "support/operands.h"
#include "support/row.h"
#include "support/threads.h"

namespace bench {
namespace {

/// The largest distance of one matrix from another; NaN where one of them holds one.
template <class X, class Exact>
double distance(const X& x, const Exact& exact) {
  return (x.template cast<double>() - exact.template cast<double>())
      .cwiseAbs()
      .template maxCoeff<Eigen::PropagateNaN>();
}

/// train_mha512: self-attention of 512 tokens, d_model 512, 8 heads, biases everywhere.
class Layer {
 public:
  /// Four projections of 2·L·d_model² operations each and two products of attention, back twice as
  /// many projections and five products.
  static constexpr double kProjections = 8. * 512 * 512 * 512, kAttention = 4. * 512 * 512 * 512;
  static constexpr double kForwardFlops = kProjections + kAttention;
  static constexpr double kFlops = 3 * kProjections + 3.5 * kAttention;

  Layer()
      : uniform_(3),
        weights_(kWidth, uniform_),
        mha_(attn::MultiHeadOptions(kWidth, kHeads).in_bias().out_bias()),
        gradients_(mha_.options()),
        by_hand_(weights_, kHeads, {0, kTokens}),
        x_(kTokens, kWidth),
        dy_(kTokens, kWidth),
        y_(kTokens, kWidth),
        dx_(kTokens, kWidth),
        hand_y_(kTokens, kWidth),
        hand_dx_(kTokens, kWidth) {
    mha_.edit([&](auto& w) { weights_.copy_to(w); });
    fill(x_, uniform_);
    fill(dy_, uniform_);
  }

  void forward() { mha_(x_, attn::into(y_)); }
  void library(int n) {
    if (n == 1) {
      run();
    } else {
      run(threads(n));
    }
  }
  void by_hand() {
    by_hand_.forward(x_, hand_y_);
    by_hand_.backward(x_, dy_, hand_dx_);
  }

  /// Largest errors of all that the library gives and of all that is computed by hand.
  struct Errors {
    double library, by_hand;
  };
  Errors errors(int n) {
    library(n);
    by_hand();
    LayerGradientByHand<double> exact(weights_, kHeads, {0, kTokens});
    const RowMatrix<double> x = x_.cast<double>(), dy = dy_.cast<double>();
    RowMatrix<double> y(kTokens, kWidth), dx(kTokens, kWidth);
    exact.forward(x, y);
    exact.backward(x, dy, dx);
    Errors worst{0, 0};
    const auto see = [&](const auto& library, const auto& by_hand, const auto& right) {
      const double a = distance(library, right), b = distance(by_hand, right);
      if (!(a <= worst.library)) worst.library = a;
      if (!(b <= worst.by_hand)) worst.by_hand = b;
    };
    see(y_, hand_y_, y);
    see(dx_, hand_dx_, dx);
    const auto see_dense = [&](const auto& weight, const auto& bias, const auto& by_hand,
                               const auto& right) {
      see(weight, by_hand.weight_gradient, right.weight_gradient);
      see(bias, by_hand.bias_gradient, right.bias_gradient);
    };
    see_dense(gradients_.query, gradients_.query_bias, by_hand_.query, exact.query);
    see_dense(gradients_.key, gradients_.key_bias, by_hand_.key, exact.key);
    see_dense(gradients_.value, gradients_.value_bias, by_hand_.value, exact.value);
    see_dense(gradients_.output, gradients_.output_bias, by_hand_.output, exact.output);
    return worst;
  }

 private:
  static constexpr Index kTokens = 512, kWidth = 512, kHeads = 8;

  template <class... Threads>
  void run(const Threads&... threads) {
    mha_(x_, attn::save_state(state_), attn::into(y_), threads...);
    mha_.backward(x_, dy_, state_, attn::dweights(gradients_), attn::dquery(dx_), threads...);
  }

  Uniform uniform_;
  LayerWeights weights_;
  attn::MultiHeadAttention<float> mha_;
  attn::MultiHeadGradients<float> gradients_;
  attn::MultiHeadState<float> state_;
  LayerGradientByHand<float> by_hand_;
  RowMatrix<float> x_, dy_, y_, dx_, hand_y_, hand_dx_;
};

void measure_layer(benchmark::State& state, int n) {
  Layer layer;
  const Layer::Errors errors = layer.errors(n);
  state.counters["max_err"] = errors.library;
  const auto library = [&](int workers) { layer.library(workers); };
  if (n > 1) return measure_threads(state, Layer::kFlops, n, library);

  state.counters["textbook_max_err"] = errors.by_hand;
  Units forward([&] { layer.forward(); });
  const double seconds = measure_beside(
      state, Layer::kFlops, [&] { layer.library(1); }, [&] { layer.by_hand(); },
      [&] { forward.sample(); });
  report_forward(forward.per_call(), Layer::kForwardFlops, seconds, Layer::kFlops, state.counters);
}

const bool registered = [] {
  for (const int n : {1, 2}) {
    add_row("training/train_mha512/threads:" + std::to_string(n),
            [n](benchmark::State& state) { measure_layer(state, n); });
  }
  return true;
}();

}  // namespace
}  // namespace bench
