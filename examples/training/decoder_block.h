// examples/training/decoder_block.h: a pre-norm transformer block that also attends to what an
// encoder made.
// SPDX-License-Identifier: MIT
//
//   A = X + self_attention(norm(X))
//   B = A + cross_attention(norm(A), memory)        queries from A, keys and values from the memory
//   Y = B + feed_forward(norm(B))
#pragma once

#include <string>

#include "feed_forward.h"
#include "layer_norm.h"

namespace training {

template <class Scalar>
struct DecoderBlock {
  LayerNorm<Scalar> self_norm, cross_norm, feed_forward_norm;
  Attention<Scalar> self, cross;
  FeedForward<Scalar> feed_forward;

  DecoderBlock(Index width, Index heads, Index hidden, Engine& engine)
      : self_norm(width),
        cross_norm(width),
        feed_forward_norm(width),
        self(make_attention<Scalar>(width, heads, engine)),
        cross(make_attention<Scalar>(width, heads, engine)),
        feed_forward(width, hidden, engine) {}

  /// The options of each attention, as one: attn::options(attn::causal(), attn::sequences(…)).
  template <class SelfOptions, class CrossOptions>
  const Matrix<Scalar>& forward(const Matrix<Scalar>& X, const Matrix<Scalar>& memory, int workers,
                                const SelfOptions& self_options,
                                const CrossOptions& cross_options) {
    const auto threads = attn::parallel(workers);
    self.layer(self_norm.forward(X), attn::residual(X), self_options, threads,
               attn::save_state(self.state), attn::into(A_));
    cross.layer(cross_norm.forward(A_), memory, attn::residual(A_), cross_options, threads,
                attn::save_state(cross.state), attn::into(B_));
    return feed_forward.forward(feed_forward_norm.forward(B_), B_, workers);
  }
  /// The gradient by X. That by the memory is added to dmemory, which all blocks share.
  template <class SelfOptions, class CrossOptions>
  const Matrix<Scalar>& backward(const Matrix<Scalar>& X, const Matrix<Scalar>& memory,
                                 const Matrix<Scalar>& dY, Matrix<Scalar>& dmemory, int workers,
                                 const SelfOptions& self_options,
                                 const CrossOptions& cross_options) {
    const auto threads = attn::parallel(workers);
    dX_ = dY;  // what the residual connections bring: in turn the gradient by Y, B, A and X
    feed_forward_norm.backward(feed_forward.backward(feed_forward_norm.output(), dY, workers), dX_);
    cross.layer.backward(cross_norm.output(), memory, dX_, cross.state, attn::residual(A_),
                         cross_options, threads, attn::dweights(cross.gradients),
                         attn::dquery(dnormalised_), attn::dkey(dmemory_));
    cross_norm.backward(dnormalised_, dX_);
    dmemory += dmemory_;
    self.layer.backward(self_norm.output(), dX_, self.state, attn::residual(X), self_options,
                        threads, attn::dweights(self.gradients), attn::dquery(dnormalised_));
    self_norm.backward(dnormalised_, dX_);
    return dX_;
  }

  template <class Visit>
  void each_layer(const std::string& name, const Visit& visit) {
    visit(name + "self_norm", self_norm);
    visit(name + "self", self);
    visit(name + "cross_norm", cross_norm);
    visit(name + "cross", cross);
    visit(name + "feed_forward_norm", feed_forward_norm);
    feed_forward.each_layer(name + "feed_forward.", visit);
  }

 private:
  Matrix<Scalar> A_, B_, dnormalised_, dmemory_, dX_;
};

}  // namespace training
