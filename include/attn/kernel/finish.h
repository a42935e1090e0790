// attn/kernel/finish.h: stage 5, y = o / l (+ residual) of the rows of a chunk, and what is saved
// of a row.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../base/load.h"
#include "chunk_rows.h"
#include "problem.h"
#include "softmax_rows.h"
#include "turn.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     y[r, c] = o[r, c] · (1 / l[r]) (+ x[r, c])     l: the row's lanes reduced, W rows at a time; one division a packet of rows.
//                                                         Under dropout 1 / l times 1 / (1 − p): no pair pays for it
// TRAFFIC  o is read once, y written once; W rows × W features are turned in registers where rows
//          lie side by side in y
// EDGES    a row that has seen nothing (l = 0) gives zeros; features that fill no packet are stored
//          one by one
// NUMERICS the product rounds by itself, so that the residual is a separate addition, before the
//          one rounding to storage
template <class Problem>
class Finish {
  using Scalar = typename Problem::Scalar;
  using S = detail::Simd<Scalar>;
  using Stored = typename Problem::Output::Scalar;

 public:
  Finish(const Problem& problem, const SoftmaxRows<Scalar>& softmax)
      : problem_(problem), softmax_(softmax) {}

  void operator()(const ChunkRows<Scalar>& all) const {
    auto cursor = all.from(0);
    RowWalk<Stored> to(problem_.output, cursor);
    // Features that are stored as whole packets; what follows is stored one by one.
    const bool direct = std::is_same_v<Stored, Scalar> && problem_.output.view.feature_stride == 1;
    const Index whole = direct ? problem_.shape.value_dim / S::width * S::width : 0;
    for (Index r = 0; r < all.count(); r += S::width) {
      const int rows = int(std::min<Index>(all.count() - r, S::width));
      alignas(64) Scalar sum[S::width], inverse[S::width];
      const auto sums = softmax_.sums(r, rows);
      const auto zero = S::set(Scalar(0)), one = S::set(Scalar(1));
      const auto empty = S::equal(sums, zero);
      S::store(sum, sums);
      auto inverses = S::select(empty, zero, S::div(one, S::select(empty, one, sums)));
      if constexpr (Problem::kDrops) inverses = S::mul(inverses, S::set(problem_.dropout.scale));
      S::store(inverse, inverses);
      const bool turned = rows == S::width && by_columns();
      if (turned) write_columns(cursor, r, inverse, to.row());
      for (int i = 0; i < rows; ++i, cursor.next(), to.next()) {
        if (!turned) write_row(cursor.row, r + i, inverse[i], to.row(), whole);
        problem_.saved.write(cursor.row, softmax_.maximum(r + i), sum[i], softmax_.moment(r + i));
        if constexpr (Problem::Saved::kState) keep_output(cursor.row, r + i, inverse[i]);
      }
    }
  }

 private:
  /// A packet of features of o / l.
  ATTN_INLINE typename S::Packet normalized(Index r, const Scalar& inverse, Index c) const {
    // The zero addend rounds the product by itself, so that the residual is a separate addition,
    // and clears the sign of zero.
    return S::fmadd(S::load(softmax_.output(r) + c), S::set(inverse), S::set(Scalar(0)));
  }
  /// A packet of features of a finished row.
  ATTN_INLINE typename S::Packet finished(const QueryRow& row, Index r, const Scalar& inverse,
                                          Index c) const {
    auto value = normalized(r, inverse, c);
    if constexpr (!std::is_same_v<typename Problem::Residual, Absent>) {
      const auto* x = problem_.residual.row(row.sequence, row.head, row.row);
      const Index stride = problem_.residual.view.feature_stride;
      value = S::add(value,
                     detail::load_strided<S>(x + c * stride, stride, problem_.shape.value_dim - c));
    }
    return value;
  }
  void write_row(const QueryRow& row, Index r, const Scalar& inverse, Stored* y,
                 Index whole) const {
    const Index features = problem_.shape.value_dim, stride = problem_.output.view.feature_stride;
    Index c = 0;
    if constexpr (std::is_same_v<Stored, Scalar>) {
      for (; c < whole; c += S::width) S::storeu(y + c, finished(row, r, inverse, c));
    }
    for (; c < features; c += S::width)
      detail::store_strided<S>(y + c * stride, stride, finished(row, r, inverse, c), features - c);
  }

  /// A row of the state: what the output is before residual and rounding.
  void keep_output(const QueryRow& row, Index r, const Scalar& inverse) const {
    const Index features = problem_.shape.value_dim;
    Scalar* const to = problem_.saved.state.output_of(row);
    for (Index c = 0; c < features; c += S::width)
      detail::store_strided<S>(to + c, 1, normalized(r, inverse, c), features - c);
  }

  /// Rows lie side by side in the output, and its features apart: a column-major matrix.
  bool by_columns() const {
    const auto& view = problem_.output.view;
    return S::width > 1 && std::is_same_v<Stored, Scalar> && view.token_stride == 1 &&
           view.feature_stride != 1 && problem_.shape.heads == problem_.shape.kv_heads;
  }
  /// A packet of rows at once, turned in registers.
  /// WHY  row by row, 16 % of pre1k in column-major matrices (Zen 5)
  void write_columns(typename ChunkRows<Scalar>::Cursor cursor, Index r, const Scalar* inverse,
                     Stored* y) const {
    if constexpr (std::is_same_v<Stored, Scalar>) {
      QueryRow rows[S::width];
      for (QueryRow& row : rows) {
        row = cursor.row;
        cursor.next();
      }
      turn<S>(
          S::width, problem_.shape.value_dim,
          [&](Index i, Index c) { return finished(rows[i], r + i, inverse[i], c); },
          [&](Index, Index c, const typename S::Packet& column, Index) {
            S::storeu(y + c * problem_.output.view.feature_stride, column);
          });
    }
  }

  const Problem& problem_;
  const SoftmaxRows<Scalar>& softmax_;
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
