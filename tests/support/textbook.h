// tests/support/textbook.h: the formula as one writes it by hand in Eigen: what accuracy is
// measured by.
// SPDX-License-Identifier: MIT
#pragma once

#include "random.h"

namespace support {

/// softmax(scale · Q Kᵀ) V in Scalar throughout: two Eigen products and a softmax of each row
/// between.
template <class Scalar>
DynamicMatrix<Scalar> textbook_attention(const DynamicMatrix<Scalar>& Q,
                                         const DynamicMatrix<Scalar>& K,
                                         const DynamicMatrix<Scalar>& V, Scalar scale) {
  DynamicMatrix<Scalar> P = scale * (Q * K.transpose());
  for (Eigen::Index i = 0; i < P.rows(); ++i) {
    const Scalar largest = P.row(i).maxCoeff();
    P.row(i) = (P.row(i).array() - largest).exp();
    P.row(i) /= P.row(i).sum();
  }
  return P * V;
}

}  // namespace support
