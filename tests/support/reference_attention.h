// tests/support/reference_attention.h: the oracle: attention as plain loops in long double.
// SPDX-License-Identifier: MIT
//
//   query   [Lq, H·d_k]      output     [Lq, H·d_v]
//   key     [Lk, H_kv·d_k]   logsumexp  [Lq, H]            −∞ for a row that sees no key
//   value   [Lk, H_kv·d_v]   weights    [Lq, H·longest]    longest: keys of the longest sequence
//                            entropy, max_logit  [Lq, H]   0 and −∞ for a row that sees no key
//                            scaled, softcapped, biased, masked  [Lq, H·longest]  scores at their
//                              stages; −∞ behind a sequence's keys, and in `masked` where hidden
//
//   1  s = scale · q·k
//   2  s = cap · tanh(s / cap), then s + bias, then modified
//   3  p = exp(s − max) / Σ exp(s − max) over the pairs that are visible, and the sink where there is one
//   4  o = Σ p · v; under dropout Σ p / (1 − dropped) · v over the pairs that it keeps
//
// A pair is hidden by `visible` or by a score of −∞, as a bias of −∞ gives whatever s was. It is
// left out of every pass (but where scores are saved, of which all stages before `masked` know no
// mask): what it holds is not even looked at. Heads lie side by side in columns; query head h reads
// key/value head h / (H / H_kv). Sequences are stacked in rows.
// This file shares nothing with the library.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

namespace support {

using Index = Eigen::Index;
using Reference = Eigen::Matrix<long double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Any matrix of numbers in the oracle's scalar (half and bfloat16 by way of float).
template <class Derived>
Reference widened(const Eigen::DenseBase<Derived>& x) {
  Reference wide(x.rows(), x.cols());
  const auto plain = x.derived().eval();
  for (Index i = 0; i < x.rows(); ++i) {
    for (Index j = 0; j < x.cols(); ++j) {
      using Scalar = typename Derived::Scalar;
      if constexpr (std::is_same_v<Scalar, Eigen::half> ||
                    std::is_same_v<Scalar, Eigen::bfloat16>) {
        wide(i, j) = static_cast<long double>(static_cast<float>(plain(i, j)));
      } else {
        wide(i, j) = static_cast<long double>(plain(i, j));
      }
    }
  }
  return wide;
}

struct ReferenceOptions {
  Index heads = 1, kv_heads = 1;
  /// Sequence b is query rows [query_offsets[b], query_offsets[b + 1]); empty: one sequence.
  std::vector<Index> query_offsets = {};
  /// The same for keys; empty: as query_offsets. Two entries: one sequence that serves all.
  std::vector<Index> key_offsets = {};
  std::optional<long double> scale = {};  ///< default 1/√d_k
  std::optional<long double> softcap = {};
  /// What is added to a score, by (sequence, head, query row in its sequence, key in its sequence).
  std::function<long double(Index, Index, Index, Index)> bias = {};
  /// What becomes of a score last, by the score and the same four.
  std::function<long double(long double, Index, Index, Index, Index)> modify = {};
  /// A logit for each head that stands in the denominator; empty: none.
  std::vector<long double> sinks = {};
  /// Which pairs see each other, by the same four; empty: all.
  std::function<bool(Index, Index, Index, Index)> visible = {};
  /// Which pairs dropout keeps, by the same four; empty: all. Their values alone are dropped.
  std::function<bool(Index, Index, Index, Index)> keeps = {};
  long double dropped = 0;  ///< the probability with which it drops one
  /// Query rows (counted over all sequences) to compute, the others stay zero; empty: all.
  std::vector<Index> rows = {};
  bool save_weights = false, save_scores = false;
};

struct ReferenceResult {
  Reference output, logsumexp, weights, entropy, max_logit;
  Reference scaled, softcapped, biased, masked;
};

inline ReferenceResult reference_attention(const Reference& query, const Reference& key,
                                           const Reference& value,
                                           const ReferenceOptions& options = {}) {
  const Index heads = options.heads, group = heads / options.kv_heads;
  const Index key_dim = query.cols() / heads, value_dim = value.cols() / options.kv_heads;
  const bool single = options.query_offsets.empty();
  const std::vector<Index> queries =
      single ? std::vector<Index>{0, query.rows()} : options.query_offsets;
  std::vector<Index> keys = options.key_offsets;
  if (keys.empty()) keys = single ? std::vector<Index>{0, key.rows()} : queries;
  const bool shared = keys.size() == 2;

  Index longest = 0;
  for (std::size_t b = 0; b + 1 < keys.size(); ++b)
    longest = std::max(longest, keys[b + 1] - keys[b]);
  const long double scale =
      options.scale.value_or(1.0L / std::sqrt(static_cast<long double>(key_dim)));

  ReferenceResult result;
  result.output.setZero(query.rows(), heads * value_dim);
  result.logsumexp.setZero(query.rows(), heads);
  result.entropy.setZero(query.rows(), heads);
  const long double lowest = -std::numeric_limits<long double>::infinity();
  result.max_logit.setConstant(query.rows(), heads, lowest);
  if (options.save_weights) result.weights.setZero(query.rows(), heads * longest);
  if (options.save_scores) {
    for (Reference* s : {&result.scaled, &result.softcapped, &result.biased, &result.masked})
      s->setConstant(query.rows(), heads * longest, lowest);
  }

  std::vector<long double> score(static_cast<std::size_t>(longest));
  std::vector<Index> seen;
  for (std::size_t b = 0; b + 1 < queries.size(); ++b) {
    const Index first_key = keys[shared ? 0 : b], key_count = keys[shared ? 1 : b + 1] - first_key;
    for (Index token = queries[b]; token < queries[b + 1]; ++token) {
      if (!options.rows.empty() &&
          std::find(options.rows.begin(), options.rows.end(), token) == options.rows.end()) {
        continue;
      }
      for (Index h = 0; h < heads; ++h) {
        const Index sequence = static_cast<Index>(b), row = token - queries[b], from = h / group;
        seen.clear();
        for (Index j = 0; j < key_count; ++j) {
          const bool visible = !options.visible || options.visible(sequence, h, row, j);
          if (!visible && !options.save_scores) continue;
          long double s = 0;  // 1
          for (Index c = 0; c < key_dim; ++c) {
            s += query(token, h * key_dim + c) * key(first_key + j, from * key_dim + c);
          }
          const long double scaled = s *= scale;
          if (options.softcap) s = *options.softcap * std::tanh(s / *options.softcap);  // 2
          const long double softcapped = s;
          const long double bias = options.bias ? options.bias(sequence, h, row, j) : 0;
          s = bias == lowest ? lowest : s + bias;
          if (options.modify) s = options.modify(s, sequence, h, row, j);
          score[static_cast<std::size_t>(j)] = s;
          if (visible && s != lowest) seen.push_back(j);
          if (!options.save_scores) continue;
          const Index column = h * longest + j;
          result.scaled(token, column) = scaled;
          result.softcapped(token, column) = softcapped;
          result.biased(token, column) = s;
          if (visible) result.masked(token, column) = s;
        }

        long double& logsumexp = result.logsumexp(token, h);  // 3
        const long double sink =
            options.sinks.empty() ? lowest : options.sinks[static_cast<std::size_t>(h)];
        if (seen.empty()) {
          logsumexp = sink;
          continue;
        }
        long double largest = sink;
        for (const Index j : seen) largest = std::max(largest, score[static_cast<std::size_t>(j)]);
        long double sum = std::exp(sink - largest);
        for (const Index j : seen) {
          long double& p = score[static_cast<std::size_t>(j)];
          p = std::exp(p - largest);
          sum += p;
        }
        logsumexp = largest + std::log(sum);
        result.max_logit(token, h) = largest;

        for (const Index j : seen) {  // 4
          const long double weight = score[static_cast<std::size_t>(j)] / sum;
          if (options.save_weights) result.weights(token, h * longest + j) = weight;
          if (weight > 0) result.entropy(token, h) -= weight * std::log(weight);
          if (options.keeps && !options.keeps(sequence, h, row, j)) continue;
          for (Index c = 0; c < value_dim; ++c) {
            result.output(token, h * value_dim + c) +=
                weight / (1 - options.dropped) * value(first_key + j, from * value_dim + c);
          }
        }
      }
    }
  }
  return result;
}

/// The same for operands of any scalar and storage order.
template <class Query, class Key, class Value>
ReferenceResult reference_attention(const Eigen::DenseBase<Query>& query,
                                    const Eigen::DenseBase<Key>& key,
                                    const Eigen::DenseBase<Value>& value,
                                    const ReferenceOptions& options = {}) {
  const Reference q = widened(query), k = widened(key), v = widened(value);
  return reference_attention(q, k, v, options);
}

}  // namespace support
