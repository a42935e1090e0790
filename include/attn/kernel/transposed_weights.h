// attn/kernel/transposed_weights.h: panels of Wᵀ out of the packed panels of W, which the gradient
// of a projection's input is multiplied with: dX = d·Wᵀ.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "projection.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     W₁, W₂, … (inputs, outputs₁), …, which read one input  →  panels of (W₁ W₂ …)ᵀ: (Σ outputs, inputs)
//          dX = Σ dₘ·Wₘᵀ is then one product of (d₁ d₂ …), rows of scratch side by side
// PICTURE  a panel is C·W inputs; W × W numbers at a time: loaded along the outputs, transposed in
//          registers, stored along the inputs
// TRAFFIC  each weight is read and written once a call, beside 2 multiply-adds for each of its rows
//          in the passes back: 1/16 of the time at 64 rows, 1/128 at 512
// WHY      anew in each backward pass: kept beside W, it would double what a layer takes, and each
//          edit() would pack it, also where no gradient is ever asked for
// EDGES    inputs beyond the matrix and outputs up to a whole depth step are zeros
// NUMERICS stored narrowly, weights are widened: exact

/// The weights that read one input, and their transposed panels in scratch.
template <class Scalar, class Stored>
class TransposedWeights {
  using S = detail::Simd<Scalar>;
  using Size = TileSize<Scalar>;
  using Panels = PanelWeights<Scalar, Scalar>;

 public:
  explicit TransposedWeights(const PanelWeights<Scalar, Stored>& first) : parts_{first} {}
  /// More of the same input.
  void add(const PanelWeights<Scalar, Stored>& weights) { parts_[count_++] = weights; }

  /// The features of their outputs, side by side.
  Index depth() const {
    Index all = 0;
    for (int n = 0; n < count_; ++n) all += parts_[n].outputs;
    return all;
  }
  Index inputs() const { return parts_[0].inputs; }
  /// Scratch, the zeros of a bias among it.
  static constexpr Index scalars(Index depth, Index inputs) {
    return round_up(Panels::size(depth, inputs) + Panels::columns(inputs), 16);
  }
  Index scalars() const { return scalars(depth(), inputs()); }
  /// Pieces of work that fill it.
  Index pieces() const { return Panels::columns(inputs()) / Size::panel; }

  /// As a projection reads them, of memory that has been filled.
  Panels in(const Scalar* memory) const {
    return {memory, memory + Panels::size(depth(), inputs()), depth(), inputs(), 0};
  }
  void fill(Index piece, Scalar* memory) const {
    const Index whole = Panels::depth(depth()), first = piece * Size::panel;
    Scalar* const panel = memory + first * whole;
    Index row = 0;
    for (int n = 0; n < count_; ++n) {
      transpose_rows(parts_[n], first, panel + row * Size::panel);
      row += parts_[n].outputs;
    }
    std::fill(panel + row * Size::panel, panel + whole * Size::panel, Scalar(0));
    std::fill_n(memory + Panels::size(depth(), inputs()) + first, Size::panel, Scalar(0));
  }

 private:
  /// One panel's inputs, from `first` on, of all outputs.
  static void transpose_rows(const PanelWeights<Scalar, Stored>& weights, Index first, Scalar* to) {
    const Index depth = weights.depth();
    for (Index n = 0; n < weights.outputs; n += S::width, to += Index(S::width) * Size::panel) {
      const Index held = std::min<Index>(weights.outputs - n, S::width);
      for (Index c = 0; c < Size::panel; c += S::width) {
        typename S::Packet rows[S::width];
        const Index whole = std::min<Index>(depth - first - c, S::width);
        for (Index w = 0; w < S::width; ++w) {
          rows[w] =
              w < whole ? detail::load_converted<S>(&weights(first + c + w, n)) : S::set(Scalar(0));
        }
        S::transpose(rows);
        for (Index w = 0; w < held; ++w) S::store(to + w * Size::panel + c, rows[w]);
      }
    }
  }

  PanelWeights<Scalar, Stored> parts_[3];
  int count_ = 1;
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
