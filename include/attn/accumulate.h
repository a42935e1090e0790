// attn/accumulate.h: the option of backward passes that adds to what stands there.
// SPDX-License-Identifier: MIT
#pragma once

#include "call/gradient_outputs.h"

namespace attn {
inline namespace ATTN_ABI {

/// Gradients are added to what their outputs hold: old + gradient, rounded once. For micro-batches,
/// and weights that serve twice.
///
/// Requires   outputs that have their sizes (std::invalid_argument from the call otherwise)
inline detail::Accumulate accumulate() { return {}; }

}  // namespace ATTN_ABI
}  // namespace attn
