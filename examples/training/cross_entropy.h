// examples/training/cross_entropy.h: how surprised a model is by what is right.
// SPDX-License-Identifier: MIT
//
//   loss = −mean over rows of log softmax(logits)[target]
//   dlogits = (softmax(logits) − onehot(target)) / rows
#pragma once

#include <cmath>
#include <vector>

#include "types.h"

namespace training {

inline constexpr int kIgnored = -1;  ///< the target of a row that does not count: padding

struct Judged {
  double loss = 0;  ///< mean over the rows that count, in nats
  Index rows = 0,
        correct = 0;  ///< that count; and of these, where the largest logit is the target's
  double accuracy() const { return rows == 0 ? 0 : double(correct) / double(rows); }
};

/// The loss, and its gradient by the logits, [rows, classes]; a target for each row.
template <class Scalar>
Judged cross_entropy(const Matrix<Scalar>& logits, const std::vector<int>& targets,
                     Matrix<Scalar>& dlogits) {
  Judged judged;
  for (const int target : targets) judged.rows += target != kIgnored;
  attn::log_softmax(logits, attn::into(dlogits));
  for (Index i = 0; i < logits.rows(); ++i) {
    const int target = targets[std::size_t(i)];
    if (target == kIgnored) {
      dlogits.row(i).setZero();
      continue;
    }
    Index largest;
    dlogits.row(i).maxCoeff(&largest);
    judged.correct += largest == target;
    judged.loss -= double(dlogits(i, target)) / double(judged.rows);
    dlogits.row(i) = dlogits.row(i).array().exp() / Scalar(judged.rows);
    dlogits(i, target) -= 1 / Scalar(judged.rows);
  }
  return judged;
}

}  // namespace training
