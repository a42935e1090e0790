// attn/mask/algebra.h: && || ! of masks: the definition, the ranges and the cover of the whole from
// those of its parts.
// SPDX-License-Identifier: MIT
//
// A union of two intervals keeps the gap between them, and a difference its hole: keys() and
// full_keys() are single intervals, but cover() asks the parts.
#pragma once

#include "interval.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

template <class Mask, class = void>
struct has_row_keys : std::false_type {};
template <class Mask>
struct has_row_keys<Mask, std::void_t<decltype(std::declval<const Mask&>().row_keys(
                              std::declval<const QueryRow&>()))>> : std::true_type {};

/// What two masks say of positions together: the offset may stand in either.
template <class A, class B>
struct JoinedPosition : NoPosition {
  using OfA = typename A::Position;
  using OfB = typename B::Position;
  static constexpr int named = OfA::named + OfB::named;
  static constexpr const char* asks = OfA::asks != nullptr ? OfA::asks : OfB::asks;
  static constexpr bool open = OfA::open || OfB::open;
  static constexpr bool aligned = OfA::aligned || OfB::aligned;
  static constexpr bool relative = OfA::relative || OfB::relative;
  static constexpr bool read = OfA::read || OfB::read;
  template <class Pair>
  static Index offset(const Pair& mask, const CallShape& shape, Index sequence, Index queries,
                      Index keys) {
    return OfA::offset(mask.a, shape, sequence, queries, keys) +
           OfB::offset(mask.b, shape, sequence, queries, keys);
  }
};

/// Both see it.
template <class A, class B>
struct And : mask_base {
  /// Key lengths bound the call where all parts hold.
  struct Position : JoinedPosition<A, B> {
    static Index keys(const And& mask, Index sequence, Index all) {
      return B::Position::keys(mask.b, sequence, A::Position::keys(mask.a, sequence, all));
    }
  };
  A a;
  B b;
  And(A x, B y) : a(std::move(x)), b(std::move(y)) {}
  bool operator()(const QueryRow& row, Index key) const { return a(row, key) && b(row, key); }
  KeyRange keys(const QueryRows& rows) const { return intersect(a.keys(rows), b.keys(rows)); }
  KeyRange full_keys(const QueryRows& rows) const {
    return intersect(a.full_keys(rows), b.full_keys(rows));
  }
  Cover cover(const QueryRows& rows, KeyRange range) const {
    if (intersect(keys(rows), range).empty()) return Cover::none;  // parts that do not meet
    return std::min(detail::cover(a, rows, range), detail::cover(b, rows, range));
  }
  bool by_columns() const { return detail::by_columns(a) || detail::by_columns(b); }
  template <class S>
  ATTN_INLINE typename S::Mask lanes(const QueryRow& row, Index key) const {
    if constexpr (has_row_keys<And>::value) {
      return interval_lanes<S>(row_keys(row), key);
    } else {
      return S::mask_and(a.template lanes<S>(row, key), b.template lanes<S>(row, key));
    }
  }
  /// Where both show a row one interval: theirs in common.
  template <class X = A, class Y = B,
            std::enable_if_t<has_row_keys<X>::value && has_row_keys<Y>::value, int> = 0>
  KeyRange row_keys(const QueryRow& row) const {
    return intersect(a.row_keys(row), b.row_keys(row));
  }
  auto bind(const CallShape& shape) const {
    return detail::And<decltype(a.bind(shape)), decltype(b.bind(shape))>(a.bind(shape),
                                                                         b.bind(shape));
  }
  template <class Visit>
  void visit_memory(const Visit& visit) const {
    a.visit_memory(visit);
    b.visit_memory(visit);
  }
};
/// One of both sees it.
template <class A, class B>
struct Or : mask_base {
  using Position = JoinedPosition<A, B>;
  A a;
  B b;
  Or(A x, B y) : a(std::move(x)), b(std::move(y)) {}
  bool operator()(const QueryRow& row, Index key) const { return a(row, key) || b(row, key); }
  KeyRange keys(const QueryRows& rows) const { return hull(a.keys(rows), b.keys(rows)); }
  KeyRange full_keys(const QueryRows& rows) const {
    const KeyRange x = a.full_keys(rows), y = b.full_keys(rows);
    if (!x.empty() && !y.empty() && x.begin <= y.end && y.begin <= x.end) return hull(x, y);
    return x.end - x.begin > y.end - y.begin ? x : y;
  }
  Cover cover(const QueryRows& rows, KeyRange range) const {
    if (full_keys(rows).contains(range)) return Cover::all;  // parts that touch
    return std::max(detail::cover(a, rows, range), detail::cover(b, rows, range));
  }
  bool by_columns() const { return detail::by_columns(a) || detail::by_columns(b); }
  template <class S>
  ATTN_INLINE typename S::Mask lanes(const QueryRow& row, Index key) const {
    return S::mask_or(a.template lanes<S>(row, key), b.template lanes<S>(row, key));
  }
  auto bind(const CallShape& shape) const {
    return detail::Or<decltype(a.bind(shape)), decltype(b.bind(shape))>(a.bind(shape),
                                                                        b.bind(shape));
  }
  template <class Visit>
  void visit_memory(const Visit& visit) const {
    a.visit_memory(visit);
    b.visit_memory(visit);
  }
};
/// It does not see it.
template <class A>
struct Not : mask_base {
  /// What the other says, but for the lengths that it gives.
  struct Position : A::Position {
    static Index keys(const Not&, Index, Index all) { return all; }
    static Index offset(const Not& mask, const CallShape& shape, Index sequence, Index queries,
                        Index keys) {
      return A::Position::offset(mask.a, shape, sequence, queries, keys);
    }
  };
  A a;
  explicit Not(A x) : a(std::move(x)) {}
  bool operator()(const QueryRow& row, Index key) const { return !a(row, key); }
  KeyRange keys(const QueryRows& rows) const { return outside(a.full_keys(rows), true); }
  KeyRange full_keys(const QueryRows& rows) const { return outside(a.keys(rows), false); }
  Cover cover(const QueryRows& rows, KeyRange range) const {
    const Cover inside = detail::cover(a, rows, range);
    return inside == Cover::none ? Cover::all : inside == Cover::all ? Cover::none : Cover::some;
  }
  bool by_columns() const { return detail::by_columns(a); }
  template <class S>
  ATTN_INLINE typename S::Mask lanes(const QueryRow& row, Index key) const {
    return S::mask_not(a.template lanes<S>(row, key));
  }
  auto bind(const CallShape& shape) const {
    return detail::Not<decltype(a.bind(shape))>(a.bind(shape));
  }
  template <class Visit>
  void visit_memory(const Visit& visit) const {
    a.visit_memory(visit);
  }

 private:
  /// What lies outside an interval: its hull, or its longer part.
  static KeyRange outside(KeyRange inside, bool whole) {
    const KeyRange before{0, inside.begin}, after{inside.end, kUnbounded};
    if (inside.empty()) return {0, kUnbounded};
    if (before.empty()) return after;
    if (inside.end >= kUnbounded) return before;
    return whole ? KeyRange{0, kUnbounded} : after;
  }
};

template <class A, class B>
inline constexpr bool asks_bools_v<And<A, B>> = asks_bools_v<A> || asks_bools_v<B>;
template <class A, class B>
inline constexpr bool asks_bools_v<Or<A, B>> = asks_bools_v<A> || asks_bools_v<B>;
template <class A>
inline constexpr bool asks_bools_v<Not<A>> = asks_bools_v<A>;

/// The masks among some options, joined by "and" and bound to the shape of their call.
inline SeeAll join_masks(const CallShape&) { return {}; }
template <class First, class... Rest>
auto join_masks(const CallShape& shape, const First& first, const Rest&... rest) {
  if constexpr (!is_mask_v<First>) {
    return join_masks(shape, rest...);
  } else if constexpr (!given_v<MaskOption, Rest...>) {
    return first.bind(shape);
  } else {
    auto others = join_masks(shape, rest...);
    auto own = first.bind(shape);
    return And<decltype(own), decltype(others)>(own, others);
  }
}
template <class... Options>
auto bind_masks(const CallShape& shape, const Asked<Options...>& asked) {
  return asked.all([&](const auto&... options) { return join_masks(shape, options...); });
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
