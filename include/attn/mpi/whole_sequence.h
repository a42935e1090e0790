// attn/mpi/whole_sequence.h: options of a call on some rows of a sequence, as they are for all of
// them: every functor, mask and dropout sees the numbers of one process.
// SPDX-License-Identifier: MIT
//
// A rank's blocks are sequences of its call, each at an offset of its own, over one sequence of
// keys that serves them all. What an option is asked with goes back to the one sequence here:
// number 0, the row among all tokens. A position needs no way back: the blocks' offsets make it.
#pragma once

#include <utility>

#include "../call/options.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// A mask that is bound to the whole sequence, asked by rows of blocks. `offset`: the query offset
/// of the whole sequence.
template <class Mask>
struct WholeMask : mask_base {
  Mask mask;
  Index offset = 0;
  WholeMask(Mask m, Index o) : mask(std::move(m)), offset(o) {}

  bool operator()(const QueryRow& row, Index key) const { return mask(whole(row), key); }
  KeyRange keys(const QueryRows& rows) const { return mask.keys(whole(rows)); }
  KeyRange full_keys(const QueryRows& rows) const { return mask.full_keys(whole(rows)); }
  Cover cover(const QueryRows& rows, KeyRange range) const {
    return detail::cover(mask, whole(rows), range);
  }
  bool by_columns() const { return detail::by_columns(mask); }
  template <class S>
  ATTN_INLINE typename S::Mask lanes(const QueryRow& row, Index key) const {
    return mask.template lanes<S>(whole(row), key);
  }

 private:
  QueryRow whole(const QueryRow& row) const {
    const Index token = row.position - offset;
    return {0, row.head, token, token, row.position, row.keys};
  }
  QueryRows whole(const QueryRows& rows) const {
    const Index first = rows.offset - offset;
    return {0, rows.head_begin, rows.head_end, rows.begin + first, rows.end + first,
            0, offset,          rows.keys};
  }
};
template <class Mask>
inline constexpr bool asks_bools_v<WholeMask<Mask>> = asks_bools_v<Mask>;

inline QueryRow of_one_sequence(QueryRow row) {
  row.sequence = 0;
  return row;
}

/// A score functor, which may read at.sequence.
template <class Rule>
struct WholeRule : Rule {
  explicit WholeRule(const Rule& rule) : Rule(rule) {}
  template <class S>
  ATTN_INLINE typename S::Packet apply(const typename S::Packet& s, const QueryRow& row,
                                       Index key) const {
    return Rule::template apply<S>(s, of_one_sequence(row), key);
  }
  template <class S>
  ATTN_INLINE typename S::Packet apply_seen(const typename S::Packet& s, const QueryRow& row,
                                            Index key, const typename S::Mask& seen) const {
    return Rule::template apply_seen<S>(s, of_one_sequence(row), key, seen);
  }
  template <class S>
  ATTN_INLINE typename S::Packet apply_with_slope(const typename S::Packet& s, const QueryRow& row,
                                                  Index key, const typename S::Mask& seen,
                                                  typename S::Packet& slope) const {
    return Rule::template apply_with_slope<S>(s, of_one_sequence(row), key, seen, slope);
  }
};
template <class Option>
struct WholeScore : option_base {
  using Kind = ScoreOption;
  using Position = typename Option::Position;
  const Option& option;
  explicit WholeScore(const Option& o) : option(o) {}
  template <class Scalar, class Shape>
  auto bind(const Shape& shape) const {
    using Rule = decltype(option.template bind<Scalar>(shape));
    return WholeRule<Rule>(option.template bind<Scalar>(shape));
  }
};

/// dropout(), which draws by sequence, head and pair.
template <class Bound>
struct WholeBoundDropout : Bound {
  explicit WholeBoundDropout(const Bound& bound) : Bound(bound) {}
  using Bound::of;
  auto of(const QueryRow& row) const { return Bound::of(of_one_sequence(row)); }
};
/// (It is one still, to whoever compares a call with another: call_digest.h.)
template <class Option>
struct WholeDropout : Option {
  explicit WholeDropout(const Option& option) : Option(option) {}
  template <class Scalar, class Shape>
  auto bind(const Shape& shape) const {
    const Option& option = *this;
    using Bound = decltype(option.template bind<Scalar>(shape));
    return WholeBoundDropout<Bound>(option.template bind<Scalar>(shape));
  }
};

/// The option as the call takes it: itself, or one of the above.
template <class Option>
decltype(auto) of_whole_sequence(Option& option) {
  if constexpr (is_of_kind_v<Option, ScoreOption>) {
    return WholeScore<bare_t<Option>>(option);
  } else if constexpr (is_of_kind_v<Option, DropoutOption>) {
    return WholeDropout<bare_t<Option>>(option);
  } else {
    return (option);
  }
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
