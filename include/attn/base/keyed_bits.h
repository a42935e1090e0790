// attn/base/keyed_bits.h: random bits as a function of where they are wanted: a key for each row,
// and 16 bits for each number of a row.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <utility>

#include "../types.h"
#include "simd.h"

ATTN_PACKET_WARNINGS_OFF

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// A key under another, for each number: one to one, all 64 bits mixed (the steps of splitmix64,
/// Steele et al. 2014).
constexpr std::uint64_t key_under(std::uint64_t key, std::uint64_t number) {
  std::uint64_t z = key + (number + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// WHAT     bits(n) of a row, 16 for each n ≥ 0:   x = w ^ key's lower half,           w = 16·(n / 32) + n % 16
//                                                 two multiplies mix it, between them the key's upper half is added
//                                                 bits = x's lower half where n % 32 < 16, its upper half else
// PICTURE  n      0 … 15 | 16 … 31 | 32 … 47 | 48 … 63      one x serves n and n + 16: lanes stay lanes, so that with 16 of
//          x of   w0…w15 |  upper  | w16…w31 |  upper       them one hash makes the bits of two packets
// WHY      ns a packet of scores read, masked and written, AVX-512 (AVX2): this 1.49 (1.07),
//          Philox4x32-10 of as many bits 3.95 (9.2), exp 1.35 (1.61), a copy 0.74 (0.35). The key
//          is mixed in full strength: it is made once a row
// EDGES    w counts 32 bits: what lies 2³³ numbers apart in a row shares its bits
struct KeyedBits {
  std::uint32_t lower, upper;  ///< of the key

  explicit KeyedBits(std::uint64_t key)
      : lower(static_cast<std::uint32_t>(key)), upper(static_cast<std::uint32_t>(key >> 32)) {}

  /// The definition, for one number; and for one in each lane of integers.
  std::uint32_t operator()(Index n) const { return (mixed(word(n)) >> (n & 16)) & 0xffffu; }
  /// Which of the numbers n, …, n + W − 1 have bits of at least `least`; n is a multiple of W.
  template <class S>
  ATTN_INLINE typename S::Mask at_least(std::uint32_t least, Index n) const {
    if constexpr (S::width == 1) {
      return (*this)(n) >= least;
    } else {
#if ATTN_VECTOR_TYPES
      return at_least<S>(least, mixed(words<S>(n)), int(n & 16));
#else
      alignas(64) typename S::Scalar bits[S::width];
      for (int w = 0; w < S::width; ++w) bits[w] = typename S::Scalar(int((*this)(n + w)));
      return S::less_equal(S::set(typename S::Scalar(int(least))), S::load(bits));
#endif
    }
  }
  /// The same of C packets; n is a multiple of C · W. Those of whole 32 numbers share their x.
  template <class S, std::size_t C>
  ATTN_INLINE void at_least(std::uint32_t least, Index n, typename S::Mask (&masks)[C]) const {
#if ATTN_VECTOR_TYPES
    if constexpr (S::width > 1 && int(C) * S::width % 32 == 0) {
      constexpr int kHalf = 16 / S::width;
      ATTN_UNROLL
      for (int v = 0; v < int(C); v += v % kHalf == kHalf - 1 ? kHalf + 1 : 1) {
        const auto x = mixed(words<S>(n + v * S::width));
        masks[v] = at_least<S>(least, x, 0);
        masks[v + kHalf] = at_least<S>(least, x, 16);
      }
      return;
    }
#endif
    ATTN_UNROLL
    for (int v = 0; v < int(C); ++v) masks[v] = at_least<S>(least, n + v * S::width);
  }

 private:
  static std::uint32_t word(Index n) {
    return static_cast<std::uint32_t>((n >> 5 << 4) + (n & 15));
  }
  /// T: std::uint32_t, or lanes of it.
  template <class T>
  ATTN_INLINE T mixed(T x) const {
    x ^= lower;
    x ^= x >> 16;
    x *= 0x21f0aaadu;
    x += upper;
    x ^= x >> 15;
    x *= 0x735a2d97u;
    x ^= x >> 15;
    return x;
  }
#if ATTN_VECTOR_TYPES
  /// As many as a packet has room for: a lane of doubles has both halves the same, so that a
  /// comparison of them is one of the lane.
  template <class S>
  using Words = integer_lanes_t<float, sizeof(typename S::Packet)>;
  template <class S, int... I>
  static ATTN_INLINE Words<S> words(std::uint32_t first, std::integer_sequence<int, I...>) {
    constexpr int kPerLane = int(sizeof(typename S::Scalar) / sizeof(std::uint32_t));
    return first + Words<S>{std::uint32_t(I / kPerLane)...};
  }
  template <class S>
  static ATTN_INLINE Words<S> words(Index n) {
    static_assert(16 % S::width == 0, "a packet of numbers is of one half of their words");
    constexpr int kCount = int(sizeof(typename S::Packet) / sizeof(std::uint32_t));
    return words<S>(word(n), std::make_integer_sequence<int, kCount>());
  }
  template <class S>
  static ATTN_INLINE typename S::Mask at_least(std::uint32_t least, const Words<S>& x, int shift) {
    using Signed =
        decltype(x < x);  // the bits are few: any comparison serves, and all targets have this
    const auto bits = reinterpret_cast<Signed>(Words<S>((x >> shift) & 0xffffu));
    return reinterpret_cast<typename S::Mask>(Signed(bits >= int(least)));
  }
#endif
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn

ATTN_PACKET_WARNINGS_ON
