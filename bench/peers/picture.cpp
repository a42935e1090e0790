// bench/peers/picture.cpp: draws what attn_peers has measured: bars by workload, a file for each
// number of threads.
//
//   attn_peers_picture peers.json folder
//
// SPDX-License-Identifier: MIT

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "../support/palette.h"
#include "format.h"

namespace bench {
namespace {

using examples::Svg;
using json = nlohmann::ordered_json;

struct Bar {
  double ms;
  std::string words;
  const char* colour;
};

const json* find(const json& times, const std::string& peer) {
  for (const json& timed : times) {
    if (timed["peer"] == peer) return &timed;
  }
  return nullptr;
}

/// This library, the fastest of the others, the formula by hand.
std::vector<Bar> bars_of(const json& row) {
  const json& times = row["times"];
  const json *best = nullptr, *by_hand = find(times, "Eigen");
  for (const json& timed : times) {
    if (&timed == &times[0] || &timed == by_hand) continue;
    if (best == nullptr || timed["ms"] < (*best)["ms"]) best = &timed;
  }
  const auto bar = [](const json& timed, const std::string& words, Colour colour) {
    const double ms = timed["ms"];
    return Bar{ms, milliseconds(ms) + " ms" + words, colour.light};
  };
  std::vector<Bar> bars = {bar(times[0], "", kOurs)};
  if (best != nullptr) bars.push_back(bar(*best, ", " + std::string((*best)["peer"]), kOther));
  if (by_hand != nullptr) bars.push_back(bar(*by_hand, "", kByHand));
  return bars;
}

/// A group of bars for each workload, all over the time of this library.
class Chart {
 public:
  Chart(const json& context, const json& table)
      : rows_(table["rows"]),
        longest_(longest_bar()),
        svg_(kLeft + kWidth + kRight, kTop + kGroup * static_cast<double>(rows_.size()) + kBottom) {
    const int threads = table["threads"];
    title(threads == 1 ? "one thread" : std::to_string(threads) + " threads", threads == 1);
    grid();
    for (std::size_t n = 0; n < rows_.size(); ++n) group(n);
    std::string versions;
    for (const auto& [name, version] : table["versions"].items())
      versions += (versions.empty() ? "" : ", ") + name + ' ' + std::string(version);
    const double y = kTop + kGroup * static_cast<double>(rows_.size()) + 34;
    svg_.text(16, y, versions, "start", 0, kMuted.light, 11);
    svg_.text(16, y + 16,
              std::string(context["cpu"]) + ", " + std::string(context["compiler"]) + ' ' +
                  std::string(context["flags"]) + ", " + std::string(context["date"]),
              "start", 0, kMuted.light, 11);
    add_dark_colours(svg_);
  }
  const Svg& svg() const { return svg_; }

 private:
  static constexpr double kLeft = 290, kWidth = 430, kRight = 140, kTop = 84, kBottom = 62;
  static constexpr double kBar = 11, kGroup = 46;

  double longest_bar() const {
    double longest = 1;
    for (const json& row : rows_) {
      const auto bars = bars_of(row);
      for (const Bar& bar : bars) longest = std::max(longest, bar.ms / bars[0].ms);
    }
    return longest;
  }
  double x_of(double over_ours) const { return kLeft + kWidth * over_ours / longest_; }

  void title(const std::string& threads, bool has_by_hand) {
    svg_.text(16, 26, "Time of a call over attn's, " + threads + " (shorter is faster)", "start", 0,
              kText.light, 16);
    const std::pair<Colour, const char*> legend[] = {{kOurs, "attn"},
                                                     {kOther, "the fastest other library"},
                                                     {kByHand, "the formula by hand in Eigen"}};
    double x = 16;
    for (const auto& [colour, words] : legend) {
      if (&colour == &legend[2].first && !has_by_hand) continue;
      svg_.rectangle(x, 42, 12, 12, colour.light);
      svg_.text(x + 18, 52, words, "start", 0, kMuted.light, 12);
      x += 44 + 6.3 * static_cast<double>(std::string(words).size());
    }
  }

  void grid() {
    const double bottom = kTop + kGroup * static_cast<double>(rows_.size());
    for (int half = 0; half <= static_cast<int>(2 * longest_); ++half) {
      const double x = x_of(half / 2.0);
      svg_.line({{x, kTop - 6}, {x, bottom}}, half == 2 ? kMuted.light : kGrid.light);
      svg_.text(x, bottom + 14, formatted("%g", half / 2.0), "middle", 0, kMuted.light, 11);
    }
  }

  void group(std::size_t n) {
    const json& row = rows_[n];
    const auto bars = bars_of(row);
    const double top = kTop + kGroup * static_cast<double>(n) + 3;
    svg_.text(16, top + 14, row["workload"], "start", 0, kText.light);
    svg_.text(16, top + 29, row["words"], "start", 0, kMuted.light, 11);
    for (std::size_t b = 0; b < bars.size(); ++b) {
      const double y = top + (kBar + 1.5) * static_cast<double>(b);
      const double end = x_of(bars[b].ms / bars[0].ms);
      svg_.rectangle(kLeft, y, end - kLeft, kBar, bars[b].colour);
      // The lines of the grid end at words.
      const double wide = 6.3 * static_cast<double>(bars[b].words.size());
      svg_.rectangle(end + 2, y, wide + 3, kBar, kPage.light);
      svg_.text(end + 5, y + kBar - 1.5, bars[b].words, "start", 0, kText.light, 11);
    }
  }

  const json& rows_;
  double longest_;
  Svg svg_;
};

void draw(const std::string& from, const std::filesystem::path& folder) {
  std::ifstream file(from);
  if (!file) throw std::runtime_error(from + " could not be read");
  const json all = json::parse(file);
  std::filesystem::create_directories(folder);
  for (const json& table : all["tables"]) {
    const int threads = table["threads"];
    const auto path = folder / ("peers_threads_" + std::to_string(threads) + ".svg");
    Chart(all["context"], table).svg().save(path);
    std::cout << "written: " << path.string() << '\n';
  }
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
  try {
    if (argc != 3) throw std::invalid_argument("usage: attn_peers_picture peers.json folder");
    bench::draw(argv[1], argv[2]);
  } catch (const std::exception& error) {
    std::cerr << "attn_peers_picture: " << error.what() << '\n';
    return EXIT_FAILURE;
  }
  return EXIT_SUCCESS;
}
