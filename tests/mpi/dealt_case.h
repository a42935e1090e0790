// tests/mpi/dealt_case.h: one call in one process and over ranks, compared to the bit.
// SPDX-License-Identifier: MIT
#pragma once

#include <attn/attn.h>
#include <attn/mpi.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random.h"

namespace support {

using attn::Index;

/// The sizes of a call whose rows are dealt; block 0: as deal() chooses.
struct DealtCase {
  Index tokens, heads, kv_heads, key_dim, value_dim, block;

  std::string text() const {
    const auto number = [](Index n) { return std::to_string(n) + " "; };
    return number(tokens) + "tokens, heads " + number(heads) + number(kv_heads) + "of " +
           number(key_dim) + number(value_dim) + "in blocks of " + number(block);
  }
  attn::mpi::Dealt dealt(const attn::mpi::Ranks& ranks) const {
    return block == 0 ? ranks.deal(tokens) : ranks.deal(tokens, attn::mpi::block(block));
  }
};

/// None, one, fewer than ranks, what divides by nothing; over several blocks of keys; heads alone and
/// in groups.
inline std::vector<DealtCase> dealt_cases() {
  return {{0, 2, 1, 8, 8, 0},     {1, 2, 2, 8, 8, 0},    {5, 4, 2, 16, 8, 0},
          {37, 6, 3, 20, 12, 4},  {64, 4, 4, 16, 16, 1}, {300, 4, 2, 16, 24, 0},
          {613, 4, 2, 16, 16, 50}};
}

/// Operands of a case, the same on every rank.
template <class Stored, class KeyStored = Stored>
struct DealtOperands {
  DynamicMatrix<Stored> query;
  DynamicMatrix<KeyStored> key, value;
  explicit DealtOperands(const DealtCase& c)
      : query(uniform<Stored>(c.tokens, c.heads * c.key_dim, 1)),
        key(uniform<KeyStored>(c.tokens, c.kv_heads * c.key_dim, 2)),
        value(uniform<KeyStored>(c.tokens, c.kv_heads * c.value_dim, 3)) {}
};

/// The rows of this rank are those of one process; `saved`: a number of each row as well.
template <class Stored, class KeyStored = Stored, class... Options>
void expect_same_bits(const attn::mpi::Ranks& ranks, const DealtCase& c, Options&&... options) {
  SCOPED_TRACE(c.text());
  const DealtOperands<Stored, KeyStored> all(c);
  const auto dealt = c.dealt(ranks);
  const DynamicMatrix<Stored> q = dealt.local(all.query);
  const DynamicMatrix<KeyStored> k = dealt.local(all.key), v = dealt.local(all.value);
  using Compute = attn::compute_t<Stored>;
  DynamicMatrix<Stored> one, mine;
  DynamicMatrix<Compute> one_lse, mine_lse;
  attn::attention(attn::heads(all.query, c.heads), attn::heads(all.key, c.kv_heads),
                  attn::heads(all.value, c.kv_heads), attn::into(one),
                  attn::save_logsumexp(one_lse), options...);
  attn::mpi::attention(dealt, attn::heads(q, c.heads), attn::heads(k, c.kv_heads),
                       attn::heads(v, c.kv_heads), attn::into(mine), attn::save_logsumexp(mine_lse),
                       options...);
  EXPECT_TRUE(same_bits(mine, dealt.local(one)));
  EXPECT_TRUE(same_bits(mine_lse, dealt.local(one_lse)));
}

}  // namespace support
