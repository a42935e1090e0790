// examples/training/svg.h: pictures: lines, rectangles and text as an SVG file.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace training {

class Svg {
 public:
  /// In pixels. White behind all: a page may be dark.
  Svg(double width, double height)
      : text_(format("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" "
                     "font-family=\"sans-serif\" font-size=\"13\">\n",
                     width, height)) {
    rectangle(0, 0, width, height, "white");
  }

  void rectangle(double x, double y, double width, double height, const std::string& colour) {
    text_ += format("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n", x,
                    y, width, height, colour.c_str());
  }
  void line(const std::vector<std::pair<double, double>>& points, const std::string& colour,
            double width = 1) {
    text_ += "<polyline points=\"";
    for (const auto& [x, y] : points) text_ += format("%.1f,%.1f ", x, y);
    text_ +=
        format("\" fill=\"none\" stroke=\"%s\" stroke-width=\"%.1f\"/>\n", colour.c_str(), width);
  }
  /// `anchor` says which end of the text is at (x, y): start, middle, end. Turned clockwise by
  /// `angle`.
  void text(double x, double y, const std::string& words, const char* anchor = "start",
            double angle = 0, const std::string& colour = "black") {
    text_ += format("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" fill=\"%s\"", x, y, anchor,
                    colour.c_str());
    if (angle < 0 || angle > 0)
      text_ += format(" transform=\"rotate(%.0f %.1f %.1f)\"", angle, x, y);
    text_ += '>' + escaped(words) + "</text>\n";
  }

  std::string str() const { return text_ + "</svg>\n"; }
  void save(const std::filesystem::path& path) const {
    std::ofstream file(path, std::ios::binary);
    file << str();
    if (!file.flush()) throw std::runtime_error(path.string() + " could not be written");
  }

 private:
  template <class... Parts>
  static std::string format(const char* pattern, const Parts&... parts) {
    char buffer[400];
    std::snprintf(buffer, sizeof buffer, pattern, parts...);
    return buffer;
  }
  static std::string escaped(const std::string& words) {
    std::string safe;
    for (const char c : words) {
      if (c == '&')
        safe += "&amp;";
      else if (c == '<')
        safe += "&lt;";
      else if (c == '>')
        safe += "&gt;";
      else
        safe += c;
    }
    return safe;
  }

  std::string text_;
};

}  // namespace training
