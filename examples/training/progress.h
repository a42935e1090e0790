// examples/training/progress.h: how far a training is, in a line now and then.
// SPDX-License-Identifier: MIT
//
//   step  300 of 1200   loss 0.0312   accuracy  98.4 %   41000 tokens/s   12 s left
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cross_entropy.h"

namespace training {

class Progress {
 public:
  /// Prints `lines` lines, each the mean of the steps since the last.
  explicit Progress(Index steps, Index lines = 10)
      : steps_(steps), every_(std::max<Index>(steps / lines, 1)) {}

  void after_step(const Judged& judged, Index tokens) {
    ++step_;
    losses_.push_back(judged.loss);
    loss_ += judged.loss;
    sum_.rows += judged.rows;
    sum_.correct += judged.correct;
    tokens_ += tokens;
    if (step_ % every_ == 0 || step_ == steps_) print();
  }
  /// Of each step.
  const std::vector<double>& losses() const { return losses_; }
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  void print() {
    const double now = seconds();
    std::printf("  step %4d of %d   loss %.4f   accuracy %5.1f %%   %6.0f tokens/s   %.0f s left\n",
                int(step_), int(steps_), loss_ / double(step_ - printed_), 100 * sum_.accuracy(),
                double(tokens_) / (now - printed_at_),
                now / double(step_) * double(steps_ - step_));
    std::fflush(stdout);
    loss_ = 0, sum_ = {}, tokens_ = 0, printed_ = step_, printed_at_ = now;
  }

  Index steps_, every_, step_ = 0;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::vector<double> losses_;
  // Since the last line.
  double loss_ = 0, printed_at_ = 0;
  Judged sum_;
  Index tokens_ = 0, printed_ = 0;
};

/// Says whether the first steps by one worker and by two had the same losses, to the last bit.
inline bool same_losses(const std::vector<double>& serial, const std::vector<double>& parallel) {
  const bool same =
      serial.size() == parallel.size() &&
      std::memcmp(serial.data(), parallel.data(), serial.size() * sizeof(double)) == 0;
  std::printf("%d steps by one worker and by two%s: %s\n", int(serial.size()),
              attn::has_openmp ? "" : " (for want of OpenMP on one thread)",
              same ? "the same losses to the last bit" : "OTHER LOSSES");
  return same;
}

}  // namespace training
