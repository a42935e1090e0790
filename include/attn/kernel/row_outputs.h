// attn/kernel/row_outputs.h: what a call saves beside its output: numbers of a row here, numbers of
// each pair in pair_outputs.h.
// SPDX-License-Identifier: MIT
#pragma once

#include <tuple>

#include "../base/asked.h"
#include "online_softmax.h"
#include "problem.h"
#include "state_rows.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// What is saved of a finished row, which the softmax leaves with its maximum m, its sum l (0: it
// has seen no key) and, where kReadsMoment, its moment t (below): value(m, l, t).
struct LogSumExpOfRow {
  static constexpr const char* kName = "logsumexp";
  static constexpr bool kReadsMoment = false;
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: save_logsumexp twice in one call");
  }
  template <class Scalar>
  static Scalar value(const Scalar& m, const Scalar& l, const Scalar&) {
    using std::log;
    return detail::equal(l, Scalar(0)) ? hidden_score<Scalar>() : Scalar(m + Scalar(log(l)));
  }
};
struct MaxLogitOfRow {
  static constexpr const char* kName = "max_logit";
  static constexpr bool kReadsMoment = false;
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: save_max_logit twice in one call");
  }
  template <class Scalar>
  static Scalar value(const Scalar& m, const Scalar& l, const Scalar&) {
    const Scalar zero_or_nan = (l - l) * Scalar(0);
    return detail::equal(l, Scalar(0)) ? hidden_score<Scalar>() : Scalar(m + zero_or_nan);
  }
};
struct EntropyOfRow {
  static constexpr const char* kName = "entropy";
  static constexpr bool kReadsMoment = true;
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: save_entropy twice in one call");
  }
  template <class Scalar>
  static Scalar value(const Scalar&, const Scalar& l, const Scalar& t) {
    using std::log;
    return detail::equal(l, Scalar(0)) ? Scalar(0) : Scalar(Scalar(log(l)) - Scalar(t / l));
  }
};

/// All of them. Another one is such a type, and its name here.
using RowNumbers = detail::Order<LogSumExpOfRow, MaxLogitOfRow, EntropyOfRow>;

/// A number of each row, and the operand that it is written to.
template <class Number, class To>
struct RowOutput {
  static constexpr bool kReadsMoment = Number::kReadsMoment;
  To to;

  template <class Scalar>
  void write(const QueryRow& row, const Scalar& m, const Scalar& l, const Scalar& t) const {
    *to.row(row.sequence, row.head, row.row) = typename To::Scalar(Number::value(m, l, t));
  }
};

/// The outputs beside the output: of pairs, each a target or Absent; StateRows for a backward pass,
/// or Absent; and numbers of rows.
template <class Weights, class Scores, class State, class... Rows>
struct Saved {
  Weights weights;
  Scores scores;
  State state;
  std::tuple<Rows...> rows;

  static constexpr bool kEntropy = (false || ... || Rows::kReadsMoment);
  static constexpr bool kWeights = detail::is_there_v<Weights>;
  static constexpr bool kScores = detail::is_there_v<Scores>;
  static constexpr bool kState = detail::is_there_v<State>;
  static constexpr bool kOverHeads = [] {
    if constexpr (kWeights) {
      return Weights::kAverages;
    } else {
      return false;
    }
  }();

  /// Saves a finished row: m, l and t as the softmax left them (t only where it is read).
  template <class Scalar>
  void write(const QueryRow& row, const Scalar& m, const Scalar& l, const Scalar& t) const {
    std::apply([&](const auto&... output) { (output.write(row, m, l, t), ...); }, rows);
    if constexpr (kState) {
      state.maximum[state.number(row)] = m;
      state.sum[state.number(row)] = l;
    }
  }
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
