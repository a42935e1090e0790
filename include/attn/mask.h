// attn/mask.h: stage 1, which query sees which key: causal, window, keep, segments, tree, …, the
// user's own; && || ! of them.
// SPDX-License-Identifier: MIT
//
//   i ↓ j →    causal()   window(1, 0)   key_lengths(3)   key_range(1, 4)   keep(B) attends where B is true
//              ■ . . .      ■ . . .        ■ ■ ■ .          . ■ ■ ■         hide(B) attends where B is false
//              ■ ■ . .      ■ ■ . .        ■ ■ ■ .          . ■ ■ ■
//              ■ ■ ■ .      . ■ ■ .        ■ ■ ■ .          . ■ ■ ■
//              ■ ■ ■ ■      . . ■ ■        ■ ■ ■ .          . ■ ■ ■
//
//              prefix_lm(2)  segments({0, 0, 1, 1})  tree({-1, 0, 0, 1})  block_sparse(B, 2), B = 1 0   mask(f) attends where
//              ■ ■ . .         ■ ■ . .                 ■ . . .              ■ ■ . .               1 1   f(query, key) is true
//              ■ ■ . .         ■ ■ . .                 ■ ■ . .              ■ ■ . .
//              ■ ■ ■ .         . . ■ ■                 ■ . ■ .              ■ ■ ■ ■
//              ■ ■ ■ ■         . . ■ ■                 ■ ■ . ■              ■ ■ ■ ■
//
// Positions belong to the call: key j is at position j, query row i at i + offset, and every mask
// sees the same offset. It is named once: causal_from(offset), causal(align::…), or the option
// query_offset(offset). Several mask options of one call are joined by "and". A hidden pair
// contributes nothing, whatever its key and value hold; a row with no key left gives zeros.
//
// Cost: a mask bounds the loops. Blocks of keys that no row of a strip sees are neither computed
// nor read; where all rows see all keys of a block, none of the mask's code runs
// (tests/mask_work_test.cpp).
#pragma once

#include "mask/block_sparse.h"
#include "mask/mask_functor.h"
#include "mask/positions.h"
#include "mask/segments.h"
#include "mask/tree.h"

namespace attn {
inline namespace ATTN_ABI {

namespace detail {
/// An object instead of two functions, so that causal without its parentheses can be refused in
/// words.
struct CausalMaker {
  constexpr Causal operator()() const { return {}; }
  CausalAligned operator()(align alignment) const { return CausalAligned(alignment); }
};
}  // namespace detail

/// causal(): a query sees the keys up to its own position.
/// causal(alignment): with the query rows aligned by name where Lq ≠ Lk, align::upper_left or
/// align::lower_right.
///
/// Requires   Lq = Lk in every sequence, an alignment, or the offset named elsewhere in the call
///            (std::invalid_argument from the call otherwise)
inline constexpr detail::CausalMaker causal{};
/// Causal with query row i at position i + offset.
inline detail::CausalFrom causal_from(Index offset) {
  return detail::CausalFrom(detail::IndexList(offset));
}
/// Causal with an offset for each sequence of the batch (std::invalid_argument from the call where
/// there are not as many).
template <class Offsets = std::initializer_list<Index>,
          std::enable_if_t<!std::is_integral_v<detail::bare_t<Offsets>>, int> = 0>
detail::CausalFrom causal_from(Offsets&& offsets) {
  return detail::CausalFrom(detail::IndexList(std::forward<Offsets>(offsets)));
}

/// Query row i is at position i + offset, for everything that asks for positions.
///
/// Requires   where positions are read as numbers (rotary(), alibi(), score(), mask(f)): at most
///            half the largest Index, either way (std::invalid_argument from the call otherwise).
///            Masks compare only: an offset of any size puts queries behind or before all keys
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

/// A query at position p sees the keys p − left ≤ j ≤ p + right, ends included; −1 = unbounded, and
/// so is a side that reaches beyond all positions (more than a quarter of the largest Index).
///
/// Requires   left, right ≥ −1 (std::invalid_argument from the call otherwise)
/// Reference  Beltagy et al. 2020, Longformer (arXiv:2004.05150)
inline detail::Window window(Index left, Index right) { return {left, right}; }

/// Attends where B is true.
///
/// Shapes     B: Lq × Lk for all sequences, or their rows stacked; heads(B, H): one for each head;
///            a single row serves all queries, a single column (for each head) all keys; a strided
///            view [sequence or 1, head or 1, query or 1, key or 1]
/// Requires   one of those shapes (std::invalid_argument from the call otherwise)
/// Semantics  an lvalue is referred to, an expression evaluated and owned
/// Cost       B is read for each pair of a panel that it decides, nothing is copied
template <class Matrix>
auto keep(Matrix&& B) {
  static_assert(
      detail::is_bool_table<Matrix>(),
      "attn::keep: expected a matrix of bool; for numbers write keep(B.array() > 0), or bias(B) to "
      "add them");
  auto source = detail::score_source(std::forward<Matrix>(B));
  return detail::BoolMask<decltype(source), detail::SeesTrue>(std::move(source));
}
/// Attends where B is false: keep with the other polarity.
template <class Matrix>
auto hide(Matrix&& B) {
  static_assert(
      detail::is_bool_table<Matrix>(),
      "attn::hide: expected a matrix of bool; for numbers write hide(B.array() > 0), or bias(B) to "
      "add them");
  auto source = detail::score_source(std::forward<Matrix>(B));
  return detail::BoolMask<decltype(source), detail::SeesFalse>(std::move(source));
}

/// Sequence b has lengths[b] keys; what lies behind them is padding. One entry serves all
/// sequences.
///
/// Requires   an entry for each sequence, or one; 0 ≤ lengths[b] ≤ Lk (std::invalid_argument from
///            the call otherwise)
template <class Lengths = std::initializer_list<Index>,
          std::enable_if_t<!std::is_integral_v<detail::bare_t<Lengths>>, int> = 0>
detail::KeyBounds key_lengths(Lengths&& lengths) {
  detail::KeyBounds mask;
  mask.end = detail::IndexList(std::forward<Lengths>(lengths));
  return mask;
}
inline detail::KeyBounds key_lengths(Index length) { return key_lengths({length}); }
/// Sequence b sees its keys begin[b] ≤ j < end[b]: left padding, right padding or both.
///
/// Requires   entries as for key_lengths(), 0 ≤ begin[b] ≤ end[b] ≤ Lk (std::invalid_argument from
///            the call otherwise)
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

/// All see the first n keys, and behind them each query the keys up to its own position: a prompt
/// read both ways, its continuation causal. One n, or one for each sequence.
///
/// Requires   0 ≤ n ≤ Lk; Lq = Lk, or an offset named elsewhere in the call (std::invalid_argument
///            from the call otherwise)
/// Reference  Raffel et al. 2020 (arXiv:1910.10683)
template <class Lengths = std::initializer_list<Index>,
          std::enable_if_t<!std::is_integral_v<detail::bare_t<Lengths>>, int> = 0>
detail::PrefixLm prefix_lm(Lengths&& lengths) {
  detail::PrefixLm mask;
  mask.lengths = detail::IndexList(std::forward<Lengths>(lengths));
  return mask;
}
inline detail::PrefixLm prefix_lm(Index length) { return prefix_lm({length}); }

/// Documents packed in one sequence: a query sees the keys with its own id. Any integers, in any
/// order; where they ascend (documents one after the other), each document costs what its own pairs
/// cost, and the others are not read.
///
/// Shapes     one id for each token, the sequences' stacked as their rows are; or those of the
///            longest sequence, for all
/// Requires   as many ids as that (std::invalid_argument from the call that uses it, otherwise)
template <class Ids = std::initializer_list<Index>>
detail::Segments segments(Ids&& ids) {
  detail::Segments mask;
  mask.query_ids = detail::IndexList(std::forward<Ids>(ids));
  mask.same = true;
  return mask;
}
/// The same with ids of their own for the keys: cross-attention between packed documents, or
/// decoding.
template <class Ids = std::initializer_list<Index>, class KeyIds = std::initializer_list<Index>>
detail::Segments segments(Ids&& query_ids, KeyIds&& key_ids) {
  detail::Segments mask;
  mask.query_ids = detail::IndexList(std::forward<Ids>(query_ids));
  mask.key_ids = detail::IndexList(std::forward<KeyIds>(key_ids));
  return mask;
}

/// Candidates of speculative decoding as a tree (Miao et al. 2023, SpecInfer, arXiv:2305.09781):
/// parents[t] is the token that token t continues, −1 for a root. The tree's tokens are the last
/// query rows; a token sees all keys before the tree, its ancestors and itself. Rows before the
/// tree are causal.
///
/// Shapes     one parent for each token of the tree, for all sequences; or for each query row, the
///            sequences' stacked
/// Requires   parents stand before their children: −1 ≤ parents[t] < t; no more tokens than query
///            rows; Lq = Lk, or the offset named elsewhere in the call: query_offset(keys before
///            the first query) (std::invalid_argument from the call otherwise)
template <class Parents = std::initializer_list<Index>>
detail::Tree tree(Parents&& parents) {
  detail::Tree mask;
  mask.parents = detail::IndexList(std::forward<Parents>(parents));
  return mask;
}

/// A coarse matrix of bool: query row i sees key j where B(i / block, j / block) is true. What is
/// false is neither computed nor read, panel by panel.
///
/// Shapes     B: ⌈Lq / block⌉ × ⌈Lk / block⌉ of the longest sequences, for all of them, or one
///            below the other; heads(B, H): one for each head; a strided view [sequence or 1, head
///            or 1, query blocks, key blocks]
/// Requires   block ≥ 1, and those shapes
///            (std::invalid_argument from the call that uses it, otherwise)
template <class Matrix>
auto block_sparse(Matrix&& B, Index block) {
  static_assert(detail::is_bool_table<Matrix>(),
                "attn::block_sparse: expected a matrix of bool, an entry for each block x block "
                "pairs; for numbers write block_sparse(B.array() > 0, block)");
  auto source = detail::score_source(std::forward<Matrix>(B));
  return detail::BlockSparse<decltype(source)>(std::move(source), block);
}

/// The user's own mask: attends where f is true. f(attn::At at), or f(query, key) of the two
/// positions, is inlined.
///
/// Requires   f is const and depends on nothing but its arguments and what it holds
/// Semantics  f may have two members that bound the loops, const and of one signature, KeyRange
///            (const attn::QueryRows& rows):
///            keys: every key that some of the rows sees lies inside; full_keys: every row sees all
///            keys inside. Without them f is asked for every pair. An lvalue f is referred to, a
///            temporary owned
/// Cost       f for each pair of the panels that are neither outside keys nor inside full_keys
template <class F>
auto mask(F&& f) {
  using Held = detail::held_functor_t<F>;
  return detail::FunctorMask<Held>(Held(std::forward<F>(f)));
}

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
detail::SeeAll operator&&(A&&, B&&) {
  static_assert(detail::always_false_v<A, B>,
                "attn: && joins masks: a matrix of bool becomes one by keep(B) or hide(B); other "
                "options are separated by commas");
  return {};
}
template <class A, class B, std::enable_if_t<detail::is_mask_v<A> != detail::is_mask_v<B>, int> = 0>
detail::SeeAll operator||(A&&, B&&) {
  static_assert(detail::always_false_v<A, B>,
                "attn: || joins masks: a matrix of bool becomes one by keep(B) or hide(B); other "
                "options are separated by commas");
  return {};
}
template <class A, class B, std::enable_if_t<detail::is_mask_v<A> || detail::is_mask_v<B>, int> = 0>
detail::SeeAll operator&(A&&, B&&) {
  static_assert(detail::always_false_v<A, B>, "attn: masks are joined by &&, not by &");
  return {};
}
template <class A, class B, std::enable_if_t<detail::is_mask_v<A> || detail::is_mask_v<B>, int> = 0>
detail::SeeAll operator|(A&&, B&&) {
  static_assert(detail::always_false_v<A, B>, "attn: masks are joined by ||, not by |");
  return {};
}

}  // namespace ATTN_ABI
}  // namespace attn
