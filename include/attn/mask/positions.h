// attn/mask/positions.h: the query offset of a call, found wherever it is named, one voice only.
// SPDX-License-Identifier: MIT
#pragma once

#include "algebra.h"
#include "tree.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// query_offset(…): names the offset outside a mask.
struct QueryOffset : option_base {
  IndexList offset;
};

inline Index offset_of_list(const CallShape& shape, const char* name, const IndexList& list,
                            Index sequence) {
  if (list.size() != 1 && list.size() != shape.sequences()) {
    fail(text(shape.function, ": ", name, " has ", list.size(), " offsets, the call has ",
              shape.sequences(), " sequences; needs one for each (or one for all)"));
  }
  return list[list.size() == 1 ? 0 : sequence];
}

/// What an option says about positions; this much by default. `named`: it names the offset; `asks`:
/// the mask that depends on it without saying from where; `open`, `aligned`: it is causal, without
/// and with an alignment of its own; `relative`: it compares positions; keys(…): the key length it
/// gives, where the option bounds the keys of the whole call.
struct NoPosition {
  static constexpr int named = 0;
  static constexpr const char* asks = nullptr;
  static constexpr bool open = false, aligned = false, relative = false;
  template <class Option>
  static Index keys(const Option&, Index, Index all) {
    return all;
  }
  template <class Option>
  static Index offset(const Option&, const CallShape&, Index, Index, Index) {
    return 0;
  }
};
template <class Option>
struct position_of : NoPosition {};
template <>
struct position_of<Causal> : NoPosition {
  static constexpr const char* asks = "causal";
  static constexpr bool open = true;
};
template <>
struct position_of<Window> : NoPosition {
  static constexpr bool relative = true;
};
template <>
struct position_of<PrefixLm> : NoPosition {
  static constexpr const char* asks = "prefix_lm";
};
template <>
struct position_of<Tree> : NoPosition {
  static constexpr const char* asks = "tree";
};
template <>
struct position_of<KeyBounds> : NoPosition {
  static Index keys(const KeyBounds& mask, Index sequence, Index all) {
    return std::min(all, of_sequence(mask.end, sequence));
  }
};
template <>
struct position_of<CausalAligned> : NoPosition {
  static constexpr int named = 1;
  static constexpr bool aligned = true;
  static Index offset(const CausalAligned& mask, const CallShape&, Index, Index queries,
                      Index keys) {
    return mask.alignment == align::lower_right ? keys - queries : 0;
  }
};
template <>
struct position_of<CausalFrom> : NoPosition {
  static constexpr int named = 1;
  static constexpr bool aligned = true;
  static Index offset(const CausalFrom& mask, const CallShape& shape, Index sequence, Index,
                      Index) {
    return offset_of_list(shape, "causal_from", mask.offset, sequence);
  }
};
template <>
struct position_of<QueryOffset> : NoPosition {
  static constexpr int named = 1;
  static Index offset(const QueryOffset& option, const CallShape& shape, Index sequence, Index,
                      Index) {
    return offset_of_list(shape, "query_offset", option.offset, sequence);
  }
};
/// Combinations: the offset may stand in either part; key lengths bound the call only where all
/// parts hold ("and").
template <class A, class B, bool Both>
struct position_of_pair {
  static constexpr int named = position_of<A>::named + position_of<B>::named;
  static constexpr const char* asks =
      position_of<A>::asks != nullptr ? position_of<A>::asks : position_of<B>::asks;
  static constexpr bool open = position_of<A>::open || position_of<B>::open;
  static constexpr bool aligned = position_of<A>::aligned || position_of<B>::aligned;
  static constexpr bool relative = position_of<A>::relative || position_of<B>::relative;
  template <class Pair>
  static Index keys(const Pair& mask, Index sequence, Index all) {
    if constexpr (Both) {
      return position_of<B>::keys(mask.b, sequence, position_of<A>::keys(mask.a, sequence, all));
    } else {
      return all;
    }
  }
  template <class Pair>
  static Index offset(const Pair& mask, const CallShape& shape, Index sequence, Index queries,
                      Index keys) {
    return position_of<A>::offset(mask.a, shape, sequence, queries, keys) +
           position_of<B>::offset(mask.b, shape, sequence, queries, keys);
  }
};
template <class A, class B>
struct position_of<And<A, B>> : position_of_pair<A, B, true> {};
template <class A, class B>
struct position_of<Or<A, B>> : position_of_pair<A, B, false> {};
template <class A>
struct position_of<Not<A>> : NoPosition {
  static constexpr int named = position_of<A>::named;
  static constexpr const char* asks = position_of<A>::asks;
  static constexpr bool open = position_of<A>::open, aligned = position_of<A>::aligned,
                        relative = position_of<A>::relative;
  static Index offset(const Not<A>& mask, const CallShape& shape, Index sequence, Index queries,
                      Index keys) {
    return position_of<A>::offset(mask.a, shape, sequence, queries, keys);
  }
};

template <class... Options>
inline constexpr int offsets_named_v = (0 + ... + position_of<bare_t<Options>>::named);
/// The mask that asks for positions: the first that is causal, or else the first; null if none.
template <class... Options>
constexpr const char* asks_for_offset() {
  const char* mask = nullptr;
  ((mask = mask == nullptr ? position_of<bare_t<Options>>::asks : mask), ...);
  return (false || ... || position_of<bare_t<Options>>::open) ? "causal" : mask;
}
/// causal() beside a causal mask that is aligned by name.
template <class... Options>
inline constexpr bool causal_twice_v = (false || ... || position_of<bare_t<Options>>::open) &&
                                       (false || ... || position_of<bare_t<Options>>::aligned);

/// The option reads positions as numbers, or a part of the mask does; others compare them with
/// keys'.
template <class Option, class = void>
inline constexpr bool reads_positions_v = false;
template <class Option>
inline constexpr bool reads_positions_v<Option, std::enable_if_t<Option::kReadsPositions>> = true;
template <class A, class B>
inline constexpr bool reads_positions_v<And<A, B>> = reads_positions_v<A> || reads_positions_v<B>;
template <class A, class B>
inline constexpr bool reads_positions_v<Or<A, B>> = reads_positions_v<A> || reads_positions_v<B>;
template <class A>
inline constexpr bool reads_positions_v<Not<A>> = reads_positions_v<A>;

/// The offset as far as positions go. Beyond, a row compares with all keys as it does there, also
/// by a window's sides; where its position is read as a number, it is refused.
template <class... Options>
Index bounded_offset(const char* function, Index offset) {
  constexpr Index most = 2 * kUnbounded;
  constexpr bool read = (false || ... || reads_positions_v<bare_t<Options>>);
  const Index bounded = std::clamp(offset, -most, most);
  if (read && bounded != offset) {
    fail(text(function, ": the query offset is ", offset, ", needs at most ", most,
              " either way where rotary(), alibi(), score() or mask(f) reads positions"));
  }
  return bounded;
}

/// The offset of one sequence's query positions; refuses plain causal() where Lq ≠ Lk leaves it
/// open.
template <class... Options>
Index query_offset_of(const CallShape& shape, Index sequence, const Options&... options) {
  const Index queries = shape.queries.length(sequence);
  Index keys = shape.key_length(sequence);
  if constexpr (offsets_named_v<Options...> == 0) {
    constexpr const char* mask = asks_for_offset<Options...>();
    if (mask != nullptr && queries != keys) {
      const std::string open = text(shape.function, ": ", mask, "() with ", queries,
                                    " queries and ", keys, " keys: name the ");
      if constexpr ((false || ... || position_of<bare_t<Options>>::open)) {
        fail(text(open,
                  "alignment: causal(align::lower_right) puts the last query at the last key, "
                  "causal(align::upper_left) the first query at the first key, causal_from(n) the "
                  "first query at key n"));
      } else {
        fail(text(open, "offset: query_offset(n) puts the first query at key n, so ",
                  keys - queries, " puts the last query at the last key"));
      }
    }
    return 0;
  } else {
    ((keys = position_of<Options>::keys(options, sequence, keys)), ...);
    return bounded_offset<Options...>(
        shape.function,
        (Index(0) + ... + position_of<Options>::offset(options, shape, sequence, queries, keys)));
  }
}

}  // namespace detail

}  // namespace ATTN_ABI
}  // namespace attn
