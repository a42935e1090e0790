// tests/support/random_linear.h: linear layers of unit scale, seeded, and their oracle of plain loops in long double.
// SPDX-License-Identifier: MIT
#pragma once

#include <attn/linear.h>

#include <cmath>

#include "random.h"
#include "reference_multi_head.h"

namespace support {

/// Weights of unit scale: inputs uniform in [−1, 1] give outputs about as large.
template <class Scalar>
attn::Linear<Scalar> random_linear(const attn::LinearOptions& options, std::uint32_t seed = 1) {
  attn::Linear<Scalar> linear(options);
  linear.edit([&](auto& w) {
    w.kernel() = uniform<Scalar>(w.kernel().rows(), w.kernel().cols(), seed,
                                 std::sqrt(3.0 / static_cast<double>(w.kernel().rows())));
    w.bias() = uniform<Scalar>(1, w.bias().size(), seed + 1);
  });
  return linear;
}

/// act(X·W + b) + residual; the residual of size 0 is none.
template <class Weights, class X, class Activation>
Reference reference_linear(const Weights& w, const X& x, const Activation& act,
                           const Reference& residual = Reference()) {
  Reference y = project(widened(x), widened(w.kernel()), widened(w.bias()));
  for (Index i = 0; i < y.rows(); ++i) {
    for (Index n = 0; n < y.cols(); ++n)
      y(i, n) = act(y(i, n)) + (residual.size() == 0 ? 0.0L : residual(i, n));
  }
  return y;
}

inline long double unchanged(long double x) { return x; }
inline long double relu_of(long double x) { return x > 0 ? x : 0.0L; }
inline long double gelu_of(long double x) {
  return x / 2 * std::erfc(-x * 0.707106781186547524400844362104849039L);
}
inline long double gelu_tanh_of(long double x) {
  return x / 2 *
         (1 + std::tanh(0.797884560802865355879892119868763737L * (x + 0.044715L * x * x * x)));
}
inline long double silu_of(long double x) { return x / (1 + std::exp(-x)); }

}  // namespace support
