// attn/score.h: stage 2, what happens to a score between scale · q·k and the mask: scale, softcap, bias.
// SPDX-License-Identifier: MIT
//
//   order, always    s = scale · q·k  →  softcap: c·tanh(s / c)  →  + bias  →  mask  →  softmax
//
// Options have no order among themselves; this order is the library's. Softcap after a mask would turn −∞ into −c and leak
// probability; a mask after scaling makes a zero or negative scale harmless.
#pragma once

#include "detail/load.h"
#include "detail/vector_math.h"
#include "mask.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

template <class Number>
struct Scale : option_base {
  Number value;
  explicit Scale(Number v) : value(std::move(v)) {}
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
    if (!(cap > Number(0)) || !is_finite(Scalar(cap)))
      fail(text(shape.function, ": softcap needs a finite cap above zero"));
    return {Scalar(cap), Scalar(Scalar(1) / Scalar(cap))};
  }
};

/// s + bias; a bias of −∞ hides the pair, whatever its score holds (NaN too).
template <class Scalar, class T>
struct BoundBias {
  ScoreTable<T> table;
  template <class S>
  ATTN_INLINE typename S::Packet apply(const typename S::Packet& s, const QueryRow& row,
                                       Index key) const {
    const auto bias =
        load_strided<S>(table.row(row) + key * table.key_stride, table.key_stride, row.keys - key);
    const auto hidden = S::less(bias, S::set(Scalar(Eigen::NumTraits<Scalar>::lowest())));
    return S::select(hidden, bias, S::add(s, bias));
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

/// A modifier that is not there.
struct Unmodified {
  template <class S>
  ATTN_INLINE typename S::Packet apply(const typename S::Packet& s, const QueryRow&, Index) const {
    return s;
  }
};

/// The modifiers of a call in the library's order.
template <class First, class Second>
struct Modifiers {
  First first;
  Second second;
  static constexpr bool kIdentity =
      std::is_same_v<First, Unmodified> && std::is_same_v<Second, Unmodified>;

  template <class S>
  ATTN_INLINE typename S::Packet apply(const typename S::Packet& s, const QueryRow& row,
                                       Index key) const {
    return second.template apply<S>(first.template apply<S>(s, row, key), row, key);
  }
};

}  // namespace detail

/// Scores are scale · q·k; without this option scale = 1/√d_k.
template <class Number>
detail::Scale<Number> scale(Number value) {
  return detail::Scale<Number>(std::move(value));
}

/// Scores are squashed into (−cap, cap) by cap·tanh(s / cap), cap > 0 (Gemma 2, arXiv:2408.00118).
template <class Number>
detail::Softcap<Number> softcap(Number cap) {
  return detail::Softcap<Number>(std::move(cap));
}

/// B is added to the scores; −∞ hides a pair. B: Lq × Lk for all sequences, or their rows stacked; heads(B, H): one for each
/// head; a strided view [sequence or 1, head or 1, query or 1, key or 1].
template <class Matrix>
auto bias(Matrix&& B) {
  static_assert(detail::is_score_shaped_v<Matrix>,
                "attn::bias: expected a matrix to add to the scores");
  static_assert(!detail::is_score_table<Matrix, true>(),
                "attn::bias: a matrix of bool says its polarity: keep(B) attends where it is true, "
                "hide(B) where it is false");
  auto source = detail::score_source(std::forward<Matrix>(B));
  return detail::Bias<decltype(source)>(std::move(source));
}

}  // namespace ATTN_ABI
}  // namespace attn
