// examples/11_dispatch/main.cpp: one program for several instruction sets. CMake's attn_dispatch() compiles attend.cpp for
// each, and the processor chooses when the program starts: here it is made to choose each in turn.
// SPDX-License-Identifier: MIT
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "attend.h"

namespace {

/// How far the last row is from softmax(q Kᵀ / √d) V as it is written, in double.
double error(const Matrix& Q, const Matrix& K, const Matrix& V, const Matrix& Y) {
  const Eigen::Index i = Q.rows() - 1;
  double sum = 0, worst = 0;
  std::vector<double> o(std::size_t(V.cols()));
  for (Eigen::Index j = 0; j < K.rows(); ++j) {
    double s = 0;
    for (Eigen::Index c = 0; c < Q.cols(); ++c) s += double(Q(i, c)) * double(K(j, c));
    const double p = std::exp(s / std::sqrt(double(Q.cols())));
    sum += p;
    for (std::size_t c = 0; c < o.size(); ++c) o[c] += p * double(V(j, Eigen::Index(c)));
  }
  for (std::size_t c = 0; c < o.size(); ++c) {
    worst = std::max(worst, std::abs(o[c] / sum - double(Y(i, Eigen::Index(c)))));
  }
  return worst;
}

void measure() {
  const Eigen::Index L = 512, d = 64;
  std::srand(1);
  const Matrix Q = Matrix::Random(L, d), K = Matrix::Random(L, d), V = Matrix::Random(L, d);
  Matrix Y(L, d);
  double best = 1e9;
  for (int i = 0; i < 50; ++i) {
    const auto start = std::chrono::steady_clock::now();
    attend(Q, K, V, Y);
    const std::chrono::duration<double, std::milli> ms = std::chrono::steady_clock::now() - start;
    best = std::min(best, ms.count());
  }
  std::printf("%-12s  %5.2f ms   error %.1e   first %.9f\n", instruction_set(), best,
              error(Q, K, V, Y), double(Y(0, 0)));
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1) {
    measure();
    return 0;
  }
  std::printf("One head of 512 queries and keys, 64 features; here a program gets the last:\n");
  std::fflush(stdout);
  const std::string self = std::string(" \"") + arguments[0] + "\" once";
  for (const char* most : {"baseline", "avx2", "avx512"}) {
    if (std::system(("ATTN_MAX_ISA=" + (most + self)).c_str()) != 0) return 1;
  }
}
