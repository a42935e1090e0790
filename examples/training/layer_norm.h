// examples/training/layer_norm.h: each token to mean 0 and deviation 1, then scaled and shifted
// feature by feature.
// SPDX-License-Identifier: MIT
//
//   y = x̂ ∘ scale + shift       x̂ = (x − mean(x)) / σ,  σ = √(mean((x − mean(x))²) + ε)
//   dx = (g − mean(g) − x̂ · mean(g ∘ x̂)) / σ,  g = dy ∘ scale
//
// Ba et al. 2016 (arXiv:1607.06450).
#pragma once

#include <cmath>

#include "types.h"

namespace training {

template <class Scalar>
struct LayerNorm {
  Row<Scalar> scale, shift, scale_gradient, shift_gradient;
  Scalar epsilon = Scalar(1e-5);

  explicit LayerNorm(Index width)
      : scale(Row<Scalar>::Ones(width)),
        shift(Row<Scalar>::Zero(width)),
        scale_gradient(shift),
        shift_gradient(shift) {}

  const Matrix<Scalar>& forward(const Matrix<Scalar>& X) {
    normalised_.resizeLike(X);
    deviation_.resize(X.rows());
    Y_.resizeLike(X);
    // In a row of its own: Eigen's sums begin at the first aligned number, so that otherwise a
    // token's bits would depend on where in the batch it stands.
    for (Index i = 0; i < X.rows(); ++i) {
      row_ = X.row(i);
      row_.array() -= row_.mean();
      deviation_[i] = std::sqrt(row_.squaredNorm() / Scalar(row_.size()) + epsilon);
      row_ /= deviation_[i];
      normalised_.row(i) = row_;
      Y_.row(i) = row_.cwiseProduct(scale) + shift;
    }
    return Y_;
  }
  const Matrix<Scalar>& output() const { return Y_; }

  /// Adds to dX: in a transformer a residual connection leads past the norm.
  void backward(const Matrix<Scalar>& dY, Matrix<Scalar>& dX) {
    scale_gradient.setZero();
    shift_gradient.setZero();
    for (Index i = 0; i < dY.rows(); ++i) {
      scale_gradient += dY.row(i).cwiseProduct(normalised_.row(i));
      shift_gradient += dY.row(i);
      row_ = dY.row(i).cwiseProduct(scale);
      const Scalar mean = row_.mean(), along = row_.dot(normalised_.row(i)) / Scalar(row_.size());
      row_.array() -= mean;
      dX.row(i) += (row_ - along * normalised_.row(i)) / deviation_[i];
    }
  }

  template <class F>
  void for_each_parameter(const F& f) {
    f("scale", scale, scale_gradient);
    f("shift", shift, shift_gradient);
  }
  template <class F>
  void for_each_gradient(const F& f) const {
    f(scale_gradient);
    f(shift_gradient);
  }

 private:
  Matrix<Scalar> normalised_, Y_;
  Row<Scalar> deviation_, row_;
};

}  // namespace training
