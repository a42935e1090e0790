// tests/unusable_memory_test.cpp: an output whose elements share memory among themselves is refused,
// as is any operand that has elements and no memory.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <random>
#include <set>
#include <string>
#include <vector>

#include "support/error_of.h"
#include "support/random.h"

namespace {

using Eigen::Index;
using Eigen::MatrixXf;
using support::error_of;
using View = attn::TensorView<float>;

bool folds(const View& v) {
  std::set<const float*> all;
  Index elements = 0;
  for (Index b = 0; b < v.sequences; ++b) {
    for (Index h = 0; h < v.heads; ++h) {
      for (Index i = 0; i < v.tokens; ++i) {
        for (Index c = 0; c < v.features; ++c, ++elements) all.insert(&v(b, h, i, c));
      }
    }
  }
  return Index(all.size()) != elements;
}
bool may_fold(const View& v) { return attn::detail::may_fold(attn::detail::Region(v)); }

TEST(FoldedOutputs, AreNeverMissed) {
  std::vector<float> memory(4096);
  std::mt19937 engine(5);
  const auto pick = [&](Index first, Index last) {
    return first + Index(engine() % std::uint32_t(last - first + 1));
  };
  int folded = 0, apart = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    const View v{memory.data() + 2048, pick(0, 2),    pick(1, 3),  pick(1, 4), pick(1, 4),
                 pick(-60, 60),        pick(-20, 20), pick(-9, 9), pick(-3, 3)};
    ++(folds(v) ? folded : apart);
    if (folds(v)) {
      ASSERT_TRUE(may_fold(v)) << "trial " << trial;
    }
  }
  EXPECT_GT(folded, 1000);
  EXPECT_GT(apart, 1000);
}

TEST(FoldedOutputs, AreNoLayoutsInUse) {
  float memory[1] = {};
  for (const Index n : {0, 1, 3}) {
    for (const Index d : {1, 5}) {
      for (const View& v : {attn::bhld(memory, n, 2, 3, d), attn::blhd(memory, n, 3, 2, d),
                            attn::lbhd(memory, 3, n, 2, d)}) {
        EXPECT_FALSE(may_fold(v));
      }
    }
  }
  EXPECT_FALSE(may_fold({memory, 1, 2, 3, 4, 0, 12, 1, 3})) << "columns in one piece";
  EXPECT_FALSE(may_fold({memory, 1, 1, 3, 4, 0, 0, -4, 1})) << "rows in reverse";
  EXPECT_FALSE(may_fold({memory, 1, 1, 3, 4, 0, 0, 9, 2})) << "with gaps";
  EXPECT_FALSE(may_fold({memory, 1, 1, 0, 4, 0, 0, 0, 0})) << "of nothing";
  EXPECT_TRUE(may_fold({memory, 1, 1, 3, 4, 0, 0, 0, 1})) << "one row for all";
  EXPECT_TRUE(may_fold({memory, 1, 1, 3, 4, 0, 0, 3, 1})) << "a row ends in the next";
}

TEST(FoldedOutputs, AreRefused) {
  const MatrixXf Q = support::numbers(6, 4), K = support::numbers(7, 4), V = support::numbers(7, 4);
  MatrixXf one_row = MatrixXf::Constant(1, 4, 5), l = MatrixXf::Constant(6, 1, 5);
  const View Y{one_row.data(), 1, 1, 6, 4, 0, 0, 0, 1};
  EXPECT_EQ(error_of([&] { attn::attention(Q, K, V, attn::into(Y)); }),
            "attn::attention: output has strides by which elements may share memory; write to one "
            "whose strides "
            "keep them apart");
  EXPECT_EQ(one_row, MatrixXf::Constant(1, 4, 5));

  using OneNumber = Eigen::Map<Eigen::VectorXf, 0, Eigen::InnerStride<>>;
  MatrixXf Z = MatrixXf::Constant(6, 4, 5);
  EXPECT_EQ(error_of([&] {
              attn::attention(
                  Q, K, V, attn::into(Z),
                  attn::save_logsumexp(OneNumber(l.data(), 6, Eigen::InnerStride<>(0))));
            }),
            "attn::attention: logsumexp has strides by which elements may share memory; write to "
            "one whose strides "
            "keep them apart");
  EXPECT_EQ(Z, MatrixXf::Constant(6, 4, 5));
}

TEST(NullPointers, WithSizesAreRefused) {
  MatrixXf memory = MatrixXf::Constant(4, 6, 5);
  const auto view = [&](Index column) {
    return attn::bhld(memory.data() + 4 * column, 1, 1, 2, 2);
  };
  for (const int null : {0, 1, 2, 3, 4}) {
    View v[] = {view(0), view(1), view(2), view(3), view(4)};
    v[null].data = nullptr;
    v[4].features = 1;
    static constexpr const char* kNames[] = {"query", "key", "value", "output", "logsumexp"};
    EXPECT_EQ(error_of([&] {
                attn::attention(v[0], v[1], v[2], attn::into(v[3]), attn::save_logsumexp(v[4]));
              }),
              std::string("attn::attention: ") + kNames[null] +
                  " has elements, and a null pointer to them");
    EXPECT_EQ(memory, MatrixXf::Constant(4, 6, 5));
  }
}

// Nothing is counted from a null pointer, which the sanitizer tells (tests/run sanitize).
TEST(NullPointers, WithoutElementsAreOperands) {
  MatrixXf Q = support::numbers(3, 4), K = support::numbers(5, 4), l(3, 1);
  const auto view = [](MatrixXf& x) { return attn::bhld(x.data(), 1, 2, x.rows(), x.cols() / 2); };
  for (const Index features : {0, 2}) {
    const Index keys = features == 0 ? 5 : 0;
    View k = view(K), v{nullptr, 1, 2, keys, features, 40, 10, 2, 1},
         y{nullptr, 1, 2, 3, features, 24, 8, 2, 1};
    MatrixXf Y(3, 4);
    if (features != 0) y = view(Y), k.data = nullptr, k.tokens = 0;
    attn::attention(view(Q), k, v, attn::into(y));
  }
}

}  // namespace
