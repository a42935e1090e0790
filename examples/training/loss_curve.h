// examples/training/loss_curve.h: the loss of each step as a picture, on a logarithmic axis.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "../support/svg.h"

namespace training {

using examples::Svg;

struct Curve {
  std::string name;
  std::vector<double> losses;  ///< of each step
};

/// Means of runs of losses, at most 100: single ones scatter.
inline std::vector<double> smoothed(const std::vector<double>& losses) {
  const std::size_t run = (losses.size() + 99) / 100;
  std::vector<double> means;
  for (std::size_t begin = 0; begin < losses.size(); begin += run) {
    const std::size_t end = std::min(begin + run, losses.size());
    double sum = 0;
    for (std::size_t n = begin; n < end; ++n) sum += losses[n];
    means.push_back(sum / double(end - begin));
  }
  return means;
}

inline Svg draw_losses(const std::vector<Curve>& curves, const std::string& title) {
  static const char* const colours[] = {"#08306b", "#d95f02", "#1b9e77", "#7570b3"};
  constexpr double left = 60, top = 40, width = 520, height = 260;
  double smallest = 1e9, largest = 1e-9;
  std::size_t steps = 1;
  for (const Curve& curve : curves) {
    steps = std::max(steps, curve.losses.size());
    for (const double loss : smoothed(curve.losses)) {
      smallest = std::min(smallest, std::max(loss, 1e-6));
      largest = std::max(largest, loss);
    }
  }
  const double low = std::floor(std::log10(smallest)), high = std::ceil(std::log10(largest) + 1e-9);
  const auto y_of = [&](double loss) {
    return top + height * (high - std::max(std::log10(loss), low)) / (high - low);
  };

  Svg svg(left + width + 30, top + height + 50);
  svg.text(10, 22, title);
  for (double power = low; power <= high; ++power) {
    const double value = std::pow(10.0, power), y = y_of(value);
    svg.line({{left, y}, {left + width, y}}, "#dddddd");
    char label[32];
    std::snprintf(label, sizeof label, "%g", value);
    svg.text(left - 8, y + 4, label, "end");
  }
  for (int part = 0; part <= 4; ++part) {
    const double x = left + width * part / 4;
    svg.text(x, top + height + 20, std::to_string(steps * std::size_t(part) / 4), "middle");
  }
  svg.text(left + width / 2, top + height + 40, "step", "middle");
  for (std::size_t n = 0; n < curves.size(); ++n) {
    const std::vector<double> means = smoothed(curves[n].losses);
    const double each =
        width * double(curves[n].losses.size()) / double(steps) / double(means.size());
    std::vector<std::pair<double, double>> points;
    for (std::size_t i = 0; i < means.size(); ++i)
      points.emplace_back(left + each * (double(i) + 0.5), y_of(means[i]));
    svg.line(points, colours[n % 4], 2);
    svg.text(left + 10, top + height - 12 - 18 * double(n), curves[n].name, "start", 0,
             colours[n % 4]);
  }
  return svg;
}

}  // namespace training
