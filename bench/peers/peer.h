// bench/peers/peer.h: what a library offers to be timed beside the others: a call for each kind of
// row.
// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../support/layer_by_hand.h"
#include "../support/operands.h"
#include "../support/workloads.h"

namespace bench {

/// softmax(Q Kᵀ / √d + bias) V of a workload, on operands and a result that lie as its strides
/// tell.
template <class Stored>
using Attend = std::function<void(const Operands<Stored>& x, Stored* y)>;
/// Y of X, both row-major, of sizes that were told in advance.
using Apply = std::function<void(const float* x, float* y)>;

struct AttentionTask {
  Workload workload;
  const RowMatrix<float>& bias;  ///< empty unless the mask is Mask::kBias
};
/// Y = gelu(X W + b).
struct LinearTask {
  const DenseWeights& weights;
  Index rows;
};
/// The multi-head layer over one sequence.
struct LayerTask {
  const LayerWeights& weights;
  Index tokens, heads;
};

/// A library on a number of threads that its constructor was told. What it prepares for a task is
/// not timed: weights are constant, so it may pack them as it likes. What depends on operands
/// belongs into the call. An empty call: it has nothing for this task.
class Peer {
 public:
  virtual ~Peer() = default;
  virtual std::string name() const = 0;
  virtual std::string version() const = 0;

  /// Before each of its turns: sets what libraries in one program share.
  virtual void take_turn() {}

  virtual Attend<float> attention(const AttentionTask&) { return {}; }
  virtual Attend<Eigen::bfloat16> attention_bfloat16(const AttentionTask&) { return {}; }
  virtual Apply linear(const LinearTask&) { return {}; }
  virtual Apply layer(const LayerTask&) { return {}; }
};

using MakePeer = std::function<std::unique_ptr<Peer>(int threads)>;

/// A file of a library registers it: the build takes the files whose libraries are there.
/// `column` orders them in the table. make() returns null where it does not serve so many threads.
bool add_peer(int column, const MakePeer& make);
std::vector<std::unique_ptr<Peer>> make_peers(int threads);

/// A large negative number, which hides a score that it is added to: exp of it is 0. (Not −∞, which
/// some libraries' exp turns into NaN.)
inline constexpr float kHidden = -1e4f;

/// What is added to all scores of a head: the bias, or a causal mask for libraries without one.
/// Empty where nothing is.
inline RowMatrix<float> added_scores(const AttentionTask& task) {
  const Workload& w = task.workload;
  if (w.mask == Mask::kBias) return task.bias;
  if (w.mask != Mask::kCausal) return {};
  RowMatrix<float> added = RowMatrix<float>::Zero(w.queries, w.keys);
  for (Index i = 0; i < w.queries; ++i) {
    added.row(i).tail(w.keys - visible_keys(w, 0, i)).setConstant(kHidden);
  }
  return added;
}

/// Heads as products of matrices take them: `heads` key heads in a sequence, each with the queries
/// of all query heads that share it as rows where those are one token each, so that keys and values
/// are read once.
struct ProductShape {
  Index sequences, heads, rows, head_size, value_size;
  explicit ProductShape(const Workload& w)
      : sequences(w.batch),
        heads(w.queries == 1 ? w.key_heads : w.query_heads),
        rows(w.queries == 1 ? w.query_heads / w.key_heads : w.queries),
        head_size(w.head_size),
        value_size(w.value_size) {}
};
/// Whether this shape has it: more than one query on shared keys is no product of two matrices.
inline bool has_product_shape(const Workload& w) {
  return w.queries == 1 || w.query_heads == w.key_heads;
}

/// W_q, W_k, W_v side by side, and their biases: one product for the three.
inline DenseWeights joined(const LayerWeights& weights) {
  const Index d = weights.query.weight.cols();
  DenseWeights all = weights.query;
  all.weight.resize(d, 3 * d);
  all.bias.resize(3 * d);
  all.weight << weights.query.weight, weights.key.weight, weights.value.weight;
  all.bias << weights.query.bias, weights.key.bias, weights.value.bias;
  return all;
}

}  // namespace bench
