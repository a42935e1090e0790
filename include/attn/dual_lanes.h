// attn/dual_lanes.h: a score and its slope, what a score functor is called with in a backward pass.
// SPDX-License-Identifier: MIT
//
//   auto relative = attn::score([=](auto s, auto at) { return s - slope * abs(at.query - at.key); });
//
//   s          in the forward pass   Lanes, or under one_by_one() a number
//              in the backward pass  Dual<Lanes>, Dual<number>: the same number, and beside it how much
//                                    it changes with the score, which each operation carries along
//   at         as in the forward pass: positions have no slope
//   result     its slope is ∂f/∂s; what was made without s (lanes, a number) has slope 0
//
//   + − * / exp tanh       by the rules of calculus
//   abs min max select     the slope of the number that they give; abs has slope 0 at 0, min and max
//                          that of the first argument where both are equal
//   < <= > >= == !=        compare numbers, as do integers made of them: table[index], lookup()
//
// Values are computed by the operations of the forward pass: they have its bits.
#pragma once

#include "lanes.h"

namespace attn {
inline namespace ATTN_ABI {

namespace detail {

/// The Value of an operation on A and B, at least one of which is a Dual; no type otherwise.
template <class A, class B>
struct dual_value {};
template <class Value, class B>
struct dual_value<Dual<Value>, B> {
  using type = Value;
};
template <class A, class Value>
struct dual_value<A, Dual<Value>> {
  using type = Value;
};
template <class Value>
struct dual_value<Dual<Value>, Dual<Value>> {
  using type = Value;
};
template <class A, class B>
using dual_value_t = typename dual_value<A, B>::type;

/// What a Value is made of, and how many of them.
template <class Value>
struct value_traits {
  using Scalar = Value;
  static constexpr int width = 1;
};
template <class S>
struct value_traits<Lanes<S>> {
  using Scalar = typename S::Scalar;
  static constexpr int width = S::width;
};

}  // namespace detail

/// A number and its slope. `Value`: Lanes, or a scalar.
template <class Value>
class Dual {
 public:
  using Scalar = typename detail::value_traits<Value>::Scalar;
  static constexpr int width = detail::value_traits<Value>::width;

  /// What does not depend on the score.
  template <
      class Number,
      std::enable_if_t<!detail::is_dual_v<Number> && std::is_convertible_v<Number, Value>, int> = 0>
  Dual(const Number& x) : value_(static_cast<Value>(x)), slope_(Scalar(0)) {}  // NOLINT
  static ATTN_INLINE Dual of(const Value& value, const Value& slope) { return {value, slope}; }

  ATTN_INLINE const Value& value() const { return value_; }
  ATTN_INLINE const Value& slope() const { return slope_; }

  ATTN_INLINE Dual operator-() const { return {Value(-value_), Value(-slope_)}; }
  template <class X>
  ATTN_INLINE Dual& operator+=(const X& b) {
    return *this = *this + b;
  }
  template <class X>
  ATTN_INLINE Dual& operator-=(const X& b) {
    return *this = *this - b;
  }
  template <class X>
  ATTN_INLINE Dual& operator*=(const X& b) {
    return *this = *this * b;
  }
  template <class X>
  ATTN_INLINE Dual& operator/=(const X& b) {
    return *this = *this / b;
  }

  // As of the value alone, which says so in words where it has none.
  template <class Bool, std::enable_if_t<std::is_same_v<Bool, bool>, int> = 0>
  explicit operator Bool() const {
    return static_cast<bool>(value_);
  }
  template <
      class Integer,
      std::enable_if_t<std::is_integral_v<Integer> && !std::is_same_v<Integer, bool>, int> = 0>
  operator Integer() const {  // NOLINT
    return static_cast<Integer>(value_);
  }

 private:
  Dual(const Value& value, const Value& slope) : value_(value), slope_(slope) {}
  Value value_, slope_;
};

/// The scores of W consecutive keys, with slopes.
template <class S>
using DualLanes = Dual<Lanes<S>>;

namespace detail {

template <class Value, class T>
ATTN_INLINE Value value_in(const T& x) {
  return static_cast<Value>(x);
}
template <class Value>
ATTN_INLINE const Value& value_in(const Dual<Value>& x) {
  return x.value();
}
template <class Value, class T>
ATTN_INLINE Value slope_in(const T&) {
  return Value(typename value_traits<Value>::Scalar(0));
}
template <class Value>
ATTN_INLINE const Value& slope_in(const Dual<Value>& x) {
  return x.slope();
}
template <class S>
ATTN_INLINE Lanes<S> choose(const LanesMask<S>& condition, const Lanes<S>& a, const Lanes<S>& b) {
  return select(condition, a, b);
}
template <class Value>
ATTN_INLINE const Value& choose(bool condition, const Value& a, const Value& b) {
  return condition ? a : b;
}
/// The smaller, the larger of two values: a where one of both is NaN.
template <class S>
ATTN_INLINE Lanes<S> smaller(const Lanes<S>& a, const Lanes<S>& b) {
  return min(a, b);
}
template <class S>
ATTN_INLINE Lanes<S> larger(const Lanes<S>& a, const Lanes<S>& b) {
  return max(a, b);
}
template <class Value>
ATTN_INLINE const Value& smaller(const Value& a, const Value& b) {
  return choose(b < a, b, a);
}
template <class Value>
ATTN_INLINE const Value& larger(const Value& a, const Value& b) {
  return choose(a < b, b, a);
}

}  // namespace detail

template <class A, class B, class V = detail::dual_value_t<A, B>>
ATTN_INLINE Dual<V> operator+(const A& a, const B& b) {
  const V value(detail::value_in<V>(a) + detail::value_in<V>(b));
  if constexpr (!detail::is_dual_v<B>) {
    return Dual<V>::of(value, a.slope());
  } else if constexpr (!detail::is_dual_v<A>) {
    return Dual<V>::of(value, b.slope());
  } else {
    return Dual<V>::of(value, V(a.slope() + b.slope()));
  }
}
template <class A, class B, class V = detail::dual_value_t<A, B>>
ATTN_INLINE Dual<V> operator-(const A& a, const B& b) {
  const V value(detail::value_in<V>(a) - detail::value_in<V>(b));
  if constexpr (!detail::is_dual_v<B>) {
    return Dual<V>::of(value, a.slope());
  } else if constexpr (!detail::is_dual_v<A>) {
    return Dual<V>::of(value, V(-b.slope()));
  } else {
    return Dual<V>::of(value, V(a.slope() - b.slope()));
  }
}
template <class A, class B, class V = detail::dual_value_t<A, B>>
ATTN_INLINE Dual<V> operator*(const A& a, const B& b) {
  const V x(detail::value_in<V>(a)), y(detail::value_in<V>(b)), value(x * y);
  if constexpr (!detail::is_dual_v<B>) {
    return Dual<V>::of(value, V(a.slope() * y));
  } else if constexpr (!detail::is_dual_v<A>) {
    return Dual<V>::of(value, V(x * b.slope()));
  } else {
    return Dual<V>::of(value, V(V(a.slope() * y) + V(x * b.slope())));
  }
}
template <class A, class B, class V = detail::dual_value_t<A, B>>
ATTN_INLINE Dual<V> operator/(const A& a, const B& b) {
  const V y(detail::value_in<V>(b)), value(detail::value_in<V>(a) / y);
  if constexpr (!detail::is_dual_v<B>) {
    return Dual<V>::of(value, V(a.slope() / y));
  } else {
    const V change(detail::slope_in<V>(a) - V(value * b.slope()));
    return Dual<V>::of(value, V(change / y));
  }
}

template <class A, class B, class V = detail::dual_value_t<A, B>>
ATTN_INLINE auto operator<(const A& a, const B& b) {
  return detail::value_in<V>(a) < detail::value_in<V>(b);
}
template <class A, class B, class V = detail::dual_value_t<A, B>>
ATTN_INLINE auto operator<=(const A& a, const B& b) {
  return detail::value_in<V>(a) <= detail::value_in<V>(b);
}
template <class A, class B, class V = detail::dual_value_t<A, B>>
ATTN_INLINE auto operator>(const A& a, const B& b) {
  return detail::value_in<V>(a) > detail::value_in<V>(b);
}
template <class A, class B, class V = detail::dual_value_t<A, B>>
ATTN_INLINE auto operator>=(const A& a, const B& b) {
  return detail::value_in<V>(a) >= detail::value_in<V>(b);
}
template <class A, class B, class V = detail::dual_value_t<A, B>>
ATTN_INLINE auto operator==(const A& a, const B& b) {
  return detail::value_in<V>(a) == detail::value_in<V>(b);
}
template <class A, class B, class V = detail::dual_value_t<A, B>>
ATTN_INLINE auto operator!=(const A& a, const B& b) {
  return detail::value_in<V>(a) != detail::value_in<V>(b);
}

template <class V>
ATTN_INLINE Dual<V> abs(const Dual<V>& x) {
  using std::abs;
  const V zero = detail::slope_in<V>(0), minus(-x.slope());
  const V falling(detail::choose(x.value() < zero, minus, zero));
  return Dual<V>::of(V(abs(x.value())), V(detail::choose(zero < x.value(), x.slope(), falling)));
}
template <class A, class B, class V = detail::dual_value_t<A, B>>
ATTN_INLINE Dual<V> min(const A& a, const B& b) {
  const V x(detail::value_in<V>(a)), y(detail::value_in<V>(b));
  return Dual<V>::of(V(detail::smaller(x, y)),
                     V(detail::choose(y < x, detail::slope_in<V>(b), detail::slope_in<V>(a))));
}
template <class A, class B, class V = detail::dual_value_t<A, B>>
ATTN_INLINE Dual<V> max(const A& a, const B& b) {
  const V x(detail::value_in<V>(a)), y(detail::value_in<V>(b));
  return Dual<V>::of(V(detail::larger(x, y)),
                     V(detail::choose(x < y, detail::slope_in<V>(b), detail::slope_in<V>(a))));
}
template <class V>
ATTN_INLINE Dual<V> exp(const Dual<V>& x) {
  using std::exp;
  const V e(exp(x.value()));
  return Dual<V>::of(e, V(e * x.slope()));
}
template <class V>
ATTN_INLINE Dual<V> tanh(const Dual<V>& x) {
  using std::tanh;
  const V t(tanh(x.value())), one(typename Dual<V>::Scalar(1));
  return Dual<V>::of(t, V(V(one - V(t * t)) * x.slope()));
}

/// a in the lanes where the condition holds, b in the others, each with its slope.
template <class S, class A, class B, class V = detail::dual_value_t<A, B>>
ATTN_INLINE Dual<V> select(const LanesMask<S>& condition, const A& a, const B& b) {
  return Dual<V>::of(select(condition, detail::value_in<V>(a), detail::value_in<V>(b)),
                     select(condition, detail::slope_in<V>(a), detail::slope_in<V>(b)));
}

/// table[index] for each lane: it does not change with the index.
template <class Table, class S>
ATTN_INLINE Lanes<S> lookup(const Table& table, const DualLanes<S>& index) {
  return lookup(table, index.value());
}

}  // namespace ATTN_ABI
}  // namespace attn
