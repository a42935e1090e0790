// bench/support/report.h: the summary table, and Google Benchmark's JSON.
// SPDX-License-Identifier: MIT
#pragma once

#include <benchmark/benchmark.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "setting.h"

namespace bench {

/// A row of the table for each benchmark, as soon as it has run. Those with a length make tables of
/// their own, to be plotted.
class SummaryTable : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override {
    std::string line = "#";
    for (const auto& [key, value] : setting()) {
      if (line.size() + value.size() > 100) {
        std::printf("%s |\n", line.c_str());
        line = "#";
      }
      line += (line == "#" ? " " : " | ") + value;
    }
    std::printf("%s\n", line.c_str());
    std::fflush(stdout);
    return true;
  }

  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      if (run.run_type == Run::RT_Aggregate) continue;
      const std::string name = run.run_name.str();
      if (run.counters.count("ms_min") == 0) {
        std::printf("# %s failed: %s\n", name.c_str(), run.report_label.c_str());
      } else if (run.counters.count("length") != 0) {
        report_point(name, run);
      } else if (run.counters.count("ns_worst") != 0) {
        report_latency(name, run);
      } else {
        report_row(name, run);
      }
    }
    std::fflush(stdout);
  }

 private:
  void report_row(const std::string& name, const Run& run) {
    if (table_ != "summary") {
      table_ = "summary";
      std::printf(
          "\n"
          "of limit    of the multiply-add peak of the cores that are used; decoding (dec*, "
          "gqa*):\n"
          "            of the bandwidth of reading as much memory; both measured in this run\n"
          "            thr 2: before that, time of one thread / time of two\n"
          "            narrow caches: before that, time of the cache of floats / time\n"
          "            odd sizes: of the peak, and that over the fraction of the even neighbour\n"
          "            masks: time over that without the mask, and that over the share of the "
          "pairs\n"
          "            that are seen; scores: time over that without the modifier; saved: over "
          "that\n"
          "            without; *_colmajor: over that with a row-major matrix\n"
          "            gradients: of the peak, forward and backward counted as 3.5 forward "
          "passes,\n"
          "            a layer's projections as 3; then time of the backward pass / 2.5 (2) of "
          "the\n"
          "            forward one\n"
          "            at last, time over that without dropout, or without dbias\n"
          "            bf16: time without native_bfloat16() / time with it, and how many of its\n"
          "            instructions run in the time of one multiply-add of floats\n"
          "x textbook  time of the library / time of the formula by hand in Eigen, in this\n"
          "            run, both on one thread: below 1, the library is faster\n"
          "max err     largest absolute error, against long double\n"
          "Times are those of one call; [batch, head, token, feature] memory.\n\n"
          "%-33s %3s %9s %9s %7s  %-23s %10s %8s\n",
          "workload", "thr", "ms min", "ms median", "GF/s", "of limit", "x textbook", "max err");
    }
    const auto suffix = name.rfind("/threads:");
    const std::string workload = name.substr(0, suffix);
    const std::string threads =
        suffix == std::string::npos ? "1" : name.substr(suffix + std::strlen("/threads:"));
    std::printf("%-33s %3s %9.4f %9.4f %7s  %-23s %10s %8.1e\n", workload.c_str(), threads.c_str(),
                value(run, "ms_min"), value(run, "ms_median"), flop_rate(run).c_str(),
                limit(run).c_str(), over_textbook(run).c_str(), value(run, "max_err"));
  }

  /// Two empty lines between tables, as gnuplot's `index` wants them.
  void report_point(const std::string& name, const Run& run) {
    const std::string table = name.substr(0, name.rfind('/'));
    if (table_ != table) {
      std::printf("%s# %s\n# %6s %12s %12s %8s %16s %14s\n", table_.empty() ? "" : "\n\n",
                  table.c_str(), "length", "ms_min", "ms_median", "GF/s", "workspace_bytes",
                  "operand_bytes");
      table_ = table;
    }
    std::printf("%8.0f %12.6f %12.6f %8.2f %16.0f %14.0f\n", value(run, "length"),
                value(run, "ms_min"), value(run, "ms_median"), value(run, "GFLOPS"),
                value(run, "workspace_bytes"), value(run, "operand_bytes"));
    if (run.counters.count("exponent") != 0) {
      std::printf("# time grows as length^%.3f (least squares, upper half)\n",
                  value(run, "exponent"));
    }
  }

  /// Single calls: the cost of reading the clock is taken off, and shown.
  void report_latency(const std::string& name, const Run& run) {
    if (table_ != "latency") {
      table_ = "latency";
      std::printf("\n%-33s %9s %9s %9s %9s %9s %9s\n", "single calls, ns", "min", "median", "p99",
                  "p99.9", "worst", "(clock)");
    }
    std::printf("%-33s %9.0f %9.0f %9.0f %9.0f %9.0f %9.0f\n", name.c_str(), value(run, "ns_min"),
                value(run, "ns_median"), value(run, "ns_p99"), value(run, "ns_p999"),
                value(run, "ns_worst"), value(run, "ns_clock"));
  }

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
    if (run.counters.count("native_rate") != 0) {
      return format("%.2fx float, rate %.2f", value(run, "vs_float_products"),
                    value(run, "native_rate"));
    }
    if (run.counters.count("vs_row_major") != 0)
      return format("%.3f x row-major", value(run, "vs_row_major"));
    if (run.counters.count("vs_neighbour") != 0) {
      return format("%.3f, %.3f x even", value(run, "peak_fraction"), value(run, "vs_neighbour"));
    }
    if (run.counters.count("backward_over_forward") + run.counters.count("over_plain") != 0) {
      std::string all = format("%.3f", value(run, "peak_fraction"));
      if (run.counters.count("backward_over_forward") != 0)
        all += format(", %.3f x fwd", value(run, "backward_over_forward"));
      if (run.counters.count("over_plain") != 0) all += format(", %.3f", value(run, "over_plain"));
      return all;
    }
    std::string gain;
    for (const char* over : {"vs_one_thread", "vs_float"}) {
      if (run.counters.count(over) != 0) gain = format("%.2fx, ", value(run, over));
    }
    if (run.counters.count("peak_fraction") != 0) {
      return gain + of_limit(run, "peak_fraction", "peak_GFLOPS", "GF/s");
    }
    if (run.counters.count("bandwidth_fraction") != 0) {
      return gain + of_limit(run, "bandwidth_fraction", "bandwidth_GBs", "GB/s");
    }
    return "-";
  }

  static std::string of_limit(const Run& run, const char* fraction, const char* of,
                              const char* unit) {
    return run.counters.count("vs_one_thread") + run.counters.count("vs_float") == 0
               ? format("%.3f of %.1f %s", value(run, fraction), value(run, of), unit)
               : format("%.2f of %.0f %s", value(run, fraction), value(run, of), unit);
  }

  std::string table_;  ///< the one whose header was printed last
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
