// tests/dropout_call_test.cpp: attention with dropout(): the pairs that keeps() names, whatever the tiling, and no others.
// build: -Og
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <unsupported/Eigen/AutoDiff>
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "support/batch_case.h"
#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/random_layer.h"
#include "support/scalar_names.h"
#include "support/special_values.h"
#include "support/threads.h"

namespace {

using attn::At;
using attn::dropout;
using attn::keeps;
using Eigen::Index;
using support::kInfinity;
using support::kNaN;
using support::near;
using support::same_bits;
using support::uniform;
using Case = support::BatchCase;

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {{0, 1}, {0, 300}, 3, 3},                         // few rows
      {{0, 2}, {0, 77}, 2, 1},                          // … that share keys
      {{0, 40}, {0, 600}, 1, 1, 0.5},                   // several blocks, hidden pairs
      {{0, 30, 30, 37}, {0, 70, 101, 117}, 4, 2, 0.8},  // ragged, grouped heads
      {{0, 1030}, {0, 33}, 1, 1},                       // more rows than a chunk
      {{0, 9, 20}, {0, 50}, 2, 2},                      // keys that serve both sequences
      {{0, 3, 5}, {0, 0, 20}, 1, 1},                    // no keys
  };
  return all;
}

/// Everything that one call writes.
template <class Scalar>
struct Results {
  support::DynamicMatrix<Scalar> Y, l, e, W;
};
template <class Scalar>
struct Call {
  Case c;
  Index offset = 0;
  int workers = 1;
  Index first_key = 0;  ///< those before are hidden
  support::DynamicMatrix<Scalar> Q, K, V;
  support::DynamicMatrix<bool> M;

  explicit Call(const Case& of)
      : c(of),
        Q(uniform<Scalar>(of.queries.back(), of.heads * 5, 1)),
        K(uniform<Scalar>(of.keys.back(), of.kv_heads * 5, 2)),
        V(uniform<Scalar>(of.keys.back(), of.kv_heads * 3, 3)),
        M(support::random_bools(of.queries.back(), of.heads * of.longest_key(), 5, of.visible)) {}

  template <class... Options>
  Results<Scalar> operator()(const Options&... options) const {
    Results<Scalar> r;
    std::vector<Index> first(std::size_t(c.sequences())), end = first;
    for (Index b = 0; b < c.sequences(); ++b) {
      end[std::size_t(b)] = c.key_length(b);
      first[std::size_t(b)] = std::min(first_key, c.key_length(b));
    }
    support::Threads pool;
    attn::attention(attn::heads(Q, c.heads), attn::heads(K, c.kv_heads), attn::heads(V, c.kv_heads),
                    attn::into(r.Y), attn::sequences(c.queries, c.keys),
                    attn::keep(attn::heads(M, c.heads)) && attn::key_range(first, end),
                    attn::query_offset(offset), attn::save_logsumexp(r.l), attn::save_entropy(r.e),
                    attn::save_weights(r.W), attn::on(pool, workers), options...);
    return r;
  }
  bool visible(Index b, Index h, Index i, Index j) const {
    return j >= first_key && M(c.queries[std::size_t(b)] + i, h * c.longest_key() + j);
  }
  /// f(sequence, head, query row, key) of every pair.
  template <class F>
  void each_pair(const F& f) const {
    for (Index b = 0; b < c.sequences(); ++b) {
      for (Index h = 0; h < c.heads; ++h) {
        for (Index i = 0; i < c.query_length(b); ++i) {
          for (Index j = 0; j < c.key_length(b); ++j) f(b, h, i, j);
        }
      }
    }
  }
};

template <class Scalar>
class DropoutCall : public testing::Test {};
using Scalars = testing::Types<float, double, long double>;
TYPED_TEST_SUITE(DropoutCall, Scalars, support::ScalarNames);

// Values that are rows of the identity (some columns of it at a time, so that blocks of keys are long) show the weights as
// they meet the values.
TYPED_TEST(DropoutCall, LeavesThePairsThatKeepsNames) {
  constexpr Index kColumns = 64;
  const auto drop = dropout(0.3, 11, 4);
  const auto epsilon = static_cast<long double>(std::numeric_limits<TypeParam>::epsilon());
  for (const Case& c : cases()) {
    SCOPED_TRACE(std::to_string(c.queries.back()) + " queries, " + std::to_string(c.keys.back()) +
                 " keys");
    Call<TypeParam> call(c);
    call.offset = c.queries.back() == 1 ? 100 : 0;
    call.first_key = c.keys.back() == 600 ? 272 : c.keys.back() == 77 ? 16 : 0;
    for (Index first = 0; first < c.longest_key(); first += kColumns) {
      call.V.setZero(c.keys.back(), c.kv_heads * kColumns);
      for (Index b = 0; b + 1 < Index(c.keys.size()); ++b) {
        for (Index h = 0; h < c.kv_heads; ++h) {
          for (Index j = first; j < std::min(first + kColumns, c.key_length(b)); ++j)
            call.V(c.keys[std::size_t(b)] + j, h * kColumns + j - first) = 1;
        }
      }
      const auto r = call(drop);
      long double worst = 0;
      int wrong = 0;
      call.each_pair([&](Index b, Index h, Index i, Index j) {
        if (j < first || j >= first + kColumns) return;
        const Index token = c.queries[std::size_t(b)] + i;
        const auto y = static_cast<long double>(r.Y(token, h * kColumns + j - first)),
                   w = static_cast<long double>(r.W(token, h * c.longest_key() + j));
        const bool stays = keeps(drop, {b, h, i + call.offset, j}) && call.visible(b, h, i, j);
        wrong += stays == (y == 0) ? 1 : 0;
        const long double expected = stays ? w * 65536 / (65536 - drop.dropped) : 0;
        worst = std::max(worst, std::abs(y - expected) / (w + 1));
      });
      EXPECT_EQ(wrong, 0);
      EXPECT_LT(worst, 8 * epsilon);
    }
  }
}

template <class Scalar>
class DropoutBits : public testing::Test {};
using Widths = testing::Types<float, double>;
TYPED_TEST_SUITE(DropoutBits, Widths, support::ScalarNames);

TYPED_TEST(DropoutBits, WhatIsSavedIsAsWithout) {
  for (const Case& c : cases()) {
    const Call<TypeParam> call(c);
    const auto dropped = call(dropout(0.5, 3)), none = call(dropout(0, 3)), without = call();
    EXPECT_TRUE(same_bits(dropped.l, without.l));
    EXPECT_TRUE(same_bits(dropped.e, without.e));
    EXPECT_TRUE(same_bits(dropped.W, without.W));
    EXPECT_TRUE(same_bits(none.Y, without.Y));
  }
}

TYPED_TEST(DropoutBits, DependNeitherOnThreadsNorOnTheBatch) {
  const auto drop = dropout(0.2, 5, 6);
  for (const Case& c : cases()) {
    Call<TypeParam> call(c);
    const auto one = call(drop);
    for (const int workers : {2, 3, 5}) {
      call.workers = workers;
      EXPECT_TRUE(same_bits(call(drop).Y, one.Y));
    }
    // Each row alone, at its position; of the first sequence, since the number of a sequence is part of a pair's name.
    const Index rows = std::min<Index>(c.query_length(0), 20), keys = c.key_length(0);
    for (Index i = 0; i < rows; ++i) {
      Call<TypeParam> alone({{0, 1}, {0, keys}, c.heads, c.kv_heads});
      alone.Q = call.Q.row(i);
      alone.K = call.K.topRows(keys);
      alone.V = call.V.topRows(keys);
      for (Index h = 0; h < c.heads; ++h)
        alone.M.middleCols(h * keys, keys) = call.M.block(i, h * c.longest_key(), 1, keys);
      alone.offset = i;
      EXPECT_TRUE(same_bits(alone(drop).Y, one.Y.row(i)));
    }
  }
}

// No mask: few rows could be attended in place, and strips see blocks whole.
template <class Q, class K, class V>
auto drop_all(const Q& q, const K& k, const V& v, const attn::detail::Dropout& drop) {
  support::DynamicMatrix<typename Q::Scalar> Y;
  attn::attention(q, k, v, attn::into(Y), drop);
  return Y;
}

TYPED_TEST(DropoutBits, DependNeitherOnTheLayoutNorOnFixedSizes) {
  const auto drop = dropout(0.2, 5, 6);
  const auto Q = uniform<TypeParam>(12, 8, 1), K = uniform<TypeParam>(40, 8, 2),
             V = uniform<TypeParam>(40, 6, 3);
  const auto Y = drop_all(Q, K, V, drop);
  const support::DynamicMatrix<TypeParam, Eigen::ColMajor> by_columns_Q = Q, by_columns_K = K,
                                                           by_columns_V = V;
  EXPECT_TRUE(same_bits(drop_all(by_columns_Q, by_columns_K, by_columns_V, drop), Y));
  const Eigen::Matrix<TypeParam, 12, 8> fixed_Q = Q;
  const Eigen::Matrix<TypeParam, 40, 8> fixed_K = K;
  const Eigen::Matrix<TypeParam, 40, 6> fixed_V = V;
  EXPECT_TRUE(same_bits(drop_all(fixed_Q, fixed_K, fixed_V, drop), Y));
  for (Index rows : {1, 2, 4, 5}) {
    const support::DynamicMatrix<TypeParam> few = Q.topRows(rows);
    EXPECT_TRUE(same_bits(drop_all(few, K, V, drop), Y.topRows(rows)));
  }
}

TYPED_TEST(DropoutBits, PartsOfTheKeysDropTheSamePairs) {
  const Call<TypeParam> call({{0, 3, 40}, {0, 600, 1100}, 2, 1});
  const auto drop = dropout(0.4, 5, 6);
  const auto whole = call(drop);
  auto in_parts = call;
  for (const int workers : {1, 3}) {
    in_parts.workers = workers;
    EXPECT_TRUE(near(in_parts(drop, attn::split_keys(200)).Y, whole.Y,
                     16 * std::numeric_limits<TypeParam>::epsilon()));
  }
}

// A dropped pair contributes nothing whatever its value holds; the rows that keep it show it.
TYPED_TEST(DropoutBits, NothingOfADroppedValueShows) {
  const auto drop = dropout(0.5, 21);
  for (const Index rows : {1, 3, 40}) {
    for (const Index keys : {20, 300}) {
      const auto Q = uniform<TypeParam>(rows, 8, 1), K = uniform<TypeParam>(keys, 8, 2),
                 V = uniform<TypeParam>(keys, 35, 3);
      const auto plain = drop_all(Q, K, V, drop);
      for (const Index key : {Index(0), Index(7), keys - 1}) {
        for (const TypeParam bad : {kNaN<TypeParam>, kInfinity<TypeParam>, -kInfinity<TypeParam>}) {
          auto broken = V;
          broken(key, 0) = broken(key, 34) = bad;
          const auto Y = drop_all(Q, K, broken, drop);
          for (Index i = 0; i < rows; ++i) {
            const bool shows = keeps(drop, {0, 0, i, key});
            EXPECT_EQ(std::isfinite(Y(i, 0)), !shows);
            EXPECT_EQ(std::isfinite(Y(i, 34)), !shows);
            EXPECT_TRUE(same_bits(Y.row(i).segment(1, 33), plain.row(i).segment(1, 33)));
            if (!shows) {
              EXPECT_TRUE(same_bits(Y.row(i), plain.row(i)));
            }
          }
        }
      }
    }
  }
}
// … nor of a hidden one, dropped or not.
TYPED_TEST(DropoutBits, NothingOfAHiddenValueShows) {
  Call<TypeParam> call({{0, 13}, {0, 90}, 1, 1, 0.7});
  call.M.col(17).setConstant(false);
  call.M.row(4).setConstant(false);
  const auto drop = dropout(0.5, 21);
  const auto plain = call(drop).Y;
  EXPECT_TRUE((plain.row(4).array() == 0).all());
  call.V.row(17).setConstant(kNaN<TypeParam>);
  EXPECT_TRUE(same_bits(call(drop).Y, plain));
}

// A NaN among the scores is the row's, whether its pair is dropped or not: the sum of the weights is before dropout.
TYPED_TEST(DropoutBits, ANaNScoreShowsInItsRow) {
  const auto K = uniform<TypeParam>(40, 8, 2), V = uniform<TypeParam>(40, 3, 3);
  auto Q = uniform<TypeParam>(9, 8, 1);
  const auto plain = drop_all(Q, K, V, dropout(0.5, 1));
  Q(5, 2) = kNaN<TypeParam>;
  const auto Y = drop_all(Q, K, V, dropout(0.5, 1));
  for (Index i = 0; i < 9; ++i) {
    if (i == 5) {
      EXPECT_FALSE(std::isfinite(Y(i, 0)));
    } else {
      EXPECT_TRUE(same_bits(Y.row(i), plain.row(i)));
    }
  }
}

TEST(Dropout, TheMeanOverSeedsIsWithout) {
  constexpr int kSeeds = 4096;
  const Eigen::MatrixXf Q = support::numbers(3, 4, 1), K = support::numbers(5, 4, 2),
                        V = support::numbers(5, 2, 3);
  Eigen::MatrixXd sum = Eigen::MatrixXd::Zero(3, 2), squares = sum;
  for (int n = 0; n < kSeeds; ++n) {
    const Eigen::MatrixXd Y = drop_all(Q, K, V, dropout(0.25, 77, std::uint64_t(n))).cast<double>();
    sum += Y;
    squares += Y.cwiseAbs2();
  }
  const Eigen::MatrixXf expected = attn::attention(Q, K, V);
  for (Index i = 0; i < 3; ++i) {
    for (Index c = 0; c < 2; ++c) {
      const double mean = sum(i, c) / kSeeds,
                   deviation = std::sqrt((squares(i, c) / kSeeds - mean * mean) / kSeeds);
      EXPECT_GT(deviation, 0);
      EXPECT_NEAR(mean, double(expected(i, c)), 4.5 * deviation);
    }
  }
}

TEST(Dropout, OfARowAlmostAllDropped) {
  const Eigen::MatrixXf Q = support::numbers(400, 4, 1), K = support::numbers(1, 4, 2);
  const Eigen::MatrixXf V = Eigen::MatrixXf::Constant(1, 2, 3);
  const auto drop = dropout(0.75, 5);
  const auto Y = drop_all(Q, K, V, drop);
  for (Index i = 0; i < 400; ++i) {
    const float expected =
        keeps(drop, {0, 0, i, 0}) ? 12.f : 0.f;  // one key: its value · 1/(1 − p)
    EXPECT_EQ(Y(i, 0), expected);
    EXPECT_EQ(Y(i, 1), expected);
  }
}

// Scalars without packets, and derivatives: by a value, the weight that it meets.
TEST(Dropout, OfAutoDiffScalars) {
  using Dual = Eigen::AutoDiffScalar<Eigen::VectorXd>;
  constexpr int kKeys = 6;
  const auto Q = uniform<double>(3, 2, 1), K = uniform<double>(kKeys, 2, 2);
  support::DynamicMatrix<Dual> V(kKeys, 1);
  for (int j = 0; j < kKeys; ++j) V(j, 0) = Dual(double(j), kKeys, j);
  const auto drop = dropout(0.4, 2);
  const auto Y = drop_all(support::DynamicMatrix<Dual>(Q.cast<Dual>()),
                          support::DynamicMatrix<Dual>(K.cast<Dual>()), V, drop);
  const auto expected =
      drop_all(Q, K, support::DynamicMatrix<double>::Identity(kKeys, kKeys).eval(), drop);
  for (Index i = 0; i < 3; ++i)
    EXPECT_TRUE(near(Y(i, 0).derivatives().transpose(), expected.row(i), 1e-14));
}

// The layer's heads drop as those of attention on its projected rows do.
TEST(Dropout, InALayer) {
  const auto layer = support::random_layer<float>(attn::MultiHeadOptions(24, 3));
  attn::Workspace<float> workspace;
  const auto X = uniform<float>(20, 24, 8);
  const auto drop = dropout(0.3, 4, 9);
  const support::DynamicMatrix<float> Y =
      layer(X, drop, attn::causal(), attn::residual(), attn::use(workspace));
  const auto w = layer.weights();
  support::DynamicMatrix<float> mixed;
  attn::attention(attn::heads(X * w.query, 3), attn::heads(X * w.key, 3),
                  attn::heads(X * w.value, 3), attn::into(mixed), attn::causal(), drop);
  EXPECT_TRUE(near(Y, mixed * w.output + X, 1e-5));
  const support::DynamicMatrix<float> without =
      layer(X, dropout(0, 4), attn::causal(), attn::residual(), attn::use(workspace));
  EXPECT_GT(support::worst_error(Y, without), 0.1);
}

}  // namespace
