// examples/training/encoder_block.h: a pre-norm transformer block.
// SPDX-License-Identifier: MIT
//
//   A = X + attention(norm(X))
//   Y = A + feed_forward(norm(A))
#pragma once

#include <string>

#include "feed_forward.h"
#include "layer_norm.h"

namespace training {

template <class Scalar>
struct EncoderBlock {
  LayerNorm<Scalar> attention_norm, feed_forward_norm;
  Attention<Scalar> attention;
  FeedForward<Scalar> feed_forward;

  EncoderBlock(Index width, Index heads, Index hidden, Engine& engine)
      : attention_norm(width),
        feed_forward_norm(width),
        attention(make_attention<Scalar>(width, heads, engine)),
        feed_forward(width, hidden, engine) {}

  /// Options are the attention's: sequences(…), a mask, dropout(…) in training, save_weights(…).
  template <class Workers, class... Options>
  const Matrix<Scalar>& forward(const Matrix<Scalar>& X, const Workers& workers,
                                const Options&... options) {
    attention.layer(attention_norm.forward(X), attn::residual(X), options..., on_threads(workers),
                    attn::save_state(attention.state), attn::into(A_));
    return feed_forward.forward(feed_forward_norm.forward(A_), A_, workers);
  }
  /// The gradient by X; the same options once more, but for save_weights(…).
  template <class Workers, class... Options>
  const Matrix<Scalar>& backward(const Matrix<Scalar>& X, const Matrix<Scalar>& dY,
                                 const Workers& workers, const Options&... options) {
    // First what the residual connections bring: the gradient by A, when norm(A) has added its
    // part.
    dX_ = dY;
    feed_forward_norm.backward(feed_forward.backward(feed_forward_norm.output(), dY, workers), dX_);
    attention.layer.backward(attention_norm.output(), dX_, attention.state, attn::residual(X),
                             options..., on_threads(workers), attn::dweights(attention.gradients),
                             attn::dquery(dnormalised_));
    attention_norm.backward(dnormalised_, dX_);
    return dX_;
  }

  template <class Visit>
  void each_layer(const std::string& name, const Visit& visit) {
    visit(name + "attention_norm", attention_norm);
    visit(name + "attention", attention);
    visit(name + "feed_forward_norm", feed_forward_norm);
    feed_forward.each_layer(name + "feed_forward.", visit);
  }

 private:
  Matrix<Scalar> A_, dnormalised_, dX_;
};

}  // namespace training
