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
  Index value_depth;              ///< d_v in whole depth steps, one at least
  Index query_depth;              ///< d_k in whole depth steps
};

/// The rows of a packed strip: put(i, c, features c, c + 1, … of row i), up to a whole panel of
/// features, zeros behind the depth.
template <class S, class Put>
ATTN_INLINE void unpack_rows(const typename S::Scalar* strip, Index rows, Index depth,
                             const Put& put) {
  using Scalar = typename S::Scalar;
  constexpr Index kGroup = TileSize<Scalar>::depth;
  const Index end = round_up(depth, TileSize<Scalar>::panel);
  Index i = 0;
  if constexpr (S::width >= kGroup) {
    // As in pack_queries(): groups of kTogether rows change places.
    constexpr Index kTogether = S::width / kGroup;
    for (; i + kTogether <= rows; i += kTogether) {
      for (Index c = 0; c < end; c += S::width) {
        typename S::Packet packets[std::size_t{kTogether}];
        ATTN_UNROLL
        for (Index t = 0; t < kTogether; ++t) {
          const Index at = c + t * kGroup;
          packets[t] = at < depth ? S::loadu(strip + at * rows + i * kGroup) : S::set(Scalar(0));
        }
        S::template transpose_units<kGroup>(packets);
        ATTN_UNROLL
        for (Index t = 0; t < kTogether; ++t) put(i + t, c, packets[t]);
      }
    }
  }
  for (; i < rows; ++i) {
    for (Index c = 0; c < end; c += S::width) {
      alignas(64) Scalar lanes[S::width];
      for (Index w = 0; w < S::width; ++w) {
        const Index at = c + w;
        lanes[w] =
            at < depth ? strip[at / kGroup * kGroup * rows + i * kGroup + at % kGroup] : Scalar(0);
      }
      put(i, c, S::load(lanes));
    }
  }
}

/// sum += dY · O of some features; where O is 0, dY may hold anything.
template <class S>
ATTN_INLINE typename S::Packet add_product_with_output(const typename S::Packet& gradient,
                                                       const typename S::Packet& output,
                                                       const typename S::Packet& sum) {
  const auto zero = S::set(typename S::Scalar(0));
  return S::fmadd(S::select(S::equal(output, zero), zero, gradient), output, sum);
}
/// dY · O of a row, as GradientRows sums it.
template <class S, class T>
typename S::Scalar product_with_output(const T* gradient, Index stride,
                                       const typename S::Scalar* output, Index features) {
  auto sum = S::set(typename S::Scalar(0));
  for (Index c = 0; c < features; c += S::width) {
    sum = add_product_with_output<S>(
        detail::load_strided<S>(gradient + c * stride, stride, features - c),
        detail::load_strided<S>(output + c, 1, features - c), sum);
  }
  return S::reduce_add(sum);
}

// WHAT     of each row        g = dY / l            (0 where l = 0)        as strips, for dp = g · vᵀ, and as panels of features, for dv += eᵀ · g
//                             q̂ = scale · q                                as panels of features, for dk += dsᵀ · q̂; out of the packed strips
//                             m, δ = (dY · O − d(log-sum-exp)) / l
// WHY      1 / l rides on g and δ, and 1 / (1 − p) of dropout on g: no pair is divided by them
//          Rows lie a token apart: each is asked for eight rows before it is read, and packets of
//          strips and panels are whole: cut into groups through memory, they waited for their own
//          stores. Waiting for dY and O took 5 % of forward and backward pass of 96 heads of 128
//          rows (Zen 4, AVX-512)
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
    auto cursor = rows.from(0), asked = rows.from(std::min(kAhead, rows.count() - 1));
    rows.each_strip([&](const Strip& strip) {
      FiniteCheck<S> check;
      for (Index r = strip.first; r < strip.first + strip.rows; ++r, cursor.next()) {
        take_gradient(cursor.row, r, check);
        if (r + kAhead >= rows.count()) continue;
        ask_for(asked.row);
        asked.next();
      }
      pack_gradients(strip);
      take_queries(strip, packed_queries, check);
      finite_[strip.first / kTogether] &= check.finite();
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
  /// Rows between asking for one and reading it.
  static constexpr Index kAhead = 8;

  void ask_for(const QueryRow& row) const {
    const auto& gradient = problem_.output_gradient;
    if (gradient.view.feature_stride != 1) return;
    const Index features = problem_.scored.shape.value_dim;
    const auto ask = [features](const auto* from) {
      constexpr Index kLine = std::max<Index>(64 / Index(sizeof(*from)), 1);
      for (Index c = 0; c < features; c += kLine) S::prefetch(from + c);
    };
    ask(gradient.row(row.sequence, row.head, row.row));
    ask(problem_.state.output_of(row));
  }

  void take_gradient(const QueryRow& row, Index r, FiniteCheck<S>& check) {
    const Index number = problem_.state.number(row);
    const Scalar &m = problem_.state.maximum[number], &l = problem_.state.sum[number];
    Scalar delta(0);
    if (detail::equal(l, Scalar(0))) {
      for (Index c = 0; c < value_features(); c += S::width)
        S::store(memory_.gradient_rows + panel_of(c) + r * Size::panel, S::set(Scalar(0)));
    } else {
      const Scalar inverse = Scalar(Scalar(1) / l);
      Scalar factor = inverse;
      if constexpr (Problem::Scored::kDrops)
        factor = Scalar(factor * problem_.scored.dropout.scale);
      const Scalar change(scale_gradient(row, factor, r, check) - logsumexp_gradient(row));
      problem_.scores.see_row(problem_.scored.modify, row, m, l, change);
      delta = Scalar(change * inverse);
    }
    // Where a score is NaN or +∞ the sum is NaN, but the maximum not always: no weight is a number.
    const Scalar zero_or_nan(l - l), maximum(m + zero_or_nan);
    check.see(S::set(maximum));
    check.see(S::set(delta));
    memory_.maximum[r] = maximum;
    memory_.delta[r] = delta;
  }
  /// factor · dY of a row, to its place in the panels. Returns Σ dY · O; where O is 0, dY may hold
  /// anything.
  Scalar scale_gradient(const QueryRow& row, const Scalar& factor, Index r,
                        FiniteCheck<S>& check) const {
    const auto& gradient = problem_.output_gradient;
    const auto* const from = gradient.row(row.sequence, row.head, row.row);
    const Index stride = gradient.view.feature_stride, features = problem_.scored.shape.value_dim;
    const Scalar* const output = problem_.state.output_of(row);
    const auto zero = S::set(Scalar(0));
    auto sum = zero;
    for (Index c = 0; c < value_features(); c += S::width) {
      auto g = zero;
      if (c < features) {
        g = detail::load_strided<S>(from + c * stride, stride, features - c);
        // (A stride of 0 repeats the one number behind the last feature too; there the output is
        // 0.)
        const auto o = detail::load_strided<S>(output + c, 1, features - c);
        sum = add_product_with_output<S>(g, o, sum);
        if (features - c < S::width) g = S::select(S::first_lanes(features - c), g, zero);
        g = S::mul(g, S::set(factor));
        check.see(g);
      }
      S::store(memory_.gradient_rows + panel_of(c) + r * Size::panel, g);
    }
    return S::reduce_add(sum);
  }
  /// The rows of a strip, out of the panels.
  void pack_gradients(const Strip& strip) const {
    const Index depth = memory_.value_depth;
    Scalar* to = memory_.gradient_strips + strip.first * depth;
    for (Index c = 0; c < depth; c += Size::panel, to += Index(Size::panel) * strip.rows) {
      const Scalar* from[Size::rows];
      for (int i = 0; i < strip.rows; ++i)
        from[i] = memory_.gradient_rows + panel_of(c) + (strip.first + i) * Size::panel;
      const Index here = std::min<Index>(depth - c, Size::panel);
      // (Values without features have no panel, and one depth step of zeros.)
      pack_queries<S>(from, 1, std::min(here, value_features() - c), here, Scalar(1), strip.rows,
                      to);
    }
  }
  Scalar logsumexp_gradient(const QueryRow& row) const {
    if constexpr (std::is_same_v<typename Problem::LogSumExpGradient, Absent>) {
      return Scalar(0);
    } else {
      return Scalar(*problem_.logsumexp_gradient.row(row.sequence, row.head, row.row));
    }
  }
  void take_queries(const Strip& strip, const Scalar* packed, FiniteCheck<S>& check) const {
    const Index depth = memory_.query_depth;
    unpack_rows<S>(packed + strip.first * depth, strip.rows, depth,
                   [&](Index i, Index c, const typename S::Packet& q) {
                     check.see(q);
                     S::store(memory_.query_rows + panel_of(c) + (strip.first + i) * Size::panel,
                              q);
                   });
  }
  Index value_features() const { return round_up(memory_.value_depth, Size::panel); }
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
