// bench/peers/head.h: one head, for libraries that are called head by head.
// SPDX-License-Identifier: MIT
#pragma once

#include "peer.h"

namespace bench {

/// Its matrices as they lie, rows so many elements apart.
struct Head {
  const float *q, *k, *v;
  float* y;
  Index rows, keys, key_size, value_size;
  Index q_stride, k_stride, v_stride, y_stride;
};

/// Of a workload, whose heads are matrices of their own.
inline Head head_of(const Workload& w, const Operands<float>& x, float* y, Index head) {
  const ProductShape shape(w);
  return {x.q.data() + head * shape.rows * w.head_size,
          x.k.data() + head * w.keys * w.head_size,
          x.v.data() + head * w.keys * w.value_size,
          y + head * shape.rows * w.value_size,
          shape.rows,
          key_length(w, head / shape.heads),
          w.head_size,
          w.value_size,
          w.head_size,
          w.head_size,
          w.value_size,
          w.value_size};
}

/// Of a layer, d features wide: queries, keys and values in rows `stride` apart, `next` elements
/// from one to the next; the outputs of all heads, `width` wide, side by side.
inline Head head_of_layer(const float* q, Index next, Index tokens, Index d, Index stride, float* y,
                          Index width) {
  return {q, q + next, q + 2 * next, y, tokens, tokens, d, d, stride, stride, stride, width};
}

}  // namespace bench
