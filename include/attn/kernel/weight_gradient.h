// attn/kernel/weight_gradient.h: dW = Xᵀ·d and db = Σ d of a projection Y = X·W + b, from its input
// X and the gradient d of its output.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "drawn_pieces.h"
#include "pack.h"
#include "projection_jobs.h"
#include "sums_over_rows.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     dW[c, n] = Σ_i X[i, c] · d[i, n]    db[n] = Σ_i d[i, n]    i over all tokens            // X: (rows, inputs)  d: (rows, outputs)
// PICTURE  for each block of dW, up to 512 inputs × 512 outputs:                      // drawn by workers, which share nothing
//            for each run of 96 tokens:
//              pack d and X into panels of 96 × C·W
//              for each panel of d, for each of X: tiles of up to R outputs × C packets of inputs
//                in registers, added to the block's sums                             // sums: (outputs, inputs)
//            write the block, along the inputs, which W is contiguous in
// TRAFFIC  a tile takes both panels from L1 or L2: 14 loads for 24 multiply-adds; its 24 packets of
//          sums are loaded and stored once in 96 steps, from L2 or L3 (1 MiB a block). Packing reads
//          and writes two numbers for each 512 multiply-adds
// LIMIT    the multiply-adds, as in register_tile.h; 0.91 of the peak at 512 × 512 × 512 (Zen 4,
//          AVX-512, g++): sums and packing beside them
// EDGES    tokens up to a whole depth step are zeros on both sides; what is behind the last output
//          is not computed, what is behind the last input is not written. A token whose d is 0
//          contributes nothing, whatever its X holds: hidden keys have no gradient
// NUMERICS one chain from +0 for each run, counted from the first token, and the runs' sums one
//          after the other from 0: the bits know nothing of blocks and threads

/// Tokens of one chain of a sum over all of them. Part of the bits contract.
template <class Scalar>
inline constexpr Index kTokenRun = TileSize<Scalar>::gradient_rows;

/// Where the gradients of a projection go: element (c, n) of the weight at c · input_stride +
/// n · output_stride; a bias, or null.
template <class Scalar>
struct WeightGradientTarget {
  Scalar* weight;
  Index input_stride, output_stride;
  Scalar* bias;
};

/// A weight and a bias, Eigen matrices; there is no bias where that is of size 0.
template <class Scalar, class Weight, class Bias>
WeightGradientTarget<Scalar> weight_gradient_target(Weight& w, Bias& b) {
  return {w.data(), w.rowStride(), w.colStride(), b.size() != 0 ? b.data() : nullptr};
}

/// One projection: rows of its input and of its output's gradient, and where the gradients go:
/// written, or added to what stands there.
template <class Input, class Gradient, class Scalar>
struct WeightGradientJob {
  Input input;
  Gradient gradient;
  Index rows, inputs, outputs;
  WeightGradientTarget<Scalar> to;
  bool accumulates;
};

/// How the weights fall into blocks that workers draw, and the scratch of one worker.
template <class Scalar>
struct WeightGradientScratch {
  using Size = TileSize<Scalar>;
  Index block;  ///< inputs and outputs of one

  /// Where `workers` share so many weights, the widest of them of `features` inputs or outputs:
  /// four blocks for each.
  static constexpr WeightGradientScratch of(Index features, double weights, int workers) {
    Index block = std::min(Size::weight_block, round_up(features, Size::panel));
    while (workers > 1 && block > Size::panel &&
           double(block) * double(block) * 4 * workers > weights)
      block = round_up(block / 2, Size::panel);
    return {block};
  }
  template <class Job>
  Index pieces(const Job& job) const {
    return across(job.inputs) * across(job.outputs);
  }
  constexpr Index across(Index features) const { return (features + block - 1) / block; }
  constexpr Index packed() const { return block * kTokenRun<Scalar>; }
  constexpr Index total() const { return 2 * packed() + block * block + block; }
};

/// One worker's part of some jobs. `memory`: WeightGradientScratch::total() scalars.
template <class S>
class WeightGradients {
  using Scalar = typename S::Scalar;
  using Size = TileSize<Scalar>;
  static constexpr Index kRun = kTokenRun<Scalar>, kPanel = Size::panel;

  /// Features [first, first + count) of an input or an output.
  struct Block {
    Index first, count;
  };

 public:
  WeightGradients(const WeightGradientScratch<Scalar>& size, Scalar* memory)
      : size_(size),
        inputs_(memory),
        gradients_(inputs_ + size.packed()),
        sums_(gradients_ + size.packed()),
        bias_(sums_ + size.block * size.block) {}

  template <class... Jobs>
  void operator()(std::atomic<Index>& drawn, const Jobs&... jobs) const {
    draw_pieces(
        drawn, [&](const auto& job) { return size_.pieces(job); },
        [&](Index number, const auto& job) {
          const Index across = size_.across(job.inputs);
          sum_block(job, block_of(number % across, job.inputs),
                    block_of(number / across, job.outputs));
        },
        jobs...);
  }

 private:
  Block block_of(Index number, Index features) const {
    const Index first = number * size_.block;
    return {first, std::min(size_.block, features - first)};
  }

  template <class Job>
  void sum_block(const Job& job, const Block& inputs, const Block& outputs) const {
    const bool with_bias = job.to.bias != nullptr && inputs.first == 0;
    for (Index n = 0; n < outputs.count; ++n)
      std::fill_n(sums_ + n * size_.block, round_up(inputs.count, kPanel), Scalar(0));
    std::fill_n(bias_, with_bias ? round_up(outputs.count, kPanel) : 0, Scalar(0));
    for (Index first = 0; first < job.rows; first += kRun) {
      const Index tokens = std::min(kRun, job.rows - first);
      pack_tokens(job.gradient, first, tokens, outputs, gradients_);
      if (pack_tokens(job.input, first, tokens, inputs, inputs_)) {
        add_products(inputs.count, outputs.count, round_up(tokens, Size::depth));
      } else {
        add_without_zeros(inputs.count, outputs.count, tokens);
      }
      if (with_bias) add_rows(outputs.count, tokens);
    }
    write(job, inputs, outputs);
    if (with_bias) write_along(job.to.bias + outputs.first, 1, bias_, outputs.count, job);
  }

  /// Tokens × features into panels, kRun tokens each. Returns whether all numbers are finite.
  template <class T>
  static bool pack_tokens(const Rows<T>& rows, Index first, Index tokens, const Block& features,
                          Scalar* to) {
    const Index stride = rows.feature_stride(), column = features.first * stride;
    if (rows.together(first, first + tokens)) {
      using Stored = std::remove_const_t<T>;
      return pack_values<S>(Source<Stored>{rows.row(first) + column, rows.row_stride(), stride}, 0,
                            {0, tokens}, features.count, kRun, to);
    }
    FiniteCheck<S> check;
    for (Index c = 0; c < round_up(features.count, kPanel); c += S::width) {
      Scalar* const panel = to + c / kPanel * kPanel * kRun + c % kPanel;
      for (Index i = 0; i < round_up(tokens, Size::depth); ++i) {
        const auto packet = i < tokens && c < features.count
                                ? detail::load_strided<S>(rows.row(first + i) + column + c * stride,
                                                          stride, features.count - c)
                                : S::set(Scalar(0));
        check.see(packet);
        S::store(panel + i * kPanel, packet);
      }
    }
    return check.finite();
  }

  /// Sums += dᵀ · X of the packed tokens.
  void add_products(Index inputs, Index outputs, Index tokens) const {
    const DepthRange run{0, tokens};
    for (Index n = 0; n < outputs; n += kPanel) {
      const Strips tiles = Strips::even<Scalar>(std::min(outputs - n, kPanel));
      for (Index c = 0; c < inputs; c += kPanel) {
        const bool wide = inputs - c > S::width;
        for (Index t = 0; t < tiles.count; ++t) {
          const Strip rows = tiles[t];
          const auto& sum = row_sum_tiles_v<S, PanelColumns<Scalar>>[std::size_t(rows.rows - 1)];
          (wide ? sum.wide : sum.narrow)({gradients_ + n * kRun + rows.first, inputs_ + c * kRun,
                                          Runs{&run, 1}, sums_ + (n + rows.first) * size_.block + c,
                                          size_.block});
        }
      }
    }
  }
  /// The same where some input is NaN or infinite: an exact zero of d takes nothing from it. The
  /// bits of the other, for what that is fit for; rare.
  void add_without_zeros(Index inputs, Index outputs, Index tokens) const {
    for (Index n = 0; n < outputs; ++n) {
      const Scalar* const d = gradients_ + n / kPanel * kPanel * kRun + n % kPanel;
      for (Index c = 0; c < inputs; c += S::width) {
        const Scalar* const x = inputs_ + c / kPanel * kPanel * kRun + c % kPanel;
        auto sum = S::set(Scalar(0));
        for (Index i = 0; i < tokens; ++i) {
          const Scalar& factor = d[i * kPanel];
          if (detail::equal(factor, Scalar(0))) continue;
          sum = S::fmadd(S::set(factor), S::load(x + i * kPanel), sum);
        }
        Scalar* const to = sums_ + n * size_.block + c;
        S::store(to, S::add(S::load(to), sum));
      }
    }
  }
  /// The bias's sums += Σ d of the packed tokens.
  void add_rows(Index outputs, Index tokens) const {
    for (Index n = 0; n < outputs; n += S::width) {
      const Scalar* d = gradients_ + n / kPanel * kPanel * kRun + n % kPanel;
      auto sum = S::set(Scalar(0));
      for (Index i = 0; i < tokens; ++i, d += kPanel) sum = S::add(sum, S::load(d));
      S::store(bias_ + n, S::add(S::load(bias_ + n), sum));
    }
  }

  template <class Job>
  void write(const Job& job, const Block& inputs, const Block& outputs) const {
    Scalar* const to = job.to.weight + inputs.first * job.to.input_stride;
    for (Index n = 0; n < outputs.count; ++n) {
      write_along(to + (outputs.first + n) * job.to.output_stride, job.to.input_stride,
                  sums_ + n * size_.block, inputs.count, job);
    }
  }
  template <class Job>
  static void write_along(Scalar* to, Index stride, const Scalar* sums, Index count,
                          const Job& job) {
    for (Index c = 0; c < count; c += S::width, to += S::width * stride) {
      auto sum = S::load(sums + c);
      if (job.accumulates) sum = S::add(detail::load_strided<S>(to, stride, count - c), sum);
      detail::store_strided<S>(to, stride, sum, count - c);
    }
  }

  WeightGradientScratch<Scalar> size_;
  Scalar *inputs_, *gradients_, *sums_, *bias_;
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
