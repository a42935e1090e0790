// tests/mpi/gradients_test.cpp: the gradients of attention over ranks are those of one process, to the bit.
// build: -Og
// SPDX-License-Identifier: MIT
#include <attn/dropout.h>
#include <attn/rotary.h>

#include <set>

#include "dealt_case.h"
#include "support/error_of.h"

namespace {

using attn::Index;
using support::dealt_cases;
using support::DealtCase;
using support::same_bits;

const attn::mpi::Ranks& ranks() {
  static const attn::mpi::Ranks all(MPI_COMM_WORLD);
  return all;
}

/// This rank's rows of each gradient are those of one process.
template <class Stored, class KeyStored = Stored, class... Options>
void expect_same_gradients(const DealtCase& c, const Options&... options) {
  SCOPED_TRACE(c.text());
  using Compute = attn::compute_t<Stored>;
  using Rows = support::DynamicMatrix<Stored>;
  using KeyRows = support::DynamicMatrix<KeyStored>;
  const support::DealtOperands<Stored, KeyStored> all(c);
  const Rows dY = support::uniform<Stored>(c.tokens, c.heads * c.value_dim, 4);
  const support::DynamicMatrix<Compute> dl = support::uniform<Compute>(c.tokens, c.heads, 5);
  const auto dealt = c.dealt(ranks());
  const Rows q = dealt.local(all.query), dy = dealt.local(dY);
  const KeyRows k = dealt.local(all.key), v = dealt.local(all.value);
  const support::DynamicMatrix<Compute> my_dl = dealt.local(dl);

  Rows one, mine, dQ, dq;
  KeyRows dK, dV, dk, dv;
  attn::AttentionState<Compute> state, my_state;
  attn::attention(attn::heads(all.query, c.heads), attn::heads(all.key, c.kv_heads),
                  attn::heads(all.value, c.kv_heads), attn::into(one), attn::save_state(state),
                  options...);
  attn::attention_backward(attn::heads(all.query, c.heads), attn::heads(all.key, c.kv_heads),
                           attn::heads(all.value, c.kv_heads), dY, state, options...,
                           attn::dlogsumexp(dl), attn::dquery(dQ), attn::dkey(dK),
                           attn::dvalue(dV));
  attn::mpi::attention(dealt, attn::heads(q, c.heads), attn::heads(k, c.kv_heads),
                       attn::heads(v, c.kv_heads), attn::into(mine), attn::save_state(my_state),
                       options...);
  EXPECT_TRUE(same_bits(mine, dealt.local(one)));
  const auto differentiate = [&](auto&&... outputs) {
    attn::mpi::attention_backward(dealt, attn::heads(q, c.heads), attn::heads(k, c.kv_heads),
                                  attn::heads(v, c.kv_heads), dy, my_state, options...,
                                  attn::dlogsumexp(my_dl), outputs...);
  };
  differentiate(attn::dquery(dq), attn::dkey(dk), attn::dvalue(dv));
  EXPECT_TRUE(same_bits(dq, dealt.local(dQ)));
  EXPECT_TRUE(same_bits(dk, dealt.local(dK)));
  EXPECT_TRUE(same_bits(dv, dealt.local(dV)));
}

std::vector<float> numbers_by_head(Index heads, float first, float step) {
  std::vector<float> numbers;
  for (Index h = 0; h < heads; ++h) numbers.push_back(first + step * float(h));
  return numbers;
}

TEST(SameGradients, WithoutAMask) {
  for (const DealtCase& c : dealt_cases()) expect_same_gradients<float>(c);
}
// A panel of keys begins and ends in blocks of other ranks.
TEST(SameGradients, OfManyBlocksInAPanel) {
  expect_same_gradients<float>(DealtCase{300, 2, 1, 8, 8, 3});
  expect_same_gradients<float>(DealtCase{300, 2, 1, 8, 8, 3}, attn::causal());
}
TEST(SameGradients, UnderMasks) {
  for (const DealtCase& c : dealt_cases()) {
    std::vector<Index> ids;
    for (Index i = 0; i < c.tokens; ++i) ids.push_back((i / 3) % 4);
    expect_same_gradients<float>(c, attn::causal());
    expect_same_gradients<float>(c, attn::causal() && attn::window(100, -1));
    expect_same_gradients<float>(c, attn::segments(ids), attn::key_lengths(c.tokens * 2 / 3));
  }
}

// What has a number for each head, dropout, and a functor of lanes that reads where it stands, with its slope.
TEST(SameGradients, UnderScoresByHeadAndPosition) {
  for (const DealtCase& c : dealt_cases()) {
    const auto slopes = numbers_by_head(c.heads, 0.01f, 0.03f);
    const auto sinks = numbers_by_head(c.heads, -1.f, 0.5f);
    const auto by_place = attn::score([&](auto s, auto at) {
      return s * (1 + 0.1f * (at.head + 7 * at.sequence)) + abs(at.query - at.key) * 0.01f;
    });
    expect_same_gradients<float>(c, attn::causal_from(3), attn::softcap(20.f), attn::alibi(slopes),
                                 attn::sink(sinks), by_place, attn::dropout(0.2, 7, 3));
  }
}
TEST(SameGradients, OfOneKeyAtATimeTurnedByWorkers) {
  for (const DealtCase& c : dealt_cases()) {
    const auto by_place = attn::score(
        [](float s, attn::At at) { return s * (1 + 0.1f * float(at.head - 3 * at.sequence)); },
        [](float, attn::At at) { return 1 + 0.1f * float(at.head - 3 * at.sequence); });
    expect_same_gradients<float>(c, by_place, attn::window(50, 20), attn::parallel(2),
                                 attn::scale(0.3), attn::query_offset(0),
                                 attn::rotary(attn::pairing::half_split, 10000.f).dims(4));
  }
}
TEST(SameGradients, OfBfloat16AndDouble) {
  for (const DealtCase& c : dealt_cases()) {
    expect_same_gradients<float, Eigen::bfloat16>(c, attn::causal());
    expect_same_gradients<Eigen::bfloat16>(c);
    expect_same_gradients<double>(c, attn::causal(), attn::dropout(0.1, 3));
  }
}

struct Case {
  DealtCase sizes{90, 4, 2, 8, 8, 7};
  attn::mpi::Dealt dealt = sizes.dealt(ranks());
  support::DynamicMatrix<float> q, k, v, dy, y;
  attn::AttentionState<float> state;
  Index fuse = -1;                ///< the score functor throws at this call, if any
  std::set<Index> queries, keys;  ///< that it was asked for

  Case() {
    const support::DealtOperands<float> all(sizes);
    q = dealt.local(all.query), k = dealt.local(all.key), v = dealt.local(all.value);
    dy = dealt.local(support::uniform<float>(sizes.tokens, sizes.heads * sizes.value_dim, 4));
    with_score([&](const auto& score) {
      attn::mpi::attention(dealt, attn::heads(q, 4), attn::heads(k, 2), attn::heads(v, 2),
                           attn::into(y), score, attn::save_state(state));
    });
  }
  template <class F>
  void with_score(const F& f) {
    f(attn::score(
        [this](float s, attn::At at) {
          if (fuse >= 0 && fuse-- == 0) throw std::runtime_error("thrown on purpose");
          queries.insert(at.query);
          keys.insert(at.key);
          return s + 0.01f;
        },
        [](float, attn::At) { return 1.f; }));
  }
  template <class... Outputs>
  void differentiate(Outputs&&... outputs) {
    with_score([&](const auto& score) {
      attn::mpi::attention_backward(dealt, attn::heads(q, 4), attn::heads(k, 2), attn::heads(v, 2),
                                    dy, state, score, outputs...);
    });
  }
};

// Gradients asked for apart are those asked for together, and added to what is there.
TEST(SameGradients, ApartAndAdded) {
  Case c;
  support::DynamicMatrix<float> dq, dk, dv, dq_alone, dk_alone, dv_alone;
  c.differentiate(attn::dquery(dq), attn::dkey(dk), attn::dvalue(dv));
  c.differentiate(attn::dquery(dq_alone));
  c.differentiate(attn::dkey(dk_alone));
  c.differentiate(attn::dvalue(dv_alone));
  EXPECT_TRUE(same_bits(dq_alone, dq));
  EXPECT_TRUE(same_bits(dk_alone, dk));
  EXPECT_TRUE(same_bits(dv_alone, dv));
  c.differentiate(attn::dquery(dq_alone), attn::dkey(dk_alone), attn::dvalue(dv_alone),
                  attn::accumulate());
  EXPECT_TRUE(same_bits(dq_alone, (dq + dq).eval()));
  EXPECT_TRUE(same_bits(dk_alone, (dk + dk).eval()));
  EXPECT_TRUE(same_bits(dv_alone, (dv + dv).eval()));
}

// The pass over queries has this rank's rows of the pairs, the pass over keys its columns.
TEST(SameGradients, OfPairsOfThisRankAlone) {
  Case c;
  std::set<Index> own, all;
  for (Index token = 0; token < c.sizes.tokens; ++token) {
    all.insert(token);
    if (c.dealt.owner(c.dealt.block_of(token)) == ranks().rank()) own.insert(token);
  }
  ASSERT_FALSE(own.empty());
  const auto asked_by = [&](auto&& output) {
    c.queries.clear();
    c.keys.clear();
    c.differentiate(output);
  };
  support::DynamicMatrix<float> dx;
  asked_by(attn::dquery(dx));
  EXPECT_EQ(c.queries, own);
  EXPECT_EQ(c.keys, all);
  asked_by(attn::dkey(dx));
  EXPECT_EQ(c.queries, all);
  EXPECT_EQ(c.keys, own);
}

/// All ranks throw, the failing one in these words; nothing is written, and the next call is right.
template <class Call>
void expect_failure(int failing, const std::string& text, const Call& call) {
  std::string said = "nothing";
  try {
    call();
  } catch (const attn::mpi::RankFailed& error) {
    said = "theirs: " + std::to_string(error.rank) + ", " + error.text;
  } catch (const std::exception& error) {
    said = std::string("mine: ") + error.what();
  }
  const bool mine = ranks().rank() == failing;
  EXPECT_EQ(said, mine ? "mine: " + text : "theirs: " + std::to_string(failing) + ", " + text);
}

TEST(Failures, OfABackwardPassAreHeardByAll) {
  support::DynamicMatrix<float> right_q, right_k;
  Case right;
  right.differentiate(attn::dquery(right_q), attn::dkey(right_k));
  for (int failing = 0; failing < ranks().size(); ++failing) {
    const bool mine = ranks().rank() == failing;
    Case c;
    support::DynamicMatrix<float> dq, dk;
    const auto all = [&] { c.differentiate(attn::dquery(dq), attn::dkey(dk)); };
    const support::DynamicMatrix<float> dy = c.dy;
    if (mine) c.dy.resize(c.dy.rows(), 31);
    expect_failure(
        failing,
        "attn::mpi::attention_backward: output gradient has 31 columns, needs heads · d_v = 32",
        all);
    c.dy = dy;
    if (mine) c.state = {};
    expect_failure(
        failing,
        "attn::mpi::attention_backward: the state is empty: give save_state(state) to the "
        "forward call",
        all);
    EXPECT_EQ(dq.size() + dk.size(), 0);  // untouched
    Case again;
    c.state = again.state;
    // In the pass over queries, and in that over keys.
    if (c.dealt.rows() > 0) {
      if (mine) c.fuse = 5;
      expect_failure(failing, "thrown on purpose", all);
      if (mine) c.fuse = 5;
      expect_failure(failing, "thrown on purpose", [&] { c.differentiate(attn::dkey(dk)); });
    }
    c.fuse = -1;
    all();
    EXPECT_TRUE(same_bits(dq, right_q));
    EXPECT_TRUE(same_bits(dk, right_k));
  }
}

TEST(Failures, OfCallsThatDifferAreRefusedOnAll) {
  if (ranks().size() == 1) return;
  Case c;
  support::DynamicMatrix<float> dq, dk;
  EXPECT_EQ(support::error_of([&] {
              if (ranks().rank() == 1) {
                c.differentiate(attn::dquery(dq));
              } else {
                c.differentiate(attn::dquery(dq), attn::dkey(dk));
              }
            }),
            "attn::mpi::attention_backward: dkey() or dvalue(): 0 on one rank, 1 on another; needs "
            "the same on all");
  EXPECT_EQ(support::error_of([&] {
              const support::DynamicMatrix<Eigen::bfloat16> narrow = c.dy.cast<Eigen::bfloat16>();
              const auto differentiate = [&](const auto& dy) {
                c.with_score([&](const auto& score) {
                  attn::mpi::attention_backward(c.dealt, attn::heads(c.q, 4), attn::heads(c.k, 2),
                                                attn::heads(c.v, 2), dy, c.state, score,
                                                attn::dkey(dk));
                });
              };
              if (ranks().rank() == 1) {
                differentiate(narrow);
              } else {
                differentiate(c.dy);
              }
            }),
            "attn::mpi::attention_backward: bytes of an output gradient's scalar: 2 on one rank, 4 "
            "on another; needs the same on all");
  EXPECT_EQ(dq.size() + dk.size(), 0);  // untouched
  c.differentiate(attn::dquery(dq), attn::dkey(dk));
  EXPECT_EQ(dk.rows(), c.dealt.rows());
}

// One matrix cannot be two gradients, though two passes write them.
TEST(Failures, OfOutputsThatAreOne) {
  Case c;
  const auto text = support::error_of([&] { c.differentiate(attn::dkey(c.k)); });
  EXPECT_NE(text.find("dkey"), std::string::npos) << text;
  support::DynamicMatrix<float> both(c.q.rows(), 32);
  const auto twice = support::error_of(
      [&] { c.differentiate(attn::dquery(both), attn::dkey(both.leftCols(16))); });
  EXPECT_NE(twice.find("dquery"), std::string::npos) << twice;
}

}  // namespace
