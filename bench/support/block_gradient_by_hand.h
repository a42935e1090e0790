// bench/support/block_gradient_by_hand.h: forward and backward pass of a pre-norm encoder block as a good
// user of Eigen writes them.
// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>
#include <cmath>
#include <string>
#include <unsupported/Eigen/SpecialFunctions>
#include <vector>

#include "../../examples/training/encoder_block.h"
#include "layer_gradient_by_hand.h"
#include "operands.h"

namespace bench {

// WHAT  training::EncoderBlock with attn's layers in it replaced by LayerGradientByHand and, with
//       Φ(z) = (1 + erf(z / √2)) / 2,
//         H = Z ∘ Φ(Z), Z = norm(A) W_up + b     dZ = dH ∘ (Φ(Z) + Z ∘ exp(−Z² / 2) / √2π)
// WHY   as there. Φ(Z) is kept; the norms are the example's, which are by hand in Eigen already.
template <class Scalar>
class BlockGradientByHand {
 public:
  /// With the weights of a block whose norms have not been trained yet.
  BlockGradientByHand(const training::EncoderBlock<float>& block, const std::vector<Index>& offsets)
      : BlockGradientByHand(block.attention.layer.weights(), block, offsets) {}

  const RowMatrix<Scalar>& forward(const RowMatrix<Scalar>& x) {
    attention_.forward(attention_norm_.forward(x), a_);
    a_ += x;
    up_.forward(feed_forward_norm_.forward(a_), z_);
    cdf_.array() = Scalar(0.5) * (1 + (z_.array() * Scalar(std::sqrt(0.5))).erf());
    hidden_ = z_.cwiseProduct(cdf_);
    down_.forward(hidden_, y_);
    y_ += a_;
    return y_;
  }
  /// The gradient by x, behind forward() of the same.
  const RowMatrix<Scalar>& backward(const RowMatrix<Scalar>&, const RowMatrix<Scalar>& dy) {
    const Scalar density = Scalar(1 / std::sqrt(2 * EIGEN_PI));
    down_.backward(hidden_, dy);
    dz_.noalias() = dy * down_.weight.transpose();
    dz_.array() *= cdf_.array() + density * z_.array() * (Scalar(-0.5) * z_.array().square()).exp();
    up_.backward(feed_forward_norm_.output(), dz_);
    dnormed_.noalias() = dz_ * up_.weight.transpose();
    dx_ = dy;
    feed_forward_norm_.backward(dnormed_, dx_);
    attention_.backward(attention_norm_.output(), dx_, dnormed_);
    attention_norm_.backward(dnormed_, dx_);
    return dx_;
  }

  template <class Visit>
  void each_layer(const std::string& name, const Visit& visit) {
    visit(name + "attention_norm", attention_norm_);
    visit(name + "attention", attention_);
    visit(name + "feed_forward_norm", feed_forward_norm_);
    visit(name + "feed_forward.up", up_);
    visit(name + "feed_forward.down", down_);
  }

 private:
  using Dense = DenseByHand<Scalar>;
  template <class Attention>
  BlockGradientByHand(const Attention& w, const training::EncoderBlock<float>& block,
                      const std::vector<Index>& offsets)
      : attention_norm_(w.query.rows()),
        feed_forward_norm_(w.query.rows()),
        attention_(Dense(w.query, w.query_bias), Dense(w.key, w.key_bias),
                   Dense(w.value, w.value_bias), Dense(w.output, w.output_bias),
                   block.attention.layer.options().heads(), offsets),
        up_(dense_of(block.feed_forward.up)),
        down_(dense_of(block.feed_forward.down)) {
    a_.resize(offsets.back(), w.query.rows());
    y_ = dx_ = dnormed_ = a_;
    z_.resize(offsets.back(), up_.bias.size());
    cdf_ = hidden_ = dz_ = z_;
  }
  static Dense dense_of(const training::Linear<float>& linear) {
    const auto w = linear.layer.weights();
    return Dense(w.kernel(), w.bias());
  }

  training::LayerNorm<Scalar> attention_norm_, feed_forward_norm_;
  LayerGradientByHand<Scalar> attention_;
  Dense up_, down_;
  RowMatrix<Scalar> a_, z_, cdf_, hidden_, y_, dz_, dnormed_, dx_;
};

}  // namespace bench
