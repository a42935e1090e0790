// attn/mask/interval.h: the masks behind the options of mask.h, and what the engine asks of each of
// them.
// SPDX-License-Identifier: MIT
//
// An option holds what the user gave (and owns what would vanish); bind(shape) checks it against
// the call and leaves a light mask that the engine can ask.
//
// The Mask concept (what the engine asks of a bound mask):
//   bool operator()(row, key)    the definition
//   KeyRange keys(rows)          every key that some of the rows sees lies inside: nothing else is visited or read
//   KeyRange full_keys(rows)     every row sees all keys inside: no mask code runs there
//   Mask lanes<Simd>(row, key)   the definition for the keys key, key + 1, …, one per lane; false or anything past the last key
//   Cover cover(rows, keys)      optional: whether the rows see none, some or all of some keys, where that is more than the
//                                two ranges tell (several intervals: a union, a row of a
//                                block-sparse mask)
//
// What a mask is asked about is there: rows is never empty, key and keys lie within [0, rows.keys),
// where only the last lanes of a packet may lie behind. Its own cover() is asked about one key at
// least: everybody, the algebra too, asks through detail::cover(), which answers `none` for no
// keys.
#pragma once

#include <algorithm>

#include "../base/call_shape.h"
#include "../base/asked.h"
#include "../base/simd.h"

namespace attn {
inline namespace ATTN_ABI {

namespace detail {
/// A call takes any number of masks.
struct MaskOption : NoKind {};
}  // namespace detail

/// Base of every mask option.
struct mask_base : option_base {
  using Kind = detail::MaskOption;
};

namespace detail {

template <class T>
inline constexpr bool is_mask_v = std::is_base_of_v<mask_base, bare_t<T>>;

/// Lanes of the keys key, key + 1, … that lie in an interval.
template <class S>
ATTN_INLINE typename S::Mask interval_lanes(KeyRange seen, Index key) {
  if constexpr (S::width == 1) {
    return seen.begin <= key && key < seen.end;
  } else {
    using Scalar = typename S::Scalar;
    const auto bound = [key](Index end) {
      return S::set(Scalar(std::clamp<Index>(end - key, 0, S::width)));
    };
    const auto lane = S::iota();
    return S::mask_and(S::less_equal(bound(seen.begin), lane), S::less(lane, bound(seen.end)));
  }
}
/// Lanes of the keys key, key + 1, … below `keys` for which visible(key) holds; it is not asked
/// about others.
template <class S, class Visible>
ATTN_INLINE typename S::Mask asked_lanes(Index key, Index keys, const Visible& visible) {
  if constexpr (S::width == 1) {
    return key < keys && visible(key);
  } else {
    using Scalar = typename S::Scalar;
    alignas(64) Scalar flags[S::width];
    const Index held = std::min<Index>(S::width, keys - key);
    for (Index w = 0; w < S::width; ++w) flags[w] = Scalar(w < held && visible(key + w));
    return S::less(S::set(Scalar(0)), S::load(flags));
  }
}

/// A mask each of whose rows sees one interval of keys, both ends of which never decrease from row
/// to row.
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
    return interval_lanes<S>(self().row_keys(row), key);
  }

 private:
  const Derived& self() const { return static_cast<const Derived&>(*this); }
};

/// How much of a rectangle rows × keys a mask lets through; none and all are certain, some is what
/// is left.
enum class Cover { none, some, all };

template <class Mask, class = void>
struct has_cover : std::false_type {};
template <class Mask>
struct has_cover<Mask, std::void_t<decltype(std::declval<const Mask&>().cover(
                           std::declval<const QueryRows&>(), KeyRange{}))>> : std::true_type {};

/// The one way to ask: of no keys the rows see none, and the mask need not know how to look at
/// them.
template <class Mask>
Cover cover(const Mask& mask, const QueryRows& rows, KeyRange keys) {
  if (keys.empty()) return Cover::none;
  if constexpr (has_cover<Mask>::value) {
    return mask.cover(rows, keys);
  } else {
    if (intersect(mask.keys(rows), keys).empty()) return Cover::none;
    return mask.full_keys(rows).contains(keys) ? Cover::all : Cover::some;
  }
}

/// The mask asks a bool for each pair somewhere, which may lie by columns: those that do have bool
/// by_columns().
template <class Mask>
inline constexpr bool asks_bools_v = false;
template <class Mask>
bool by_columns(const Mask& mask) {
  if constexpr (asks_bools_v<Mask>) {
    return mask.by_columns();
  } else {
    return false;
  }
}

/// Behind every key, and the widest side of a window: positions and ranges are added and subtracted
/// freely up to twice that.
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
  struct Position : NoPosition {
    static constexpr const char* asks = "causal";
    static constexpr bool open = true;
  };
};
struct CausalAligned : Causal {
  align alignment;
  explicit CausalAligned(align a) : alignment(a) {}
  struct Position : NoPosition {
    static constexpr int named = 1;
    static constexpr bool aligned = true;
    static Index offset(const CausalAligned& mask, const CallShape&, Index, Index queries,
                        Index keys) {
      return mask.alignment == align::lower_right ? keys - queries : 0;
    }
  };
};
/// The offset of a sequence in a list of one for each, or one for all.
inline Index offset_of_list(const CallShape& shape, const char* name, const IndexList& list,
                            Index sequence) {
  if (list.size() != 1 && list.size() != shape.sequences()) {
    fail(text(shape.function, ": ", name, " has ", list.size(), " offsets, the call has ",
              shape.sequences(), " sequences; needs one for each (or one for all)"));
  }
  return list[list.size() == 1 ? 0 : sequence];
}
struct CausalFrom : Causal {
  IndexList offset;
  explicit CausalFrom(IndexList o) : offset(std::move(o)) {}
  struct Position : NoPosition {
    static constexpr int named = 1;
    static constexpr bool aligned = true;
    static Index offset(const CausalFrom& mask, const CallShape& shape, Index sequence, Index,
                        Index) {
      return offset_of_list(shape, "causal_from", mask.offset, sequence);
    }
  };
};

/// p − left ≤ j ≤ p + right, −1 or more than kUnbounded = unbounded.
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
  struct Position : NoPosition {
    static constexpr bool relative = true;
  };
};

/// The entry of a sequence in a list of one for each, or one for all.
inline Index of_sequence(const IndexList& list, Index sequence) {
  return list[list.size() == 1 ? 0 : sequence];
}
inline void check_of_sequence(const CallShape& shape, const char* name, const IndexList& list) {
  if (list.size() != shape.sequences() && list.size() != 1) {
    fail(text(shape.function, ": ", name, " has ", list.size(), " entries, the call has ",
              shape.sequences(), " sequences; needs one for each (or one for all)"));
  }
}

/// begin[b] ≤ j < end[b] in sequence b; null = from the first key, to the last.
struct BoundKeyRange : IntervalMask<BoundKeyRange> {
  const IndexList *begin = nullptr, *end = nullptr;
  KeyRange row_keys(const QueryRow& row) const {
    return {begin == nullptr ? 0 : of_sequence(*begin, row.sequence),
            end == nullptr ? kUnbounded : of_sequence(*end, row.sequence)};
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
    check_of_sequence(shape, name, end);
    for (Index b = 0; b < shape.sequences(); ++b) {
      const Index first = from_start ? 0 : of_sequence(begin, b), last = of_sequence(end, b);
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
  struct Position : NoPosition {
    static Index keys(const KeyBounds& mask, Index sequence, Index all) {
      return std::min(all, of_sequence(mask.end, sequence));
    }
  };
};

/// j < n or j ≤ p: a prefix of n keys that all see, causal behind it.
struct BoundPrefix : IntervalMask<BoundPrefix> {
  const IndexList* lengths = nullptr;
  KeyRange row_keys(const QueryRow& row) const {
    return {0, std::max(of_sequence(*lengths, row.sequence), row.position + 1)};
  }
};
struct PrefixLm : mask_base {
  IndexList lengths;
  BoundPrefix bind(const CallShape& shape) const {
    check_of_sequence(shape, "prefix_lm", lengths);
    for (Index b = 0; b < shape.sequences(); ++b) {
      const Index length = of_sequence(lengths, b);
      if (length < 0 || length > shape.key_length(b)) {
        fail(text(shape.function, ": prefix_lm of sequence ", b, " is ", length,
                  ", needs 0 <= n <= ", shape.key_length(b), " (its keys)"));
      }
    }
    BoundPrefix bound;
    bound.lengths = &lengths;
    return bound;
  }
  struct Position : NoPosition {
    static constexpr const char* asks = "prefix_lm";
  };
};

/// The bool of a pair that sees it: keep(B) and hide(B).
struct SeesTrue {
  static constexpr bool value = true;
  static constexpr const char* kName = "keep";
};
struct SeesFalse {
  static constexpr bool value = false;
  static constexpr const char* kName = "hide";
};
/// A bool for each pair. Nothing bounds the loops: every key may be seen.
template <class Sees>
struct BoundBool : mask_base {
  ScoreTable<bool> table;
  bool operator()(const QueryRow& row, Index key) const {
    return table.row(row)[key * table.key_stride()] == Sees::value;
  }
  KeyRange keys(const QueryRows&) const { return {0, kUnbounded}; }
  KeyRange full_keys(const QueryRows&) const { return {0, 0}; }
  bool by_columns() const { return table.by_columns(); }
  template <class S>
  ATTN_INLINE typename S::Mask lanes(const QueryRow& row, Index key) const {
    const bool* from = table.row(row);
    return asked_lanes<S>(key, row.keys,
                          [&](Index j) { return from[j * table.key_stride()] == Sees::value; });
  }
};
template <class Sees>
inline constexpr bool asks_bools_v<BoundBool<Sees>> = true;
template <class Source, class Sees>
struct BoolMask : mask_base {
  Source source;
  explicit BoolMask(Source s) : source(std::move(s)) {}
  BoundBool<Sees> bind(const CallShape& shape) const {
    BoundBool<Sees> bound;
    bound.table = source.table(shape, Sees::kName);
    return bound;
  }
  template <class Visit>
  void visit_memory(const Visit& visit) const {
    visit(Sees::kName, source.memory());
  }
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
