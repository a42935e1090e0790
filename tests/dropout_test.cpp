// tests/dropout_test.cpp: which pairs dropout() drops: the definition, the same in lanes of any width, and how random they are.
// SPDX-License-Identifier: MIT
#include <attn/dropout.h>
#include <gtest/gtest.h>

#include <bitset>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "support/error_of.h"
#include "support/scalar_names.h"

namespace {

using attn::At;
using attn::dropout;
using attn::Index;
using attn::keeps;
using support::error_of;

/// The definition once more, from its description.
std::uint64_t mixed(std::uint64_t key, std::uint64_t number) {
  std::uint64_t z = key + 0x9e3779b97f4a7c15u * (number + 1);
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}
bool keeps_by_hand(std::uint32_t dropped, std::uint64_t seed, std::uint64_t stream, const At& at) {
  const std::uint64_t of_call = mixed(mixed(0, seed), stream),
                      of_head = mixed(of_call, (static_cast<std::uint64_t>(at.sequence) << 32) ^
                                                   static_cast<std::uint64_t>(at.head)),
                      of_row = mixed(of_head, static_cast<std::uint64_t>(at.query));
  std::uint32_t x = static_cast<std::uint32_t>(at.key / 32 * 16 + at.key % 16);
  x ^= static_cast<std::uint32_t>(of_row);
  x = (x ^ x >> 16) * 0x21f0aaadu + static_cast<std::uint32_t>(of_row >> 32);
  x = (x ^ x >> 15) * 0x735a2d97u;
  x ^= x >> 15;
  const std::uint32_t half = at.key % 32 < 16 ? x % 65536 : x / 65536;
  return (half + 32768) % 65536 >= dropped;
}

TEST(Dropout, IsItsDefinition) {
  const auto drop = dropout(0.3, 42, 7);
  EXPECT_EQ(drop.dropped, 19661u);  // 0.3 · 65536 = 19660.8
  for (Index sequence : {0, 1, 1000}) {
    for (Index head : {0, 5}) {
      for (Index query : {Index(-3), Index(0), Index(1), Index(77), Index(1) << 40}) {
        for (Index key = 0; key < 200; ++key) {
          const At at{sequence, head, query, key};
          EXPECT_EQ(keeps(drop, at), keeps_by_hand(19661, 42, 7, at));
        }
      }
    }
  }
}

// Masks outlive versions: a training run that goes on drops the same pairs.
TEST(Dropout, DropsTheSamePairsForever) {
  std::string kept;
  for (Index key = 0; key < 64; ++key)
    kept += keeps(dropout(0.5, 1, 2), {3, 4, 5, key}) ? '1' : '0';
  EXPECT_EQ(kept, "1001100001110010001110101100101000100101100001110111011111100111");
}

template <class Scalar>
class DropoutLanes : public testing::Test {};
using Scalars = testing::Types<float, double, long double>;
TYPED_TEST_SUITE(DropoutLanes, Scalars, support::ScalarNames);

// One packet, as many as a panel holds, and 32 keys, by masks and in place.
template <class S, int C>
void expect_lanes(const attn::detail::Dropout& drop, const At& first) {
  using Scalar = typename S::Scalar;
  const auto row = drop.bind<Scalar>(first).of(first.sequence, first.head, first.query);
  typename S::Mask mask[std::size_t{C}];
  typename S::Packet kept[std::size_t{C}];
  for (auto& x : kept) x = S::set(Scalar(1));
  row.template keeps<S>(first.key, mask);
  row.template keep<S>(first.key, kept, S::set(Scalar(-1)));
  for (int v = 0; v < C; ++v) {
    alignas(64) Scalar by_mask[S::width], in_place[S::width], alone[S::width];
    const auto choose = [](const typename S::Mask& m) {
      return S::select(m, S::set(Scalar(1)), S::set(Scalar(-1)));
    };
    S::store(by_mask, choose(mask[v]));
    S::store(in_place, kept[v]);
    S::store(alone, choose(row.template keeps<S>(first.key + v * S::width)));
    for (int w = 0; w < S::width; ++w) {
      const At at{first.sequence, first.head, first.query, first.key + v * S::width + w};
      const Scalar expected = keeps(drop, at) ? Scalar(1) : Scalar(-1);
      EXPECT_EQ(by_mask[w], expected) << C << " packets, key " << at.key;
      EXPECT_EQ(in_place[w], expected) << C << " packets, key " << at.key;
      EXPECT_EQ(alone[w], expected) << C << " packets, key " << at.key;
    }
  }
}
// The bits of a number, as the least that stay: it stays, and goes where one more is asked.
TYPED_TEST(DropoutLanes, StayAtTheThresholdItself) {
  using S = attn::detail::Simd<TypeParam>;
  const attn::detail::KeyedBits bits(0x0123456789abcdef);
  const auto kept = [&](std::uint32_t least, Index n) {
    alignas(64) TypeParam lanes[S::width];
    const auto mask = bits.template at_least<S>(least, n / S::width * S::width);
    S::store(lanes, S::select(mask, S::set(TypeParam(1)), S::set(TypeParam(0))));
    return lanes[n % S::width] > TypeParam(0);
  };
  for (Index n = 0; n < 64; ++n) {
    EXPECT_TRUE(kept(bits(n), n)) << n;
    EXPECT_TRUE(bits(n) == 0xffff || !kept(bits(n) + 1, n)) << n;
  }
}
TYPED_TEST(DropoutLanes, AreTheDefinition) {
  using S = attn::detail::Simd<TypeParam>;
  constexpr int kAll = 32 / S::width;
  for (const double p : {0.0, 0.1, 0.5, 65535. / 65536}) {
    for (Index key = 0; key < 1024; key += 64) {
      const At at{key % 3, key % 5, key - 100, key};
      for (int n = 0; n < 64; n += S::width)
        expect_lanes<S, 1>(dropout(p, 9), {at.sequence, at.head, at.query, key + n});
      for (int n = 0; n < 64; n += 2 * S::width)
        expect_lanes<S, 2>(dropout(p, 9), {at.sequence, at.head, at.query, key + n});
      expect_lanes<S, kAll>(dropout(p, 9), at);
      expect_lanes<S, 2 * kAll>(dropout(p, 9), at);
    }
  }
}

/// Dropped pairs of a square of rows and keys.
constexpr int kSize = 1024;
struct Dropped {
  std::vector<std::bitset<kSize>> rows = std::vector<std::bitset<kSize>>(kSize);
  double p;

  explicit Dropped(const attn::detail::Dropout& drop, Index sequence = 0, Index head = 0)
      : p(drop.dropped / 65536.) {
    for (int i = 0; i < kSize; ++i) {
      for (int j = 0; j < kSize; ++j)
        rows[std::size_t(i)][std::size_t(j)] = !keeps(drop, {sequence, head, i, j});
    }
  }
  double variance() const { return p * (1 - p); }
  double total() const {
    double sum = 0;
    for (const auto& row : rows) sum += double(row.count());
    return sum;
  }
};
/// How many standard deviations a count of `trials` independent pairs is off.
double deviations(double count, double trials, double probability) {
  return (count - trials * probability) / std::sqrt(trials * probability * (1 - probability));
}
/// Of the pairs that are dropped in both, b moved by so many rows and keys.
double correlation(const Dropped& a, const Dropped& b, int down, int right) {
  // Each pair that is there in both is a trial: (a − p)(b − p) has mean 0 and variance (p (1 − p))².
  double both = 0, first = 0, second = 0, trials = 0;
  std::bitset<kSize> overlap;
  overlap.set();
  overlap = right >= 0 ? overlap >> std::size_t(right) : overlap << std::size_t(-right);
  for (int i = 0; i + down < kSize; ++i) {
    const auto& x = a.rows[std::size_t(i)];
    const auto& y = b.rows[std::size_t(i + down)];
    const auto moved = right >= 0 ? y >> std::size_t(right) : y << std::size_t(-right);
    both += double((x & moved).count());
    first += double((x & overlap).count());
    second += double((moved & overlap).count());
    trials += double(overlap.count());
  }
  const double sum = both - a.p * second - b.p * first + trials * a.p * b.p;
  return sum / std::sqrt(trials * a.variance() * b.variance());
}

TEST(DropoutQuality, DropsTheRateThatIsAsked) {
  for (const double p : {1. / 65536, 0.01, 0.1, 0.5, 0.9, 65535. / 65536}) {
    const Dropped pairs(dropout(p, 3, 1));
    EXPECT_NEAR(pairs.p, p, 0.5 / 65536);
    EXPECT_LT(std::abs(deviations(pairs.total(), double(kSize) * kSize, pairs.p)), 4) << p;
  }
  EXPECT_EQ(Dropped(dropout(0, 3)).total(), 0);
}

TEST(DropoutQuality, RowsAndColumnsAreAsUnevenAsChanceHasThem) {
  for (const double p : {0.1, 0.5}) {
    const Dropped pairs(dropout(p, 5));
    double of_rows = 0, of_columns = 0, largest = 0;
    std::vector<double> column(kSize, 0);
    for (const auto& row : pairs.rows) {
      const double z = deviations(double(row.count()), kSize, pairs.p);
      of_rows += z * z;
      largest = std::max(largest, std::abs(z));
      for (int j = 0; j < kSize; ++j) column[std::size_t(j)] += row[std::size_t(j)] ? 1 : 0;
    }
    for (const double count : column) {
      const double z = deviations(count, kSize, pairs.p);
      of_columns += z * z;
      largest = std::max(largest, std::abs(z));
    }
    const double spread = std::sqrt(2. / kSize);  // of χ² / n
    EXPECT_NEAR(of_rows / kSize, 1, 4 * spread) << p;
    EXPECT_NEAR(of_columns / kSize, 1, 4 * spread) << p;
    EXPECT_LT(largest, 5) << p;
  }
}

TEST(DropoutQuality, PairsNearOneAnotherFallIndependently) {
  const Dropped pairs(dropout(0.1, 8, 2));
  double largest = 0;
  for (int down = 0; down < 20; ++down) {
    for (int right = down == 0 ? 1 : -40; right <= 40; ++right)
      largest = std::max(largest, std::abs(correlation(pairs, pairs, down, right)));
  }
  EXPECT_LT(largest, 5);  // of 1579: 3.4 ± 0.4
  EXPECT_GT(largest, 2.5);
}

TEST(DropoutQuality, SeedsStreamsSequencesAndHeadsHaveMasksOfTheirOwn) {
  const std::vector<Dropped> masks = {
      Dropped(dropout(0.3, 0, 0)),    Dropped(dropout(0.3, 1, 0)),
      Dropped(dropout(0.3, 0, 1)),    Dropped(dropout(0.3, 1, 1)),
      Dropped(dropout(0.3, 2, 3)),    Dropped(dropout(0.3, 3, 2)),
      Dropped(dropout(0.3, ~0ull)),   Dropped(dropout(0.3, 0), 0, 1),
      Dropped(dropout(0.3, 0), 1, 0), Dropped(dropout(0.3, 0), 1, 1),
      Dropped(dropout(0.3, 0), 2, 3), Dropped(dropout(0.3, 0), 3, 2)};
  for (std::size_t a = 0; a < masks.size(); ++a) {
    for (std::size_t b = 0; b < a; ++b)
      EXPECT_LT(std::abs(correlation(masks[a], masks[b], 0, 0)), 4.5) << a << " and " << b;
  }
}

TEST(Dropout, RoundsItsProbability) {
  EXPECT_EQ(dropout(0.4 / 65536, 0).dropped, 0u);
  EXPECT_EQ(dropout(0.6 / 65536, 0).dropped, 1u);
  EXPECT_EQ(dropout(-0.0, 0).dropped, 0u);
  EXPECT_EQ(dropout(1 - 0x1.01p-17, 0).dropped, 65535u);
  const auto drop = dropout(0.1, 0);
  EXPECT_EQ(drop.bind<double>(0).scale, 65536. / (65536 - 6554));
  EXPECT_EQ(drop.bind<float>(0).scale, 65536.f / (65536 - 6554));
  EXPECT_EQ(dropout(0, 0).bind<float>(0).scale, 1.f);
}

TEST(Dropout, RefusesWhatIsNoProbability) {
  const auto refused = [](double p) { return error_of([&] { (void)dropout(p, 1); }); };
  const std::string needs = ", needs 0 <= p < 1, at most what rounds to 65535/65536";
  EXPECT_EQ(refused(1), "attn::dropout: p is 1" + needs);
  EXPECT_EQ(refused(-0.25), "attn::dropout: p is -0.25" + needs);
  EXPECT_EQ(refused(1.5), "attn::dropout: p is 1.5" + needs);
  EXPECT_EQ(refused(std::numeric_limits<double>::quiet_NaN()), "attn::dropout: p is nan" + needs);
  EXPECT_EQ(refused(std::numeric_limits<double>::infinity()), "attn::dropout: p is inf" + needs);
  EXPECT_EQ(refused(1e300), "attn::dropout: p is 1e+300" + needs);
  EXPECT_EQ(refused(0.999993), "attn::dropout: p is 0.999993" + needs);  // rounds to 1
  EXPECT_EQ(refused(-1e-300), "attn::dropout: p is -1e-300" + needs);
  EXPECT_EQ(refused(0.999992), "nothing was refused");
}

}  // namespace
