// examples/training/feed_forward.h: what each token does by itself: two linear layers with GELU
// between.
// SPDX-License-Identifier: MIT
//
//   Y = R + down(gelu(up(X)))            R: what the residual connection brings
#pragma once

#include <string>

#include "layer.h"

namespace training {

template <class Scalar>
struct FeedForward {
  Linear<Scalar> up, down;

  FeedForward(Index width, Index hidden, Engine& engine)
      : up(make_linear<Scalar>(width, hidden, engine)),
        down(make_linear<Scalar>(hidden, width, engine)) {}

  template <class Workers>
  const Matrix<Scalar>& forward(const Matrix<Scalar>& X, const Matrix<Scalar>& R,
                                const Workers& workers) {
    const auto threads = on_threads(workers);
    up.layer(X, attn::gelu(), threads, attn::save_state(up.state), attn::into(hidden_));
    down.layer(hidden_, attn::residual(R), threads, attn::into(Y_));
    return Y_;
  }
  /// The gradient by X. That by R is dY itself.
  template <class Workers>
  const Matrix<Scalar>& backward(const Matrix<Scalar>& X, const Matrix<Scalar>& dY,
                                 const Workers& workers) {
    const auto threads = on_threads(workers);
    down.layer.backward(hidden_, dY, threads, attn::dweights(down.gradients),
                        attn::dinput(dhidden_));
    up.layer.backward(X, dhidden_, up.state, attn::gelu(), threads, attn::dweights(up.gradients),
                      attn::dinput(dX_));
    return dX_;
  }

  template <class Visit>
  void each_layer(const std::string& name, const Visit& visit) {
    visit(name + "up", up);
    visit(name + "down", down);
  }

 private:
  Matrix<Scalar> hidden_, Y_, dhidden_, dX_;
};

}  // namespace training
