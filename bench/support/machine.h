// bench/support/machine.h: what this core can do at most, measured: multiply-adds; and its caches.
// SPDX-License-Identifier: MIT
#pragma once

#include <benchmark/benchmark.h>
#include <unistd.h>

#include <Eigen/Core>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "measure.h"

// WHAT  multiply_add_peak<Scalar>(): operations per second of independent multiply-adds in
//       registers, one burst of some 0.2 ms.
// WHY   Opaque assembly, because a compiler may shorten a loop whose results it understands (clang
//       drops part of a plain chain, and the peak comes out too high) or spill its accumulators.
//       Twelve chains cover two units of four (Zen, Skylake) or five (Haswell) cycles latency.
//       They are twelve variables: g++ -O2 keeps an array of them on the stack, at half the peak.
// EDGES The instruction set is the one that this file is compiled for. With AVX-512, 256-bit
//       bursts run as well and the better counts: whether a core has one or two 512-bit units
//       is found so, not assumed. Without FMA, half the chains multiply and half add. On other
//       processors than x86 a plain loop stands in, and is only a lower bound.

namespace bench {

#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
#define ATTN_BENCH_X86 1
#else
#define ATTN_BENCH_X86 0
#endif

#if ATTN_BENCH_X86

// clang-format off
// One step of chain k: a_k = a_k * x + y, which tends to 1, or its halves a_k = a_k * x and
// a_k = a_k + y, where x = 1 keeps the product from fading into slow denormal numbers.
#define ATTN_BENCH_FMA(suffix, k) "vfmadd132" suffix " %[x], %[y], %" #k "\n\t"
#define ATTN_BENCH_AVX_MULTIPLY(suffix, k) "vmul" suffix " %[x], %" #k ", %" #k "\n\t"
#define ATTN_BENCH_AVX_ADD(suffix, k) "vadd" suffix " %[y], %" #k ", %" #k "\n\t"
#define ATTN_BENCH_SSE_MULTIPLY(suffix, k) "mul" suffix " %[x], %" #k "\n\t"
#define ATTN_BENCH_SSE_ADD(suffix, k) "add" suffix " %[y], %" #k "\n\t"

#define ATTN_BENCH_TWELVE(even, odd, suffix)                                                     \
  even(suffix, 0) odd(suffix, 1) even(suffix, 2) odd(suffix, 3) even(suffix, 4) odd(suffix, 5)   \
  even(suffix, 6) odd(suffix, 7) even(suffix, 8) odd(suffix, 9) even(suffix, 10) odd(suffix, 11)

// operations: those of one lane in the twelve chains. Four rounds of them make a step, or the end
// of the loop takes up to 8 % where it falls across a line of code.
#define ATTN_BENCH_BURST(Scalar, bytes, even, odd, suffix, operations)                           \
  inline double burst(Scalar, std::integral_constant<int, bytes>) {                              \
    typedef Scalar Vector __attribute__((vector_size(bytes)));                                   \
    constexpr int kSteps = 12500;                                                                \
    constexpr int kLanes = bytes / static_cast<int>(sizeof(Scalar));                             \
    const Vector one = Vector{} + Scalar(1);                                                     \
    Vector a0 = one, a1 = one, a2 = one, a3 = one, a4 = one, a5 = one;                           \
    Vector a6 = one, a7 = one, a8 = one, a9 = one, a10 = one, a11 = one;                         \
    const Vector x = Vector{} + Scalar((operations) == 24 ? 0.999 : 1);                          \
    const Vector y = Vector{} + Scalar(0.001);                                                   \
    const double start = now();                                                                  \
    for (int i = 0; i < kSteps; ++i) {                                                           \
      asm volatile(ATTN_BENCH_TWELVE(even, odd, suffix) ATTN_BENCH_TWELVE(even, odd, suffix)     \
                   ATTN_BENCH_TWELVE(even, odd, suffix) ATTN_BENCH_TWELVE(even, odd, suffix)     \
                   : "+x"(a0), "+x"(a1), "+x"(a2), "+x"(a3), "+x"(a4), "+x"(a5), "+x"(a6),       \
                     "+x"(a7), "+x"(a8), "+x"(a9), "+x"(a10), "+x"(a11)                          \
                   : [x] "x"(x), [y] "x"(y));                                                    \
    }                                                                                            \
    return 4.0 * (operations) * kLanes * kSteps / (now() - start);                               \
  }
// clang-format on

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
ATTN_BENCH_BURST(float, 64, ATTN_BENCH_FMA, ATTN_BENCH_FMA, "ps", 24)
ATTN_BENCH_BURST(double, 64, ATTN_BENCH_FMA, ATTN_BENCH_FMA, "pd", 24)
#elif defined(__AVX__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
ATTN_BENCH_BURST(float, 16, ATTN_BENCH_SSE_MULTIPLY, ATTN_BENCH_SSE_ADD, "ps", 12)
ATTN_BENCH_BURST(double, 16, ATTN_BENCH_SSE_MULTIPLY, ATTN_BENCH_SSE_ADD, "pd", 12)
#endif
#if defined(__FMA__)
ATTN_BENCH_BURST(float, 32, ATTN_BENCH_FMA, ATTN_BENCH_FMA, "ps", 24)
ATTN_BENCH_BURST(double, 32, ATTN_BENCH_FMA, ATTN_BENCH_FMA, "pd", 24)
#elif defined(__AVX__)
ATTN_BENCH_BURST(float, 32, ATTN_BENCH_AVX_MULTIPLY, ATTN_BENCH_AVX_ADD, "ps", 12)
ATTN_BENCH_BURST(double, 32, ATTN_BENCH_AVX_MULTIPLY, ATTN_BENCH_AVX_ADD, "pd", 12)
#endif

#undef ATTN_BENCH_BURST
#undef ATTN_BENCH_TWELVE
#undef ATTN_BENCH_SSE_ADD
#undef ATTN_BENCH_SSE_MULTIPLY
#undef ATTN_BENCH_AVX_ADD
#undef ATTN_BENCH_AVX_MULTIPLY
#undef ATTN_BENCH_FMA

template <class Scalar>
double multiply_add_peak() {
  double peak = burst(Scalar(), std::integral_constant<int, kVectorBytes>());
  if constexpr (kVectorBytes == 64) {
    peak = std::max(peak, burst(Scalar(), std::integral_constant<int, 32>()));
  }
  return peak;
}

#else  // other processors

template <class Scalar>
double multiply_add_peak() {
  constexpr int kLanes = 64;
  constexpr int kSteps = 20000;
  Scalar a[kLanes];
  for (Scalar& lane : a) lane = Scalar(1);
  Scalar x = Scalar(0.999);
  Scalar y = Scalar(0.001);
  benchmark::DoNotOptimize(x);
  benchmark::DoNotOptimize(y);
  const double start = now();
  for (int i = 0; i < kSteps; ++i) {
    for (Scalar& lane : a) lane = lane * x + y;
  }
  benchmark::DoNotOptimize(a);
  return 2.0 * kLanes * kSteps / (now() - start);
}

#endif

/// Size of the last-level cache; a large one is assumed where the system does not tell.
inline std::size_t last_level_cache_bytes() {
#if defined(_SC_LEVEL3_CACHE_SIZE)
  for (const int level : {_SC_LEVEL4_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE, _SC_LEVEL2_CACHE_SIZE}) {
    const long bytes = sysconf(level);
    if (bytes > 0) return static_cast<std::size_t>(bytes);
  }
#endif
  return std::size_t{64} << 20;
}

}  // namespace bench
