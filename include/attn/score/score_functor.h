// attn/score/score_functor.h: the user's score functor bound to a call: with lanes of keys, or one
// key at a time.
// SPDX-License-Identifier: MIT
#pragma once

#include "../lanes.h"
#include "../base/functor.h"
#include "../base/asked.h"
#include "score_rule.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Called with lanes.
template <class Function>
struct BoundLanesFunctor : ScoreRule {
  const Function* function;
  explicit BoundLanesFunctor(const Function& f) : function(&f) {}
  template <class S>
  ATTN_INLINE typename S::Packet apply(const typename S::Packet& s, const QueryRow& row,
                                       Index key) const {
    using Scalar = typename S::Scalar;
    const auto keys = S::add(S::set(from_index<Scalar>(key)), S::iota());
    const LanesAt<S> at{SameLanes<S>(row.sequence), SameLanes<S>(row.head),
                        SameLanes<S>(row.position), Lanes<S>::of(keys)};
    return Lanes<S>((*function)(Lanes<S>::of(s), at)).packet();
  }
};

/// Each lane's own number, in memory: what has not just been stored costs nothing to load.
template <int... Lane>
struct LaneNumbers {
  static constexpr int value[sizeof...(Lane)] = {Lane...};
};
template <int... Lane>
constexpr LaneNumbers<Lane...> lane_numbers(std::integer_sequence<int, Lane...>) {
  return {};
}

/// Called one key at a time, for pairs that are seen only: a table that the functor reads needs no
/// entries for others.
template <class Function>
struct BoundKeyFunctor : ScoreRule {
  static constexpr bool kAsksSeen = true;
  const Function* function;
  explicit BoundKeyFunctor(const Function& f) : function(&f) {}
  template <class S>
  ATTN_INLINE typename S::Packet apply(const typename S::Packet& s, const QueryRow& row,
                                       Index key) const {
    using Numbers = decltype(lane_numbers(std::make_integer_sequence<int, S::width>()));
    return each<S>(s, row, key, Numbers::value);
  }
  /// Lanes that are not seen borrow the key of one that is.
  template <class S>
  ATTN_INLINE typename S::Packet apply_seen(const typename S::Packet& s, const QueryRow& row,
                                            Index key, const typename S::Mask& seen) const {
    using Scalar = typename S::Scalar;
    alignas(64) Scalar counts[S::width];
    S::store(counts, S::select(seen, S::set(Scalar(1)), S::set(Scalar(0))));
    int first = 0;
    while (first < S::width && equal(counts[first], Scalar(0))) ++first;
    if (first == S::width) return s;
    int lanes[S::width];
    for (int w = 0; w < S::width; ++w) lanes[w] = equal(counts[w], Scalar(0)) ? first : w;
    return each<S>(s, row, key, lanes);
  }

 private:
  /// WHY  one function for all of them, never inlined: the compiler may fuse the functor's own
  ///      products and sums, and would otherwise choose anew in every place. The copies let it see
  ///      that scores are no data of the functor.
  template <class S>
  ATTN_NOINLINE typename S::Packet each(const typename S::Packet& s, const QueryRow& row, Index key,
                                        const int (&lanes)[S::width]) const {
    using Scalar = typename S::Scalar;
    alignas(64) Scalar scores[S::width];
    S::store(scores, s);
    const Index sequence = row.sequence, head = row.head, query = row.position;
    for (int w = 0; w < S::width; ++w)
      scores[w] = Scalar((*function)(scores[w], At{sequence, head, query, key + lanes[w]}));
    return S::load(scores);
  }
};

/// Has the functor called one key at a time, whatever its signature.
template <class Held>
struct OneByOne {
  Held held;
};
template <class T>
inline constexpr bool is_one_by_one_v = is_instance_v<OneByOne, bare_t<T>>;

/// What makes lanes of a scalar: a functor of lanes is asked whether it takes them.
template <class Function, class S>
constexpr bool takes_lanes() {
  if constexpr (std::is_invocable_v<const Function&, Lanes<S>, LanesAt<S>>) {
    return std::is_convertible_v<std::invoke_result_t<const Function&, Lanes<S>, LanesAt<S>>,
                                 Lanes<S>>;
  } else {
    return false;
  }
}

struct ScoreOption {
  template <int Given>
  static constexpr void check() {
    static_assert(
        Given <= 1,
        "attn: two score functors in one call: options have no order, so write one functor "
        "that does both");
  }
};
template <class Held>
struct LanesFunctor : option_base {
  using Kind = ScoreOption;
  using Position = ReadsPositions;
  Held held;
  explicit LanesFunctor(Held h) : held(std::move(h)) {}
  template <class Scalar, class Shape>
  BoundLanesFunctor<functor_t<Held>> bind(const Shape&) const {
    static_assert(takes_lanes<functor_t<Held>, Simd<Scalar>>(),
                  "attn::score: a functor without a signature of its own is called with lanes of "
                  "keys: write [](auto s, auto at) { return s - ...; } with unqualified abs, "
                  "min, max, exp, tanh, with lookup(table, index) for table[index] and "
                  "select(condition, a, b) for an if, or one_by_one(f) to have it called with "
                  "(float s, attn::At at)");
    return BoundLanesFunctor<functor_t<Held>>(held.get());
  }
};
template <class Held>
struct KeyFunctor : option_base {
  using Kind = ScoreOption;
  using Position = ReadsPositions;
  Held held;
  explicit KeyFunctor(Held h) : held(std::move(h)) {}
  template <class Scalar, class Shape>
  BoundKeyFunctor<functor_t<Held>> bind(const Shape&) const {
    static_assert(std::is_invocable_r_v<Scalar, const functor_t<Held>&, Scalar, At>,
                  "attn::score: a functor that is called one key at a time takes the score and "
                  "where it stands, and returns the new score: write [](float s, attn::At at) { "
                  "return s - ...; }, or [](auto s, auto at) to be called with lanes of keys");
    return BoundKeyFunctor<functor_t<Held>>(held.get());
  }
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
