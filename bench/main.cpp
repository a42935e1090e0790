// bench/main.cpp: runs the benchmarks and prints a table.
//
//   attn_bench [name...] [--seconds=1.5] [--benchmark_filter=...] [--benchmark_out=file.json]
//
// A name is a regular expression, searched for in names such as attention/pre1k/threads:1. The
// seconds for each benchmark may also come from the environment, ATTN_BENCH_SECONDS.
//
// SPDX-License-Identifier: MIT

#include <benchmark/benchmark.h>

#include <cstdlib>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

#include "support/measure.h"
#include "support/report.h"

namespace {

bool set_time_budget(const char* text) {
  char* end = nullptr;
  const double seconds = std::strtod(text, &end);
  if (end == text || *end != '\0' || !(seconds > 0)) {
    std::cerr << "attn_bench: '" << text << "' is not a number of seconds\n";
    return false;
  }
  bench::time_budget() = seconds;
  return true;
}

bool starts_with(const std::string& text, const char* prefix) { return text.rfind(prefix, 0) == 0; }

}  // namespace

int main(int argc, char** argv) {
  const char* const budget = std::getenv("ATTN_BENCH_SECONDS");
  if (budget != nullptr && !set_time_budget(budget)) return EXIT_FAILURE;

  // A benchmark repeats its calls itself, so it is run once: any time is enough for it. Later
  // arguments override this one.
  std::vector<std::string> arguments = {argv[0], "--benchmark_min_time=0"};
  std::string filter;
  bool writes_file = false;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (starts_with(argument, "--seconds=")) {
      if (!set_time_budget(argv[i] + std::strlen("--seconds="))) return EXIT_FAILURE;
    } else if (starts_with(argument, "-")) {
      writes_file = writes_file || starts_with(argument, "--benchmark_out=");
      arguments.push_back(argument);
    } else {
      filter += (filter.empty() ? "" : "|") + argument;
    }
  }
  if (!filter.empty()) arguments.push_back("--benchmark_filter=" + filter);

  std::vector<char*> pointers;
  pointers.reserve(arguments.size());
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  int count = static_cast<int>(pointers.size());
  benchmark::Initialize(&count, pointers.data());
  if (benchmark::ReportUnrecognizedArguments(count, pointers.data())) return EXIT_FAILURE;
  for (const auto& [key, value] : bench::setting()) benchmark::AddCustomContext(key, value);

  Eigen::setNbThreads(1);  // compiled with OpenMP, Eigen's products by hand would take all threads

  bench::SummaryTable table;
  bench::MinimumAsTime json;
  const auto ran = writes_file ? benchmark::RunSpecifiedBenchmarks(&table, &json)
                               : benchmark::RunSpecifiedBenchmarks(&table);
  benchmark::Shutdown();
  return ran == 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
