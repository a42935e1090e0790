// examples/10_gradients.cpp: queries learn to attend: gradient descent on a small attention, its
// gradients held to differences first.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>

#include <cmath>
#include <cstdio>

using Matrix = Eigen::MatrixXd;

/// loss = ½ · mean over rows of |attention(Q, K, V) − target|², and its gradient by Q.
struct Fit {
  Matrix K, V, target;
  attn::ScaledDotProductAttention<double> attention;
  attn::AttentionState<double> state;
  Matrix Y, dQ;

  double loss(const Matrix& Q) {
    attention(Q, K, V, attn::into(Y), attn::softcap(20.0), attn::save_state(state));
    return (Y - target).squaredNorm() / (2 * double(Y.rows()));
  }
  /// After loss(Q): the same operands and options, and what to write.
  const Matrix& gradient(const Matrix& Q) {
    const Matrix dY = (Y - target) / double(Y.rows());
    attention.backward(Q, K, V, dY, state, attn::softcap(20.0), attn::dquery(dQ));
    return dQ;
  }
};

/// The largest distance of the gradient from central differences, number by number.
double error_of_gradient(Fit& fit, const Matrix& Q) {
  const double h = 1e-5;
  fit.loss(Q);
  const Matrix gradient = fit.gradient(Q);
  double largest = 0;
  for (Eigen::Index i = 0; i < Q.rows(); ++i) {
    for (Eigen::Index c = 0; c < Q.cols(); ++c) {
      Matrix up = Q, down = Q;
      up(i, c) += h, down(i, c) -= h;
      const double difference = (fit.loss(up) - fit.loss(down)) / (2 * h);
      largest = std::max(largest, std::abs(difference - gradient(i, c)));
    }
  }
  return largest;
}

int main() {
  // Six keys, each with a value of its own. Query i should find key (2i + 1) % 6 and take its
  // value.
  const Eigen::Index n = 6, d = 4;
  std::srand(1);
  Fit fit;
  fit.K = Matrix::Random(n, d);
  fit.V = Matrix::Identity(n, n);
  fit.target = Matrix::Zero(3, n);
  for (Eigen::Index i = 0; i < 3; ++i) fit.target(i, 2 * i + 1) = 1;
  Matrix Q = Matrix::Random(3, d);

  const double error = error_of_gradient(fit, Q);
  std::printf("gradient against differences: %.1e at most\n\n", error);
  if (!(error < 1e-9)) return 1;

  const double first = fit.loss(Q);
  double loss = first;
  for (int step = 0; step <= 500; ++step) {
    loss = fit.loss(Q);
    if (step % 100 == 0) {
      const int bar = int(60 * loss / first + 0.5);
      std::printf("step %3d   loss %.4f   %.*s\n", step, loss, bar,
                  "############################################################");
    }
    Q -= 20 * fit.gradient(Q);
  }

  std::printf("\nweights: query i was to find key 2i + 1\n");
  for (Eigen::Index i = 0; i < 3; ++i) {
    for (Eigen::Index j = 0; j < n; ++j) std::printf("  %.2f", fit.Y(i, j));
    std::printf("\n");
  }
  return loss < first / 10 ? 0 : 1;
}
