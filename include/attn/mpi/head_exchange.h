// attn/mpi/head_exchange.h: all rows of some heads in place of some rows of all heads, and back.
// SPDX-License-Identifier: MIT
//
//   rank r has     its rows under all heads        →  all rows under its heads, n·r to n·r + n − 1
//   by_rows        [head][row of this rank][feature]    by_heads  [head][token][feature]
#pragma once

#include <cstddef>

#include "deal.h"
#include "lazy_zeros.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// An operand or output of a call in both forms.
template <class T>
class HeadExchange {
 public:
  HeadExchange(const mpi::Dealt& dealt, Index heads, Index features)
      : dealt_(&dealt),
        heads_(heads),
        features_(features),
        by_rows_(heads * dealt.rows() * features),
        by_heads_(heads * dealt.tokens() * features) {}
  /// With this rank's rows of an operand.
  template <class Stored>
  HeadExchange(const mpi::Dealt& dealt, const TensorView<Stored>& rows)
      : HeadExchange(dealt, rows.heads, rows.features) {
    each_number([&](Index head, Index row, Index c, T& to) { to = rows(0, head, row, c); });
  }

  /// All tokens, of which this rank's heads are there.
  TensorView<T> by_heads() const {
    return {
        by_heads_.data(), 1, heads_, dealt_->tokens(), features_, 0, dealt_->tokens() * features_,
        features_,        1};
  }
  /// Messages that a rank takes part in, each way.
  std::size_t messages() const {
    return std::size_t(heads_) * (dealt_->own().size() + std::size_t(dealt_->blocks()));
  }
  void to_heads(RowMessages& messages) const {
    each_message([&](int rank, T* rows, Index n) { messages.send(rows, n, rank, 0); },
                 [&](int rank, T* tokens, Index n) { messages.receive(tokens, n, rank, 0); });
  }
  void to_rows(RowMessages& messages) const {
    each_message([&](int rank, T* rows, Index n) { messages.receive(rows, n, rank, 0); },
                 [&](int rank, T* tokens, Index n) { messages.send(tokens, n, rank, 0); });
  }
  /// Writes this rank's rows of all heads.
  void write(const TensorView<T>& rows) const {
    each_number([&](Index head, Index row, Index c, const T& x) { rows(0, head, row, c) = x; });
  }

 private:
  template <class F>
  void each_number(const F& f) const {
    T* x = by_rows_.data();
    for (Index head = 0; head < heads_; ++head)
      for (Index row = 0; row < dealt_->rows(); ++row)
        for (Index c = 0; c < features_; ++c) f(head, row, c, *x++);
  }
  /// of_rows(rank, memory, numbers) for each of this rank's blocks and each head, with the rank of
  /// the head; of_heads(…) for each of this rank's heads and each block, with the rank of the
  /// block.
  /// WHY  both by head, then by block: so messages of two ranks follow each other as they are asked
  ///      for
  template <class OfRows, class OfHeads>
  void each_message(const OfRows& of_rows, const OfHeads& of_heads) const {
    const mpi::Dealt& dealt = *dealt_;
    const Index each = heads_ / dealt.ranks().size();
    for (Index head = 0; head < heads_; ++head) {
      for (std::size_t n = 0; n < dealt.own().size(); ++n) {
        of_rows(int(head / each),
                by_rows_.data() + (head * dealt.rows() + dealt.offsets()[n]) * features_,
                dealt.length(dealt.own()[n]) * features_);
      }
    }
    for (Index head = dealt.ranks().rank() * each, end = head + each; head < end; ++head) {
      for (Index k = 0; k < dealt.blocks(); ++k) {
        of_heads(dealt.owner(k),
                 by_heads_.data() + (head * dealt.tokens() + dealt.begin(k)) * features_,
                 dealt.length(k) * features_);
      }
    }
  }

  const mpi::Dealt* dealt_;
  Index heads_, features_;
  LazyZeros<T> by_rows_, by_heads_;
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
