// tests/overlap_test.cpp: memory shared by inputs and outputs works or is refused.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/error_of.h"
#include "support/matrix_matchers.h"
#include "support/random.h"

namespace {

using Eigen::Index;
using Eigen::MatrixXf;
using support::error_of;
using support::numbers;
using support::same_bits;

// ---- may_overlap against sets of addresses ------------------------------------------------

using View = attn::TensorView<float>;

std::set<const float*> elements(const View& v) {
  std::set<const float*> all;
  for (Index b = 0; b < v.sequences; ++b) {
    for (Index h = 0; h < v.heads; ++h) {
      for (Index i = 0; i < v.tokens; ++i) {
        for (Index c = 0; c < v.features; ++c) all.insert(&v(b, h, i, c));
      }
    }
  }
  return all;
}

bool share_an_element(const View& a, const View& b) {
  const std::set<const float*> of_a = elements(a);
  for (const float* p : elements(b)) {
    if (of_a.count(p) != 0) return true;
  }
  return false;
}

class Random {
 public:
  explicit Random(std::uint32_t seed) : engine_(seed) {}
  Index operator()(Index first, Index last) {
    return first + Index(engine_() % std::uint32_t(last - first + 1));
  }

 private:
  std::mt19937 engine_;
};

TEST(MayOverlap, NeverMissesASharedElement) {
  std::vector<float> memory(4096);
  Random pick(11);
  int shared = 0, apart = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    const auto view = [&] {
      return View{memory.data() + 2048 + pick(-60, 60),
                  pick(1, 2),
                  pick(1, 3),
                  pick(1, 4),
                  pick(1, 4),
                  pick(-40, 40),
                  pick(-12, 12),
                  pick(-9, 9),
                  pick(-3, 3)};
    };
    const View a = view(), b = view();
    const bool truth = share_an_element(a, b);
    ++(truth ? shared : apart);
    if (truth) {
      ASSERT_TRUE(attn::detail::may_overlap(a, b)) << "trial " << trial;
    }
    ASSERT_EQ(attn::detail::may_overlap(a, b), attn::detail::may_overlap(b, a))
        << "trial " << trial;
  }
  EXPECT_GT(shared, 1000);
  EXPECT_GT(apart, 1000);
}

TEST(MayOverlap, IsExactForBlocksOfOneMatrix) {
  std::vector<float> memory(1000);
  Random pick(12);
  int shared = 0, apart_in_one_span = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    // Blocks of a 7 x 12 matrix with a gap behind each line, not always whole lines.
    const Index line = 14;
    const auto block = [&](bool transposed) {
      const Index row = pick(0, 6), col = pick(0, 11), rows = pick(1, 7 - row),
                  cols = pick(1, 12 - col);
      float* first = memory.data() + row * line + col;
      return transposed ? View{first, 1, 1, cols, rows, 0, 0, 1, line}
                        : View{first, 1, 1, rows, cols, 0, 0, line, 1};
    };
    const View a = block(pick(0, 1) == 1), b = block(pick(0, 1) == 1);
    const bool truth = share_an_element(a, b);
    ASSERT_EQ(attn::detail::may_overlap(a, b), truth) << "trial " << trial;
    const std::set<const float*> x = elements(a), y = elements(b);
    if (truth) ++shared;
    if (!truth && *x.begin() < *y.rbegin() && *y.begin() < *x.rbegin()) ++apart_in_one_span;
  }
  EXPECT_GT(shared, 1000);
  EXPECT_GT(apart_in_one_span, 1000) << "else the bounds alone would do";
}

TEST(MayOverlap, IsExactForHeadsOfOneBatch) {
  std::vector<float> memory(4000);
  Random pick(13);
  for (int trial = 0; trial < 5000; ++trial) {
    // [B, L, H, d] memory of 3 x 5 x 4 x 3; a view takes a box of it.
    const auto box = [&] {
      const Index b = pick(0, 2), i = pick(0, 4), h = pick(0, 3), c = pick(0, 2);
      return View{memory.data() + ((b * 5 + i) * 4 + h) * 3 + c,
                  pick(1, 3 - b),
                  pick(1, 4 - h),
                  pick(1, 5 - i),
                  pick(1, 3 - c),
                  60,
                  3,
                  12,
                  1};
    };
    const View a = box(), b = box();
    // Dimensions that a box fills are joined with the next wider one, and may then reach over the
    // narrower ones of the other: then "may" is all that is promised.
    const bool fills = (a.features == 3) != (b.features == 3) || (a.heads == 4) != (b.heads == 4) ||
                       (a.tokens == 5) != (b.tokens == 5);
    const bool truth = share_an_element(a, b);
    if (truth || !fills) {
      ASSERT_EQ(attn::detail::may_overlap(a, b), truth) << "trial " << trial;
    }
  }
}

TEST(MayOverlap, AViewOfNothingOverlapsNothing) {
  float memory[8] = {};
  const View all{memory, 1, 1, 2, 4, 0, 0, 4, 1}, none{memory, 1, 1, 0, 4, 0, 0, 4, 1};
  EXPECT_FALSE(attn::detail::may_overlap(all, none));
  EXPECT_FALSE(attn::detail::may_overlap(none, all));
  EXPECT_TRUE(attn::detail::may_overlap(all, all));
}

TEST(MayOverlap, ComparesBytesOfDifferentScalars) {
  double memory[8] = {};
  float* halves = reinterpret_cast<float*>(memory);
  const attn::TensorView<double> wide{memory, 1, 1, 1, 1, 0, 0, 1, 1};
  EXPECT_TRUE(attn::detail::may_overlap(wide, View{halves + 1, 1, 1, 1, 1, 0, 0, 1, 1}));
  EXPECT_FALSE(attn::detail::may_overlap(wide, View{halves + 2, 1, 1, 1, 1, 0, 0, 1, 1}));
}

// ---- Calls --------------------------------------------------------------------------------

auto split(const MatrixXf& X, Index n = 1) { return attn::heads(X, n); }

struct Operands {
  MatrixXf Q = numbers(9, 8, 1), K = numbers(9, 8, 2), V = numbers(9, 8, 3);
};

TEST(Aliasing, TheOutputMayBeTheQuery) {
  const Operands in;
  const MatrixXf expected = attn::attention(in.Q, in.K, in.V);
  MatrixXf Q = in.Q;
  attn::attention(Q, in.K, in.V, attn::into(Q));
  EXPECT_TRUE(same_bits(Q, expected));
}

TEST(Aliasing, TheOutputMayBeTheQueryOfManyHeads) {
  const Operands in;
  const MatrixXf K = numbers(9, 4, 2), V = numbers(9, 4, 3);
  const MatrixXf expected = attn::attention(split(in.Q, 4), split(K, 2), split(V, 2));
  MatrixXf Q = in.Q;
  attn::attention(attn::heads(Q, 4), split(K, 2), split(V, 2), attn::into(attn::heads(Q, 4)));
  EXPECT_TRUE(same_bits(Q, expected));
}

TEST(Aliasing, TheOutputMayBeAQueryOfManyChunks) {
  const MatrixXf Q = numbers(1500, 4, 1), K = numbers(30, 4, 2), V = numbers(30, 4, 3);
  const MatrixXf expected = attn::attention(Q, K, V);
  MatrixXf Y = Q;
  attn::attention(Y, K, V, attn::into(Y));
  EXPECT_TRUE(same_bits(Y, expected));
}

TEST(Aliasing, OutputsBesideTheInputsInOneMatrixAreAccepted) {
  const Operands in;
  const MatrixXf expected = attn::attention(in.Q, in.K, in.V);
  MatrixXf columns(9, 32);
  columns << in.Q, in.K, in.V, in.Q;
  attn::attention(columns.leftCols(8), columns.middleCols(8, 8), columns.middleCols(16, 8),
                  attn::into(columns.rightCols(8)));
  EXPECT_TRUE(same_bits(columns.rightCols(8), expected));
  EXPECT_TRUE(same_bits(columns.leftCols(8), in.Q));

  Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> rows(9, 32);
  rows << in.Q, in.K, in.V, in.Q;
  attn::attention(rows.leftCols(8), rows.middleCols(8, 8), rows.middleCols(16, 8),
                  attn::into(rows.rightCols(8)));
  EXPECT_TRUE(same_bits(rows.rightCols(8), expected));
}

TEST(Aliasing, OneRowBesideTheKeysInOneMatrixIsAccepted) {
  const Operands in;
  const MatrixXf expected = attn::attention(in.Q.row(4), in.K, in.V);
  MatrixXf packed(9, 32);
  packed << in.Q, in.K, in.V, in.Q;
  EXPECT_EQ(error_of([&] {
              attn::attention(packed.block(4, 0, 1, 8), packed.middleCols(8, 8),
                              packed.middleCols(16, 8), attn::into(packed.block(4, 24, 1, 8)));
            }),
            "nothing was refused");
  EXPECT_TRUE(same_bits(packed.block(4, 24, 1, 8), expected));
}

TEST(Aliasing, AnOutputThatOverlapsKeyOrValueIsRefused) {
  const Operands in;
  MatrixXf K = in.K, V = in.V;
  EXPECT_EQ(error_of([&] { attn::attention(in.Q, K, V, attn::into(K)); }),
            "attn::attention: output overlaps key; write to memory of its own");
  EXPECT_EQ(error_of([&] { attn::attention(in.Q, K, V, attn::into(V)); }),
            "attn::attention: output overlaps value; write to memory of its own");
  EXPECT_TRUE(same_bits(K, in.K));
  EXPECT_TRUE(same_bits(V, in.V));
}

TEST(Aliasing, AnOutputThatIsOnlyPartOfTheQueryIsRefused) {
  const Operands in;
  MatrixXf big = numbers(20, 8, 4);
  const MatrixXf before = big;
  EXPECT_EQ(error_of([&] {
              attn::attention(big.middleRows(0, 9), in.K, in.V, attn::into(big.middleRows(1, 9)));
            }),
            "attn::attention: output overlaps query without being the same matrix; write to memory "
            "of its own");
  EXPECT_TRUE(same_bits(big, before));
}

TEST(Aliasing, TheTransposedQueryIsNotTheSameMatrix) {
  const Operands in;
  MatrixXf square = numbers(8, 8, 4);
  const MatrixXf before = square;
  EXPECT_EQ(error_of([&] { attn::attention(square.transpose(), in.K, in.V, attn::into(square)); }),
            "attn::attention: output overlaps query without being the same matrix; write to memory "
            "of its own");
  EXPECT_TRUE(same_bits(square, before));
}

// An output that would be resized is an input's memory all the same.
TEST(Aliasing, AnInputIsNotResizedAsOutput) {
  const MatrixXf Q = numbers(6, 8, 1), K = numbers(9, 8, 2), V = numbers(9, 5, 3);
  const std::string refused = "attn::attention: output overlaps ";
  MatrixXf q = Q, k = K, v = V;
  EXPECT_EQ(error_of([&] { attn::attention(q, K, V, attn::into(q)); }).substr(0, 33), refused);
  EXPECT_TRUE(same_bits(q, Q));
  EXPECT_EQ(error_of([&] { attn::attention(Q, k, V, attn::into(k)); }).substr(0, 33), refused);
  EXPECT_TRUE(same_bits(k, K));
  EXPECT_EQ(error_of([&] { attn::attention(Q, K, v, attn::into(v)); }).substr(0, 33), refused);
  EXPECT_TRUE(same_bits(v, V));
}

/// The call is refused and leaves `written` alone, or `written` ends as `expected`.
template <class Call, class Written>
void expect_right_or_refused(Call&& call, const Written& written, const MatrixXf& expected) {
  const MatrixXf before = written;
  const bool refused = error_of(call) != "nothing was refused";
  EXPECT_TRUE(same_bits(written, refused ? before : expected))
      << (refused ? "refused, but written" : "neither right nor refused");
}

TEST(Aliasing, TheOutputMayBeTheResidual) {
  const Operands in;
  const MatrixXf X = numbers(9, 8, 4),
                 expected = attn::attention(in.Q, in.K, in.V, attn::residual(X));
  MatrixXf Y = X;
  attn::attention(in.Q, in.K, in.V, attn::residual(Y), attn::into(Y));
  EXPECT_TRUE(same_bits(Y, expected));
}

TEST(Aliasing, AnotherViewOfTheResidualIsRightOrRefused) {
  const Operands in;
  MatrixXf big = numbers(20, 8, 4), square = numbers(8, 8, 5);
  const MatrixXf shifted = big.middleRows(1, 9), transposed = square.transpose();
  const MatrixXf expected = attn::attention(in.Q, in.K, in.V, attn::residual(shifted));
  expect_right_or_refused(
      [&] {
        attn::attention(in.Q, in.K, in.V, attn::residual(big.middleRows(1, 9)),
                        attn::into(big.middleRows(2, 9)));
      },
      big.middleRows(2, 9), expected);
  const MatrixXf Q = in.Q.topRows(8);
  const MatrixXf of_transposed = attn::attention(Q, in.K, in.V, attn::residual(transposed));
  expect_right_or_refused(
      [&] {
        attn::attention(Q, in.K, in.V, attn::residual(square.transpose()), attn::into(square));
      },
      square, of_transposed);
}

TEST(Aliasing, ABiasOrMaskInsideTheOutputIsRightOrRefused) {
  const Operands in;
  MatrixXf Y = numbers(9, 18, 4);
  const MatrixXf B = Y.leftCols(9), Q = numbers(9, 18, 1), K = numbers(9, 18, 2),
                 V = numbers(9, 18, 3);
  const MatrixXf expected = attn::attention(split(Q, 2), split(K, 2), split(V, 2), attn::bias(B));
  expect_right_or_refused(
      [&] {
        attn::attention(split(Q, 2), split(K, 2), split(V, 2), attn::bias(Y.leftCols(9)),
                        attn::into(attn::heads(Y, 2)));
      },
      Y, expected);
}

TEST(Aliasing, ALogsumexpInsideTheOutputOrAnInputIsRightOrRefused) {
  const Operands in;
  MatrixXf Y = numbers(9, 8, 4);
  const MatrixXf plain = attn::attention(in.Q, in.K, in.V);
  // Two outputs in one place cannot both be right.
  EXPECT_NE(error_of([&] {
              attn::attention(in.Q, in.K, in.V, attn::into(Y), attn::save_logsumexp(Y.col(2)));
            }),
            "nothing was refused");

  MatrixXf K = in.K, out = numbers(9, 8, 5);
  const MatrixXf expected = attn::attention(split(in.Q, 2), split(in.K, 2), split(in.V, 2));
  expect_right_or_refused(
      [&] {
        attn::attention(split(in.Q, 2), split(K, 2), split(in.V, 2), attn::into(out),
                        attn::save_logsumexp(K.rightCols(2)));
      },
      out, expected);
}

TEST(Aliasing, ResidualAddOfOverlappingMatricesIsRightOrRefused) {
  MatrixXf x = numbers(40, 40, 1);
  const MatrixXf y = numbers(40, 40, 2), transposed = x.transpose() + y;
  expect_right_or_refused([&] { attn::residual_add(x.transpose(), y, attn::into(x)); }, x,
                          transposed);
  x = numbers(40, 40, 1);
  const MatrixXf shifted = x.topLeftCorner(30, 30) + y.topLeftCorner(30, 30);
  expect_right_or_refused(
      [&] {
        attn::residual_add(x.topLeftCorner(30, 30), y.topLeftCorner(30, 30),
                           attn::into(x.block(1, 1, 30, 30)));
      },
      x.block(1, 1, 30, 30), shifted);
}

TEST(Aliasing, ResidualAddDoesNotResizeItsOperand) {
  MatrixXf x = numbers(4, 6, 1);
  const MatrixXf before = x, y = numbers(6, 4, 2), expected = x.transpose() + y;
  expect_right_or_refused([&] { attn::residual_add(x.transpose(), y, attn::into(x)); }, x,
                          expected);
}

}  // namespace
