// attn/kernel/gradient_rows.h: the rows of a chunk as the backward pass multiplies with them:
// output gradients and queries, and what the softmax left of each.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../base/load.h"
#include "backward_problem.h"
#include "chunk_rows.h"
#include "pack.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// Where they lie in scratch.
template <class Scalar>
struct GradientRowsMemory {
  Scalar *gradient_strips, *gradient_rows, *query_rows;
  Scalar *maximum, *delta, *row;  ///< a number a row; room for one row
  Index rows;                     ///< there is room for, in whole depth steps
  Index value_depth;              ///< d_v in whole depth steps
  Index query_depth;              ///< d_k in whole depth steps
};

// WHAT     of each row        g = dY / l            (0 where l = 0)        as strips, for dp = g · vᵀ, and as panels of features, for dv += eᵀ · g
//                             q̂ = scale · q                                as panels of features, for dk += dsᵀ · q̂; out of the packed strips
//                             m, δ = (dY · O − d(log-sum-exp)) / l
// WHY      1 / l rides on g and δ, and 1 / (1 − p) of dropout on g: no pair is divided by them
// EDGES    rows behind the chunk's, up to a whole depth step, are zeros in the panels.
//          finite(): none of a row's numbers is NaN or infinite, so that a hidden pair may be
//          multiplied by its zero
// NUMERICS dY · O in one order, lanes first
template <class Problem>
class GradientRows {
  using Scalar = typename Problem::Scalar;
  using S = detail::Simd<Scalar>;
  using Size = TileSize<Scalar>;

 public:
  using Memory = GradientRowsMemory<Scalar>;

  GradientRows(const Problem& problem, const Memory& memory) : problem_(problem), memory_(memory) {}

  /// Goes to the rows of a chunk, whose packed queries are here.
  void enter(const ChunkRows<Scalar>& rows, const Scalar* packed_queries) {
    std::fill_n(finite_, std::size(finite_), true);
    clear_behind(rows.count());
    rows.each_strip([&](const Strip& strip) {
      auto cursor = rows.from(strip.first);
      for (int i = 0; i < strip.rows; ++i, cursor.next()) {
        FiniteCheck<S> check;
        take_gradient(cursor.row, strip, i, check);
        take_query(strip, i, packed_queries, check);
        finite_[(strip.first + i) / kTogether] &= check.finite();
      }
    });
  }
  /// Those of kTogether rows from a multiple of it on.
  bool finite(Index first) const { return finite_[first / kTogether]; }
  const Scalar* maximum(Index row) const { return memory_.maximum + row; }
  const Scalar* delta(Index row) const { return memory_.delta + row; }
  const Scalar* gradient_strip(const Strip& strip) const {
    return memory_.gradient_strips + strip.first * memory_.value_depth;
  }
  /// Panels of features, panel_stride() apart, from a row on.
  const Scalar* gradient_rows(Index first) const {
    return memory_.gradient_rows + first * Size::panel;
  }
  const Scalar* query_rows(Index first) const { return memory_.query_rows + first * Size::panel; }
  Index panel_stride() const { return memory_.rows * Size::panel; }

  /// Rows whose numbers are looked at together.
  static constexpr Index kTogether = Size::gradient_rows;

 private:
  void take_gradient(const QueryRow& row, const Strip& strip, int i, FiniteCheck<S>& check) {
    const Index features = problem_.scored.shape.value_dim, r = strip.first + i,
                number = problem_.state.number(row);
    const Scalar &m = problem_.state.maximum[number], &l = problem_.state.sum[number];
    const bool empty = detail::equal(l, Scalar(0));
    const Scalar inverse = empty ? Scalar(0) : Scalar(Scalar(1) / l);
    Scalar delta(0);
    std::fill_n(memory_.row, round_up(features, Size::panel), Scalar(0));
    if (!empty) {
      const Scalar change(product_with_output(row) - logsumexp_gradient(row));
      problem_.scores.see_row(problem_.scored.modify, row, m, l, change);
      delta = Scalar(change * inverse);
      Scalar factor = inverse;
      if constexpr (Problem::Scored::kDrops)
        factor = Scalar(factor * problem_.scored.dropout.scale);
      for (Index c = 0; c < features; c += S::width) {
        const auto g = S::mul(S::load(memory_.row + c), S::set(factor));
        check.see(g);
        S::store(memory_.row + c, g);
      }
    }
    check.see(S::set(m));
    check.see(S::set(delta));
    memory_.maximum[r] = m;
    memory_.delta[r] = delta;
    pack_query<S>(memory_.row, 1, features, memory_.value_depth, Scalar(1), i, strip.rows,
                  memory_.gradient_strips + strip.first * memory_.value_depth);
    for (Index c = 0; c < round_up(features, Size::panel); c += S::width)
      S::store(memory_.gradient_rows + panel_of(c) + r * Size::panel, S::load(memory_.row + c));
  }
  /// Σ dY · O of a row, which is left in scratch behind as whole packets. Where O is 0, as in a row
  /// that sees no key, what dY holds is no matter.
  Scalar product_with_output(const QueryRow& row) {
    const auto& gradient = problem_.output_gradient;
    const auto* const from = gradient.row(row.sequence, row.head, row.row);
    const Index stride = gradient.view.feature_stride, features = problem_.scored.shape.value_dim;
    const Scalar* const output = problem_.state.output_of(row);
    const auto zero = S::set(Scalar(0));
    auto sum = zero;
    for (Index c = 0; c < features; c += S::width) {
      const auto g = detail::load_strided<S>(from + c * stride, stride, features - c),
                 o = detail::load_strided<S>(output + c, 1, features - c);
      // (A stride of 0 repeats the one number behind the last feature too; there the output is 0.)
      sum = S::fmadd(S::select(S::equal(o, zero), zero, g), o, sum);
      S::store(memory_.row + c, S::select(S::first_lanes(features - c), g, zero));
    }
    return S::reduce_add(sum);
  }
  Scalar logsumexp_gradient(const QueryRow& row) const {
    if constexpr (std::is_same_v<typename Problem::LogSumExpGradient, Absent>) {
      return Scalar(0);
    } else {
      return Scalar(*problem_.logsumexp_gradient.row(row.sequence, row.head, row.row));
    }
  }
  void take_query(const Strip& strip, int i, const Scalar* packed, FiniteCheck<S>& check) {
    const Index depth = memory_.query_depth, r = strip.first + i;
    const Scalar* from = packed + strip.first * depth + i * Size::depth;
    for (Index c = 0; c < depth; c += Size::depth, from += Index(Size::depth) * strip.rows)
      std::copy_n(from, Size::depth, memory_.row + c);
    const Index end = round_up(depth, Size::panel);
    std::fill(memory_.row + depth, memory_.row + end, Scalar(0));
    for (Index c = 0; c < end; c += S::width) {
      const auto q = S::load(memory_.row + c);
      check.see(q);
      S::store(memory_.query_rows + panel_of(c) + r * Size::panel, q);
    }
  }
  Index panel_of(Index c) const { return c / Size::panel * panel_stride() + c % Size::panel; }
  void clear_behind(Index rows) {
    const Index end = round_up(rows, Size::depth);
    const auto clear = [&](Scalar* panels, Index features) {
      for (Index c = 0; c < features; c += Size::panel) {
        std::fill_n(panels + c / Size::panel * panel_stride() + rows * Size::panel,
                    (end - rows) * Size::panel, Scalar(0));
      }
    };
    clear(memory_.gradient_rows, problem_.scored.shape.value_dim);
    clear(memory_.query_rows, problem_.scored.shape.key_dim);
  }

  const Problem& problem_;
  const Memory memory_;
  bool finite_[Size::max_gradient_chunk / Size::gradient_rows];
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
