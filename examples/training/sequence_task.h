// examples/training/sequence_task.h: training and testing an encoder–decoder, whatever its texts
// are.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <set>
#include <stdexcept>
#include <vector>

#include "adam.h"
#include "greedy_decoding.h"
#include "progress.h"
#include "words.h"

namespace training {

struct SequenceData {
  Vocabulary source_words, target_words;
  std::vector<Pair> train, held_out;
};

/// Sources that were trained on and are tested: none, or this throws.
inline void check_disjoint(const SequenceData& data) {
  std::set<Sequence> trained_on;
  for (const Pair& pair : data.train) trained_on.insert(pair.source);
  for (const Pair& pair : data.held_out) {
    if (trained_on.count(pair.source) > 0) throw std::logic_error("a held-out text was trained on");
  }
}

/// `size` pairs of a list from `first` on.
inline PairBatch batch_of(const std::vector<Pair>& pairs, Index first, Index size) {
  const auto begin = pairs.begin() + first;
  return PairBatch({begin, begin + std::min(size, Index(pairs.end() - begin))});
}

// ---- Training ----------------------------------------------------------------------------------

constexpr Index kPairsAtOnce = 32;

/// One step. Its loss is the mean over all tokens of the batch.
template <class Scalar>
Judged train_step(EncoderDecoder<Scalar>& model, Adam<Scalar>& adam, const PairBatch& batch) {
  Matrix<Scalar> dlogits;
  const Judged judged = cross_entropy(model.forward(batch), batch.targets, dlogits);
  model.backward(batch, dlogits);
  adam.step(model);
  return judged;
}

/// Reads each pair once. The losses of all steps.
template <class Scalar>
std::vector<double> train(EncoderDecoder<Scalar>& model, const std::vector<Pair>& pairs) {
  AdamOptions options;
  options.steps = Index(pairs.size()) / kPairsAtOnce;
  options.rate = 2e-3;
  Adam<Scalar> adam(options);
  Progress progress(options.steps);
  for (Index step = 0; step < options.steps; ++step) {
    const PairBatch batch = batch_of(pairs, step * kPairsAtOnce, kPairsAtOnce);
    progress.after_step(train_step(model, adam, batch),
                        batch.sources.tokens() + batch.inputs.tokens());
  }
  std::printf("  %.1f s\n", progress.seconds());
  return progress.losses();
}

/// Ten steps by one worker and by two, from the same weights: the same losses to the last bit?
template <class Scalar>
bool same_bits_in_parallel(const EncoderDecoder<Scalar>& untrained,
                           const std::vector<Pair>& pairs) {
  std::vector<double> losses[2];
  for (const int workers : {1, 2}) {
    EncoderDecoder<Scalar> model = untrained;
    model.workers = workers;
    Adam<Scalar> adam({});
    for (Index step = 0; step < 10; ++step) {
      const PairBatch batch = batch_of(pairs, step * kPairsAtOnce, kPairsAtOnce);
      losses[workers - 1].push_back(train_step(model, adam, batch).loss);
    }
  }
  return same_losses(losses[0], losses[1]);
}

// ---- Testing -----------------------------------------------------------------------------------

/// Whether each target is what the model finds likeliest, token by token, in one pass over all of
/// them.
template <class Scalar>
bool likeliest(EncoderDecoder<Scalar>& model, const PairBatch& batch) {
  const Matrix<Scalar>& logits = model.forward(batch);
  for (Index row = 0; row < logits.rows(); ++row) {
    Index token;
    logits.row(row).maxCoeff(&token);
    if (token != batch.targets[std::size_t(row)]) return false;
  }
  return true;
}

/// Writes a target for each source, token by token over a cache. Whether enough of them have no
/// wrong token, and all are what full passes find.
template <class Scalar>
bool passes(EncoderDecoder<Scalar>& model, const std::vector<Pair>& pairs, double wanted) {
  constexpr Index at_once = 100;
  std::chrono::duration<double> decoding{};
  Index right = 0, tokens = 0;
  bool cached_is_full = true;
  for (Index first = 0; first < Index(pairs.size()); first += at_once) {
    const auto start = std::chrono::steady_clock::now();
    const auto written = decode_greedily(model, batch_of(pairs, first, at_once).sources);
    decoding += std::chrono::steady_clock::now() - start;

    std::vector<Pair> part;
    for (const Sequence& target : written) {
      const Pair& pair = pairs[std::size_t(first) + part.size()];
      right += target == pair.target;
      tokens += Index(target.size()) + 1;
      part.push_back({pair.source, target});
    }
    cached_is_full = likeliest(model, PairBatch(part)) && cached_is_full;
  }
  const double accuracy = double(right) / double(pairs.size());
  std::printf("\n%d of %d held-out texts written without a wrong word: %.1f %%, needed %.1f\n",
              int(right), int(pairs.size()), 100 * accuracy, 100 * wanted);
  std::printf("%d tokens, %.0f a second, over the cache; in one pass over all: %s\n", int(tokens),
              double(tokens) / decoding.count(), cached_is_full ? "the same" : "OTHER TOKENS");
  return accuracy >= wanted && cached_is_full;
}

}  // namespace training
