// tests/support/engine_tiles.h: the register tiles of float and double on operands of their own scalar: compiled once, in
// engine_tiles.cpp, and linked to every test. Nothing is compiled otherwise than it would be in the test: the tiles below
// these functions are never inlined, and all arithmetic is theirs.
// SPDX-License-Identifier: MIT
//
// WHY  each test needs the tiles of all row counts, whatever it tests: half of the code of 42 test programs was these functions
//      over and over; of a test of float and double they are 1 s of 7 at -O0, 5 s of 20 at -O2 (g++ 12, AVX-512).
#pragma once

#include <attn/attn.h>

// In the one source that holds them: nothing.
#ifndef ATTN_TESTS_TILES
#define ATTN_TESTS_TILES extern
#endif

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

#define ATTN_TESTS_TILES_OF(T)                                                                   \
  ATTN_TESTS_TILES template void scores<detail::Simd<T>>(int, const T*, const T*, Index,         \
                                                         const Segment&, T*, T*, Absent);        \
  ATTN_TESTS_TILES template void weighted_sum<detail::Simd<T>>(                                  \
      int, Index, bool, const T*, const T*, Index, Runs, const T*, T*, Index);                   \
  ATTN_TESTS_TILES template void scores_in_place<detail::Simd<T>>(                               \
      int, const T*, const Source<const T>&, Index, Index, Index,                                \
      const RowsAhead<detail::Simd<T>>&, T*, T*);                                                \
  ATTN_TESTS_TILES template void weighted_sum_of_few<detail::Simd<T>>(                           \
      int, const T*, const ValuesInPlace<detail::Simd<T>, const T>&, Runs, const T*, T*, Index); \
  ATTN_TESTS_TILES template void OnlineSoftmax<detail::Simd<T>>::weigh<Hidden::zero>(            \
      int, const T*, const T*, T*, Index, Runs, T*);                                             \
  ATTN_TESTS_TILES template void OnlineSoftmax<detail::Simd<T>>::weigh<Hidden::marked>(          \
      int, const T*, const T*, T*, Index, Runs, T*)

ATTN_TESTS_TILES_OF(float);
ATTN_TESTS_TILES_OF(double);

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
