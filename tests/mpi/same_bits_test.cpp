// tests/mpi/same_bits_test.cpp: attention over ranks is attention in one process, to the bit: masks, storage types, parts.
// SPDX-License-Identifier: MIT
#include "dealt_case.h"
#include "support/any_mask.h"

namespace {

using attn::Index;
using support::AnyMask;
using support::dealt_cases;
using support::DealtCase;
using support::expect_same_bits;

const attn::mpi::Ranks& ranks() {
  static const attn::mpi::Ranks all(MPI_COMM_WORLD);
  return all;
}

/// Documents of some tokens each, ascending or not.
std::vector<Index> documents(Index tokens, bool ascending) {
  std::vector<Index> ids;
  for (Index i = 0; i < tokens; ++i) ids.push_back(ascending ? i / 70 : (i / 3) % 4);
  return ids;
}

std::vector<AnyMask> masks_of(const DealtCase& c) {
  const Index some = c.tokens / 3;
  std::vector<AnyMask> masks{
      AnyMask(attn::causal()),
      AnyMask(attn::window(40, 7)),
      AnyMask(attn::causal() && attn::window(100, -1)),
      AnyMask(attn::segments(documents(c.tokens, true))),
      AnyMask(attn::causal() && attn::segments(documents(c.tokens, false))),
      AnyMask(attn::key_lengths(some)),
      AnyMask(attn::prefix_lm(some)),
      AnyMask(attn::mask([](Index query, Index key) { return (query + 2 * key) % 5 != 0; })),
      AnyMask(attn::mask([](attn::At at) { return at.sequence == 0 && at.key != at.head; })),
      AnyMask(!attn::window(30, 30)),
  };
  if (c.tokens > 0)
    masks.push_back(AnyMask(attn::keep(support::random_bools(c.tokens, c.tokens, 5))));
  return masks;
}

TEST(SameBits, UnderEveryMask) {
  for (const DealtCase& c : dealt_cases()) {
    int number = 0;
    for (const AnyMask& mask : masks_of(c)) {
      SCOPED_TRACE(number++);
      expect_same_bits<float>(ranks(), c, mask);
    }
  }
}

TEST(SameBits, WithoutAMask) {
  for (const DealtCase& c : dealt_cases()) expect_same_bits<float>(ranks(), c);
}

TEST(SameBits, OfKeysInParts) {
  for (const DealtCase& c : dealt_cases())
    for (const Index chunk : {1, 256, 512})
      expect_same_bits<float>(ranks(), c, attn::causal(), attn::split_keys(chunk));
}

TEST(SameBits, OfBfloat16) {
  for (const DealtCase& c : dealt_cases())
    expect_same_bits<float, Eigen::bfloat16>(ranks(), c, attn::causal());
}

TEST(SameBits, OfDouble) {
  for (const DealtCase& c : dealt_cases()) expect_same_bits<double>(ranks(), c, attn::causal());
}

// What the comparison is worth: results of parts of the keys, each merged as it arrives at a rank, are right, and have other bits.
TEST(Witnesses, MergedOnArrivalHasOtherBits) {
  using Matrix = support::DynamicMatrix<float>;
  const DealtCase c{800, 1, 1, 16, 16, 0};
  const support::DealtOperands<float> all(c);
  const Index parts = 4, length = c.tokens / parts;
  Matrix one;
  attn::attention(all.query, all.key, all.value, attn::into(one));
  int others = 0;
  for (Index first = 0; first < parts; ++first) {
    Matrix y, lse;
    for (Index n = 0; n < parts; ++n) {
      const Index begin = (first + n) % parts * length;
      Matrix part, part_lse;
      attn::attention(all.query, all.key.middleRows(begin, length),
                      all.value.middleRows(begin, length), attn::into(part),
                      attn::save_logsumexp(part_lse));
      if (n == 0) {
        y = part, lse = part_lse;
      } else {
        Matrix both, both_lse;
        attn::merge(y, lse, part, part_lse, attn::into(both), attn::save_logsumexp(both_lse));
        y = both, lse = both_lse;
      }
    }
    EXPECT_TRUE(support::near(y, one, 1e-5));
    others += int(!support::same_bits(y, one));
  }
  EXPECT_EQ(others, parts);
}

}  // namespace
