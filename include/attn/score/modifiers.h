// attn/score/modifiers.h: all modifiers of a call's scores, in the library's order.
// SPDX-License-Identifier: MIT
//
// A modifier is an option in a file of its own: what the user gave, and bind(shape), which checks
// it against the call and leaves a light rule (score_rule.h). Another one is such a file, and its
// kind in the list below.
#pragma once

#include "alibi.h"
#include "bias.h"
#include "scale.h"
#include "score_functor.h"
#include "sink.h"
#include "softcap.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// What happens to a score, one after the other.
using ModifierOrder = Order<SoftcapOption, BiasOption, AlibiOption, ScoreOption>;

/// Rules, each applied to what the one before leaves.
template <class... Rules>
struct RuleChain {
  static constexpr bool kReadsTable = false;
  template <stage>
  static constexpr int slopes_until() {
    return 0;
  }

  template <class F>
  RuleChain map(const F&) const {
    return {};
  }
  template <class S>
  ATTN_INLINE typename S::Packet apply(const typename S::Packet& s, const QueryRow&, Index) const {
    return s;
  }
  template <class S>
  ATTN_INLINE typename S::Packet apply_seen(const typename S::Packet& s, const QueryRow&, Index,
                                            const typename S::Mask&) const {
    return s;
  }
  template <class S, stage Last>
  ATTN_INLINE typename S::Packet apply_until(const typename S::Packet& s, const QueryRow&,
                                             Index) const {
    return s;
  }
  template <class S, int Before>
  ATTN_INLINE typename S::Packet apply_with_slopes(const typename S::Packet& s, const QueryRow&,
                                                   Index, const typename S::Mask&,
                                                   typename S::Packet*) const {
    return s;
  }
};
template <class First, class... Rest>
RuleChain<First, Rest...> chain(const First& first, const RuleChain<Rest...>& rest) {
  return {first, rest};
}
template <class First, class... Rest>
struct RuleChain<First, Rest...> {
  First first;
  RuleChain<Rest...> rest;

  /// A rule reads a matrix shaped like the scores.
  static constexpr bool kReadsTable = First::kReadsTable || RuleChain<Rest...>::kReadsTable;
  const auto& table() const {
    if constexpr (First::kReadsTable) {
      return first.table;
    } else {
      return rest.table();
    }
  }

  /// Rules up to a stage whose slope is not 1.
  template <stage Last>
  static constexpr int slopes_until() {
    return int(First::kSloped && First::kStage <= Last) +
           RuleChain<Rest...>::template slopes_until<Last>();
  }

  /// The chain of f(rule).
  template <class F>
  auto map(const F& f) const {
    return chain(f(first), rest.map(f));
  }
  template <class S>
  ATTN_INLINE typename S::Packet apply(const typename S::Packet& s, const QueryRow& row,
                                       Index key) const {
    return rest.template apply<S>(first.template apply<S>(s, row, key), row, key);
  }
  template <class S>
  ATTN_INLINE typename S::Packet apply_seen(const typename S::Packet& s, const QueryRow& row,
                                            Index key, const typename S::Mask& seen) const {
    if constexpr (First::kAsksSeen) {
      return rest.template apply_seen<S>(first.template apply_seen<S>(s, row, key, seen), row, key,
                                         seen);
    } else {
      return rest.template apply_seen<S>(first.template apply<S>(s, row, key), row, key, seen);
    }
  }
  /// Only the rules up to a stage.
  template <class S, stage Last>
  ATTN_INLINE typename S::Packet apply_until(const typename S::Packet& s, const QueryRow& row,
                                             Index key) const {
    if constexpr (First::kStage <= Last) {
      return rest.template apply_until<S, Last>(first.template apply<S>(s, row, key), row, key);
    } else {
      return rest.template apply_until<S, Last>(s, row, key);
    }
  }
  /// apply_seen() to the bit, and the slopes of the rules whose slope is not 1, one after the
  /// other: the first `Before` are there. A score of −∞ has slopes 0: what hides a pair hides it
  /// whatever it held.
  template <class S, int Before = 0>
  ATTN_INLINE typename S::Packet apply_with_slopes(const typename S::Packet& s, const QueryRow& row,
                                                   Index key, const typename S::Mask& seen,
                                                   typename S::Packet* slopes) const {
    using Scalar = typename S::Scalar;
    constexpr int known = Before + int(First::kSloped);
    typename S::Packet score = s;
    if constexpr (First::kSloped) {
      score = first.template apply_with_slope<S>(s, row, key, seen, slopes[Before]);
    } else {
      score = first.template apply<S>(s, row, key);
    }
    const auto lowest = S::set(Scalar(Eigen::NumTraits<Scalar>::lowest()));
    ATTN_UNROLL
    for (int n = 0; n < known; ++n)
      slopes[n] = S::where_less(score, lowest, S::set(Scalar(0)), slopes[n]);
    return rest.template apply_with_slopes<S, known>(score, row, key, seen, slopes);
  }
};

/// The modifiers of a call: the rules of its scores, and beside them the sink.
template <class Sink, class... Rules>
struct Modifiers {
  RuleChain<Rules...> rules;
  Sink sink;

  const auto& table() const { return rules.table(); }

  /// Scores enter the softmax (or the mask) as they are.
  static constexpr bool kIdentity = sizeof...(Rules) == 0;
  static constexpr bool kSink = is_there_v<Sink>;
  static constexpr bool kReadsTable = RuleChain<Rules...>::kReadsTable;
  /// Slopes that a backward pass needs of a score: of all rules, and of those before the bias.
  static constexpr int kSlopes = RuleChain<Rules...>::template slopes_until<stage::biased>(),
                       kSlopesBeforeBias =
                           RuleChain<Rules...>::template slopes_until<stage::softcapped>();

  /// The rules of one row, to apply to its scores.
  /// WHY  looked up packet by packet, where a row of the bias lies is loaded and computed anew each
  ///      time: the compiler must take every stored score for a change of it (bias1k 0.74 of the
  ///      peak instead of 0.77, Zen 5). Of the rest 0.03 are the loads from L3, which prefetching
  ///      the rows of the strip, or of the next one, made slower.
  auto of(const QueryRow& row) const {
    return rules.map([&](const auto& rule) {
      if constexpr (std::decay_t<decltype(rule)>::kReadsTable) {
        return rule.of(row);
      } else {
        return rule;
      }
    });
  }
  /// The same with what a row's table holds from elsewhere.
  template <class RuleOfRow>
  auto with(const RuleOfRow& of_row) const {
    return rules.map([&](const auto& rule) {
      if constexpr (std::decay_t<decltype(rule)>::kReadsTable) {
        return of_row;
      } else {
        return rule;
      }
    });
  }
};

/// The rules of the options given among some kinds, in the order of those.
template <class Scalar, class Asked>
RuleChain<> bind_rules(const CallShape&, const Asked&, Order<>) {
  return {};
}
template <class Scalar, class Asked, class Kind, class... Kinds>
auto bind_rules(const CallShape& shape, const Asked& asked, Order<Kind, Kinds...>) {
  if constexpr (Asked::template has<Kind>()) {
    const auto rule = bind<Kind, Scalar>(shape, asked);
    return chain(rule, bind_rules<Scalar>(shape, asked, Order<Kinds...>{}));
  } else {
    return bind_rules<Scalar>(shape, asked, Order<Kinds...>{});
  }
}
template <class Sink, class... Rules>
Modifiers<Sink, Rules...> modifiers(const RuleChain<Rules...>& rules, const Sink& sink) {
  return {rules, sink};
}
/// All modifiers of a call, bound to its shape.
template <class Scalar, class Asked>
auto bind_modifiers(const CallShape& shape, const Asked& asked) {
  const auto rules = bind_rules<Scalar>(shape, asked, ModifierOrder{});
  return modifiers(rules, bind<SinkOption, Scalar>(shape, asked));
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
