// examples/training/greedy_decoding.h: writing token by token, over keys and values that are kept:
// each step costs one token of each sequence, whatever has been written before.
// SPDX-License-Identifier: MIT
//
//   self-attention     decode(): a cache that grows by keys and values of the tokens just written
//   cross-attention    all_keys(): a cache of the source's, filled once; queries are no part of it
//
// The logits of a step are the rows of EncoderDecoder::forward() over the finished sequences, bit
// by bit (tests/encoder_decoder_test.cpp).
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "encoder_decoder.h"

namespace training {

/// A layer's cross-attention to one memory, its keys and values projected once. The layer's own
/// decode() is for self-attention, where each token brings keys of its own; here its four
/// projections are called one by one.
template <class Scalar>
class CachedCrossAttention {
 public:
  template <class Layer>
  CachedCrossAttention(const Layer& layer, const Matrix<Scalar>& memory, const Batch& sources)
      : CachedCrossAttention(layer.options(), layer.weights(), memory, sources) {}

  /// R + what each row of X, one of each of these sequences, finds in its source.
  Matrix<Scalar> operator()(const Matrix<Scalar>& X, const Matrix<Scalar>& R,
                            const std::vector<Index>& sequences) {
    attn::attention(attn::heads(query_(X), heads_), cache_, attn::all_keys(),
                    attn::sequence_length(1), attn::cache_sequences(sequences), attn::into(mixed_));
    return output_(mixed_, attn::residual(R));
  }

 private:
  template <class Weights>
  CachedCrossAttention(const attn::MultiHeadOptions& sizes, const Weights& weights,
                       const Matrix<Scalar>& memory, const Batch& sources)
      : heads_(sizes.heads()),
        query_(linear(weights.query, weights.query_bias)),
        output_(linear(weights.output, weights.output_bias)),
        cache_(attn::KeyValueCacheOptions(longest(sources), heads_, sizes.key_dim())
                   .sequences(sources.sequences())) {
    auto key = linear(weights.key, weights.key_bias);
    auto value = linear(weights.value, weights.value_bias);
    cache_.append(key(memory), value(memory), attn::sequences(sources.offsets));
  }
  template <class Weight, class Bias>
  static attn::Linear<Scalar> linear(const Weight& weight, const Bias& bias) {
    attn::Linear<Scalar> layer(attn::LinearOptions(weight.rows(), weight.cols()).bias());
    layer.set(weight, bias);
    return layer;
  }
  static Index longest(const Batch& batch) {
    Index tokens = 1;
    for (Index n = 0; n < batch.sequences(); ++n) tokens = std::max(tokens, batch.length(n));
    return tokens;
  }

  Index heads_;
  attn::Linear<Scalar> query_, output_;
  attn::KeyValueCache<Scalar> cache_;
  Matrix<Scalar> mixed_;
};

/// The decoder of a model at work on some sources: a step at a time.
template <class Scalar>
class Decoding {
 public:
  Decoding(EncoderDecoder<Scalar>& model, const Batch& sources) : model_(model) {
    const Matrix<Scalar>& memory = model.encode(sources);
    const Index longest = model.target_words.positions.rows();
    for (auto& block : model.decoder) {
      const attn::MultiHeadOptions& sizes = block.self.layer.options();
      self_.emplace_back(attn::KeyValueCacheOptions(longest, sizes.heads(), sizes.key_dim())
                             .sequences(sources.sequences()));
      cross_.emplace_back(block.cross.layer, memory, sources);
    }
  }

  /// The logits of what follows, after one more token for each of these sequences.
  const Matrix<Scalar>& step(const std::vector<int>& tokens, const std::vector<Index>& sequences) {
    Batch batch;
    for (const int token : tokens) batch.add({token});
    Matrix<Scalar> X = model_.target_words.forward(batch, steps_++);
    for (std::size_t n = 0; n < self_.size(); ++n) {
      auto& block = model_.decoder[n];
      block.self.layer.decode(block.self_norm.forward(X), self_[n], attn::sequence_length(1),
                              attn::cache_sequences(sequences), model_.rotary(), attn::residual(X),
                              attn::into(A_));
      const Matrix<Scalar> B = cross_[n](block.cross_norm.forward(A_), A_, sequences);
      X = block.feed_forward.forward(block.feed_forward_norm.forward(B), B, 1);
    }
    model_.output.layer(model_.decoder_norm.forward(X), attn::into(logits_));
    return logits_;
  }

 private:
  EncoderDecoder<Scalar>& model_;
  std::vector<attn::KeyValueCache<Scalar>> self_;
  std::vector<CachedCrossAttention<Scalar>> cross_;
  Matrix<Scalar> A_, logits_;
  Index steps_ = 0;
};

/// The target of each source, at each step the likeliest token, until that is <end> or there are as
/// many as the model has positions for.
template <class Scalar>
std::vector<Sequence> decode_greedily(EncoderDecoder<Scalar>& model, const Batch& sources) {
  Decoding<Scalar> decoding(model, sources);
  std::vector<Sequence> written(std::size_t(sources.sequences()));
  std::vector<Index> unfinished(written.size());
  std::iota(unfinished.begin(), unfinished.end(), Index(0));
  std::vector<int> tokens(written.size(), kEnd);
  for (Index left = model.target_words.positions.rows(); left > 0 && !unfinished.empty(); --left) {
    const Matrix<Scalar>& logits = decoding.step(tokens, unfinished);
    std::vector<Index> go_on;
    tokens.clear();
    for (std::size_t i = 0; i < unfinished.size(); ++i) {
      Index token;
      logits.row(Index(i)).maxCoeff(&token);
      if (token == kEnd) continue;
      written[std::size_t(unfinished[i])].push_back(int(token));
      tokens.push_back(int(token));
      go_on.push_back(unfinished[i]);
    }
    unfinished = go_on;
  }
  return written;
}

}  // namespace training
