// tests/support/reference_multi_head.h: the oracle of the layer: plain loops in long double around that of attention.
// SPDX-License-Identifier: MIT
#pragma once

#include <optional>

#include "reference_attention.h"
#include "reference_rotary.h"

namespace support {

/// Plain weights, Y = X·W + b; a bias without columns is none.
struct ReferenceLayer {
  Reference query, key, value, output;
  Reference query_bias, key_bias, value_bias, output_bias;
};

/// Each projection by its definition.
inline Reference project(const Reference& x, const Reference& w, const Reference& b) {
  Reference y(x.rows(), w.cols());
  for (Index i = 0; i < x.rows(); ++i) {
    for (Index n = 0; n < w.cols(); ++n) {
      long double sum = 0;
      for (Index c = 0; c < w.rows(); ++c) sum += x(i, c) * w(c, n);
      y(i, n) = b.cols() == 0 ? sum : sum + b(0, n);
    }
  }
  return y;
}

struct LayerCall {
  ReferenceOptions attention = {};  ///< its heads are the layer's
  std::optional<ReferenceRotary> rotary = {};
  std::vector<Index> query_positions = {}, key_positions = {};  ///< for each row, with rotary
  std::optional<Reference> residual = {};
};

/// What lies between the projections: queries, keys (turned) and values, and their attention.
struct ReferenceHeads {
  Reference query, key, value;
  ReferenceResult mixed;
};
inline ReferenceHeads reference_heads(const ReferenceLayer& w, const Reference& query,
                                      const Reference& key, const Reference& value,
                                      const LayerCall& call) {
  ReferenceHeads heads{project(query, w.query, w.query_bias),
                       project(key, w.key, w.key_bias),
                       project(value, w.value, w.value_bias),
                       {}};
  if (call.rotary) {
    const ReferenceOptions& attention = call.attention;
    heads.query =
        reference_rotary(heads.query, attention.heads, call.query_positions, *call.rotary);
    heads.key = reference_rotary(heads.key, attention.kv_heads, call.key_positions, *call.rotary);
  }
  heads.mixed = reference_attention(heads.query, heads.key, heads.value, call.attention);
  return heads;
}

inline ReferenceResult reference_multi_head(const ReferenceLayer& w, const Reference& query,
                                            const Reference& key, const Reference& value,
                                            const LayerCall& call) {
  ReferenceResult result = reference_heads(w, query, key, value, call).mixed;
  result.output = project(result.output, w.output, w.output_bias);
  if (call.residual) {
    for (Index i = 0; i < result.output.rows(); ++i) {
      for (Index n = 0; n < result.output.cols(); ++n)
        result.output(i, n) += (*call.residual)(i, n);
    }
  }
  return result;
}

/// The weights of a layer of the library, widened.
template <class Weights>
ReferenceLayer widened_layer(const Weights& w) {
  return {widened(w.query),      widened(w.key),        widened(w.value),
          widened(w.output),     widened(w.query_bias), widened(w.key_bias),
          widened(w.value_bias), widened(w.output_bias)};
}

}  // namespace support
