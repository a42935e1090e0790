// attn/detail/transpose.h: W packets of W lanes, rows become columns, by log2 W stages of two-packet shuffles.
// SPDX-License-Identifier: MIT
//
// WHY  Eigen 3.4 transposes 16 × 16 floats by some 190 shuffles, most of them between 128-bit lanes; 64 suffice. Decoding, where
//      keys are transposed as they come from memory, read 13 GB/s of K with Eigen's and 30 with these (one Zen 5 core).
#pragma once

#include <utility>

#include "config.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

#if ATTN_VECTOR_TYPES

/// How the lanes of a packet fall into parts of 128 bits, within which most shuffles work.
template <class Scalar, int Width>
struct PacketParts {
  static constexpr int lanes = 16 / int(sizeof(Scalar));  ///< of one part
  static constexpr int count = Width / lanes;

  /// Within each part: units of `Unit` lanes alternately from a and b, taken from the part's lower or upper half.
  template <int Unit, int Half>
  static constexpr int interleaved(int i) {
    const int lane = i % lanes;
    return i - lane + Half * lanes / 2 + lane / (2 * Unit) * Unit + lane % Unit +
           (lane / Unit % 2 == 1 ? Width : 0);
  }
  /// The even (or odd) parts of a, then those of b.
  template <int Odd>
  static constexpr int alternate(int i) {
    const int part = i / lanes;
    return (2 * (part % (count / 2)) + Odd) * lanes + i % lanes + (part < count / 2 ? 0 : Width);
  }
};

template <class Scalar, int Unit, int Half, class Packet, int... I>
ATTN_INLINE Packet interleave(const Packet& a, const Packet& b, std::integer_sequence<int, I...>) {
  using Parts = PacketParts<Scalar, int(sizeof...(I))>;
  return ATTN_SHUFFLE(Packet, Scalar, a, b, (Parts::template interleaved<Unit, Half>(I))...);
}
template <class Scalar, int Odd, class Packet, int... I>
ATTN_INLINE Packet alternate(const Packet& a, const Packet& b, std::integer_sequence<int, I...>) {
  using Parts = PacketParts<Scalar, int(sizeof...(I))>;
  return ATTN_SHUFFLE(Packet, Scalar, a, b, (Parts::template alternate<Odd>(I))...);
}

// First each part is transposed by itself, in groups of as many rows as a part has lanes: packet k of group i then holds, in part
// L, column lanes·L + k of those rows. Then the parts change places.
template <class Scalar, int Width, class Packet>
ATTN_INLINE void transpose(Packet (&rows)[Width]) {
  using Parts = PacketParts<Scalar, Width>;
  constexpr std::make_integer_sequence<int, Width> all{};
  constexpr int kLanes = Parts::lanes;
  Packet t[Width];
  ATTN_UNROLL
  for (int i = 0; i < Width; i += 2) {
    t[i] = interleave<Scalar, 1, 0>(rows[i], rows[i + 1], all);
    t[i + 1] = interleave<Scalar, 1, 1>(rows[i], rows[i + 1], all);
  }
  if constexpr (kLanes == 4) {
    ATTN_UNROLL
    for (int i = 0; i < Width; i += 4) {
      const Packet a = t[i], b = t[i + 1], c = t[i + 2], d = t[i + 3];
      t[i] = interleave<Scalar, 2, 0>(a, c, all);
      t[i + 1] = interleave<Scalar, 2, 1>(a, c, all);
      t[i + 2] = interleave<Scalar, 2, 0>(b, d, all);
      t[i + 3] = interleave<Scalar, 2, 1>(b, d, all);
    }
  }
  ATTN_UNROLL
  for (int k = 0; k < kLanes; ++k) {
    if constexpr (Parts::count == 1) {
      rows[k] = t[k];
    } else if constexpr (Parts::count == 2) {
      rows[k] = alternate<Scalar, 0>(t[k], t[kLanes + k], all);
      rows[kLanes + k] = alternate<Scalar, 1>(t[k], t[kLanes + k], all);
    } else {
      static_assert(Parts::count == 4, "packets are of 128, 256 or 512 bits");
      const Packet even = alternate<Scalar, 0>(t[k], t[kLanes + k], all);
      const Packet odd = alternate<Scalar, 1>(t[k], t[kLanes + k], all);
      const Packet even2 = alternate<Scalar, 0>(t[2 * kLanes + k], t[3 * kLanes + k], all);
      const Packet odd2 = alternate<Scalar, 1>(t[2 * kLanes + k], t[3 * kLanes + k], all);
      rows[k] = alternate<Scalar, 0>(even, even2, all);
      rows[kLanes + k] = alternate<Scalar, 0>(odd, odd2, all);
      rows[2 * kLanes + k] = alternate<Scalar, 1>(even, even2, all);
      rows[3 * kLanes + k] = alternate<Scalar, 1>(odd, odd2, all);
    }
  }
}

#endif

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
