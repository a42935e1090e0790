// attn/call/layer_backward_scratch.h: the scratch of a layer's backward pass: how much, and for how
// many workers.
// SPDX-License-Identifier: MIT
#pragma once

#include "../kernel/transposed_weights.h"
#include "../kernel/weight_gradient.h"
#include "layer_operands.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// The gradients of the projections that read one input, side by side in rows of scratch.
struct InputGradients {
  Index rows = 0, features = 0;  ///< of the input
  Index width = 0;               ///< of the gradients
  Index stride = 0;              ///< of their rows
  bool wanted = false;           ///< the input's own gradient
};

/// Which input each projection reads, where a call has 1, 2 or 3.
template <int Inputs>
struct InputOf {
  static constexpr int query = 0, key = Inputs == 1 ? 0 : 1, value = Inputs - 1;
};

/// In scalars: gradients of the attended heads and of the projections, rows of heads side by side;
/// transposed weights; each worker's share.
template <class Storage>
struct LayerBackwardScratch {
  using Scalar = compute_t<Storage>;
  using Sink = kernel::RowsSink<Scalar>;
  using Transposed = kernel::TransposedWeights<Scalar, Storage>;
  Index mixed_rows, mixed_width, mixed_stride, output_features;
  InputGradients inputs[3];
  bool sums;                   ///< the weights' gradients are wanted
  int transpose, mix, finish;  ///< workers: of the weights, of the attended heads', of the rest
  kernel::ProjectionScratch<Scalar, Scalar> project;
  kernel::WeightGradientScratch<Scalar> weights;

  /// By up to `offered` workers, as many as the products are worth.
  LayerBackwardScratch(const MultiHeadOptions& sizes, const InputGradients (&in)[3],
                       bool weights_wanted, Index queries, int offered)
      : mixed_rows(queries),
        mixed_width(sizes.heads() * sizes.value_dim()),
        mixed_stride(Sink::stride_for(mixed_width)),
        output_features(sizes.output_features()),
        inputs{in[0], in[1], in[2]},
        sums(weights_wanted) {
    const double mixed = double(mixed_width) * double(output_features);
    double all = mixed, products = double(queries) * mixed;
    Index rows = queries, depth = output_features, widest = std::max(mixed_width, depth);
    for (const InputGradients& input : inputs) {
      const double weights_of = double(input.features) * double(input.width);
      all += weights_of;
      products += 2 * double(input.rows) * weights_of;
      rows = std::max(rows, input.rows);
      depth = std::max(depth, input.width);
      widest = std::max({widest, input.features, input.width});
    }
    using Size = kernel::TileSize<Scalar>;
    constexpr double kBytes = double(sizeof(Scalar));
    transpose = Size::workers(offered, 0, all * kBytes);
    mix = Size::workers(offered, double(queries) * mixed, mixed * kBytes);
    finish = Size::workers(offered, products, all * kBytes);
    project = kernel::ProjectionScratch<Scalar, Scalar>::of(rows, depth, mixed_width,
                                                            std::max(mix, finish));
    weights = kernel::WeightGradientScratch<Scalar>::of(widest, all, finish);
  }

  Index mixed() const { return mixed_rows * mixed_stride; }
  Index transposed_output() const { return Transposed::scalars(output_features, mixed_width); }
  static Index gradients(const InputGradients& input) { return input.rows * input.stride; }
  static Index transposed(const InputGradients& input) {
    return input.wanted ? Transposed::scalars(input.width, input.features) : 0;
  }
  Index share() const {
    return std::max(project.total(), sums ? kernel::round_up(weights.total(), 16) : 0);
  }
  Index total() const {
    Index all = mixed() + transposed_output() + std::max({transpose, mix, finish, 1}) * share();
    for (const InputGradients& input : inputs) all += gradients(input) + transposed(input);
    return all;
  }
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
