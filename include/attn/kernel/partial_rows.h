// attn/kernel/partial_rows.h: rows of a partial state, as a Partial keeps them and as the engine
// merges them.
// SPDX-License-Identifier: MIT
#pragma once

#include "chunk_rows.h"
#include "settled_rows.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// m, l and o of rows under one key/value head: `value_dim` numbers of o for each, nothing between
/// them. T is const where they are read.
template <class T>
struct PartialRows {
  T *maximum, *sum, *output;
  Index value_dim;

  PartialRows(T* memory, Index rows, Index d_v)
      : maximum(memory), sum(maximum + rows), output(sum + rows), value_dim(d_v) {}
  static constexpr Index total(Index rows, Index d_v) { return rows * (d_v + 2); }

  PartialRows from(Index row) const {
    PartialRows rows = *this;
    rows.maximum += row;
    rows.sum += row;
    rows.output += row * value_dim;
    return rows;
  }
};

/// l and o of some rows as the engine has them: l in the first lane, o padded with zeros.
template <class T, class Scalar>
void unpack_sums(const PartialRows<T>& from, Index rows, const RowStates<Scalar>& to) {
  to.clear_sums(rows);
  for (Index r = 0; r < rows; ++r) {
    to.lanes[r * TileSize<Scalar>::panel] = from.sum[r];
    std::copy_n(from.output + r * from.value_dim, from.value_dim, to.output + r * to.features);
  }
}
template <class T, class Scalar>
void unpack(const PartialRows<T>& from, Index rows, const RowStates<Scalar>& to) {
  std::copy_n(from.maximum, rows, to.maximum);
  unpack_sums(from, rows, to);
}
/// And back.
template <class Scalar>
void pack_sums(const RowStates<Scalar>& from, Index rows, const PartialRows<Scalar>& to) {
  for (Index r = 0; r < rows; ++r) {
    to.sum[r] = reduce_lanes<detail::Simd<Scalar>>(from.lanes + r * TileSize<Scalar>::panel);
    std::copy_n(from.output + r * from.features, to.value_dim, to.output + r * to.value_dim);
  }
}
template <class Scalar>
void pack(const RowStates<Scalar>& from, Index rows, const PartialRows<Scalar>& to) {
  std::copy_n(from.maximum, rows, to.maximum);
  pack_sums(from, rows, to);
}

/// The output of a call whose rows are kept unfinished: those of each key/value head follow one
/// another by token, and by query head of the group.
template <class Scalar_>
struct PartialTarget {
  using Scalar = Scalar_;
  Scalar* memory;
  Index rows, value_dim;  ///< rows under each key/value head

  PartialRows<Scalar> under(Index kv_head) const {
    return {memory + kv_head * PartialRows<Scalar>::total(rows, value_dim), rows, value_dim};
  }
  void keep(const ChunkRows<Scalar>& chunk, const RowStates<Scalar>& states) const {
    pack(states, chunk.count(), under(chunk.kv_head()).from(chunk.first()));
  }
};

// WHAT     some rows of partial states: sums ⊕ next for each, in the engine's own layout by the
//          engine's own settling, so that the bits are those of split_keys()
// WHY      rows are copied there and back, d_v numbers each, a few at a time: a merge is bound by
//          memory, and a second one that works in place would have to be held to the same bits
template <class Scalar>
class PartialMerge {
 public:
  /// Rows at once, which stay in L1.
  static constexpr Index kRows = 16;
  static_assert(kRows % detail::Simd<Scalar>::width == 0 || detail::Simd<Scalar>::width > kRows,
                "whole packets of rows");

  /// In memory of total(value_dim) scalars.
  PartialMerge(Scalar* memory, Index value_dim)
      : settled(memory, kRows, features(value_dim)),
        states(memory + SettledRows<Scalar>::total(kRows, features(value_dim)), kRows,
               features(value_dim)) {}
  static constexpr Index total(Index value_dim) {
    return SettledRows<Scalar>::total(kRows, features(value_dim)) +
           RowStates<Scalar>::total(kRows, features(value_dim));
  }

  /// Calls f(first, count) for all of `rows` rows.
  template <class F>
  static void each(Index rows, const F& f) {
    for (Index first = 0; first < rows; first += kRows) f(first, std::min(kRows, rows - first));
  }

  /// Starts from sums and what they have lost, null where that is nothing.
  template <class T>
  void open(Index rows, const PartialRows<T>& sums, const PartialRows<T>* lost) const {
    unpack(sums, rows, settled.sums());
    if (lost != nullptr) {
      unpack_sums(*lost, rows, settled.lost());
    } else {
      settled.lost().clear_sums(rows);
    }
  }
  template <class T>
  void add(Index rows, const PartialRows<T>& next) const {
    unpack(next, rows, states);
    settled.add(rows, states);
  }
  void close(Index rows, const PartialRows<Scalar>& sums, const PartialRows<Scalar>& lost) const {
    pack(settled.sums(), rows, sums);
    pack_sums(settled.lost(), rows, lost);
  }

  const SettledRows<Scalar> settled;
  const RowStates<Scalar> states;  ///< of what is merged next

 private:
  static constexpr Index features(Index value_dim) {
    return round_up(value_dim, TileSize<Scalar>::panel);
  }
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
