// attn/output.h: where results go: into(Y), and beside it save_logsumexp, save_max_logit,
// save_entropy, save_weights, save_scores.
// SPDX-License-Identifier: MIT
//
// Outputs are taken by forwarding reference and refused at compile time if writing to them would be
// lost: const matrices, temporaries, expressions, views of const memory. A plain dynamic matrix is
// resized, after all checks have passed.
//
//   option                saves                                     shape                       a row that sees no key
//   save_logsumexp(l)     log Σ_j exp(s_j)                          Lq × H                      −∞
//   save_max_logit(m)     max_j s_j                                 Lq × H                      −∞
//   save_entropy(e)       −Σ_j w_j log w_j, in nats                 Lq × H                      0
//   save_weights(W)       w_j = exp(s_j) / Σ_k exp(s_k)             Lq × (H·Lk)                 zeros
//   save_scores(S, at)    s_j at a stage on its way to the softmax  Lq × (H·Lk)                 −∞ at stage::masked
//
// A sink counts as one more key in the first three. They are numbers of the call's own pass, never
// of another algorithm: asking for them changes no bit of Y. Their types are any real scalars,
// rounded to once. None of them may share memory with an operand, with Y or with one another, or be
// the matrix that another is.
#pragma once

#include "call/saved_outputs.h"

namespace attn {
inline namespace ATTN_ABI {

/// The output: Y [Lq, H·d_v], resized if it is a plain dynamic matrix; or heads(Y, H); or a strided
/// view.
/// Refused at compile time: const, temporary or not directly writable outputs.
template <class Output>
auto into(Output&& Y) {
  static_assert(detail::check_output_type<Output>());
  if constexpr (detail::is_dense_v<Output>) {
    auto target = detail::matrix_output(std::forward<Output>(Y));
    return detail::Into<decltype(target)>(target);
  } else {
    auto target = detail::lift(std::forward<Output>(Y));
    return detail::Into<decltype(target)>(std::move(target));
  }
}

namespace detail {

template <class Number, class Output>
auto save_row(Output&& out) {
  static_assert(is_dense_v<Output> || is_tensor_view_v<Output>,
                "attn::save_logsumexp, save_max_logit, save_entropy: expected a matrix to write "
                "to, query rows x heads");
  auto target = output_target(std::forward<Output>(out));
  return SaveRow<decltype(target), Number>(std::move(target));
}

}  // namespace detail

/// Saves the natural logarithm of Σ_j exp(s_j) of every row: l [Lq, H]; −∞ for a row that sees no
/// key.
/// Two partial results over disjoint keys combine by it: see merge() in softmax.h.
///
/// Shapes     l [Lq, H], or a strided view of [B, H, Lq, 1]: bhld(p, B, H, Lq, 1)
/// Cost       a logarithm a row
template <class Output>
auto save_logsumexp(Output&& l) {
  return detail::save_row<kernel::LogSumExpOfRow>(std::forward<Output>(l));
}

/// Saves the largest score that the softmax sees, of every row and head; −∞ for a row that sees no
/// key, NaN where the row's result is NaN. The largest of each head (for QK-clip, say) is
/// m.colwise().maxCoeff().
///
/// Shapes     m [Lq, H], or a strided view of [B, H, Lq, 1]
/// Cost       none: the softmax needs it
template <class Output>
auto save_max_logit(Output&& m) {
  return detail::save_row<kernel::MaxLogitOfRow>(std::forward<Output>(m));
}

/// Saves the entropy of every row's weights in nats, −Σ_j w_j log w_j = log Σ_j p_j − Σ_j p_j (s_j
/// − m) / Σ_j p_j: 0 where one key takes all (or none is seen), log n where n keys share evenly.
///
/// Shapes     e [Lq, H], or a strided view of [B, H, Lq, 1]
/// Cost       a second exp for each visible pair
template <class Output>
auto save_entropy(Output&& e) {
  return detail::save_row<kernel::EntropyOfRow>(std::forward<Output>(e));
}

/// For save_weights and save_scores: only these query rows, counted over all the call's query
/// tokens: row n of the result is row rows[n] of the call. An lvalue container of integers is
/// referred to; a temporary or a braced list is copied.
///
/// Requires   increasing, 0 ≤ rows[n] < query rows of the call     (std::invalid_argument from the call otherwise)
template <class Rows = std::initializer_list<Index>>
detail::ChosenRows query_rows(Rows&& rows) {
  return {detail::IndexList(std::forward<Rows>(rows))};
}
/// For save_weights: the mean of all heads.
inline detail::AverageHeads average_heads() { return {}; }

/// Saves the attention weights, the rows of softmax(S): with save_weights(W), query_rows(rows) and
/// average_heads() in any order after W only these rows, only the mean over heads.
///
/// Shapes     W [Lq, H·Lk], head h in columns [h·Lk, (h+1)·Lk); of a ragged batch Lk is the longest
///            key length, zeros behind shorter ones; chosen rows [n, H·Lk]; averaged [Lq, Lk]. Or
///            heads(W, H), or a strided view of [B, H, Lq, Lk] (of chosen rows [1, H, n, Lk])
/// Requires   averaged: W stores the scalar that the call computes in
/// Semantics  a hidden pair weighs 0, whatever it holds. Each weight has its own rounding: a row
///            sums to 1 within rounding
/// Cost       Q·Kᵀ of the rows once more, an exp a pair; no scratch: W is written once and never
///            read. Averaged, the work is shared among threads by rows only, not by heads
template <class Output, class... Selection>
auto save_weights(Output&& W, Selection... selection) {
  constexpr int averages = (0 + ... + int(std::is_same_v<Selection, detail::AverageHeads>));
  constexpr int choices = (0 + ... + int(std::is_same_v<Selection, detail::ChosenRows>));
  static_assert(averages + choices == int(sizeof...(Selection)) && averages <= 1 && choices <= 1,
                "attn::save_weights: after the matrix it takes query_rows(...) and "
                "average_heads(), each once");
  using Over = std::conditional_t<averages == 1, detail::AverageHeads, detail::EachHead>;
  auto target = detail::output_target(std::forward<Output>(W));
  detail::SaveWeights<decltype(target), Over> option(std::move(target));
  (option.select(std::move(selection)), ...);
  return option;
}

/// Saves the scores at a stage on their way to the softmax (types.h): stage::scaled, softcapped,
/// biased, masked.
///
/// Shapes     as save_weights: S [Lq, H·Lk]; query_rows(rows) may follow. −∞ behind shorter key
///            lengths of a ragged batch
/// Semantics  before the mask every pair has its score, also where the call hides it: those are
///            computed for S alone, keys that no row sees are read, and at stage::biased a user's
///            functor is called for all. At stage::masked a hidden pair has −∞, and nothing is read
///            for it
/// Cost       Q·Kᵀ of the rows once more (before the mask: of all pairs)
template <class Output, class... Selection>
auto save_scores(Output&& S, stage at, Selection... selection) {
  static_assert((std::is_same_v<Selection, detail::ChosenRows> && ...) && sizeof...(Selection) <= 1,
                "attn::save_scores: after the matrix and the stage it takes query_rows(...)");
  auto target = detail::output_target(std::forward<Output>(S));
  detail::SaveScores<decltype(target)> option(std::move(target));
  option.at = at;
  (option.select(std::move(selection)), ...);
  return option;
}

}  // namespace ATTN_ABI
}  // namespace attn
