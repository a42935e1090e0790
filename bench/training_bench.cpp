// bench/training_bench.cpp: forward and backward pass of the multi-head layer, and a step of training of
// a small encoder, beside the same by hand in Eigen; on two threads beside one.
// SPDX-License-Identifier: MIT

#include <attn/attn.h>
#include <benchmark/benchmark.h>

#include <cmath>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "../examples/training/adam.h"
#include "../examples/training/encoder_block.h"
#include "support/block_gradient_by_hand.h"
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

/// Largest errors of all that the library gives and of all that is computed by hand.
struct Errors {
  double library = 0, by_hand = 0;

  template <class Library, class ByHand, class Exact>
  void see(const Library& of_library, const ByHand& of_hand, const Exact& exact) {
    const double a = distance(of_library, exact), b = distance(of_hand, exact);
    if (!(a <= library)) library = a;
    if (!(b <= by_hand)) by_hand = b;
  }
};

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

  Errors errors(int n) {
    library(n);
    by_hand();
    LayerGradientByHand<double> exact(weights_, kHeads, {0, kTokens});
    const RowMatrix<double> x = x_.cast<double>(), dy = dy_.cast<double>();
    RowMatrix<double> y(kTokens, kWidth), dx(kTokens, kWidth);
    exact.forward(x, y);
    exact.backward(x, dy, dx);
    Errors worst;
    worst.see(y_, hand_y_, y);
    worst.see(dx_, hand_dx_, dx);
    const auto see_dense = [&](const auto& weight, const auto& bias, const auto& by_hand,
                               const auto& right) {
      worst.see(weight, by_hand.weight_gradient, right.weight_gradient);
      worst.see(bias, by_hand.bias_gradient, right.bias_gradient);
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
  const Errors errors = layer.errors(n);
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

/// Blocks one after the other: training::EncoderBlock, or BlockGradientByHand, which takes no option.
template <class Block, class Scalar>
class Encoder {
 public:
  explicit Encoder(std::vector<Block> blocks) : blocks_(std::move(blocks)) {}

  template <class... Options>
  const RowMatrix<Scalar>& forward(const RowMatrix<Scalar>& x, const Options&... options) {
    inputs_.assign(1, &x);
    for (Block& block : blocks_) inputs_.push_back(&block.forward(*inputs_.back(), options...));
    return *inputs_.back();
  }
  template <class... Options>
  void backward(const RowMatrix<Scalar>& dy, const Options&... options) {
    const RowMatrix<Scalar>* dx = &dy;
    for (std::size_t n = blocks_.size(); n-- > 0;)
      dx = &blocks_[n].backward(*inputs_[n], *dx, options...);
  }
  template <class Visit>
  void each_layer(const Visit& visit) {
    for (std::size_t n = 0; n < blocks_.size(); ++n)
      blocks_[n].each_layer("block." + std::to_string(n) + '.', visit);
  }

 private:
  std::vector<Block> blocks_;
  std::vector<const RowMatrix<Scalar>*> inputs_;  ///< of each block, and the output
};

/// Steps of training of an encoder on one batch: forward pass and mean squared error, backward pass,
/// Adam.
template <class Block, class Scalar>
class Training {
 public:
  Training(std::vector<Block> blocks, const RowMatrix<float>& x, const RowMatrix<float>& target)
      : encoder_(std::move(blocks)),
        adam_({}),
        x_(x.cast<Scalar>()),
        target_(target.cast<Scalar>()),
        dy_(x.rows(), x.cols()) {}

  template <class... Options>
  void step(const Options&... options) {
    const double start = now();
    const RowMatrix<Scalar>& y = encoder_.forward(x_, options...);
    dy_ = Scalar(2. / static_cast<double>(y.size())) * (y - target_);
    const double middle = now();
    encoder_.backward(dy_, options...);
    const double end = now();
    adam_.step(encoder_);
    forward_.add(middle - start);
    backward_.add(end - middle);
    update_.add(now() - end);
  }
  /// Of each phase the shortest of all steps.
  void report_phases(benchmark::UserCounters& counters) const {
    counters["forward_ms"] = 1e3 * forward_.min();
    counters["backward_ms"] = 1e3 * backward_.min();
    counters["update_ms"] = 1e3 * update_.min();
  }
  /// All gradients of weights, one behind the other.
  Eigen::VectorXd gradients() {
    std::vector<double> all;
    training::for_each_gradient(encoder_, [&](const auto& gradient) {
      for (Index i = 0; i < gradient.rows(); ++i) {
        for (Index c = 0; c < gradient.cols(); ++c) all.push_back(double(gradient(i, c)));
      }
    });
    return Eigen::VectorXd::Map(all.data(), Index(all.size()));
  }

 private:
  Encoder<Block, Scalar> encoder_;
  training::Adam<Scalar> adam_;
  RowMatrix<Scalar> x_, target_, dy_;
  Samples forward_, backward_, update_;
};

/// train_step64: two pre-norm blocks over 32 sequences of 32 tokens, d_model 64, 4 heads, 128 hidden
/// features with GELU.
class Step {
 public:
  /// Products alone: norms, activations, loss and optimiser are not counted.
  static constexpr double kProducts = 8. * 1024 * 64 * 64 + 4. * 1024 * 64 * 128,
                          kAttention = 4. * 1024 * 32 * 64,
                          kFlops = 2 * (3 * kProducts + 3.5 * kAttention);

  Step()
      : blocks_(random_blocks()),
        x_(random_rows(1)),
        target_(random_rows(2)),
        library_(blocks_, x_, target_),
        by_hand_(blocks_by_hand<float>(), x_, target_) {}

  void library(int n) {
    if (n == 1) {
      library_.step(1, attn::sequence_length(kLength));
    } else {
      library_.step(threads(n), attn::sequence_length(kLength));
    }
  }
  void by_hand() { by_hand_.step(); }
  void report_phases(benchmark::UserCounters& counters) const { library_.report_phases(counters); }

  /// Of the gradients of all weights in the first step.
  Errors errors(int n) {
    Training<BlockGradientByHand<double>, double> exact(blocks_by_hand<double>(), x_, target_);
    library(n);
    by_hand();
    exact.step();
    Errors worst;
    worst.see(library_.gradients(), by_hand_.gradients(), exact.gradients());
    return worst;
  }

 private:
  static constexpr Index kSequences = 32, kLength = 32, kWidth = 64, kHeads = 4, kHidden = 128;
  using Block = training::EncoderBlock<float>;

  static std::vector<Block> random_blocks() {
    training::Engine engine(3);
    std::vector<Block> blocks;
    for (int n = 0; n < 2; ++n) blocks.emplace_back(kWidth, kHeads, kHidden, engine);
    return blocks;
  }
  static RowMatrix<float> random_rows(std::uint64_t seed) {
    Uniform uniform(seed);
    RowMatrix<float> rows(kSequences * kLength, kWidth);
    fill(rows, uniform);
    return rows;
  }
  template <class Scalar>
  std::vector<BlockGradientByHand<Scalar>> blocks_by_hand() const {
    std::vector<Index> offsets;
    for (Index n = 0; n <= kSequences; ++n) offsets.push_back(n * kLength);
    std::vector<BlockGradientByHand<Scalar>> blocks;
    for (const Block& block : blocks_) blocks.emplace_back(block, offsets);
    return blocks;
  }

  std::vector<Block> blocks_;
  RowMatrix<float> x_, target_;
  Training<Block, float> library_;
  Training<BlockGradientByHand<float>, float> by_hand_;
};

void measure_step(benchmark::State& state, int n) {
  Step step;
  const Errors errors = step.errors(n);
  state.counters["max_err"] = errors.library;
  const auto library = [&](int workers) { step.library(workers); };
  if (n > 1) return measure_threads(state, Step::kFlops, n, library);

  state.counters["textbook_max_err"] = errors.by_hand;
  measure_beside(
      state, Step::kFlops, [&] { step.library(1); }, [&] { step.by_hand(); });
  step.report_phases(state.counters);
}

const bool registered = [] {
  for (const int n : {1, 2}) {
    add_row("training/train_step64/threads:" + std::to_string(n),
            [n](benchmark::State& state) { measure_step(state, n); });
    add_row("training/train_mha512/threads:" + std::to_string(n),
            [n](benchmark::State& state) { measure_layer(state, n); });
  }
  return true;
}();

}  // namespace
}  // namespace bench
