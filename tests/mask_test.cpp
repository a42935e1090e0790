// tests/mask_test.cpp: which query sees which key: every mask against a rule of the test's own, and
// what masks tell the engine. SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/reference_attention.h"

namespace {

using attn::align;
using Eigen::Index;
using Eigen::MatrixXf;
using support::near;
using support::same_bits;
using Bools = Eigen::Matrix<bool, Eigen::Dynamic, Eigen::Dynamic>;

/// Row offsets of a batch and its heads. One sequence of keys serves all sequences of queries.
struct Case {
  std::vector<Index> queries, keys;
  Index heads = 1, kv_heads = 1;

  Index sequences() const { return Index(queries.size()) - 1; }
  Index query_length(Index b) const {
    return queries[std::size_t(b) + 1] - queries[std::size_t(b)];
  }
  Index key_length(Index b) const {
    if (keys.size() == 2) b = 0;
    return keys[std::size_t(b) + 1] - keys[std::size_t(b)];
  }
  Index longest_query() const {
    Index longest = 0;
    for (Index b = 0; b < sequences(); ++b) longest = std::max(longest, query_length(b));
    return longest;
  }
  Index longest_key() const {
    Index longest = 0;
    for (Index b = 0; b < sequences(); ++b) longest = std::max(longest, key_length(b));
    return longest;
  }
};

struct Pair {
  Index sequence, head, row, position, key;
  Index token;  ///< row among all query tokens
};
using Rule = std::function<bool(const Pair&)>;
/// The position of a sequence's first query, by (sequence, Lq, Lk).
using Offset = std::function<Index(Index, Index, Index)>;

const Offset kFromZero = [](Index, Index, Index) { return Index(0); };
const Offset kLowerRight = [](Index, Index queries, Index keys) { return keys - queries; };

const std::vector<Case>& square_cases() {
  static const std::vector<Case> cases = {{{0, 1}, {0, 1}},
                                          {{0, 37}, {0, 37}},
                                          {{0, 300}, {0, 300}},
                                          {{0, 5, 5, 45}, {0, 5, 5, 45}, 4, 2}};
  return cases;
}
const std::vector<Case>& all_cases() {
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
  const MatrixXf Q = support::uniform<float>(c.queries.back(), c.heads * key_dim, 1, 2);
  const MatrixXf K = support::uniform<float>(c.keys.back(), c.kv_heads * key_dim, 2, 2);
  const MatrixXf V = support::uniform<float>(c.keys.back(), c.kv_heads * value_dim, 3);
  MatrixXf Y, l;
  attn::attention(attn::heads(Q, c.heads), attn::heads(K, c.kv_heads), attn::heads(V, c.kv_heads),
                  attn::into(Y), attn::save_logsumexp(l), attn::sequences(c.queries, c.keys),
                  options...);

  support::ReferenceOptions asked;
  asked.heads = c.heads;
  asked.kv_heads = c.kv_heads;
  asked.query_offsets = c.queries;
  asked.key_offsets = c.keys;
  asked.visible = [&](Index b, Index h, Index i, Index j) {
    const Index position = i + offset(b, c.query_length(b), c.key_length(b));
    return rule({b, h, i, position, j, c.queries[std::size_t(b)] + i});
  };
  const auto expected = support::reference_attention(Q, K, V, asked);
  EXPECT_TRUE(near(Y, expected.output, 1e-6));
  EXPECT_TRUE(near(l, expected.logsumexp, 4e-6));
}

/// What a bound mask answers the engine, against its rule by brute force.
template <class Mask>
void expect_honest(const Case& c, const Rule& rule, const Offset& offset, const Mask& mask) {
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
    for (int trial = 0; trial < 40; ++trial) {
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
      const attn::detail::Cover covered = cover(bound, rows, range);
      ASSERT_TRUE(covered != attn::detail::Cover::none || none_seen);
      ASSERT_TRUE(covered != attn::detail::Cover::all || all_seen);
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

// ---- By position

const Rule kCausal = [](const Pair& at) { return at.key <= at.position; };

TEST(CausalMask, SeesTheKeysUpToItself) { expect_mask(square_cases(), attn::causal(), kCausal); }

TEST(CausalMask, UpperLeftAlignsTheFirstRows) {
  expect_mask(all_cases(), attn::causal(align::upper_left), kCausal);
}

TEST(CausalMask, LowerRightAlignsTheLastRows) {
  expect_mask(all_cases(), attn::causal(align::lower_right), kCausal, kLowerRight);
}

TEST(CausalMask, FromAnOffsetMayBeNegative) {
  for (const Index offset : {0, 3, -4, 1000}) {
    expect_mask(all_cases(), attn::causal_from(offset), kCausal,
                [=](Index, Index, Index) { return offset; });
  }
}

TEST(CausalMask, TakesAnOffsetForEachSequence) {
  const std::vector<Index> offsets = {4, -3, 60};
  const Offset of_sequence = [&](Index b, Index, Index) { return offsets[std::size_t(b)]; };
  const Case c = all_cases()[6];
  expect_attends(c, kCausal, of_sequence, attn::causal_from(offsets));
  expect_attends(c, kCausal, of_sequence, attn::causal_from({4, -3, 60}));
  expect_attends(c, kCausal, of_sequence, attn::causal(), attn::query_offset(offsets));
  expect_attends(c, kCausal, of_sequence, attn::query_offset({4, -3, 60}), attn::causal());
}

TEST(QueryOffset, ReachesEveryMaskOfTheCall) {
  const Offset five = [](Index, Index, Index) { return Index(5); };
  const Rule band = [](const Pair& at) {
    return at.key <= at.position && at.key >= at.position - 2;
  };
  for (const Case& c : all_cases()) {
    expect_attends(c, band, five, attn::query_offset(5), attn::causal(), attn::window(2, -1));
    expect_attends(c, band, five, attn::window(2, -1) && attn::causal_from(5));
    expect_attends(c, band, five, attn::window(2, 0), attn::query_offset(5));
  }
}

TEST(QueryOffset, IsFoundAnywhereInTheMask) {
  const Rule rule = [](const Pair& at) {
    return !(at.key <= at.position) || at.key == at.position - 1;
  };
  for (const Case& c : all_cases()) {
    const auto own_window =
        !(!attn::window(1, -1) || !attn::window(-1, -1)) && !attn::window(0, -1);
    expect_attends(c, rule, kLowerRight, own_window || !attn::causal(align::lower_right));
  }
}

TEST(LowerRight, CountsFromTheKeyLength) {
  const Case c = all_cases()[6];  // keys 9, 0, 66
  const std::vector<Index> lengths = {7, 0, 40};
  const auto length = [&](Index b) { return lengths[std::size_t(b)]; };
  const Offset offset = [&](Index b, Index queries, Index) { return length(b) - queries; };
  const Rule rule = [&](const Pair& at) {
    return at.key <= at.position && at.key < length(at.sequence);
  };
  const auto causal = attn::causal(align::lower_right);
  expect_attends(c, rule, offset, causal, attn::key_lengths(lengths));
  expect_attends(c, rule, offset, attn::key_lengths(lengths), causal);
  expect_attends(c, rule, offset, attn::key_lengths(lengths) && causal);
  expect_attends(c, rule, offset, attn::window(-1, -1) && (causal && attn::key_lengths(lengths)));
}

TEST(LowerRight, CountsFromTheEndOfAKeyRange) {
  const Case c = {{0, 5, 9}, {0, 12, 21}};
  const Offset offset = [](Index b, Index queries, Index) { return (b == 0 ? 10 : 9) - queries; };
  const Rule rule = [](const Pair& at) {
    return at.key <= at.position && at.key >= (at.sequence == 0 ? 2 : 5);
  };
  expect_attends(c, rule, offset, attn::key_range({2, 5}, {10, 9}),
                 attn::causal(align::lower_right));
}

TEST(LowerRight, IsNotMovedByALengthThatDoesNotBindTheCall) {
  const Case c = {{0, 5}, {0, 12}};
  const Rule rule = [](const Pair& at) { return at.key <= at.position || at.key < 3; };
  expect_attends(c, rule, kLowerRight, attn::causal(align::lower_right) || attn::key_lengths(3));
}

TEST(WindowMask, SeesItsBandEndsIncluded) {
  for (const auto& [left, right] : {std::pair<Index, Index>{0, 0}, {3, 0}, {2, 4}, {40, 1}}) {
    const Index l = left, r = right;
    expect_mask(all_cases(), attn::window(l, r), [=](const Pair& at) {
      return at.position - l <= at.key && at.key <= at.position + r;
    });
  }
}

TEST(WindowMask, MinusOneIsUnbounded) {
  expect_mask(all_cases(), attn::window(-1, 2),
              [](const Pair& at) { return at.key <= at.position + 2; });
  expect_mask(all_cases(), attn::window(2, -1),
              [](const Pair& at) { return at.key >= at.position - 2; });
  expect_mask(all_cases(), attn::window(-1, -1), [](const Pair&) { return true; });
}

TEST(WindowMask, TakesAnyWidth) {
  const Index most = std::numeric_limits<Index>::max();
  for (const Index wide : {Index(1) << 40, most / 2, most}) {
    expect_mask(square_cases(), attn::window(wide, wide), [](const Pair&) { return true; });
  }
}

// ---- By key

TEST(KeyLengths, CutEachSequence) {
  const Case c = all_cases()[6];
  const std::vector<int> lengths = {4, 0, 33};
  const Rule rule = [&](const Pair& at) { return at.key < lengths[std::size_t(at.sequence)]; };
  expect_mask({c}, attn::key_lengths(lengths), rule);
  expect_mask({c}, attn::key_lengths({4, 0, 33}), rule);
}

TEST(KeyLengths, OfOneEntryServeAllSequences) {
  const Case c = {{0, 5, 17}, {0, 9, 21}, 2, 1};
  const Rule rule = [](const Pair& at) { return at.key < 6; };
  expect_mask({c}, attn::key_lengths(6), rule);
  expect_mask({c}, attn::key_lengths({6}), rule);
}

TEST(KeyLengths, OfSharedKeysBelongToTheQueries) {
  const Case c = {{0, 3, 20}, {0, 33}, 2, 1};
  expect_mask({c}, attn::key_lengths({33, 2}),
              [](const Pair& at) { return at.key < (at.sequence == 0 ? 33 : 2); });
}

TEST(KeyRange, CutsBothEnds) {
  const Case c = all_cases()[6];
  const std::vector<Index> begin = {8, 0, 31}, end = {9, 0, 65};
  const Rule rule = [&](const Pair& at) {
    const auto b = std::size_t(at.sequence);
    return begin[b] <= at.key && at.key < end[b];
  };
  expect_mask({c}, attn::key_range(begin, end), rule);
  expect_mask({c}, attn::key_range({8, 0, 31}, {9, 0, 65}), rule);
  expect_mask({{{0, 5, 17}, {0, 9, 21}}}, attn::key_range(2, 7),
              [](const Pair& at) { return 2 <= at.key && at.key < 7; });
}

TEST(KeyRange, OfNothingGivesZerosAndMinusInfinity) {
  const MatrixXf Q = support::uniform<float>(9, 5, 1), K = support::uniform<float>(40, 5, 2);
  MatrixXf l;
  const MatrixXf Y = attn::attention(Q, K, K, attn::key_range(17, 17), attn::save_logsumexp(l));
  EXPECT_TRUE(same_bits(Y, MatrixXf::Zero(9, 5)));
  EXPECT_TRUE(same_bits(l, MatrixXf::Constant(9, 1, -std::numeric_limits<float>::infinity())));
}

// ---- By matrix

/// B(row or token, [head ·] Lk + key) as a rule.
Rule rule_of(const Bools& B, const Case& c, bool stacked, Index heads, bool polarity) {
  const Index keys = c.longest_key();
  return [=](const Pair& at) {
    return B(stacked ? at.token : at.row, (heads == 1 ? 0 : at.head) * keys + at.key) == polarity;
  };
}

TEST(KeepMask, OfLqByLkServesAllSequencesAndHeads) {
  for (const Case& c : all_cases()) {
    const Bools B = support::random_bools(c.longest_query(), c.longest_key(), 5);
    expect_mask({c}, attn::keep(B), rule_of(B, c, false, 1, true));
  }
}

TEST(HideMask, IsKeepWithTheOtherPolarity) {
  for (const Case& c : all_cases()) {
    const Bools B = support::random_bools(c.longest_query(), c.longest_key(), 6, 0.2);
    expect_mask({c}, attn::hide(B), rule_of(B, c, false, 1, false));
  }
}

TEST(KeepMask, OfStackedRowsHasOneForEachToken) {
  for (const Case& c : all_cases()) {
    const Bools B = support::random_bools(c.queries.back(), c.longest_key(), 7);
    expect_mask({c}, attn::keep(B), rule_of(B, c, true, 1, true));
  }
}

TEST(KeepMask, OfHeadsHasOneForEachHead) {
  for (const Case& c : all_cases()) {
    const Bools shared = support::random_bools(c.longest_query(), c.heads * c.longest_key(), 8);
    expect_mask({c}, attn::keep(attn::heads(shared, c.heads)),
                rule_of(shared, c, false, c.heads, true));
    const Bools stacked = support::random_bools(c.queries.back(), c.heads * c.longest_key(), 9);
    expect_mask({c}, attn::keep(attn::heads(stacked, c.heads)),
                rule_of(stacked, c, true, c.heads, true));
  }
}

TEST(KeepMask, OfAStridedViewBroadcastsDimensionsOfOne) {
  const Case c = {{0, 4, 8, 12}, {0, 35, 70, 105}, 4, 2};
  const Index B = 3, H = 4, Lq = 4, Lk = 35;
  const Bools memory = support::random_bools(B * H * Lq * Lk, 1, 10);
  for (int which = 0; which < 16; ++which) {
    const Index b = which & 1 ? B : 1, h = which & 2 ? H : 1, q = which & 4 ? Lq : 1,
                k = which & 8 ? Lk : 1;
    SCOPED_TRACE(testing::Message() << "[" << b << ", " << h << ", " << q << ", " << k << "]");
    const auto at = [=](Index size, Index i) { return size == 1 ? 0 : i; };
    expect_mask({c}, attn::keep(attn::bhld(memory.data(), b, h, q, k)), [&](const Pair& p) {
      return memory(((at(b, p.sequence) * h + at(h, p.head)) * q + at(q, p.row)) * k +
                    at(k, p.key));
    });
  }
}

TEST(KeepMask, TakesAnyMatrixOfBool) {
  const Case c = {{0, 21}, {0, 45}};
  const Bools B = support::random_bools(21, 45, 11);
  const Rule rule = rule_of(B, c, false, 1, true);
  const support::DynamicMatrix<bool> row_major = B;
  const Bools transposed = B.transpose();
  Bools big = Bools::Constant(30, 50, true);
  big.block(4, 3, 21, 45) = B;
  const MatrixXf numbers = B.cast<float>();
  expect_attends(c, rule, kFromZero, attn::keep(row_major));
  expect_attends(c, rule, kFromZero, attn::keep(transposed.transpose()));
  expect_attends(c, rule, kFromZero, attn::keep(big.block(4, 3, 21, 45)));
  expect_attends(c, rule, kFromZero, attn::keep(numbers.array() > 0));
  expect_attends(c, rule, kFromZero, attn::hide(numbers.array() == 0));
}

TEST(KeepMask, OwnsTheExpressionItWasMadeOf) {
  const Case c = {{0, 21}, {0, 45}};
  const Bools B = support::random_bools(21, 45, 12);
  const auto stored = [&] {
    const MatrixXf numbers = B.cast<float>();
    return attn::keep(numbers.array() > 0) && !attn::hide(Bools(B));
  }();
  expect_attends(c, rule_of(B, c, false, 1, true), kFromZero, stored);
}

// ---- Compositions

TEST(ComposedMask, SeveralOptionsAreJoinedByAnd) {
  const Case c = all_cases()[5];  // 41 queries, 7 keys
  const Bools B = support::random_bools(41, 7, 13, 0.7);
  const Rule rule = [&](const Pair& at) {
    return B(at.row, at.key) && at.key <= at.position && at.key < 6 && at.key >= at.position - 3;
  };
  expect_attends(c, rule, kFromZero, attn::keep(B), attn::causal(align::upper_left),
                 attn::key_lengths(6), attn::window(3, -1));
  expect_attends(c, rule, kFromZero,
                 attn::window(3, -1) && attn::keep(B) && attn::causal(align::upper_left) &&
                     attn::key_lengths(6));
}

TEST(ComposedMask, OrKeepsBothParts) {
  // The first keys stay visible beside a sliding window; the gap between them is hidden.
  expect_mask(square_cases(), (attn::window(3, 0) || attn::key_lengths(1)) && attn::causal(),
              [](const Pair& at) {
                return (at.key >= at.position - 3 || at.key < 1) && at.key <= at.position;
              });
  expect_mask(all_cases(), attn::window(-1, -3) || attn::window(1, 1),
              [](const Pair& at) { return std::abs(at.key - at.position) <= 1; });
}

TEST(ComposedMask, NotIsTheComplement) {
  expect_mask(all_cases(), !attn::window(2, 3),
              [](const Pair& at) { return at.key < at.position - 2 || at.key > at.position + 3; });
  expect_mask(all_cases(), !attn::causal(align::lower_right), std::not_fn(kCausal), kLowerRight);
  expect_mask(all_cases(), !attn::causal_from(-30), std::not_fn(kCausal),
              [](Index, Index, Index) { return Index(-30); });
  expect_mask(all_cases(), !attn::window(-1, -1), [](const Pair&) { return false; });
}

TEST(ComposedMask, OfAllOperatorsFollowsTheRule) {
  for (const Case& c : all_cases()) {
    const Bools B = support::random_bools(c.longest_query(), c.longest_key(), 14);
    expect_mask(
        {c},
        (!attn::keep(B) || attn::window(1, 0)) && !(attn::causal_from(-2) && attn::window(20, -1)),
        [&](const Pair& at) {
          const bool in_window = at.position - 1 <= at.key && at.key <= at.position;
          return (!B(at.row, at.key) || in_window) &&
                 !(at.key <= at.position && at.key >= at.position - 20);
        },
        [](Index, Index, Index) { return Index(-2); });
  }
}

TEST(ComposedMask, SharedWordsMeanTheSameAsConjunction) {
  const MatrixXf Q = support::uniform<float>(33, 5, 1), K = support::uniform<float>(33, 5, 2);
  const MatrixXf joined = attn::attention(Q, K, K, attn::causal() && attn::window(4, -1));
  const MatrixXf listed = attn::attention(Q, K, K, attn::window(4, -1), attn::causal());
  const MatrixXf window = attn::attention(Q, K, K, attn::window(4, 0));
  EXPECT_TRUE(same_bits(joined, listed));
  EXPECT_TRUE(same_bits(joined, window));
}

// ---- Work

/// A number that counts its products: the engine serves it by the schedule of all scalars.
struct Counted {
  double value = 0;
  static inline long products = 0;

  Counted() = default;
  Counted(double v) : value(v) {}  // NOLINT: numbers convert
  Counted(int v) : value(v) {}     // NOLINT
  explicit operator int() const { return int(value); }

  friend Counted operator*(Counted a, Counted b) {
    ++products;
    return a.value * b.value;
  }
  friend Counted operator+(Counted a, Counted b) { return a.value + b.value; }
  friend Counted operator-(Counted a, Counted b) { return a.value - b.value; }
  friend Counted operator/(Counted a, Counted b) { return a.value / b.value; }
  friend Counted operator-(Counted a) { return -a.value; }
  Counted& operator+=(Counted b) { return *this = *this + b; }
  Counted& operator-=(Counted b) { return *this = *this - b; }
  Counted& operator*=(Counted b) { return *this = *this * b; }
  Counted& operator/=(Counted b) { return *this = *this / b; }
  friend bool operator<(Counted a, Counted b) { return a.value < b.value; }
  friend bool operator<=(Counted a, Counted b) { return a.value <= b.value; }
  friend bool operator>(Counted a, Counted b) { return a.value > b.value; }
  friend bool operator>=(Counted a, Counted b) { return a.value >= b.value; }
  friend bool operator==(Counted a, Counted b) { return a.value == b.value; }
  friend bool operator!=(Counted a, Counted b) { return a.value != b.value; }
  friend Counted exp(Counted a) { return std::exp(a.value); }
  friend Counted log(Counted a) { return std::log(a.value); }
  friend Counted sqrt(Counted a) { return std::sqrt(a.value); }
  friend Counted abs(Counted a) { return std::abs(a.value); }
};

}  // namespace

namespace Eigen {
template <>
struct NumTraits<Counted> : NumTraits<double> {
  using Real = Counted;
  using NonInteger = Counted;
  using Literal = Counted;
  using Nested = Counted;
};
}  // namespace Eigen

namespace {

using Counts = Eigen::Matrix<Counted, Eigen::Dynamic, Eigen::Dynamic>;

/// Products of one call of Lq queries and Lk keys, 8 features.
template <class... Options>
double work(Index queries, Index keys, const Options&... options) {
  const Counts Q = Counts::Constant(queries, 8, 0.5), K = Counts::Constant(keys, 8, 0.25);
  Counts Y;
  Counted::products = 0;
  attn::attention(Q, K, K, attn::into(Y), options...);
  return double(Counted::products);
}

TEST(MaskWork, OfNoMaskIsTwoProductsAPairAndFeature) {
  EXPECT_NEAR(work(512, 512) / (2. * 512 * 512 * 8), 1, 0.1);
}

TEST(MaskWork, OfCausalIsHalf) {
  const double all = work(1024, 1024);
  EXPECT_NEAR(work(1024, 1024, attn::causal()) / all, 0.5, 0.02);
  EXPECT_NEAR(work(1024, 1024, !attn::causal()) / all, 0.5, 0.02);
  EXPECT_NEAR(work(256, 1024, attn::causal(align::lower_right)) / work(256, 1024), 0.875, 0.02);
}

TEST(MaskWork, OfAWindowIsItsBand) {
  const double all = work(1024, 1024), band = work(1024, 1024, attn::window(31, 0));
  EXPECT_LT(band / all, 2 * 32. / 1024);
  EXPECT_GT(band / all, 31. / 1024);
}

TEST(MaskWork, OfPaddingIsWhatItsKeysCost) {
  const double all = work(512, 512);
  EXPECT_NEAR(work(512, 512, attn::key_lengths(128)) / all, 0.25, 0.02);
  EXPECT_NEAR(work(512, 512, attn::key_range(200, 264)) / all, 0.125, 0.02);
  EXPECT_LT(work(512, 512, attn::key_lengths(0)) / all, 0.02);
}

TEST(MaskWork, OfAUnionLeavesOutTheGap) {
  const double all = work(1024, 1024);
  const double both =
      work(1024, 1024, (attn::window(31, 0) || attn::key_lengths(4)) && attn::causal());
  EXPECT_LT(both / all, 2.5 * 36. / 1024);
}

TEST(MaskWork, OfADifferenceLeavesOutTheHole) {
  const double all = work(1024, 1024);
  EXPECT_NEAR(work(1024, 1024, !attn::key_range(100, 868)) / all, 0.25, 0.03);
}

/// A mask that notes which pairs it is asked about, and otherwise is the one it holds.
struct Asked {
  long lanes = 0;
  Index first = std::numeric_limits<Index>::max(), last = -1;
};
template <class Bound>
struct BoundWatched : attn::mask_base {
  Bound bound;
  Asked* asked;
  BoundWatched(Bound b, Asked* a) : bound(std::move(b)), asked(a) {}
  bool operator()(const attn::QueryRow& row, Index key) const { return bound(row, key); }
  attn::KeyRange keys(const attn::QueryRows& rows) const { return bound.keys(rows); }
  attn::KeyRange full_keys(const attn::QueryRows& rows) const { return bound.full_keys(rows); }
  template <class S>
  typename S::Mask lanes(const attn::QueryRow& row, Index key) const {
    asked->lanes += S::width;
    asked->first = std::min(asked->first, key);
    asked->last = std::max(asked->last, key + S::width - 1);
    return bound.template lanes<S>(row, key);
  }
};
template <class Mask>
struct Watched : attn::mask_base {
  Mask mask;
  Asked* asked;
  Watched(Mask m, Asked* a) : mask(std::move(m)), asked(a) {}
  auto bind(const attn::detail::CallShape& shape) const {
    auto bound = mask.bind(shape);
    return BoundWatched<decltype(bound)>(std::move(bound), asked);
  }
};

TEST(MaskWork, AsksLanesOnlyOnTheBoundary) {
  const Index L = 1024;
  const MatrixXf Q = support::uniform<float>(L, 8, 1), K = support::uniform<float>(L, 8, 2);
  Asked causal, lengths;
  const MatrixXf watched =
      attn::attention(Q, K, K, Watched<attn::detail::Causal>(attn::causal(), &causal));
  EXPECT_TRUE(same_bits(watched, attn::attention(Q, K, K, attn::causal())));
  // A row's own panel, and a second one where a strip's rows end in two.
  constexpr Index panel = attn::kernel::TileSize<float>::panel;
  EXPECT_GT(causal.lanes, L);
  EXPECT_LE(causal.lanes, 2 * L * panel);

  (void)attn::attention(Q, K, K,
                        Watched<attn::detail::KeyBounds>(attn::key_lengths(700), &lengths));
  EXPECT_LE(lengths.lanes, L * panel);
  EXPECT_GE(lengths.first, 700 / panel * panel);
  EXPECT_LT(lengths.last, (700 / panel + 1) * panel);
}

}  // namespace
