// SPDX-License-Identifier: MIT
#include "sums.h"

#include <attn/softmax.h>

#include <algorithm>
#include <numeric>
#include <string>

namespace {
const std::string word = std::string("start") + "ed";
}

const char* started() { return word.c_str(); }

const char* instruction_set() {
#if defined(__AVX512F__)
  return "avx512";
#elif defined(__AVX2__)
  return "avx2";
#else
  return "baseline";
#endif
}

void softmax(const Eigen::MatrixXf& X, Eigen::Ref<Eigen::MatrixXf> Y) {
  attn::softmax(X, attn::into(Y));
}

float sum(const std::vector<float>& x) {
  if (x.empty()) throw Refused("nothing to sum");
  std::vector<float> y = x;
  std::sort(y.begin(), y.end());
  return std::accumulate(y.begin(), y.end(), 0.f) + last(x) * 0;
}
