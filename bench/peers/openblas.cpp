// bench/peers/openblas.cpp: the formula by OpenBLAS's products of matrices, with Eigen's softmax
// between.
// SPDX-License-Identifier: MIT

#include <cblas.h>

#include <cmath>

#include "head.h"
#include "peer.h"
#include "workers.h"

namespace bench {
namespace {

// WHAT  Head by head as textbook.h: S = scale Q Kᵀ by sgemm, softmax by rows in Eigen's vector
//       code, Y = P V by sgemm, the division of Y. One query for one key head is a product of
//       matrix and vector, sgemv.
// WHY   On several threads each takes heads, or a part of a layer's rows, and its products run on
//       it alone: softmax is shared out with them, and nothing waits between.
// EDGES Padded keys are left out of both products; under a causal mask they are whole.

int blas_int(Index n) { return static_cast<int>(n); }

/// c = alpha · a · b + beta · c, with b as it lies or transposed.
void multiply(Index rows, Index columns, Index inner, float alpha, const float* a, Index a_stride,
              CBLAS_TRANSPOSE b_transposed, const float* b, Index b_stride, float beta, float* c,
              Index c_stride) {
  cblas_sgemm(CblasRowMajor, CblasNoTrans, b_transposed, blas_int(rows), blas_int(columns),
              blas_int(inner), alpha, a, blas_int(a_stride), b, blas_int(b_stride), beta, c,
              blas_int(c_stride));
}

class HeadByProducts {
 public:
  HeadByProducts(Index rows, Index keys) : scores_(rows * keys), sums_(rows) {}

  /// visible(i): how many keys row i sees.
  template <class Visible>
  void operator()(const Head& head, const RowMatrix<float>& bias, const Visible& visible) {
    Eigen::Map<RowMatrix<float>> scores(scores_.data(), head.rows, head.keys);
    const float scale = 1 / std::sqrt(static_cast<float>(head.key_size));
    if (head.rows == 1) {
      cblas_sgemv(CblasRowMajor, CblasNoTrans, blas_int(head.keys), blas_int(head.key_size), scale,
                  head.k, blas_int(head.k_stride), head.q, 1, 0, scores_.data(), 1);
    } else {
      multiply(head.rows, head.keys, head.key_size, scale, head.q, head.q_stride, CblasTrans,
               head.k, head.k_stride, 0, scores_.data(), head.keys);
    }
    for (Index i = 0; i < head.rows; ++i) {
      auto row = scores.row(i).head(visible(i));
      if (bias.size() != 0) row += bias.row(i);
      row = (row.array() - row.maxCoeff()).exp();
      sums_(i) = row.sum();
      scores.row(i).tail(head.keys - visible(i)).setZero();
    }
    if (head.rows == 1) {
      cblas_sgemv(CblasRowMajor, CblasTrans, blas_int(head.keys), blas_int(head.value_size),
                  1 / sums_(0), head.v, blas_int(head.v_stride), scores_.data(), 1, 0, head.y, 1);
      return;
    }
    multiply(head.rows, head.value_size, head.keys, 1, scores_.data(), head.keys, CblasNoTrans,
             head.v, head.v_stride, 0, head.y, head.y_stride);
    for (Index i = 0; i < head.rows; ++i) {
      Eigen::Map<Eigen::ArrayXf>(head.y + i * head.y_stride, head.value_size) /= sums_(i);
    }
  }

 private:
  Eigen::VectorXf scores_, sums_;
};

class Attention {
 public:
  Attention(const AttentionTask& task, int threads)
      : task_(task),
        shape_(task.workload),
        workers_(static_cast<std::size_t>(threads), {shape_.rows, task.workload.keys}) {}

  void operator()(const Operands<float>& x, float* y) {
    const Workload& w = task_.workload;
    const int workers = static_cast<int>(workers_.size());
    for_each_head(workers, shape_.sequences * shape_.heads, [&](int worker, Index head) {
      const Index sequence = head / shape_.heads;
      workers_[static_cast<std::size_t>(worker)](head_of(w, x, y, head), task_.bias, [&](Index i) {
        return visible_keys(w, sequence, i);
      });
    });
  }

 private:
  AttentionTask task_;
  ProductShape shape_;
  std::vector<HeadByProducts> workers_;
};

/// y = x W + b of some rows, which begins with b.
void apply(const DenseWeights& dense, const float* x, Index rows, float* y) {
  const Index in = dense.weight.rows(), out = dense.weight.cols();
  Eigen::Map<RowMatrix<float>>(y, rows, out).rowwise() = dense.bias;
  multiply(rows, out, in, 1, x, in, CblasNoTrans, dense.weight.data(), out, 1, y, out);
}

class Layer {
 public:
  Layer(const LayerTask& task, int threads)
      : tokens_(task.tokens),
        heads_(task.heads),
        output_(task.weights.output),
        projection_(joined(task.weights)),
        projected_(tokens_, projection_.bias.size()),
        attended_(tokens_, output_.weight.rows()),
        workers_(static_cast<std::size_t>(threads), {tokens_, tokens_}) {}

  void operator()(const float* x, float* y) {
    const int workers = static_cast<int>(workers_.size());
    const Index width = output_.weight.rows(), d = width / heads_, stride = projected_.cols();
    for_each_part(workers, tokens_, [&](int, Index first, Index rows) {
      apply(projection_, x + first * width, rows, projected_.row(first).data());
    });
    for_each_head(workers, heads_, [&](int worker, Index h) {
      const Head one = head_of_layer(projected_.data() + h * d, width, tokens_, d, stride,
                                     attended_.data() + h * d, width);
      workers_[static_cast<std::size_t>(worker)](one, {}, [&](Index) { return tokens_; });
    });
    for_each_part(workers, tokens_, [&](int, Index first, Index rows) {
      apply(output_, attended_.row(first).data(), rows, y + first * output_.weight.cols());
    });
  }

 private:
  Index tokens_, heads_;
  const DenseWeights& output_;
  DenseWeights projection_;
  RowMatrix<float> projected_, attended_;
  std::vector<HeadByProducts> workers_;
};

class OpenBlas : public Peer {
 public:
  explicit OpenBlas(int threads) : threads_(threads) {}
  std::string name() const override { return "OpenBLAS"; }
  std::string version() const override {
    std::string config = openblas_get_config();  // "OpenBLAS 0.3.21 NO_LAPACKE ..."
    config = config.substr(config.find(' ') + 1);
    return config.substr(0, config.find(' ')) + " (" + openblas_get_corename() + ")";
  }
  void take_turn() override { openblas_set_num_threads(1); }

  Attend<float> attention(const AttentionTask& task) override {
    if (!has_product_shape(task.workload)) return {};
    auto attention = std::make_shared<Attention>(task, threads_);
    return [attention](const Operands<float>& x, float* y) { (*attention)(x, y); };
  }
  Apply linear(const LinearTask& task) override {
    return [task, threads = threads_](const float* x, float* y) {
      const Index in = task.weights.weight.rows(), out = task.weights.weight.cols();
      for_each_part(threads, task.rows, [&](int, Index first, Index rows) {
        apply(task.weights, x + first * in, rows, y + first * out);
        gelu(Eigen::Map<RowMatrix<float>>(y + first * out, rows, out));
      });
    };
  }
  Apply layer(const LayerTask& task) override {
    auto layer = std::make_shared<Layer>(task, threads_);
    return [layer](const float* x, float* y) { (*layer)(x, y); };
  }

 private:
  int threads_;
};

const bool registered =
    add_peer(2, [](int threads) { return std::make_unique<OpenBlas>(threads); });

}  // namespace
}  // namespace bench
