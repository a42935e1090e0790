// bench/support/layer_by_hand.h: the multi-head layer and a pre-norm encoder block as a good user of Eigen writes them by hand.
// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <unsupported/Eigen/SpecialFunctions>
#include <vector>

#include "operands.h"

namespace bench {

/// Inputs and outputs: a matrix, or memory seen as one.
using InRows = const Eigen::Ref<const RowMatrix<float>>&;
using OutRows = Eigen::Ref<RowMatrix<float>>;

/// A weight of unit scale (uniform, of variance 1 / its rows) and a bias.
struct DenseWeights {
  RowMatrix<float> weight;
  Eigen::RowVectorXf bias;

  DenseWeights(Index in, Index out, Uniform& uniform) : weight(in, out), bias(out) {
    fill(weight, uniform);
    weight *= std::sqrt(3.0f / static_cast<float>(in));
    fill(bias, uniform);
  }
  void operator()(InRows x, OutRows y) const {
    y.noalias() = x * weight;
    y.rowwise() += bias;
  }
};

struct LayerWeights {
  DenseWeights query, key, value, output;
  LayerWeights(Index d, Uniform& uniform)
      : query(d, d, uniform), key(d, d, uniform), value(d, d, uniform), output(d, d, uniform) {}

  template <class Weights>
  void copy_to(Weights& w) const {
    w.query = query.weight, w.key = key.weight, w.value = value.weight, w.output = output.weight;
    w.query_bias = query.bias, w.key_bias = key.bias, w.value_bias = value.bias;
    w.output_bias = output.bias;
  }
};

// WHAT  Q, K, V = X W + b; for each sequence and head S = scale Q_h K_hᵀ, softmax by rows, O_h = P V_h; Y = O W + b. As textbook.h:
//       Eigen's own products with noalias, all memory allocated beforehand, heads as blocks of columns, the division of O_h, not of P.
class LayerByHand {
 public:
  /// `offsets`: rows of each sequence, {0, 5, 12}.
  LayerByHand(const LayerWeights& weights, Index heads, std::vector<Index> offsets)
      : weights_(weights), heads_(heads), offsets_(std::move(offsets)) {
    q_.resize(offsets_.back(), weights.query.bias.size());
    k_ = v_ = o_ = q_;
    Index longest = 0;
    for (std::size_t b = 0; b + 1 < offsets_.size(); ++b)
      longest = std::max(longest, offsets_[b + 1] - offsets_[b]);
    scores_.resize(longest * longest);
    sums_.resize(longest);
  }

  void operator()(InRows x, OutRows y) {
    weights_.query(x, q_);
    weights_.key(x, k_);
    weights_.value(x, v_);
    for (std::size_t b = 0; b + 1 < offsets_.size(); ++b)
      attend(offsets_[b], offsets_[b + 1] - offsets_[b]);
    weights_.output(o_, y);
  }

 private:
  void attend(Index first, Index n) {
    const Index d = q_.cols() / heads_;
    const float scale = 1 / std::sqrt(static_cast<float>(d));
    Eigen::Map<RowMatrix<float>> scores(scores_.data(), n, n);
    auto sums = sums_.head(n);
    for (Index h = 0; h < heads_; ++h) {
      scores.noalias() =
          scale * q_.block(first, h * d, n, d) * k_.block(first, h * d, n, d).transpose();
      for (Index i = 0; i < n; ++i) {
        auto row = scores.row(i);
        row = (row.array() - row.maxCoeff()).exp();
        sums(i) = row.sum();
      }
      auto o = o_.block(first, h * d, n, d);
      o.noalias() = scores * v_.block(first, h * d, n, d);
      o.array().colwise() /= sums.array();
    }
  }

  const LayerWeights& weights_;
  Index heads_;
  std::vector<Index> offsets_;
  RowMatrix<float> q_, k_, v_, o_;
  Eigen::VectorXf scores_, sums_;
};

/// Layer normalisation of each row, without a gain: a block's gains may be part of the weights behind it.
inline void layer_norm(const RowMatrix<float>& x, RowMatrix<float>& y) {
  for (Index i = 0; i < x.rows(); ++i) {
    const float mean = x.row(i).mean();
    y.row(i) = x.row(i).array() - mean;
    y.row(i) *= 1 / std::sqrt(y.row(i).squaredNorm() / static_cast<float>(x.cols()) + 1e-5f);
  }
}

/// x/2 (1 + erf(x / √2)) of every number, in place.
inline void gelu(OutRows x) {
  x.array() = 0.5f * x.array() * (1 + (x.array() * std::sqrt(0.5f)).erf());
}

/// A pre-norm block: H = X + MHA(norm X), Y = H + down(gelu(up(norm H))).
struct BlockWeights {
  LayerWeights attention;
  DenseWeights up, down;
  BlockWeights(Index d, Index hidden, Uniform& uniform)
      : attention(d, uniform), up(d, hidden, uniform), down(hidden, d, uniform) {}
};

class BlockByHand {
 public:
  BlockByHand(const BlockWeights& weights, Index heads, const std::vector<Index>& offsets)
      : weights_(weights),
        attention_(weights.attention, heads, offsets),
        normed_(offsets.back(), weights.down.bias.size()),
        h_(normed_),
        hidden_(offsets.back(), weights.up.bias.size()) {}

  /// y may be x.
  void operator()(const RowMatrix<float>& x, RowMatrix<float>& y) {
    layer_norm(x, normed_);
    attention_(normed_, h_);
    h_ += x;
    layer_norm(h_, normed_);
    weights_.up(normed_, hidden_);
    gelu(hidden_);
    weights_.down(hidden_, y);
    y += h_;
  }

 private:
  const BlockWeights& weights_;
  LayerByHand attention_;
  RowMatrix<float> normed_, h_, hidden_;
};

}  // namespace bench
