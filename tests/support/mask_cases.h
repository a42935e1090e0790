// tests/support/mask_cases.h: masks held against rules of the tests' own, over batches of all kinds.
// SPDX-License-Identifier: MIT
#pragma once

#include <attn/attn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>
#include <vector>

#include "batch_case.h"
#include "matrix_matchers.h"
#include "random.h"
#include "reference_attention.h"

namespace support {

using Eigen::MatrixXf;
using Bools = Eigen::Matrix<bool, Eigen::Dynamic, Eigen::Dynamic>;

using Case = BatchCase;

struct Pair {
  Index sequence, head, row, position, key;
  Index token;  ///< row among all query tokens
};
using Rule = std::function<bool(const Pair&)>;
/// The position of a sequence's first query, by (sequence, Lq, Lk).
using Offset = std::function<Index(Index, Index, Index)>;

inline const Offset kFromZero = [](Index, Index, Index) { return Index(0); };
inline const Offset kLowerRight = [](Index, Index queries, Index keys) { return keys - queries; };

inline const std::vector<Case>& square_cases() {
  static const std::vector<Case> cases = {{{0, 1}, {0, 1}},
                                          {{0, 37}, {0, 37}},
                                          {{0, 300}, {0, 300}},
                                          {{0, 5, 5, 45}, {0, 5, 5, 45}, 4, 2}};
  return cases;
}
inline const std::vector<Case>& all_cases() {
  static const std::vector<Case> cases = [] {
    std::vector<Case> more = square_cases();
    more.push_back({{0, 70}, {0, 530}});                    // several blocks of keys
    more.push_back({{0, 41}, {0, 7}});                      // more queries than keys
    more.push_back({{0, 5, 17, 18}, {0, 9, 9, 75}, 6, 2});  // one sequence without keys
    more.push_back({{0, 3, 20}, {0, 33}, 2, 1});            // keys that serve both sequences
    return more;
  }();
  return cases;
}

/// Attention with these options equals the formula over the pairs of the rule.
template <class... Options>
void expect_attends(const Case& c, const Rule& rule, const Offset& offset,
                    const Options&... options) {
  const Index key_dim = 5, value_dim = 3;
  const MatrixXf Q = uniform<float>(c.queries.back(), c.heads * key_dim, 1, 2);
  const MatrixXf K = uniform<float>(c.keys.back(), c.kv_heads * key_dim, 2, 2);
  const MatrixXf V = uniform<float>(c.keys.back(), c.kv_heads * value_dim, 3);
  MatrixXf Y, l;
  attn::attention(attn::heads(Q, c.heads), attn::heads(K, c.kv_heads), attn::heads(V, c.kv_heads),
                  attn::into(Y), attn::save_logsumexp(l), attn::sequences(c.queries, c.keys),
                  options...);

  ReferenceOptions asked;
  asked.heads = c.heads;
  asked.kv_heads = c.kv_heads;
  asked.query_offsets = c.queries;
  asked.key_offsets = c.keys;
  asked.visible = [&](Index b, Index h, Index i, Index j) {
    const Index position = i + offset(b, c.query_length(b), c.key_length(b));
    return rule({b, h, i, position, j, c.queries[std::size_t(b)] + i});
  };
  const auto expected = reference_attention(Q, K, V, asked);
  EXPECT_TRUE(near(Y, expected.output, 1e-6));
  EXPECT_TRUE(near(l, expected.logsumexp, 4e-6));
}

/// What a bound mask answers the engine, against its rule by brute force.
template <class Mask>
void expect_honest(const Case& c, const Rule& rule, const Offset& offset, const Mask& mask,
                   int trials = 40) {
  using S = attn::detail::Simd<float>;
  const attn::detail::IndexList query_offsets(c.queries), key_offsets(c.keys);
  attn::detail::CallShape shape;
  shape.heads = c.heads;
  shape.kv_heads = c.kv_heads;
  shape.queries = {c.sequences(), 0, &query_offsets};
  shape.keys = {Index(c.keys.size()) - 1, 0, &key_offsets};
  shape.shared_keys = shape.keys.sequences != shape.queries.sequences;
  const auto bound = mask.bind(shape);

  std::mt19937 engine(7);
  const auto pick = [&](Index first, Index last) {
    return first + Index(engine() % std::uint32_t(last - first + 1));
  };
  for (Index b = 0; b < c.sequences(); ++b) {
    const Index queries = c.query_length(b), keys = c.key_length(b);
    if (queries == 0 || keys == 0) continue;
    const Index first_position = offset(b, queries, keys);
    for (int trial = 0; trial < trials; ++trial) {
      attn::QueryRows rows{};
      rows.sequence = b;
      rows.begin = pick(0, queries - 1);
      rows.end = pick(rows.begin + 1, std::min(queries, rows.begin + 14));
      rows.head_begin = pick(0, c.heads - 1);
      rows.head_end = pick(rows.head_begin + 1, c.heads);
      rows.first_token = c.queries[std::size_t(b)];
      rows.offset = first_position;
      rows.keys = keys;
      const attn::KeyRange asked{pick(0, keys - 1), 0};
      const attn::KeyRange range{asked.begin, pick(asked.begin + 1, keys)};

      const attn::KeyRange some = bound.keys(rows), full = bound.full_keys(rows);
      bool none_seen = true, all_seen = true;
      for (Index h = rows.head_begin; h < rows.head_end; ++h) {
        for (Index i = rows.begin; i < rows.end; ++i) {
          const attn::QueryRow row = rows.row(i, h);
          for (Index j = 0; j < keys; ++j) {
            const bool visible = rule({b, h, i, i + first_position, j, rows.first_token + i});
            ASSERT_EQ(bound(row, j), visible) << "row " << i << ", key " << j;
            if (visible) {
              ASSERT_TRUE(some.begin <= j && j < some.end)
                  << "keys() loses key " << j << " of row " << i;
            } else {
              ASSERT_FALSE(full.begin <= j && j < full.end)
                  << "full_keys() shows key " << j << " to row " << i;
            }
            if (range.begin <= j && j < range.end) (visible ? none_seen : all_seen) = false;
          }
          const Index key = pick(0, keys - 1);
          alignas(64) float lanes[S::width];
          S::store(lanes, S::select(bound.template lanes<S>(row, key), S::set(1.f), S::set(0.f)));
          for (Index w = 0; w < S::width && key + w < keys; ++w) {
            ASSERT_EQ(lanes[w] == 1.f, bound(row, key + w)) << "lane " << w << " of key " << key;
          }
        }
      }
      const attn::detail::Cover covered = attn::detail::cover(bound, rows, range);
      ASSERT_TRUE(covered != attn::detail::Cover::none || none_seen);
      ASSERT_TRUE(covered != attn::detail::Cover::all || all_seen);
      for (const Index j : {Index(0), range.begin, range.end, keys}) {
        ASSERT_EQ(attn::detail::cover(bound, rows, {j, j}), attn::detail::Cover::none)
            << "of no keys at " << j;
      }
    }
  }
}

/// Both, for each case.
template <class Mask>
void expect_mask(const std::vector<Case>& cases, const Mask& mask, const Rule& rule,
                 const Offset& offset = kFromZero) {
  for (const Case& c : cases) {
    SCOPED_TRACE(testing::Message()
                 << c.sequences() << " sequences, the last of " << c.query_length(c.sequences() - 1)
                 << " queries and " << c.key_length(c.sequences() - 1) << " keys");
    expect_attends(c, rule, offset, mask);
    expect_honest(c, rule, offset, mask);
  }
}

inline const Rule kCausal = [](const Pair& at) { return at.key <= at.position; };

}  // namespace support
