// tests/support/reference_gradient.h: the oracle of the backward pass: the gradient of attention as
// plain loops in long double.
// SPDX-License-Identifier: MIT
//
// Goes in: the operands and ReferenceOptions of the forward call, ∂loss/∂output [Lq, H·d_v] and
// GradientInputs. Comes out:
//   query, key, value   as the operands
//   added     [Lq, H·longest]  by what is added to a score: a bias, −slope·distance
//   modified  [Lq, H·longest]  by what `modify` returns; both are zeros where a pair is hidden
//   sinks     one number for each head
//   scale     one number
//
//   1  z = q·k,  s = f(scale · z),  w = exp(s) / Σ exp(s) over the visible pairs, and the sink
//   2  ∂w = D · ∂o·v / (1 − p)    D: 0 where dropout drops the pair, 1 else; p: its probability
//      δ = Σ w · ∂w
//   3  ∂s = w · (∂w − δ + ∂logsumexp),  ∂sink = w_sink · (∂logsumexp − δ)
//   4  ∂z = ∂s · f'(…),  ∂q = Σ ∂z · k,  ∂k = Σ ∂z · q,  ∂v = Σ D · w / (1 − p) · ∂o
//
// A hidden pair is left out of all of it: what it holds is not even looked at. Of a dropped pair the
// value is not. Rotary positions are the caller's: queries and keys are turned before, and their
// gradients back (turned_back()).
// This file shares nothing with the library.
#pragma once

#include "reference_rotary.h"

namespace support {

/// What a backward pass is given beside the forward call.
struct GradientInputs {
  /// ∂modify/∂score by the score that `modify` was given and its pair; needed where there is one.
  std::function<long double(long double, Index, Index, Index, Index)> slope = {};
  Reference logsumexp = {};  ///< ∂loss/∂logsumexp [Lq, H]; empty: the loss does not use it
};

struct ReferenceGradient {
  Reference query, key, value, added, modified;
  std::vector<long double> sinks;
  long double scale = 0;
};

namespace reference {

/// A pair that is seen: its key's row, q·k, the slopes of softcap and `modify` there, its weight and
/// the gradient by that.
struct SeenPair {
  Index key, key_row;
  long double product, cap_slope, slope, score, weight, weight_gradient;
  bool kept;
};
/// One row of one head.
struct SeenRow {
  Index sequence, head, row, token;
  std::vector<SeenPair> pairs = {};
  long double sink = 0;  ///< the sink's weight
};

class BackwardPass {
 public:
  BackwardPass(const Reference& query, const Reference& key, const Reference& value,
               const Reference& output, const ReferenceOptions& options,
               const GradientInputs& inputs)
      : query_(query),
        key_(key),
        value_(value),
        output_(output),
        options_(options),
        inputs_(inputs),
        d_k_(query.cols() / options.heads),
        d_v_(value.cols() / options.kv_heads),
        group_(options.heads / options.kv_heads),
        kept_weight_(1 / (1 - options.dropped)) {
    scale_ = options.scale.value_or(1.0L / std::sqrt(static_cast<long double>(d_k_)));
    const bool single = options.query_offsets.empty();
    queries_ = single ? std::vector<Index>{0, query.rows()} : options.query_offsets;
    keys_ = options.key_offsets;
    if (keys_.empty()) keys_ = single ? std::vector<Index>{0, key.rows()} : queries_;
    for (std::size_t b = 0; b + 1 < keys_.size(); ++b)
      longest_ = std::max(longest_, keys_[b + 1] - keys_[b]);
    result_.query.setZero(query.rows(), query.cols());
    result_.key.setZero(key.rows(), key.cols());
    result_.value.setZero(value.rows(), value.cols());
    result_.added.setZero(query.rows(), options.heads * longest_);
    result_.modified.setZero(query.rows(), options.heads * longest_);
    result_.sinks.assign(options.sinks.size(), 0);
  }

  ReferenceGradient run() {
    for (std::size_t b = 0; b + 1 < queries_.size(); ++b) {
      for (Index token = queries_[b]; token < queries_[b + 1]; ++token) {
        for (Index h = 0; h < options_.heads; ++h) {
          SeenRow seen{static_cast<Index>(b), h, token - queries_[b], token};
          see(seen);
          weigh(seen);
          add(seen);
        }
      }
    }
    return std::move(result_);
  }

 private:
  static constexpr long double kLowest = -std::numeric_limits<long double>::infinity();

  /// −∞: none, which has no gradient.
  long double sink_of(Index head) const {
    return options_.sinks.empty() ? kLowest : options_.sinks[static_cast<std::size_t>(head)];
  }

  /// 1: the scores.
  void see(SeenRow& at) const {
    const std::size_t b = keys_.size() == 2 ? 0 : static_cast<std::size_t>(at.sequence);
    const Index from = at.head / group_;
    for (Index j = 0; j < keys_[b + 1] - keys_[b]; ++j) {
      if (options_.visible && !options_.visible(at.sequence, at.head, at.row, j)) continue;
      SeenPair pair{j, keys_[b] + j, 0, 1, 1, 0, 0, 0, true};
      for (Index c = 0; c < d_k_; ++c)
        pair.product += query_(at.token, at.head * d_k_ + c) * key_(pair.key_row, from * d_k_ + c);
      pair.score = scale_ * pair.product;
      if (options_.softcap) {
        const long double part = std::tanh(pair.score / *options_.softcap);
        pair.score = *options_.softcap * part;
        pair.cap_slope = 1 - part * part;
      }
      const long double bias = options_.bias ? options_.bias(at.sequence, at.head, at.row, j) : 0;
      pair.score = bias == kLowest ? kLowest : pair.score + bias;
      if (options_.modify) {
        pair.slope = inputs_.slope(pair.score, at.sequence, at.head, at.row, j);
        pair.score = options_.modify(pair.score, at.sequence, at.head, at.row, j);
      }
      if (options_.keeps) pair.kept = options_.keeps(at.sequence, at.head, at.row, j);
      if (pair.score != kLowest) at.pairs.push_back(pair);
    }
  }
  /// 1: the weights.
  void weigh(SeenRow& at) const {
    const long double sink = sink_of(at.head);
    if (at.pairs.empty() && sink == kLowest) return;
    long double largest = sink;
    for (const SeenPair& pair : at.pairs) largest = std::max(largest, pair.score);
    long double sum = at.sink = std::exp(sink - largest);
    for (SeenPair& pair : at.pairs) sum += pair.weight = std::exp(pair.score - largest);
    for (SeenPair& pair : at.pairs) pair.weight /= sum;
    at.sink /= sum;
  }
  void add(SeenRow& at) {
    const Index from = at.head / group_;
    long double delta = 0;  // 2
    for (SeenPair& pair : at.pairs) {
      for (Index c = 0; pair.kept && c < d_v_; ++c) {
        const long double o = kept_weight_ * output_(at.token, at.head * d_v_ + c);
        pair.weight_gradient += o * value_(pair.key_row, from * d_v_ + c);
        result_.value(pair.key_row, from * d_v_ + c) += pair.weight * o;  // 4
      }
      delta += pair.weight * pair.weight_gradient;
    }

    const long double logsumexp =
        inputs_.logsumexp.size() > 0 ? inputs_.logsumexp(at.token, at.head) : 0;
    if (sink_of(at.head) != kLowest)  // 3
      result_.sinks[static_cast<std::size_t>(at.head)] += at.sink * (logsumexp - delta);
    for (const SeenPair& pair : at.pairs) {
      const Index column = at.head * longest_ + pair.key;
      long double slope = pair.weight * (pair.weight_gradient - delta + logsumexp);
      result_.modified(at.token, column) = slope;
      result_.added(at.token, column) = slope *= pair.slope;
      slope *= pair.cap_slope;  // 4
      result_.scale += slope * pair.product;
      slope *= scale_;
      for (Index c = 0; c < d_k_; ++c) {
        const Index q = at.head * d_k_ + c, k = from * d_k_ + c;
        result_.query(at.token, q) += slope * key_(pair.key_row, k);
        result_.key(pair.key_row, k) += slope * query_(at.token, q);
      }
    }
  }

  const Reference &query_, &key_, &value_, &output_;
  const ReferenceOptions& options_;
  const GradientInputs& inputs_;
  Index d_k_, d_v_, group_, longest_ = 0;
  long double kept_weight_, scale_;
  std::vector<Index> queries_, keys_;
  ReferenceGradient result_;
};

}  // namespace reference

inline ReferenceGradient reference_gradient(const Reference& query, const Reference& key,
                                            const Reference& value, const Reference& output,
                                            const ReferenceOptions& options = {},
                                            const GradientInputs& inputs = {}) {
  return reference::BackwardPass(query, key, value, output, options, inputs).run();
}

/// The same for operands of any scalar and storage order.
template <class Query, class Key, class Value, class Output>
ReferenceGradient reference_gradient(const Eigen::DenseBase<Query>& query,
                                     const Eigen::DenseBase<Key>& key,
                                     const Eigen::DenseBase<Value>& value,
                                     const Eigen::DenseBase<Output>& output,
                                     const ReferenceOptions& options = {},
                                     const GradientInputs& inputs = {}) {
  const Reference q = widened(query), k = widened(key), v = widened(value), o = widened(output);
  return reference_gradient(q, k, v, o, options, inputs);
}

/// Calls f(sequence, row, token, head, key, number) with each number of a matrix [Lq, H·longest].
template <class F>
void for_each_pair(const Reference& pairs, const ReferenceOptions& options, const F& f) {
  const Index longest = pairs.cols() / options.heads;
  std::vector<Index> offsets = options.query_offsets;
  if (offsets.empty()) offsets = {0, pairs.rows()};
  for (std::size_t b = 0; b + 1 < offsets.size(); ++b) {
    for (Index token = offsets[b]; token < offsets[b + 1]; ++token) {
      for (Index h = 0; h < options.heads; ++h) {
        for (Index j = 0; j < longest; ++j)
          f(static_cast<Index>(b), token - offsets[b], token, h, j, pairs(token, h * longest + j));
      }
    }
  }
}

/// The gradient by a bias of some shape, `added` summed over what it serves: rows 1, those of the
/// longest sequence (row i serves row i of each), or all; heads 1 or H; keys 1 or those of the
/// longest sequence. Its heads lie side by side.
inline Reference bias_gradient(const Reference& added, const ReferenceOptions& options, Index rows,
                               Index heads, Index keys) {
  Reference sum = Reference::Zero(rows, heads * keys);
  for_each_pair(added, options, [&](Index, Index i, Index token, Index h, Index j, long double x) {
    sum(rows == 1              ? 0
        : rows == added.rows() ? token
                               : i,
        (heads == 1 ? 0 : h * keys) + (keys == 1 ? 0 : j)) += x;
  });
  return sum;
}

/// The gradient by each head's slope of attention with linear biases, −slope·|p − j| added to a
/// score: `position` is p, by (sequence, query row).
inline std::vector<long double> alibi_gradient(const Reference& added,
                                               const ReferenceOptions& options,
                                               const std::function<Index(Index, Index)>& position) {
  std::vector<long double> slopes(static_cast<std::size_t>(options.heads), 0);
  for_each_pair(added, options, [&](Index b, Index i, Index, Index h, Index j, long double x) {
    slopes[static_cast<std::size_t>(h)] -=
        x * static_cast<long double>(std::abs(position(b, i) - j));
  });
  return slopes;
}

/// A gradient by rows that were turned, as one by what they were before: a rotation's transpose
/// turns by the opposite angle.
inline Reference turned_back(const Reference& gradient, Index heads, std::vector<Index> position,
                             const ReferenceRotary& rotary = {}) {
  for (Index& p : position) p = -p;
  return reference_rotary(gradient, heads, position, rotary);
}

}  // namespace support
