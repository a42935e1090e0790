// tests/mpi/exchanged_heads_test.cpp: ranks that exchange rows for heads: the same bits, the same refusals.
// SPDX-License-Identifier: MIT
#include "dealt_case.h"
#include "support/error_of.h"

namespace {

using attn::Index;
using support::DealtCase;
using support::expect_same_bits;
using Matrix = support::DynamicMatrix<float>;

const attn::mpi::Ranks& ranks() {
  static const attn::mpi::Ranks all(MPI_COMM_WORLD);
  return all;
}

/// Sizes whose key/value heads the ranks divide.
std::vector<DealtCase> divided_cases() {
  const Index n = ranks().size();
  return {{0, n, n, 8, 8, 0},           {1, 2 * n, n, 8, 8, 0},    {37, n, n, 20, 12, 4},
          {64, 4 * n, 2 * n, 8, 16, 1}, {300, 2 * n, n, 16, 8, 0}, {613, n, n, 8, 8, 50}};
}

TEST(ExchangedHeads, HaveTheSameBits) {
  for (const DealtCase& c : divided_cases()) {
    std::vector<float> slopes;
    for (Index h = 0; h < c.heads; ++h) slopes.push_back(0.02f * float(h));
    const auto by_place = attn::score([](float s, attn::At at) {
      return s + float(at.head - 3 * at.sequence) * 0.1f - 0.02f * float((at.query + at.key) % 5);
    });
    expect_same_bits<float>(ranks(), c, attn::causal(), attn::alibi(slopes), by_place,
                            attn::dropout(0.2, 7));
    // The same call by its ranks' heads.
    const support::DealtOperands<float> all(c);
    const Matrix X = support::uniform<float>(c.tokens, c.heads * c.value_dim, 9);
    const auto dealt = c.dealt(ranks());
    const Matrix q = dealt.local(all.query), k = dealt.local(all.key), v = dealt.local(all.value),
                 x = dealt.local(X);
    Matrix lse, entropy, my_lse, my_entropy;
    const Matrix one = attn::attention(
        attn::heads(all.query, c.heads), attn::heads(all.key, c.kv_heads),
        attn::heads(all.value, c.kv_heads), attn::causal(), attn::alibi(slopes), by_place,
        attn::residual(X), attn::save_logsumexp(lse), attn::save_entropy(entropy));
    const Matrix mine = attn::mpi::attention(
        dealt, attn::heads(q, c.heads), attn::heads(k, c.kv_heads), attn::heads(v, c.kv_heads),
        attn::mpi::exchanged_heads(), attn::causal(), attn::alibi(slopes), by_place,
        attn::residual(x), attn::save_logsumexp(my_lse), attn::save_entropy(my_entropy));
    EXPECT_TRUE(support::same_bits(mine, dealt.local(one))) << c.text();
    EXPECT_TRUE(support::same_bits(my_lse, dealt.local(lse))) << c.text();
    EXPECT_TRUE(support::same_bits(my_entropy, dealt.local(entropy))) << c.text();
  }
}

/// A call with exchanged heads; the functor throws at its n-th call on one rank.
std::string exchange(const DealtCase& c, int failing, Matrix& y) {
  const support::DealtOperands<float> all(c);
  const auto dealt = c.dealt(ranks());
  const Matrix q = dealt.local(all.query), k = dealt.local(all.key), v = dealt.local(all.value);
  const auto score = attn::score([&](float s, attn::At at) {
    if (ranks().rank() == failing && at.key == c.tokens / 2)
      throw std::runtime_error("thrown on purpose");
    return s;
  });
  try {
    attn::mpi::attention(dealt, attn::heads(q, c.heads), attn::heads(k, c.kv_heads),
                         attn::heads(v, c.kv_heads), attn::mpi::exchanged_heads(), score,
                         attn::into(y));
  } catch (const attn::mpi::RankFailed& error) {
    return "rank " + std::to_string(error.rank) + ": " + error.text;
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

TEST(ExchangedHeads, FailTogether) {
  const Index n = ranks().size();
  const DealtCase right{40, 2 * n, n, 8, 8, 0}, odd{40, n + 1, n + 1, 8, 8, 0};
  Matrix y;
  for (int failing = 0; failing < ranks().size(); ++failing) {
    const std::string text = "thrown on purpose", rank = "rank " + std::to_string(failing) + ": ";
    EXPECT_EQ(exchange(right, failing, y), ranks().rank() == failing ? text : rank + text);
    EXPECT_EQ(y.size(), 0);  // untouched
  }
  if (ranks().size() > 1) {
    EXPECT_EQ(exchange(odd, -1, y),
              "attn::mpi::attention: exchanged_heads() deals " + std::to_string(n + 1) +
                  " key/value heads to " + std::to_string(n) +
                  " ranks: needs a number of ranks that divides them; without the option any "
                  "number will do");
  }
  EXPECT_EQ(exchange(right, -1, y), "");
  EXPECT_EQ(y.rows(), right.dealt(ranks()).rows());
}

// Ranks would wait for rows that nobody sends.
TEST(ExchangedHeads, OfCallsThatDifferAreRefusedOnAll) {
  if (ranks().size() == 1) return;
  const Index n = ranks().size();
  const DealtCase c{40, 2 * n, n, 8, 8, 0};
  const auto dealt = c.dealt(ranks());
  const support::DealtOperands<float> all(c);
  const Matrix q = dealt.local(all.query), k = dealt.local(all.key), v = dealt.local(all.value);
  const support::DynamicMatrix<Eigen::bfloat16> narrow = q.cast<Eigen::bfloat16>();
  Matrix y, numbers;
  const auto attend = [&](const auto& query, auto&&... options) {
    attn::mpi::attention(dealt, attn::heads(query, c.heads), attn::heads(k, c.kv_heads),
                         attn::heads(v, c.kv_heads), attn::mpi::exchanged_heads(), attn::into(y),
                         options...);
  };
  const auto expect_refused = [&](const std::string& what, const auto& other) {
    EXPECT_EQ(support::error_of([&] {
                if (ranks().rank() == 1) {
                  other();
                } else {
                  attend(q);
                }
              }),
              "attn::mpi::attention: " + what + " on another; needs the same on all");
    EXPECT_EQ(y.size() + numbers.size(), 0);  // untouched
  };
  expect_refused("save_logsumexp(): 0 on one rank, 1",
                 [&] { attend(q, attn::save_logsumexp(numbers)); });
  expect_refused("save_max_logit(): 0 on one rank, 1",
                 [&] { attend(q, attn::save_max_logit(numbers)); });
  expect_refused("save_entropy(): 0 on one rank, 1",
                 [&] { attend(q, attn::save_entropy(numbers)); });
  expect_refused("residual(): 0 on one rank, 1", [&] { attend(q, attn::residual(q)); });
  expect_refused("bytes of a query's scalar: 2 on one rank, 4", [&] { attend(narrow); });
}

}  // namespace
