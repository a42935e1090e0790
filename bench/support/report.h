// bench/support/report.h: the machine in one line, the summary table, and Google Benchmark's JSON.
// SPDX-License-Identifier: MIT
#pragma once

#include <benchmark/benchmark.h>

#include <Eigen/Core>
#include <cstdio>
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

/// A row of the table for each benchmark, as soon as it has run.
class SummaryTable : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override {
    std::string line;
    for (const auto& [key, value] : setting()) line += (line.empty() ? "" : " | ") + value;
    std::printf("%s\n\n", line.c_str());
    std::printf(
        "of limit    attention: of this core's multiply-add peak; decoding (dec*, gqa*): of\n"
        "            the bandwidth of reading as much memory; both measured in this run\n"
        "            masks: time over that without the mask, and that over the share of the pairs\n"
        "            that are seen; scores: time over that without the modifier\n"
        "x textbook  time of the library / time of the formula by hand in Eigen, in this\n"
        "            run: below 1, the library is faster\n"
        "max err     largest absolute error, against long double\n"
        "Times are those of one call; [batch, head, token, feature] memory.\n\n");
    std::printf("%-38s %10s %10s %8s  %-22s %10s %9s\n", "workload", "ms min", "ms median", "GF/s",
                "of limit", "x textbook", "max err");
    std::fflush(stdout);
    return true;
  }

  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      if (run.run_type == Run::RT_Aggregate) continue;
      const std::string name = run.run_name.str();
      if (run.counters.count("ms_min") == 0) {
        std::printf("%-38s failed: %s\n", name.c_str(), run.report_label.c_str());
        continue;
      }
      std::printf("%-38s %10.4f %10.4f %8s  %-22s %10s %9.1e\n", name.c_str(), value(run, "ms_min"),
                  value(run, "ms_median"), flop_rate(run).c_str(), limit(run).c_str(),
                  over_textbook(run).c_str(), value(run, "max_err"));
    }
    std::fflush(stdout);
  }

 private:
  static double value(const Run& run, const char* counter) {
    return run.counters.at(counter).value;
  }

  template <class... Numbers>
  static std::string format(const char* pattern, Numbers... numbers) {
    char text[64];
    std::snprintf(text, sizeof text, pattern, numbers...);
    return text;
  }

  static std::string flop_rate(const Run& run) {
    return run.counters.count("GFLOPS") == 0 ? "-" : format("%.1f", value(run, "GFLOPS"));
  }

  static std::string over_textbook(const Run& run) {
    return run.counters.count("vs_textbook") == 0 ? "-" : format("%.3f", value(run, "vs_textbook"));
  }

  static std::string limit(const Run& run) {
    if (run.counters.count("vs_plain") != 0) {
      return value(run, "visible_share") < 1
                 ? format("%.4f, %.2f x share", value(run, "vs_plain"), value(run, "vs_share"))
                 : format("%.3f x plain", value(run, "vs_plain"));
    }
    if (run.counters.count("peak_fraction") != 0) {
      return format("%.3f of %.1f GF/s", value(run, "peak_fraction"), value(run, "peak_GFLOPS"));
    }
    if (run.counters.count("bandwidth_fraction") != 0) {
      return format("%.3f of %.1f GB/s", value(run, "bandwidth_fraction"),
                    value(run, "bandwidth_GBs"));
    }
    return "-";
  }
};

/// Google Benchmark's JSON, with the minimum as the time of a run: Google Benchmark has timed all
/// repetitions together.
class MinimumAsTime : public benchmark::JSONReporter {
 public:
  void ReportRuns(const std::vector<Run>& runs) override {
    std::vector<Run> corrected = runs;
    for (Run& run : corrected) {
      const auto minimum = run.counters.find("ms_min");
      if (minimum == run.counters.end()) continue;
      run.iterations = 1;
      run.time_unit = benchmark::kMillisecond;
      run.real_accumulated_time = 1e-3 * minimum->second.value;
      run.cpu_accumulated_time = run.real_accumulated_time;
    }
    benchmark::JSONReporter::ReportRuns(corrected);
  }
};

}  // namespace bench
