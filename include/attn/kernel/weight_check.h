// attn/kernel/weight_check.h: whether the weights that a backward pass finds are those of its
// forward pass, in builds with assertions.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "../base/check.h"
#include "chunk_rows.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     of each row |Σ e − l| ≤ (10⁻³ + 4 ε · |m|) · l, with m and l of the forward pass. A sink
//          is a pair of its own
// WHY      what a mask, a bias or a slope holds is not compared before the pass: that takes as long
//          as the pass. Its sums come by the way, and show a call that is not the forward one
// NUMERICS those of one build differ by the order of sums alone. ε · |m|: what another library's
//          log-sum-exp is rounded by
// EDGES    left out: rows that see no key (l = 0), or a NaN or infinity; a pass over some of the
//          keys
template <class Problem, class Checks = detail::debug_checks_t>
class WeightCheck {
  using Scalar = typename Problem::Scalar;
  using S = detail::Simd<Scalar>;
  using Size = TileSize<Scalar>;

 public:
  /// `sums`: a number for each row of a chunk.
  WeightCheck(const Problem& problem, Scalar* sums) : problem_(problem), sums_(sums) {}

  void enter(Index rows) { std::fill_n(sums_, rows, Scalar(0)); }
  /// Of a strip and a block, by lanes.
  void add(const Strip& strip, const Scalar* lanes) {
    for (int i = 0; i < strip.rows; ++i, lanes += Size::panel) {
      auto sum = S::load(lanes);
      for (int v = 1; v < Size::packets; ++v) sum = S::add(sum, S::load(lanes + v * S::width));
      sums_[strip.first + i] = Scalar(sums_[strip.first + i] + S::reduce_add(sum));
    }
  }
  /// All keys have been seen.
  void leave(const ChunkRows<Scalar>& rows) const {
    if (!problem_.keys.all()) return;
    auto cursor = rows.from(0);
    for (Index r = 0; r < rows.count(); ++r, cursor.next()) {
      [[maybe_unused]] const bool same = is_of_forward(cursor.row, sums_[r]);
      eigen_assert(same &&
                   "attn: a backward pass finds other weights than its forward pass: a "
                   "mask, bias, slope, query or key is not what it was");
    }
  }

 private:
  bool is_of_forward(const QueryRow& row, Scalar sum) const {
    using std::abs;
    using std::exp;
    const Index number = problem_.state.number(row);
    const Scalar &m = problem_.state.maximum[number], &l = problem_.state.sum[number];
    if (detail::equal(l, Scalar(0)) || !detail::is_finite(l) || !detail::is_finite(m)) return true;
    if constexpr (Problem::Scored::Modify::kSink) {
      const Scalar logit = problem_.scored.modify.sink.logit(row);
      if (detail::is_finite(logit)) sum = Scalar(sum + Scalar(exp(Scalar(logit - m))));
    }
    const Scalar error = Scalar(abs(Scalar(sum - l))), size = Scalar(abs(m)),
                 rounding = Scalar(Scalar(4 * Eigen::NumTraits<Scalar>::epsilon()) * size);
    return error <= Scalar(Scalar(Scalar(1e-3) + rounding) * l);
  }

  const Problem& problem_;
  Scalar* const sums_;
};
/// Without assertions nothing is summed.
template <class Problem>
class WeightCheck<Problem, std::false_type> {
 public:
  template <class Scalar>
  WeightCheck(const Problem&, Scalar*) {}
  void enter(Index) {}
  template <class Scalar>
  void add(const Strip&, const Scalar*) {}
  template <class Rows>
  void leave(const Rows&) const {}
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
