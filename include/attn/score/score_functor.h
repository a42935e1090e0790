// attn/score/score_functor.h: the user's score functor bound to a call: with lanes of keys, or one
// key at a time.
// SPDX-License-Identifier: MIT
#pragma once

#include "../dual_lanes.h"
#include "../base/functor.h"
#include "../base/asked.h"
#include "score_rule.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Called with lanes; for its slope with lanes that carry theirs (dual_lanes.h).
template <class Function>
struct BoundLanesFunctor : ScoreRule {
  static constexpr bool kSloped = true;
  const Function* function;
  explicit BoundLanesFunctor(const Function& f) : function(&f) {}
  template <class S>
  ATTN_INLINE typename S::Packet apply(const typename S::Packet& s, const QueryRow& row,
                                       Index key) const {
    return Lanes<S>((*function)(Lanes<S>::of(s), at<S>(row, key))).packet();
  }
  template <class S>
  ATTN_INLINE typename S::Packet apply_with_slope(const typename S::Packet& s, const QueryRow& row,
                                                  Index key, const typename S::Mask&,
                                                  typename S::Packet& slope) const {
    using Score = Dual<Lanes<S>>;
    const Score score((*function)(Score::of(Lanes<S>::of(s), Lanes<S>(1)), at<S>(row, key)));
    slope = score.slope().packet();
    return score.value().packet();
  }

 private:
  template <class S>
  static ATTN_INLINE LanesAt<S> at(const QueryRow& row, Index key) {
    using Scalar = typename S::Scalar;
    const auto keys = S::add(S::set(from_index<Scalar>(key)), S::iota());
    return {SameLanes<S>(row.sequence), SameLanes<S>(row.head), SameLanes<S>(row.position),
            Lanes<S>::of(keys)};
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

/// The slope of a functor that is called one key at a time: f(s, at) of a number that carries its
/// slope, where the functor has no signature of its own.
template <class Function>
struct SlopeOfDual {
  const Function* function;
  template <class Scalar>
  Scalar operator()(const Scalar& s, const At& at) const {
    static_assert(!has_one_signature<Function>::value,
                  "attn::score: a backward pass needs the slope of the score functor, and one that "
                  "takes a plain number has none: give it, score(f, slope) with [](float s, "
                  "attn::At at) { return ...; } that returns how much f changes with s, or write f "
                  "generic, [](auto s, auto at) { return s - ...; }");
    if constexpr (has_one_signature<Function>::value) {
      return s;
    } else {
      return Dual<Scalar>((*function)(Dual<Scalar>::of(s, Scalar(1)), at)).slope();
    }
  }
};
/// The one that the user gives.
template <class Function>
struct SlopeOfUser {
  const Function* function;
  template <class Scalar>
  Scalar operator()(const Scalar& s, const At& at) const {
    return Scalar((*function)(s, at));
  }
};

/// Called one key at a time, for pairs that are seen only: a table that the functor reads needs no
/// entries for others.
template <class Function, class Slope = SlopeOfDual<Function>>
struct BoundKeyFunctor : ScoreRule {
  static constexpr bool kAsksSeen = true, kSloped = true;
  const Function* function;
  Slope slope_of;
  BoundKeyFunctor(const Function& f, const Slope& slope) : function(&f), slope_of(slope) {}
  template <class S>
  ATTN_INLINE typename S::Packet apply(const typename S::Packet& s, const QueryRow& row,
                                       Index key) const {
    using Numbers = decltype(lane_numbers(std::make_integer_sequence<int, S::width>()));
    return each<S>(*function, s, row, key, Numbers::value);
  }
  template <class S>
  ATTN_INLINE typename S::Packet apply_seen(const typename S::Packet& s, const QueryRow& row,
                                            Index key, const typename S::Mask& seen) const {
    int lanes[S::width];
    return find_seen<S>(seen, lanes) ? each<S>(*function, s, row, key, lanes) : s;
  }
  template <class S>
  ATTN_INLINE typename S::Packet apply_with_slope(const typename S::Packet& s, const QueryRow& row,
                                                  Index key, const typename S::Mask& seen,
                                                  typename S::Packet& slope) const {
    int lanes[S::width];
    slope = S::set(typename S::Scalar(0));
    if (!find_seen<S>(seen, lanes)) return s;
    slope = each<S>(slope_of, s, row, key, lanes);
    return each<S>(*function, s, row, key, lanes);
  }

 private:
  /// The lane whose key each lane asks for: those that are not seen borrow that of one that is.
  /// Whether there is one.
  template <class S>
  static ATTN_INLINE bool find_seen(const typename S::Mask& seen, int (&lanes)[S::width]) {
    using Scalar = typename S::Scalar;
    alignas(64) Scalar counts[S::width];
    S::store(counts, S::select(seen, S::set(Scalar(1)), S::set(Scalar(0))));
    int first = 0;
    while (first < S::width && equal(counts[first], Scalar(0))) ++first;
    if (first == S::width) return false;
    for (int w = 0; w < S::width; ++w) lanes[w] = equal(counts[w], Scalar(0)) ? first : w;
    return true;
  }
  /// WHY  one function for all of them, never inlined: the compiler may fuse the functor's own
  ///      products and sums, and would otherwise choose anew in every place. The copies let it see
  ///      that scores are no data of the functor.
  template <class S, class F>
  static ATTN_NOINLINE typename S::Packet each(const F& f, const typename S::Packet& s,
                                               const QueryRow& row, Index key,
                                               const int (&lanes)[S::width]) {
    using Scalar = typename S::Scalar;
    alignas(64) Scalar scores[S::width];
    S::store(scores, s);
    const Index sequence = row.sequence, head = row.head, query = row.position;
    for (int w = 0; w < S::width; ++w)
      scores[w] = Scalar(f(scores[w], At{sequence, head, query, key + lanes[w]}));
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
/// What a functor of lanes returns. Where a call names it, the compiler looks into the functor at
/// once, and what is wrong in it is said first.
template <class Scalar, class Held>
auto result_on_lanes(const LanesFunctor<Held>&)
    -> decltype(std::declval<const functor_t<Held>&>()(std::declval<Lanes<Simd<Scalar>>>(),
                                                       std::declval<LanesAt<Simd<Scalar>>>()));
template <class Scalar>
void result_on_lanes(...);
template <class... Results>
inline constexpr bool check_functors_v = true;

template <class Held, class HeldSlope = Absent>
struct KeyFunctor : option_base {
  using Kind = ScoreOption;
  using Position = ReadsPositions;
  Held held;
  HeldSlope slope;
  explicit KeyFunctor(Held h, HeldSlope s = {}) : held(std::move(h)), slope(std::move(s)) {}
  template <class Scalar, class Shape>
  auto bind(const Shape&) const {
    using Function = functor_t<Held>;
    static_assert(std::is_invocable_r_v<Scalar, const Function&, Scalar, At>,
                  "attn::score: a functor that is called one key at a time takes the score and "
                  "where it stands, and returns the new score: write [](float s, attn::At at) { "
                  "return s - ...; }, or [](auto s, auto at) to be called with lanes of keys");
    if constexpr (is_there_v<HeldSlope>) {
      using OfUser = SlopeOfUser<functor_t<HeldSlope>>;
      static_assert(std::is_invocable_r_v<Scalar, const functor_t<HeldSlope>&, Scalar, At>,
                    "attn::score: the slope of a functor takes the score and where it stands, and "
                    "returns how much the new score changes with it: write score(f, [](float s, "
                    "attn::At at) { return ...; })");
      return BoundKeyFunctor<Function, OfUser>(held.get(), OfUser{&slope.get()});
    } else {
      using OfDual = SlopeOfDual<Function>;
      return BoundKeyFunctor<Function, OfDual>(held.get(), OfDual{&held.get()});
    }
  }
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
