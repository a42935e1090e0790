// bench/support/measure.h: the clock, samples with their minimum and median, and the time budget.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <vector>

namespace bench {

/// Seconds on the monotonic clock. (Clocks of CPU time under-report now and then, and a minimum
/// over many repetitions picks just those.)
inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class Samples {
 public:
  void add(double value) { values_.push_back(value); }
  std::size_t size() const { return values_.size(); }
  double min() const { return *std::min_element(values_.begin(), values_.end()); }
  double median() const {
    std::vector<double> sorted = values_;
    const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
    std::nth_element(sorted.begin(), middle, sorted.end());
    return *middle;
  }

 private:
  std::vector<double> values_;
};

/// Repeats a call in units of at least 1 ms, which the clock and its call do not disturb.
template <class Call>
class Units {
 public:
  explicit Units(Call call) : call_(call) {
    call_();  // warm: the workspace is allocated here, not in a sample
    while (run() < kUnitSeconds) calls_ *= 2;
    total_ = 0;
  }

  /// Runs one unit and returns the seconds of one call.
  double sample() {
    const double seconds = run();
    total_ += seconds;
    per_call_.add(seconds / calls_);
    return seconds / calls_;
  }

  const Samples& per_call() const { return per_call_; }
  int calls() const { return calls_; }
  double total() const { return total_; }

 private:
  static constexpr double kUnitSeconds = 1e-3;

  double run() {
    const double start = now();
    for (int i = 0; i < calls_; ++i) call_();
    return now() - start;
  }

  Call call_;
  Samples per_call_;
  int calls_ = 1;
  double total_ = 0;
};

/// Seconds spent on each benchmark (option --seconds=); slow calls may exceed it.
inline double& time_budget() {
  static double seconds = 1.5;
  return seconds;
}

/// Samples the library and the textbook in turn, so that both see the same machine. The first
/// is sampled by the caller's `sample_library`, which may measure the machine beside it. Each gets
/// half of the budget, and three samples at least.
template <class Library, class Textbook, class SampleLibrary>
void sample_in_turn(const Units<Library>& library, Units<Textbook>& textbook,
                    SampleLibrary sample_library) {
  const double end = now() + time_budget();
  for (int turn = 0; turn < 3 || now() < end; ++turn) {
    sample_library();
    if (turn < 3 || textbook.total() < library.total()) textbook.sample();
  }
}

}  // namespace bench
