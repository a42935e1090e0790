// attn/kernel/factors.h: what the tiles of the engine multiply: numbers by themselves, or bfloat16
// by pairs.
// SPDX-License-Identifier: MIT
#pragma once

#include "../base/asked.h"
#include "../base/bfloat_pairs.h"
#include "tile_size.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// A weight that is no weight: the pair is hidden. Only written where a hidden pair may meet a
/// value that is not finite.
template <class Scalar>
inline Scalar hidden_weight() {
  return Scalar(-1);
}

// WHAT     factors of type Element, each of so many `numbers` along the sum, multiplied into
//          packets of sums S:
//            load, set, accumulate   packets of factors, one in all lanes, c += a · b
//            accumulate_visible      the same without the products of hidden pairs, by value():
//                                    a hidden number's need not be there (of pairs: both's)
//            load_numbers, number    factors out of numbers in memory, along the sum
//            rounded, interleave     packets of numbers that came from T as they are multiplied, and
//                                    factors out of `numbers` of those, one behind the other along
//                                    the sum
//            scaled                  a finished sum times what is not folded into its factors
//            in(memory)              factors in scratch; numbers_of(factors): what they consist of
//            store_weights           a packet of weights to the factors of a row, from key j on;
//                                    load_weights. put_weights: packets of them, which are added by
//                                    lanes, as they will be multiplied, to as many sums, or to the
//                                    first of those
// WHY      the panels, strips and rows of weights of both lie alike, in factors: the engine is
//          written once
// NUMERICS the scalar itself: the scale is folded into queries, one rounding. Pairs: queries and
//          keys that are bfloat16 are multiplied as they are, sums are scaled; a weight is rounded
template <class S, class Element>
struct Factors {
  static_assert(std::is_same_v<typename S::Scalar, Element>);
  using Packet = typename S::Packet;
  using Scale = detail::Absent;
  static constexpr int numbers = 1;

  static ATTN_INLINE Packet load(const Element* p) { return S::load(p); }
  static ATTN_INLINE void store(Element* p, const Packet& a) { S::store(p, a); }
  static ATTN_INLINE Packet set(const Element& x) { return S::set(x); }
  static ATTN_INLINE void accumulate(const Packet& a, const Packet& b, Packet& c) {
    S::accumulate(a, b, c);
  }
  /// accumulate() of one factor in all lanes, where it lies.
  static ATTN_INLINE void accumulate_element(const Element& a, const Packet& b, Packet& c) {
    S::accumulate_element(a, b, c);
  }
  template <class Value>
  static ATTN_INLINE void accumulate_visible(const Element& weight, const Element& mark,
                                             const Value& value, Packet& c) {
    if (detail::equal(mark, hidden_weight<Element>())) return;
    c = S::fmadd(S::set(weight), value(), c);
  }
  static ATTN_INLINE const Packet& scaled(const Packet& sum, Scale) { return sum; }

  static Element* in(Element* memory) { return memory; }
  static Element* numbers_of(Element* factors) { return factors; }
  static ATTN_INLINE Packet load_weights(const Element* row, Index j) { return S::load(row + j); }
  static ATTN_INLINE void store_weights(Element* row, Index j, const Packet& p) {
    S::store(row + j, p);
  }
  template <std::size_t C>
  static ATTN_INLINE void put_weights(Element* row, Index j, const Packet (&p)[C], Packet* sums) {
    ATTN_UNROLL
    for (int v = 0; v < int(C); ++v) {
      sums[v] = S::add(sums[v], p[v]);
      S::store(row + j + v * S::width, p[v]);
    }
  }

  template <class T>
  static ATTN_INLINE Packet load_numbers(const T* from) {
    return detail::load_converted<S>(from);
  }
  template <class T>
  static Element number(const T& x) {
    return Element(x);
  }
  template <class T>
  static ATTN_INLINE const Packet& rounded(const Packet& x) {
    return x;
  }
  static ATTN_INLINE const Packet& interleave(const Packet* x) { return *x; }
};

#if ATTN_BFLOAT_PAIRS
template <class S>
struct Factors<S, detail::BfloatPair> : detail::BfloatPairs {
  using Number = Eigen::bfloat16;
  using Scale = float;
  static constexpr int numbers = 2;

  static ATTN_INLINE void accumulate_element(const detail::BfloatPair& a, const Packet& b,
                                             Packet& c) {
    accumulate(set(a), b, c);
  }
  template <class Value>
  static ATTN_INLINE void accumulate_visible(const detail::BfloatPair& weight,
                                             const detail::BfloatPair& mark, const Value& value,
                                             Packet& c) {
    const auto hidden = Number(hidden_weight<float>());
    const std::uint32_t wanted =
        (mark.even == hidden ? 0u : 0xffffu) | (mark.odd == hidden ? 0u : 0xffff0000u);
    accumulate(masked(set(weight), wanted), masked(value(), wanted), c);
  }
  static ATTN_INLINE Packet scaled(const Packet& sum, float scale) {
    return S::mul(sum, S::set(scale));
  }

  static detail::BfloatPair* in(float* memory) {
    return reinterpret_cast<detail::BfloatPair*>(memory);
  }
  static Number* numbers_of(detail::BfloatPair* factors) {
    return reinterpret_cast<Number*>(factors);
  }
  static ATTN_INLINE Packet load_weights(const float* row, Index j) {
    return load_exact(reinterpret_cast<const Number*>(row) + j);
  }
  static ATTN_INLINE void store_weights(float* row, Index j, const Packet& p) {
    store_rounded(reinterpret_cast<Number*>(row) + j, p);
  }
  template <std::size_t C>
  static ATTN_INLINE void put_weights(float* row, Index j, const Packet (&p)[C], Packet* sums) {
    const Packet pairs = round_side_by_side(p);
    if constexpr (C == 1) {
      store_rounded(reinterpret_cast<Number*>(row) + j, p[0]);
    } else {
      store(in(row) + j / numbers, pairs);
    }
    accumulate(pairs, set({Number(1), Number(1)}), sums[0]);
  }

  template <class T>
  static ATTN_INLINE Packet rounded(const Packet& x) {
    if constexpr (std::is_same_v<T, Number>) {
      return x;
    } else {
      return round(x);
    }
  }
  static ATTN_INLINE Packet interleave(const Packet* x) { return pair(x[0], x[1]); }
};
#endif

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
