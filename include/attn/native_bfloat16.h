// attn/native_bfloat16.h: the option native_bfloat16(): attention's products by the processor's own
// instruction for bfloat16.
// SPDX-License-Identifier: MIT
#pragma once

#include "base/asked.h"
#include "base/bfloat_pairs.h"

namespace attn {
inline namespace ATTN_ABI {

/// Whether this build has the instruction that native_bfloat16() asks for: on x86 AVX512_BF16
/// (-march=znver4, cooperlake, sapphirerapids and later, or -mavx512bf16 beside AVX-512).
///
///   const auto products = [] {      // for a program that is built for several processors
///     if constexpr (attn::has_native_bfloat16) return attn::options(attn::native_bfloat16());
///     else return attn::options();
///   }();
///   attn::attention(Q, K, V, products, attn::into(Y));
inline constexpr bool has_native_bfloat16 = ATTN_BFLOAT_PAIRS != 0;

namespace detail {

struct NativeBfloat16Option {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: native_bfloat16 twice in one call");
  }
};
struct NativeBfloat16 : option_base {
  using Kind = NativeBfloat16Option;
};

/// Refuses, in words, builds and scalars that the option is not for.
template <class Scalar>
constexpr void check_native_bfloat16() {
  static_assert(always_false_v<Scalar> || has_native_bfloat16,
                "attn::native_bfloat16: this build has no instruction that multiplies bfloat16 "
                "(x86: AVX512_BF16, -march=native or -mavx512bf16): leave the option out, or add "
                "it where attn::has_native_bfloat16");
  static_assert(std::is_same_v<Scalar, float>,
                "attn::native_bfloat16: products of bfloat16 are added in float: query, key and "
                "value are float, half or bfloat16");
}

}  // namespace detail

/// Option: multiplies bfloat16 in both products, q·k and p·v, two at a time and added in float, by
/// the processor's own instruction. It takes half the instructions of products of floats, which is
/// faster where the processor runs as many of the one as of the other (AMD Zen 4 and later), and
/// slower where it runs half as many (some Intel processors): `bench/run bf16` tells. Hence an
/// option, and never a default.
///
/// Requires   attn::has_native_bfloat16; operands that compute in float; on a KeyValueCache,
///            bfloat16 storage (a static_assert otherwise). Not beside save_state(), and no option
///            of a backward pass, which multiplies floats
/// Semantics  queries, keys and values that are no bfloat16 (float, half, what a layer projected,
///            what rotary() turned) are rounded to it, to the nearest, ties to even; so is the
///            weight exp(s − m) of a pair before it meets its value. Scores are scaled (never the
///            queries), modified and masked in float; saved scores and the largest logit have its
///            error. The weights of a row are summed as they are rounded, so that they add up to 1.
///            Numbers below 2⁻¹²⁶ count as zeros. A result has the same bits whatever the batch,
///            threads, storage order and other rows, as without the option, but other bits than
///            without; on a cache those of the keys and values that were appended to it. A layer's
///            projections are those without
/// Cost       half the instructions of both products. Few rows (decoding) are computed as many are,
///            on packed keys and values: twice as slow as without
/// Accuracy   of bfloat16 operands |o' − o| ≤ 2⁻⁸ · Σ_j w_j |v_j − o|, for the rounding of weights,
///            beside the error of float products; nothing where a row's values are alike, or its
///            scores. Log-sum-exp is off by 2⁻⁸ at most, a saved weight by as much of itself
///            (tests/native_bfloat16_test.cpp). Rounding operands changes a score by up to
///            2⁻⁷ · scale · Σ|q·k|, and a value by 2⁻⁸ of itself
inline detail::NativeBfloat16 native_bfloat16() { return {}; }

}  // namespace ATTN_ABI
}  // namespace attn
