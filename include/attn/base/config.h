// attn/base/config.h: everything that depends on the compiler or its flags; the only place with
// compiler #ifs.
// SPDX-License-Identifier: MIT
#pragma once

// Before anything else: what follows would fill screens. A file that does not exist ends the
// compilation, #error alone does not.
#if defined(_MSVC_LANG) ? _MSVC_LANG < 201703L : __cplusplus < 201703L
#error attn needs C++17: compile with -std=c++17 (MSVC: /std:c++17) or a later standard
#include "attn needs C++17"
#endif

#include <Eigen/Core>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

static_assert(EIGEN_VERSION_AT_LEAST(3, 4, 0), "attn needs Eigen 3.4 or newer");

// ---- How an error leaves the library ------------------------------------------------------------
// With exceptions: std::invalid_argument. Without: ATTN_FAIL(message), which a program may define
// before including attn; it receives a `const char*` and must not return. The default prints the
// message to stderr and aborts.
#if defined(__cpp_exceptions) || defined(__EXCEPTIONS) || defined(_CPPUNWIND)
#define ATTN_EXCEPTIONS 1
#else
#define ATTN_EXCEPTIONS 0
#endif
#if ATTN_EXCEPTIONS
#define ATTN_TRY try
#define ATTN_CATCH_ALL catch (...)
#else
#define ATTN_TRY if constexpr (true)
#define ATTN_CATCH_ALL else
#endif

// ---- Threads ------------------------------------------------------------------------------------
// ATTN_OPENMP_FOR(n) gives each iteration of the loop that follows a thread of its own.
#if defined(_OPENMP)
#define ATTN_OPENMP 1
#define ATTN_PRAGMA(text) _Pragma(#text)
#define ATTN_OPENMP_FOR(n) ATTN_PRAGMA(omp parallel for num_threads(n) schedule(static, 1))
#else
#define ATTN_OPENMP 0
#define ATTN_OPENMP_FOR(n)
#endif

// ---- Inlining and unrolling ---------------------------------------------------------------------
// ATTN_INLINE also holds on lambdas and at -O2: the register tile is only fast while its
// accumulators stay in one frame.
// ATTN_UNROLL asks for complete unrolling of the loop that follows; without it g++ -O2 keeps the
// accumulators in memory.
// ATTN_FLATTEN: what the function calls, and what that calls, becomes part of it, so that its
// constants reach their loops.
#if defined(_MSC_VER) && !defined(__clang__)
#define ATTN_INLINE __forceinline
#define ATTN_NOINLINE __declspec(noinline)
#define ATTN_COLD __declspec(noinline)
#define ATTN_FLATTEN
#define ATTN_UNROLL
#elif defined(__clang__)
#define ATTN_INLINE inline __attribute__((always_inline))
#define ATTN_NOINLINE __attribute__((noinline))
#define ATTN_COLD __attribute__((noinline, cold))
#define ATTN_FLATTEN __attribute__((flatten))
#define ATTN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define ATTN_INLINE inline __attribute__((always_inline))
#define ATTN_NOINLINE __attribute__((noinline))
#define ATTN_COLD __attribute__((noinline, cold))
#define ATTN_FLATTEN __attribute__((flatten))
#define ATTN_UNROLL _Pragma("GCC unroll 16")
#endif

// ---- Prefetching --------------------------------------------------------------------------------
// The builtin itself: g++ takes a function of nothing but a prefetch (as Eigen's) for one without
// effect and drops its calls.
#if defined(__GNUC__) || defined(__clang__)
#define ATTN_PREFETCH(p) __builtin_prefetch(p)
#define ATTN_PREFETCH_FAR(p) __builtin_prefetch(p, 0, 2)
#define ATTN_PREFETCH_WRITE(p) __builtin_prefetch(p, 1, 2)
#else
#define ATTN_PREFETCH(p) static_cast<void>(p)
#define ATTN_PREFETCH_FAR(p) static_cast<void>(p)
#define ATTN_PREFETCH_WRITE(p) static_cast<void>(p)
#endif

// ---- Vector types -------------------------------------------------------------------------------
// ATTN_VECTOR_TYPES: Eigen's packets of float and double are the compiler's own vector types, whose
// integers may be shifted and whose lanes may be shuffled: lane n of ATTN_SHUFFLE(Packet, Scalar,
// a, b, i...) is lane i_n of a and b, one behind the other.
#if defined(__clang__) && (defined(__SSE2__) || defined(__ARM_NEON))
#define ATTN_VECTOR_TYPES 1
#define ATTN_SHUFFLE(Packet, Scalar, a, b, ...) Packet(__builtin_shufflevector(a, b, __VA_ARGS__))
#elif defined(__GNUC__) && (defined(__SSE2__) || defined(__ARM_NEON))
#define ATTN_VECTOR_TYPES 1
#define ATTN_SHUFFLE(Packet, Scalar, a, b, ...) \
  Packet(__builtin_shuffle(a, b, ::attn::detail::integer_lanes_t<Scalar, sizeof(a)>{__VA_ARGS__}))
#else
#define ATTN_VECTOR_TYPES 0
#endif

// ---- Overflow -----------------------------------------------------------------------------------
// sum_overflows(a, b, sum), product_overflows(a, b, product): whether the result does not fit; it
// is stored where it does.
#if defined(__GNUC__) || defined(__clang__)
#define ATTN_OVERFLOW_BUILTINS 1
#else
#define ATTN_OVERFLOW_BUILTINS 0
#endif

// ---- Widening -----------------------------------------------------------------------------------
// widen(p, lanes): so many floats from narrower storage, in one or two instructions where the
// target has them. (Compilers make shuffles of a loop over bytes, Eigen 3.4 software of half on
// g++. Masked intrinsics, all lanes on: g++ 12 warns of the others.)
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#define ATTN_WIDENS 1
#else
#define ATTN_WIDENS 0
#endif

// ---- Parts of packets ---------------------------------------------------------------------------
// load_first(p, n, lanes): the first n of so many floats or doubles, zeros behind them, where the
// target has one instruction for it, which does not read what lies past them.

// ---- Multiply-adds in place ---------------------------------------------------------------------
// ATTN_MULTIPLY_ADD(suffix, c, a, b): c += a·b, fused, in the register that holds c. g++ chooses
// among three forms of the instruction as it goes, moves accumulators around for that, and where
// they fill the registers spills some (the tiles, AVX2: 0.96 of the peak instead of 0.99). clang
// does not.
#if defined(__GNUC__) && !defined(__clang__) && defined(__FMA__) && defined(__x86_64__)
#define ATTN_MULTIPLY_ADD(suffix, c, a, b) \
  asm("vfmadd231" suffix " %[x], %[y], %[z]" : [z] "+v"(c) : [x] "v"(a), [y] "v"(b))
#endif
// ATTN_MULTIPLY_ADD_ELEMENT(suffix, lanes, c, a, b): c += a·b, a being one element in memory. g++
// loads it into all lanes first, by an instruction of its own: where each is used once (tiles of
// one packet), 1.34 cycles for a multiply-add instead of 1.05 (Zen 4).
#if defined(ATTN_MULTIPLY_ADD) && defined(__AVX512F__)
#define ATTN_MULTIPLY_ADD_ELEMENT(suffix, lanes, c, a, b) \
  asm("vfmadd231" suffix " %[x]%{1to" lanes "%}, %[y], %[z]" : [z] "+v"(c) : [x] "m"(a), [y] "v"(b))
#endif

// ---- Products of bfloat16 by pairs --------------------------------------------------------------
// ATTN_BFLOAT_PAIRS: the target multiplies pairs of bfloat16 and adds them to packets of 16 floats
// (base/bfloat_pairs.h). That it can does not say that it does so faster than it multiplies floats.
// ATTN_MULTIPLY_ADD_PAIRS(c, a, b): the same as ATTN_MULTIPLY_ADD, of g++, which would fetch a
// factor from memory for each of its products.
#if defined(EIGEN_VECTORIZE_AVX512) && defined(__AVX512BW__) && defined(__AVX512BF16__) && \
    ATTN_VECTOR_TYPES && ATTN_WIDENS
#define ATTN_BFLOAT_PAIRS 1
#else
#define ATTN_BFLOAT_PAIRS 0
#endif
#if ATTN_BFLOAT_PAIRS && defined(ATTN_MULTIPLY_ADD)
#define ATTN_MULTIPLY_ADD_PAIRS(c, a, b) \
  asm("vdpbf16ps %[x], %[y], %[z]" : [z] "+v"(c) : [x] "v"(a), [y] "v"(b))
#endif

// ---- Tables in a register -----------------------------------------------------------------------
// look_up(table, i): lane by lane the entry of a table of one packet that the last bits of i name,
// where the target has one instruction for it; has_look_up_v<Scalar, lanes> tells. (Masked, all
// lanes on, as above.)

// ---- Warnings of the packet layer ---------------------------------------------------------------
// Around simd.h: g++ warns where a packet is a template argument (its alignment attribute is
// dropped there, harmlessly), and g++ 12 takes the deliberately undefined operands inside its own
// AVX-512 intrinsics for uninitialized variables (PR 105593).
#if defined(__GNUC__) && !defined(__clang__)
#define ATTN_PACKET_WARNINGS_OFF                                                            \
  _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wignored-attributes\"") \
      _Pragma("GCC diagnostic ignored \"-Wmaybe-uninitialized\"")                           \
          _Pragma("GCC diagnostic ignored \"-Wuninitialized\"")
#define ATTN_PACKET_WARNINGS_ON _Pragma("GCC diagnostic pop")
#else
#define ATTN_PACKET_WARNINGS_OFF
#define ATTN_PACKET_WARNINGS_ON
#endif

// ---- One namespace per set of flags -------------------------------------------------------------
// Two sources of one program may be built with different flags. Their inline functions would carry
// the same weak symbols, and link order would pick one of them for both. Everything lies in an
// inline namespace that names what the generated code depends on, so each source keeps its own. (At
// -O0 Eigen's own functions still merge: that is Eigen's limit.)
#if defined(EIGEN_DONT_VECTORIZE) || !defined(EIGEN_VECTORIZE)
#define ATTN_ABI_ISA scalar
#elif ATTN_BFLOAT_PAIRS
#define ATTN_ABI_ISA avx512_bf16
#elif defined(EIGEN_VECTORIZE_AVX512)
#define ATTN_ABI_ISA avx512
#elif defined(EIGEN_VECTORIZE_AVX2)
#define ATTN_ABI_ISA avx2
#elif defined(EIGEN_VECTORIZE_AVX)
#define ATTN_ABI_ISA avx
#elif defined(EIGEN_VECTORIZE_SSE4_1)
#define ATTN_ABI_ISA sse4
#else
#define ATTN_ABI_ISA base
#endif
#if defined(__FMA__) || defined(FP_FAST_FMA)
#define ATTN_ABI_FMA fma
#else
#define ATTN_ABI_FMA nofma
#endif
#if defined(__F16C__)
#define ATTN_ABI_HALF f16c
#else
#define ATTN_ABI_HALF nof16c
#endif
#if defined(__FAST_MATH__) || (defined(_M_FP_FAST) && _M_FP_FAST)
#define ATTN_ABI_MATH fast
#else
#define ATTN_ABI_MATH exact
#endif
#if ATTN_EXCEPTIONS
#define ATTN_ABI_THROW throws
#else
#define ATTN_ABI_THROW nothrows
#endif
#define ATTN_ABI_JOIN(isa, fma, half, align, math, thrown) \
  isa##_##fma##_##half##_a##align##_##math##_##thrown
#define ATTN_ABI_NAME(isa, fma, half, align, math, thrown) \
  ATTN_ABI_JOIN(isa, fma, half, align, math, thrown)
#define ATTN_ABI                                                                                 \
  ATTN_ABI_NAME(ATTN_ABI_ISA, ATTN_ABI_FMA, ATTN_ABI_HALF, EIGEN_MAX_ALIGN_BYTES, ATTN_ABI_MATH, \
                ATTN_ABI_THROW)

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

#if ATTN_VECTOR_TYPES
/// As many integers of the scalar's size as `Bytes` hold.
template <class Scalar, std::size_t Bytes>
struct integer_lanes {
  using Integer = std::conditional_t<sizeof(Scalar) == 4, unsigned, unsigned long long>;
  typedef Integer type __attribute__((vector_size(Bytes)));
};
template <class Scalar, std::size_t Bytes>
using integer_lanes_t = typename integer_lanes<Scalar, Bytes>::type;
#endif

/// A scalar a·b + c may be fused by the hardware, so std::fma costs nothing and pins its rounding.
#if defined(__FMA__) || defined(FP_FAST_FMA)
inline constexpr bool kHardwareFma = true;
#else
inline constexpr bool kHardwareFma = false;
#endif

/// Eigen's packets divide as scalars do. 32-bit NEON has no such instruction: Eigen refines an
/// estimate there, to 1/1 = 0.999996.
#if defined(__ARM_NEON) && !defined(__aarch64__)
inline constexpr bool kExactDivision = false;
#else
inline constexpr bool kExactDivision = true;
#endif

/// Eigen's maximum and minimum of two packets are the first one where either is NaN, as x86's
/// instructions have it. NEON's give the NaN.
#if defined(EIGEN_VECTORIZE_SSE)
inline constexpr bool kMaxKeepsFirst = true;
#else
inline constexpr bool kMaxKeepsFirst = false;
#endif

/// -ffast-math: the compiler would reassociate the rounding trick of exp away unless a barrier
/// stops it.
#if defined(__FAST_MATH__) || (defined(_M_FP_FAST) && _M_FP_FAST)
inline constexpr bool kFastMath = true;
#else
inline constexpr bool kFastMath = false;
#endif

/// Whether mistakes are looked for that only the work itself shows: where Eigen asserts, unless
/// NDEBUG says otherwise; not under -ffast-math, where a NaN cannot be told from a mistake. A type,
/// for templates to name: what is compiled with and what without it may meet in one program.
#if defined(EIGEN_NO_DEBUG)
using debug_checks_t = std::false_type;
#else
using debug_checks_t = std::bool_constant<!kFastMath>;
#endif

/// Of integers ≥ 0, in standard C++.
template <class Integer>
constexpr bool portable_sum_overflows(Integer a, Integer b, Integer& sum) {
  if (a > std::numeric_limits<Integer>::max() - b) return true;
  sum = a + b;
  return false;
}
template <class Integer>
constexpr bool portable_product_overflows(Integer a, Integer b, Integer& product) {
  if (b != 0 && a > std::numeric_limits<Integer>::max() / b) return true;
  product = a * b;
  return false;
}
/// The same in one instruction more than the result itself takes, where the compiler knows it.
template <class Integer>
ATTN_INLINE bool sum_overflows(Integer a, Integer b, Integer& sum) {
#if ATTN_OVERFLOW_BUILTINS
  return __builtin_add_overflow(a, b, &sum);
#else
  return portable_sum_overflows(a, b, sum);
#endif
}
template <class Integer>
ATTN_INLINE bool product_overflows(Integer a, Integer b, Integer& product) {
#if ATTN_OVERFLOW_BUILTINS
  return __builtin_mul_overflow(a, b, &product);
#else
  return portable_product_overflows(a, b, product);
#endif
}

template <int N>
using lanes_t = std::integral_constant<int, N>;
#if ATTN_WIDENS && defined(__AVX512F__)
inline __m512 widen(const std::int8_t* p, lanes_t<16>) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, bytes));
}
inline __m512 widen(const Eigen::bfloat16* p, lanes_t<16>) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m512i words = _mm512_maskz_cvtepu16_epi32(0xffff, bits);
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, words, 16));
}
inline __m512 widen(const Eigen::half* p, lanes_t<16>) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_maskz_cvtph_ps(0xffff, bits);
}
#endif
#if ATTN_WIDENS && defined(__AVX2__)
inline __m256 widen(const std::int8_t* p, lanes_t<8>) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline __m256 widen(const Eigen::bfloat16* p, lanes_t<8>) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
#if defined(__F16C__)
inline __m256 widen(const Eigen::half* p, lanes_t<8>) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
#endif
#endif

#if ATTN_WIDENS && defined(__AVX512F__)
ATTN_INLINE __m512 load_first(const float* p, Eigen::Index n, lanes_t<16>) {
  return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
}
ATTN_INLINE __m512d load_first(const double* p, Eigen::Index n, lanes_t<8>) {
  return _mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p);
}
#endif
#if ATTN_WIDENS && defined(__AVX2__)
ATTN_INLINE __m256 load_first(const float* p, Eigen::Index n, lanes_t<8>) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(int(n)), lane));
}
ATTN_INLINE __m256d load_first(const double* p, Eigen::Index n, lanes_t<4>) {
  const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
  return _mm256_maskload_pd(p, _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), lane));
}
#endif

/// look_up() exists for packets of so many lanes.
template <class Scalar, int Lanes>
inline constexpr bool has_look_up_v = false;
#if ATTN_VECTOR_TYPES && ATTN_WIDENS && defined(__AVX512F__)
template <>
inline constexpr bool has_look_up_v<float, 16> = true;
template <>
inline constexpr bool has_look_up_v<double, 8> = true;
ATTN_INLINE integer_lanes_t<float, 64> look_up(const std::uint32_t (&table)[16],
                                               integer_lanes_t<float, 64> i) {
  return reinterpret_cast<integer_lanes_t<float, 64>>(_mm512_maskz_permutexvar_epi32(
      0xffff, reinterpret_cast<__m512i>(i), _mm512_load_si512(table)));
}
ATTN_INLINE integer_lanes_t<double, 64> look_up(const std::uint64_t (&table)[8],
                                                integer_lanes_t<double, 64> i) {
  return reinterpret_cast<integer_lanes_t<double, 64>>(
      _mm512_maskz_permutexvar_epi64(0xff, reinterpret_cast<__m512i>(i), _mm512_load_si512(table)));
}
#endif

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
