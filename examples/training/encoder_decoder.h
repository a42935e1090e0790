// examples/training/encoder_decoder.h: a model that reads one sequence and writes another: the
// transformer of Vaswani et al. 2017, pre-norm.
// SPDX-License-Identifier: MIT
//
//   memory = norm(encoder blocks(embed(source)))
//   logits = output(norm(decoder blocks(embed(<end> + target), memory)))
//
// Row t of a target's logits says which token follows its first t.
//
// In training all rows of the target are known and computed at once, each from those before it
// ("teacher forcing"). Writing a target token by token: greedy_decoding.h.
#pragma once

#include <string>
#include <vector>

#include "decoder_block.h"
#include "embedding.h"
#include "encoder_block.h"
#include "words.h"

namespace training {

/// The token behind a target's last word and in front of its first: the first word of a target's
/// vocabulary.
inline constexpr int kEnd = 0;

inline Vocabulary vocabulary_with_end(const std::vector<std::string>& words) {
  Vocabulary vocabulary;
  vocabulary.add("<end>");
  for (const std::string& word : words) vocabulary.add(word);
  return vocabulary;
}

/// What to read and what to write, as token ids.
struct Pair {
  Sequence source, target;
};
/// Pairs side by side, as many sequences of sources as of targets.
struct PairBatch {
  Batch sources;
  Batch inputs;              ///< <end> and the target: what the decoder reads
  std::vector<int> targets;  ///< the target and <end>: what it is to say, a token for each one read

  explicit PairBatch(const std::vector<Pair>& pairs) {
    for (const auto& [source, target] : pairs) {
      Sequence input{kEnd};
      input.insert(input.end(), target.begin(), target.end());
      sources.add(source);
      inputs.add(input);
      targets.insert(targets.end(), target.begin(), target.end());
      targets.push_back(kEnd);
    }
  }
};

struct EncoderDecoderSizes {
  int source_words, target_words;
  Index longest = 64;  ///< tokens of a source and of a target
  Index width = 64, heads = 4, hidden = 128;
  int blocks = 2;  ///< of the encoder, and of the decoder
};

template <class Scalar>
struct EncoderDecoder {
  Embedding<Scalar> source_words, target_words;
  std::vector<EncoderBlock<Scalar>> encoder;
  std::vector<DecoderBlock<Scalar>> decoder;
  LayerNorm<Scalar> encoder_norm, decoder_norm;
  Linear<Scalar> output;
  int workers = 1;

  EncoderDecoder(const EncoderDecoderSizes& sizes, Engine& engine)
      : source_words(sizes.source_words, sizes.width, sizes.longest, engine),
        target_words(sizes.target_words, sizes.width, sizes.longest, engine),
        encoder_norm(sizes.width),
        decoder_norm(sizes.width),
        output(make_linear<Scalar>(sizes.width, sizes.target_words, engine)) {
    for (int n = 0; n < sizes.blocks; ++n) {
      encoder.emplace_back(sizes.width, sizes.heads, sizes.hidden, engine);
      decoder.emplace_back(sizes.width, sizes.heads, sizes.hidden, engine);
    }
  }

  /// What the decoder attends to: a row for each token of the sources.
  const Matrix<Scalar>& encode(const Batch& sources) {
    encoder_inputs_.assign(1, source_words.forward(sources));
    for (auto& block : encoder) {
      encoder_inputs_.push_back(
          block.forward(encoder_inputs_.back(), workers, among_sources(sources)));
    }
    return encoder_norm.forward(encoder_inputs_.back());
  }
  /// The logits of what follows each token that the decoder reads.
  const Matrix<Scalar>& forward(const PairBatch& batch) {
    const Matrix<Scalar>& memory = encode(batch.sources);
    decoder_inputs_.assign(1, target_words.forward(batch.inputs));
    for (auto& block : decoder) {
      decoder_inputs_.push_back(block.forward(decoder_inputs_.back(), memory, workers,
                                              among_targets(batch), between_texts(batch)));
    }
    output.layer(decoder_norm.forward(decoder_inputs_.back()), attn::parallel(workers),
                 attn::into(logits_));
    return logits_;
  }
  /// What each token that the decoder reads attends to in its source, in the last block, on the
  /// mean of its heads: a row each, which sums to 1.
  Matrix<Scalar> attention_to_source(const PairBatch& batch) {
    forward(batch);
    Matrix<Scalar> weights;
    const std::size_t last = decoder.size() - 1;
    const auto saved = attn::save_weights(weights, attn::average_heads());
    decoder[last].forward(decoder_inputs_[last], encoder_norm.output(), workers,
                          among_targets(batch), attn::options(between_texts(batch), saved));
    return weights;
  }
  /// Fills the gradients of all weights, from those by the logits of the latest forward pass.
  void backward(const PairBatch& batch, const Matrix<Scalar>& dlogits) {
    const Matrix<Scalar>& memory = encoder_norm.output();
    output.layer.backward(decoder_norm.output(), dlogits, attn::parallel(workers),
                          attn::dweights(output.gradients), attn::dinput(dnormalised_));
    Matrix<Scalar> dX = Matrix<Scalar>::Zero(dnormalised_.rows(), dnormalised_.cols());
    decoder_norm.backward(dnormalised_, dX);
    Matrix<Scalar> dmemory = Matrix<Scalar>::Zero(memory.rows(), memory.cols());
    for (std::size_t n = decoder.size(); n-- > 0;) {
      dX = decoder[n].backward(decoder_inputs_[n], memory, dX, dmemory, workers,
                               among_targets(batch), between_texts(batch));
    }
    target_words.backward(batch.inputs, dX);

    dX.setZero(memory.rows(), memory.cols());
    encoder_norm.backward(dmemory, dX);
    for (std::size_t n = encoder.size(); n-- > 0;) {
      dX = encoder[n].backward(encoder_inputs_[n], dX, workers, among_sources(batch.sources));
    }
    source_words.backward(batch.sources, dX);
  }

  /// How self-attention sees which token is how far from which: queries and keys turn with their
  /// positions. (The sinusoids say where a token is, which cross-attention reads.)
  static auto rotary() { return attn::rotary(attn::pairing::half_split); }

  template <class Visit>
  void each_layer(const Visit& visit) {
    const auto each_block = [&](const std::string& name, auto& blocks) {
      for (std::size_t n = 0; n < blocks.size(); ++n)
        blocks[n].each_layer(name + std::to_string(n) + '.', visit);
    };
    visit("source_words", source_words);
    each_block("encoder.", encoder);
    visit("encoder_norm", encoder_norm);
    visit("target_words", target_words);
    each_block("decoder.", decoder);
    visit("decoder_norm", decoder_norm);
    visit("output", output);
  }

 private:
  static auto among_sources(const Batch& sources) {
    return attn::options(attn::sequences(sources.offsets), rotary());
  }
  /// A token of a target sees those before it and itself.
  static auto among_targets(const PairBatch& batch) {
    return attn::options(attn::causal(), attn::sequences(batch.inputs.offsets), rotary());
  }
  /// It sees all of its own source.
  static auto between_texts(const PairBatch& batch) {
    return attn::sequences(batch.inputs.offsets, batch.sources.offsets);
  }

  // Of the latest forward pass, for the backward one: what each block read, and the last one wrote.
  std::vector<Matrix<Scalar>> encoder_inputs_, decoder_inputs_;
  Matrix<Scalar> logits_, dnormalised_;
};

}  // namespace training
