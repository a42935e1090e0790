// tests/mpi/ranks_test.cpp: ranks that agree, rows that are dealt and gathered, messages of any size.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <attn/mpi.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "support/error_of.h"
#include "support/random.h"

namespace {

int most_waited_for = 0;

}  // namespace

/// MPI's own, seen on its way.
extern "C" int MPI_Waitall(int count, MPI_Request* requests, MPI_Status* statuses) {
  most_waited_for = std::max(most_waited_for, count);
  return PMPI_Waitall(count, requests, statuses);
}

namespace {

using attn::Index;
namespace mpi = attn::mpi;

mpi::Ranks all_ranks() { return mpi::Ranks(MPI_COMM_WORLD); }

std::exception_ptr failure(const char* text) {
  return std::make_exception_ptr(std::invalid_argument(text));
}

TEST(Ranks, ReturnWhereAllAreWell) {
  const auto ranks = all_ranks();
  for (int n = 0; n < 3; ++n) ranks.agree(nullptr);
}

TEST(Ranks, EachHearOfTheOneThatFailed) {
  const auto ranks = all_ranks();
  for (int failing = 0; failing < ranks.size(); ++failing) {
    const bool mine = ranks.rank() == failing;
    try {
      ranks.agree(mine ? failure("seven is not five") : nullptr);
      ADD_FAILURE() << "nothing was thrown";
    } catch (const std::invalid_argument& error) {
      EXPECT_TRUE(mine);
      EXPECT_STREQ(error.what(), "seven is not five");
    } catch (const mpi::RankFailed& error) {
      EXPECT_FALSE(mine);
      EXPECT_EQ(error.rank, failing);
      EXPECT_EQ(error.text, "seven is not five");
      EXPECT_STREQ(
          error.what(),
          ("attn::mpi: rank " + std::to_string(failing) + " failed: seven is not five").c_str());
    }
    ranks.agree(nullptr);  // the communicator is as before
  }
}

TEST(Ranks, ThrowTheirOwnWhereAllFail) {
  const auto ranks = all_ranks();
  const std::string own = "rank " + std::to_string(ranks.rank());
  EXPECT_EQ(support::error_of([&] { ranks.agree(failure(own.c_str())); }), own);
}

TEST(Ranks, ShortenALongTextAndNameWhatIsNoException) {
  const auto ranks = all_ranks();
  const auto text_of = [&](const std::exception_ptr& thrown) {
    std::string text;
    try {
      ranks.agree(ranks.rank() == 0 ? thrown : nullptr);
    } catch (const mpi::RankFailed& error) {
      text = error.text;
    } catch (...) {
    }
    return text;
  };
  const std::string longest = text_of(failure(std::string(2000, 'x').c_str()));
  const std::string other = text_of(std::make_exception_ptr(7));
  if (ranks.rank() == 0) return;
  EXPECT_EQ(longest, std::string(511, 'x'));
  EXPECT_EQ(other, "an exception that is no std::exception");
}

TEST(Deal, GivesEachTokenToOneRank) {
  const auto ranks = all_ranks();
  for (const Index tokens : {0, 1, 2, 5, 64, 100, 1001}) {
    for (const Index block : {Index(1), Index(3), Index(16), std::numeric_limits<Index>::max()}) {
      const auto dealt = ranks.deal(tokens, mpi::block(block));
      ASSERT_EQ(dealt.offsets().size(), dealt.own().size() + 1);
      Index rows = 0;
      for (const Index k : dealt.own()) {
        EXPECT_EQ(dealt.owner(k), ranks.rank());
        EXPECT_GT(dealt.length(k), 0);
        rows += dealt.length(k);
      }
      EXPECT_EQ(dealt.rows(), rows);
      long long mine = rows, all = 0;
      MPI_Allreduce(&mine, &all, 1, MPI_LONG_LONG, MPI_SUM, MPI_COMM_WORLD);
      EXPECT_EQ(all, tokens);
    }
  }
}

TEST(Deal, GoesToAndFro) {
  const auto ranks = all_ranks();
  const auto dealt = ranks.deal(100, mpi::block(2));
  std::vector<int> owners;
  for (Index k = 0; k < 4 * ranks.size(); ++k) owners.push_back(dealt.owner(k));
  const auto ranks_up = [&] {
    std::vector<int> up(std::size_t(ranks.size()));
    std::iota(up.begin(), up.end(), 0);
    return up;
  }();
  std::vector<int> expected;
  for (int turn = 0; turn < 2; ++turn) {
    expected.insert(expected.end(), ranks_up.begin(), ranks_up.end());
    expected.insert(expected.end(), ranks_up.rbegin(), ranks_up.rend());
  }
  EXPECT_EQ(owners, expected);
}

TEST(Deal, SharesACausalTriangleEvenly) {
  const auto ranks = all_ranks();
  const auto dealt = ranks.deal(8192);
  double pairs = 0;
  for (const Index k : dealt.own())
    for (Index i = 0; i < dealt.length(k); ++i) pairs += double(dealt.begin(k) + i + 1);
  EXPECT_NEAR(pairs * ranks.size() / (0.5 * 8192 * 8193), 1, 0.02);
}

TEST(Deal, GathersWhatWasLocal) {
  const auto ranks = all_ranks();
  for (const Index tokens : {0, 1, 3, 50, 333}) {
    const Eigen::MatrixXf whole = support::numbers(tokens, 5, 3);
    for (const Index block : {Index(1), Index(7), std::numeric_limits<Index>::max()}) {
      const auto dealt = ranks.deal(tokens, mpi::block(block));
      const Eigen::MatrixXf mine = dealt.local(whole);
      ASSERT_EQ(mine.rows(), dealt.rows());
      for (int root = 0; root < ranks.size(); ++root) {
        const Eigen::MatrixXf all = dealt.gather(mine, root);
        ASSERT_EQ(all.rows(), ranks.rank() == root ? tokens : 0);
        if (ranks.rank() == root) {
          EXPECT_TRUE(all == whole);
        }
      }
    }
  }
}

TEST(Deal, RefusesInWords) {
  const auto ranks = all_ranks();
  EXPECT_EQ(support::error_of([&] { ranks.deal(-1); }),
            "attn::mpi::Ranks::deal: tokens is -1, needs at least 0");
  EXPECT_EQ(support::error_of([&] { ranks.deal(5, mpi::block(0)); }),
            "attn::mpi::Ranks::deal: block is 0, needs at least 1");
  if (sizeof(Index) == 8) {
    const Index most = std::numeric_limits<int>::max();
    EXPECT_EQ(support::error_of([&] { ranks.deal(2 * most + 1, mpi::block(2)); }),
              "attn::mpi::Ranks::deal: 4294967295 tokens are 2147483648 blocks of 2, needs at most "
              "2147483647: longer ones, block(n)");
  }
  const auto dealt = ranks.deal(10);
  EXPECT_EQ(support::error_of([&] { dealt.local(support::numbers(9, 2)); }),
            "attn::mpi::Dealt::local: the matrix has 9 rows, needs 10 (one for each token)");
  const Eigen::MatrixXf mine = support::numbers(dealt.rows(), 2);
  EXPECT_EQ(support::error_of([&] { (void)dealt.gather(mine, ranks.size()); }),
            "attn::mpi::Dealt::gather: root is " + std::to_string(ranks.size()) +
                ", needs a rank from 0 to " + std::to_string(ranks.size() - 1));
  if (ranks.size() == 1) return;
  // One rank is refused: all throw, and go on.
  const Eigen::MatrixXf odd = support::numbers(dealt.rows() + (ranks.rank() == 1 ? 1 : 0), 2);
  if (ranks.rank() == 1) {
    EXPECT_NE(support::error_of([&] { (void)dealt.gather(odd, 0); }).find("(those of this rank)"),
              std::string::npos);
  } else {
    EXPECT_THROW((void)dealt.gather(odd, 0), mpi::RankFailed);
  }
  const Eigen::MatrixXf wide = support::numbers(dealt.rows(), ranks.rank() == 0 ? 3 : 2);
  EXPECT_EQ(
      support::error_of([&] { (void)dealt.gather(wide, 0); }),
      "attn::mpi::Dealt::gather: columns: 2 on one rank, 3 on another; needs the same on all");
  EXPECT_EQ(support::error_of([&] { (void)dealt.gather(mine, ranks.rank() == 0 ? 0 : 1); }),
            "attn::mpi::Dealt::gather: root: 0 on one rank, 1 on another; needs the same on all");
  EXPECT_EQ(dealt.gather(mine, 0).rows(), ranks.rank() == 0 ? 10 : 0);
}

// Under a window a rank is sent what its rows see; what nobody here sees is not touched.
TEST(RowExchange, FetchesTheBlocksThatRowsSee) {
  using Matrix = support::DynamicMatrix<float>;
  const auto ranks = all_ranks();
  const auto dealt = ranks.deal(96, mpi::block(4));
  const Matrix K = support::uniform<float>(96, 2 * 3, 1), V = support::uniform<float>(96, 2 * 5, 2);
  const Matrix k = dealt.local(K), v = dealt.local(V);
  const auto view = [](const Matrix& m, Index heads) {
    return attn::TensorView<const float>{
        m.data(), 1, heads, m.rows(), m.cols() / heads, 0, m.cols() / heads, m.cols(), 1};
  };
  attn::detail::RowExchange<float, float> exchange(dealt, 2, view(k, 2), view(v, 2));
  attn::detail::CallShape whole;
  whole.queries = whole.keys = {1, 96, nullptr};
  const auto window =
      attn::causal() && attn::window(5, 0);  // a block sees itself and two before it
  attn::detail::see_keys(exchange, whole, window.bind(whole), 0);
  exchange.announce();
  exchange.start(0);
  for (Index head = 0; head < 2; ++head) {
    exchange.finish();
    if (head == 0) exchange.start(1);
    for (Index b = 0; b < dealt.blocks(); ++b) {
      bool seen = dealt.owner(b) == ranks.rank();
      for (const Index own : dealt.own()) seen = seen || (own - 2 <= b && b <= own);
      for (Index token = dealt.begin(b); token < dealt.begin(b) + 4; ++token) {
        for (Index c = 0; c < 3; ++c)
          EXPECT_EQ(exchange.operand<0>().token(head, token)[c],
                    seen ? K(token, head * 3 + c) : 0.f);
        for (Index c = 0; c < 5; ++c)
          EXPECT_EQ(exchange.operand<1>().token(head, token)[c],
                    seen ? V(token, head * 5 + c) : 0.f);
      }
    }
  }
}

// A count that MPI cannot be given, at a limit that a test can reach.
TEST(RowMessages, PassCountsBeyondTheLimit) {
  const auto ranks = all_ranks();
  const int next = (ranks.rank() + 1) % ranks.size(),
            before = (ranks.rank() + ranks.size() - 1) % ranks.size();
  for (const Index most : {2, 7, 1000}) {
    for (const Index numbers : {0, 1, 2, 7, 8, 49, 50, 997}) {
      std::vector<float> sent(std::size_t(numbers) + 1), got(std::size_t(numbers) + 1, -1.f);
      for (std::size_t i = 0; i < sent.size(); ++i)
        sent[i] = float(i) + 1000.f * float(ranks.rank());
      attn::detail::RowMessages messages(ranks.comm(), most);
      messages.receive(got.data(), numbers, before, 3);
      messages.send(sent.data(), numbers, next, 3);
      messages.wait();
      for (std::size_t i = 0; i < std::size_t(numbers); ++i)
        ASSERT_EQ(got[i], float(i) + 1000.f * float(before));
      EXPECT_EQ(got.back(), -1.f);
    }
  }
}
TEST(RowMessages, AreWaitedForInCountsOfTheLimit) {
  const auto ranks = all_ranks();
  std::vector<float> sent(23), got(23);
  std::iota(sent.begin(), sent.end(), 100.f * float(ranks.rank()));
  attn::detail::RowMessages messages(ranks.comm(), 7);
  for (int tag = 0; tag < 23; ++tag) {
    messages.receive(&got[std::size_t(tag)], 1, ranks.rank(), tag);
    messages.send(&sent[std::size_t(tag)], 1, ranks.rank(), tag);
  }
  most_waited_for = 0;
  messages.wait();
  EXPECT_EQ(most_waited_for, 7);
  EXPECT_EQ(got, sent);
}

}  // namespace
