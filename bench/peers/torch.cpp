// bench/peers/torch.cpp: the formula by PyTorch's operators: baddbmm, softmax, bmm; its fused
// layer.
// SPDX-License-Identifier: MIT

#include <dlfcn.h>

// PyTorch's headers first: they take no part in this project's warnings.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/api/include/torch/version.h>

#include <cmath>
#include <tuple>
#include <type_traits>

#include "fastest.h"
#include "peer.h"

namespace bench {
namespace {

// WHAT  For so many heads at a time: S = baddbmm (scale Q Kᵀ + added scores), softmax, Y = bmm(P,
//       V), into memory that is kept, without a record for gradients; linear by addmm, likewise. The
//       layer is the fused operator of torch.nn.MultiheadAttention's inference, which has no form
//       that writes into given memory: it allocates what it returns, in the time of a call.
// WHY   Versions from 2.0 have scaled_dot_product_attention; Debian 12 has 1.13.
// EDGES Padded keys are left out of both products, sequence by sequence; under a causal mask they
//       are whole. With bfloat16, scores and weights are bfloat16 too. One thread only: Debian's
//       build works by OpenMP's threads and by OpenBLAS's in turn, and those of one spin while the
//       others work, so that two are no faster than one on two cores.

template <class Scalar>
inline constexpr at::ScalarType type_of =
    std::is_same_v<Scalar, float> ? at::kFloat : at::kBFloat16;

template <class Scalar>
at::Tensor tensor(const Scalar* data, at::IntArrayRef sizes, at::IntArrayRef strides) {
  return at::from_blob(const_cast<Scalar*>(data), sizes, strides, type_of<Scalar>);
}

/// The heads of a workload, some of them at a time.
template <class Stored>
class Attention {
 public:
  Attention(const AttentionTask& task, Index heads_at_once)
      : w_(task.workload), shape_(w_), heads_(heads_at_once), added_(added_scores(task)) {
    const Index sequences = w_.mask == Mask::kKeyLengths ? w_.batch : 1;
    for (Index b = 0; b < sequences; ++b) {
      scores_.push_back(at::empty({heads_, shape_.rows, key_length(w_, b)}, type_of<Stored>));
      weights_.push_back(at::empty_like(scores_.back()));
    }
  }

  void operator()(const Operands<Stored>& x, Stored* y) {
    const at::InferenceMode no_gradients;
    for (Index head = 0; head < shape_.sequences * shape_.heads; head += heads_) {
      const Index sequence = scores_.size() == 1 ? 0 : head / shape_.heads;
      const Index keys = key_length(w_, sequence), rows = shape_.rows, d = w_.head_size,
                  dv = w_.value_size;
      const auto q = tensor(x.q.data() + head * rows * d, {heads_, rows, d}, {rows * d, d, 1});
      const auto k =
          tensor(x.k.data() + head * w_.keys * d, {heads_, d, keys}, {w_.keys * d, 1, d});
      const auto v =
          tensor(x.v.data() + head * w_.keys * dv, {heads_, keys, dv}, {w_.keys * dv, dv, 1});
      auto out = tensor(y + head * rows * dv, {heads_, rows, dv}, {rows * dv, dv, 1});
      at::Tensor& scores = scores_[static_cast<std::size_t>(sequence)];
      at::Tensor& weights = weights_[static_cast<std::size_t>(sequence)];
      const bool adds = added_.size() != 0;
      const auto added =
          adds ? tensor(added_.data(), {1, rows, keys}, {rows * keys, keys, 1}) : scores;
      at::baddbmm_out(scores, added, q, k, adds ? 1 : 0, 1 / std::sqrt(static_cast<double>(d)));
      at::softmax_out(weights, scores, -1);
      at::bmm_out(out, weights, v);
    }
  }

 private:
  Workload w_;
  ProductShape shape_;
  Index heads_;
  RowMatrix<float> added_;
  std::vector<at::Tensor> scores_, weights_;  ///< of each length of a sequence
};

/// A copy with features of the output as rows, as PyTorch's layers have their weights.
at::Tensor weight_of(const DenseWeights& dense) {
  const Index in = dense.weight.rows(), out = dense.weight.cols();
  return tensor(dense.weight.data(), {out, in}, {1, out}).contiguous();
}
at::Tensor bias_of(const DenseWeights& dense) {
  return tensor(dense.bias.data(), {dense.bias.size()}, {1}).clone();
}

class Torch : public Peer {
 public:
  std::string name() const override { return "PyTorch"; }
  std::string version() const override { return TORCH_VERSION; }
  void take_turn() override {
    using SetThreads = void (*)(int);
    static const auto set_blas_threads =
        reinterpret_cast<SetThreads>(dlsym(RTLD_DEFAULT, "openblas_set_num_threads"));
    if (set_blas_threads != nullptr) set_blas_threads(1);
    at::set_num_threads(1);
  }

  Attend<float> attention(const AttentionTask& task) override { return attend<float>(task); }
  Attend<Eigen::bfloat16> attention_bfloat16(const AttentionTask& task) override {
    return attend<Eigen::bfloat16>(task);
  }
  Apply linear(const LinearTask& task) override {
    const Index in = task.weights.weight.rows(), out = task.weights.weight.cols();
    return [=, rows = task.rows, weight = weight_of(task.weights).t(), bias = bias_of(task.weights),
            sum = at::empty({task.rows, out}, at::kFloat)](const float* x, float* y) mutable {
      const at::InferenceMode no_gradients;
      auto to = tensor(y, {rows, out}, {out, 1});
      at::addmm_out(sum, bias, tensor(x, {rows, in}, {in, 1}), weight);
      at::gelu_out(to, sum);
    };
  }
  Apply layer(const LayerTask& task) override {
    const DenseWeights projection = joined(task.weights), &output = task.weights.output;
    const Index width = output.weight.rows();
    return [=, rows = task.tokens, heads = task.heads, in_weight = weight_of(projection),
            in_bias = bias_of(projection), out_weight = weight_of(output),
            out_bias = bias_of(output)](const float* x, float* y) {
      const at::InferenceMode no_gradients;
      const auto from = tensor(x, {1, rows, width}, {rows * width, width, 1});
      const auto result = std::get<0>(
          at::_native_multi_head_attention(from, from, from, width, heads, in_weight, in_bias,
                                           out_weight, out_bias, c10::nullopt, false));
      tensor(y, {1, rows, width}, {rows * width, width, 1}).copy_(result);
    };
  }

 private:
  template <class Stored>
  Attend<Stored> attend(const AttentionTask& task) {
    if (!has_product_shape(task.workload)) return {};
    take_turn();
    return fastest_attention<Stored>(task, heads_at_once(task), [&](Index heads) {
      return std::make_shared<Attention<Stored>>(task, heads);
    });
  }
};

const bool registered = add_peer(5, [](int threads) -> std::unique_ptr<Peer> {
  if (threads > 1) return nullptr;
  return std::make_unique<Torch>();
});

}  // namespace
}  // namespace bench
