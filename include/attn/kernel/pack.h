// attn/kernel/pack.h: strided storage → the panels and strips that the register tile reads, converted and transposed on the way.
// SPDX-License-Identifier: MIT
#pragma once

#include "tile_size.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     queries  →  strip of R rows:   element (i, c) at (c / 4)·4R + 4i + c % 4, times scale                // Q: (R, d_k)
//          keys     →  panels of C·W keys: element (c, j) at c·(C·W) + j                                        // K: (d_k, C·W)
//          values   →  panels of C·W features: element (j, c) at j·(C·W) + c                                    // V: (keys, C·W)
// PICTURE  keys, features contiguous:  W rows of W features are loaded, transposed in registers, stored as W columns
// TRAFFIC  each key and value is read once for each chunk of query rows (up to 1024); about 1 % of the chunk's products
// EDGES    features beyond d are zero up to the padded depth; keys beyond the range are zero up to whole panels. What lies
//          outside the range is not read.
// NUMERICS half and bfloat16 are converted exactly; scale is applied in the compute type

/// Tokens of one sequence and head in memory.
template <class T>
struct Source {
  const T* data;
  Index token_stride, feature_stride;

  const T* token(Index t) const { return data + t * token_stride; }
};

/// A packet from storage of another type.
template <class S, class T>
ATTN_INLINE typename S::Packet load_converted(const T* from) {
  if constexpr (std::is_same_v<T, typename S::Scalar>) {
    return S::loadu(from);
  } else {
    alignas(64) typename S::Scalar lanes[S::width];
    for (int w = 0; w < S::width; ++w) lanes[w] = typename S::Scalar(from[w]);
    return S::load(lanes);
  }
}

/// One query row into row i of a strip of R rows.
template <class S, class T>
void pack_query(const T* from, Index feature_stride, Index features, Index depth, const typename S::Scalar& scale, int i, int R,
                typename S::Scalar* strip) {
  using Scalar = typename S::Scalar;
  constexpr int kGroup = TileSize<Scalar>::depth;
  Scalar* to = strip + i * kGroup;
  const Index whole = features / kGroup * kGroup;
  for (Index c = 0; c < whole; c += kGroup, to += kGroup * R) {
    ATTN_UNROLL
    for (int t = 0; t < kGroup; ++t) to[t] = Scalar(from[(c + t) * feature_stride]) * scale;
  }
  for (Index c = whole; c < depth; ++c) {
    to[c - whole] = c < features ? Scalar(Scalar(from[c * feature_stride]) * scale) : Scalar(0);
  }
}

/// W×W elements, rows contiguous in memory, stored transposed.
template <class S, class T>
ATTN_INLINE void transpose_tile(const T* from, Index row_stride, typename S::Scalar* to, Index to_stride) {
  typename S::Packet tile[S::width];
  ATTN_UNROLL
  for (int w = 0; w < S::width; ++w) tile[w] = load_converted<S>(from + w * row_stride);
  S::transpose(tile);
  ATTN_UNROLL
  for (int w = 0; w < S::width; ++w) S::store(to + w * to_stride, tile[w]);
}

/// Keys [begin, end) of a block into its panels; `to` is the block's first panel, `block` the block's first key.
template <class S, class T>
void pack_keys(Source<T> keys, Index block, KeyRange range, Index features, Index depth, typename S::Scalar* to) {
  using Scalar = typename S::Scalar;
  constexpr Index kPanel = TileSize<Scalar>::panel;
  for (Index j = block + (range.begin - block) / kPanel * kPanel; j < range.end; j += kPanel) {
    Scalar* panel = to + (j - block) * depth;
    Index c = 0;
    if (range.contains({j, j + kPanel})) {
      if (keys.feature_stride == 1) {
        for (; c + S::width <= features; c += S::width) {
          for (Index w = 0; w < kPanel; w += S::width) {
            transpose_tile<S>(keys.token(j + w) + c, keys.token_stride, panel + c * kPanel + w, kPanel);
          }
        }
      } else if (keys.token_stride == 1) {
        for (; c < features; ++c) {
          for (Index w = 0; w < kPanel; w += S::width) {
            S::store(panel + c * kPanel + w, load_converted<S>(keys.token(j + w) + c * keys.feature_stride));
          }
        }
      }
    }
    const KeyRange held = intersect(range, {j, j + kPanel});
    for (; c < depth; ++c) {
      for (Index w = 0; w < kPanel; ++w) {
        const bool seen = c < features && held.begin <= j + w && j + w < held.end;
        panel[c * kPanel + w] = seen ? Scalar(keys.token(j + w)[c * keys.feature_stride]) : Scalar(0);
      }
    }
  }
}

/// Values [begin, end) of a block into feature panels of `rows` keys each; returns whether all of them are finite.
template <class S, class T>
bool pack_values(Source<T> values, Index block, KeyRange range, Index features, Index rows, typename S::Scalar* to) {
  using Scalar = typename S::Scalar;
  constexpr Index kPanel = TileSize<Scalar>::panel;
  const KeyRange panels{block + (range.begin - block) / kPanel * kPanel, block + round_up(range.end - block, kPanel)};
  const Index padded = round_up(features, kPanel);
  const auto place = [&](Index j, Index c) { return to + c / kPanel * rows * kPanel + (j - block) * kPanel + c % kPanel; };

  for (Index j = panels.begin; j < panels.end; ++j) {
    const bool seen = range.begin <= j && j < range.end;
    Index c = 0;
    if (seen && values.token_stride == 1 && values.feature_stride != 1) {
      if (j + S::width <= range.end) {  // features are far apart, keys side by side: W keys at once, transposed
        for (; c + S::width <= features; c += S::width) {
          transpose_tile<S>(values.token(j) + c * values.feature_stride, values.feature_stride, place(j, c), kPanel);
        }
        for (Index w = 0; w < S::width; ++w) {
          for (Index x = c; x < padded; ++x) {
            *place(j + w, x) = x < features ? Scalar(values.token(j + w)[x * values.feature_stride]) : Scalar(0);
          }
        }
        j += S::width - 1;
        continue;
      }
    } else if (seen && values.feature_stride == 1) {
      for (; c + S::width <= features; c += S::width) S::store(place(j, c), load_converted<S>(values.token(j) + c));
    }
    for (; c < padded; ++c) {
      *place(j, c) = seen && c < features ? Scalar(values.token(j)[c * values.feature_stride]) : Scalar(0);
    }
  }

  bool finite = true;
  for (Index c = 0; c < padded; c += kPanel) {
    const Scalar* panel = place(panels.begin, c);
    const Index count = (panels.end - panels.begin) * kPanel;
    bool all = true;
    for (Index n = 0; n < count; ++n) all &= detail::is_finite(panel[n]);
    finite &= all;
  }
  return finite;
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
