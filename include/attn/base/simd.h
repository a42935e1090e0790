// attn/base/simd.h: the packet layer; the only file that spells Eigen::internal.
// SPDX-License-Identifier: MIT
//
// Simd<Scalar> names the operations the kernels are written in. Where Eigen has packets for Scalar,
// a Packet is Eigen's; for every other scalar, and under EIGEN_DONT_VECTORIZE, a Packet is the
// scalar itself (width 1) and the same kernels serve it.
//
// Rounding is part of each operation's contract, because results must not depend on where a
// function was inlined:
//   fmadd(a, b, c)  rounds once where the hardware fuses, twice where it does not: never the
//                   compiler's choice
//   div(a, b)       rounds once
//   mul(a, b)       always rounds by itself; the compiler cannot fuse it into a later add or sub
//   max(a, b)       a where either is NaN (as std::max), so that a NaN in `a` survives
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <type_traits>

#include "config.h"
#include "transpose.h"

ATTN_PACKET_WARNINGS_OFF

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Eigen has packets of more than one lane for this scalar. (half and bfloat16 are storage types
/// here, never computed with.)
template <class Scalar>
inline constexpr bool has_packets_v =
    (std::is_same_v<Scalar, float> ||
     std::is_same_v<Scalar, double>)&&bool(Eigen::internal::packet_traits<Scalar>::Vectorizable) &&
    (Eigen::internal::packet_traits<Scalar>::size > 1);

/// Vector registers of the target; sizes the register tile.
inline constexpr int kVectorRegisters = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS;

/// a == b, as it is meant: through the standard library, so that -Wfloat-equal stays silent.
template <class Scalar>
ATTN_INLINE bool equal(const Scalar& a, const Scalar& b) {
  return std::equal_to<Scalar>()(a, b);
}

/// Width 1: the packet is the scalar itself. Arithmetic on expression-template scalars
/// (AutoDiffScalar) ends in Scalar.
template <class Scalar_, class = void>
struct Simd {
  using Scalar = Scalar_;
  using Packet = Scalar_;
  using Mask = bool;
  static constexpr int width = 1;

  static Packet load(const Scalar* p) { return *p; }
  static Packet loadu(const Scalar* p) { return *p; }
  static void store(Scalar* p, const Packet& a) { *p = a; }
  static void storeu(Scalar* p, const Packet& a) { *p = a; }
  static Packet set(const Scalar& x) { return x; }
  static Packet iota() { return Scalar(0); }
  static Mask first_lanes(std::ptrdiff_t n) { return n > 0; }

  static Packet add(const Packet& a, const Packet& b) { return Packet(a + b); }
  static Packet sub(const Packet& a, const Packet& b) { return Packet(a - b); }
  static Packet div(const Packet& a, const Packet& b) { return Packet(a / b); }
  static Packet mul(const Packet& a, const Packet& b) { return fmadd(a, b, Scalar(0)); }
  static Packet fmadd(const Packet& a, const Packet& b, const Packet& c) {
    if constexpr (kHardwareFma &&
                  (std::is_same_v<Scalar, float> || std::is_same_v<Scalar, double>)) {
      return std::fma(a, b, c);
    } else {
      return Packet(Packet(a * b) + c);
    }
  }
  static void accumulate(const Packet& a, const Packet& b, Packet& c) { c = fmadd(a, b, c); }
  static void accumulate_element(const Scalar& a, const Packet& b, Packet& c) {
    accumulate(a, b, c);
  }
  static Packet abs(const Packet& a) { return a < Scalar(0) ? Packet(-a) : a; }
  static Packet max(const Packet& a, const Packet& b) { return a < b ? b : a; }
  static Packet min(const Packet& a, const Packet& b) { return b < a ? b : a; }

  static Mask less(const Packet& a, const Packet& b) { return a < b; }
  static Mask less_equal(const Packet& a, const Packet& b) { return a <= b; }
  static Mask equal(const Packet& a, const Packet& b) { return detail::equal(a, b); }
  static Mask mask_and(Mask a, Mask b) { return a && b; }
  static Mask mask_or(Mask a, Mask b) { return a || b; }
  static Mask mask_not(Mask a) { return !a; }
  static Packet select(Mask m, const Packet& a, const Packet& b) { return m ? a : b; }
  static Packet where_less(const Packet& x, const Packet& y, const Packet& a, const Packet& b) {
    return x < y ? a : b;
  }

  static Scalar first(const Packet& a) { return a; }
  static Scalar reduce_add(const Packet& a) { return a; }
  static Scalar reduce_max(const Packet& a) { return a; }
  static constexpr int folded = 1;
  static Packet fold_max(const Packet (&rows)[1]) { return rows[0]; }
  template <int>
  static Packet unfold(const Packet& a) {
    return a;
  }
  static Packet pinned(const Packet& a) { return a; }
  template <class Row>
  static Packet add_rows(int, const Row& row) {
    return row(0);
  }
  template <class Row>
  static Packet max_rows(int, const Row& row) {
    return row(0);
  }
  static void transpose(Packet (&)[1]) {}
  static void prefetch(const void*) {}
  static void prefetch_far(const void*) {}
  static void prefetch_to_write(const void*) {}
};

/// Eigen's packets: float and double on every target that Eigen vectorizes.
template <class Scalar_>
struct Simd<Scalar_, std::enable_if_t<has_packets_v<Scalar_>>> {
  using Scalar = Scalar_;
  using Packet = typename Eigen::internal::packet_traits<Scalar_>::type;
  using Mask = Packet;  // each lane all ones or all zeros
  static constexpr int width = Eigen::internal::packet_traits<Scalar_>::size;
#if ATTN_VECTOR_TYPES
  using Integers = integer_lanes_t<Scalar, sizeof(Packet)>;
#endif

  static ATTN_INLINE Packet load(const Scalar* p) { return Eigen::internal::pload<Packet>(p); }
  static ATTN_INLINE Packet loadu(const Scalar* p) { return Eigen::internal::ploadu<Packet>(p); }
  static ATTN_INLINE void store(Scalar* p, Packet a) { Eigen::internal::pstore(p, a); }
  static ATTN_INLINE void storeu(Scalar* p, Packet a) { Eigen::internal::pstoreu(p, a); }
  static ATTN_INLINE Packet set(Scalar x) { return Eigen::internal::pset1<Packet>(x); }
  static ATTN_INLINE Packet iota() { return Eigen::internal::plset<Packet>(Scalar(0)); }
  /// The first n lanes; none of them, or all, where n lies outside.
  static ATTN_INLINE Mask first_lanes(std::ptrdiff_t n) {
    const std::ptrdiff_t held = n < 0 ? 0 : n < width ? n : width;
    return less(iota(), set(Scalar(int(held))));
  }

  static ATTN_INLINE Packet add(Packet a, Packet b) { return Eigen::internal::padd(a, b); }
  static ATTN_INLINE Packet sub(Packet a, Packet b) { return Eigen::internal::psub(a, b); }
  static ATTN_INLINE Packet div(Packet a, Packet b) {
    if constexpr (kExactDivision) {
      return Eigen::internal::pdiv(a, b);
    } else {
      alignas(64) Scalar lanes[std::size_t(width)], by[std::size_t(width)];
      store(lanes, a);
      store(by, b);
      for (int w = 0; w < width; ++w) lanes[w] /= by[w];
      return load(lanes);
    }
  }
  // The zero addend keeps g++ from fusing the product with an add that follows it somewhere else.
  static ATTN_INLINE Packet mul(Packet a, Packet b) {
    return Eigen::internal::pmadd(a, b, set(Scalar(0)));
  }
  static ATTN_INLINE Packet fmadd(Packet a, Packet b, Packet c) {
    return Eigen::internal::pmadd(a, b, c);
  }
  /// c = fmadd(a, b, c), for the long chains of a register tile.
  static ATTN_INLINE void accumulate(Packet a, Packet b, Packet& c) {
#if defined(ATTN_MULTIPLY_ADD)
    if constexpr (std::is_same_v<Scalar, float>) {
      ATTN_MULTIPLY_ADD("ps", c, a, b);
    } else {
      ATTN_MULTIPLY_ADD("pd", c, a, b);
    }
#else
    c = fmadd(a, b, c);
#endif
  }
  /// The same with one element in all lanes, where it lies.
  static ATTN_INLINE void accumulate_element(const Scalar& a, Packet b, Packet& c) {
#if defined(ATTN_MULTIPLY_ADD_ELEMENT)
    if constexpr (sizeof(Packet) == 64) {
      if constexpr (std::is_same_v<Scalar, float>) {
        ATTN_MULTIPLY_ADD_ELEMENT("ps", "16", c, a, b);
      } else {
        ATTN_MULTIPLY_ADD_ELEMENT("pd", "8", c, a, b);
      }
      return;
    }
#endif
    accumulate(set(a), b, c);
  }
  static ATTN_INLINE Packet abs(Packet a) { return Eigen::internal::pabs(a); }
  static ATTN_INLINE Packet max(Packet a, Packet b) {
    return kMaxKeepsFirst ? Eigen::internal::pmax(a, b) : where_less(a, b, b, a);
  }
  static ATTN_INLINE Packet min(Packet a, Packet b) {
    return kMaxKeepsFirst ? Eigen::internal::pmin(a, b) : where_less(b, a, b, a);
  }

  static ATTN_INLINE Mask less(Packet a, Packet b) { return Eigen::internal::pcmp_lt(a, b); }
  static ATTN_INLINE Mask less_equal(Packet a, Packet b) { return Eigen::internal::pcmp_le(a, b); }
  static ATTN_INLINE Mask equal(Packet a, Packet b) { return Eigen::internal::pcmp_eq(a, b); }
  static ATTN_INLINE Mask mask_and(Mask a, Mask b) { return Eigen::internal::pand(a, b); }
  static ATTN_INLINE Mask mask_or(Mask a, Mask b) { return Eigen::internal::por(a, b); }
  static ATTN_INLINE Mask mask_not(Mask a) {
    return Eigen::internal::pxor(a, Eigen::internal::ptrue(a));
  }
  static ATTN_INLINE Packet select(Mask m, Packet a, Packet b) {
    return Eigen::internal::pselect(m, a, b);
  }
  /// select(less(x, y), a, b). With AVX-512 Eigen's masks take three instructions more, from a mask
  /// register to lanes and back.
  static ATTN_INLINE Packet where_less(Packet x, Packet y, Packet a, Packet b) {
#if ATTN_VECTOR_TYPES
    if constexpr (!kFastMath)
      return x < y ? a : b;  // -ffast-math knows that nothing is below lowest()
#endif
    return select(less(x, y), a, b);
  }

  static ATTN_INLINE Scalar first(Packet a) { return Eigen::internal::pfirst(a); }
  static ATTN_INLINE Scalar reduce_add(Packet a) { return Eigen::internal::predux(a); }
  static ATTN_INLINE Scalar reduce_max(Packet a) { return Eigen::internal::predux_max(a); }

#if ATTN_VECTOR_TYPES
  /// Packets that fold_max() makes one of: lane w of the result is the largest of the lanes of
  /// rows[w % folded] within w's 128 bits.
  static constexpr int folded = 16 / int(sizeof(Scalar));
  static ATTN_INLINE Packet fold_max(const Packet (&rows)[std::size_t{folded}]) {
    constexpr std::make_integer_sequence<int, width> all{};
    const auto fold = [&](auto unit, const Packet& a, const Packet& b) {
      constexpr int U = decltype(unit)::value;
      return max(interleave<Scalar, U, 0>(a, b, all), interleave<Scalar, U, 1>(a, b, all));
    };
    if constexpr (folded == 2) {
      return fold(lanes_t<1>{}, rows[0], rows[1]);
    } else {
      return fold(lanes_t<2>{}, fold(lanes_t<1>{}, rows[0], rows[1]),
                  fold(lanes_t<1>{}, rows[2], rows[3]));
    }
  }
  /// Lane `At` of each 128 bits, in all lanes of them: what fold_max() knows of a row.
  template <int At>
  static ATTN_INLINE Packet unfold(const Packet& a) {
    constexpr std::make_integer_sequence<int, width> all{};
    const Packet b = interleave<Scalar, 1, At * 2 / folded>(a, a, all);
    if constexpr (folded == 2) {
      return b;
    } else {
      return interleave<Scalar, 2, At % 2>(b, b, all);
    }
  }
#else
  static constexpr int folded = 1;
  static ATTN_INLINE Packet fold_max(const Packet (&rows)[1]) { return rows[0]; }
  template <int>
  static ATTN_INLINE Packet unfold(const Packet& a) {
    return a;
  }
#endif

  /// Lane n: the sum (the largest) of the lanes of row(n), n < rows ≤ width. A row's sum does not
  /// depend on the others.
  template <class Row>
  static ATTN_INLINE Packet add_rows(int rows, const Row& row) {
    return reduce_rows<Add>(rows, row);
  }
  template <class Row>
  static ATTN_INLINE Packet max_rows(int rows, const Row& row) {
    return reduce_rows<Max>(rows, row);
  }

  /// Asks for the cache line of an address; no read: any address will do.
  static ATTN_INLINE void prefetch(const void* p) { ATTN_PREFETCH(p); }
  /// The same for what is needed so late that it would not stay in L1.
  static ATTN_INLINE void prefetch_far(const void* p) { ATTN_PREFETCH_FAR(p); }
  /// The same for what will be written, not read.
  static ATTN_INLINE void prefetch_to_write(const void* p) { ATTN_PREFETCH_WRITE(p); }

  /// |x| without its significand: +∞ for infinities and NaN, finite for all else.
  static ATTN_INLINE Packet exponent_bits(Packet a) {
    return Eigen::internal::pand(a, set(std::numeric_limits<Scalar>::infinity()));
  }

  /// Rows become columns.
  static ATTN_INLINE void transpose(Packet (&rows)[std::size_t{width}]) {
#if ATTN_VECTOR_TYPES
    detail::transpose<Scalar, width>(rows);
#else
    Eigen::internal::PacketBlock<Packet, width> block;
    ATTN_UNROLL
    for (int i = 0; i < width; ++i) block.packet[i] = rows[i];
    Eigen::internal::ptranspose(block);
    ATTN_UNROLL
    for (int i = 0; i < width; ++i) rows[i] = block.packet[i];
#endif
  }

  /// Units of `Unit` lanes: unit u of packet i becomes unit i of packet u.
  template <int Unit>
  static ATTN_INLINE void transpose_units(Packet (&rows)[std::size_t{width / Unit}]) {
#if ATTN_VECTOR_TYPES
    detail::transpose_units<Scalar, Unit, width>(rows);
#else
    alignas(64) Scalar lanes[width / Unit][width];
    for (int i = 0; i < width / Unit; ++i) store(lanes[i], rows[i]);
    for (int i = 0; i < width / Unit; ++i) {
      alignas(64) Scalar row[width];
      for (int n = 0; n < width; ++n) row[n] = lanes[n / Unit][i * Unit + n % Unit];
      rows[i] = load(row);
    }
#endif
  }

  /// Eigen's own exponential of this packet type.
  static ATTN_INLINE Packet eigen_exp(Packet a) { return Eigen::internal::pexp(a); }

  /// power_of_two() exists.
  static constexpr bool shifts = ATTN_VECTOR_TYPES || std::is_same_v<Scalar, float>;
  /// The integer whose bits end the significand of t (float: t = 1.5·2²³ + n + 127; double: 1.5·2⁵²
  /// + n + 1023) becomes the exponent: 2ⁿ. (Eigen 3.4 has no packets of 64-bit integers on AVX.)
  static ATTN_INLINE Packet power_of_two(Packet t) {
#if ATTN_VECTOR_TYPES
    return reinterpret_cast<Packet>(
        Integers(reinterpret_cast<Integers>(t) << (std::numeric_limits<Scalar>::digits - 1)));
#else
    using Integers = typename Eigen::internal::unpacket_traits<Packet>::integer_packet;
    const Integers bits = Eigen::internal::preinterpret<Integers>(t);
    return Eigen::internal::preinterpret<Packet>(
        Integers(Eigen::internal::plogical_shift_left<23>(bits)));
#endif
  }

  /// Parts of an exponent that power_of_two() below knows: 2^(n/parts); 1 without tables.
  static constexpr int exponent_parts = has_look_up_v<Scalar, width> ? width : 1;
#if ATTN_VECTOR_TYPES
  /// The same for n counting parts of an exponent, and as many of the bias: the bits, shifted into
  /// place, are those of the chord 1 + i/parts over 2^(i/parts), times the power. below[i]: how far
  /// 2^(i/parts) lies below it, in units of the last place.
  template <class Integer>
  static ATTN_INLINE Packet power_of_two(Packet t, const Integer (&below)[std::size_t{width}]) {
    constexpr int log2_width = width == 16 ? 4 : 3;
    static_assert(width == 1 << log2_width, "as wide as config.h has tables");
    const auto n = reinterpret_cast<Integers>(t);
    const auto chord = Integers(n << (std::numeric_limits<Scalar>::digits - 1 - log2_width));
    return reinterpret_cast<Packet>(Integers(chord - look_up(below, n)));
  }
#endif

  /// The value as it is, but opaque to the optimizer under -ffast-math; nothing elsewhere.
  static ATTN_INLINE Packet pinned(Packet a) {
    if constexpr (kFastMath) {
      EIGEN_OPTIMIZATION_BARRIER(a)
    }
    return a;
  }

 private:
  struct Add {
    ATTN_INLINE Packet operator()(Packet a, Packet b) const { return add(a, b); }
    static ATTN_INLINE Scalar all(Packet a) { return reduce_add(a); }
  };
  struct Max {
    ATTN_INLINE Packet operator()(Packet a, Packet b) const { return max(a, b); }
    static ATTN_INLINE Scalar all(Packet a) { return reduce_max(a); }
  };
  template <class Op, class Row>
  static ATTN_INLINE Packet reduce_rows(int rows, const Row& row) {
#if ATTN_VECTOR_TYPES
    return detail::reduce_rows<Scalar, width, Packet>(rows, row, Op());
#else
    alignas(64) Scalar lanes[width] = {};
    for (int i = 0; i < rows; ++i) lanes[i] = Op::all(row(i));
    return load(lanes);
#endif
  }
};

/// Whether x is finite, by its bits: -ffast-math would fold a comparison with infinity away.
template <class Scalar>
ATTN_INLINE bool is_finite(const Scalar& x) {
  if constexpr (std::is_same_v<Scalar, float>) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return (bits & 0x7f800000u) != 0x7f800000u;
  } else if constexpr (std::is_same_v<Scalar, double>) {
    std::uint64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return (bits & 0x7ff0000000000000u) != 0x7ff0000000000000u;
  } else {
    const Scalar difference = x - x;
    return difference == Scalar(0);
  }
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn

ATTN_PACKET_WARNINGS_ON
