// attn/kernel/pack.h: strided storage → the panels and strips that the register tile reads,
// converted and transposed on the way.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../base/load.h"
#include "tile_size.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     queries  →  strip of R rows:   element (i, c) at (c / 4)·4R + 4i + c % 4, times scale                // Q: (R, d_k)
//          keys     →  panels of C·W keys: element (c, j) at c·(C·W) + j                                        // K: (d_k, C·W)
//          values   →  panels of C·W features: element (j, c) at j·(C·W) + c                                    // V: (keys, C·W)
// PICTURE  keys, features contiguous: W rows of W features are loaded, transposed in registers,
//          stored as W columns
// TRAFFIC  each key and value is read once for each chunk of query rows (up to 1024); about 1 % of
//          the chunk's products
// EDGES    features beyond d are zero up to the padded depth; keys beyond the range are zero up to
//          whole packets of K and groups of 4 of V. What lies outside the range is not read.
// NUMERICS half and bfloat16 are converted exactly; scale is applied in the compute type

/// Tokens of one sequence and head in memory.
template <class T>
struct Source {
  const T* data;
  Index token_stride, feature_stride;

  const T* token(Index t) const { return data + t * token_stride; }
  Source from(Index t) const { return {token(t), token_stride, feature_stride}; }
};

/// One query row into row i of a strip of R rows.
template <class S, class T>
void pack_query(const T* from, Index feature_stride, Index features, Index depth,
                const typename S::Scalar& scale, Index i, Index R, typename S::Scalar* strip) {
  using Scalar = typename S::Scalar;
  constexpr int kGroup = TileSize<Scalar>::depth;
  Scalar* to = strip + i * kGroup;
  Index c = 0;
  if (feature_stride == 1) {
    // Group by group: packets cut into groups through memory wait for their own stores (6 % of
    // enc128 on Zen 5).
    for (; c + kGroup <= features; c += kGroup, to += kGroup * R) {
      Scalar group[std::size_t{kGroup}];  // read before the first is written: one packet
      ATTN_UNROLL
      for (int t = 0; t < kGroup; ++t) group[t] = Scalar(Scalar(from[c + t]) * scale);
      ATTN_UNROLL
      for (int t = 0; t < kGroup; ++t) to[t] = group[t];
    }
  }
  for (; c < depth; c += kGroup, to += kGroup * R) {
    for (Index t = 0; t < kGroup; ++t) {
      to[t] = c + t < features ? Scalar(Scalar(from[(c + t) * feature_stride]) * scale) : Scalar(0);
    }
  }
}

/// Query rows from[0], …, from[rows − 1] into a strip.
template <class S, class T>
void pack_queries(const T* const* from, Index feature_stride, Index features, Index depth,
                  const typename S::Scalar& scale, Index rows, typename S::Scalar* strip) {
  constexpr Index kGroup = TileSize<typename S::Scalar>::depth;
  Index i = 0;
  if constexpr (S::width >= kGroup) {
    // A packet of each of kTogether rows holds kTogether groups, which change places: whole packets
    // of the strip.
    constexpr Index kTogether = S::width / kGroup;
    const Index whole = feature_stride == 1 ? features / S::width * S::width : 0;
    for (; whole > 0 && i + kTogether <= rows; i += kTogether) {
      typename S::Scalar* to = strip + i * kGroup;
      for (Index c = 0; c < whole; c += S::width) {
        typename S::Packet packets[std::size_t{kTogether}];
        ATTN_UNROLL
        for (Index t = 0; t < kTogether; ++t)
          packets[t] = S::mul(detail::load_converted<S>(from[i + t] + c), S::set(scale));
        S::template transpose_units<kGroup>(packets);
        ATTN_UNROLL
        for (Index t = 0; t < kTogether; ++t, to += kGroup * rows) S::storeu(to, packets[t]);
      }
      for (Index t = 0; t < kTogether && whole < depth; ++t) {
        pack_query<S>(from[i + t] + whole, 1, features - whole, depth - whole, scale, i + t, rows,
                      strip + whole * rows);
      }
    }
  }
  for (; i < rows; ++i)
    pack_query<S>(from[i], feature_stride, features, depth, scale, i, rows, strip);
}

/// Tiles of W rows × W contiguous elements, one after the other along the rows, each handed to
/// put(c, packets); returns the element where whole tiles end. What lies `ahead` elements behind
/// them is read next and asked for; 0: nothing is.
/// WHY  rows lie a token apart, too far for hardware to follow. Where nothing follows, asking took
///      12 % of tiny (Zen 5).
template <class S, class T, class Put>
ATTN_INLINE Index each_tile(const T* from, Index row_stride, Index features, Index ahead,
                            const Put& put) {
  Index c = 0;
  for (; c + S::width <= features; c += S::width, from += S::width) {
    if (ahead != 0) {
      ATTN_UNROLL
      for (int w = 0; w < S::width; ++w) S::prefetch(from + ahead + w * row_stride);
    }
    typename S::Packet rows[S::width];
    ATTN_UNROLL
    for (int w = 0; w < S::width; ++w) rows[w] = detail::load_converted<S>(from + w * row_stride);
    put(c, rows);
  }
  return c;
}
template <class S>
ATTN_INLINE void store_rows(const typename S::Packet (&rows)[S::width], typename S::Scalar* to,
                            Index stride) {
  ATTN_UNROLL
  for (int w = 0; w < S::width; ++w) S::store(to + w * stride, rows[w]);
}

/// Keys [begin, end) of a block into its panels; `to` is the block's first panel, `block` the
/// block's first key.
template <class S, class T>
void pack_keys(Source<T> keys, Index block, KeyRange range, Index features, Index depth,
               typename S::Scalar* to) {
  using Scalar = typename S::Scalar;
  constexpr Index kPanel = TileSize<Scalar>::panel;
  for (Index j = block + (range.begin - block) / kPanel * kPanel; j < range.end; j += kPanel) {
    Scalar* panel = to + (j - block) * depth;
    // W keys at a time: one column of packets of the panel. A second one without a key is not read
    // (dot_products.h).
    const Index held = TileSize<Scalar>::packets == 2 ? std::min(range.end - j, kPanel) : kPanel;
    for (Index w = 0; w < held; w += S::width) {
      const Index first = std::max<Index>(range.begin - j - w, 0),
                  last = std::min<Index>(range.end - j - w, S::width);
      Scalar* column = panel + w;
      const T* from = keys.token(j + w);
      Index c = 0;
      if (first == 0 && last == S::width) {
        if (keys.feature_stride == 1) {
          const auto put = [&](Index at, typename S::Packet(&rows)[S::width]) {
            S::transpose(rows);
            store_rows<S>(rows, column + at * kPanel, kPanel);
          };
          const Index stride = keys.token_stride;
          const Index ahead = j + kPanel < range.end ? kPanel * stride : 0;
          c = each_tile<S>(from, stride, features, ahead, put);
        }
      }
      if (keys.feature_stride == 1) {
        // What is left, of features or of keys: zeros stand for those that are not there.
        for (; c < features; c += S::width) {
          typename S::Packet rows[S::width];
          for (int x = 0; x < S::width; ++x) {
            rows[x] =
                first <= x && x < last
                    ? detail::load_strided<S>(from + x * keys.token_stride + c, 1, features - c)
                    : S::set(Scalar(0));
          }
          S::transpose(rows);
          for (Index t = 0; t < S::width && c + t < depth; ++t)
            S::store(column + (c + t) * kPanel, rows[t]);
        }
      } else if (keys.token_stride == 1 && first == 0) {
        for (; c < features; ++c)
          S::store(column + c * kPanel,
                   detail::load_strided<S>(from + c * keys.feature_stride, 1, last));
      }
      for (; c < depth; ++c) {
        S::store(column + c * kPanel, S::set(Scalar(0)));
        if (c >= features) continue;
        for (Index x = first; x < last; ++x)
          column[c * kPanel + x] = Scalar(from[x * keys.token_stride + c * keys.feature_stride]);
      }
    }
  }
}

/// Whether all packets seen were finite, by their exponents: no comparison that -ffast-math could
/// fold away.
template <class S>
class FiniteCheck {
 public:
  ATTN_INLINE void see(const typename S::Packet& x) {
    if constexpr (S::width > 1) {
      largest_ = S::max(largest_, S::exponent_bits(x));
    } else {
      finite_ &= detail::is_finite(x);
    }
  }
  bool finite() const { return finite_ && detail::is_finite(S::reduce_max(largest_)); }

 private:
  typename S::Packet largest_ = S::set(typename S::Scalar(0));
  bool finite_ = true;
};

/// Zeros in the last panel's packets that hold no feature.
template <class S>
void clear_values_behind(KeyRange panels, Index features, Index rows, typename S::Scalar* to) {
  using Scalar = typename S::Scalar;
  constexpr Index kPanel = TileSize<Scalar>::panel;
  for (Index c = round_up(features, S::width); c < round_up(features, kPanel); c += S::width) {
    for (Index j = panels.begin; j < panels.end; ++j)
      S::store(to + c / kPanel * kPanel * rows + j * kPanel + c % kPanel, S::set(Scalar(0)));
  }
}

/// Values [begin, end) of a block into feature panels of `rows` keys each; returns whether all of
/// them are finite.
template <class S, class T>
bool pack_values(Source<T> values, Index block, KeyRange range, Index features, Index rows,
                 typename S::Scalar* to) {
  using Scalar = typename S::Scalar;
  constexpr Index kPanel = TileSize<Scalar>::panel;
  // From the block's first key; as far as a run of keys may reach.
  const KeyRange panels{(range.begin - block) / kPanel * kPanel,
                        round_up(range.end - block, TileSize<Scalar>::depth)};
  FiniteCheck<S> check;
  // W keys at a time, so that whole rows of V are read together.
  for (Index j = panels.begin; j < panels.end; j += S::width) {
    const bool whole = range.contains({block + j, block + j + S::width});
    const T* const from = values.token(block + j);
    const auto tile = [&](Index c) {
      return to + c / kPanel * kPanel * rows + j * kPanel + c % kPanel;
    };
    Index c = 0;
    if (whole && values.feature_stride == 1) {
      const auto put = [&](Index at, const typename S::Packet(&packets)[S::width]) {
        ATTN_UNROLL
        for (int w = 0; w < S::width; ++w) check.see(packets[w]);
        store_rows<S>(packets, tile(at), kPanel);
      };
      const Index stride = values.token_stride;
      const Index ahead = block + j + kPanel < range.end ? kPanel * stride : 0;
      c = each_tile<S>(from, stride, features, ahead, put);
    }
    for (; c < features; c += S::width) {
      const T* const first = from + c * values.feature_stride;
      const Index held = std::min<Index>(features - c, S::width);
      if (values.token_stride == 1 && range.begin <= block + j) {
        const Index there = range.end - (block + j);
        typename S::Packet packets[S::width];
        ATTN_UNROLL
        for (int w = 0; w < S::width; ++w) {
          packets[w] = w < held && there > 0
                           ? detail::load_strided<S>(first + w * values.feature_stride, 1, there)
                           : S::set(Scalar(0));
          check.see(packets[w]);
        }
        S::transpose(packets);
        for (Index w = 0; w < S::width && j + w < panels.end; ++w)
          S::store(tile(c) + w * kPanel, packets[w]);
        continue;
      }
      for (Index w = 0; w < S::width && j + w < panels.end; ++w) {
        const bool seen = range.begin <= block + j + w && block + j + w < range.end;
        const auto packet = seen ? detail::load_strided<S>(first + w * values.token_stride,
                                                           values.feature_stride, held)
                                 : S::set(Scalar(0));
        check.see(packet);
        S::store(tile(c) + w * kPanel, packet);
      }
    }
  }
  // A last panel is read whole unless one packet suffices.
  if constexpr (TileSize<Scalar>::packets > 2) clear_values_behind<S>(panels, features, rows, to);
  return check.finite();
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
