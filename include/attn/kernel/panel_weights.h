// attn/kernel/panel_weights.h: the weights of a projection, packed into panels.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../base/call_shape.h"
#include "pack.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// A packed weight matrix, or some of its panels, as the kernel reads it. `bias` has whole panels,
/// zeros where there is none.
template <class Scalar, class Stored>
struct PanelWeights {
  const Stored* panels = nullptr;
  const Scalar* bias = nullptr;
  Index inputs = 0, outputs = 0;
  Index first_column = 0;  ///< of the matrix that these are panels of

  static constexpr Index depth(Index inputs) {
    return round_up(inputs, Index(TileSize<Scalar>::depth));
  }
  static constexpr Index columns(Index outputs) {
    return round_up(outputs, Index(TileSize<Scalar>::panel));
  }
  static constexpr Index size(Index inputs, Index outputs) {
    return depth(inputs) * columns(outputs);
  }
  Index depth() const { return depth(inputs); }
  const Stored& operator()(Index c, Index n) const {
    constexpr Index kPanel = TileSize<Scalar>::panel;
    return panels[n / kPanel * kPanel * depth() + c * kPanel + n % kPanel];
  }
  Index panel_count() const { return columns(outputs) / TileSize<Scalar>::panel; }
  /// Panels [begin, end), not empty.
  PanelWeights part(Index begin, Index end) const {
    const Index first = begin * TileSize<Scalar>::panel;
    return {panels + first * depth(), bias + first, inputs,
            std::min(end * TileSize<Scalar>::panel, outputs) - first, first_column + first};
  }
};

/// W, element (c, n) by a function, into panels.
template <class Scalar, class Stored, class Element>
void pack_weights(Index inputs, Index outputs, const Element& element, Stored* panels) {
  using Weights = PanelWeights<Scalar, Stored>;
  constexpr Index kPanel = TileSize<Scalar>::panel;
  for (Index first = 0; first < outputs; first += kPanel) {
    for (Index c = 0; c < Weights::depth(inputs); ++c) {
      for (Index n = first; n < first + kPanel; ++n)
        *panels++ = c < inputs && n < outputs ? Stored(element(c, n)) : Stored(0);
    }
  }
}

/// The same of a matrix in memory that is stored as it is computed with: whole packets.
template <class S>
void pack_weights(Source<typename S::Scalar> inputs_of, Index inputs, Index outputs,
                  typename S::Scalar* panels) {
  using Scalar = typename S::Scalar;
  using Weights = PanelWeights<Scalar, Scalar>;
  constexpr Index kPanel = TileSize<Scalar>::panel;
  const Index depth = Weights::depth(inputs);
  if (outputs % kPanel != 0)
    std::fill_n(panels + outputs / kPanel * kPanel * depth, kPanel * depth, Scalar(0));
  pack_values<S>(inputs_of, 0, {0, inputs}, outputs, depth, panels);
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
