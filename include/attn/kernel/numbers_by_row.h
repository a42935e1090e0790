// attn/kernel/numbers_by_row.h: a number of each row and head of a call, whose sums over rows are
// gradients.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../base/call_shape.h"
#include "../base/load.h"
#include "row_sums.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     x of (token, head) at token·heads + head. A row is one chunk's, which adds to its number
//          block after block; sums over rows are made once all are there
// WHY      sums that many rows share would need an order among workers: numbers of rows need none.
//          A scalar a row is little beside the row
// NUMERICS a sum goes through its rows a packet at a time, each lane with compensation
//          (row_sums.h), and then through the lanes: its error does not grow with the rows
template <class Scalar>
struct NumbersByRow {
  Scalar* numbers = nullptr;
  Index heads = 1;

  static Index total(const detail::CallShape& shape) { return shape.queries.total() * shape.heads; }
  Scalar* at(Index token, Index head) const { return numbers + token * heads + head; }
  Scalar& operator[](const QueryRow& row) const { return *at(row.token, row.head); }
};

/// A sum of such numbers.
template <class Scalar>
class RowTotal {
  using S = detail::Simd<Scalar>;
  using Sum = CompensatedSum<S>;

 public:
  /// `count` numbers, `stride` apart.
  void add(const Scalar* numbers, Index stride, Index count) {
    for (Index n = 0; n < count; n += S::width)
      add(lanes_, detail::load_strided<S>(numbers + n * stride, stride, count - n));
  }
  Scalar value() const {
    alignas(64) Scalar sum[S::width], lost[S::width];
    S::store(sum, lanes_.sum);
    S::store(lost, lanes_.lost);
    Sum total = none();
    for (int w = 0; w < S::width; ++w) {
      add(total, S::set(sum[w]));
      add(total, S::set(lost[w]));
    }
    return Scalar(S::first(total.sum) + S::first(total.lost));
  }

 private:
  static Sum none() { return {S::set(Scalar(0)), S::set(Scalar(0))}; }
  static void add(Sum& sum, const typename S::Packet& x) {
    sum = Sum::combine(sum, S::set(Scalar(1)), x);
  }
  Sum lanes_ = none();
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
