// attn/mpi/key_exchange.h: keys and values of all ranks, one key/value head at a time.
// SPDX-License-Identifier: MIT
#pragma once

#include <type_traits>
#include <vector>

#include "../base/operand.h"
#include "../base/sizes.h"
#include "deal.h"
#include "lazy_zeros.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// One of the two operands: this rank's rows of all heads, and two slots for all ranks' rows of
/// one.
template <class T>
class ExchangedOperand {
 public:
  using Scalar = std::remove_const_t<T>;
  /// `rows`: this rank's, stacked, as they were given.
  ExchangedOperand(const TensorView<const T>& rows, Index tokens)
      : rows_(rows),
        slots_{LazyZeros<Scalar>(tokens * rows.features),
               LazyZeros<Scalar>(tokens * rows.features)} {}

  Index features() const { return rows_.features; }
  const TensorView<const T>& rows() const { return rows_; }
  Scalar* token(Index head, Index token) const {
    return slots_[std::size_t(head % 2)].data() + token * features();
  }
  /// The slot of a head, as an operand of which all heads are that one.
  Operand<const Scalar> gathered(Index head, Index tokens) const {
    const TensorView<const Scalar> view{token(head, 0), 1, rows_.heads, tokens, features(), 0, 0,
                                        features(),     1};
    return {view, {1, tokens, nullptr}, true};
  }
  /// Copies `count` of this rank's rows to their place among all.
  void place_rows(Index head, Index first_row, Index first_token, Index count) const {
    for (Index n = 0; n < count; ++n) {
      const T* const from = rows_.at(0, head, first_row + n);
      Scalar* const to = token(head, first_token + n);
      for (Index c = 0; c < features(); ++c) to[c] = from[c * rows_.feature_stride];
    }
  }

 private:
  TensorView<const T> rows_;
  LazyZeros<Scalar> slots_[2];
};

// WHAT     start(h) sends this rank's rows of head h to the ranks that see some of them, and asks
//          for those of others that this one sees; finish() waits until they are there. Head h lies
//          in slot h mod 2, so that head h + 1 is under way while h is computed
// MEMORY   two slots of L·(d_k + d_v) scalars, whatever the number of heads
// EDGES    a block that no row of this rank sees is neither sent here nor touched. Who sees what is
//          told once a call: a byte a block and rank
template <class Key, class Value>
class KeyExchange {
 public:
  KeyExchange(const mpi::Dealt& dealt, const TensorView<const Key>& key,
              const TensorView<const Value>& value)
      : dealt_(dealt),
        key_(key, dealt.tokens()),
        value_(value, dealt.tokens()),
        seen_(std::size_t(dealt.blocks())),
        seen_by_(std::size_t(dealt.blocks()) * std::size_t(dealt.ranks().size())),
        messages_(dealt.ranks().comm()) {
    messages_.reserve(2 * (seen_.size() + dealt.own().size() * std::size_t(dealt.ranks().size())));
  }
  KeyExchange(const KeyExchange&) = delete;
  KeyExchange& operator=(const KeyExchange&) = delete;

  const mpi::Dealt& dealt() const { return dealt_; }
  const ExchangedOperand<Key>& key() const { return key_; }
  const ExchangedOperand<Value>& value() const { return value_; }

  /// Notes that this rank sees keys of block k.
  void see(Index k) { seen_[std::size_t(k)] = 1; }
  /// Tells all ranks what this one sees. Called by all, once.
  void announce() {
    MPI_Allgather(seen_.data(), int(seen_.size()), MPI_BYTE, seen_by_.data(), int(seen_.size()),
                  MPI_BYTE, dealt_.ranks().comm());
  }
  void start(Index head) {
    const mpi::Ranks& ranks = dealt_.ranks();
    for (Index k = 0; k < dealt_.blocks(); ++k)
      if (wants(ranks.rank(), k))
        pass(head, k, [&](auto* rows, Index numbers, int tag) {
          messages_.receive(rows, numbers, dealt_.owner(k), tag);
        });
    for (std::size_t n = 0; n < dealt_.own().size(); ++n) {
      const Index k = dealt_.own()[n];
      key_.place_rows(head, dealt_.offsets()[n], dealt_.begin(k), dealt_.length(k));
      value_.place_rows(head, dealt_.offsets()[n], dealt_.begin(k), dealt_.length(k));
      for (int rank = 0; rank < ranks.size(); ++rank)
        if (wants(rank, k))
          pass(head, k, [&](auto* rows, Index numbers, int tag) {
            messages_.send(rows, numbers, rank, tag);
          });
    }
  }
  void finish() { messages_.wait(); }

 private:
  /// The rank sees block k, which is another's.
  bool wants(int rank, Index k) const {
    return rank != dealt_.owner(k) &&
           seen_by_[std::size_t(rank) * seen_.size() + std::size_t(k)] != 0;
  }
  /// message(rows, numbers, tag) for the keys and the values of a block. Blocks go by their order:
  /// between two ranks messages of one tag keep it.
  template <class Message>
  void pass(Index head, Index k, const Message& message) {
    message(key_.token(head, dealt_.begin(k)), dealt_.length(k) * key_.features(), 0);
    message(value_.token(head, dealt_.begin(k)), dealt_.length(k) * value_.features(), 1);
  }

  const mpi::Dealt& dealt_;
  ExchangedOperand<Key> key_;
  ExchangedOperand<Value> value_;
  std::vector<unsigned char> seen_, seen_by_;  ///< of this rank's blocks; of all ranks'
  RowMessages messages_;
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
