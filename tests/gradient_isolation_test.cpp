// tests/gradient_isolation_test.cpp: what a hidden pair holds changes no bit of a gradient; NaN in a
// visible one shows where the formula says, and nowhere else.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "support/gradient_case.h"
#include "support/random_composition.h"
#include "support/threads.h"

namespace {

using Eigen::Index;
using namespace support;
using GradientCaseF = GradientCase<float>;
using Matrix = GradientCaseF::Matrix;

/// A batch and a mask over it: one instantiation for all of them.
struct Masked {
  GradientCaseF x;
  Composition mask;
  Index offset = 0;

  Training<float> attend(const GradientCaseF& operands, int workers = 1) const {
    Threads pool;
    return trained(operands, mask.mask, attn::query_offset(offset), attn::on(pool, workers));
  }
  ReferenceOptions reference() const {
    ReferenceOptions options = x.reference();
    options.visible = [this](Index b, Index h, Index i, Index j) {
      return mask.rule({b, h, i, i + offset, j, x.queries[at(b)] + i});
    };
    return options;
  }
  ReferenceGradient expected(const GradientCaseF& operands) const {
    return reference_gradient(operands.Q, operands.K, operands.V, operands.dY, reference());
  }
};
Masked random_masked(std::uint32_t seed) {
  Draw draw(seed);
  const Case c = random_case(draw);
  const Index d_k = draw(1, 9), d_v = draw(1, 20);
  return {GradientCaseF(c, d_k, d_v, seed), compose(c, draw, draw(0, 2)),
          draw.one_in(3) ? 0 : draw(-20, 250)};
}

/// What nobody sees of a case, for each head: queries that see no key, keys that no query sees.
struct Unseen {
  std::vector<std::vector<bool>> query, key;  ///< [row][head], [row][key/value head]

  explicit Unseen(const Masked& m)
      : query(at(m.x.Q.rows()), std::vector<bool>(at(m.x.heads), true)),
        key(at(m.x.K.rows()), std::vector<bool>(at(m.x.kv_heads), true)) {
    const ReferenceOptions options = m.reference();
    for (Index b = 0; b < m.x.sequences(); ++b) {
      const Index first_key = m.x.keys.size() == 2 ? 0 : m.x.keys[at(b)];
      for (Index h = 0; h < m.x.heads; ++h) {
        for (Index i = 0; i < m.x.query_length(b); ++i) {
          for (Index j = 0; j < m.x.key_length(b); ++j) {
            if (!options.visible(b, h, i, j)) continue;
            query[at(m.x.queries[at(b)] + i)][at(h)] = false;
            key[at(first_key + j)][at(h / (m.x.heads / m.x.kv_heads))] = false;
          }
        }
      }
    }
  }
};

/// Puts `poison` wherever nobody looks.
GradientCaseF poisoned(const Masked& m, float poison) {
  GradientCaseF x = m.x;
  const Unseen unseen(m);
  for (Index i = 0; i < x.Q.rows(); ++i) {
    for (Index h = 0; h < x.heads; ++h) {
      if (!unseen.query[at(i)][at(h)]) continue;
      x.Q.row(i).segment(h * x.key_dim, x.key_dim).setConstant(poison);
      x.dY.row(i).segment(h * x.value_dim, x.value_dim).setConstant(poison);
    }
  }
  for (Index j = 0; j < x.K.rows(); ++j) {
    for (Index h = 0; h < x.kv_heads; ++h) {
      if (!unseen.key[at(j)][at(h)]) continue;
      x.K.row(j).segment(h * x.key_dim, x.key_dim).setConstant(poison);
      x.V.row(j).segment(h * x.value_dim, x.value_dim).setConstant(poison);
    }
  }
  return x;
}

enum class Affected { is_nan, is_anything };

/// Where the oracle has NaN, so has the gradient (or anything); elsewhere it has the bits of the
/// clean call.
void expect_pattern(const Matrix& actual, const Matrix& clean, const Reference& expected,
                    Affected affected, const char* name) {
  ASSERT_EQ(actual.rows(), expected.rows());
  ASSERT_EQ(actual.cols(), expected.cols());
  for (Index i = 0; i < actual.rows(); ++i) {
    for (Index c = 0; c < actual.cols(); ++c) {
      const bool nan = std::isnan(expected(i, c));
      if (nan && affected == Affected::is_anything) continue;
      const bool right =
          nan ? std::isnan(actual(i, c)) : same_bits_of<float>(actual(i, c), clean(i, c));
      ASSERT_TRUE(right) << "of the " << name << ", (" << i << ", " << c << ") is " << actual(i, c)
                         << ", expected " << (nan ? kNaN<float> : clean(i, c));
    }
  }
}
void expect_pattern(const Training<float>& actual, const Training<float>& clean,
                    const ReferenceGradient& expected, Affected affected = Affected::is_nan) {
  expect_pattern(actual.query, clean.query, expected.query, affected, "queries");
  expect_pattern(actual.key, clean.key, expected.key, affected, "keys");
  expect_pattern(actual.value, clean.value, expected.value, affected, "values");
}

TEST(GradientIsolation, OfWhatNobodySees) {
  for (std::uint32_t seed = 1; seed <= 60; ++seed) {
    const Masked m = random_masked(seed);
    SCOPED_TRACE(testing::Message() << "seed " << seed << ": " << m.mask.text);
    const auto clean = m.attend(m.x);
    expect_gradients(clean, m.expected(m.x));
    for (const float poison : {kNaN<float>, kInfinity<float>, -3e38f})
      expect_same_gradients(m.attend(poisoned(m, poison), poison < 0 ? 3 : 1), clean);
    if (testing::Test::HasFailure()) break;  // one is enough to read
  }
}

/// One number, or one head's row, of an operand.
void plant(Matrix& operand, Index features, float poison, Draw& draw) {
  if (operand.size() == 0) return;
  const Index row = draw(0, operand.rows() - 1), column = draw(0, operand.cols() - 1);
  if (draw.one_in(2)) {
    operand(row, column) = poison;
  } else {
    operand.row(row).segment(column / features * features, features).setConstant(poison);
  }
}
/// Numbers of one operand, or of all.
GradientCaseF planted(const GradientCaseF& clean, int operand, float poison, Draw draw) {
  GradientCaseF x = clean;
  if (operand == 0 || operand == 4) plant(x.Q, x.key_dim, poison, draw);
  if (operand == 1 || operand == 4) plant(x.K, x.key_dim, poison, draw);
  if (operand == 2 || operand == 4) plant(x.V, x.value_dim, poison, draw);
  if (operand == 3 || operand == 4) plant(x.dY, x.value_dim, poison, draw);
  return x;
}
TEST(GradientIsolation, OfWhatSomeSee) {
  for (std::uint32_t seed = 1; seed <= 40; ++seed) {
    const Masked m = random_masked(seed);
    const auto clean = m.attend(m.x);
    for (int operand = 0; operand < 5; ++operand) {
      SCOPED_TRACE(testing::Message()
                   << "seed " << seed << ": " << m.mask.text << ", operand " << operand);
      const GradientCaseF none = planted(m.x, operand, kNaN<float>, Draw(seed));
      const ReferenceGradient expected = m.expected(none);
      expect_pattern(m.attend(none), clean, expected);
      for (const float infinite : {kInfinity<float>, -kInfinity<float>}) {
        const GradientCaseF x = planted(m.x, operand, infinite, Draw(seed));
        expect_pattern(m.attend(x), clean, expected, Affected::is_anything);
      }
    }
    if (testing::Test::HasFailure()) break;
  }
}

// At the bounds of strips, of the rows whose pairs are kept together, of chunks and of blocks.
TEST(GradientIsolation, AtEveryBound) {
  const GradientCaseF x({{0, 1000}, {0, 700}, 2, 1}, 7, 5);
  const std::vector<Composition> masks = {
      {AnyMask(attn::window(5, 2)),
       [](const Pair& p) { return p.key >= p.position - 5 && p.key <= p.position + 2; }, "window"},
      {AnyMask(attn::mask([](attn::At a) { return (a.query * 7 + a.key * 13) % 101 == 0; })),
       [](const Pair& p) { return (p.position * 7 + p.key * 13) % 101 == 0; }, "sparse"}};
  for (const Composition& mask : masks) {
    const Masked m{x, mask};
    const auto clean = m.attend(x);
    for (const Index n : {0, 11, 12, 95, 96, 255, 256, 512, 699, 959, 960, 999}) {
      SCOPED_TRACE(testing::Message() << mask.text << ", row " << n);
      for (int operand = 0; operand < 4; ++operand) {
        GradientCaseF y = x;
        Matrix& of = operand == 0 ? y.Q : operand == 1 ? y.K : operand == 2 ? y.V : y.dY;
        if (n >= of.rows()) continue;
        of(n, 3) = kNaN<float>;
        expect_pattern(m.attend(y, 1 + operand), clean, m.expected(y));
      }
    }
    if (testing::Test::HasFailure()) break;
  }
}

TEST(GradientIsolation, OfNothingButNaNWhereNoKeyIsSeen) {
  const GradientCaseF x({{0, 30, 200}, {0, 70, 370}, 2, 1}, 7, 5);
  for (const auto& lengths : {std::vector<Index>{0, 0}, {0, 290}, {50, 0}}) {
    const Masked m{x,
                   {AnyMask(attn::key_lengths(lengths)),
                    [=](const Pair& p) { return p.key < lengths[at(p.sequence)]; }, "lengths"}};
    const auto g = m.attend(poisoned(m, kNaN<float>));
    expect_same_gradients(g, m.attend(x));
    for (Index b = 0; b < 2; ++b) {
      if (lengths[at(b)] > 0) continue;
      EXPECT_TRUE(g.query.middleRows(x.queries[at(b)], x.query_length(b)).isZero(0));
      EXPECT_TRUE(g.key.middleRows(x.keys[at(b)], x.key_length(b)).isZero(0));
      EXPECT_TRUE(g.value.middleRows(x.keys[at(b)], x.key_length(b)).isZero(0));
    }
  }
}

// Each gradient alone, over operands whose hidden numbers are none: each leaves out other products.
// Its maximum is then NaN or infinite, as its keys happen to lie; no key that it sees has a weight.
TEST(GradientIsolation, OfARowWhoseSumIsNoNumberIsNaNForEveryKeyItSees) {
  for (const Index endless : {0, 5, 30}) {
    for (const float other : {1.f, kNaN<float>}) {
      Masked m{GradientCaseF(1, 40, 3, 2),
               {AnyMask(attn::key_lengths(std::vector<Index>{36})), {}, "key_lengths"}};
      m.x.Q.setOnes();
      m.x.K.setOnes();
      m.x.K.row(endless).setConstant(kInfinity<float>);
      m.x.K.row(17).setConstant(other);
      const auto g = m.attend(m.x);
      EXPECT_TRUE(g.query.array().isNaN().all()) << endless << ", " << other;
      for (const Matrix* of : {&g.key, &g.value}) {
        EXPECT_TRUE(of->topRows(36).array().isNaN().all()) << endless << ", " << other;
        EXPECT_TRUE((of->bottomRows(4).array() == 0).all()) << endless << ", " << other;
      }
    }
  }
}
TEST(GradientIsolation, OfEachGradientAskedAlone) {
  const GradientCaseF x({{0, 200}, {0, 300}, 2, 1}, 7, 5);
  const auto causal = attn::causal(attn::align::upper_left);
  const auto clean = trained(x, causal);
  GradientCaseF y = x;
  y.K.bottomRows(100).setConstant(kNaN<float>);
  y.V.bottomRows(100).setConstant(kInfinity<float>);
  auto g = trained(y, causal);
  expect_same_gradients(g, clean);
  const auto apart = [&] {
    for (Matrix* matrix : {&g.query, &g.key, &g.value}) matrix->setConstant(7);
    g.apart(y, causal, attn::dquery(g.query));
    g.apart(y, causal, attn::dkey(g.key));
    g.apart(y, causal, attn::dvalue(g.value));
  };
  apart();
  expect_same_gradients(g, clean);
  // And where some see them.
  y = x;
  y.dY(57, 1) = y.V(63, 2) = kNaN<float>;
  g = trained(y, causal);
  const auto together = g;
  apart();
  for (const auto& [a, b] : {std::pair(&g.query, &together.query), std::pair(&g.key, &together.key),
                             std::pair(&g.value, &together.value)}) {
    for (Index n = 0; n < a->size(); ++n) {
      ASSERT_EQ(std::isnan(a->data()[n]), std::isnan(b->data()[n])) << n;
    }
  }
}

}  // namespace
