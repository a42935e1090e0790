// examples/training/adam.h: the optimiser.
// SPDX-License-Identifier: MIT
//
//   m ← β₁m + (1 − β₁)g      v ← β₂v + (1 − β₂)g²
//   w ← w − rate · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)
//
// Kingma & Ba 2015, Algorithm 1. Before: where the norm of all gradients together is above a bound,
// all are scaled down to it (Pascanu et al. 2013).
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "parameters.h"

namespace training {

struct AdamOptions {
  Index steps = 1000;  ///< after which the rate is 0
  Index warm_up =
      100;  ///< steps in which it rises to `rate`; from there it falls, both in a straight line
  double rate = 1e-3;
  double beta1 = 0.9, beta2 = 0.98;
  double epsilon = 1e-9;
  double largest_norm = 1;  ///< of all gradients together
};

template <class Scalar>
class Adam {
 public:
  explicit Adam(const AdamOptions& options) : options_(options) {}

  /// The rate of step t, counted from 1.
  double rate(Index t) const {
    const auto& o = options_;
    if (t <= o.warm_up) return o.rate * double(t) / double(o.warm_up);
    return o.rate * double(std::max<Index>(o.steps - t, 0)) / double(o.steps - o.warm_up);
  }

  /// Moves all weights of the model by their gradients.
  template <class Model>
  void step(Model& model) {
    const auto& o = options_;
    double square = 0;
    for_each_gradient(model, [&](const auto& g) { square += double(g.squaredNorm()); });
    const double norm = std::sqrt(square), clip = norm > o.largest_norm ? o.largest_norm / norm : 1;

    ++t_;
    const double unbias1 = 1 - std::pow(o.beta1, double(t_));
    const double unbias2 = 1 - std::pow(o.beta2, double(t_));
    const Scalar length = Scalar(rate(t_) / unbias1), epsilon = Scalar(o.epsilon);
    const Scalar keep1 = Scalar(o.beta1), take1 = Scalar((1 - o.beta1) * clip);
    const Scalar keep2 = Scalar(o.beta2), take2 = Scalar((1 - o.beta2) * clip * clip);
    const Scalar unbias = Scalar(1 / unbias2);
    std::size_t n = 0;
    for_each_parameter(model, [&](const std::string&, auto& weight, const auto& gradient) {
      if (n == moments_.size())
        moments_.push_back({Array::Zero(weight.size()), Array::Zero(weight.size())});
      auto& [m, v] = moments_[n++];
      const Eigen::Map<const Array> g(gradient.data(), gradient.size());
      m = keep1 * m + take1 * g;
      v = keep2 * v + take2 * g.square();
      Eigen::Map<Array>(weight.data(), weight.size()) -=
          length * m / ((unbias * v).sqrt() + epsilon);
    });
  }

 private:
  using Array = Eigen::Array<Scalar, Eigen::Dynamic, 1>;
  struct Moments {
    Array mean, square;
  };
  AdamOptions options_;
  Index t_ = 0;
  std::vector<Moments> moments_;  // in the order of the model's parameters
};

}  // namespace training
