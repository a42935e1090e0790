// attn/score/sink.h: a logit of each head in the softmax's denominator.
// SPDX-License-Identifier: MIT
#pragma once

#include "../base/call_shape.h"
#include "../base/load.h"
#include "../base/number_list.h"
#include "../base/asked.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

struct SinkOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: two sinks in one call");
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
  using Kind = SinkOption;
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
  template <class Visit>
  void visit_memory(const Visit& visit) const {
    visit("sink", logits.memory());
  }
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
