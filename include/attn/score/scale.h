// attn/score/scale.h: the factor of q·k.
// SPDX-License-Identifier: MIT
#pragma once

#include "../base/call_shape.h"
#include "../base/load.h"
#include "../base/asked.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

struct ScaleOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: two scales in one call");
  }
};
template <class Number>
struct Scale : option_base {
  using Kind = ScaleOption;
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

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
