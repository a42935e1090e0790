// attn/mpi/row_exchange.h: rows of all ranks, those of one key/value head at a time.
// SPDX-License-Identifier: MIT
#pragma once

#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "../base/operand.h"
#include "../base/sizes.h"
#include "deal.h"
#include "lazy_zeros.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// What belongs to rows: this rank's under all heads, and two slots for all ranks' under those of
/// one round: a key/value head, or the query heads on it.
template <class T>
class ExchangedOperand {
 public:
  using Scalar = std::remove_const_t<T>;
  /// `rows`: this rank's, stacked, as they were given; their heads fall into so many rounds.
  ExchangedOperand(const TensorView<const T>& rows, Index tokens, Index rounds)
      : rows_(rows),
        group_(rows.heads / rounds),
        slots_{LazyZeros<Scalar>(behind_heads() + tokens * numbers()),
               LazyZeros<Scalar>(behind_heads() + tokens * numbers())} {}

  /// Of a token in a round: [head of the round][feature].
  Index numbers() const { return group_ * rows_.features; }
  const TensorView<const T>& rows() const { return rows_; }
  Scalar* token(Index round, Index token) const {
    return slots_[std::size_t(round % 2)].data() + behind_heads() + token * numbers();
  }
  /// The slot of a round, as an operand under all heads of which only the round's are there.
  Operand<const Scalar> gathered(Index round, Index tokens) const {
    const TensorView<const Scalar> view{token(round, 0) - round * numbers(),
                                        1,
                                        rows_.heads,
                                        tokens,
                                        rows_.features,
                                        0,
                                        rows_.features,
                                        numbers(),
                                        1};
    return {view, {1, tokens, nullptr}, true};
  }
  /// The same before the first round: there is nothing to read.
  Operand<const Scalar> nothing() const { return gathered(0, 0); }

  /// Copies `count` of this rank's rows to their place among all.
  void place_rows(Index round, Index first_row, Index first_token, Index count) const {
    for (Index n = 0; n < count; ++n) {
      Scalar* to = token(round, first_token + n);
      for (Index head = round * group_; head < (round + 1) * group_; ++head) {
        const T* const from = rows_.at(0, head, first_row + n);
        for (Index c = 0; c < rows_.features; ++c) *to++ = from[c * rows_.feature_stride];
      }
    }
  }
  /// All of them.
  void place_own(const mpi::Dealt& dealt, Index round) const {
    for (std::size_t n = 0; n < dealt.own().size(); ++n) {
      const Index k = dealt.own()[n];
      place_rows(round, dealt.offsets()[n], dealt.begin(k), dealt.length(k));
    }
  }

 private:
  /// Numbers before the first token's: the heads of rounds before, which are not there, are counted
  /// from inside the slot.
  Index behind_heads() const { return rows_.heads * rows_.features; }

  TensorView<const T> rows_;
  Index group_;
  LazyZeros<Scalar> slots_[2];
};

// WHAT     start(n) sends this rank's rows of round n to the ranks that see some of them, and asks
//          for those of others that this one sees; finish() waits until they are there. Round n lies
//          in slot n mod 2, so that round n + 1 is under way while n is computed
// MEMORY   two slots of L · numbers() scalars an operand, whatever the number of heads
// EDGES    a block that this rank does not see is neither sent here nor touched. Who sees what is
//          told once a call: a byte a block and rank
template <class... Stored>
class RowExchange {
 public:
  RowExchange(const mpi::Dealt& dealt, Index rounds, const TensorView<const Stored>&... rows)
      : dealt_(dealt),
        operands_(ExchangedOperand<Stored>(rows, dealt.tokens(), rounds)...),
        rounds_(rounds),
        seen_(std::size_t(dealt.blocks())),
        seen_by_(std::size_t(dealt.blocks()) * std::size_t(dealt.ranks().size())),
        messages_(dealt.ranks().comm()) {
    messages_.reserve(sizeof...(Stored) *
                      (seen_.size() + dealt.own().size() * std::size_t(dealt.ranks().size())));
  }
  RowExchange(const RowExchange&) = delete;
  RowExchange& operator=(const RowExchange&) = delete;

  const mpi::Dealt& dealt() const { return dealt_; }
  Index rounds() const { return rounds_; }
  template <int N>
  const auto& operand() const {
    return std::get<N>(operands_);
  }
  template <int N>
  auto gathered(Index round) const {
    return operand<N>().gathered(round, dealt_.tokens());
  }

  /// Notes that this rank sees rows of block k.
  void see(Index k) { seen_[std::size_t(k)] = 1; }
  /// Tells all ranks what this one sees. Called by all, once.
  void announce() {
    MPI_Allgather(seen_.data(), int(seen_.size()), MPI_BYTE, seen_by_.data(), int(seen_.size()),
                  MPI_BYTE, dealt_.ranks().comm());
  }
  void start(Index round) {
    const mpi::Ranks& ranks = dealt_.ranks();
    for (Index k = 0; k < dealt_.blocks(); ++k)
      if (wants(ranks.rank(), k))
        pass(round, k, [&](auto* rows, Index numbers, int tag) {
          messages_.receive(rows, numbers, dealt_.owner(k), tag);
        });
    std::apply([&](const auto&... operand) { (operand.place_own(dealt_, round), ...); }, operands_);
    for (const Index k : dealt_.own())
      for (int rank = 0; rank < ranks.size(); ++rank)
        if (wants(rank, k))
          pass(round, k, [&](auto* rows, Index numbers, int tag) {
            messages_.send(rows, numbers, rank, tag);
          });
  }
  void finish() { messages_.wait(); }

 private:
  /// The rank sees block k, which is another's.
  bool wants(int rank, Index k) const {
    return rank != dealt_.owner(k) &&
           seen_by_[std::size_t(rank) * seen_.size() + std::size_t(k)] != 0;
  }
  /// message(rows, numbers, tag) for each operand's rows of a block. Blocks go by their order:
  /// between two ranks messages of one tag keep it.
  template <class Message>
  void pass(Index round, Index k, const Message& message) {
    std::apply(
        [&](const auto&... operand) {
          int tag = 0;
          (message(operand.token(round, dealt_.begin(k)), dealt_.length(k) * operand.numbers(),
                   tag++),
           ...);
        },
        operands_);
  }

  const mpi::Dealt& dealt_;
  std::tuple<ExchangedOperand<Stored>...> operands_;
  Index rounds_;
  std::vector<unsigned char> seen_, seen_by_;  ///< of this rank's blocks; of all ranks'
  RowMessages messages_;
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
