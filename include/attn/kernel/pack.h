// attn/kernel/pack.h: strided storage → the panels and strips that the register tile reads,
// converted and transposed on the way.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "factors.h"

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
//          Pairs of bfloat16 lie as numbers do, two features of a query or a key, two keys of V in
//          the place of one: pair (c / 2, j) of K at c / 2·(C·W) + j
// NUMERICS half and bfloat16 are converted exactly; scale is applied in the compute type. To pairs
//          what is not bfloat16 is rounded, and no scale applied

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

#if ATTN_BFLOAT_PAIRS
/// The same as pairs.
template <class S, class T>
void pack_query(const T* from, Index feature_stride, Index features, Index depth, float, Index i,
                Index R, detail::BfloatPair* strip) {
  using F = Factors<S, detail::BfloatPair>;
  constexpr Index kGroup = TileSize<float>::depth, kTogether = S::width * F::numbers;
  Eigen::bfloat16* to = F::numbers_of(strip) + i * kGroup;
  Index c = 0;
  if (feature_stride == 1) {
    for (; c + kTogether <= features; c += kTogether) {
      detail::BfloatPair pairs[S::width];
      F::store(pairs, F::load_numbers(from + c));
      ATTN_UNROLL
      for (Index t = 0; t < kTogether; t += kGroup, to += kGroup * R)
        std::memcpy(to, F::numbers_of(pairs) + t, kGroup * sizeof *to);
    }
  }
  for (; c < depth; c += kGroup, to += kGroup * R) {
    for (Index t = 0; t < kGroup; ++t)
      to[t] = F::number(c + t < features ? from[(c + t) * feature_stride] : T(0));
  }
}
template <class S, class T>
void pack_queries(const T* const* from, Index feature_stride, Index features, Index depth,
                  float scale, Index rows, detail::BfloatPair* strip) {
  for (Index i = 0; i < rows; ++i)
    pack_query<S>(from[i], feature_stride, features, depth, scale, i, rows, strip);
}
#endif

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

/// Tiles of W rows × W contiguous factors, one after the other along the rows, each handed to
/// put(c, packets); returns the number where whole tiles end. What lies `ahead` elements behind
/// them is read next and asked for; 0: nothing is.
/// WHY  rows lie a token apart, too far for hardware to follow. Where nothing follows, asking took
///      12 % of tiny (Zen 5).
template <class S, class Element, class T, class Put>
ATTN_INLINE Index each_tile(const T* from, Index row_stride, Index features, Index ahead,
                            const Put& put) {
  using F = Factors<S, Element>;
  constexpr Index kNumbers = S::width * F::numbers;
  Index c = 0;
  for (; c + kNumbers <= features; c += kNumbers, from += kNumbers) {
    if (ahead != 0) {
      ATTN_UNROLL
      for (int w = 0; w < S::width; ++w) S::prefetch(from + ahead + w * row_stride);
    }
    typename S::Packet rows[S::width];
    ATTN_UNROLL
    for (int w = 0; w < S::width; ++w) rows[w] = F::load_numbers(from + w * row_stride);
    put(c, rows);
  }
  return c;
}
/// W rows of factors.
template <class S, class Element>
ATTN_INLINE void store_rows(const typename S::Packet (&rows)[S::width], Element* to, Index stride) {
  ATTN_UNROLL
  for (int w = 0; w < S::width; ++w) Factors<S, Element>::store(to + w * stride, rows[w]);
}
/// W rows of numbers as rows of factors along the columns.
template <class S, class Element>
ATTN_INLINE void interleave_rows(const typename S::Packet (&rows)[S::width], Element* to,
                                 Index stride) {
  using F = Factors<S, Element>;
  ATTN_UNROLL
  for (int w = 0; w < S::width; w += F::numbers)
    F::store(to + w / F::numbers * stride, F::interleave(rows + w));
}

/// Features [c, depth) of W keys into a column of a panel. Only the keys of `there` are read, as far
/// as they have features; zeros stand for the rest.
template <class S, class T>
void transpose_rest(Source<T> keys, KeyRange there, Index c, Index features, Index depth,
                    typename S::Scalar* column) {
  constexpr Index kPanel = TileSize<typename S::Scalar>::panel;
  for (; c < depth; c += S::width) {
    typename S::Packet rows[S::width];
    for (int x = 0; x < S::width; ++x) {
      rows[x] = there.begin <= x && x < there.end && c < features
                    ? detail::load_strided<S>(keys.token(x) + c, 1, features - c)
                    : S::set(typename S::Scalar(0));
    }
    S::transpose(rows);
    for (Index t = 0; t < S::width && c + t < depth; ++t)
      S::store(column + (c + t) * kPanel, rows[t]);
  }
}

/// Keys [begin, end) of a block into its panels; `to` is the block's first panel, `block` the
/// block's first key.
template <class S, class T, class Element>
void pack_keys(Source<T> keys, Index block, KeyRange range, Index features, Index depth,
               Element* to) {
  using Scalar = typename S::Scalar;
  using F = Factors<S, Element>;
  constexpr Index kPanel = TileSize<Scalar>::panel;
  for (Index j = block + (range.begin - block) / kPanel * kPanel; j < range.end; j += kPanel) {
    Element* panel = to + (j - block) * (depth / F::numbers);
    // W keys at a time: one column of packets of the panel. A second one without a key is not read
    // (dot_products.h).
    const Index held = TileSize<Scalar>::packets == 2 ? std::min(range.end - j, kPanel) : kPanel;
    for (Index w = 0; w < held; w += S::width) {
      const Index first = std::max<Index>(range.begin - j - w, 0),
                  last = std::min<Index>(range.end - j - w, S::width);
      Element* const column = panel + w;
      const auto at = [&](Index c) { return column + c / F::numbers * kPanel; };
      const T* from = keys.token(j + w);
      Index c = 0;
      if (first == 0 && last == S::width) {
        if (keys.feature_stride == 1) {
          const auto put = [&](Index first_feature, typename S::Packet(&rows)[S::width]) {
            S::transpose(rows);
            store_rows<S>(rows, at(first_feature), kPanel);
          };
          const Index stride = keys.token_stride;
          const Index ahead = j + kPanel < range.end ? kPanel * stride : 0;
          c = each_tile<S, Element>(from, stride, features, ahead, put);
        }
      }
      if (keys.feature_stride == 1) {
        if constexpr (F::numbers == 1) {
          transpose_rest<S>(Source<T>{from, keys.token_stride, 1}, {first, last}, c, features,
                            depth, column);
          c = depth;
        }
      } else if (keys.token_stride == 1 && first == 0) {
        for (; c + F::numbers <= features; c += F::numbers) {
          typename S::Packet numbers[std::size_t{F::numbers}];
          ATTN_UNROLL
          for (Index t = 0; t < F::numbers; ++t)
            numbers[t] = F::template rounded<std::remove_const_t<T>>(
                detail::load_strided<S>(from + (c + t) * keys.feature_stride, 1, last));
          F::store(at(c), F::interleave(numbers));
        }
      }
      for (; c < depth; c += F::numbers) {
        F::store(at(c), S::set(Scalar(0)));
        for (Index t = 0; t < F::numbers && c + t < features; ++t) {
          for (Index x = first; x < last; ++x)
            F::numbers_of(at(c))[x * F::numbers + t] =
                F::number(from[x * keys.token_stride + (c + t) * keys.feature_stride]);
        }
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

/// interleave_rows() of `count` tokens in memory, of a packet of features at most. Only the tokens
/// of `there` are read, through seen(packet); the others are zeros.
template <class S, class T, class Seen, class Element>
void interleave_tokens(Source<T> tokens, KeyRange there, Index count, Index features,
                       const Seen& seen, Element* to, Index stride) {
  using F = Factors<S, Element>;
  for (Index w = 0; w < count; w += F::numbers, to += stride) {
    typename S::Packet numbers[std::size_t{F::numbers}];
    for (Index t = 0; t < F::numbers; ++t) {
      numbers[t] =
          there.begin <= w + t && w + t < there.end
              ? seen(detail::load_strided<S>(tokens.token(w + t), tokens.feature_stride, features))
              : S::set(typename S::Scalar(0));
    }
    F::store(to, F::interleave(numbers));
  }
}

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
template <class S, class T, class Element>
bool pack_values(Source<T> values, Index block, KeyRange range, Index features, Index rows,
                 Element* to) {
  using Scalar = typename S::Scalar;
  using Packet = typename S::Packet;
  using F = Factors<S, Element>;
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
      return to + (c / kPanel * rows + j) / F::numbers * kPanel + c % kPanel;
    };
    const auto seen = [&check](const Packet& number) {
      const Packet x = F::template rounded<std::remove_const_t<T>>(number);
      check.see(x);
      return x;
    };
    Index c = 0;
    if (whole && values.feature_stride == 1) {
      const auto put = [&](Index at, Packet(&packets)[S::width]) {
        ATTN_UNROLL
        for (int w = 0; w < S::width; ++w) packets[w] = seen(packets[w]);
        interleave_rows<S>(packets, tile(at), kPanel);
      };
      const Index stride = values.token_stride;
      const Index ahead = block + j + kPanel < range.end ? kPanel * stride : 0;
      c = each_tile<S, Scalar>(from, stride, features, ahead, put);
    }
    for (; c < features; c += S::width) {
      const T* const first = from + c * values.feature_stride;
      const Index held = std::min<Index>(features - c, S::width);
      if (values.token_stride == 1 && range.begin <= block + j) {
        const Index there = range.end - (block + j);
        Packet packets[S::width];
        ATTN_UNROLL
        for (int w = 0; w < S::width; ++w) {
          packets[w] =
              w < held && there > 0
                  ? seen(detail::load_strided<S>(first + w * values.feature_stride, 1, there))
                  : S::set(Scalar(0));
        }
        S::transpose(packets);
        for (Index w = 0; w < S::width && j + w < panels.end; w += F::numbers)
          F::store(tile(c) + w / F::numbers * kPanel, F::interleave(packets + w));
        continue;
      }
      interleave_tokens<S>(Source<T>{first, values.token_stride, values.feature_stride},
                           {range.begin - block - j, range.end - block - j},
                           std::min<Index>(S::width, panels.end - j), held, seen, tile(c), kPanel);
    }
  }
  // A last panel is read whole unless one packet suffices.
  if constexpr (TileSize<Scalar>::packets > 2) clear_values_behind<S>(panels, features, rows, to);
  return check.finite();
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
