// tests/fuzz/linear.h: the linear layer of any sizes, forwards and backwards, against the oracle and
// against itself: rows alone, other threads and layouts, other numbers in rows without effect.
// SPDX-License-Identifier: MIT
#pragma once

#include "../support/random_linear.h"
#include "../support/reference_layer_gradient.h"
#include "../support/threads.h"
#include "call.h"

namespace fuzz {

/// A linear layer, its input, what is added to its output and the gradient by that.
struct LinearTrial {
  Draw& draw;
  attn::LinearOptions sizes;
  Kind kinds[4];
  Matrix<float> W, b, X, R, dY;

  explicit LinearTrial(Draw& d) : draw(d), sizes(drawn_sizes(d)) {
    for (Kind& k : kinds) k = kind(draw);
    const Index in = sizes.in_features(), out = sizes.out_features(),
                rows = std::min<Index>(count(draw), std::max<Index>(1, 20000 / (in + out) - in));
    W = matrix<float>(in, out, kinds[0], draw);
    b = matrix<float>(1, sizes.has_bias() ? out : 0, Kind::uniform, draw);
    X = matrix<float>(rows, in, kinds[1], draw);
    R = matrix<float>(rows, out, kinds[2], draw);
    dY = matrix<float>(rows, out, kinds[3], draw);
    for (Index i = draw(0, 5); i < rows; i += draw(1, 5)) dY.row(i).setZero();
  }
  static attn::LinearOptions drawn_sizes(Draw& draw) {
    const Index in = draw(0, 15) == 15 ? draw(120, 300) : features(draw),
                out = draw(0, 15) == 15 ? draw(120, 300) : features(draw);
    const attn::LinearOptions sizes(in, out);
    return draw(0, 1) == 1 ? sizes.bias() : sizes;
  }
  bool ordinary() const {
    return std::none_of(kinds, kinds + 4,
                        [](Kind k) { return k == Kind::special || k == Kind::huge; });
  }

  struct Result {
    Matrix<float> Y, dX, dW, db;
  };
  template <class... Activation>
  Result run(Index first, Index rows, const Matrix<float>& input, const Activation&... act) const {
    attn::Linear<float> layer(sizes);
    if (sizes.has_bias()) {
      layer.set(Placed<float>(W, draw).view(), b);
    } else {
      layer.set(W);
    }
    const Placed<float> x(some_rows(input, first, rows), draw), r(some_rows(R, first, rows), draw),
        dy(some_rows(dY, first, rows), draw), y(rows, W.cols(), draw), dx(rows, W.rows(), draw);
    attn::LinearState<float> state;
    attn::LinearGradients<float> g(sizes);
    Threads pool;
    const auto workers = attn::on(pool, 1 + 2 * (draw(0, 7) / 7));
    layer(x.view(), attn::into(y.view()), attn::residual(r.view()), attn::save_state(state),
          workers, act...);
    layer.backward(x.view(), dy.view(), state, attn::dinput(dx.view()), attn::dweights(g), workers,
                   act...);
    EXPECT_TRUE(y.gaps_stand() && dx.gaps_stand());
    return {y.numbers(), dx.numbers(), g.kernel(), g.bias()};
  }

  /// `value` and `slope`: those of the activation in the oracle.
  template <class... Activation>
  void operator()(long double (*value)(long double), long double (*slope)(long double),
                  const Activation&... act) const {
    const Result all = run(0, X.rows(), X, act...);
    if (ordinary()) {
      const Reference w = widened(W), before = project(widened(X), w, widened(b));
      const auto g = reference_linear_gradient(widened(X), w, widened(b), widened(dY), slope);
      const long double one = largest(X) * largest(W),
                        terms = largest(before) +
                                std::sqrt(static_cast<long double>(W.rows())) * one + 2,
                        unit = 1e-6L * terms, by = unit * (1 + largest(dY));
      EXPECT_TRUE(agrees(all.Y, before.unaryExpr(value) + widened(R), unit + 1e-6L * largest(R)));
      EXPECT_TRUE(agrees(all.dX, g.input, by * (largest(g.input) + 4 * largest(W) + 1e-30L)));
      EXPECT_TRUE(agrees(all.dW, g.weight, by * (largest(g.weight) + 4 * largest(X) + 1e-30L)));
      EXPECT_TRUE(agrees(all.db, g.bias, by * (largest(g.bias) + 4 + 1e-30L)));
    }
    const Index first = draw(0, X.rows()), rows = draw(0, X.rows() - first);
    const Result some = run(first, rows, X, act...);
    EXPECT_TRUE(same(some.Y, some_rows(all.Y, first, rows))) << "Y of some rows";
    EXPECT_TRUE(same(some.dX, some_rows(all.dX, first, rows))) << "dX of some rows";
    Matrix<float> other = X;
    for (Index i = 0; i < X.rows(); ++i)
      if ((dY.row(i).array() == 0).all())
        other.row(i) = matrix<float>(1, X.cols(), Kind::special, draw);
    const Result again = run(0, X.rows(), other, act...);
    EXPECT_TRUE(same(again.dW, all.dW)) << "dW, other rows that add nothing";
    EXPECT_TRUE(same(again.db, all.db)) << "db, other rows that add nothing";
  }
};

inline void linear(const std::uint8_t* bytes, std::size_t size) {
  Draw draw(bytes, size);
  const LinearTrial trial(draw);
  switch (draw(0, 3)) {
    case 0:
      return trial(gelu_of, gelu_slope, attn::gelu());
    case 1:
      return trial(silu_of, silu_slope, attn::silu());
    case 2:
      return trial(relu_of, relu_slope, attn::relu());
    default:
      return trial(gelu_tanh_of, gelu_tanh_slope, attn::gelu_tanh());
  }
}

}  // namespace fuzz
