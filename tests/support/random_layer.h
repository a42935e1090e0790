// tests/support/random_layer.h: layers of unit scale, seeded.
// SPDX-License-Identifier: MIT
#pragma once

#include <attn/attn.h>

#include <cmath>

#include "random.h"

namespace support {

/// Weights of unit scale: inputs uniform in [−1, 1] give projections about as large; biases like them.
template <class Weights>
void randomize(Weights& w, std::uint32_t seed) {
  using Scalar = typename Weights::Scalar;
  for (auto* weight : {&w.query, &w.key, &w.value, &w.output}) {
    *weight = uniform<Scalar>(weight->rows(), weight->cols(), seed++,
                              std::sqrt(3.0 / static_cast<double>(weight->rows())));
  }
  for (auto* bias : {&w.query_bias, &w.key_bias, &w.value_bias, &w.output_bias})
    *bias = uniform<Scalar>(1, bias->size(), seed++);
}

template <class Scalar>
attn::MultiHeadAttention<Scalar> random_layer(const attn::MultiHeadOptions& options,
                                              std::uint32_t seed = 1) {
  attn::MultiHeadAttention<Scalar> layer(options);
  layer.edit([&](auto& w) { randomize(w, seed); });
  return layer;
}

}  // namespace support
