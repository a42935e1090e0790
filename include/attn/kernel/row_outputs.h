// attn/kernel/row_outputs.h: what a call saves beside its output: numbers of a row here, numbers of
// each pair in pair_outputs.h.
// SPDX-License-Identifier: MIT
#pragma once

#include "online_softmax.h"
#include "problem.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// Which outputs there are beside the output; each an operand or Absent.
template <class LogSumExp, class MaxLogit, class Entropy, class Weights, class Scores>
struct Saved {
  LogSumExp logsumexp;
  MaxLogit max_logit;
  Entropy entropy;
  Weights weights;
  Scores scores;

  static constexpr bool kLogSumExp = !std::is_same_v<LogSumExp, Absent>;
  static constexpr bool kMaxLogit = !std::is_same_v<MaxLogit, Absent>;
  static constexpr bool kEntropy = !std::is_same_v<Entropy, Absent>;
  static constexpr bool kWeights = !std::is_same_v<Weights, Absent>;
  static constexpr bool kScores = !std::is_same_v<Scores, Absent>;
  static constexpr bool kOverHeads = [] {
    if constexpr (kWeights) {
      return Weights::kAverages;
    } else {
      return false;
    }
  }();

  Saved(LogSumExp l, MaxLogit m, Entropy e, Weights w, Scores s)
      : logsumexp(l), max_logit(m), entropy(e), weights(w), scores(s) {}

  /// Saves a finished row: m, l and t as the softmax left them (t only with an entropy).
  template <class Scalar>
  void write(const QueryRow& row, const Scalar& m, const Scalar& l, const Scalar& t) const {
    using std::log;
    const bool empty = detail::equal(l, Scalar(0));
    const auto put = [&row](const auto& to, const Scalar& value) {
      using Stored = typename std::decay_t<decltype(to)>::Scalar;
      *to.row(row.sequence, row.head, row.row) = Stored(value);
    };
    if constexpr (kLogSumExp)
      put(logsumexp, empty ? hidden_score<Scalar>() : Scalar(m + Scalar(log(l))));
    if constexpr (kMaxLogit) {
      const Scalar zero_or_nan = (l - l) * Scalar(0);
      put(max_logit, empty ? hidden_score<Scalar>() : Scalar(m + zero_or_nan));
    }
    if constexpr (kEntropy)
      put(entropy, empty ? Scalar(0) : Scalar(Scalar(log(l)) - Scalar(t / l)));
  }
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
