// attn/dropout.h: dropout of attention's weights, as a function of seed, stream and pair.
// SPDX-License-Identifier: MIT
//
//   y_i = 1/(1 − p) · Σ_j D_ij · w_ij · v_j      w: the weights, softmax over all visible keys;   D_ij = keeps(drop, {sequence, head, i, j}): 0 or 1
//
//   const auto drop = attn::dropout(0.1, seed, step);      // an option is a value: the same one for
//   Y = attn::attention(Q, K, V, attn::causal(), drop);    // the forward and the backward pass
//
// Nothing is drawn: whether a pair stays is computed from numbers that name it, wherever and as
// often as it is asked. So the mask is never stored, and is the same for any number of threads,
// batch, layout or instruction set.
#pragma once

#include "score/dropped_pairs.h"

namespace attn {
inline namespace ATTN_ABI {

/// Option: drops each weight with probability p, and scales what stays by 1/(1 − p).
///
/// Requires   0 ≤ p < 1 − 2⁻¹⁷: what rounds to less than 1   (std::invalid_argument otherwise)
/// Semantics  p is rounded to 1/65536, and the scale is that of the rounded p: the mean over seeds
///            is the output without. Which pairs fall depends on seed, stream, sequence, query
///            head, query position and key alone; `stream` tells uses of one seed apart: the step,
///            or step · layers + layer. A dropped pair contributes nothing through its value,
///            whatever that holds (NaN too); in the softmax it counts: save_weights(),
///            save_logsumexp() and save_entropy() are those before dropout. Not for calls on a
///            KeyValueCache
/// Cost       a hash of two integer multiplications for each two pairs, in lanes: 4 to 5 % of a
///            call of 1024 × 1024 pairs with d = 64 (Zen 4); no memory
/// Reference  Srivastava et al. 2014; Vaswani et al. 2017, §5.4 (arXiv:1706.03762)
inline detail::Dropout dropout(double p, std::uint64_t seed, std::uint64_t stream = 0) {
  return {p, seed, stream};
}

/// Whether a pair stays under dropout(): its definition, for tests and other implementations.
inline bool keeps(const detail::Dropout& drop, const At& at) {
  return drop.bind<double>(at).of(at.sequence, at.head, at.query).keeps(at.key);
}

}  // namespace ATTN_ABI
}  // namespace attn
