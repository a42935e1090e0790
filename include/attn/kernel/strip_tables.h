// attn/kernel/strip_tables.h: biases and bool masks that lie by columns, brought to a strip's rows
// a panel of keys at a time.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../mask/algebra.h"
#include "../score/modifiers.h"
#include "tile_size.h"
#include "turn.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     the numbers of a strip's rows and a panel of keys, as rows of a tile, from a matrix
//          whose rows are neighbours in memory
// PICTURE  W rows of W keys are loaded as columns, turned, and stored as rows; heads of a group
//          that share the matrix share a row of the tile. Where each has its own, rows that follow
//          each other are not neighbours, and are gathered one by one, key by key
// WHY      loaded along keys, each number comes from a line of its own, and each line again for
//          every row: over the time of a row-major matrix, a bias on 4 heads of 1024 × 1024, d =
//          16, took 3.4, so 1.3; bools on 4096 × 4096 2.1, so 1.07 (Zen 4, AVX-512)
// EDGES    rows behind the strip's are read with them, as far as their sequence has rows; keys that
//          are not there read 0
template <class S, class T>
class StripTable {
  using Scalar = typename S::Scalar;
  using Size = TileSize<Scalar>;

 public:
  /// Of the rows from a cursor on; `length`: rows of their sequence.
  template <class Cursor>
  StripTable(const detail::ScoreTable<T>& table, Cursor cursor, int rows, Index length)
      : key_stride_(table.key_stride()),
        row_stride_(table.view.token_stride),
        readable_(length - cursor.row.row),
        keys_(cursor.row.keys),
        side_by_side_(cursor.group == 1 || table.view.head_stride == 0) {
    for (int i = 0; i < rows; ++i, cursor.next()) {
      if (i == 0 || cursor.member == 0 || !side_by_side_) row_[rows_++] = table.row(cursor.row);
      row_of_[i] = rows_ - 1;
    }
  }

  /// Fetches the panel that begins with this key.
  void load(Index first) {
    first_ = first;
    turn<S>(
        Size::panel, rows_, [&](Index j, Index i) { return column(first + j, i); },
        [&](Index j, Index i, const typename S::Packet& numbers, Index) {
          S::store(tile_[i] + j, numbers);
        });
  }
  /// Those of the strip's row i, and the key of the first.
  const Scalar* row(int i) const { return tile_[row_of_[i]]; }
  Index first() const { return first_; }

 private:
  /// Of rows i, i + 1, … for one key.
  ATTN_INLINE typename S::Packet column(Index key, Index i) const {
    if (key >= keys_) return S::set(Scalar(0));
    if (side_by_side_)
      return detail::load_strided<S>(row_[i] + key * key_stride_, row_stride_, readable_ - i);
    alignas(64) Scalar numbers[S::width];
    for (Index w = 0; w < S::width; ++w)
      numbers[w] = Scalar(row_[std::min<Index>(i + w, rows_ - 1)][key * key_stride_]);
    return S::load(numbers);
  }

  static constexpr int kMost = Size::narrow_rows;            ///< of a strip
  static constexpr Index kRows = round_up(kMost, S::width);  ///< as whole tiles are turned

  alignas(64) Scalar tile_[std::size_t{kRows}][Size::panel];
  const T*
      row_[std::size_t{kMost}];     ///< of the matrix; one for all rows of the strip that share it
  int row_of_[std::size_t{kMost}];  ///< which of them is each of the strip's
  int rows_ = 0;
  const Index key_stride_, row_stride_, readable_, keys_;
  const bool side_by_side_;
  Index first_ = 0;
};

/// A mask of a strip a panel of keys at a time: its tables from tiles where they lie by columns,
/// all else from the mask itself.
///   load(key)                  the panel that begins with this key
///   lanes(i, row, key)         the mask's lanes for the strip's row i, out of that panel
template <class S, class Mask>
class StripMask {
 public:
  template <class Cursor>
  StripMask(const Mask& mask, const Cursor&, int, Index) : mask_(mask) {}
  void load(Index) {}
  ATTN_INLINE typename S::Mask lanes(int, const QueryRow& row, Index key) const {
    return mask_.template lanes<S>(row, key);
  }

 private:
  const Mask& mask_;
};
template <class S, class Sees>
class StripMask<S, detail::BoundBool<Sees>> {
 public:
  template <class Cursor>
  StripMask(const detail::BoundBool<Sees>& mask, const Cursor& cursor, int rows, Index length)
      : mask_(mask), table_(mask.table, cursor, rows, length) {}
  void load(Index key) {
    if (mask_.by_columns()) table_.load(key);
  }
  ATTN_INLINE typename S::Mask lanes(int i, const QueryRow& row, Index key) const {
    if (!mask_.by_columns()) return mask_.template lanes<S>(row, key);
    const auto value = S::load(table_.row(i) + (key - table_.first()));
    const auto is_true = S::less(S::set(typename S::Scalar(0)), value);
    return Sees::value ? is_true : S::mask_not(is_true);
  }

 private:
  const detail::BoundBool<Sees>& mask_;
  StripTable<S, bool> table_;
};
template <class S, class A>
class StripMask<S, detail::Not<A>> {
 public:
  template <class Cursor>
  StripMask(const detail::Not<A>& mask, const Cursor& cursor, int rows, Index length)
      : a_(mask.a, cursor, rows, length) {}
  void load(Index key) { a_.load(key); }
  ATTN_INLINE typename S::Mask lanes(int i, const QueryRow& row, Index key) const {
    return S::mask_not(a_.lanes(i, row, key));
  }

 private:
  StripMask<S, A> a_;
};
/// Two masks at once; how they are joined is said below.
template <class S, class A, class B>
class StripMasks {
 public:
  template <class Mask, class Cursor>
  StripMasks(const Mask& mask, const Cursor& cursor, int rows, Index length)
      : a_(mask.a, cursor, rows, length), b_(mask.b, cursor, rows, length) {}
  void load(Index key) { a_.load(key), b_.load(key); }

 protected:
  StripMask<S, A> a_;
  StripMask<S, B> b_;
};
template <class S, class A, class B>
class StripMask<S, detail::And<A, B>> : public StripMasks<S, A, B> {
 public:
  using StripMasks<S, A, B>::StripMasks;
  ATTN_INLINE typename S::Mask lanes(int i, const QueryRow& row, Index key) const {
    return S::mask_and(this->a_.lanes(i, row, key), this->b_.lanes(i, row, key));
  }
};
template <class S, class A, class B>
class StripMask<S, detail::Or<A, B>> : public StripMasks<S, A, B> {
 public:
  using StripMasks<S, A, B>::StripMasks;
  ATTN_INLINE typename S::Mask lanes(int i, const QueryRow& row, Index key) const {
    return S::mask_or(this->a_.lanes(i, row, key), this->b_.lanes(i, row, key));
  }
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
