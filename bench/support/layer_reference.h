// bench/support/layer_reference.h: linear layers and the multi-head layer in double, whose own
// error is a millionth of float's.
// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>
#include <cmath>

#include "layer_by_hand.h"
#include "operands.h"

namespace bench {

inline Eigen::MatrixXd linear_reference(const DenseWeights& weights, const Eigen::MatrixXd& x) {
  Eigen::MatrixXd y = x * weights.weight.cast<double>();
  y.rowwise() += weights.bias.cast<double>();
  return y;
}
inline Eigen::MatrixXd linear_reference(const DenseWeights& weights, const RowMatrix<float>& x) {
  return linear_reference(weights, Eigen::MatrixXd(x.cast<double>()));
}

inline Eigen::MatrixXd gelu_reference(const Eigen::MatrixXd& x) {
  return x.unaryExpr([](double s) { return 0.5 * s * std::erfc(-s * std::sqrt(0.5)); });
}

inline Eigen::MatrixXd layer_reference(const LayerWeights& weights, Index heads,
                                       const RowMatrix<float>& x) {
  const Eigen::MatrixXd q = linear_reference(weights.query, x),
                        k = linear_reference(weights.key, x),
                        v = linear_reference(weights.value, x);
  Eigen::MatrixXd o(q.rows(), q.cols());
  const Index d = q.cols() / heads;
  for (Index h = 0; h < heads; ++h) {
    const auto columns = [&](const Eigen::MatrixXd& m) { return m.middleCols(h * d, d); };
    Eigen::MatrixXd p = columns(q) * columns(k).transpose() / std::sqrt(static_cast<double>(d));
    for (Index i = 0; i < p.rows(); ++i) {
      p.row(i) = (p.row(i).array() - p.row(i).maxCoeff()).exp();
      p.row(i) /= p.row(i).sum();
    }
    o.middleCols(h * d, d) = p * columns(v);
  }
  return linear_reference(weights.output, o);
}

/// The largest absolute error.
inline double max_error(const Eigen::MatrixXd& expected, const RowMatrix<float>& actual) {
  return (expected - actual.cast<double>()).cwiseAbs().maxCoeff();
}

}  // namespace bench
