// attn/mask.h: stage 1, which query sees which key: causal, window, keep, hide, key_lengths, key_range; && || ! of them.
// SPDX-License-Identifier: MIT
//
//   i ↓ j →    causal()   window(1, 0)   key_lengths(3)   key_range(1, 4)   keep(B) attends where B is true
//              ■ . . .      ■ . . .        ■ ■ ■ .          . ■ ■ ■         hide(B) attends where B is false
//              ■ ■ . .      ■ ■ . .        ■ ■ ■ .          . ■ ■ ■
//              ■ ■ ■ .      . ■ ■ .        ■ ■ ■ .          . ■ ■ ■
//              ■ ■ ■ ■      . . ■ ■        ■ ■ ■ .          . ■ ■ ■
//
// Positions belong to the call: key j is at position j, query row i at i + offset, and every mask sees the same offset. It is
// named once: causal_from(offset), causal(align::…), or the option query_offset(offset). Several mask options of one call are
// joined by "and". A hidden pair contributes nothing, whatever its key and value hold; a row with no key left gives zeros.
#pragma once

#include "detail/positions.h"

namespace attn {
inline namespace ATTN_ABI {

/// Query sees the keys up to its own position. Needs Lq = Lk, or the offset named elsewhere in the call.
inline detail::Causal causal() { return {}; }
/// Causal with the query rows aligned by name where Lq ≠ Lk.
inline detail::CausalAligned causal(align alignment) { return detail::CausalAligned(alignment); }
/// Causal with query row i at position i + offset.
inline detail::CausalFrom causal_from(Index offset) {
  return detail::CausalFrom(detail::IndexList(offset));
}
/// Causal with an offset for each sequence of the batch.
template <class Offsets = std::initializer_list<Index>,
          std::enable_if_t<!std::is_integral_v<detail::bare_t<Offsets>>, int> = 0>
detail::CausalFrom causal_from(Offsets&& offsets) {
  return detail::CausalFrom(detail::IndexList(std::forward<Offsets>(offsets)));
}

/// Query row i is at position i + offset, for everything that asks for positions.
inline detail::QueryOffset query_offset(Index offset) {
  detail::QueryOffset option;
  option.offset = detail::IndexList(offset);
  return option;
}
/// An offset for each sequence of the batch.
template <class Offsets = std::initializer_list<Index>,
          std::enable_if_t<!std::is_integral_v<detail::bare_t<Offsets>>, int> = 0>
detail::QueryOffset query_offset(Offsets&& offsets) {
  detail::QueryOffset option;
  option.offset = detail::IndexList(std::forward<Offsets>(offsets));
  return option;
}

/// A query at position p sees the keys p − left ≤ j ≤ p + right, ends included; −1 = unbounded.
inline detail::Window window(Index left, Index right) { return {left, right}; }

/// Attends where B is true. B: Lq × Lk for all sequences, or their rows stacked; heads(B, H): one for each head; a strided
/// view [sequence or 1, head or 1, query or 1, key or 1].
template <class Matrix>
auto keep(Matrix&& B) {
  static_assert(
      detail::is_score_table<Matrix, true>(),
      "attn::keep: expected a matrix of bool; for numbers write keep(B.array() > 0), or bias(B) to "
      "add them");
  auto source = detail::score_source(std::forward<Matrix>(B));
  return detail::BoolMask<decltype(source), true>(std::move(source));
}
/// Attends where B is false: keep with the other polarity.
template <class Matrix>
auto hide(Matrix&& B) {
  static_assert(
      detail::is_score_table<Matrix, true>(),
      "attn::hide: expected a matrix of bool; for numbers write hide(B.array() > 0), or bias(B) to "
      "add them");
  auto source = detail::score_source(std::forward<Matrix>(B));
  return detail::BoolMask<decltype(source), false>(std::move(source));
}

/// Sequence b has lengths[b] keys; what lies behind them is padding. One entry serves all sequences.
template <class Lengths = std::initializer_list<Index>,
          std::enable_if_t<!std::is_integral_v<detail::bare_t<Lengths>>, int> = 0>
detail::KeyBounds key_lengths(Lengths&& lengths) {
  detail::KeyBounds mask;
  mask.end = detail::IndexList(std::forward<Lengths>(lengths));
  return mask;
}
inline detail::KeyBounds key_lengths(Index length) { return key_lengths({length}); }
/// Sequence b sees its keys begin[b] ≤ j < end[b]: left padding, right padding or both.
template <class Begin = std::initializer_list<Index>, class End = std::initializer_list<Index>,
          std::enable_if_t<!std::is_integral_v<detail::bare_t<Begin>> &&
                               !std::is_integral_v<detail::bare_t<End>>,
                           int> = 0>
detail::KeyBounds key_range(Begin&& begin, End&& end) {
  detail::KeyBounds mask;
  mask.begin = detail::IndexList(std::forward<Begin>(begin));
  mask.end = detail::IndexList(std::forward<End>(end));
  mask.from_start = false;
  return mask;
}
inline detail::KeyBounds key_range(Index begin, Index end) { return key_range({begin}, {end}); }

template <class A, class B, std::enable_if_t<detail::is_mask_v<A> && detail::is_mask_v<B>, int> = 0>
auto operator&&(A&& a, B&& b) {
  return detail::And<detail::bare_t<A>, detail::bare_t<B>>(std::forward<A>(a), std::forward<B>(b));
}
template <class A, class B, std::enable_if_t<detail::is_mask_v<A> && detail::is_mask_v<B>, int> = 0>
auto operator||(A&& a, B&& b) {
  return detail::Or<detail::bare_t<A>, detail::bare_t<B>>(std::forward<A>(a), std::forward<B>(b));
}
template <class A, std::enable_if_t<detail::is_mask_v<A>, int> = 0>
auto operator!(A&& a) {
  return detail::Not<detail::bare_t<A>>(std::forward<A>(a));
}
template <class A, class B, std::enable_if_t<detail::is_mask_v<A> != detail::is_mask_v<B>, int> = 0>
void operator&&(A&&, B&&) {
  static_assert(detail::always_false_v<A, B>,
                "attn: && joins masks: a matrix of bool becomes one by keep(B) or hide(B); other "
                "options are separated by commas");
}
template <class A, class B, std::enable_if_t<detail::is_mask_v<A> != detail::is_mask_v<B>, int> = 0>
void operator||(A&&, B&&) {
  static_assert(detail::always_false_v<A, B>,
                "attn: || joins masks: a matrix of bool becomes one by keep(B) or hide(B); other "
                "options are separated by commas");
}

}  // namespace ATTN_ABI
}  // namespace attn
