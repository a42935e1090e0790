// SPDX-License-Identifier: MIT
// Calls the two sources' functions on the same numbers and compares.

#include <cmath>
#include <cstdio>
#include <vector>

void attend_first(const float* q, const float* k, const float* v, int n, int d, float* y);
void attend_second(const float* q, const float* k, const float* v, int n, int d, float* y);

int main() {
#if defined(__GNUC__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    std::puts("this processor has no AVX2: linked, not run");
    return 0;
  }
#endif
  const int n = 37, d = 19;
  std::vector<float> q(n * d), k(n * d), v(n * d), first(n * d, -1.f), second(n * d, 1.f);
  for (int i = 0; i < n * d; ++i) {
    q[i] = std::sin(0.3f * static_cast<float>(i));
    k[i] = std::cos(0.7f * static_cast<float>(i));
    v[i] = std::sin(1.1f * static_cast<float>(i));
  }
  attend_first(q.data(), k.data(), v.data(), n, d, first.data());
  attend_second(q.data(), k.data(), v.data(), n, d, second.data());

  float difference = 0;
  for (int i = 0; i < n * d; ++i)
    difference = std::fmax(difference, std::fabs(first[i] - second[i]));
  std::printf("%.7f and %.7f, largest difference %.1e\n", first[n], second[n], difference);
  return difference <= 1e-5f ? 0 : 1;
}
