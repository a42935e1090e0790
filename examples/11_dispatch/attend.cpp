// examples/11_dispatch/attend.cpp: what is compiled for each instruction set.
// SPDX-License-Identifier: MIT
#include "attend.h"

#include <attn/attention.h>

void attend(const Matrix& Q, const Matrix& K, const Matrix& V, Eigen::Ref<Matrix> Y) {
  attn::attention(Q, K, V, attn::into(Y));
}

const char* instruction_set() {
#if defined(__AVX512F__)
  return "AVX-512";
#elif defined(__AVX2__)
  return "AVX2 and FMA";
#else
  return "baseline";
#endif
}
