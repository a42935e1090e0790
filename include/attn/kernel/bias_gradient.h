// attn/kernel/bias_gradient.h: where ∂loss/∂score is summed into the gradient of a bias, over what
// the bias broadcasts over.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../base/load.h"
#include "numbers_by_row.h"
#include "turn.h"
#include "visit.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// The gradient of a bias, a table [sequence or 1, head or 1, query or 1, key or 1].
///
// WHAT     table element += ds of each pair that reads the element of the bias
// PICTURE  keys broadcast       a number of each row (numbers_by_row.h), summed over rows at the end
//          queries broadcast    up to 96 rows and a block of keys from +0, then those to the table
//          else                 each pair to the table
// EDGES    where pairs of different sequences, heads or rows share an element (shared()), chunks
//          add in their turn (in_order.h): the same order for any chunks and workers. Pairs that nobody
//          sees leave 0
// NUMERICS where an element has one pair it is stored at once; else sums are made in the compute
//          scalar, in scratch where the table is narrower or keeps what it holds, and rounded once
template <class T, class Scalar>
class BiasGradient {
  using S = detail::Simd<Scalar>;
  using Size = TileSize<Scalar>;

 public:
  /// `stacked`: rows of the table count all the call's query tokens.
  BiasGradient(const TensorView<T>& to, bool stacked, bool accumulates,
               const detail::CallShape& shape)
      : to_(to), stacked_(stacked), accumulates_(accumulates), shape_(&shape) {}

  /// Rows with partial sums: of a chunk with so many heads together.
  Index partial_rows(Index group) const {
    return shares_rows() && !one_column() ? (to_.heads == 1 ? 1 : group) : 0;
  }
  /// Chunks add to the same elements.
  bool shared() const { return !one_column() && !own(); }

  /// Scalars of scratch; placed there, everything is 0.
  Index scratch() const {
    return one_column()   ? NumbersByRow<Scalar>::total(*shape_)
           : in_scratch() ? to_.sequences * to_.heads * to_.tokens * to_.features
                          : 0;
  }
  void place(Scalar* memory) {
    std::fill_n(memory, scratch(), Scalar(0));
    if (one_column()) {
      numbers_ = {memory, shape_->heads};
    } else if (in_scratch()) {
      const Index rows = to_.features, heads = to_.tokens * rows;
      sums_ = {memory, to_.sequences, to_.heads, to_.tokens, to_.features, to_.heads * heads,
               heads,  rows,          1};
    } else if (!accumulates_) {
      each_element([](T& element, const auto&...) { element = T(Scalar(0)); });
    }
  }

  /// Adds the ds of a strip, whose rows go on from the cursor. `partial`: partial_rows() of them,
  /// by head of the group.
  template <class Cursor>
  void add(const Strip& strip, const KeyBlock& block, const Visit<Scalar>& visit, const Scalar* ds,
           const Cursor& cursor, Scalar* partial) const {
    if (one_column()) {
      add_rows(strip, ds, cursor, [&](const Cursor& at, const Scalar* row) {
        Scalar& number = numbers_[at.row];
        number = Scalar(number + total_of(row, visit));
      });
    } else if (shares_rows()) {
      add_rows(strip, ds, cursor, [&](const Cursor& at, const Scalar* row) {
        Scalar* const to = partial + (to_.heads == 1 ? 0 : at.member) * Size::score_stride;
        visit.each_packet(
            [&](Index j, Index) { S::store(to + j, S::add(S::load(to + j), S::load(row + j))); });
      });
    } else if (sums_.data != nullptr) {
      add_to(sums_, strip, block, visit, ds, cursor);
    } else {
      add_to(to_, strip, block, visit, ds, cursor);
    }
  }
  /// Adds the partial sums of some rows, the first of which is the cursor's, to the table.
  template <class Cursor>
  void add_partial(const KeyBlock& block, const Scalar* partial, const Cursor& cursor) const {
    const Index rows = partial_rows(cursor.group);
    QueryRow row = cursor.row;
    row.head -= cursor.member;
    for (Index n = 0; n < rows; ++n, ++row.head, partial += Size::score_stride) {
      if (sums_.data != nullptr) {
        add_row(sums_, row, block, partial);
      } else {
        add_row(to_, row, block, partial);
      }
    }
  }

  /// Sums over rows, and what stands in scratch, to where it belongs.
  void finish() const {
    if (one_column()) {
      each_element([&](T& element, Index b, Index h, Index i, Index) {
        put(element, sum_of_rows(b, h, i));
      });
    } else if (sums_.data != nullptr) {
      each_element(
          [&](T& element, Index b, Index h, Index i, Index j) { put(element, sums_(b, h, i, j)); });
    }
  }

 private:
  bool shares_sequences() const {
    return !stacked_ && to_.sequences == 1 && shape_->sequences() > 1;
  }
  bool shares_heads() const { return to_.heads == 1 && shape_->heads > 1; }
  bool shares_rows() const { return to_.tokens == 1 && shape_->queries.longest() > 1; }
  bool one_column() const { return to_.features == 1 && shape_->keys.longest() > 1; }
  /// Each pair has an element of its own.
  bool own() const {
    return !shares_sequences() && !shares_heads() && !shares_rows() && !one_column();
  }
  bool in_scratch() const { return !own() && (accumulates_ || !std::is_same_v<T, Scalar>); }

  void put(T& element, const Scalar& sum) const {
    element = accumulates_ ? T(Scalar(Scalar(element) + sum)) : T(sum);
  }
  /// Calls f(element, sequence, head, query, key), neighbours in memory one after the other.
  template <class F>
  void each_element(const F& f) const {
    const bool by_columns = detail::by_columns(to_.token_stride, to_.feature_stride);
    const Index lines = by_columns ? to_.features : to_.tokens,
                length = by_columns ? to_.tokens : to_.features;
    for (Index b = 0; b < to_.sequences; ++b) {
      for (Index h = 0; h < to_.heads; ++h) {
        for (Index line = 0; line < lines; ++line) {
          for (Index n = 0; n < length; ++n) {
            const Index i = by_columns ? n : line, j = by_columns ? line : n;
            f(to_(b, h, i, j), b, h, i, j);
          }
        }
      }
    }
  }

  // ---- A number of each row
  static Scalar total_of(const Scalar* row, const Visit<Scalar>& visit) {
    auto sum = S::set(Scalar(0));
    visit.each_packet([&](Index j, Index) { sum = S::add(sum, S::load(row + j)); });
    return S::reduce_add(sum);
  }
  /// Over what an element serves.
  Scalar sum_of_rows(Index b, Index h, Index i) const {
    const auto& queries = shape_->queries;
    const Index heads = to_.heads == 1 ? shape_->heads : 1, first = to_.heads == 1 ? 0 : h;
    const Index begin = to_.sequences == 1 ? 0 : b,
                end = to_.sequences == 1 ? queries.sequences : b + 1;
    RowTotal<Scalar> total;
    if (stacked_) {
      total.add(numbers_.at(i, first), 1, heads);
      return total.value();
    }
    for (Index n = begin; n < end; ++n) {
      const Index from = shares_rows() ? 0 : i,
                  to = std::min(shares_rows() ? queries.length(n) : i + 1, queries.length(n));
      for (Index head = first; head < first + heads; ++head)
        total.add(numbers_.at(queries.begin(n) + from, head), numbers_.heads, to - from);
    }
    return total.value();
  }

  // ---- A row of the table
  template <class Element>
  Element* row_of(const TensorView<Element>& table, const QueryRow& row) const {
    return table.at(table.sequences == 1 ? 0 : row.sequence, table.heads == 1 ? 0 : row.head,
                    table.tokens == 1 ? 0
                    : stacked_        ? row.token
                                      : row.row);
  }
  template <class Cursor, class F>
  static void add_rows(const Strip& strip, const Scalar* ds, Cursor cursor, const F& f) {
    for (int i = 0; i < strip.rows; ++i, cursor.next()) f(cursor, ds + i * Size::score_stride);
  }
  template <class Element>
  static ATTN_INLINE void add_packet(Element* to, Index stride, const typename S::Packet& x,
                                     Index lanes) {
    if (stride == 1 && lanes >= S::width) {
      const auto sum = S::add(detail::load_converted<S>(to), x);
      return detail::store_strided<S>(to, stride, sum, lanes);
    }
    alignas(64) Scalar values[S::width];
    S::store(values, x);
    Index w = 0;
    if (stride == 1) {  // four at a time, which the compiler makes an addition of
      for (; w + 4 <= S::width && w + 4 <= lanes; w += 4) {
        ATTN_UNROLL
        for (int i = 0; i < 4; ++i) to[w + i] = Element(Scalar(to[w + i]) + values[w + i]);
      }
    }
    for (; w < S::width && w < lanes; ++w)
      to[w * stride] = Element(Scalar(Scalar(to[w * stride]) + values[w]));
  }
  template <class Element>
  void add_row(const TensorView<Element>& table, const QueryRow& row, const KeyBlock& block,
               const Scalar* from) const {
    const Index stride = table.feature_stride, end = block.keys.end - block.first;
    Element* const to = row_of(table, row) + block.first * stride;
    for (Index j = 0; j < end; j += S::width)
      add_packet(to + j * stride, stride, S::load(from + j), end - j);
  }
  template <class Element, class Cursor>
  void add_to(const TensorView<Element>& table, const Strip& strip, const KeyBlock& block,
              const Visit<Scalar>& visit, const Scalar* ds, const Cursor& cursor) const {
    const Index stride = table.feature_stride;
    if (cursor.group == 1 && detail::by_columns(table.token_stride, stride)) {
      Element* const to = row_of(table, cursor.row) + block.first * stride;
      for (int n = 0; n < visit.segment_count; ++n) {
        const Segment& segment = visit.segments[n];
        const Index first = segment.first * Size::panel;
        turn<S>(
            strip.rows, segment.end - first,
            [&](Index i, Index j) { return S::load(ds + i * Size::score_stride + first + j); },
            [&](Index i, Index j, const typename S::Packet& x, Index held) {
              add_packet(to + i * table.token_stride + (first + j) * stride, table.token_stride, x,
                         held);
            });
      }
      return;
    }
    add_rows(strip, ds, cursor, [&](const Cursor& at, const Scalar* row) {
      Element* const to = row_of(table, at.row) + block.first * stride;
      visit.each_packet([&](Index j, Index end) {
        add_packet(to + j * stride, stride, S::load(row + j), end - j);
      });
    });
  }

  TensorView<T> to_;
  bool stacked_, accumulates_;
  const detail::CallShape* shape_;
  TensorView<Scalar> sums_{};
  NumbersByRow<Scalar> numbers_{};
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
