// bench/support/setting.h: what a figure is worthless without: machine, compiler, flags, date.
// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>
#include <ctime>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

namespace bench {

inline std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown CPU";
}

inline std::string compiler_name() {
#if defined(__clang__)
  return "clang++ " + std::to_string(__clang_major__) + "." + std::to_string(__clang_minor__) +
         "." + std::to_string(__clang_patchlevel__);
#elif defined(__GNUC__)
  return "g++ " + std::to_string(__GNUC__) + "." + std::to_string(__GNUC_MINOR__) + "." +
         std::to_string(__GNUC_PATCHLEVEL__);
#else
  return "unknown compiler";
#endif
}

inline std::string eigen_version() {
  return std::to_string(EIGEN_WORLD_VERSION) + "." + std::to_string(EIGEN_MAJOR_VERSION) + "." +
         std::to_string(EIGEN_MINOR_VERSION);
}

inline std::string today() {
  const std::time_t time = std::time(nullptr);
  char text[16];
  std::strftime(text, sizeof text, "%Y-%m-%d", std::localtime(&time));
  return text;
}

/// What a figure is worthless without: key and value, in the order of the header line.
inline std::vector<std::pair<std::string, std::string>> setting() {
  return {{"cpu", cpu_name()},
          {"compiler", compiler_name()},
          {"flags", ATTN_BENCH_FLAGS},
          {"eigen", "Eigen " + eigen_version()},
          {"eigen_simd", Eigen::SimdInstructionSetsInUse()},
          {"date", today()}};
}

}  // namespace bench
