// tests/gradient_mask_test.cpp: the gradients under every kind of mask are the oracle's, and those
// of keys that nobody sees are zeros.
// SPDX-License-Identifier: MIT
// build: -Og
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <vector>

#include "support/any_mask.h"
#include "support/gradient_case.h"
#include "support/mask_cases.h"

namespace {

using Eigen::Index;
using support::AnyMask;
using support::BatchCase;
using support::GradientCase;
using support::Pair;
using support::Rule;

/// All batches through one instantiation: the mask is told at run time.
void expect_formula(const BatchCase& batch, const AnyMask& mask, const Rule& rule,
                    Index offset = 0) {
  SCOPED_TRACE(testing::Message() << batch.sequences() << " sequences of up to "
                                  << batch.longest_query() << " x " << batch.longest_key());
  const GradientCase<float> x(batch, 5, 3);
  auto options = x.reference();
  options.visible = [&](Index b, Index h, Index i, Index j) {
    return rule({b, h, i, i + offset, j, x.queries[std::size_t(b)] + i});
  };
  const auto g = support::trained(x, mask, attn::query_offset(offset));
  expect_gradients(g, support::reference_gradient(x.Q, x.K, x.V, x.dY, options));

  // Exactly zero where nothing is seen.
  std::vector<bool> row_sees(std::size_t(x.Q.rows())), key_is_seen(std::size_t(x.K.rows()));
  for (Index b = 0; b < x.sequences(); ++b) {
    const Index first = x.queries[std::size_t(b)];
    const Index first_key = x.keys.size() == 2 ? 0 : x.keys[std::size_t(b)];
    for (Index h = 0; h < x.heads; ++h) {
      for (Index i = 0; i < x.query_length(b); ++i) {
        for (Index j = 0; j < x.key_length(b); ++j) {
          if (!options.visible(b, h, i, j)) continue;
          row_sees[std::size_t(first + i)] = key_is_seen[std::size_t(first_key + j)] = true;
        }
      }
    }
  }
  for (Index i = 0; i < x.Q.rows(); ++i) {
    if (!row_sees[std::size_t(i)]) {
      EXPECT_TRUE(g.query.row(i).isZero(0)) << "row " << i;
    }
  }
  for (Index j = 0; j < x.K.rows(); ++j) {
    if (!key_is_seen[std::size_t(j)]) {
      EXPECT_TRUE(g.key.row(j).isZero(0) && g.value.row(j).isZero(0)) << "key " << j;
    }
  }
}

/// Beside those of the masks: several chunks of rows, several blocks of keys.
std::vector<BatchCase> batches() {
  std::vector<BatchCase> batches = support::all_cases();
  batches.push_back({{0, 1000}, {0, 300}});
  batches.push_back({{0, 100, 313}, {0, 280, 700}, 4, 1});
  return batches;
}

TEST(GradientMask, CausalIsTheFormula) {
  for (const BatchCase& batch : batches())
    for (const Index offset : {0, 3, -4, 270})
      expect_formula(batch, AnyMask(attn::causal()), support::kCausal, offset);
}
TEST(GradientMask, WindowIsTheFormula) {
  for (const auto& [left, right] :
       {std::pair<Index, Index>{0, 0}, {40, 3}, {-1, 2}, {100, -1}, {7, 90}}) {
    const Index l = left, r = right;
    const Rule rule = [=](const Pair& at) {
      return (l < 0 || at.key >= at.position - l) && (r < 0 || at.key <= at.position + r);
    };
    for (const BatchCase& batch : batches())
      expect_formula(batch, AnyMask(attn::window(l, r)), rule, 5);
  }
}
TEST(GradientMask, KeyLengthsAndRangesAreTheFormula) {
  for (const BatchCase& batch : batches()) {
    std::vector<Index> begin, end;
    for (Index b = 0; b < batch.sequences(); ++b) {
      end.push_back(b == 1 ? 0 : batch.key_length(b) - batch.key_length(b) / 3);
      begin.push_back(end.back() / 4);
    }
    expect_formula(batch, AnyMask(attn::key_lengths(end)),
                   [&](const Pair& at) { return at.key < end[std::size_t(at.sequence)]; });
    expect_formula(batch, AnyMask(attn::key_range(begin, end)), [&](const Pair& at) {
      const auto b = std::size_t(at.sequence);
      return begin[b] <= at.key && at.key < end[b];
    });
    expect_formula(batch, AnyMask(attn::prefix_lm(begin)), [&](const Pair& at) {
      return at.key < begin[std::size_t(at.sequence)] || at.key <= at.position;
    });
  }
}
TEST(GradientMask, AMatrixOfBoolsIsTheFormula) {
  std::uint32_t seed = 1;
  for (const BatchCase& batch : batches()) {
    for (const double part : {0.5, 0.02}) {
      support::Bools B =
          support::random_bools(batch.longest_query(), batch.longest_key(), seed++, part);
      for (Index i = 1; i < B.rows(); i += 5) B.row(i).setConstant(false);
      const Rule rule = [&](const Pair& at) { return B(at.row, at.key); };
      expect_formula(batch, AnyMask(attn::keep(B)), rule);
      expect_formula(batch, AnyMask(attn::hide(B)), std::not_fn(rule));
    }
  }
}
TEST(GradientMask, SegmentsAreTheFormula) {
  for (const BatchCase& batch : batches()) {
    std::vector<int> queries, keys;
    for (Index i = 0; i < batch.queries.back(); ++i) queries.push_back(int(i / 19));
    for (Index j = 0; j < batch.keys.back(); ++j) keys.push_back(int(j / 23));
    expect_formula(batch, AnyMask(attn::segments(queries, keys)), [&](const Pair& at) {
      const Index first = batch.keys.size() == 2 ? 0 : batch.keys[std::size_t(at.sequence)];
      return queries[std::size_t(at.token)] == keys[std::size_t(first + at.key)];
    });
  }
}
TEST(GradientMask, SparseBlocksAreTheFormula) {
  std::uint32_t seed = 1;
  for (const BatchCase& batch : batches()) {
    for (const Index size : {4, 16, 64}) {
      const Index rows = (batch.longest_query() + size - 1) / size,
                  columns = (batch.longest_key() + size - 1) / size;
      const support::Bools B = support::random_bools(rows, columns * batch.heads, seed++, 0.3);
      expect_formula(
          batch, AnyMask(attn::block_sparse(attn::heads(B, batch.heads), size)),
          [&](const Pair& at) { return B(at.row / size, at.head * columns + at.key / size); });
    }
  }
}
TEST(GradientMask, AFunctorIsTheFormula) {
  for (const BatchCase& batch : batches()) {
    expect_formula(batch, AnyMask(attn::mask([](auto at) {
                     return at.key <= at.query + at.head && (at.query - at.key) % 3 != 1;
                   })),
                   [](const Pair& at) {
                     return at.key <= at.position + at.head && (at.position - at.key) % 3 != 1;
                   });
    expect_formula(
        batch,
        AnyMask(attn::mask([](attn::At at) { return (at.key + at.query + at.sequence) % 5 > 1; }) &&
                !attn::window(10, 10)),
        [](const Pair& at) {
          return (at.key + at.position + at.sequence) % 5 > 1 &&
                 std::abs(at.key - at.position) > 10;
        },
        2);
  }
}

/// A mask of a type of its own, aligned at the end: nothing of it is told at run time.
TEST(GradientMask, OfTheCallItselfIsTheFormula) {
  for (const BatchCase& batch : batches()) {
    const GradientCase<float> x(batch, 5, 3);
    auto options = x.reference();
    options.visible = [&](Index b, Index, Index i, Index j) {
      return j <= i + x.key_length(b) - x.query_length(b);
    };
    expect_gradients(support::trained(x, attn::causal(attn::align::lower_right)),
                     support::reference_gradient(x.Q, x.K, x.V, x.dY, options));
  }
}

}  // namespace
