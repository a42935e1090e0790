// attn/kernel/rotate_row.h: one row turned by the angles of its position; keys turned on their way
// into panels.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../score/rotary_table.h"
#include "pack.h"

namespace attn {
inline namespace ATTN_ABI {

namespace kernel {

using detail::RotaryTable;
using detail::Rotation;

template <class S>
ATTN_INLINE void store_first(const typename S::Packet& x, Index lanes, typename S::Scalar* to) {
  if (lanes >= S::width) {
    S::storeu(to, x);
  } else {
    alignas(64) typename S::Scalar values[S::width];
    S::store(values, x);
    for (Index w = 0; w < lanes; ++w) to[w] = values[w];
  }
}

// WHAT     (y₀, y₁) = (x₀ cos α − x₁ sin α, x₀ sin α + x₁ cos α) for each pair; features beyond `dims` are copied       // y: (d)
// TRAFFIC  a pass over the row in L1; the angles come from a table that all heads share, 2·dims
//          scalars a position
// EDGES    lanes beyond the last pair are computed on zeros and not stored
// NUMERICS both products are rounded, then their sum: the bits do not depend on the pairing, the
//          strides or the caller
template <class S, class T>
void rotate_row(const Rotation<typename S::Scalar>& rotation, const typename S::Scalar* angles,
                const T* from, Index stride, Index features, typename S::Scalar* to) {
  using Scalar = typename S::Scalar;
  const Index dims = rotation.dims;
  const Scalar* sines = angles + RotaryTable<Scalar>::half_of_row(dims);
  if (rotation.pairs == pairing::half_split) {
    const Index half = dims / 2;
    for (Index c = 0; c < half; c += S::width) {
      const Index lanes = std::min<Index>(half - c, S::width);
      const auto x0 = detail::load_strided<S>(from + c * stride, stride, lanes);
      const auto x1 = detail::load_strided<S>(from + (half + c) * stride, stride, lanes);
      const auto cosine = S::load(angles + c), sine = S::load(sines + c);
      store_first<S>(S::sub(S::mul(x0, cosine), S::mul(x1, sine)), lanes, to + c);
      store_first<S>(S::add(S::mul(x0, sine), S::mul(x1, cosine)), lanes, to + half + c);
    }
  } else if constexpr (S::width == 1) {
    for (Index c = 0; c < dims; c += 2) {
      const Scalar x0 = Scalar(from[c * stride]), x1 = Scalar(from[(c + 1) * stride]);
      to[c] = S::add(S::mul(x0, angles[c]), S::mul(x1, sines[c]));
      to[c + 1] = S::add(S::mul(x1, angles[c + 1]), S::mul(x0, sines[c + 1]));
    }
  } else {
    for (Index c = 0; c < dims; c += S::width) {
      const Index lanes = std::min<Index>(dims - c, S::width);
      const auto x = detail::load_strided<S>(from + c * stride, stride, lanes);
      alignas(64) Scalar values[S::width], partners[S::width];
      S::store(values, x);
      ATTN_UNROLL
      for (int w = 0; w < S::width; ++w) partners[w] = values[w ^ 1];
      const auto y =
          S::add(S::mul(x, S::load(angles + c)), S::mul(S::load(partners), S::load(sines + c)));
      store_first<S>(y, lanes, to + c);
    }
  }
  for (Index c = dims; c < features; ++c) to[c] = Scalar(from[c * stride]);
}

/// The same by the angles' negatives, from contiguous memory to another row: what turns a gradient
/// back. Half-split pairs change places, so that (x₁, x₀) are turned instead; interleaved ones have
/// their sines in the table with both signs.
template <class S>
void rotate_row_back(const Rotation<typename S::Scalar>& rotation, const typename S::Scalar* angles,
                     const typename S::Scalar* from, Index features, typename S::Scalar* to) {
  using Scalar = typename S::Scalar;
  const Index dims = rotation.dims, half = dims / 2;
  const Scalar* sines = angles + RotaryTable<Scalar>::half_of_row(dims);
  for (Index c = 0; c < half; ++c) {
    const bool split = rotation.pairs == pairing::half_split;
    const Index at = split ? c : 2 * c + 1, first = split ? c : 2 * c,
                second = split ? half + c : 2 * c + 1;
    const Scalar x0 = from[first], x1 = from[second], cosine = angles[at], sine = sines[at];
    to[first] = Scalar(Scalar(x0 * cosine) + Scalar(x1 * sine));
    to[second] = Scalar(Scalar(x1 * cosine) - Scalar(x0 * sine));
  }
  std::copy(from + dims, from + features, to + dims);
}

/// pack_keys with each key turned first: a panel's keys at a time, through `rotated`, panel × depth
/// scalars that stay in L1.
template <class S, class T, class Element>
void pack_rotated_keys(const Rotation<typename S::Scalar>& rotation, Index first_token,
                       Source<T> keys, Index block, KeyRange range, Index features, Index depth,
                       typename S::Scalar* rotated, Element* to) {
  using Scalar = typename S::Scalar;
  constexpr Index kPanel = TileSize<Scalar>::panel;
  for (Index panel = block + (range.begin - block) / kPanel * kPanel; panel < range.end;
       panel += kPanel) {
    const KeyRange held = intersect(range, {panel, panel + kPanel});
    for (Index j = held.begin; j < held.end; ++j) {
      rotate_row<S>(rotation, rotation.key.of(first_token + j, j), keys.token(j),
                    keys.feature_stride, features, rotated + (j - panel) * depth);
    }
    pack_keys<S>(Source<const Scalar>{rotated, depth, 1}, 0, {held.begin - panel, held.end - panel},
                 features, depth, to + (panel - block) * (depth / Factors<S, Element>::numbers));
  }
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
