// bench/peers/attn.cpp: this library.
// SPDX-License-Identifier: MIT

#include <attn/attn.h>

#include "../support/library.h"
#include "fastest.h"
#include "peer.h"

namespace bench {
namespace {

class Attn : public Peer {
 public:
  explicit Attn(int threads) : threads_(threads) {}
  std::string name() const override { return "attn"; }
  std::string version() const override {
    return std::to_string(ATTN_VERSION_MAJOR) + "." + std::to_string(ATTN_VERSION_MINOR) + "." +
           std::to_string(ATTN_VERSION_PATCH);
  }

  Attend<float> attention(const AttentionTask& task) override { return attend<float>(task); }
  // With native_bfloat16() or without: the instruction has half the rate of float's on some processors.
  Attend<Eigen::bfloat16> attention_bfloat16(const AttentionTask& task) override {
    using Stored = Eigen::bfloat16;
    if constexpr (attn::has_native_bfloat16) {
      return fastest_attention<Stored>(task, {0, 1}, [&](Index native) {
        return std::make_shared<Attend<Stored>>(
            native ? attend<Stored>(task, attn::native_bfloat16()) : attend<Stored>(task));
      });
    } else {
      return attend<Stored>(task);
    }
  }

  Apply linear(const LinearTask& task) override {
    const Index in = task.weights.weight.rows(), out = task.weights.weight.cols();
    auto linear = std::make_shared<attn::Linear<float>>(attn::LinearOptions(in, out).bias());
    linear->set(task.weights.weight, task.weights.bias);
    return [=, rows = task.rows](const float* x, float* y) {
      call(*linear, Eigen::Map<const RowMatrix<float>>(x, rows, in),
           Eigen::Map<RowMatrix<float>>(y, rows, out), attn::gelu());
    };
  }

  Apply layer(const LayerTask& task) override {
    const Index width = task.weights.query.weight.rows();
    auto layer = std::make_shared<attn::MultiHeadAttention<float>>(
        attn::MultiHeadOptions(width, task.heads).in_bias().out_bias());
    layer->edit([&](auto& to) { task.weights.copy_to(to); });
    return [=, rows = task.tokens](const float* x, float* y) {
      call(*layer, Eigen::Map<const RowMatrix<float>>(x, rows, width),
           Eigen::Map<RowMatrix<float>>(y, rows, width));
    };
  }

 private:
  template <class Stored, class... Options>
  Attend<Stored> attend(const AttentionTask& task, const Options&... options) const {
    auto library = std::make_shared<Library<Stored>>(task.workload);
    return [=, &bias = task.bias, n = threads_](const Operands<Stored>& x, Stored* y) {
      (*library)(x, bias, y, n, options...);
    };
  }

  template <class Layer, class X, class Y, class... Options>
  void call(Layer& layer, const X& x, Y y, const Options&... options) const {
    if (threads_ == 1) {
      layer(x, attn::into(y), options...);
    } else {
      layer(x, attn::into(y), options..., threads(threads_));
    }
  }

  int threads_;
};

const bool registered = add_peer(0, [](int threads) { return std::make_unique<Attn>(threads); });

}  // namespace
}  // namespace bench
