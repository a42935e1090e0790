// attn/kernel/stored_keys.h: keys and values as a cache stores them, as few rows attend them
// (decoding).
// SPDX-License-Identifier: MIT
#pragma once

#include "few_rows.h"
#include "stored_panels.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// Keys of a block, `depth` padded features to a panel.
template <class S, class T>
struct StoredKeys : StoredPanels<S, T> {
  using Size = TileSize<typename S::Scalar>;
  StoredKeys(const T* keys, const T* keys_ahead, Index depth, Index held)
      : StoredPanels<S, T>{keys, keys_ahead, depth * Size::panel, held / Size::panel, depth} {}

  template <std::size_t R, std::size_t C, class Queries>
  ATTN_INLINE void add(typename S::Packet (&acc)[R][C], const Queries& q, Index j, Index) const {
    this->multiply_accumulate(acc, q, j / Size::panel, {0, this->length});
  }
};

/// Values of a block, in panels of features.
template <class S, class T>
struct StoredValues : StoredPanels<S, T> {
  using Size = TileSize<typename S::Scalar>;
  Index features;
  StoredValues(const T* values, const T* values_ahead, Index panel_stride, Index value_dim)
      : StoredPanels<S, T>{values, values_ahead, panel_stride,
                           (value_dim + Size::panel - 1) / Size::panel, panel_stride / Size::panel},
        features(value_dim) {}

  Index width() const { return round_up(features, Size::panel); }
  template <std::size_t R, std::size_t C, class Weights>
  ATTN_INLINE void add(typename S::Packet (&acc)[R][C], const Weights& p, Index c,
                       Runs pieces) const {
    for (int n = 0; n < pieces.count; ++n)
      this->multiply_accumulate(acc, p, c / Size::panel, pieces.first[n]);
  }
};

/// Steps of stored panels, at the same place in panels of factors.
template <class S, class T, class Element>
void widen_steps(const T* from, DepthRange steps, Element* to) {
  using F = Factors<S, Element>;
  using Size = TileSize<typename S::Scalar>;
  for (Index t = steps.begin; t < steps.end; t += F::numbers) {
    for (Index w = 0; w < Size::panel; w += S::width) {
      typename S::Packet numbers[std::size_t{F::numbers}];
      ATTN_UNROLL
      for (Index n = 0; n < F::numbers; ++n)
        numbers[n] =
            F::template rounded<T>(detail::load_converted<S>(from + (t + n) * Size::panel + w));
      F::store(to + t / F::numbers * Size::panel + w, F::interleave(numbers));
    }
  }
}

/// Scores of the keys [begin, end) of a block times the keys' scales, `begin` being the first of a
/// panel; lane_max follows.
template <class S>
void scale_scores(int rows, const typename S::Scalar* scales, Index begin, Index end,
                  typename S::Scalar* s, typename S::Scalar* lane_max) {
  using Scalar = typename S::Scalar;
  using Size = TileSize<Scalar>;
  const Index whole = end / Size::panel * Size::panel;
  for (int i = 0; i < rows; ++i) {
    Scalar* const row = s + i * Size::score_stride;
    auto largest = S::set(no_maximum<Scalar>());
    for (Index j = begin; j < end; j += S::width) {
      const auto scaled = S::mul(S::load(row + j), S::load(scales + j));
      S::store(row + j, scaled);
      if (j < whole) largest = S::max(scaled, largest);
    }
    if (lane_max == nullptr) continue;
    S::store(lane_max + i * S::width, S::max(largest, S::load(lane_max + i * S::width)));
  }
  if (whole < end) hide_beyond<S>(rows, end, s, lane_max);
}

/// Weights of the visited keys times the scales of their values. A hidden_weight() stays one.
template <class S>
void scale_weights(int rows, const typename S::Scalar* scales, Runs runs, typename S::Scalar* p) {
  using Scalar = typename S::Scalar;
  for (int i = 0; i < rows; ++i, p += TileSize<Scalar>::score_stride) {
    for (int n = 0; n < runs.count; ++n) {
      for (Index j = runs.first[n].begin; j < runs.first[n].end; j += S::width) {
        const auto weight = S::load(p + j);
        const auto hidden = S::less(weight, S::set(Scalar(0)));
        S::store(p + j, S::select(hidden, weight, S::mul(weight, S::load(scales + j))));
      }
    }
  }
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
