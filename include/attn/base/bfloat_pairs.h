// attn/base/bfloat_pairs.h: pairs of bfloat16, which some processors multiply and add to a float in
// one instruction.
// SPDX-License-Identifier: MIT
#pragma once

#include "load.h"

ATTN_PACKET_WARNINGS_OFF

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Two neighbours along a sum: features c and c + 1 of a query or a key, the weights or values of
/// keys j and j + 1.
struct alignas(4) BfloatPair {
  Eigen::bfloat16 even, odd;
};

// WHAT     packets of 16 pairs, and of the floats that they are made of and added to
// NUMERICS accumulate() is two fused steps: c = fma(a.even, b.even, fma(a.odd, b.odd, c)), the odd
//          numbers first. Each rounds to the nearest float, ties to even, whatever the control
//          register says; denormal numbers count as zeros of their sign, as factors and as sums.
//          Numbers are rounded to bfloat16 in the same way (tests/bfloat_pairs_test.cpp)
// WHY      not a Simd: a pair is added to nothing and compared with nothing, its packets are only
//          factors. They travel in registers of floats, so that they are loaded, stored and
//          transposed as 32 bits
#if ATTN_BFLOAT_PAIRS
struct BfloatPairs {
  using S = Simd<float>;
  using Packet = typename S::Packet;

  static ATTN_INLINE Packet load(const BfloatPair* p) { return _mm512_loadu_ps(p); }
  static ATTN_INLINE void store(BfloatPair* p, const Packet& a) { _mm512_storeu_ps(p, a); }
  static ATTN_INLINE Packet set(const BfloatPair& pair) {
    int bits;
    std::memcpy(&bits, &pair, sizeof bits);
    return _mm512_castsi512_ps(_mm512_set1_epi32(bits));
  }

  /// c += a.even · b.even + a.odd · b.odd.
  static ATTN_INLINE void accumulate(const Packet& a, const Packet& b, Packet& c) {
#if defined(ATTN_MULTIPLY_ADD_PAIRS)
    ATTN_MULTIPLY_ADD_PAIRS(c, a, b);
#else
    c = _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
#endif
  }

  /// Each number rounded to bfloat16, still as floats.
  static ATTN_INLINE Packet round(const Packet& a) {
    return widen_words(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a)));
  }
  /// Pairs of the lanes of two packets; what they hold is bfloat16 already.
  static ATTN_INLINE Packet pair(const Packet& even, const Packet& odd) {
    const __m512i low = _mm512_maskz_srli_epi32(0xffff, _mm512_castps_si512(even), 16);
    return _mm512_castsi512_ps(_mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_castps_si512(odd)));
  }
  /// Pairs of neighbours among the lanes of two packets, rounded; of one, and zeros behind them.
  static ATTN_INLINE Packet round_side_by_side(const Packet (&a)[2]) {
    return reinterpret_cast<Packet>(_mm512_cvtne2ps_pbh(a[1], a[0]));
  }
  static ATTN_INLINE Packet round_side_by_side(const Packet (&a)[1]) {
    return _mm512_castsi512_ps(
        _mm512_zextsi256_si512(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a[0]))));
  }
  /// Pairs of neighbours in memory: 32 numbers, rounded where they are not bfloat16.
  template <class T>
  static ATTN_INLINE Packet load_numbers(const T* from) {
    if constexpr (std::is_same_v<T, Eigen::bfloat16>) {
      return _mm512_loadu_ps(from);
    } else {
      const Packet numbers[] = {load_converted<S>(from), load_converted<S>(from + S::width)};
      return round_side_by_side(numbers);
    }
  }
  /// One number, rounded as the instructions do: denormal ones become zeros.
  template <class T>
  static ATTN_INLINE Eigen::bfloat16 number(const T& x) {
    if constexpr (std::is_same_v<T, Eigen::bfloat16>) {
      return x;
    } else {
      return Eigen::bfloat16(S::first(round(S::set(float(x)))));
    }
  }

  /// A packet of floats to as many bfloat16, side by side, rounded; and from there.
  static ATTN_INLINE void store_rounded(Eigen::bfloat16* to, const Packet& a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a)));
  }
  static ATTN_INLINE Packet load_exact(const Eigen::bfloat16* from) {
    return load_converted<S>(from);
  }

  /// Of each pair only the numbers that are wanted, +0 for others.
  static ATTN_INLINE Packet masked(const Packet& pairs, std::uint32_t wanted) {
    return _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_castps_si512(pairs), _mm512_set1_epi32(int(wanted))));
  }

 private:
  static ATTN_INLINE Packet widen_words(__m256i words) {
    return _mm512_castsi512_ps(
        _mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, words), 16));
  }
};
#endif

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn

ATTN_PACKET_WARNINGS_ON
