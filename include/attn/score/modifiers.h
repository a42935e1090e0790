// attn/score/modifiers.h: the modifiers behind the options of score.h, and what the engine asks of
// them.
// SPDX-License-Identifier: MIT
//
// An option holds what the user gave; bind(shape) checks it against the call and leaves a light
// modifier:
//   Packet apply<Simd>(s, row, key)             the scores of the keys key, key + 1, …, modified
//   Packet apply_seen<Simd>(s, row, key, seen) the same where only the lanes `seen` count: the
//   others are hidden afterwards
#pragma once

#include "../base/call_shape.h"
#include "../base/load.h"
#include "../mask/interval.h"
#include "../base/number_list.h"
#include "score_functor.h"
#include "../base/vector_math.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

template <class Number>
struct Scale : option_base {
  Number value;
  explicit Scale(Number v) : value(std::move(v)) {}
  template <class Scalar>
  Scalar bind(const CallShape& shape) const {
    const Scalar a = Scalar(value);
    if (!is_finite(a)) {
      fail(text(shape.function, ": scale is ", number_text(value), ", needs a finite number"));
    }
    return a;
  }
};

/// c·tanh(s / c).
template <class Scalar>
struct BoundSoftcap {
  Scalar cap, inverse;
  template <class S>
  ATTN_INLINE typename S::Packet apply(const typename S::Packet& s, const QueryRow&, Index) const {
    return S::mul(S::set(cap), tanh_lanes<S>(S::mul(s, S::set(inverse))));
  }
};
template <class Number>
struct Softcap : option_base {
  Number cap;
  explicit Softcap(Number c) : cap(std::move(c)) {}
  template <class Scalar>
  BoundSoftcap<Scalar> bind(const CallShape& shape) const {
    using Limits = std::numeric_limits<Scalar>;
    const Scalar c = Scalar(cap), inverse = Scalar(Scalar(1) / c),
                 lost = Scalar(c * Scalar(Limits::min()));  // of a score, where s / c is flushed
    if (!is_finite(c) || !(c > Scalar(0)) || !is_finite(inverse) || lost > Limits::epsilon()) {
      fail(text(shape.function, ": softcap is ", number_text(cap),
                ", needs a finite cap above zero, neither so small that 1 / cap overflows nor so "
                "large that s / cap vanishes"));
    }
    return {c, inverse};
  }
};

/// s + bias; a bias of −∞ hides the pair, whatever its score holds (NaN too).
template <class S>
ATTN_INLINE typename S::Packet add_bias(const typename S::Packet& s,
                                        const typename S::Packet& bias) {
  const auto lowest = S::set(typename S::Scalar(Eigen::NumTraits<typename S::Scalar>::lowest()));
  return S::where_less(bias, lowest, bias, S::add(s, bias));
}
template <class Scalar, class T>
struct BoundBias {
  ScoreTable<T> table;
  /// The biases of a row.
  struct Row {
    const T* biases;
    Index stride;
    template <class S>
    ATTN_INLINE typename S::Packet apply(const typename S::Packet& s, const QueryRow& row,
                                         Index key) const {
      return add_bias<S>(s, load_strided<S>(biases + key * stride, stride, row.keys - key));
    }
  };
  Row of(const QueryRow& row) const { return {table.row(row), table.key_stride}; }
};
/// The biases of a row from key `first` on, brought to whole packets of scratch.
template <class Scalar>
struct BiasesInScratch {
  const Scalar* biases;
  Index first;
  template <class S>
  ATTN_INLINE typename S::Packet apply(const typename S::Packet& s, const QueryRow&,
                                       Index key) const {
    return add_bias<S>(s, S::load(biases + (key - first)));
  }
};
template <class Source>
struct Bias : option_base {
  Source source;
  explicit Bias(Source s) : source(std::move(s)) {}
  template <class Scalar>
  BoundBias<Scalar, typename Source::Scalar> bind(const CallShape& shape) const {
    return {source.table(shape, "bias")};
  }
};

/// s − slope·|p − j|, in one rounding where the hardware fuses.
template <class Scalar, class Number>
struct BoundAlibi {
  typename NumberList<Number>::ByHead slopes;
  template <class S>
  ATTN_INLINE typename S::Packet apply(const typename S::Packet& s, const QueryRow& row,
                                       Index key) const {
    const auto distance = S::abs(S::sub(S::set(from_index<Scalar>(row.position - key)), S::iota()));
    return S::fmadd(S::set(Scalar(-Scalar(slopes[row.head]))), distance, s);
  }
};
template <class Number>
struct Alibi : option_base {
  static constexpr bool kReadsPositions = true;
  NumberList<Number> slopes;
  explicit Alibi(NumberList<Number> s) : slopes(std::move(s)) {}
  template <class Scalar>
  BoundAlibi<Scalar, Number> bind(const CallShape& shape) const {
    slopes.check(shape.function, "alibi", shape.heads);
    for (Index h = 0; h < slopes.size(); ++h) {
      if (!is_finite(Scalar(slopes[h])))
        fail(text(shape.function, ": alibi: slope ", h, " is ", number_text(slopes[h]),
                  ", needs a finite number"));
    }
    return {slopes.by_head()};
  }
};

/// A logit for each head that takes part in the softmax and has no value: the state of a row starts
/// from it.
template <class Scalar, class Number>
struct BoundSink {
  typename NumberList<Number>::ByHead logits;
  Scalar logit(const QueryRow& row) const { return Scalar(logits[row.head]); }
};
template <class Number>
struct Sink : option_base {
  NumberList<Number> logits;
  explicit Sink(NumberList<Number> l) : logits(std::move(l)) {}
  template <class Scalar>
  BoundSink<Scalar, Number> bind(const CallShape& shape) const {
    logits.check(shape.function, "sink", shape.heads);
    for (Index h = 0; h < logits.size(); ++h) {
      const Scalar logit = Scalar(logits[h]);
      if (!is_finite(logit) && !(logit < Scalar(0)))
        fail(text(shape.function, ": sink: logit ", h, " is not a finite number (or -infinity)"));
    }
    return {logits.by_head()};
  }
};

/// A modifier that is not there.
struct Unmodified {
  Unmodified of(const QueryRow&) const { return {}; }
  template <class S>
  ATTN_INLINE typename S::Packet apply(const typename S::Packet& s, const QueryRow&, Index) const {
    return s;
  }
};

/// The modifiers of a call in the library's order: softcap → bias → ALiBi → the user's functor.
/// Beside them the sink.
template <class Softcap, class Bias, class Alibi, class User, class Sink>
struct Modifiers {
  Softcap softcap;
  Bias bias;
  Alibi alibi;
  User user;
  Sink sink;

  /// Scores enter the softmax (or the mask) as they are.
  static constexpr bool kIdentity =
      std::is_same_v<Softcap, Unmodified> && std::is_same_v<Bias, Unmodified> &&
      std::is_same_v<Alibi, Unmodified> && std::is_same_v<User, Unmodified>;
  static constexpr bool kSink = !std::is_same_v<Sink, Unmodified>;

  /// The modifiers of one row, to apply to its scores.
  /// WHY  looked up packet by packet, where a row of the bias lies is loaded and computed anew each
  ///      time: the compiler must take every stored score for a change of it (bias1k 0.74 of the
  ///      peak instead of 0.77, Zen 5). Of the rest 0.03 are the loads from L3, which prefetching
  ///      the rows of the strip, or of the next one, made slower.
  auto of(const QueryRow& row) const { return with(bias.of(row)); }
  /// The same with the row's biases from elsewhere.
  template <class BiasOfRow>
  auto with(const BiasOfRow& biases) const {
    return Modifiers<Softcap, BiasOfRow, Alibi, User, Sink>{softcap, biases, alibi, user, sink};
  }

  template <class S>
  ATTN_INLINE typename S::Packet apply(const typename S::Packet& s, const QueryRow& row,
                                       Index key) const {
    return user.template apply<S>(built_in<S>(s, row, key), row, key);
  }
  template <class S>
  ATTN_INLINE typename S::Packet apply_seen(const typename S::Packet& s, const QueryRow& row,
                                            Index key, const typename S::Mask& seen) const {
    const auto modified = built_in<S>(s, row, key);
    if constexpr (is_instance_v<BoundKeyFunctor, User>) {
      return user.template apply_seen<S>(modified, row, key, seen);
    } else {
      return user.template apply<S>(modified, row, key);
    }
  }

 private:
  template <class S>
  ATTN_INLINE typename S::Packet built_in(const typename S::Packet& s, const QueryRow& row,
                                          Index key) const {
    return alibi.template apply<S>(
        bias.template apply<S>(softcap.template apply<S>(s, row, key), row, key), row, key);
  }
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
