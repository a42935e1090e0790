// examples/07_classify/classifier.h: a transformer encoder that reads a sentence and chooses a
// class; and what it is compared with, a bag of words.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../training/embedding.h"
#include "../training/encoder_block.h"
#include "../training/heat_map.h"
#include "../training/mean_pool.h"
#include "../training/parameters.h"

namespace film {

using training::Batch;
using training::Index;
using Matrix = training::Matrix<float>;

/// What differs between training and use.
struct Mode {
  double dropout = 0;      ///< of the attention's weights: 0 is off
  std::uint64_t step = 0;  ///< another one drops other weights
  int workers = 1;
};

/// The options of a block's attention, the same in both passes.
inline auto attention_options(const Batch& batch, const Mode& mode, std::uint64_t stream) {
  constexpr std::uint64_t seed = 42;
  return attn::options(attn::sequences(batch.offsets), attn::dropout(mode.dropout, seed, stream));
}

/// Tokens → blocks → the mean of each sentence → a number for each class.
class Classifier {
 public:
  static constexpr Index kWidth = 48, kHeads = 4, kHidden = 96, kBlocks = 2, kLongest = 64;

  Classifier(Index vocabulary, Index classes, training::Engine& engine)
      : words_(vocabulary, kWidth, kLongest, engine),
        last_norm_(kWidth),
        classes_(training::make_linear<float>(kWidth, classes, engine)) {
    for (Index n = 0; n < kBlocks; ++n) blocks_.emplace_back(kWidth, kHeads, kHidden, engine);
  }

  /// The logits, a row for each sentence.
  const Matrix& forward(const Batch& batch, const Mode& mode = {}) {
    inputs_.resize(blocks_.size() + 1);
    inputs_[0] = words_.forward(batch);
    for (std::size_t n = 0; n < blocks_.size(); ++n)
      inputs_[n + 1] = blocks_[n].forward(inputs_[n], mode.workers,
                                          attention_options(batch, mode, mode.step * kBlocks + n));
    pooled_ = training::mean_pool(last_norm_.forward(inputs_.back()), batch);
    classes_.layer(pooled_, attn::into(logits_));
    return logits_;
  }
  /// After forward() of the same batch in the same mode: the gradients of all weights.
  void backward(const Batch& batch, const Matrix& dlogits, const Mode& mode) {
    classes_.layer.backward(pooled_, dlogits, attn::dweights(classes_.gradients),
                            attn::dinput(dpooled_));
    Matrix dX = Matrix::Zero(batch.tokens(), kWidth);
    last_norm_.backward(training::mean_pool_backward(dpooled_, batch), dX);
    for (std::size_t n = blocks_.size(); n-- > 0;)
      dX = blocks_[n].backward(inputs_[n], dX, mode.workers,
                               attention_options(batch, mode, mode.step * kBlocks + n));
    words_.backward(batch, dX);
  }

  /// What the words of a sentence attend to in a block, on the mean of its heads.
  Matrix attention(const Batch& sentence, std::size_t block) {
    forward(sentence);
    Matrix weights;
    blocks_[block].forward(inputs_[block], 1, attn::save_weights(weights, attn::average_heads()));
    return weights;
  }

  template <class Visit>
  void each_layer(const Visit& visit) {
    visit("words", words_);
    for (std::size_t n = 0; n < blocks_.size(); ++n)
      blocks_[n].each_layer("block." + std::to_string(n) + '.', visit);
    visit("last_norm", last_norm_);
    visit("classes", classes_);
  }

 private:
  training::Embedding<float> words_;
  std::vector<training::EncoderBlock<float>> blocks_;
  training::LayerNorm<float> last_norm_;
  training::Linear<float> classes_;
  std::vector<Matrix> inputs_;  // of each block, and of what follows
  Matrix pooled_, logits_, dpooled_;
};

/// Logistic regression on how often each word occurs: it knows the words, but not their order.
class BagOfWords {
 public:
  BagOfWords(Index vocabulary, Index classes)
      : classes_(attn::LinearOptions(vocabulary, classes).bias()) {}

  const Matrix& forward(const Batch& batch, const Mode& = {}) {
    counts_.setZero(batch.sequences(), classes_.layer.options().in_features());
    for (Index n = 0; n < batch.sequences(); ++n) {
      for (Index i = batch.begin(n); i < batch.begin(n + 1); ++i)
        counts_(n, batch.ids[std::size_t(i)]) += 1;
    }
    classes_.layer(counts_, attn::into(logits_));
    return logits_;
  }
  void backward(const Batch&, const Matrix& dlogits, const Mode&) {
    classes_.layer.backward(counts_, dlogits, attn::dweights(classes_.gradients));
  }

  template <class Visit>
  void each_layer(const Visit& visit) {
    visit("classes", classes_);
  }

 private:
  training::Linear<float> classes_;
  Matrix counts_, logits_;
};

}  // namespace film
