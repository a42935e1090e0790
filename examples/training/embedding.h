// examples/training/embedding.h: tokens as vectors, and where they stand.
// SPDX-License-Identifier: MIT
//
//   X[i] = √d · table[id_i] + P[position of i]          Vaswani et al. 2017, §3.4 and §3.5
//   P[p, 2c] = sin(p / 10000^(2c/d))     P[p, 2c + 1] = cos(p / 10000^(2c/d))
#pragma once

#include <cmath>
#include <stdexcept>

#include "batch.h"
#include "random.h"

namespace training {

template <class Scalar>
Matrix<Scalar> sinusoids(Index positions, Index width) {
  return Matrix<Scalar>::NullaryExpr(positions, width, [&](Index p, Index c) {
    const double angle = double(p) / std::pow(10000.0, double(c - c % 2) / double(width));
    return Scalar(c % 2 == 0 ? std::sin(angle) : std::cos(angle));
  });
}

template <class Scalar>
struct Embedding {
  Matrix<Scalar> table, gradient, positions;

  Embedding(Index vocabulary, Index width, Index longest, Engine& engine)
      : table(vocabulary, width), positions(sinusoids<Scalar>(longest, width)) {
    gradient.setZero(vocabulary, width);
    // Of variance 1/d, so that √d times it is as large as the sinusoids.
    const double limit = std::sqrt(3.0 / double(width));
    for (Index n = 0; n < table.size(); ++n)
      table.data()[n] = Scalar(limit * (2 * uniform(engine) - 1));
  }

  /// The rows of a batch; `first`: the position of each sequence's first token, which decoding
  /// token by token moves on.
  Matrix<Scalar> forward(const Batch& batch, Index first = 0) const {
    Matrix<Scalar> X(batch.tokens(), table.cols());
    for (Index n = 0; n < batch.sequences(); ++n) {
      if (first + batch.length(n) > positions.rows())
        throw std::invalid_argument("a sequence is longer than the model's table of positions");
      for (Index t = 0; t < batch.length(n); ++t) {
        const Index i = batch.begin(n) + t;
        X.row(i) = scale() * table.row(batch.ids[std::size_t(i)]) + positions.row(first + t);
      }
    }
    return X;
  }
  void backward(const Batch& batch, const Matrix<Scalar>& dX) {
    gradient.setZero();
    for (Index i = 0; i < dX.rows(); ++i)
      gradient.row(batch.ids[std::size_t(i)]) += scale() * dX.row(i);
  }

  template <class F>
  void for_each_parameter(const F& f) {
    f("table", table, gradient);
  }
  template <class F>
  void for_each_gradient(const F& f) const {
    f(gradient);
  }

 private:
  Scalar scale() const { return std::sqrt(Scalar(table.cols())); }
};

}  // namespace training
