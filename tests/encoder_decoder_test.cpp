// tests/encoder_decoder_test.cpp: the encoder–decoder of examples/training: its gradients against
// differences, writing token by token over a cache against one pass over all, bit by bit, and two
// workers against one.
// build: -Og
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "../examples/training/sequence_task.h"
#include "support/matrix_matchers.h"

namespace {

using training::Batch;
using training::Engine;
using training::Index;
using training::kEnd;
using training::Pair;
using training::PairBatch;
using training::Sequence;
using Matrix = training::Matrix<double>;
using Model = training::EncoderDecoder<double>;

constexpr Index kLongest = 9;

Model small_model(unsigned seed = 3) {
  training::EncoderDecoderSizes sizes{11, 7, kLongest};
  sizes.width = 8, sizes.heads = 2, sizes.hidden = 12;
  Engine engine(seed);
  return Model(sizes, engine);
}
const std::vector<Pair> kPairs = {
    {{1, 2, 3}, {4, 5}}, {{7}, {6, 6, 1, 2, 3}}, {{10, 9, 8, 1, 0, 2}, {}}};

TEST(PairBatch, ReadsTheTargetBehindAnEndAndSaysItInFrontOfOne) {
  const PairBatch batch(kPairs);
  EXPECT_EQ(batch.sources.ids, (Sequence{1, 2, 3, 7, 10, 9, 8, 1, 0, 2}));
  EXPECT_EQ(batch.sources.offsets, (std::vector<Index>{0, 3, 4, 10}));
  EXPECT_EQ(batch.inputs.ids, (Sequence{kEnd, 4, 5, kEnd, 6, 6, 1, 2, 3, kEnd}));
  EXPECT_EQ(batch.targets, (Sequence{4, 5, kEnd, 6, 6, 1, 2, 3, kEnd, kEnd}));
  EXPECT_EQ(batch.inputs.offsets, (std::vector<Index>{0, 3, 9, 10}));
}

/// Each parameter is moved along a random direction.
TEST(EncoderDecoder, GradientsAreThoseOfDifferences) {
  Model model = small_model();
  const PairBatch batch(kPairs);
  Matrix dlogits;
  const auto loss = [&] {
    return training::cross_entropy(model.forward(batch), batch.targets, dlogits).loss;
  };
  loss();
  model.backward(batch, dlogits);

  std::vector<std::pair<std::string, Eigen::MatrixXd>> gradients;
  training::for_each_parameter(model, [&](const std::string& name, const auto&, const auto& g) {
    gradients.emplace_back(name, g);
  });
  EXPECT_GT(gradients.size(), 80u);
  Engine engine(11);
  for (const auto& [name, gradient] : gradients) {
    const Eigen::MatrixXd direction =
        gradient.unaryExpr([&](double) { return 2 * training::uniform(engine) - 1; });
    const auto move = [&, &name = name](double length) {
      training::for_each_parameter(model, [&](const std::string& which, auto& weight, const auto&) {
        if (which == name) weight += length * direction;
      });
    };
    const double h = 1e-5;
    move(h);
    const double up = loss();
    move(-2 * h);
    const double down = loss();
    move(h);
    EXPECT_NEAR((up - down) / (2 * h), gradient.cwiseProduct(direction).sum(), 1e-7) << name;
  }
}

TEST(EncoderDecoder, ASequencesLogitsAreThoseAlone) {
  Model model = small_model();
  const Matrix together = model.forward(PairBatch(kPairs));
  Index row = 0;
  for (const Pair& pair : kPairs) {
    const Matrix alone = model.forward(PairBatch({pair}));
    EXPECT_TRUE(support::same_bits(alone, Matrix(together.middleRows(row, alone.rows()))));
    row += alone.rows();
  }
}

TEST(Decoding, HasTheLogitsOfOnePass) {
  Model model = small_model();
  const PairBatch batch(kPairs);
  const Matrix whole = model.forward(batch);

  training::Decoding<double> decoding(model, batch.sources);
  for (Index t = 0; t < kLongest; ++t) {
    std::vector<int> tokens;
    std::vector<Index> sequences, rows;
    for (Index n = 0; n < batch.inputs.sequences(); ++n) {
      if (t >= batch.inputs.length(n)) continue;  // this one is finished
      sequences.push_back(n);
      rows.push_back(batch.inputs.begin(n) + t);
      tokens.push_back(batch.inputs.ids[std::size_t(rows.back())]);
    }
    if (sequences.empty()) break;
    const Matrix logits = decoding.step(tokens, sequences);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      EXPECT_TRUE(support::same_bits(Matrix(logits.row(Index(i))), Matrix(whole.row(rows[i]))))
          << "token " << t << " of sequence " << sequences[i];
    }
  }
}

/// One pass for each token, over all that has been written.
Sequence written_in_passes(Model& model, const Sequence& source) {
  Sequence target;
  while (Index(target.size()) < kLongest) {
    const Matrix logits = model.forward(PairBatch({{source, target}}));
    Index token;
    logits.row(logits.rows() - 1).maxCoeff(&token);
    if (token == kEnd) break;
    target.push_back(int(token));
  }
  return target;
}

TEST(DecodeGreedily, WritesWhatPassesFindUntilTheEndOrTheLastPosition) {
  Batch sources;
  std::vector<Sequence> expected;
  std::size_t ended = 0, unending = 0;
  Model model = small_model(5);
  // A token is mostly followed by itself: the ends are made likelier.
  model.output.layer.edit([](auto& weights) { weights.bias()(kEnd) = 0.9; });
  for (int first = 0; first < 11; ++first) {
    for (int length = 1; length <= 3; ++length) {
      const Sequence source(std::size_t(length), first);
      sources.add(source);
      expected.push_back(written_in_passes(model, source));
      const bool full = Index(expected.back().size()) == kLongest;
      ++(full ? unending : ended);
    }
  }
  EXPECT_EQ(training::decode_greedily(model, sources), expected);
  EXPECT_GT(ended, 0u);
  EXPECT_GT(unending, 0u);
}

TEST(AttentionToSource, IsARowOfWeightsForEachTokenRead) {
  Model model = small_model();
  const PairBatch batch({kPairs[0]});
  const Matrix weights = model.attention_to_source(batch);
  ASSERT_EQ(weights.rows(), 3);
  ASSERT_EQ(weights.cols(), 3);
  for (Index i = 0; i < 3; ++i) EXPECT_NEAR(weights.row(i).sum(), 1, 1e-12);
}

TEST(Training, LosesTheSameBitsByTwoWorkers) {
  std::vector<Pair> pairs;
  for (Index n = 0; n < 10 * training::kPairsAtOnce; ++n)
    pairs.push_back(kPairs[std::size_t(n % 3)]);
  EXPECT_TRUE(training::same_bits_in_parallel(small_model(), pairs));
}

TEST(Training, LearnsThreePairs) {
  Model model = small_model();
  training::AdamOptions options;
  options.steps = 150, options.warm_up = 10, options.rate = 1e-2;
  training::Adam<double> adam(options);
  for (Index step = 0; step < options.steps; ++step)
    training::train_step(model, adam, PairBatch(kPairs));
  EXPECT_TRUE(training::passes(model, kPairs, 1.0));
}

TEST(CheckDisjoint, RefusesATextOfBothSides) {
  training::SequenceData data;
  data.train = kPairs;
  data.held_out = {{{1, 2}, {4, 5}}};
  EXPECT_NO_THROW(training::check_disjoint(data));
  data.held_out.push_back({{7}, {1}});
  EXPECT_THROW(training::check_disjoint(data), std::logic_error);
}

}  // namespace
