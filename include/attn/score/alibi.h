// attn/score/alibi.h: a penalty by distance.
// SPDX-License-Identifier: MIT
#pragma once

#include "../base/call_shape.h"
#include "../base/load.h"
#include "../base/number_list.h"
#include "../base/asked.h"
#include "../lanes.h"
#include "score_rule.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

struct AlibiOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: two alibis in one call");
  }
};
/// s − slope·|p − j|, in one rounding where the hardware fuses.
template <class Scalar, class Number>
struct BoundAlibi : ScoreRule {
  using Slopes = typename NumberList<Number>::ByHead;
  Slopes slopes;
  explicit BoundAlibi(const Slopes& s) : slopes(s) {}
  template <class S>
  ATTN_INLINE typename S::Packet apply(const typename S::Packet& s, const QueryRow& row,
                                       Index key) const {
    const auto distance = S::abs(S::sub(S::set(from_index<Scalar>(row.position - key)), S::iota()));
    return S::fmadd(S::set(Scalar(-Scalar(slopes[row.head]))), distance, s);
  }
};
template <class Number>
struct Alibi : option_base {
  using Kind = AlibiOption;
  using Position = ReadsPositions;
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
    return BoundAlibi<Scalar, Number>(slopes.by_head());
  }
  template <class Visit>
  void visit_memory(const Visit& visit) const {
    visit("alibi", slopes.memory());
  }
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
