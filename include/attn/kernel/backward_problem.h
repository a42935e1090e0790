// attn/kernel/backward_problem.h: one backward pass as the engine sees it: the forward call that it
// belongs to, what that left, and where gradients go.
// SPDX-License-Identifier: MIT
#pragma once

#include "problem.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// What the forward pass left of each row: m and l of its softmax (l = 0: it saw no key), and o / l
/// before residual and rounding. Number (token, head) at token·heads + head, a row of the output at
/// (token·heads + head)·value_dim; token: QueryRow::token.
template <class Scalar>
struct StateRows {
  const Scalar *maximum, *sum, *output;
  Index heads, value_dim;

  Index number(const QueryRow& row) const { return row.token * heads + row.head; }
  const Scalar* output_of(const QueryRow& row) const { return output + number(row) * value_dim; }
};

/// Everything one backward pass computes from and to. Each gradient is an Operand like what it
/// belongs to, or Absent: it is then not computed.
template <class Scored_, class OutputGradient_, class LogSumExpGradient_, class QueryGradient_,
          class KeyGradient_, class ValueGradient_, class ScoreGradients_ = Absent>
struct BackwardProblem {
  using Scored = Scored_;
  using Scalar = typename Scored::Scalar;
  using OutputGradient = OutputGradient_;
  using LogSumExpGradient = LogSumExpGradient_;
  using QueryGradient = QueryGradient_;
  using KeyGradient = KeyGradient_;
  using ValueGradient = ValueGradient_;
  using ScoreGradients = ScoreGradients_;

  const Scored&
      scored;  ///< a Problem: shape, operands, scale, mask, modifiers, rotation; the rest Absent
  StateRows<Scalar> state;
  OutputGradient output_gradient;  ///< ∂loss/∂Y, an operand
  LogSumExpGradient
      logsumexp_gradient;  ///< ∂loss/∂(log-sum-exp), an operand of one feature, or Absent
  QueryGradient query;
  KeyGradient key;
  ValueGradient value;
  ScoreGradients scores{};   ///< gradients of what modifies scores, or Absent
  bool accumulates = false;  ///< gradients are added to what stands there
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
