// tests/decode_in_place_test.cpp: one query row against keys where they lie in memory: the bits of the same row among many, for
// any width, stride, storage and number of keys, and nothing read outside of the operands.
// SPDX-License-Identifier: MIT

#include <attn/attn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace {

using Index = Eigen::Index;

/// Heads of tokens of features, `gap` numbers between two tokens and not a number behind the last: what reads there shows under a
/// sanitizer.
template <class T>
class Tokens {
 public:
  Tokens(Index heads, Index tokens, Index features, Index gap, unsigned seed)
      : heads_(heads), tokens_(tokens), features_(features), stride_(features + gap) {
    std::mt19937 engine(seed);
    memory_.resize(std::size_t((heads * tokens - 1) * stride_ + features));
    for (T& x : memory_) x = T(float(engine() % 2001u) / 1000.0f - 1.0f);
  }
  /// Rows [0, n) of each head.
  attn::TensorView<const T> view(Index n) const {
    return {memory_.data(), 1, heads_, n, features_, 0, tokens_ * stride_, stride_, 1};
  }

 private:
  Index heads_, tokens_, features_, stride_;
  std::vector<T> memory_;
};

struct Shape {
  Index group, key_heads, keys, key_dim, value_dim, gap;
};

/// Row 0 alone against row 0 of 24, whose keys are packed.
template <class Scalar, class Key>
void expect_same_bits(const Shape& x) {
  constexpr Index kRows = 24;
  const Index heads = x.group * x.key_heads;
  const Tokens<Scalar> q(heads, kRows, x.key_dim, 0, 1);
  const Tokens<Key> k(x.key_heads, x.keys, x.key_dim, x.gap, 2),
      v(x.key_heads, x.keys, x.value_dim, x.gap, 3);
  std::vector<Scalar> one(std::size_t(heads * x.value_dim)),
      many(std::size_t(heads * kRows * x.value_dim));
  attn::ScaledDotProductAttention<Scalar> attend;
  attend(q.view(1), k.view(x.keys), v.view(x.keys),
         attn::into(attn::bhld(one.data(), 1, heads, 1, x.value_dim)));
  attend(q.view(kRows), k.view(x.keys), v.view(x.keys),
         attn::into(attn::bhld(many.data(), 1, heads, kRows, x.value_dim)));
  for (Index h = 0; h < heads; ++h) {
    ASSERT_EQ(
        std::memcmp(&one[std::size_t(h * x.value_dim)], &many[std::size_t(h * kRows * x.value_dim)],
                    std::size_t(x.value_dim) * sizeof(Scalar)),
        0)
        << "head " << h << " of " << heads << ", " << x.keys << " keys of " << x.key_dim << " and "
        << x.value_dim << ", gap " << x.gap;
  }
}

TEST(DecodeInPlace, EveryWidthGivesTheBitsOfManyRows) {
  for (Index width = 1; width <= 140; width += width < 36 ? 1 : 7) {
    expect_same_bits<float, float>({1, 2, 67, width, width, 0});
    expect_same_bits<double, double>({1, 1, 67, width, width, 1});
    expect_same_bits<float, Eigen::bfloat16>({1, 1, 67, width, width, 0});
  }
}

TEST(DecodeInPlace, EveryNumberOfKeysGivesTheBitsOfManyRows) {
  for (Index keys = 1; keys <= 600; keys += keys < 70 ? 1 : 41)
    expect_same_bits<float, float>({1, 2, keys, 20, 24, 0});
}

TEST(DecodeInPlace, HeadsThatShareKeysGiveTheBitsOfManyRows) {
  for (const Index group : {2, 3, 4}) {
    for (const Index width : {8, 33, 64, 100, 128, 130, 256}) {
      expect_same_bits<float, float>({group, 3, 300, width, width, 5});
      expect_same_bits<float, float>({group, 2, 513, 40, width, 0});
    }
  }
}

// Four heads on one head of keys: a pair that a bias hides from one of them may hold a NaN, which the others see.
TEST(DecodeInPlace, WhatABiasHidesFromOneHeadIsSeenByTheOthers) {
  constexpr Index kHeads = 4, kKeys = 70, kDim = 20;
  const Eigen::MatrixXf Q = Eigen::MatrixXf::Random(1, kHeads * kDim);
  using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const Rows K = Rows::Random(kKeys, kDim);
  Rows V = Rows::Random(kKeys, kDim);
  V.row(37).setConstant(std::numeric_limits<float>::quiet_NaN());
  for (Index head = 0; head < kHeads; ++head) {
    Eigen::MatrixXf B = Eigen::MatrixXf::Zero(1, kHeads * kKeys), Y;
    B(0, head * kKeys + 37) = -std::numeric_limits<float>::infinity();
    attn::attention(attn::heads(Q, kHeads), K, V, attn::into(Y),
                    attn::bias(attn::heads(B, kHeads)));
    for (Index h = 0; h < kHeads; ++h)
      EXPECT_EQ(Y.middleCols(h * kDim, kDim).allFinite(), h == head) << h << " of " << head;
  }
}

/// Of every `step` keys one is visible, from `first` on.
struct Visible {
  Index first, step;
  bool operator()(Index j) const { return j >= first && (j - first) % step == 0; }
};
/// Heads that share keys, one row each, against keys and values of which the hidden ones hold
/// `hidden`, and feature 3 of the last visible value `value`.
Eigen::MatrixXf attend_visible(Index heads, Index keys, const Visible& visible, float hidden,
                               float value) {
  constexpr Index kDim = 20;
  using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  std::mt19937 engine(7);
  const auto number = [&] { return float(engine() % 2001u) / 1000.0f - 1.0f; };
  const Rows Q = Rows::NullaryExpr(1, heads * kDim, number);
  Rows K = Rows::NullaryExpr(keys, kDim, number), V = Rows::NullaryExpr(keys, kDim, number);
  Eigen::Array<bool, 1, Eigen::Dynamic> seen(keys);
  Index last = -1;
  for (Index j = 0; j < keys; ++j) {
    seen(j) = visible(j);
    if (seen(j)) {
      last = j;
    } else {
      K.row(j).setConstant(hidden);
      V.row(j).setConstant(hidden);
    }
  }
  if (last >= 0) V(last, 3) = value;
  return attn::attention(attn::heads(Q, heads), attn::heads(K, 1), attn::heads(V, 1),
                         attn::keep(seen));
}

TEST(DecodeInPlace, WhatHiddenKeysHoldReachesNothing) {
  const float nan = std::nanf(""), infinity = std::numeric_limits<float>::infinity();
  for (const Index heads : {1, 2, 3, 4}) {
    for (const Index keys : {1, 15, 16, 17, 40, 67, 300, 513}) {
      for (const Visible visible :
           {Visible{0, 1}, Visible{0, 3}, Visible{keys / 2, 1}, Visible{1, 2}, Visible{0, keys}}) {
        const Eigen::MatrixXf expected = attend_visible(heads, keys, visible, 0.5f, 0.5f);
        for (const float hidden : {nan, infinity, -infinity}) {
          const Eigen::MatrixXf Y = attend_visible(heads, keys, visible, hidden, 0.5f),
                                Z = attend_visible(heads, keys, visible, hidden, nan);
          ASSERT_EQ(std::memcmp(Y.data(), expected.data(), std::size_t(Y.size()) * sizeof(float)),
                    0)
              << heads << " heads, " << keys << " keys, from " << visible.first << " every "
              << visible.step << ", hidden " << hidden;
          // A visible value that is not finite reaches its feature alone.
          for (Index c = 0; c < Z.cols(); ++c) {
            if (c % 20 == 3 && visible.first < keys) {
              ASSERT_TRUE(std::isnan(Z(0, c)));
            } else {
              ASSERT_EQ(std::memcmp(&Z(0, c), &expected(0, c), sizeof(float)), 0);
            }
          }
        }
      }
    }
  }
}

}  // namespace
