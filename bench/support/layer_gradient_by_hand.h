// bench/support/layer_gradient_by_hand.h: forward and backward pass of the multi-head layer as a good
// user of Eigen writes them.
// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "layer_by_hand.h"
#include "operands.h"

namespace bench {

template <class Scalar>
using RowVector = Eigen::Matrix<Scalar, 1, Eigen::Dynamic>;

/// Y = X W + b, dW = Xᵀ dY, db = Σ dY, by Eigen's own products.
template <class Scalar>
struct DenseByHand {
  RowMatrix<Scalar> weight, weight_gradient;
  RowVector<Scalar> bias, bias_gradient;

  template <class Weight, class Bias>
  DenseByHand(const Weight& w, const Bias& b)
      : weight(w.template cast<Scalar>()),
        weight_gradient(w.rows(), w.cols()),
        bias(b.template cast<Scalar>()),
        bias_gradient(b.size()) {}
  explicit DenseByHand(const DenseWeights& w) : DenseByHand(w.weight, w.bias) {}

  void forward(const RowMatrix<Scalar>& x, RowMatrix<Scalar>& y) const {
    y.noalias() = x * weight;
    y.rowwise() += bias;
  }
  void backward(const RowMatrix<Scalar>& x, const RowMatrix<Scalar>& dy) {
    weight_gradient.noalias() = x.transpose() * dy;
    bias_gradient.noalias() = dy.colwise().sum();
  }
  /// f(name, weight, gradient) for both.
  template <class F>
  void for_each_parameter(const F& f) {
    f("weight", weight, weight_gradient);
    f("bias", bias, bias_gradient);
  }
  template <class F>
  void for_each_gradient(const F& f) const {
    f(weight_gradient);
    f(bias_gradient);
  }
};

// WHAT  Forward as LayerByHand. Back, when all of Y is known, as a loss would need it: dO = dY Wᵀ of
//       the output; for each sequence and head, P = exp(S − max) and l of the forward pass:
//         G = dO / l, dV = Pᵀ G, dS = P ∘ (G Vᵀ − rows of G · O), dQ = scale dS K, dK = scale dSᵀ Q
//       and of the three projections dX = dQ W_qᵀ + dK W_kᵀ + dV W_vᵀ; dW and db of all four.
// WHY   The baseline is worth beating only if it is written well: all products are Eigen's own
//       (noalias), everything is allocated beforehand, heads are blocks of columns, P is kept
//       instead of computed again, the divisions are of rows of features, and what is done by rows
//       happens while they are in cache. In double it is the reference of the library's gradients.
template <class Scalar>
class LayerGradientByHand {
 public:
  DenseByHand<Scalar> query, key, value, output;

  /// `offsets`: rows of each sequence, {0, 5, 12}.
  LayerGradientByHand(const DenseByHand<Scalar>& q, const DenseByHand<Scalar>& k,
                      const DenseByHand<Scalar>& v, const DenseByHand<Scalar>& o, Index heads,
                      std::vector<Index> offsets)
      : query(q), key(k), value(v), output(o), heads_(heads), offsets_(std::move(offsets)) {
    q_.resize(offsets_.back(), query.bias.size());
    k_ = v_ = o_ = dq_ = dk_ = dv_ = do_ = q_;
    sums_.resize(offsets_.back(), heads_);
    Index longest = 0;
    for (std::size_t b = 0; b + 1 < offsets_.size(); ++b) {
      const Index n = offsets_[b + 1] - offsets_[b];
      longest = std::max(longest, n);
      weights_.resize(weights_.size() + std::size_t(heads_), RowMatrix<Scalar>(n, n));
    }
    score_gradients_.resize(longest * longest);
  }
  LayerGradientByHand(const LayerWeights& w, Index heads, std::vector<Index> offsets)
      : LayerGradientByHand(DenseByHand<Scalar>(w.query), DenseByHand<Scalar>(w.key),
                            DenseByHand<Scalar>(w.value), DenseByHand<Scalar>(w.output), heads,
                            std::move(offsets)) {}

  void forward(const RowMatrix<Scalar>& x, RowMatrix<Scalar>& y) {
    query.forward(x, q_);
    key.forward(x, k_);
    value.forward(x, v_);
    each_head([&](Index n, const auto& of) { attend(n, of); });
    output.forward(o_, y);
  }
  /// All gradients, behind forward() of the same.
  void backward(const RowMatrix<Scalar>& x, const RowMatrix<Scalar>& dy, RowMatrix<Scalar>& dx) {
    output.backward(o_, dy);
    do_.noalias() = dy * output.weight.transpose();
    each_head([&](Index n, const auto& of) { attend_backward(n, of); });
    query.backward(x, dq_);
    key.backward(x, dk_);
    value.backward(x, dv_);
    dx.noalias() = dq_ * query.weight.transpose();
    dx.noalias() += dk_ * key.weight.transpose();
    dx.noalias() += dv_ * value.weight.transpose();
  }
  /// f(name, weight, gradient) for all.
  template <class F>
  void for_each_parameter(const F& f) {
    for (DenseByHand<Scalar>* dense : {&query, &key, &value, &output}) dense->for_each_parameter(f);
  }
  template <class F>
  void for_each_gradient(const F& f) const {
    for (const DenseByHand<Scalar>* dense : {&query, &key, &value, &output})
      dense->for_each_gradient(f);
  }

 private:
  /// f(number of the head among all sequences', its block of columns of a matrix).
  template <class F>
  void each_head(const F& f) const {
    const Index d = q_.cols() / heads_;
    for (Index b = 0; b + 1 < Index(offsets_.size()); ++b) {
      const Index first = offsets_[std::size_t(b)], n = offsets_[std::size_t(b) + 1] - first;
      for (Index h = 0; h < heads_; ++h)
        f(b * heads_ + h, [=](auto& m) { return m.block(first, h * d, n, d); });
    }
  }
  auto sums(Index n) {
    const std::size_t b = std::size_t(n / heads_);
    return sums_.col(n % heads_).segment(offsets_[b], offsets_[b + 1] - offsets_[b]).array();
  }
  Scalar scale() const { return 1 / std::sqrt(Scalar(q_.cols() / heads_)); }

  template <class Of>
  void attend(Index n, const Of& of) {
    RowMatrix<Scalar>& p = weights_[std::size_t(n)];
    auto l = sums(n);
    p.noalias() = scale() * of(q_) * of(k_).transpose();
    for (Index i = 0; i < p.rows(); ++i) {
      auto row = p.row(i);
      row = (row.array() - row.maxCoeff()).exp();
      l(i) = row.sum();
    }
    auto o = of(o_);
    o.noalias() = p * of(v_);
    o.array().colwise() /= l;
  }
  template <class Of>
  void attend_backward(Index n, const Of& of) {
    const RowMatrix<Scalar>& p = weights_[std::size_t(n)];
    Eigen::Map<RowMatrix<Scalar>> ds(score_gradients_.data(), p.rows(), p.cols());
    auto g = of(do_), dq = of(dq_), dk = of(dk_), dv = of(dv_);
    const auto o = of(o_);
    g.array().colwise() /= sums(n);
    dv.noalias() = p.transpose() * g;
    ds.noalias() = g * of(v_).transpose();
    for (Index i = 0; i < p.rows(); ++i)
      ds.row(i).array() = p.row(i).array() * (ds.row(i).array() - g.row(i).dot(o.row(i)));
    dq.noalias() = scale() * ds * of(k_);
    dk.noalias() = scale() * ds.transpose() * of(q_);
  }

  Index heads_;
  std::vector<Index> offsets_;
  RowMatrix<Scalar> q_, k_, v_, o_, dq_, dk_, dv_, do_;
  std::vector<RowMatrix<Scalar>> weights_;  ///< P of each head, before the division
  Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic> sums_;
  Eigen::Matrix<Scalar, Eigen::Dynamic, 1> score_gradients_;
};

}  // namespace bench
