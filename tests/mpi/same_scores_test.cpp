// tests/mpi/same_scores_test.cpp: the same of what happens to scores, by head and by position, of dropout, and of what is saved.
// SPDX-License-Identifier: MIT
#include <attn/dropout.h>
#include <attn/rotary.h>

#include "dealt_case.h"

namespace {

using attn::Index;
using support::dealt_cases;
using support::DealtCase;
using support::expect_same_bits;
using Matrix = support::DynamicMatrix<float>;

const attn::mpi::Ranks& ranks() {
  static const attn::mpi::Ranks all(MPI_COMM_WORLD);
  return all;
}

std::vector<float> numbers_by_head(Index heads, float first, float step) {
  std::vector<float> numbers;
  for (Index h = 0; h < heads; ++h) numbers.push_back(first + step * float(h));
  return numbers;
}

// Everything that has a number for each head, and a functor of lanes that reads where it stands.
TEST(SameScores, ByHeadAndPosition) {
  for (const DealtCase& c : dealt_cases()) {
    const auto slopes = numbers_by_head(c.heads, 0.01f, 0.03f);
    const auto sinks = numbers_by_head(c.heads, -1.f, 0.5f);
    const auto by_place = attn::score([&](auto s, auto at) {
      return s + slopes[std::size_t(Index(at.head))] * float(1 + 7 * Index(at.sequence)) *
                     abs(at.query - at.key) * 0.01f;
    });
    expect_same_bits<float>(ranks(), c, attn::causal_from(3), attn::softcap(20.f),
                            attn::alibi(slopes), attn::sink(sinks), by_place,
                            attn::dropout(0.2, 7, 3));
  }
}

TEST(SameScores, OneKeyAtATimeInWindowsAndDocuments) {
  for (const DealtCase& c : dealt_cases()) {
    std::vector<Index> ids;
    for (Index i = 0; i < c.tokens; ++i) ids.push_back(i / 40);
    const auto by_place = attn::score([](float s, attn::At at) {
      return s + float(at.head - 3 * at.sequence) * 0.1f - 0.02f * float((at.query + at.key) % 5);
    });
    expect_same_bits<float>(ranks(), c, by_place, attn::segments(ids), attn::window(50, 20),
                            attn::parallel(2));
  }
}

TEST(SameScores, TurnedByTheirPositions) {
  for (const DealtCase& c : dealt_cases())
    expect_same_bits<float>(ranks(), c, attn::causal(), attn::query_offset(0),
                            attn::rotary(attn::pairing::half_split, 10000.f).dims(4));
}

// Numbers of rows beside the log-sum-exp, a residual, and a result that is returned.
TEST(SameScores, AndWhatIsSavedBesides) {
  for (const DealtCase& c : dealt_cases()) {
    SCOPED_TRACE(c.text());
    const support::DealtOperands<float> all(c);
    const Matrix X = support::uniform<float>(c.tokens, c.heads * c.value_dim, 9);
    const auto dealt = c.dealt(ranks());
    const Matrix q = dealt.local(all.query), k = dealt.local(all.key), v = dealt.local(all.value),
                 x = dealt.local(X);
    Matrix largest, entropy, my_largest, my_entropy;
    const Matrix one =
        attn::attention(attn::heads(all.query, c.heads), attn::heads(all.key, c.kv_heads),
                        attn::heads(all.value, c.kv_heads), attn::causal(), attn::residual(X),
                        attn::save_max_logit(largest), attn::save_entropy(entropy));
    const Matrix mine = attn::mpi::attention(
        dealt, attn::heads(q, c.heads), attn::heads(k, c.kv_heads), attn::heads(v, c.kv_heads),
        attn::options(attn::causal(), attn::residual(x)), attn::save_max_logit(my_largest),
        attn::save_entropy(my_entropy));
    EXPECT_TRUE(support::same_bits(mine, dealt.local(one)));
    EXPECT_TRUE(support::same_bits(my_largest, dealt.local(largest)));
    EXPECT_TRUE(support::same_bits(my_entropy, dealt.local(entropy)));
    // Gathered, it is the output of one process.
    const Matrix gathered = dealt.gather(mine, ranks().size() - 1);
    if (ranks().rank() == ranks().size() - 1) {
      EXPECT_TRUE(support::same_bits(gathered, one));
    }
  }
}

}  // namespace
