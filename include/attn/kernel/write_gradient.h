// attn/kernel/write_gradient.h: sums become gradients: turned back, scaled, added to what stands
// there, rounded once.
// SPDX-License-Identifier: MIT
#pragma once

#include "../base/load.h"
#include "backward_problem.h"
#include "backward_scratch.h"
#include "chunk_rows.h"
#include "rotate_row.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

template <class Problem>
class WriteGradient {
  using Scalar = typename Problem::Scalar;
  using S = detail::Simd<Scalar>;
  static constexpr bool kRotates = Problem::Scored::kRotates;

 public:
  explicit WriteGradient(const Problem& problem) : problem_(problem) {}

  /// Of a chunk's queries: scale · dq, and what the scale's gradient gets of them. `scratch`: room
  /// for a row.
  void queries(const ChunkRows<Scalar>& rows, const Scalar* sums, Index stride,
               Scalar* scratch) const {
    const auto& scored = problem_.scored;
    auto cursor = rows.from(0);
    for (Index r = 0; r < rows.count(); ++r, cursor.next(), sums += stride) {
      const QueryRow& row = cursor.row;
      const Scalar* from = sums;
      if constexpr (kRotates) {
        rotate_row_back<S>(scored.rotation, scored.rotation.query.of(row.token, row.row), from,
                           scored.shape.key_dim, scratch);
        from = scratch;
      }
      if constexpr (Problem::ScoreGradients::kScale)
        problem_.scores.see_query(row, product_with_query(row, from));
      if constexpr (detail::is_there_v<typename Problem::QueryGradient>)
        write(problem_.query, problem_.query.row(row.sequence, row.head, row.row),
              scored.shape.key_dim, from, scored.scale);
    }
  }
  /// Of the keys and values of a sequence and head.
  void keys(Index sequence, Index head, const KeySums<Scalar>& sums, Scalar* scratch) const {
    problem_.keys.each_run(problem_.shape.key_length(sequence),
                           [&](const KeyRun& run) { keys(run, sequence, head, sums, scratch); });
  }

 private:
  void keys(const KeyRun& run, Index sequence, Index head, const KeySums<Scalar>& sums,
            Scalar* scratch) const {
    const auto& scored = problem_.scored;
    const detail::CallShape& shape = scored.shape;
    const Index panel = TileSize<Scalar>::panel, to = run.row - run.begin;
    if constexpr (detail::is_there_v<typename Problem::KeyGradient>) {
      const Index first_token = shape.keys.begin(shape.shared_keys ? 0 : sequence);
      for (Index j = run.begin; j < run.end; ++j) {
        const Scalar* from = sums.key + j * round_up(shape.key_dim, panel);
        if constexpr (kRotates) {
          rotate_row_back<S>(scored.rotation, scored.rotation.key.of(first_token + j, j), from,
                             shape.key_dim, scratch);
          from = scratch;
        }
        write(problem_.key, problem_.key.row(sequence, head, j + to), shape.key_dim, from,
              Scalar(1));
      }
    }
    if constexpr (detail::is_there_v<typename Problem::ValueGradient>) {
      for (Index j = run.begin; j < run.end; ++j) {
        write(problem_.value, problem_.value.row(sequence, head, j + to), shape.value_dim,
              sums.value + j * round_up(shape.value_dim, panel), Scalar(1));
      }
    }
  }
  Scalar product_with_query(const QueryRow& row, const Scalar* from) const {
    const auto& query = problem_.scored.query;
    const auto* const q = query.row(row.sequence, row.head, row.row);
    const Index stride = query.view.feature_stride, features = problem_.scored.shape.key_dim;
    const auto zero = S::set(Scalar(0));
    auto sum = zero;
    for (Index c = 0; c < features; c += S::width) {
      const auto numbers = detail::load_strided<S>(q + c * stride, stride, features - c),
                 gradient = S::select(S::first_lanes(features - c), S::loadu(from + c), zero);
      sum = S::fmadd(S::select(S::equal(gradient, zero), zero, numbers), gradient, sum);
    }
    return S::reduce_add(sum);
  }

  /// to = factor · from (+ to).
  template <class Gradient>
  void write(const Gradient& gradient, typename Gradient::Scalar* to, Index features,
             const Scalar* from, const Scalar& factor) const {
    const Index stride = gradient.view.feature_stride;
    for (Index c = 0; c < features; c += S::width) {
      // The zero addend rounds the product by itself, and clears the sign of zero.
      auto x = S::fmadd(S::loadu(from + c), S::set(factor), S::set(Scalar(0)));
      if (problem_.accumulates)
        x = S::add(detail::load_strided<S>(to + c * stride, stride, features - c), x);
      detail::store_strided<S>(to + c * stride, stride, x, features - c);
    }
  }

  const Problem& problem_;
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
