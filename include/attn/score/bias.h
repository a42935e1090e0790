// attn/score/bias.h: a matrix added to the scores.
// SPDX-License-Identifier: MIT
#pragma once

#include "../base/call_shape.h"
#include "../base/load.h"
#include "../base/asked.h"
#include "score_rule.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

struct BiasOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: two biases in one call: add the matrices, bias(A + B)");
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
struct BoundBias : ScoreRule {
  static constexpr bool kReadsTable = true;
  ScoreTable<T> table;
  explicit BoundBias(const ScoreTable<T>& t) : table(t) {}
  /// The biases of a row.
  struct Row : ScoreRule {
    const T* biases;
    Index stride;
    Row(const T* b, Index s) : biases(b), stride(s) {}
    template <class S>
    ATTN_INLINE typename S::Packet apply(const typename S::Packet& s, const QueryRow& row,
                                         Index key) const {
      return add_bias<S>(s, load_strided<S>(biases + key * stride, stride, row.keys - key));
    }
  };
  Row of(const QueryRow& row) const { return {table.row(row), table.key_stride()}; }
};
/// The biases of a row from key `first` on, brought to whole packets of scratch.
template <class Scalar>
struct BiasesInScratch : ScoreRule {
  const Scalar* biases;
  Index first;
  BiasesInScratch(const Scalar* b, Index f) : biases(b), first(f) {}
  template <class S>
  ATTN_INLINE typename S::Packet apply(const typename S::Packet& s, const QueryRow&,
                                       Index key) const {
    return add_bias<S>(s, S::load(biases + (key - first)));
  }
};
template <class Source>
struct Bias : option_base {
  using Kind = BiasOption;
  Source source;
  explicit Bias(Source s) : source(std::move(s)) {}
  template <class Scalar>
  BoundBias<Scalar, typename Source::Scalar> bind(const CallShape& shape) const {
    return BoundBias<Scalar, typename Source::Scalar>(source.table(shape, "bias"));
  }
  template <class Visit>
  void visit_memory(const Visit& visit) const {
    visit("bias", source.memory());
  }
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
