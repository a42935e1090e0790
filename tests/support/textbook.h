// tests/support/textbook.h: the formula as one writes it by hand in Eigen: what accuracy is
// measured by.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>

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

template <class Scalar>
struct TextbookGradient {
  DynamicMatrix<Scalar> query, key, value;
};
/// The gradient of that, with the scale 1/√d, by O's own gradient dO: five Eigen products.
template <class Scalar>
TextbookGradient<Scalar> textbook_gradient(const DynamicMatrix<Scalar>& Q,
                                           const DynamicMatrix<Scalar>& K,
                                           const DynamicMatrix<Scalar>& V,
                                           const DynamicMatrix<Scalar>& dO) {
  const Scalar scale = 1 / std::sqrt(Scalar(Q.cols()));
  DynamicMatrix<Scalar> P = scale * (Q * K.transpose());
  for (Eigen::Index i = 0; i < P.rows(); ++i) {
    P.row(i) = (P.row(i).array() - P.row(i).maxCoeff()).exp().eval();
    P.row(i) /= P.row(i).sum();
  }
  const DynamicMatrix<Scalar> O = P * V, dP = dO * V.transpose();
  const Eigen::Matrix<Scalar, Eigen::Dynamic, 1> delta = dO.cwiseProduct(O).rowwise().sum();
  const DynamicMatrix<Scalar> dS = scale * P.cwiseProduct(dP.colwise() - delta);
  return {dS * K, dS.transpose() * Q, P.transpose() * dO};
}

}  // namespace support
