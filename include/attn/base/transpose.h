// attn/base/transpose.h: W packets of W lanes, by log2 W stages of two-packet shuffles: rows become
// columns, or one lane each.
// SPDX-License-Identifier: MIT
//
// WHY  Eigen 3.4 transposes 16 × 16 floats by some 190 shuffles, most of them between 128-bit
//      lanes; 64 suffice. Decoding, where keys are transposed as they come from memory, read 13
//      GB/s of K with Eigen's and 30 with these (one Zen 5 core).
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

  /// Within each part: units of `Unit` lanes alternately from a and b, taken from the part's lower
  /// or upper half.
  template <int Unit, int Half>
  static constexpr int interleaved(int i) {
    const int lane = i % lanes;
    return i - lane + Half * lanes / 2 + lane / (2 * Unit) * Unit + lane % Unit +
           (lane / Unit % 2 == 1 ? Width : 0);
  }
  /// The even (or odd) units of `Unit` lanes of a, then those of b.
  template <int Odd, int Unit = lanes>
  static constexpr int alternate(int i) {
    const int unit = i / Unit, half = Width / Unit / 2;
    return (2 * (unit % half) + Odd) * Unit + i % Unit + (unit < half ? 0 : Width);
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
template <class Scalar, int Odd, int Unit, class Packet, int... I>
ATTN_INLINE Packet alternate_units(const Packet& a, const Packet& b,
                                   std::integer_sequence<int, I...>) {
  using Parts = PacketParts<Scalar, int(sizeof...(I))>;
  return ATTN_SHUFFLE(Packet, Scalar, a, b, (Parts::template alternate<Odd, Unit>(I))...);
}

// First each part is transposed by itself, in groups of as many rows as a part has lanes: packet k
// of group i then holds, in part L, column lanes·L + k of those rows. Then the parts change places.
template <class Scalar, int Width, class Packet>
ATTN_INLINE void transpose(Packet (&rows)[std::size_t{Width}]) {
  using Parts = PacketParts<Scalar, Width>;
  constexpr std::make_integer_sequence<int, Width> all{};
  constexpr int kLanes = Parts::lanes;
  Packet t[std::size_t{Width}];
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

/// As many packets as a packet has units of `Unit` lanes: unit u of packet i becomes unit i of
/// packet u.
template <class Scalar, int Unit, int Width, class Packet>
ATTN_INLINE void transpose_units(Packet (&rows)[std::size_t{Width / Unit}]) {
  constexpr int Count = Width / Unit;
  static_assert(Count * Unit == Width && (Count == 1 || Count == 2 || Count == 4));
  constexpr std::make_integer_sequence<int, Width> all{};
  if constexpr (Count >= 2) {
    Packet t[std::size_t{Count}];
    ATTN_UNROLL
    for (int i = 0; i < Count; i += 2) {
      t[i] = alternate_units<Scalar, 0, Unit>(rows[i], rows[i + 1], all);
      t[i + 1] = alternate_units<Scalar, 1, Unit>(rows[i], rows[i + 1], all);
    }
    ATTN_UNROLL
    for (int i = 0; i < Count; ++i) rows[i] = t[i];
  }
  if constexpr (Count == 4) {
    const Packet even = rows[0], odd = rows[1], even2 = rows[2], odd2 = rows[3];
    rows[0] = alternate_units<Scalar, 0, Unit>(even, even2, all);
    rows[1] = alternate_units<Scalar, 0, Unit>(odd, odd2, all);
    rows[2] = alternate_units<Scalar, 1, Unit>(even, even2, all);
    rows[3] = alternate_units<Scalar, 1, Unit>(odd, odd2, all);
  }
}

/// Two packets, each of which stands for as many rows as a unit has lanes, become one: op of the
/// halves of each part.
template <class Scalar, int Unit, class Packet, class Op, class Lanes>
ATTN_INLINE Packet fold_halves(const Packet& a, const Packet& b, const Op& op, Lanes all) {
  return op(interleave<Scalar, Unit, 0>(a, b, all), interleave<Scalar, Unit, 1>(a, b, all));
}
/// The same with whole parts.
template <class Scalar, class Packet, class Op, class Lanes>
ATTN_INLINE Packet fold_parts(const Packet& a, const Packet& b, const Op& op, Lanes all) {
  return op(alternate<Scalar, 0>(a, b, all), alternate<Scalar, 1>(a, b, all));
}

// Lane n of the result is op over all lanes of row(n), n < rows ≤ W; what the others hold is no
// matter. Every row in one order, whatever the number of rows: the halves of each part, then within
// them, then the parts.
// WHY  each stage halves the packets: 30 shuffles and 15 op for 16 rows of 16, where one row by
//      itself takes 4 and 4, one waiting for the other, and its number has to be put beside those
//      of the other rows
template <class Scalar, int Width, class Packet, class Row, class Op>
ATTN_INLINE Packet reduce_rows(int rows, const Row& row, const Op& op) {
  using Parts = PacketParts<Scalar, Width>;
  constexpr std::make_integer_sequence<int, Width> all{};
  constexpr int kLanes = Parts::lanes;
  Packet t[Parts::count];
  ATTN_UNROLL
  for (int g = 0; g < Parts::count; ++g) {
    const int first = g * kLanes;
    if (g > 0 && first >= rows) {
      t[g] = t[0];
      continue;
    }
    Packet a[std::size_t{kLanes}];
    if (first + kLanes <= rows) {
      ATTN_UNROLL
      for (int i = 0; i < kLanes; ++i) a[i] = row(first + i);
    } else {
      ATTN_UNROLL
      for (int i = 0; i < kLanes; ++i) a[i] = row(first + i < rows ? first + i : rows - 1);
    }
    t[g] = fold_halves<Scalar, 1>(a[0], a[1], op, all);
    if constexpr (kLanes == 4) {
      const Packet u = fold_halves<Scalar, 1>(a[2], a[3], op, all);
      t[g] = fold_halves<Scalar, 2>(t[g], u, op, all);
    }
  }
  if constexpr (Parts::count == 4) {
    const Packet u = fold_parts<Scalar>(t[0], t[1], op, all);
    return fold_parts<Scalar>(u, fold_parts<Scalar>(t[2], t[3], op, all), op, all);
  } else if constexpr (Parts::count == 2) {
    return fold_parts<Scalar>(t[0], t[1], op, all);
  } else {
    return t[0];
  }
}

#endif

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
