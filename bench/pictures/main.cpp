// bench/pictures/main.cpp: draws what the library does: how its error grows with the length, whom tokens attend to, and the masks.
//
//   attn_pictures folder
//
// SPDX-License-Identifier: MIT

#include <attn/attn.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <iostream>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../support/palette.h"

namespace bench {
namespace {

using attn::Index;
using Eigen::MatrixXf;
using examples::Svg;
template <class Scalar>
using Matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>;

// ---- Error by length ------------------------------------------------------------------------

/// The formula as it is written by hand.
template <class Scalar>
Matrix<Scalar> by_hand(const Matrix<Scalar>& Q, const Matrix<Scalar>& K, const Matrix<Scalar>& V) {
  Matrix<Scalar> P = Q * K.transpose() / std::sqrt(Scalar(Q.cols()));
  for (Index i = 0; i < P.rows(); ++i) {
    P.row(i) = (P.row(i).array() - P.row(i).maxCoeff()).exp();
    P.row(i) /= P.row(i).sum();
  }
  return P * V;
}

struct Curve {
  Colour colour;
  double width;
  std::string words;
  double words_below;          // the curve's end, in pixels: two end near each other
  std::vector<double> errors;  // one for each length
};

double largest_error(const MatrixXf& Y, const Matrix<double>& exact) {
  return std::max((Y.cast<double>() - exact).cwiseAbs().maxCoeff(), 1e-10);
}

constexpr int kFirst = 4, kLast = 20;  // lengths are powers of two

std::vector<Curve> errors_by_length() {
  std::vector<Curve> curves = {{kByHand, 2, "by hand, random", 11, {}},
                               {kOurs, 2, "attn, random", 4, {}},
                               {kByHand, 4, "by hand, falling weights", 4, {}},
                               {kOurs, 4, "attn, falling weights", -3, {}}};
  std::mt19937 engine(1);
  std::uniform_real_distribution<float> uniform(-1, 1);
  const auto random = [&](Index rows, Index columns) {
    return MatrixXf(MatrixXf::NullaryExpr(rows, columns, [&] { return uniform(engine); }));
  };
  const MatrixXf Q = random(4, 64);
  for (int power = kFirst; power <= kLast; ++power) {
    const Index keys = Index(1) << power;
    const MatrixXf K = random(keys, 64), V = random(keys, 64);
    const auto exact = by_hand<double>(Q.cast<double>(), K.cast<double>(), V.cast<double>());
    curves[0].errors.push_back(largest_error(by_hand<float>(Q, K, V), exact));
    curves[1].errors.push_back(largest_error(attn::attention(Q, K, V), exact));

    // Weights that fall by e⁻¹⁰ from the first key to the last, values of one sign.
    const MatrixXf one = MatrixXf::Ones(1, 1), positive = random(keys, 16).cwiseAbs();
    const MatrixXf falling = MatrixXf::NullaryExpr(keys, 1, [&](Index key) {
      return -10 * static_cast<float>(key) / static_cast<float>(keys);
    });
    const auto exactly =
        by_hand<double>(one.cast<double>(), falling.cast<double>(), positive.cast<double>());
    curves[2].errors.push_back(largest_error(by_hand<float>(one, falling, positive), exactly));
    curves[3].errors.push_back(largest_error(attn::attention(one, falling, positive), exactly));
  }
  return curves;
}

Svg draw_errors(const std::vector<Curve>& curves) {
  constexpr double left = 70, top = 50, width = 520, height = 260, right = 190;
  constexpr int lowest = -10, highest = -2;
  Svg svg(left + width + right, top + height + 60);
  const auto x = [](int power) { return left + width * (power - kFirst) / (kLast - kFirst); };
  const auto y = [](double error) {
    return top + height * (highest - std::log10(error)) / (highest - lowest);
  };
  svg.text(16, 26, "Largest error of float by number of keys", "start", 0, kText.light, 16);
  for (int exponent = lowest; exponent <= highest; ++exponent) {
    const double level = y(std::pow(10., exponent));
    svg.line({{left, level}, {left + width, level}}, kGrid.light);
    svg.text(left - 8, level + 4, "1e" + std::to_string(exponent), "end", 0, kMuted.light, 11);
  }
  for (int power = kFirst; power <= kLast; power += 4) {
    svg.line({{x(power), top}, {x(power), top + height}}, kGrid.light);
    svg.text(x(power), top + height + 16, std::to_string(1 << power), "middle", 0, kMuted.light,
             11);
  }
  for (const Curve& curve : curves) {
    std::vector<std::pair<double, double>> points;
    for (int power = kFirst; power <= kLast; ++power)
      points.emplace_back(x(power), y(curve.errors[static_cast<std::size_t>(power - kFirst)]));
    svg.line(points, curve.colour.light, curve.width / 1.6);
    svg.text(points.back().first + 8, points.back().second + curve.words_below, curve.words,
             "start", 0, kText.light, 11);
  }
  svg.text(16, top + height + 44,
           "random: numbers in [-1, 1], 64 features. falling: weights from 1 down to 1/22026, "
           "values in [0, 1]. By hand: in Eigen, float.",
           "start", 0, kMuted.light, 11);
  add_dark_colours(svg);
  return svg;
}

// ---- Maps of weights ------------------------------------------------------------------------

struct Map {
  std::string title;
  MatrixXf weights;
};

/// Squares side by side, `across` to a row; a cell is as strong as the root of its weight.
Svg draw_maps(const std::string& title, const std::vector<Map>& maps, std::size_t across,
              double cell) {
  const double size = cell * static_cast<double>(maps[0].weights.rows()), gap = 30;
  const double step = std::max(size + gap, 176.0), down = size + 46;
  const auto rows = static_cast<double>((maps.size() + across - 1) / across);
  Svg svg(16 + step * static_cast<double>(across), 50 + down * rows);
  svg.text(16, 26, title, "start", 0, kText.light, 16);
  for (std::size_t m = 0; m < maps.size(); ++m) {
    const double left = 16 + step * static_cast<double>(m % across);
    const double top = 64 + down * static_cast<double>(m / across);
    svg.text(left, top - 7, maps[m].title, "start", 0, kText.light, 11);
    svg.rectangle(left - 1, top - 1, size + 1, size + 1, kGrid.light);
    for (Index i = 0; i < maps[m].weights.rows(); ++i) {
      for (Index j = 0; j < maps[m].weights.cols(); ++j) {
        const double x = left + cell * static_cast<double>(j);
        const double y = top + cell * static_cast<double>(i);
        svg.rectangle(x, y, cell - 1, cell - 1, kPage.light);
        const double weight = static_cast<double>(maps[m].weights(i, j));
        if (weight > 0)
          svg.rectangle(x, y, cell - 1, cell - 1, kOurs.light, std::min(1.0, std::sqrt(weight)));
      }
    }
  }
  add_dark_colours(svg);
  return svg;
}

/// A melody of 24 notes, a theme of 8 that comes back twice: which notes each attends to.
Svg draw_weights() {
  const Index n = 24;
  MatrixXf X(n, 8);
  for (Index i = 0; i < n; ++i) {
    for (Index c = 0; c < 8; ++c) X(i, c) = std::sin(0.9f * static_cast<float>((i % 8) * (c + 1)));
  }
  std::vector<Map> maps;
  const auto add = [&](const std::string& title, const auto&... options) {
    MatrixXf Y, W;
    attn::attention(X, X, X, attn::into(Y), attn::save_weights(W), options...);
    maps.push_back({title, W});
  };
  add("none: the theme finds itself");
  add("causal()", attn::causal());
  add("causal(), alibi(0.3)", attn::causal(), attn::alibi({0.3}));
  add("causal() && window(7, 0)", attn::causal() && attn::window(7, 0));
  return draw_maps("Attention weights of a melody of 24 notes whose theme of 8 comes back", maps, 4,
                   7);
}

/// Each mask, as the library applies it to equal scores: what is seen has a weight.
Svg draw_masks() {
  const Index n = 8;
  const MatrixXf zeros = MatrixXf::Zero(n, 1);
  std::vector<Map> maps;
  const auto add = [&](const std::string& title, const auto& mask) {
    MatrixXf Y, W;
    attn::attention(zeros, zeros, zeros, attn::into(Y), attn::save_weights(W), mask);
    maps.push_back({title, (W.array() > 0).cast<float>()});
  };
  Eigen::Matrix<bool, Eigen::Dynamic, Eigen::Dynamic> coarse(4, 4);
  coarse << true, false, false, true, true, true, false, false, true, true, true, false, true,
      false, true, true;
  add("causal()", attn::causal());
  add("window(2, 1)", attn::window(2, 1));
  add("causal() && window(2, -1)", attn::causal() && attn::window(2, -1));
  add("prefix_lm(3)", attn::prefix_lm(3));
  add("key_lengths({5})", attn::key_lengths({5}));
  add("key_range(2, 6)", attn::key_range({2}, {6}));
  add("segments({1,1,1,2,2,3,3,3})", attn::segments({1, 1, 1, 2, 2, 3, 3, 3}));
  add("the same && causal()", attn::segments({1, 1, 1, 2, 2, 3, 3, 3}) && attn::causal());
  add("tree({-1,0,0,1,1,2,2,5})", attn::tree({-1, 0, 0, 1, 1, 2, 2, 5}));
  add("block_sparse(B, 2)", attn::block_sparse(coarse, 2));
  add("mask([](i, j) { ... })",
      attn::mask([](Index query, Index key) { return (query - key) % 3 == 0; }));
  add("!window(0, 0)", !attn::window(0, 0));
  return draw_maps("Masks: query i (down) sees key j (across)", maps, 4, 14);
}

void save(const Svg& svg, const std::filesystem::path& path) {
  svg.save(path);
  std::cout << "written: " << path.string() << '\n';
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
  try {
    if (argc != 2) throw std::invalid_argument("usage: attn_pictures folder");
    const std::filesystem::path folder = argv[1];
    std::filesystem::create_directories(folder);
    bench::save(bench::draw_errors(bench::errors_by_length()), folder / "errors.svg");
    bench::save(bench::draw_weights(), folder / "weights.svg");
    bench::save(bench::draw_masks(), folder / "masks.svg");
  } catch (const std::exception& error) {
    std::cerr << "attn_pictures: " << error.what() << '\n';
    return EXIT_FAILURE;
  }
  return EXIT_SUCCESS;
}
