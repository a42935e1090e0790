// examples/06_encoder/encoder.h: a transformer encoder: token ids in, embeddings out.
// SPDX-License-Identifier: MIT
//
//   block:  X = norm(X + attention(X));  X = norm(X + feed_forward(X))                post-norm: Vaswani et al. 2017, BERT
//           X = X + attention(norm(X));  X = X + feed_forward(norm(X))                pre-norm: GPT-2, most since; a last norm behind all
//
// The weights are public members: bert.h fills them from a file.
#pragma once

#include <attn/attn.h>

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

namespace encoder {

using Eigen::Index;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Row = Eigen::RowVectorXf;

// ---- Norms: a few lines of Eigen -----------------------------------------------------------------

/// Each token to mean 0 and deviation 1, then scaled and shifted feature by feature. In a row of its own: Eigen's sums begin at the
/// first aligned number, so that in place a token's bits would depend on where in the batch it stands.
inline void layer_norm(Matrix& X, const Row& scale, const Row& shift, float epsilon) {
  Row x;
  for (Index i = 0; i < X.rows(); ++i) {
    x = X.row(i);
    x.array() -= x.mean();
    x /= std::sqrt(x.squaredNorm() / float(x.size()) + epsilon);
    x = x.cwiseProduct(scale) + shift;
    X.row(i) = x;
  }
}

/// The same without mean and shift, as LLaMA has it.
inline void rms_norm(Matrix& X, const Row& scale, float epsilon) {
  Row x;
  for (Index i = 0; i < X.rows(); ++i) {
    x = X.row(i);
    x /= std::sqrt(x.squaredNorm() / float(x.size()) + epsilon);
    X.row(i) = x.cwiseProduct(scale);
  }
}

struct LayerNorm {
  Row scale, shift;
  float epsilon = 1e-12f;

  void operator()(Matrix& X) const { layer_norm(X, scale, shift, epsilon); }
};

// ---- A batch: sentences of any lengths, their tokens stacked in rows, without padding ----------------

struct Batch {
  std::vector<int> ids;
  std::vector<Index> offsets{0};  ///< sentence n is rows offsets[n] to offsets[n + 1]

  Batch() = default;
  explicit Batch(const std::vector<std::vector<int>>& sentences) {
    for (const auto& sentence : sentences) {
      ids.insert(ids.end(), sentence.begin(), sentence.end());
      offsets.push_back(Index(ids.size()));
    }
  }
  Index sentences() const { return Index(offsets.size()) - 1; }
  Index begin(Index sentence) const { return offsets[std::size_t(sentence)]; }
  Index tokens(Index sentence) const { return begin(sentence + 1) - begin(sentence); }
};

/// A row for each sentence: the mean of its tokens, of length 1, so that the product of two is their cosine.
inline Matrix mean_pool(const Matrix& X, const Batch& batch) {
  Matrix pooled(batch.sentences(), X.cols());
  for (Index n = 0; n < pooled.rows(); ++n) {
    pooled.row(n) = X.middleRows(batch.begin(n), batch.tokens(n)).colwise().sum();
    pooled.row(n).normalize();
  }
  return pooled;
}

// ---- The encoder ---------------------------------------------------------------------------------

struct Block {
  attn::MultiHeadAttention<float> attention;
  attn::Linear<float> up, down;
  LayerNorm attention_norm, feed_forward_norm;
};

struct Encoder {
  bool pre_norm = false;
  Matrix words, positions;  ///< a row for each token of the vocabulary, for each position
  Row type;                 ///< added to all tokens: BERT's first of two types
  Index first_position = 0;
  LayerNorm embeddings_norm, last_norm;  ///< the last one where norms come first
  std::vector<Block> blocks;

  /// The embeddings of a batch's tokens, a row for each. A sentence's are the same bits in every batch.
  Matrix operator()(const Batch& batch) {
    Matrix X = embed(batch);
    embeddings_norm(X);
    for (Block& block : blocks) {
      add(X, block.attention_norm, [&](const Matrix& in) {
        block.attention(in, attn::sequences(batch.offsets), attn::residual(X), attn::into(X));
      });
      add(X, block.feed_forward_norm, [&](const Matrix& in) {
        block.up(in, attn::gelu(), attn::into(hidden_));
        block.down(hidden_, attn::residual(X), attn::into(X));
      });
    }
    if (pre_norm) last_norm(X);
    return X;
  }
  // A gated feed-forward, SwiGLU, is one call more: two linears read the same input, the activation of one gates the other.
  //   block.gate(in, attn::silu(), attn::into(hidden_));
  //   hidden_.array() *= block.up(in).array();
  //   block.down(hidden_, attn::residual(X), attn::into(X));

 private:
  Matrix embed(const Batch& batch) const {
    Matrix X(Index(batch.ids.size()), words.cols());
    for (Index n = 0; n < batch.sentences(); ++n) {
      const Index most = positions.rows() - first_position;
      if (batch.tokens(n) > most) {
        throw std::invalid_argument("a sentence has " + std::to_string(batch.tokens(n)) +
                                    " tokens, the model reads " + std::to_string(most));
      }
      for (Index token = 0; token < batch.tokens(n); ++token) {
        const Index row = batch.begin(n) + token;
        const int id = batch.ids[std::size_t(row)];
        if (id < 0 || id >= words.rows()) {
          throw std::invalid_argument("there is no token " + std::to_string(id) +
                                      ", the vocabulary has " + std::to_string(words.rows()));
        }
        X.row(row) = words.row(id) + positions.row(first_position + token) + type;
      }
    }
    return X;
  }

  /// X = norm(X + f(X)), or X + f(norm(X)): `f` adds to X what it makes of its argument.
  template <class Sublayer>
  void add(Matrix& X, const LayerNorm& norm, const Sublayer& f) {
    if (pre_norm) {
      normalised_ = X;
      norm(normalised_);
      f(normalised_);
    } else {
      f(X);
      norm(X);
    }
  }

  Matrix hidden_, normalised_;  // kept from call to call
};

}  // namespace encoder
