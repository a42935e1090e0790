// attn/mask/positions.h: the query offset of a call, found wherever it is named, one voice only.
// SPDX-License-Identifier: MIT
#pragma once

#include "algebra.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// A call may be given several, of which it takes one: see check_positions().
struct QueryOffsetOption : NoKind {};
/// query_offset(…): names the offset outside a mask.
struct QueryOffset : option_base {
  using Kind = QueryOffsetOption;
  IndexList offset;
  struct Position : NoPosition {
    static constexpr int named = 1;
    static Index offset(const QueryOffset& option, const CallShape& shape, Index sequence, Index,
                        Index) {
      return offset_of_list(shape, "query_offset", option.offset, sequence);
    }
  };
};

/// What the options of a call say of positions, all together.
template <class... Options>
struct PositionOf {
  static constexpr int named = (0 + ... + position_t<Options>::named);
  static constexpr bool open = (false || ... || position_t<Options>::open);
  static constexpr bool aligned = (false || ... || position_t<Options>::aligned);
  static constexpr bool relative = (false || ... || position_t<Options>::relative);
  static constexpr bool read = (false || ... || position_t<Options>::read);
  /// The mask that asks for positions: the first that is causal, or else the first; null if none.
  static constexpr const char* asks = [] {
    const char* mask = nullptr;
    ((mask = mask == nullptr ? position_t<Options>::asks : mask), ...);
    return open ? "causal" : mask;
  }();
};
template <class... Options>
struct PositionOf<Asked<Options...>> : PositionOf<Options...> {};

/// Refuses an offset that is named twice.
template <class... Options>
constexpr void check_positions() {
  using Position = PositionOf<Options...>;
  static_assert(Position::named <= 1,
                "attn: the query offset is named twice: one of causal(align::...), "
                "causal_from(...) and query_offset(...)");
  static_assert(!(Position::open && Position::aligned),
                "attn: causal() leaves the alignment open that another mask of the call names: "
                "write the named one alone, causal(align::...) or causal_from(...)");
}

/// The offset as far as positions go. Beyond, a row compares with all keys as it does there, also
/// by a window's sides; where its position is read as a number, it is refused.
template <class Position>
Index bounded_offset(const char* function, Index offset) {
  constexpr Index most = 2 * kUnbounded;
  const Index bounded = std::clamp(offset, -most, most);
  if (Position::read && bounded != offset) {
    fail(text(function, ": the query offset is ", offset, ", needs at most ", most,
              " either way where rotary(), alibi(), score() or mask(f) reads positions"));
  }
  return bounded;
}

/// Refuses a mask that asks for positions which sequences of as many queries and keys leave open.
inline void check_named(const char* function, const char* mask, bool causal, Index queries,
                        Index keys) {
  if (mask == nullptr || queries == keys) return;
  const std::string left =
      text(function, ": ", mask, "() with ", queries, " queries and ", keys, " keys: name the ");
  if (causal) {
    fail(text(left,
              "alignment: causal(align::lower_right) puts the last query at the last key, "
              "causal(align::upper_left) the first query at the first key, causal_from(n) the "
              "first query at key n"));
  }
  fail(text(left, "offset: query_offset(n) puts the first query at key n, so ", keys - queries,
            " puts the last query at the last key"));
}

/// The offset of one sequence's query positions; refuses plain causal() where Lq ≠ Lk leaves it
/// open.
template <class... Options>
Index query_offset_of(const CallShape& shape, Index sequence, const Asked<Options...>& asked) {
  using Position = PositionOf<Options...>;
  const Index queries = shape.queries.length(sequence);
  Index keys = shape.key_length(sequence);
  if constexpr (Position::named == 0) {
    check_named(shape.function, Position::asks, Position::open, queries, keys);
    return 0;
  } else {
    Index offset = 0;
    asked.each([&](const auto& option) {
      keys = position_t<decltype(option)>::keys(option, sequence, keys);
    });
    asked.each([&](const auto& option) {
      offset += position_t<decltype(option)>::offset(option, shape, sequence, queries, keys);
    });
    return bounded_offset<Position>(shape.function, offset);
  }
}

}  // namespace detail

}  // namespace ATTN_ABI
}  // namespace attn
