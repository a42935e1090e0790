// attn/kernel/backward_problem.h: one backward pass as the engine sees it: the forward call that it
// belongs to, what that left, and where gradients go.
// SPDX-License-Identifier: MIT
#pragma once

#include "problem.h"
#include "modifier_gradients.h"
#include "state_rows.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// Keys [begin, end) of a sequence whose gradients are written, from a row of theirs on.
struct KeyRun {
  Index begin, end, row;
};
/// Of all keys of each sequence, or of some runs of one sequence's: of the others no row sees any.
struct WrittenKeys {
  const KeyRun* runs = nullptr;
  Index count = 0;

  bool all() const { return runs == nullptr; }
  /// f(run) of a sequence of so many keys.
  template <class F>
  void each_run(Index keys, const F& f) const {
    if (all()) return f(KeyRun{0, keys, 0});
    for (Index n = 0; n < count; ++n) f(runs[n]);
  }
};

/// Everything one backward pass computes from and to. Each gradient is an Operand like what it
/// belongs to, or Absent: it is then not computed.
template <class Scored_, class OutputGradient_, class LogSumExpGradient_, class QueryGradient_,
          class KeyGradient_, class ValueGradient_, class ScoreGradients_ = NoScoreGradients>
struct BackwardProblem {
  using Scored = Scored_;
  using Scalar = typename Scored::Scalar;
  using OutputGradient = OutputGradient_;
  using LogSumExpGradient = LogSumExpGradient_;
  using QueryGradient = QueryGradient_;
  using KeyGradient = KeyGradient_;
  using ValueGradient = ValueGradient_;
  using ScoreGradients = ScoreGradients_;

  Scored&
      scored;  ///< a Problem: shape, operands, scale, mask, modifiers, rotation; the rest Absent
  StateRows<const Scalar> state;
  OutputGradient output_gradient;  ///< ∂loss/∂Y, an operand
  LogSumExpGradient
      logsumexp_gradient;  ///< ∂loss/∂(log-sum-exp), an operand of one feature, or Absent
  QueryGradient query;
  KeyGradient key;
  ValueGradient value;
  ScoreGradients scores{};  ///< gradients of what modifies scores
  WrittenKeys keys{};
  bool accumulates = false;  ///< gradients are added to what stands there
  const detail::CallShape& shape = scored.shape;
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
