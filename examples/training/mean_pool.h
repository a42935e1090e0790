// examples/training/mean_pool.h: a row for each sequence of a ragged batch: the mean of its tokens.
// SPDX-License-Identifier: MIT
#pragma once

#include "batch.h"

namespace training {

template <class Scalar>
Matrix<Scalar> mean_pool(const Matrix<Scalar>& X, const Batch& batch) {
  Matrix<Scalar> pooled(batch.sequences(), X.cols());
  for (Index n = 0; n < pooled.rows(); ++n)
    pooled.row(n) = X.middleRows(batch.begin(n), batch.length(n)).colwise().mean();
  return pooled;
}
/// The gradient by X: each token has its share.
template <class Scalar>
Matrix<Scalar> mean_pool_backward(const Matrix<Scalar>& dY, const Batch& batch) {
  Matrix<Scalar> dX(batch.tokens(), dY.cols());
  for (Index n = 0; n < dY.rows(); ++n)
    dX.middleRows(batch.begin(n), batch.length(n)).rowwise() = dY.row(n) / Scalar(batch.length(n));
  return dX;
}

}  // namespace training
