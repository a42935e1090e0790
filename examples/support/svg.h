// examples/support/svg.h: pictures: lines, rectangles and text as an SVG file.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace examples {

class Svg {
 public:
  /// In pixels. White behind all: a page may be dark.
  Svg(double width, double height)
      : text_(format("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" "
                     "font-family=\"sans-serif\" font-size=\"%d\">\n",
                     width, height, kFontSize)) {
    rectangle(0, 0, width, height, "white");
  }

  void rectangle(double x, double y, double width, double height, const std::string& colour,
                 double opacity = 1) {
    text_ += format("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"", x, y,
                    width, height, colour.c_str());
    if (opacity < 1) text_ += format(" fill-opacity=\"%.2f\"", opacity);
    text_ += "/>\n";
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
            double angle = 0, const std::string& colour = "black", int size = kFontSize) {
    text_ += format("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" fill=\"%s\"", x, y, anchor,
                    colour.c_str());
    if (size != kFontSize) text_ += format(" font-size=\"%d\"", size);
    if (angle < 0 || angle > 0)
      text_ += format(" transform=\"rotate(%.0f %.1f %.1f)\"", angle, x, y);
    text_ += '>' + escaped(words) + "</text>\n";
  }

  /// Another colour in place of one, where a reader's pages are dark.
  void in_the_dark(const std::string& colour, const std::string& instead) {
    text_ += format(
        "<style>@media (prefers-color-scheme: dark) { [fill=\"%s\"] { fill: %s } "
        "[stroke=\"%s\"] { stroke: %s } }</style>\n",
        colour.c_str(), instead.c_str(), colour.c_str(), instead.c_str());
  }

  std::string str() const { return text_ + "</svg>\n"; }
  void save(const std::filesystem::path& path) const {
    std::ofstream file(path, std::ios::binary);
    file << str();
    if (!file.flush()) throw std::runtime_error(path.string() + " could not be written");
  }

 private:
  static constexpr int kFontSize = 13;

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

}  // namespace examples
