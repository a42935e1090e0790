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
//                                                 two multiplications mix it, between them the key's upper half is added
//                                                 bits = x's lower half where n % 32 < 16, its upper half else; the first bit flipped
// PICTURE  n      0 … 15 | 16 … 31 | 32 … 47 | 48 … 63      one x serves n and n + 16: lanes stay lanes, so that with 16 of
//          x of   w0…w15 |  upper  | w16…w31 |  upper       them one hash makes the bits of two packets
// WHY      ns a packet of scores read, masked and written (Zen 4, AVX-512; AVX2): these bits 1.6;
//          0.95. A copy 0.55; 0.5. Philox4x32-10 took 2.6 times as long (AVX2: 8 times), 8 bits
//          instead of 16 0.9 times. The key is mixed in full strength: it is made once a row. The
//          first bit is flipped because vectors compare signed integers
// EDGES    w counts 32 bits: numbers 2³³ apart in a row share their bits
class KeyedBits {
 public:
  explicit KeyedBits(std::uint64_t key)
      : lower_(static_cast<std::uint32_t>(key)), upper_(static_cast<std::uint32_t>(key >> 32)) {}

  /// The definition.
  std::uint32_t operator()(Index n) const {
    return ((mixed(word(n)) >> (n & 16)) & 0xffffu) ^ 0x8000u;
  }

  /// Whether the bits of n, …, n + W − 1 are at least `least`, below 2¹⁶; n is a multiple of W.
  template <class S>
  ATTN_INLINE typename S::Mask at_least(std::uint32_t least, Index n) const {
    typename S::Mask mask[1];
    at_least<S>(least, n, mask);
    return mask[0];
  }
  /// The same of C packets; n is a multiple of C · W.
  template <class S, std::size_t C>
  ATTN_INLINE void at_least(std::uint32_t least, Index n, typename S::Mask (&mask)[C]) const {
    each<S, C>(least, n, [&](int v, const auto& answer) { mask[v] = mask_of<S>(answer); });
  }
  /// a[v] where they are, else b.
  template <class S, std::size_t C>
  ATTN_INLINE void select(std::uint32_t least, Index n, typename S::Packet (&a)[C],
                          const typename S::Packet& b) const {
    each<S, C>(least, n, [&](int v, const auto& answer) { a[v] = where<S>(answer, a[v], b); });
  }

 private:
  static std::uint32_t word(Index n) {
    return static_cast<std::uint32_t>((n >> 5 << 4) + (n & 15));
  }
  /// Of one number, or of one in each lane of integers.
  template <class T>
  ATTN_INLINE T mixed(T x) const {
    x ^= lower_;
    x ^= x >> 16;
    x *= 0x21f0aaadu;
    x += upper_;
    x ^= x >> 15;
    x *= 0x735a2d97u;
    x ^= x >> 15;
    return x;
  }

#if ATTN_VECTOR_TYPES
  /// Integers of 32 bits, as many as a packet has room for: both halves of a double the same, so
  /// that what is true of them is true of it.
  template <class S>
  using Words = integer_lanes_t<float, sizeof(typename S::Packet)>;
  template <class S>
  using Answers = decltype(Words<S>() < Words<S>());  ///< signed integers, all ones or zeros

  template <class S, int... I>
  static ATTN_INLINE Words<S> count_from(int first, std::integer_sequence<int, I...>) {
    constexpr int kPerLane = int(sizeof(typename S::Scalar) / sizeof(std::uint32_t));
    return Words<S>{std::uint32_t(first + I / kPerLane)...};
  }
  /// The words of n + v · W, …; those of n lie in one half of 16 with them.
  template <class S>
  ATTN_INLINE Words<S> mixed_words(Index n, int v) const {
    static_assert(16 % S::width == 0, "the numbers of a packet are of one half of their words");
    constexpr int kCount = int(sizeof(typename S::Packet) / sizeof(std::uint32_t));
    return mixed(word(n) + count_from<S>(v * S::width, std::make_integer_sequence<int, kCount>()));
  }
  /// The bits of a word come to its upper half.
  template <class S>
  static ATTN_INLINE Answers<S> at_least(int least, const Words<S>& x, int shift) {
    return reinterpret_cast<Answers<S>>(Words<S>(x << shift)) >= least;
  }
#endif

  /// Calls f(v, answer) of C packets: in which lanes the bits of n + v · W, … are at least `least`,
  /// as integers where the compiler has vectors of them, else as a mask.
  template <class S, std::size_t C, class F>
  ATTN_INLINE void each(std::uint32_t least, Index n, const F& f) const {
    constexpr int kPackets = int(C);
    if constexpr (S::width == 1) {
      for (int v = 0; v < kPackets; ++v) f(v, (*this)(n + v) >= least);
    } else {
#if ATTN_VECTOR_TYPES
      constexpr int kHalf = 16 / S::width;
      const int limit = static_cast<int>((least ^ 0x8000u) << 16);
      if constexpr (kPackets % (2 * kHalf) == 0) {
        for (int group = 0; group < kPackets; group += 2 * kHalf) {
          ATTN_UNROLL
          for (int v = 0; v < kHalf; ++v) {
            const auto x = mixed_words<S>(n + group * S::width, v);
            f(group + v, at_least<S>(limit, x, 16));
            f(group + v + kHalf, at_least<S>(limit, x, 0));
          }
        }
      } else {
        ATTN_UNROLL
        for (int v = 0; v < kPackets; ++v) {
          const Index first = n + v * S::width;
          f(v, at_least<S>(limit, mixed_words<S>(first, 0), 16 - int(first & 16)));
        }
      }
#else
      using Scalar = typename S::Scalar;
      for (int v = 0; v < kPackets; ++v) {
        alignas(64) Scalar bits[S::width];
        for (int w = 0; w < S::width; ++w) bits[w] = Scalar(int((*this)(n + v * S::width + w)));
        f(v, S::less_equal(S::set(Scalar(int(least))), S::load(bits)));
      }
#endif
    }
  }
  template <class S, class Answer>
  static ATTN_INLINE typename S::Mask mask_of(const Answer& answer) {
    if constexpr (std::is_same_v<Answer, typename S::Mask>) {
      return answer;
    } else {
      return reinterpret_cast<typename S::Mask>(answer);
    }
  }
  /// WHY  not by a mask: with AVX-512 g++ takes every one of them out of the mask register and back
  template <class S, class Answer>
  static ATTN_INLINE typename S::Packet where(const Answer& answer, const typename S::Packet& a,
                                              const typename S::Packet& b) {
    if constexpr (std::is_same_v<Answer, typename S::Mask>) {
      return S::select(answer, a, b);
    } else {
      return reinterpret_cast<typename S::Packet>(answer ? reinterpret_cast<Answer>(a)
                                                         : reinterpret_cast<Answer>(b));
    }
  }

  std::uint32_t lower_, upper_;  ///< halves of the key
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn

ATTN_PACKET_WARNINGS_ON
