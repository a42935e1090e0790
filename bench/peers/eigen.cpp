// bench/peers/eigen.cpp: the formula as a good user of Eigen writes it by hand, on one thread.
// SPDX-License-Identifier: MIT

#include "../support/setting.h"
#include "../support/textbook.h"
#include "peer.h"

namespace bench {
namespace {

class ByHand : public Peer {
 public:
  std::string name() const override { return "Eigen"; }
  std::string version() const override { return eigen_version(); }

  Attend<float> attention(const AttentionTask& task) override { return attend<float>(task); }
  Attend<Eigen::bfloat16> attention_bfloat16(const AttentionTask& task) override {
    return attend<Eigen::bfloat16>(task);
  }

  Apply linear(const LinearTask& task) override {
    const DenseWeights& weights = task.weights;
    return [&weights, rows = task.rows](const float* x, float* y) {
      Eigen::Map<RowMatrix<float>> out(y, rows, weights.weight.cols());
      weights(Eigen::Map<const RowMatrix<float>>(x, rows, weights.weight.rows()), out);
      gelu(out);
    };
  }

  Apply layer(const LayerTask& task) override {
    auto layer =
        std::make_shared<LayerByHand>(task.weights, task.heads, std::vector<Index>{0, task.tokens});
    const Index rows = task.tokens, width = task.weights.query.weight.rows();
    return [=](const float* x, float* y) {
      (*layer)(Eigen::Map<const RowMatrix<float>>(x, rows, width),
               Eigen::Map<RowMatrix<float>>(y, rows, width));
    };
  }

 private:
  template <class Stored>
  static Attend<Stored> attend(const AttentionTask& task) {
    auto textbook = std::make_shared<Textbook<Stored>>(task.workload);
    return [textbook, &bias = task.bias](const Operands<Stored>& x, Stored* y) {
      (*textbook)(x, bias, y);
    };
  }
};

const bool registered = add_peer(1, [](int threads) -> std::unique_ptr<Peer> {
  if (threads > 1) return nullptr;
  return std::make_unique<ByHand>();
});

}  // namespace
}  // namespace bench
