// tests/multi_head_gradient_bits_test.cpp: a gradient by the layer's inputs has, row by row, the
// bits of its tokens' sequence alone; those by its weights are one chain of sums over the tokens in
// their order. Threads, layouts, other sequences, scratch and what else is asked for change none.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "support/any_mask.h"
#include "support/layer_gradient_case.h"
#include "support/mask_cases.h"
#include "support/threads.h"

namespace {

using attn::MultiHeadOptions;
using Eigen::Index;
using support::AnyMask;
using support::BatchCase;
using support::expect_same_weights;
using support::Inputs;
using support::near;
using support::same_bits;
using support::trained_layer;
using Case = support::LayerCase<float>;
using Matrix = Case::Matrix;
using Training = support::LayerTraining<float>;

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

/// One call of each kind, so that each is instantiated once: the mask, the offset of the queries
/// and the number of workers are told at run time.
template <Inputs given>
Training attend(Case& x, const AnyMask& mask, Index offset = 0, int workers = 1) {
  support::Threads pool;
  return trained_layer<given>(
      x, attn::options(mask, attn::query_offset(offset), attn::on(pool, workers)));
}
AnyMask everything() { return AnyMask(attn::window(-1, -1)); }

/// Queries and keys of some rows, as a case of one sequence.
Case rows_of(const Case& x, Index query, Index queries, Index key, Index keys) {
  Case part(x.mha.options(), BatchCase{{0, queries}, {0, keys}});
  part.mha = x.mha;
  part.Xq = x.Xq.middleRows(query, queries);
  part.dY = x.dY.middleRows(query, queries);
  part.Xk = x.Xk.middleRows(key, keys);
  part.Xv = x.Xv.middleRows(key, keys);
  return part;
}
Case sequence_of(const Case& x, Index b) {
  return rows_of(x, x.queries[at(b)], x.query_length(b), x.keys.size() == 2 ? 0 : x.keys[at(b)],
                 x.key_length(b));
}

const auto kPlain = MultiHeadOptions(24, 4).biases();
const auto kGrouped = MultiHeadOptions(24, 4).kv_heads(2).value_dim(5).biases();

Case self() { return {kPlain, 411}; }
Case cross() {
  return {kGrouped.key_features(10).value_features(37).output_features(19),
          BatchCase{{0, 333}, {0, 500}}};
}
Case ragged() { return {kGrouped, BatchCase{{0, 5, 5, 130, 131, 300}, {0, 7, 20, 150, 340, 344}}}; }
Case shared() { return {kPlain, BatchCase{{0, 50, 150, 220}, {0, 133}}}; }
Case ragged_self() { return {kPlain, BatchCase{{0, 1, 1, 34, 147, 300}, {0, 1, 1, 34, 147, 300}}}; }

// ---- Threads --------------------------------------------------------------------------------

TEST(MultiHeadGradientBits, AreThoseOfOneThread) {
  for (const AnyMask& mask : {everything(), AnyMask(attn::causal()), AnyMask(attn::window(9, 7))}) {
    for (Case x : {self(), ragged_self()}) {
      const auto serial = attend<Inputs::one>(x, mask);
      for (const int workers : {1, 2, 3, 8}) {
        SCOPED_TRACE(testing::Message() << workers << " workers");
        expect_same_gradients(attend<Inputs::one>(x, mask, 0, workers), serial);
      }
    }
    for (Case x : {cross(), ragged(), shared()}) {
      const auto serial = attend<Inputs::three>(x, mask, 3);
      for (const int workers : {2, 3, 8}) {
        SCOPED_TRACE(testing::Message() << workers << " workers");
        expect_same_gradients(attend<Inputs::three>(x, mask, 3, workers), serial);
      }
    }
  }
}
// Weights that fall into several blocks, which workers share.
TEST(MultiHeadGradientBits, OfWideLayersAreThoseOfOneThread) {
  for (const MultiHeadOptions& shape :
       {MultiHeadOptions(150, 3).key_features(70).output_features(33).biases(),
        MultiHeadOptions(530, 2).kv_heads(1).key_dim(40).value_dim(20).biases()}) {
    Case x(shape, BatchCase{{0, 30}, {0, 100}});
    const auto serial = attend<Inputs::three>(x, everything());
    expect_gradients(serial, expected_gradient(x, Inputs::three, x.reference()), Inputs::three);
    auto twice = serial;
    support::for_each_weight(twice.weights, serial.weights,
                             [](const char*, auto& to, const auto& more) { to += more; });
    for (const int workers : {1, 2, 3, 8}) {
      auto g = attend<Inputs::three>(x, everything(), 0, workers);
      expect_same_gradients(g, serial);
      support::Threads pool;
      g.backward<Inputs::three>(x.mha, x,
                                attn::options(everything(), attn::query_offset(0),
                                              attn::on(pool, workers), attn::accumulate()));
      expect_same_weights(g.weights, twice.weights);
    }
  }
}
TEST(MultiHeadGradientBits, AreThoseOfOneThreadOfOpenMP) {
  Case x = ragged_self();
  const auto serial = trained_layer<Inputs::one>(x, attn::options());
  for (const int threads : {1, 2, 3, 8})
    expect_same_gradients(trained_layer<Inputs::one>(x, attn::parallel(threads)), serial);
}
TEST(MultiHeadGradientBits, AreThoseOfOneThreadOverManySequences) {
  std::vector<Index> offsets = {0};
  for (int b = 0; b < 150; ++b) offsets.push_back(offsets.back() + 1 + b % 11);
  Case x(MultiHeadOptions(16, 2).biases(), BatchCase{offsets, offsets});
  const auto serial = attend<Inputs::one>(x, AnyMask(attn::causal()));
  for (const int workers : {2, 5, 8})
    expect_same_gradients(attend<Inputs::one>(x, AnyMask(attn::causal()), 0, workers), serial);
}

// ---- Inputs: other rows, sequences ------------------------------------------------------------

TEST(MultiHeadGradientBits, OfABatchAreThoseOfItsSequencesAlone) {
  for (const AnyMask& mask : {everything(), AnyMask(attn::causal())}) {
    Case many = ragged();
    const auto of_many = attend<Inputs::three>(many, mask, 2);
    for (Index b = 0; b < many.sequences(); ++b) {
      SCOPED_TRACE(testing::Message() << "sequence " << b);
      Case alone = sequence_of(many, b);
      const auto one = attend<Inputs::three>(alone, mask, 2);
      const Index query = many.queries[at(b)], queries = many.query_length(b),
                  key = many.keys[at(b)], keys = many.key_length(b);
      EXPECT_TRUE(same_bits(one.Y, of_many.Y.middleRows(query, queries)));
      EXPECT_TRUE(same_bits(one.query, of_many.query.middleRows(query, queries)));
      EXPECT_TRUE(same_bits(one.key, of_many.key.middleRows(key, keys)));
      EXPECT_TRUE(same_bits(one.value, of_many.value.middleRows(key, keys)));
    }
    Case x = ragged_self();
    const auto all = attend<Inputs::one>(x, mask);
    for (Index b = 0; b < x.sequences(); ++b) {
      Case alone = sequence_of(x, b);
      EXPECT_TRUE(same_bits(attend<Inputs::one>(alone, mask).query,
                            all.query.middleRows(x.queries[at(b)], x.query_length(b))))
          << "sequence " << b;
    }
  }
}
TEST(MultiHeadGradientBits, OfAQueryAreThoseItHasAlone) {
  Case x = cross();
  const auto all = attend<Inputs::three>(x, everything());
  for (const auto& [begin, rows] : {std::pair<Index, Index>{0, 1},
                                    {95, 1},
                                    {96, 1},
                                    {332, 1},
                                    {9, 5},
                                    {9, 13},
                                    {90, 97},
                                    {107, 193}}) {
    Case some = rows_of(x, begin, rows, 0, x.Xk.rows());
    EXPECT_TRUE(same_bits(attend<Inputs::three>(some, everything()).query,
                          all.query.middleRows(begin, rows)))
        << rows << " rows from " << begin;
  }
}
TEST(MultiHeadGradientBits, OfCausalQueriesAreThoseOfThePrefix) {
  Case x = cross();
  const AnyMask causal(attn::causal());
  const auto all = attend<Inputs::three>(x, causal);
  for (const Index rows : {1, 12, 13, 95, 96, 97, 193, 332}) {
    Case prefix = rows_of(x, 0, rows, 0, x.Xk.rows());
    EXPECT_TRUE(same_bits(attend<Inputs::three>(prefix, causal).query, all.query.topRows(rows)))
        << rows << " rows";
  }
}

/// `all`, in the rows of the keys that are there, and zeros behind.
void expect_cut(const Matrix& padded, const Matrix& cut) {
  EXPECT_TRUE(same_bits(padded.topRows(cut.rows()), cut));
  EXPECT_EQ(padded.bottomRows(padded.rows() - cut.rows()).cwiseAbs().sum(), 0);
}
TEST(MultiHeadGradientBits, OfPaddedKeysAreThoseOfTrimmedOnes) {
  Case x = cross();
  for (const Index length : {0, 1, 15, 16, 17, 96, 255, 256, 257, 499}) {
    SCOPED_TRACE(testing::Message() << "length " << length);
    Case cut = rows_of(x, 0, x.Xq.rows(), 0, length);
    const auto padded = attend<Inputs::three>(x, AnyMask(attn::key_lengths(length))),
               trimmed = attend<Inputs::three>(cut, everything());
    EXPECT_TRUE(same_bits(padded.query, trimmed.query));
    expect_cut(padded.key, trimmed.key);
    expect_cut(padded.value, trimmed.value);
    // The chain of sums over tokens goes on with zeros.
    expect_same_weights(padded.weights, trimmed.weights);
  }
}
// A batch padded to one length, whose padding has no part in the loss, against the same without it:
// the sums over tokens run over other runs, the rows are the same.
TEST(MultiHeadGradientBits, OfAPaddedBatchAreThoseOfARaggedOne) {
  const std::vector<Index> lengths = {37, 1, 50, 20};
  const Index longest = 50, count = Index(lengths.size());
  std::vector<Index> offsets = {0}, padded_offsets = {0};
  for (const Index length : lengths) {
    offsets.push_back(offsets.back() + length);
    padded_offsets.push_back(padded_offsets.back() + longest);
  }
  Case ragged(kPlain, BatchCase{offsets, offsets});
  Case padded(kPlain, BatchCase{padded_offsets, padded_offsets});
  padded.dY.setZero();
  for (Index b = 0; b < count; ++b) {
    const Index rows = lengths[at(b)];
    padded.Xq.middleRows(b * longest, rows) = ragged.Xq.middleRows(offsets[at(b)], rows);
    padded.dY.middleRows(b * longest, rows) = ragged.dY.middleRows(offsets[at(b)], rows);
  }
  const auto of_padded = attend<Inputs::one>(padded, AnyMask(attn::key_lengths(lengths))),
             of_ragged = attend<Inputs::one>(ragged, everything());
  for (Index b = 0; b < count; ++b) {
    const Index rows = lengths[at(b)];
    EXPECT_TRUE(same_bits(of_padded.query.middleRows(b * longest, rows),
                          of_ragged.query.middleRows(offsets[at(b)], rows)))
        << "sequence " << b;
    EXPECT_EQ(of_padded.query.middleRows(b * longest + rows, longest - rows).cwiseAbs().sum(), 0);
  }
  support::for_each_weight(of_padded.weights, of_ragged.weights,
                           [](const char* name, const auto& a, const auto& b) {
                             EXPECT_TRUE(near(a, b, 2e-5)) << name;
                           });
}
TEST(MultiHeadGradientBits, OfAMaskAreThoseOfTheSameMaskAsAMatrix) {
  Case x(kGrouped, 200);
  const auto expect_same = [&](const AnyMask& mask, bool (*visible)(Index, Index)) {
    support::Bools keep(200, 200);
    for (Index i = 0; i < 200; ++i)
      for (Index j = 0; j < 200; ++j) keep(i, j) = visible(i, j);
    expect_same_gradients(attend<Inputs::one>(x, mask),
                          attend<Inputs::one>(x, AnyMask(attn::keep(keep))));
  };
  expect_same(everything(), [](Index, Index) { return true; });
  expect_same(AnyMask(attn::causal()), [](Index i, Index j) { return j <= i; });
  expect_same(AnyMask(attn::window(40, 3)),
              [](Index i, Index j) { return i - 40 <= j && j <= i + 3; });
  expect_same(AnyMask(attn::causal() && attn::window(5, 0)),
              [](Index i, Index j) { return i - 5 <= j && j <= i; });
}

// ---- Weights: sums over tokens ------------------------------------------------------------------

// Runs of 96 tokens from the first row of all sequences together, their sums one after the other:
// of sequences of 96 tokens each, the sum of the sequences' gradients in their order.
TEST(MultiHeadGradientBits, OfWeightsAreTheSumsOfRunsOf96TokensInTheirOrder) {
  const std::vector<Index> offsets = {0, 96, 192, 288, 337};
  for (const auto& shape : {kPlain, kGrouped}) {
    Case x(shape, BatchCase{offsets, offsets});
    const auto all = attend<Inputs::one>(x, AnyMask(attn::causal()), 0, 3);
    attn::MultiHeadGradients<float> sum(shape);
    for (Index b = 0; b < x.sequences(); ++b) {
      Case alone = sequence_of(x, b);
      const auto one = attend<Inputs::one>(alone, AnyMask(attn::causal()));
      support::for_each_weight(sum, one.weights, [&](const char*, auto& to, const auto& of_one) {
        if (b == 0) {
          to = of_one;
        } else {
          to += of_one;
        }
      });
    }
    expect_same_weights(all.weights, sum);
  }
}
// The bias of the output has the plainest one: the columns of dY, which no product comes between.
TEST(MultiHeadGradientBits, OfTheOutputBiasAreAChainOfSumsOverTokens) {
  for (const Index rows : {1, 2, 13, 95, 96, 97, 191, 192, 193, 400}) {
    Case x(MultiHeadOptions(40, 2).biases(), rows);
    Eigen::RowVectorXf sum = Eigen::RowVectorXf::Zero(40);
    for (Index first = 0; first < rows; first += 96) {
      Eigen::RowVectorXf run = Eigen::RowVectorXf::Zero(40);
      for (Index i = first; i < std::min(first + 96, rows); ++i) run += x.dY.row(i);
      sum = first == 0 ? run : sum + run;
    }
    EXPECT_TRUE(same_bits(attend<Inputs::one>(x, everything()).weights.output_bias, sum)) << rows;
  }
}
TEST(MultiHeadGradientBits, OfWeightsAddedUpAreRoundedOnce) {
  Case x = ragged();
  auto g = attend<Inputs::three>(x, everything());
  auto sum = g;
  support::Threads pool;
  const auto call =
      attn::options(everything(), attn::query_offset(0), attn::on(pool, 3), attn::accumulate());
  for (int step = 0; step < 2; ++step) {  // twice what is there, then three times
    auto expected = sum;
    support::for_each_weight(expected.weights, g.weights,
                             [](const char*, auto& to, const auto& more) { to += more; });
    expected.query += g.query, expected.key += g.key, expected.value += g.value;
    sum.backward<Inputs::three>(x.mha, x, call);
    expect_same_gradients(sum, expected);
  }
}

// ---- Layouts --------------------------------------------------------------------------------

TEST(MultiHeadGradientBits, DoNotDependOnTheStorageOrder) {
  Case x = cross();
  const auto expected = trained_layer<Inputs::three>(x, attn::options());
  const Eigen::MatrixXf Xq = x.Xq, Xk = x.Xk, Xv = x.Xv, dY = x.dY;
  Eigen::MatrixXf Y, dXq, dXk, dXv;
  attn::MultiHeadState<float> state;
  attn::MultiHeadGradients<float> g(x.mha.options());
  x.mha(Xq, Xk, Xv, attn::into(Y), attn::save_state(state));
  x.mha.backward(Xq, Xk, Xv, dY, state, attn::dweights(g), attn::dquery(dXq), attn::dkey(dXk),
                 attn::dvalue(dXv));
  EXPECT_TRUE(same_bits(Y, expected.Y));
  EXPECT_TRUE(same_bits(dXq, expected.query));
  EXPECT_TRUE(same_bits(dXk, expected.key));
  EXPECT_TRUE(same_bits(dXv, expected.value));
  expect_same_weights(g, expected.weights);
}
TEST(MultiHeadGradientBits, DoNotDependOnFixedSizes) {
  Case x(MultiHeadOptions(24, 4), 20);
  const auto expected = trained_layer<Inputs::one>(x, attn::options());
  attn::MultiHeadAttention<float, 24, 4> fixed;
  const auto w = x.mha.weights();
  fixed.edit([&](auto& to) {
    to.query = w.query, to.key = w.key, to.value = w.value, to.output = w.output;
  });
  const Eigen::Matrix<float, 20, 24> X = x.Xq, dY = x.dY;
  Eigen::Matrix<float, 20, 24> Y, dX;
  attn::MultiHeadState<float> state;
  attn::MultiHeadGradients<float, 24, 4> g(fixed.options());
  fixed(X, attn::into(Y), attn::save_state(state));
  fixed.backward(X, dY, state, attn::dweights(g), attn::dquery(dX));
  EXPECT_TRUE(same_bits(Y, expected.Y));
  EXPECT_TRUE(same_bits(dX, expected.query));
  expect_same_weights(g, expected.weights);
}

// ---- What else the call is asked for, and its memory --------------------------------------------

TEST(MultiHeadGradientBits, OfTheOutputDoNotChangeWhereTheStateIsSaved) {
  for (Case x : {self(), ragged_self(), Case(kPlain, 1), Case(kPlain, 3)}) {
    Matrix Y;
    x.mha(x.Xq, attn::into(Y), attn::sequences(x.queries, x.keys));
    EXPECT_TRUE(same_bits(trained_layer<Inputs::one>(x, attn::options()).Y, Y));
  }
}
TEST(MultiHeadGradientBits, AskedApartAreThoseAskedTogether) {
  for (Case x : {cross(), ragged()}) {
    Training g = trained_layer<Inputs::three>(x, attn::options()), apart = g;
    for (Matrix* m : {&apart.query, &apart.key, &apart.value}) m->setConstant(7);
    support::for_each_weight(apart.weights, g.weights,
                             [](const char*, auto& of, const auto&) { of.setConstant(7); });
    const auto ask = [&](const auto& gradient) {
      x.mha.backward(x.Xq, x.Xk, x.Xv, x.dY, g.state, attn::sequences(x.queries, x.keys), gradient);
    };
    ask(attn::dweights(apart.weights));
    ask(attn::dquery(apart.query));
    ask(attn::dkey(apart.key));
    ask(attn::dvalue(apart.value));
    expect_same_gradients(apart, g);
  }
}
// A state, gradients and a workspace that served other calls before.
TEST(MultiHeadGradientBits, DoNotDependOnWhatCameBefore) {
  // Of odd widths, so that panels have padding that a call must fill.
  const auto odd = MultiHeadOptions(21, 3).kv_heads(1).key_dim(5).value_dim(7).output_features(19);
  Case x(odd, BatchCase{{0, 5, 5, 130}, {0, 7, 20, 150}}), larger(odd, 500), smaller(odd, 3);
  const auto expected = trained_layer<Inputs::three>(x, attn::options());
  attn::Workspace<float> workspace;
  for (Case* before : {&larger, &smaller}) {
    for (const float stale : {std::numeric_limits<float>::quiet_NaN(), 1e30f}) {
      auto g = trained_layer<Inputs::three>(*before, attn::options());
      std::fill_n(workspace.reserve(300000), 300000, stale);
      std::fill_n(workspace.reserve_rows(300000), 300000, stale);
      const auto& shared = x.mha;  // const: the workspace is all its scratch
      g.forward<Inputs::three>(shared, x, attn::use(workspace));
      g.backward<Inputs::three>(shared, x, attn::use(workspace));
      EXPECT_TRUE(same_bits(g.Y, expected.Y));
      expect_same_gradients(g, expected);
    }
  }
}
TEST(MultiHeadGradientBits, AreThoseOfACopyOfTheStateAndTheLayer) {
  Case x = ragged_self();
  const auto expected = trained_layer<Inputs::one>(x, attn::options());
  auto g = expected;
  g.query.setZero();
  auto layer = x.mha;
  x.mha.edit([](auto& w) { w.query.setZero(); });
  g.backward<Inputs::one>(layer, x, attn::options());
  expect_same_gradients(g, expected);
  attn::MultiHeadState<float> moved = std::move(g.state);
  g.state = std::move(moved);
  g.backward<Inputs::one>(layer, x, attn::options());
  expect_same_gradients(g, expected);
}

}  // namespace
