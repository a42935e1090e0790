// attn/call/linear_backward_scratch.h: the scratch of a linear layer's backward pass: how much, and
// for how many workers.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../kernel/transposed_weights.h"
#include "../kernel/weight_gradient.h"
#include "../parameters.h"
#include "gradient_outputs.h"
#include "linear_call.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// What a backward pass computes.
struct LinearGradientsWanted {
  bool weights, input, slope;

  template <class... Options>
  static constexpr LinearGradientsWanted of() {
    return {given_v<WeightsGradientOption, Options...>, given_v<InputGradientOption, Options...>,
            given_v<ActivationOption, Options...>};
  }
};

/// In scalars: the gradient behind the activation, rows side by side; transposed weights; each
/// worker's share.
template <class Storage>
struct LinearBackwardScratch {
  using Scalar = compute_t<Storage>;
  Index stride;        ///< of the gradient's rows
  Index gradient = 0;  ///< scalars of it, and of the transposed weights
  Index transposed = 0;
  int prepare, finish;  ///< workers: of these two, of the products
  kernel::ProjectionScratch<Scalar, Scalar> project;
  kernel::WeightGradientScratch<Scalar> weights;
  Index share = 0;

  /// By up to `offered` workers, as many as the work is worth.
  constexpr LinearBackwardScratch(const LinearOptions& sizes, Index rows,
                                  LinearGradientsWanted wanted, int offered)
      : LinearBackwardScratch(sizes, rows, wanted, offered,
                              double(sizes.in_features()) * double(sizes.out_features())) {}

  constexpr Index total() const {
    return gradient + transposed + std::max({prepare, finish, 1}) * share;
  }

 private:
  using Size = kernel::TileSize<Scalar>;

  constexpr LinearBackwardScratch(const LinearOptions& sizes, Index rows,
                                  LinearGradientsWanted wanted, int offered, double all)
      : stride(kernel::RowsSink<Scalar>::stride_for(sizes.out_features())),
        prepare(Size::workers(
            offered,
            wanted.slope ? double(Size::slope_cost) * double(rows) * double(sizes.out_features())
                         : 0,
            wanted.input ? all * double(sizeof(Scalar)) : 0)),
        finish(Size::workers(offered,
                             double(rows) * all * (int(wanted.weights) + int(wanted.input)),
                             all * double(sizeof(Scalar)))),
        project(kernel::ProjectionScratch<Scalar, Scalar>::of(rows, sizes.out_features(),
                                                              sizes.in_features(), finish)),
        weights(kernel::WeightGradientScratch<Scalar>::of(
            std::max(sizes.in_features(), sizes.out_features()), all, finish)) {
    if (wanted.slope) gradient = rows * stride;
    if (wanted.input) {
      transposed = kernel::TransposedWeights<Scalar, Storage>::scalars(sizes.out_features(),
                                                                       sizes.in_features());
      share = project.total();
    }
    if (wanted.weights) share = std::max(share, kernel::round_up(weights.total(), 16));
  }
};

/// Scratch of a call of compile-time sizes, on the stack where it fits.
template <class Storage, int In, int Out, int MaxRows, class... Options>
struct LinearBackwardStack {
  static constexpr bool kBounded = In != Eigen::Dynamic && MaxRows != Eigen::Dynamic &&
                                   !given_v<ExecutorOption, Options...> &&
                                   !given_v<UseOption, Options...>;
  static constexpr Index kScalars =
      kBounded ? LinearBackwardScratch<Storage>(LinearOptions(In, Out), MaxRows,
                                                LinearGradientsWanted::of<Options...>(), 1)
                     .total()
               : 1;
  static constexpr bool kFits =
      kBounded && fits_stack(kScalars * std::int64_t(sizeof(compute_t<Storage>)));
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
