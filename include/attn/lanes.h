// attn/lanes.h: what a score functor computes with: the scores of several keys at once, and where
// they stand.
// SPDX-License-Identifier: MIT
//
//   auto relative = attn::score([=](auto s, auto at) { return s - slope * abs(at.query - at.key);
//   });
//
//   s                       Lanes: the scores of W consecutive keys of one query; W is the width of
//                           the machine's registers
//   at.key                  Lanes: their positions
//   at.query                SameLanes: the query's position, alike in all lanes
//   at.head, at.sequence    SameLanes; each converts to an integer, so that slopes[at.head] is one number for all lanes
//   + − * / and − of one    each operation rounds by itself: a product is never fused into a sum
//   abs min max exp tanh    as their scalar namesakes; max(a, b) and min(a, b) give a where one of both is NaN
//   < <= > >= == !=         LanesMask, joined by && || !
//   select(mask, a, b)      a in the lanes where the mask holds, else b: the `if` of lanes
//   lookup(table, index)    table[index] for each lane, index rounded towards zero; beyond the table its nearest end
//
// Numbers mix with lanes and are converted to their scalar. Positions are numbers of that scalar
// too: in float exact below 2²⁴.
// The same types serve scalars without packets (W = 1), so a functor sees nothing else.
#pragma once

#include <iterator>

#include "base/traits.h"
#include "base/vector_math.h"
#include "types.h"

namespace attn {
inline namespace ATTN_ABI {

template <class S>
class LanesMask;
template <class Value>
class Dual;

namespace detail {

/// A number with its slope (dual_lanes.h): its operations are its own.
template <class T>
inline constexpr bool is_dual_v = is_instance_v<Dual, bare_t<T>>;

/// An integer in a scalar that is known to come from an int alone.
template <class Scalar>
Scalar from_ints(Index i) {
  constexpr int step = 1 << 30;
  if (-step < i && i < step) return Scalar(int(i));
  const Scalar high = from_ints<Scalar>(i / step) * Scalar(step);
  return Scalar(high + Scalar(int(i % step)));
}
/// A position as a scalar that may be constructible from few types only.
template <class Scalar>
ATTN_INLINE Scalar from_index(Index i) {
  if constexpr (std::is_arithmetic_v<Scalar>) {
    return static_cast<Scalar>(i);
  } else {
    return from_ints<Scalar>(i);
  }
}

}  // namespace detail

/// W numbers, one for each of W consecutive keys. `S` is the library's; functors take them as
/// `auto`.
template <class S>
class Lanes {
 public:
  using Scalar = typename S::Scalar;
  using Packet = typename S::Packet;
  static constexpr int width = S::width;

  Lanes(const Scalar& x) : packet_(S::set(x)) {}  // NOLINT: a number stands for W equal ones
  template <
      class Number,
      std::enable_if_t<std::is_arithmetic_v<Number> && !std::is_same_v<Number, Scalar>, int> = 0>
  Lanes(Number x) : packet_(S::set(static_cast<Scalar>(x))) {}  // NOLINT
  template <class Value>
  Lanes(const Dual<Value>&) : packet_(S::set(Scalar(0))) {  // NOLINT
    static_assert(
        detail::always_false_v<Value>,
        "attn::score: in a backward pass the score comes with its slope, which lanes that "
        "were made without it cannot take: begin with the score (auto x = s; x -= ...), "
        "or write one expression");
  }
  /// As s + table[index] and table(index) make it of an Eigen vector.
  template <class Derived>
  Lanes(const Eigen::EigenBase<Derived>&) : packet_(S::set(Scalar(0))) {  // NOLINT
    static_assert(detail::always_false_v<Derived>,
                  "attn::score: an index differs from lane to lane: write lookup(table, index), or "
                  "one_by_one(f) to be called one key at a time");
  }
  static ATTN_INLINE Lanes of(const Packet& packet) { return Lanes(packet, Tag{}); }

  ATTN_INLINE const Packet& packet() const { return packet_; }

  ATTN_INLINE Lanes operator-() const { return of(S::sub(S::set(Scalar(0)), packet_)); }
  ATTN_INLINE Lanes& operator+=(const Lanes& b) { return *this = of(S::add(packet_, b.packet_)); }
  ATTN_INLINE Lanes& operator-=(const Lanes& b) { return *this = of(S::sub(packet_, b.packet_)); }
  ATTN_INLINE Lanes& operator*=(const Lanes& b) { return *this = of(S::mul(packet_, b.packet_)); }
  ATTN_INLINE Lanes& operator/=(const Lanes& b) { return *this = of(S::div(packet_, b.packet_)); }

  template <class Bool, std::enable_if_t<std::is_same_v<Bool, bool>, int> = 0>
  explicit operator Bool() const {
    static_assert(detail::always_false_v<Bool>,
                  "attn::score: lanes have no single truth, so no `if`, `?:` or bool: write "
                  "select(condition, a, b), or one_by_one(f) to be called one key at a time");
    return false;
  }
  /// As table[index] asks for it.
  template <
      class Integer,
      std::enable_if_t<std::is_integral_v<Integer> && !std::is_same_v<Integer, bool>, int> = 0>
  operator Integer() const {  // NOLINT
    static_assert(detail::always_false_v<Integer>,
                  "attn::score: an index differs from lane to lane: write lookup(table, index), or "
                  "one_by_one(f) to be called one key at a time");
    return 0;
  }
  /// As std::exp asks for it. (No other real, so that it chooses among its overloads.)
  template <class Real, std::enable_if_t<std::is_same_v<Real, double>, int> = 0>
  operator Real() const {  // NOLINT
    static_assert(detail::always_false_v<Real>,
                  "attn::score: functions of std:: take one number, not lanes: write exp, tanh, "
                  "abs, min, max without std::, or one_by_one(f) to be called one key at a time");
    return 0;
  }

 private:
  struct Tag {};
  Lanes(const Packet& packet, Tag) : packet_(packet) {}
  Packet packet_;
};

/// An index that is the same in all lanes: a query's position, a head, a sequence. Lanes wherever
/// lanes are computed with.
template <class S>
class SameLanes : public Lanes<S> {
 public:
  explicit SameLanes(Index i) : Lanes<S>(detail::from_index<typename S::Scalar>(i)), index_(i) {}
  // Both, so that slopes[at.head] takes pointers and arrays as well as containers, whose index
  // types differ.
  operator Index() const { return index_; }  // NOLINT
  template <class Integer,
            std::enable_if_t<std::is_integral_v<Integer> && !std::is_same_v<Integer, bool> &&
                                 !std::is_same_v<Integer, Index>,
                             int> = 0>
  operator Integer() const {  // NOLINT
    return static_cast<Integer>(index_);
  }
  template <class Real, std::enable_if_t<std::is_same_v<Real, double>, int> = 0>
  operator Real() const {  // NOLINT
    return static_cast<Real>(index_);
  }

 private:
  Index index_;
};

/// A condition for each lane.
template <class S>
class LanesMask {
 public:
  using Mask = typename S::Mask;
  static ATTN_INLINE LanesMask of(const Mask& mask) { return LanesMask(mask); }
  ATTN_INLINE const Mask& mask() const { return mask_; }

  friend ATTN_INLINE LanesMask operator&&(const LanesMask& a, const LanesMask& b) {
    return of(S::mask_and(a.mask_, b.mask_));
  }
  friend ATTN_INLINE LanesMask operator||(const LanesMask& a, const LanesMask& b) {
    return of(S::mask_or(a.mask_, b.mask_));
  }
  ATTN_INLINE LanesMask operator!() const { return of(S::mask_not(mask_)); }

  template <class Bool, std::enable_if_t<std::is_same_v<Bool, bool>, int> = 0>
  explicit operator Bool() const {
    static_assert(detail::always_false_v<Bool>,
                  "attn::score: lanes have no single truth, so no `if`, `?:` or bool: write "
                  "select(condition, a, b), or one_by_one(f) to be called one key at a time");
    return false;
  }

 private:
  explicit LanesMask(const Mask& mask) : mask_(mask) {}
  Mask mask_;
};

/// Where lanes stand: At for W keys.
template <class S>
struct LanesAt {
  SameLanes<S> sequence, head, query;
  Lanes<S> key;
};

namespace detail {

/// The index that a scalar within [0, count) holds, rounded down.
template <class Scalar>
ATTN_INLINE Index to_index(const Scalar& x, Index count) {
  if constexpr (std::is_arithmetic_v<Scalar>) {
    return static_cast<Index>(x);
  } else {  // such scalars compare, but need not convert to integers
    Index first = 0;
    while (count > 1) {
      const Index half = count / 2;
      if (!(x < from_index<Scalar>(first + half))) first += half;
      count -= half;
    }
    return first;
  }
}

template <class S>
S simd_of(const Lanes<S>*);
void simd_of(...);

/// The Simd of an operation on A and B, at least one of which is lanes; no type otherwise.
template <class A, class B, class OfA = decltype(simd_of(static_cast<const A*>(nullptr))),
          class OfB = decltype(simd_of(static_cast<const B*>(nullptr)))>
struct joined {
  using type = std::conditional_t<std::is_void_v<OfA>, OfB, OfA>;
};
template <class A, class B>
struct joined<A, B, void, void> {};
template <class A, class B>
using joined_t = std::enable_if_t<!is_dual_v<A> && !is_dual_v<B>, typename joined<A, B>::type>;

}  // namespace detail

template <class A, class B, class S = detail::joined_t<A, B>>
ATTN_INLINE Lanes<S> operator+(const A& a, const B& b) {
  return Lanes<S>::of(S::add(Lanes<S>(a).packet(), Lanes<S>(b).packet()));
}
template <class A, class B, class S = detail::joined_t<A, B>>
ATTN_INLINE Lanes<S> operator-(const A& a, const B& b) {
  return Lanes<S>::of(S::sub(Lanes<S>(a).packet(), Lanes<S>(b).packet()));
}
template <class A, class B, class S = detail::joined_t<A, B>>
ATTN_INLINE Lanes<S> operator*(const A& a, const B& b) {
  return Lanes<S>::of(S::mul(Lanes<S>(a).packet(), Lanes<S>(b).packet()));
}
template <class A, class B, class S = detail::joined_t<A, B>>
ATTN_INLINE Lanes<S> operator/(const A& a, const B& b) {
  return Lanes<S>::of(S::div(Lanes<S>(a).packet(), Lanes<S>(b).packet()));
}

template <class A, class B, class S = detail::joined_t<A, B>>
ATTN_INLINE LanesMask<S> operator<(const A& a, const B& b) {
  return LanesMask<S>::of(S::less(Lanes<S>(a).packet(), Lanes<S>(b).packet()));
}
template <class A, class B, class S = detail::joined_t<A, B>>
ATTN_INLINE LanesMask<S> operator<=(const A& a, const B& b) {
  return LanesMask<S>::of(S::less_equal(Lanes<S>(a).packet(), Lanes<S>(b).packet()));
}
template <class A, class B, class S = detail::joined_t<A, B>>
ATTN_INLINE LanesMask<S> operator>(const A& a, const B& b) {
  return Lanes<S>(b) < Lanes<S>(a);
}
template <class A, class B, class S = detail::joined_t<A, B>>
ATTN_INLINE LanesMask<S> operator>=(const A& a, const B& b) {
  return Lanes<S>(b) <= Lanes<S>(a);
}
template <class A, class B, class S = detail::joined_t<A, B>>
ATTN_INLINE LanesMask<S> operator==(const A& a, const B& b) {
  return LanesMask<S>::of(S::equal(Lanes<S>(a).packet(), Lanes<S>(b).packet()));
}
template <class A, class B, class S = detail::joined_t<A, B>>
ATTN_INLINE LanesMask<S> operator!=(const A& a, const B& b) {
  return !(Lanes<S>(a) == Lanes<S>(b));
}

template <class S>
ATTN_INLINE Lanes<S> abs(const Lanes<S>& x) {
  return Lanes<S>::of(S::abs(x.packet()));
}
template <class A, class B, class S = detail::joined_t<A, B>>
ATTN_INLINE Lanes<S> min(const A& a, const B& b) {
  return Lanes<S>::of(S::min(Lanes<S>(a).packet(), Lanes<S>(b).packet()));
}
template <class A, class B, class S = detail::joined_t<A, B>>
ATTN_INLINE Lanes<S> max(const A& a, const B& b) {
  return Lanes<S>::of(S::max(Lanes<S>(a).packet(), Lanes<S>(b).packet()));
}
template <class S>
ATTN_INLINE Lanes<S> exp(const Lanes<S>& x) {
  return Lanes<S>::of(detail::exp_lanes<S>(x.packet()));
}
template <class S>
ATTN_INLINE Lanes<S> tanh(const Lanes<S>& x) {
  return Lanes<S>::of(detail::tanh_lanes<S>(x.packet()));
}

/// a in the lanes where the condition holds, b in the others. Both are computed.
template <class S, class A, class B,
          std::enable_if_t<!detail::is_dual_v<A> && !detail::is_dual_v<B>, int> = 0>
ATTN_INLINE Lanes<S> select(const LanesMask<S>& condition, const A& a, const B& b) {
  return Lanes<S>::of(S::select(condition.mask(), Lanes<S>(a).packet(), Lanes<S>(b).packet()));
}

/// table[index] for each lane, the index rounded towards zero. The table knows its size
/// (std::vector, std::array, an array, an Eigen vector) and is read at its nearest end where the
/// index lies beyond, at its first where it is NaN. An empty one gives 0.
template <class Table, class S>
ATTN_INLINE Lanes<S> lookup(const Table& table, const Lanes<S>& index) {
  static_assert(!std::is_pointer_v<Table>,
                "attn::lookup: the table must know its size: a std::vector, std::array or Eigen "
                "vector, not a pointer");
  using Scalar = typename S::Scalar;
  const Index count = Index(std::size(table));
  if (count == 0) return Lanes<S>(Scalar(0));
  const auto within = S::min(S::max(S::set(Scalar(0)), index.packet()),
                             S::set(detail::from_index<Scalar>(count - 1)));
  alignas(64) Scalar lanes[S::width];
  S::store(lanes, within);
  for (int w = 0; w < S::width; ++w) {
    using Place = std::conditional_t<detail::is_dense_v<Table>, Index, std::size_t>;
    lanes[w] = Scalar(table[static_cast<Place>(detail::to_index(lanes[w], count))]);
  }
  return Lanes<S>::of(S::load(lanes));
}

}  // namespace ATTN_ABI
}  // namespace attn
