// examples/06_encoder/reference.h: the encoder once more, as slow and plain as can be: what the library's results are held to.
// SPDX-License-Identifier: MIT
//
// Loops in long double over the numbers that tiny_model.h made. No Eigen, no attn, no file.
#pragma once

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "tiny_model.h"

namespace reference {

using Real = long double;
using Rows = std::vector<std::vector<Real>>;  // tokens, each of its features

class Encoder {
 public:
  Encoder(const tiny::Model& model, const tiny::Sizes& sizes, bool pre_norm, Real epsilon)
      : model_(model), sizes_(sizes), pre_norm_(pre_norm), epsilon_(epsilon) {}

  Rows operator()(const std::vector<int>& ids) const {
    Rows x;
    for (std::size_t token = 0; token < ids.size(); ++token) {
      x.emplace_back();
      for (int c = 0; c < sizes_.width; ++c) {
        x[token].push_back(at("embeddings.word_embeddings.weight", ids[token], c) +
                           at("embeddings.position_embeddings.weight", int(token), c) +
                           at("embeddings.token_type_embeddings.weight", 0, c));
      }
    }
    x = normalised(x, "embeddings.LayerNorm");
    for (int n = 0; n < sizes_.blocks; ++n) {
      const std::string block = "encoder.layer." + std::to_string(n) + ".";
      x = step(x, block + (pre_norm_ ? "attention.LayerNorm" : "attention.output.LayerNorm"),
               [&](const Rows& in) { return attention(in, block + "attention."); });
      x = step(x, block + (pre_norm_ ? "intermediate.LayerNorm" : "output.LayerNorm"),
               [&](const Rows& in) { return feed_forward(in, block); });
    }
    return pre_norm_ ? normalised(x, "LayerNorm") : x;
  }

 private:
  Rows step(Rows x, const std::string& norm, const std::function<Rows(const Rows&)>& f) const {
    const Rows y = f(pre_norm_ ? normalised(x, norm) : x);
    for (std::size_t i = 0; i < x.size(); ++i)
      for (std::size_t c = 0; c < x[i].size(); ++c) x[i][c] += y[i][c];
    return pre_norm_ ? x : normalised(x, norm);
  }

  Rows feed_forward(const Rows& x, const std::string& block) const {
    Rows hidden = linear(x, block + "intermediate.dense");
    for (auto& row : hidden)
      for (Real& h : row) h *= (1 + std::erf(h / std::sqrt(Real(2)))) / 2;
    return linear(hidden, block + "output.dense");
  }

  Rows attention(const Rows& x, const std::string& name) const {
    const Rows q = linear(x, name + "self.query"), k = linear(x, name + "self.key"),
               v = linear(x, name + "self.value");
    const std::size_t d = std::size_t(sizes_.width / sizes_.heads), tokens = x.size();
    Rows mixed(tokens, std::vector<Real>(std::size_t(sizes_.width), 0));
    for (std::size_t first = 0; first < std::size_t(sizes_.width); first += d) {  // a head
      for (std::size_t i = 0; i < tokens; ++i) {
        std::vector<Real> weights(tokens, 0);
        Real sum = 0;
        for (std::size_t j = 0; j < tokens; ++j) {
          Real score = 0;
          for (std::size_t c = first; c < first + d; ++c) score += q[i][c] * k[j][c];
          weights[j] = std::exp(score / std::sqrt(Real(d)));
          sum += weights[j];
        }
        for (std::size_t j = 0; j < tokens; ++j)
          for (std::size_t c = first; c < first + d; ++c) mixed[i][c] += weights[j] / sum * v[j][c];
      }
    }
    return linear(mixed, name + "output.dense");
  }

  Rows linear(const Rows& x, const std::string& name) const {
    const std::vector<int>& shape = tensor(name + ".weight").shape;
    Rows y;
    for (const auto& row : x) {
      y.emplace_back();
      for (int n = 0; n < shape[0]; ++n) {
        Real sum = at(name + ".bias", 0, n);
        for (int c = 0; c < shape[1]; ++c) sum += row[std::size_t(c)] * at(name + ".weight", n, c);
        y.back().push_back(sum);
      }
    }
    return y;
  }

  Rows normalised(Rows x, const std::string& name) const {
    for (auto& row : x) {
      Real mean = 0, variance = 0;
      for (const Real v : row) mean += v / Real(row.size());
      for (const Real v : row) variance += (v - mean) * (v - mean) / Real(row.size());
      for (std::size_t c = 0; c < row.size(); ++c) {
        row[c] =
            (row[c] - mean) / std::sqrt(variance + epsilon_) * at(name + ".weight", 0, int(c)) +
            at(name + ".bias", 0, int(c));
      }
    }
    return x;
  }

  const tiny::Tensor& tensor(const std::string& name) const { return model_.at("bert." + name); }
  Real at(const std::string& name, int row, int column) const {
    const tiny::Tensor& t = tensor(name);
    return Real(t.values[std::size_t(row * t.shape.back() + column)]);
  }

  const tiny::Model& model_;
  tiny::Sizes sizes_;
  bool pre_norm_;
  Real epsilon_;
};

}  // namespace reference
