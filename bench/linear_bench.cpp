// bench/linear_bench.cpp: linear layers and encoder blocks of them, beside the same by hand in Eigen.
// SPDX-License-Identifier: MIT

#include <attn/attn.h>
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "support/layer_by_hand.h"
#include "support/layer_reference.h"
#include "support/machine.h"
#include "support/measure.h"
#include "support/operands.h"
#include "support/row.h"
#include "support/threads.h"

namespace bench {
namespace {

using Linear = attn::Linear<float>;

Linear linear_of(const DenseWeights& weights) {
  Linear linear(attn::LinearOptions(weights.weight.rows(), weights.weight.cols()).bias());
  linear.set(weights.weight, weights.bias);
  return linear;
}

/// linear512: 512 x 512 → 2048, GELU; linear4096: 512 x 4096 → 4096, GELU.
void measure_linear(benchmark::State& state, Index in, Index out) {
  constexpr Index kRows = 512;
  Uniform uniform(3);
  const DenseWeights weights(in, out, uniform);
  RowMatrix<float> x(kRows, in), y(kRows, out), z(kRows, out);
  fill(x, uniform);
  Linear linear = linear_of(weights);
  const auto library = [&] { linear(x, attn::into(y), attn::gelu()); };
  const auto by_hand = [&] {
    weights(x, z);
    gelu(z);
  };
  measure_beside(state, 2. * static_cast<double>(kRows * in * out), library, by_hand);
  state.counters["max_err"] = max_error(gelu_reference(linear_reference(weights, x)), y);
}

/// linear_decode, linear_decode8: 1 and 8 x 4096 → 4096, over layers in turn so that none is in a cache, each beside a reading of
/// as much memory by as many threads.
void measure_decode(benchmark::State& state, Index rows, int workers) {
  constexpr Index kWidth = 4096;
  const std::size_t bytes = std::size_t(kWidth * kWidth) * sizeof(float),
                    count = 4 * last_level_cache_bytes() / bytes + 2;
  Uniform uniform(3);
  const DenseWeights weights(kWidth, kWidth, uniform);
  const std::vector<Linear> layers(count, linear_of(weights));
  RowMatrix<float> x(rows, kWidth), y(rows, kWidth), z(rows, kWidth);
  fill(x, uniform);
  attn::Workspace<float> workspace;
  std::size_t turn = 0;
  const auto next = [&] { return turn = (turn + 1) % count; };
  Units units([&] {
    const Linear& layer = layers[next()];
    if (workers == 1) {
      layer(x, attn::into(y), attn::use(workspace));
    } else {
      layer(x, attn::into(y), attn::use(workspace), threads(workers));
    }
  });
  const std::vector<float> memory(count * std::size_t(kWidth * kWidth), 1.0f);
  const auto part = [&] { return memory.data() + next() * std::size_t(kWidth * kWidth); };
  // By hand, too, with weights that are in no cache.
  Units by_hand([&] {
    z.noalias() = x * Eigen::Map<const RowMatrix<float>>(part(), kWidth, kWidth);
    z.rowwise() += weights.bias;
  });
  const auto read = [&](ReadPattern pattern) {
    return read_seconds(part(), bytes, pattern, workers);
  };
  BesideReading beside(fastest_pattern(read));
  for (auto _ : state) {
    sample_in_turn(units, by_hand, [&] {
      const double seconds = read(beside.pattern());
      beside.add(static_cast<double>(bytes), seconds, units.sample());
    });
  }
  auto& counters = state.counters;
  report_times(units.per_call(), counters);
  counters["GFLOPS"] = 2e-9 * static_cast<double>(rows * kWidth * kWidth) / units.per_call().min();
  beside.report(counters);
  if (workers == 1) counters["vs_textbook"] = units.per_call().min() / by_hand.per_call().min();
  counters["max_err"] = max_error(linear_reference(weights, x), y);
}

constexpr Index kWidth = 512, kHidden = 2048, kHeads = 8;

/// BlockByHand's block by the library.
class Block {
 public:
  explicit Block(const BlockWeights& weights)
      : attention_(attn::MultiHeadOptions(kWidth, kHeads).in_bias().out_bias()),
        up_(linear_of(weights.up)),
        down_(linear_of(weights.down)) {
    attention_.edit([&](auto& w) { weights.attention.copy_to(w); });
  }
  /// y may be x.
  void operator()(const RowMatrix<float>& x, const std::vector<Index>& offsets,
                  RowMatrix<float>& y) {
    normed_.resize(x.rows(), x.cols());
    layer_norm(x, normed_);
    attention_(normed_, attn::sequences(offsets), attn::residual(x), attn::into(h_));
    layer_norm(h_, normed_);
    up_(normed_, attn::gelu(), attn::into(hidden_));
    down_(hidden_, attn::residual(h_), attn::into(y));
  }

 private:
  attn::MultiHeadAttention<float> attention_;
  Linear up_, down_;
  RowMatrix<float> normed_, h_, hidden_;
};

double block_flops(const std::vector<Index>& offsets) {
  double flops = 0;
  for (std::size_t b = 0; b + 1 < offsets.size(); ++b) {
    const auto n = static_cast<double>(offsets[b + 1] - offsets[b]);
    flops += 8. * n * kWidth * kWidth + 4. * n * n * kWidth + 4. * n * kWidth * kHidden;
  }
  return flops;
}

/// Blocks one after the other over sequences of these lengths.
class Encoder {
 public:
  Encoder(int blocks, const std::vector<Index>& lengths) : offsets_{0} {
    for (const Index length : lengths) offsets_.push_back(offsets_.back() + length);
    Uniform uniform(3);
    x_.resize(offsets_.back(), kWidth);
    fill(x_, uniform);
    weights_.reserve(static_cast<std::size_t>(blocks));
    for (int n = 0; n < blocks; ++n) {
      weights_.emplace_back(kWidth, kHidden, uniform);
      library_.emplace_back(weights_.back());
      by_hand_.emplace_back(weights_.back(), kHeads, offsets_);
    }
    y_ = z_ = x_;
  }
  void by_library() {
    const RowMatrix<float>* x = &x_;
    for (Block& block : library_) block(*x, offsets_, y_), x = &y_;
  }
  void by_hand() {
    const RowMatrix<float>* x = &x_;
    for (BlockByHand& block : by_hand_) block(*x, z_), x = &z_;
  }
  double flops() const { return static_cast<double>(weights_.size()) * block_flops(offsets_); }
  double difference() const { return (y_ - z_).cwiseAbs().maxCoeff(); }

 private:
  std::vector<Index> offsets_;
  std::vector<BlockWeights> weights_;
  std::vector<Block> library_;
  std::vector<BlockByHand> by_hand_;
  RowMatrix<float> x_, y_, z_;
};

double measure_encoder(benchmark::State& state, Encoder& encoder) {
  const auto library = [&] { encoder.by_library(); };
  const auto by_hand = [&] { encoder.by_hand(); };
  const double seconds = measure_beside(state, encoder.flops(), library, by_hand);
  state.counters["max_err"] = encoder.difference();  // from the formula by hand, in float too
  return seconds;
}

/// encoder_ragged: two blocks, 32 sequences of 4, 8, … 128 tokens; vs_neighbour: the rate of its operations over that of as many tokens in
/// sequences of one length.
void measure_ragged(benchmark::State& state) {
  std::vector<Index> ragged(32), even(32, 66);
  for (std::size_t b = 0; b < ragged.size(); ++b) ragged[b] = 4 * (static_cast<Index>(b) + 1);
  Encoder encoder(2, ragged), equal(2, even);
  const double seconds = measure_encoder(state, encoder);
  Units units([&] { equal.by_library(); });
  for (int n = 0; n < 20; ++n) units.sample();
  state.counters["vs_neighbour"] =
      encoder.flops() / seconds / (equal.flops() / units.per_call().min());
}

void add(const std::string& name, const std::function<void(benchmark::State&)>& body) {
  add_row("linear/" + name, body);
}

const bool registered = [] {
  add("linear512/threads:1", [](benchmark::State& state) { measure_linear(state, 512, 2048); });
  add("linear4096/threads:1", [](benchmark::State& state) { measure_linear(state, 4096, 4096); });
  for (const int workers : {1, 2}) {
    add("linear_decode/threads:" + std::to_string(workers),
        [workers](benchmark::State& state) { measure_decode(state, 1, workers); });
  }
  add("linear_decode8/threads:1", [](benchmark::State& state) { measure_decode(state, 8, 1); });
  add("block512/threads:1", [](benchmark::State& state) {
    Encoder encoder(1, {512});
    measure_encoder(state, encoder);
  });
  add("encoder_ragged/threads:1", measure_ragged);
  return true;
}();

}  // namespace
}  // namespace bench
