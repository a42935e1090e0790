// bench/peers/xnnpack.cpp: the formula by XNNPACK's operators: fully connected, add, softmax.
// SPDX-License-Identifier: MIT

#include <xnnpack.h>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>

#include "head.h"
#include "peer.h"
#include "workers.h"

namespace bench {
namespace {

// WHAT  Head by head: S = (scale Q) Kᵀ by a fully connected operator whose weights are K, added
//       scores, softmax, Y = P V by one whose weights are V.
// WHY   Versions of 2022 have no product of two inputs: weights are packed when an operator is
//       created, so keys and values are, in each call. Weights of layers are packed beforehand. On
//       several threads each takes heads, or a part of a layer's rows, by operators of its own, so
//       that packing is shared out as well.
// EDGES Decoding is left out: it would pack the cache for each token. Inputs end XNN_EXTRA_BYTES
//       before their memory does.

void check(xnn_status status) {
  if (status != xnn_status_success) {
    throw std::runtime_error("XNNPACK: status " + std::to_string(static_cast<int>(status)));
  }
}

std::size_t size(Index n) { return static_cast<std::size_t>(n); }

Eigen::VectorXf padded_memory(Index n) { return Eigen::VectorXf::Zero(n + XNN_EXTRA_BYTES); }

class Operator {
 public:
  Operator() = default;
  Operator(Operator&& other) noexcept : operator_(std::exchange(other.operator_, nullptr)) {}
  Operator& operator=(Operator&& other) noexcept {
    std::swap(operator_, other.operator_);
    return *this;
  }
  ~Operator() {
    if (operator_ != nullptr) xnn_delete_operator(operator_);
  }
  xnn_operator_t* out() { return &operator_; }
  xnn_operator_t get() const { return operator_; }
  void run() const { check(xnn_run_operator(operator_, nullptr)); }

 private:
  xnn_operator_t operator_ = nullptr;
};

constexpr float kLargest = std::numeric_limits<float>::infinity();

/// Weights [out, in], or [in, out] with XNN_FLAG_TRANSPOSE_WEIGHTS.
struct FullyConnected {
  Index in, out;
  const float *weights, *bias;
  std::uint32_t flags;

  Operator create(Index input_stride, Index output_stride) const {
    Operator created;
    check(xnn_create_fully_connected_nc_f32(size(in), size(out), size(input_stride),
                                            size(output_stride), weights, bias, -kLargest, kLargest,
                                            flags, created.out()));
    return created;
  }
};

void run_fully_connected(const Operator& op, Index rows, const float* x, float* y) {
  check(xnn_setup_fully_connected_nc_f32(op.get(), size(rows), x, y, nullptr));
  op.run();
}

class HeadByOperators {
 public:
  HeadByOperators(Index rows, Index keys) : scores_(padded_memory(rows * keys)) {
    check(xnn_create_add_nd_f32(-kLargest, kLargest, 0, add_.out()));
  }

  /// Of contiguous queries (scaled, padded), keys and values.
  void operator()(const Head& head, const RowMatrix<float>& added) {
    float* const s = scores_.data();
    const FullyConnected by_keys{head.key_size, head.keys, head.k, nullptr, 0};
    run_fully_connected(by_keys.create(head.key_size, head.keys), head.rows, head.q, s);
    if (added.size() != 0) {
      const std::size_t all = size(added.size());
      check(xnn_setup_add_nd_f32(add_.get(), 1, &all, 1, &all, s, added.data(), s, nullptr));
      add_.run();
    }
    if (softmax_keys_ != head.keys) {
      softmax_ = Operator();
      check(xnn_create_softmax_nc_f32(size(head.keys), size(head.keys), size(head.keys), 0,
                                      softmax_.out()));
      softmax_keys_ = head.keys;
    }
    check(xnn_setup_softmax_nc_f32(softmax_.get(), size(head.rows), s, s, nullptr));
    softmax_.run();
    const FullyConnected by_values{head.keys, head.value_size, head.v, nullptr,
                                   XNN_FLAG_TRANSPOSE_WEIGHTS};
    run_fully_connected(by_values.create(head.keys, head.y_stride), head.rows, s, head.y);
  }

 private:
  Eigen::VectorXf scores_;
  Operator add_, softmax_;
  Index softmax_keys_ = 0;
};

class Attention {
 public:
  Attention(const AttentionTask& task, int threads)
      : w_(task.workload), added_(added_scores(task)) {
    for (int n = 0; n < threads; ++n) {
      workers_.emplace_back(w_.queries, w_.keys);
      queries_.push_back(padded_memory(w_.queries * w_.head_size));
    }
  }

  void operator()(const Operands<float>& x, float* y) {
    const float scale = 1 / std::sqrt(static_cast<float>(w_.head_size));
    const int workers = static_cast<int>(workers_.size());
    for_each_head(workers, w_.batch * w_.query_heads, [&](int worker, Index head) {
      Eigen::VectorXf& q = queries_[static_cast<std::size_t>(worker)];
      const Index elements = w_.queries * w_.head_size;
      q.head(elements) = scale * x.q.matrix().segment(head * elements, elements);
      Head one = head_of(w_, x, y, head);
      one.q = q.data();
      workers_[static_cast<std::size_t>(worker)](one, added_);
    });
  }

 private:
  Workload w_;
  RowMatrix<float> added_;
  std::vector<HeadByOperators> workers_;
  std::vector<Eigen::VectorXf> queries_;
};

/// y = x W + b of rows that are shared out, W packed for each worker.
class Dense {
 public:
  Dense(const DenseWeights& weights, Index rows, int threads)
      : in_(weights.weight.rows()), out_(weights.weight.cols()), rows_(rows) {
    const FullyConnected dense{in_, out_, weights.weight.data(), weights.bias.data(),
                               XNN_FLAG_TRANSPOSE_WEIGHTS};
    for (int n = 0; n < threads; ++n) operators_.push_back(dense.create(in_, out_));
  }
  /// after(rows, y): what a worker does with its part of the result.
  template <class After>
  void operator()(const float* x, float* y, const After& after) {
    const int workers = static_cast<int>(operators_.size());
    for_each_part(workers, rows_, [&](int worker, Index first, Index rows) {
      run_fully_connected(operators_[static_cast<std::size_t>(worker)], rows, x + first * in_,
                          y + first * out_);
      after(rows, y + first * out_);
    });
  }
  void operator()(const float* x, float* y) {
    (*this)(x, y, [](Index, float*) {});
  }
  Index out() const { return out_; }

 private:
  Index in_, out_, rows_;
  std::vector<Operator> operators_;
};

class Layer {
 public:
  Layer(const LayerTask& task, int threads)
      : tokens_(task.tokens),
        width_(task.weights.output.weight.rows()),
        heads_(task.heads),
        projection_(joined(task.weights), tokens_, threads),
        output_(task.weights.output, tokens_, threads),
        projected_(tokens_, 3 * width_),
        attended_(padded_memory(tokens_ * width_)) {
    const Index d = width_ / heads_;
    for (int n = 0; n < threads; ++n) {
      workers_.emplace_back(tokens_, tokens_);
      copies_.push_back(padded_memory(3 * tokens_ * d));
    }
  }

  void operator()(const float* x, float* y) {
    projection_(x, projected_.data());
    const int workers = static_cast<int>(workers_.size());
    for_each_head(workers, heads_, [&](int worker, Index h) { attend(worker, h); });
    output_(attended_.data(), y);
  }

 private:
  /// Weights of an operator are contiguous: a head's keys and values are copied out of their
  /// columns.
  void attend(int worker, Index h) {
    const Index d = width_ / heads_, elements = tokens_ * d;
    float* const copies = copies_[static_cast<std::size_t>(worker)].data();
    const auto copy = [&](Index part) {
      return Eigen::Map<RowMatrix<float>>(copies + part * elements, tokens_, d);
    };
    const float scale = 1 / std::sqrt(static_cast<float>(d));
    copy(0) = scale * projected_.middleCols(h * d, d);
    copy(1) = projected_.middleCols(width_ + h * d, d);
    copy(2) = projected_.middleCols(2 * width_ + h * d, d);
    const Head one =
        head_of_layer(copies, elements, tokens_, d, d, attended_.data() + h * d, width_);
    workers_[static_cast<std::size_t>(worker)](one, {});
  }

  Index tokens_, width_, heads_;
  Dense projection_, output_;
  RowMatrix<float> projected_;
  Eigen::VectorXf attended_;
  std::vector<HeadByOperators> workers_;
  std::vector<Eigen::VectorXf> copies_;
};

class Xnnpack : public Peer {
 public:
  explicit Xnnpack(int threads) : threads_(threads) { check(xnn_initialize(nullptr)); }
  std::string name() const override { return "XNNPACK"; }
  std::string version() const override { return ATTN_BENCH_XNNPACK_VERSION; }

  Attend<float> attention(const AttentionTask& task) override {
    const Workload& w = task.workload;
    if (w.queries == 1 || !has_product_shape(w)) return {};
    auto attention = std::make_shared<Attention>(task, threads_);
    return [attention](const Operands<float>& x, float* y) { (*attention)(x, y); };
  }
  Apply linear(const LinearTask& task) override {
    auto dense = std::make_shared<Dense>(task.weights, task.rows, threads_);
    return [dense](const float* x, float* y) {
      (*dense)(x, y, [&](Index rows, float* part) {
        gelu(Eigen::Map<RowMatrix<float>>(part, rows, dense->out()));
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

const bool registered = add_peer(4, [](int threads) { return std::make_unique<Xnnpack>(threads); });

}  // namespace
}  // namespace bench
