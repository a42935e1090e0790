// attn/detail/masks.h: the masks behind the options of mask.h, and what the engine asks of each of them.
// SPDX-License-Identifier: MIT
//
// An option holds what the user gave (and owns what would vanish); bind(shape) checks it against the call and leaves a light
// mask that the engine can ask.
//
// The Mask concept (what the engine asks of a bound mask):
//   bool operator()(row, key)    the definition
//   KeyRange keys(rows)          every key that some of the rows sees lies inside: nothing else is visited or read
//   KeyRange full_keys(rows)     every row sees all keys inside: no mask code runs there
//   Mask lanes<Simd>(row, key)   the definition for the keys key, key + 1, …, one per lane; false or anything past the last key
//   Cover cover(rows, keys)      optional: whether the rows see none, some or all of some keys, where that is more than the
//                                two ranges tell (several intervals: a union, a row of a block-sparse mask)
#pragma once

#include <algorithm>

#include "call_shape.h"
#include "heads.h"
#include "simd.h"

namespace attn {
inline namespace ATTN_ABI {

/// Base of every mask option.
struct mask_base : option_base {};

namespace detail {

template <class T>
inline constexpr bool is_mask_v = std::is_base_of_v<mask_base, bare_t<T>>;

/// A mask each of whose rows sees one interval of keys, both ends of which never decrease from row to row.
/// Derived gives `KeyRange row_keys(const QueryRow&)`; everything the engine asks follows from it.
template <class Derived>
struct IntervalMask : mask_base {
  bool operator()(const QueryRow& row, Index key) const {
    const KeyRange seen = self().row_keys(row);
    return seen.begin <= key && key < seen.end;
  }
  KeyRange keys(const QueryRows& rows) const {
    return {self().row_keys(rows.first()).begin, self().row_keys(rows.last()).end};
  }
  KeyRange full_keys(const QueryRows& rows) const {
    return {self().row_keys(rows.last()).begin, self().row_keys(rows.first()).end};
  }
  template <class S>
  ATTN_INLINE typename S::Mask lanes(const QueryRow& row, Index key) const {
    if constexpr (S::width == 1) {
      return (*this)(row, key);
    } else {
      using Scalar = typename S::Scalar;
      const KeyRange seen = self().row_keys(row);
      const auto bound = [key](Index end) {
        return S::set(Scalar(std::clamp<Index>(end - key, 0, S::width)));
      };
      const auto lane = S::iota();
      return S::mask_and(S::less_equal(bound(seen.begin), lane), S::less(lane, bound(seen.end)));
    }
  }

 private:
  const Derived& self() const { return static_cast<const Derived&>(*this); }
};

/// How much of a rectangle rows × keys a mask lets through; none and all are certain, some is what is left.
enum class Cover { none, some, all };

template <class Mask, class = void>
struct has_cover : std::false_type {};
template <class Mask>
struct has_cover<Mask, std::void_t<decltype(std::declval<const Mask&>().cover(
                           std::declval<const QueryRows&>(), KeyRange{}))>> : std::true_type {};

template <class Mask>
Cover cover(const Mask& mask, const QueryRows& rows, KeyRange keys) {
  if constexpr (has_cover<Mask>::value) {
    return mask.cover(rows, keys);
  } else {
    if (intersect(mask.keys(rows), keys).empty()) return Cover::none;
    return mask.full_keys(rows).contains(keys) ? Cover::all : Cover::some;
  }
}

inline constexpr Index kUnbounded = std::numeric_limits<Index>::max() / 4;

/// No mask: every query sees every key.
struct SeeAll : IntervalMask<SeeAll> {
  KeyRange row_keys(const QueryRow&) const { return {0, kUnbounded}; }
  SeeAll bind(const CallShape&) const { return {}; }
};

/// j ≤ p: a query sees the keys up to its own position.
struct Causal : IntervalMask<Causal> {
  KeyRange row_keys(const QueryRow& row) const { return {0, row.position + 1}; }
  Causal bind(const CallShape&) const { return {}; }
};
struct CausalAligned : Causal {
  align alignment;
  explicit CausalAligned(align a) : alignment(a) {}
};
struct CausalFrom : Causal {
  IndexList offset;
  explicit CausalFrom(IndexList o) : offset(std::move(o)) {}
};

/// p − left ≤ j ≤ p + right, −1 = unbounded.
struct Window : IntervalMask<Window> {
  Index left, right;
  Window(Index l, Index r) : left(l), right(r) {}
  KeyRange row_keys(const QueryRow& row) const {
    return {left < 0 ? 0 : row.position - left, right < 0 ? kUnbounded : row.position + right + 1};
  }
  Window bind(const CallShape& shape) const {
    if (left < -1 || right < -1) {
      fail(text(shape.function, ": window(", left, ", ", right,
                "): both sides are counts of keys, or -1 for unbounded"));
    }
    return {left > kUnbounded ? -1 : left, right > kUnbounded ? -1 : right};
  }
};

/// begin[b] ≤ j < end[b] in sequence b; null = from the first key, to the last.
struct BoundKeyRange : IntervalMask<BoundKeyRange> {
  const IndexList *begin = nullptr, *end = nullptr;
  static Index of(const IndexList& list, Index sequence) {
    return list[list.size() == 1 ? 0 : sequence];
  }
  KeyRange row_keys(const QueryRow& row) const {
    return {begin == nullptr ? 0 : of(*begin, row.sequence),
            end == nullptr ? kUnbounded : of(*end, row.sequence)};
  }
};
struct KeyBounds : mask_base {
  IndexList begin, end;
  bool from_start = true;

  BoundKeyRange bind(const CallShape& shape) const {
    const char* name = from_start ? "key_lengths" : "key_range";
    if (!from_start && begin.size() != end.size()) {
      fail(text(shape.function, ": key_range has ", begin.size(), " begins and ", end.size(),
                " ends"));
    }
    if (end.size() != shape.sequences() && end.size() != 1) {
      fail(text(shape.function, ": ", name, " has ", end.size(), " entries, the call has ",
                shape.sequences(), " sequences; needs one for each (or one for all)"));
    }
    for (Index b = 0; b < shape.sequences(); ++b) {
      const Index first = from_start ? 0 : BoundKeyRange::of(begin, b),
                  last = BoundKeyRange::of(end, b);
      if (first < 0 || last < first || last > shape.key_length(b)) {
        fail(text(shape.function, ": ", name, " of sequence ", b, " is [", first, ", ", last,
                  "), needs 0 <= begin <= end <= ", shape.key_length(b), " (its keys)"));
      }
    }
    BoundKeyRange bound;
    bound.begin = from_start ? nullptr : &begin;
    bound.end = &end;
    return bound;
  }
};

/// A bool for each pair. Nothing bounds the loops: every key may be seen.
template <bool Value>
struct BoundBool : mask_base {
  ScoreTable<bool> table;
  bool operator()(const QueryRow& row, Index key) const {
    return table.row(row)[key * table.key_stride] == Value;
  }
  KeyRange keys(const QueryRows&) const { return {0, kUnbounded}; }
  KeyRange full_keys(const QueryRows&) const { return {0, 0}; }
  template <class S>
  ATTN_INLINE typename S::Mask lanes(const QueryRow& row, Index key) const {
    if constexpr (S::width == 1) {
      return key < row.keys && (*this)(row, key);
    } else {
      using Scalar = typename S::Scalar;
      alignas(64) Scalar flags[S::width];
      const bool* from = table.row(row) + key * table.key_stride;
      const Index seen =
          std::min<Index>(S::width, row.keys - key);  // past the last key there is nothing to read
      for (Index w = 0; w < S::width; ++w)
        flags[w] = Scalar(w < seen && from[w * table.key_stride]);
      const auto set = S::less(S::set(Scalar(0)), S::load(flags));
      return Value ? set : S::mask_not(set);
    }
  }
};
template <class Source, bool Value>
struct BoolMask : mask_base {
  Source source;
  explicit BoolMask(Source s) : source(std::move(s)) {}
  BoundBool<Value> bind(const CallShape& shape) const {
    BoundBool<Value> bound;
    bound.table = source.table(shape, Value ? "keep" : "hide");
    return bound;
  }
};

/// Where a table of scores comes from: a matrix (held or owned), heads side by side in one, or a strided view.
template <class Held>
struct MatrixSource {
  Held held;
  Index heads = 1;
  using Scalar = typename Held::Scalar;
  ScoreTable<Scalar> table(const CallShape& shape, const char* name) const {
    const auto m = held.view();
    return score_table<Scalar>(shape, name, {m.data, m.rows, m.cols, m.row_stride, m.col_stride},
                               heads);
  }
  /// The memory behind it, for the check against outputs that overlap it.
  TensorView<const Scalar> memory() const {
    const auto m = held.view();
    return {m.data, 1, 1, m.rows, m.cols, 0, 0, m.row_stride, m.col_stride};
  }
};
template <class T>
struct ViewSource {
  TensorView<const T> view;
  using Scalar = T;
  ScoreTable<T> table(const CallShape& shape, const char* name) const {
    return score_table<T>(shape, name, view);
  }
  TensorView<const T> memory() const { return view; }
};
template <class T>
auto score_source(T&& x) {
  using Bare = bare_t<T>;
  if constexpr (is_heads_v<Bare>) {
    return MatrixSource<decltype(Bare::held)>{std::forward<T>(x).held, x.count};
  } else if constexpr (is_tensor_view_v<Bare>) {
    return ViewSource<typename Bare::Scalar>{{x.data, x.sequences, x.heads, x.tokens, x.features,
                                              x.sequence_stride, x.head_stride, x.token_stride,
                                              x.feature_stride}};
  } else {
    return MatrixSource<held_t<T>>{hold(std::forward<T>(x)), 1};
  }
}
template <class T>
inline constexpr bool is_score_shaped_v = is_dense_v<T> || is_heads_v<T> || is_tensor_view_v<T>;
/// Shaped like scores, with bool elements if `Bool`, with others if not.
template <class T, bool Bool>
constexpr bool is_score_table() {
  if constexpr (is_score_shaped_v<T>) {
    return std::is_same_v<typename decltype(score_source(std::declval<T>()))::Scalar, bool> == Bool;
  } else {
    return false;
  }
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
