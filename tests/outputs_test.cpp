// tests/outputs_test.cpp: the outputs of one call are of their size, apart from one another and from what it reads, and written in
// one piece.
// build: -Og
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/error_of.h"
#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/random_layer.h"

namespace {

using Eigen::Index;
using Matrix = Eigen::MatrixXf;
using support::error_of;
using support::numbers;
using support::same_bits;

constexpr int kOutputs = 6;
const char* const kNames[kOutputs] = {"output",  "logsumexp", "max_logit",
                                      "entropy", "weights",   "scores"};

/// What a call writes, each to the matrix of its number.
struct Targets {
  Matrix* matrix[kOutputs];
};

/// call(attend): attend(options…) is the call with all outputs. Any two of them in one matrix are refused: one that has no memory
/// yet, one that fits both or neither, and nothing is written.
template <class Call>
void expect_every_pair_apart(const std::string& function, const Call& call) {
  for (const Matrix& before : {Matrix(), numbers(4, 2, 1), numbers(4, 40, 2)}) {
    for (int first = 0; first < kOutputs; ++first) {
      for (int second = first + 1; second < kOutputs; ++second) {
        Matrix own[kOutputs];
        Matrix shared = before;
        Targets to;
        for (int n = 0; n < kOutputs; ++n) to.matrix[n] = &own[n];
        to.matrix[first] = to.matrix[second] = &shared;
        EXPECT_EQ(error_of([&] { call(to); }), function + ": " + kNames[second] + " overlaps " +
                                                   kNames[first] + "; write to memory of its own");
        EXPECT_TRUE(shared.size() == before.size() && same_bits(shared, before));
        for (int n = 0; n < kOutputs; ++n) {
          if (n != first && n != second) {
            EXPECT_EQ(own[n].size(), 0) << kNames[n];
          }
        }
      }
    }
  }
}

template <class F>
auto with_all(const Targets& to, const F& f) {
  return f(attn::into(*to.matrix[0]), attn::save_logsumexp(*to.matrix[1]),
           attn::save_max_logit(*to.matrix[2]), attn::save_entropy(*to.matrix[3]),
           attn::save_weights(*to.matrix[4]),
           attn::save_scores(*to.matrix[5], attn::stage::masked));
}

// Four query rows of one head with two features: all outputs have four rows, and Y and l may have one shape with d_v = 1.
TEST(Outputs, OfAttentionAreApart) {
  const Matrix Q = numbers(4, 2, 1), K = numbers(40, 2, 2);
  attn::ScaledDotProductAttention<float> sdpa;
  for (const Matrix& V : {numbers(40, 2, 3), numbers(40, 1, 3), numbers(40, 40, 3)}) {
    expect_every_pair_apart("attn::attention", [&](const Targets& to) {
      with_all(to, [&](auto&&... outputs) { attn::attention(Q, K, V, outputs...); });
    });
    expect_every_pair_apart("attn::ScaledDotProductAttention", [&](const Targets& to) {
      with_all(to, [&](auto&&... outputs) { sdpa(Q, K, V, outputs...); });
    });
  }
}

TEST(Outputs, OfNothingAreApartAsWell) {
  const Matrix Q(0, 2), K = numbers(3, 2, 2);
  Matrix Y;
  EXPECT_EQ(error_of([&] { attn::attention(Q, K, K, attn::into(Y), attn::save_logsumexp(Y)); }),
            "attn::attention: logsumexp overlaps output; write to memory of its own");
  Matrix none(4, 0);
  const Matrix Q4 = numbers(4, 2, 1), V(3, 0);
  EXPECT_EQ(error_of([&] {
              attn::attention(Q4, K, V, attn::into(attn::heads(none, 1)),
                              attn::save_logsumexp(none));
            }),
            "attn::attention: logsumexp overlaps output; write to memory of its own");
  EXPECT_EQ(none.cols(), 0);
}

TEST(Outputs, OfACacheAreApart) {
  attn::KeyValueCache<float> cache(attn::KeyValueCacheOptions(40, 1, 2));
  cache.append(numbers(40, 2, 1), numbers(40, 2, 2));
  const Matrix Q = numbers(4, 2, 3);
  expect_every_pair_apart("attn::attention", [&](const Targets& to) {
    with_all(to, [&](auto&&... outputs) { attn::attention(Q, cache, outputs...); });
  });
}

TEST(Outputs, OfALayerAreApart) {
  auto mha = support::random_layer<float>(attn::MultiHeadOptions(2, 1));
  const Matrix X = numbers(4, 2, 1), keys = numbers(40, 2, 2);
  expect_every_pair_apart("attn::MultiHeadAttention", [&](const Targets& to) {
    with_all(to, [&](auto&&... outputs) { mha(X, keys, outputs...); });
  });
  attn::KeyValueCache<float> cache(attn::KeyValueCacheOptions(40, 1, 2));
  cache.append(numbers(36, 2, 1), numbers(36, 2, 2));
  expect_every_pair_apart("attn::MultiHeadAttention::decode", [&](const Targets& to) {
    with_all(to, [&](auto&&... outputs) { mha.decode(X, cache, outputs...); });
    EXPECT_EQ(cache.length(), 36);
  });
  EXPECT_EQ(cache.length(), 36);
}

// ---- merge ----------------------------------------------------------------------------------

struct Parts {
  Matrix Oa = numbers(7, 6, 1), Ob = numbers(7, 6, 2), la = numbers(7, 2, 3), lb = numbers(7, 2, 4);
};

TEST(Outputs, OfMergeAreApart) {
  const Parts in;
  Matrix both, row = numbers(7, 2, 5);
  const std::string message = "attn::merge: logsumexp overlaps output; write to memory of its own";
  EXPECT_EQ(error_of([&] {
              attn::merge(in.Oa, in.la, in.Ob, in.lb, attn::into(both), attn::save_logsumexp(both));
            }),
            message);
  EXPECT_EQ(both.size(), 0);
  const Matrix before = row;
  EXPECT_EQ(error_of([&] {
              attn::merge(in.la, in.la, in.lb, in.lb, attn::into(row), attn::save_logsumexp(row));
            }),
            message);
  EXPECT_TRUE(same_bits(row, before));
}

// Expressions that read what is written have no memory that a check could compare: they are evaluated first.
TEST(Outputs, OfMergeMayBeReadByItsExpressions) {
  const Parts in;
  const auto expect_right = [&](const auto& merge_into) {
    for (const bool sized : {true, false}) {
      Matrix O = in.Oa, l = in.la, expected_l;
      const Matrix a = O.reverse(), l_a = l.reverse();
      const Matrix expected = attn::merge(a, l_a, in.Ob, in.lb, attn::save_logsumexp(expected_l));
      Matrix other_O, other_l;
      merge_into(O, l, sized ? O : other_O, sized ? l : other_l);
      EXPECT_TRUE(same_bits(sized ? O : other_O, expected));
      EXPECT_TRUE(same_bits(sized ? l : other_l, expected_l));
    }
  };
  expect_right([&](const Matrix& O, const Matrix& l, Matrix& to, Matrix& to_l) {
    attn::merge(O.reverse(), l.reverse(), in.Ob, in.lb, attn::into(to), attn::save_logsumexp(to_l));
  });
  expect_right([&](const Matrix& O, const Matrix& l, Matrix& to, Matrix& to_l) {
    attn::merge(in.Ob, in.lb, O.reverse(), l.reverse(), attn::into(to), attn::save_logsumexp(to_l));
  });
  Matrix O = in.Oa;
  const Matrix expected = attn::merge(Matrix(O.rowwise().reverse() * 2), in.la, in.Ob, in.lb);
  attn::merge(O.rowwise().reverse() * 2, in.la, in.Ob, in.lb, attn::into(O));
  EXPECT_TRUE(same_bits(O, expected));
}

TEST(Outputs, OfMergeMayBeItsPartsElementByElement) {
  const Parts in;
  Matrix expected_l;
  const Matrix expected = attn::merge(in.Oa, in.la, in.Ob, in.lb, attn::save_logsumexp(expected_l));
  Parts x;
  attn::merge(x.Oa, x.la, x.Ob, x.lb, attn::into(x.Oa), attn::save_logsumexp(x.lb));
  EXPECT_TRUE(same_bits(x.Oa, expected));
  EXPECT_TRUE(same_bits(x.lb, expected_l));
  Parts y;
  EXPECT_NE(error_of([&] { attn::merge(y.Oa, y.la, y.Ob, y.lb, attn::into(y.la)); }),
            "nothing was refused");
  EXPECT_TRUE(same_bits(y.la, in.la));
}

// ---- What options read ----------------------------------------------------------------------

TEST(Outputs, AreApartFromGivenCosinesAndSines) {
  const Matrix X = numbers(9, 4, 1), C = numbers(9, 2, 2), S = numbers(9, 2, 3);
  const auto rotation = [](const Matrix& c, const Matrix& s) {
    return attn::rotary(attn::pairing::half_split, c, s);
  };
  Matrix c = C, s = S;
  EXPECT_EQ(error_of([&] { attn::attention(X, X, X, attn::into(c), rotation(c, s)); }),
            "attn::attention: output overlaps the cosines; write to memory of its own");
  EXPECT_EQ(error_of([&] { attn::rotate(X, rotation(c, s), attn::into(s)); }),
            "attn::rotate: output overlaps the sines; write to memory of its own");
  EXPECT_TRUE(same_bits(c, C) && same_bits(s, S));
}

TEST(Outputs, OfACacheAreApartFromWhatIsReadBehindAnAppend) {
  const attn::KeyValueCacheOptions options(40, 1, 4);
  std::vector<unsigned char> memory(attn::KeyValueCache<float>::bytes_needed(options));
  attn::KeyValueCache<float> cache(options, memory.data(), memory.size());
  auto mha = support::random_layer<float>(attn::MultiHeadOptions(4, 1));
  float* const inside =
      reinterpret_cast<float*>((reinterpret_cast<std::uintptr_t>(memory.data()) + 63) / 64 * 64);
  Eigen::Map<Matrix> in_cache(inside, 3, 4), table(inside, 3, 3), angles(inside, 3, 2);
  const Matrix X = numbers(3, 4, 1);
  Matrix Y;
  EXPECT_EQ(error_of([&] { mha.decode(X, cache, attn::residual(in_cache), attn::into(Y)); }),
            "attn::MultiHeadAttention::decode: the cache overlaps residual; write to memory of its "
            "own");
  EXPECT_EQ(
      error_of([&] { mha.decode(X, cache, attn::bias(table), attn::into(Y)); }),
      "attn::MultiHeadAttention::decode: the cache overlaps bias; write to memory of its own");
  EXPECT_EQ(error_of([&] { mha.decode(X, cache, attn::into(in_cache)); }),
            "attn::MultiHeadAttention::decode: output overlaps the cache; write to memory of its "
            "own");
  EXPECT_EQ(error_of([&] {
              cache.append(X, X, attn::rotary(attn::pairing::half_split, angles, angles));
            }),
            "attn::KeyValueCache::append: the cache overlaps the cosines; write to memory of its "
            "own");
  EXPECT_EQ(cache.length(), 0);
}

TEST(Outputs, OfLoadAndStoreAreApart) {
  const auto mha = support::random_layer<float>(attn::MultiHeadOptions(4, 2));
  attn::MultiHeadWeights<float> w = mha.weights();
  std::vector<float> in(48), out(16);
  attn::PyTorchView<float> view;
  view.in_proj_weight = in.data();
  view.out_proj_weight = w.output.data();
  EXPECT_EQ(error_of([&] { attn::load(w, view); }),
            "attn::load: a part of the layer overlaps a part of the view; write to memory of its "
            "own");
  EXPECT_EQ(error_of([&] { attn::store(w, view); }),
            "attn::store: a part of the view overlaps a part of the layer; write to memory of its "
            "own");
  view.out_proj_weight = in.data() + 40;
  EXPECT_EQ(error_of([&] { attn::store(w, view); }),
            "attn::store: a part of the view overlaps a part of the view; write to memory of its "
            "own");
  EXPECT_TRUE(same_bits(w.output, mha.weights().output));
  EXPECT_EQ(in, std::vector<float>(48));
  view.out_proj_weight = out.data();
  attn::store(w, view);
  attn::load(w, view);
  EXPECT_TRUE(same_bits(w.query, mha.weights().query));
}

// ---- What is saved ----------------------------------------------------------------------------

/// A call whose saved outputs are refused.
class SavedOutputs : public ::testing::Test {
 protected:
  Matrix Q = numbers(6, 4, 1), K = numbers(9, 4, 2), V = numbers(9, 4, 3), Y = Matrix::Zero(6, 4);
  float memory[64] = {};

  template <class... Options>
  std::string error(const Options&... options) {
    return error_of([&] {
      attn::attention(attn::heads(Q, 2), attn::heads(K, 2), attn::heads(V, 2), attn::into(Y),
                      options...);
    });
  }
};

TEST_F(SavedOutputs, RefuseShapesThatDoNotFit) {
  Eigen::Matrix2f fixed;
  EXPECT_EQ(error(attn::save_weights(fixed)), "attn::attention: weights is 2x2, needs 6x18");
  EXPECT_EQ(error(attn::save_weights(fixed, attn::average_heads())),
            "attn::attention: weights is 2x2, needs 6x9");
  EXPECT_EQ(error(attn::save_scores(fixed, attn::stage::scaled, attn::query_rows({1, 2, 5}))),
            "attn::attention: scores is 2x2, needs 3x18");
  EXPECT_EQ(error(attn::save_max_logit(fixed)), "attn::attention: max_logit is 2x2, needs 6x2");
  EXPECT_EQ(error(attn::save_entropy(fixed)), "attn::attention: entropy is 2x2, needs 6x2");
  EXPECT_EQ(error(attn::save_logsumexp(fixed)), "attn::attention: logsumexp is 2x2, needs 6x2");
  Matrix W(6, 17);
  EXPECT_EQ(
      error(attn::save_weights(attn::heads(W, 1))),
      "attn::attention: weights is 6x17 in 1 head, needs 6x18 (query rows x keys) in 2 heads");
  EXPECT_EQ(error(attn::save_weights(attn::bhld(memory, 1, 2, 6, 8))),
            "attn::attention: weights is a view of [1, 2, 6, 8], needs [1, 2, 6, 9] (sequences, "
            "heads, query rows, keys), sequences of equal length");
  EXPECT_EQ(error(attn::save_entropy(attn::bhld(memory, 1, 2, 6, 9))),
            "attn::attention: entropy is a view of [1, 2, 6, 9], needs [1, 2, 6, 1] (sequences, "
            "heads, query rows, one number), sequences of equal length");
}

TEST_F(SavedOutputs, RefuseRowsThatAreNotThereOrOutOfOrder) {
  Matrix W;
  EXPECT_EQ(error(attn::save_weights(W, attn::query_rows({0, 6}))),
            "attn::attention: query_rows: entry 1 is 6, the call has 6 query rows");
  EXPECT_EQ(error(attn::save_weights(W, attn::query_rows({-1}))),
            "attn::attention: query_rows: entry 0 is -1, the call has 6 query rows");
  EXPECT_EQ(error(attn::save_weights(W, attn::query_rows({0, 4, 4}))),
            "attn::attention: query_rows: entry 2 is 4, needs more than the 4 before it");
  EXPECT_EQ(W.size(), 0);
}

TEST_F(SavedOutputs, RefuseOutputsThatOverlap) {
  Matrix large = numbers(6, 64, 4);
  const Matrix before = large;
  EXPECT_EQ(
      error(attn::save_weights(large.leftCols(18)), attn::save_entropy(large.middleCols(17, 2))),
      "attn::attention: weights overlaps entropy; write to memory of its own");
  EXPECT_EQ(error(attn::save_scores(large.leftCols(18), attn::stage::masked),
                  attn::save_weights(large.middleCols(17, 18))),
            "attn::attention: scores overlaps weights; write to memory of its own");
  EXPECT_EQ(
      error(attn::save_max_logit(large.leftCols(2)), attn::save_logsumexp(large.middleCols(1, 2))),
      "attn::attention: max_logit overlaps logsumexp; write to memory of its own");
  EXPECT_EQ(error(attn::save_entropy(Y.leftCols(2))),
            "attn::attention: entropy overlaps output; write to memory of its own");
  EXPECT_EQ(error(attn::save_max_logit(Q.leftCols(2))),
            "attn::attention: max_logit overlaps query; write to memory of its own");
  EXPECT_EQ(error(attn::save_weights(large.leftCols(18)), attn::bias(large.middleCols(9, 9))),
            "attn::attention: weights overlaps bias; write to memory of its own");
  EXPECT_TRUE(same_bits(large, before));
  EXPECT_TRUE(Y.isZero(0));
}

}  // namespace
