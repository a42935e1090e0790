// attn/base/weight_matrix.h: a matrix of a layer's weights, which says how it is written.
// SPDX-License-Identifier: MIT
#pragma once

#include "traits.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// A matrix of a layer's weights. Where it is const, as the layer shows it, whoever writes to it is
/// told how weights are written.
template <class Base>
struct WeightMatrix : Base {
  using Base::Base;
  using Base::setConstant;
  using Base::setRandom;
  using Base::setZero;
  template <class Other>
  WeightMatrix& operator=(const Other& other) {
    Base::operator=(other);
    return *this;
  }

  template <class Other>
  void operator=(const Other&) const {
    is_to_read<Other>();
  }
  // (...): the last that a call chooses, so that Base's are chosen where they can be.
  template <class Self = Base>
  void setConstant(...) const {
    is_to_read<Self>();
  }
  template <class Self = Base>
  void setRandom(...) const {
    is_to_read<Self>();
  }
  template <class Self = Base>
  void setZero(...) const {
    is_to_read<Self>();
  }

 private:
  template <class Type>
  static constexpr void is_to_read() {
    static_assert(always_false_v<Type>,
                  "attn: a layer's weights() are to read: write them by "
                  "mha.edit([&](auto& w) { w.query = W; }), which packs them anew, or by "
                  "linear.edit([&](auto& w) { w.kernel() = W; })");
  }
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
