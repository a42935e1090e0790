// tests/mpi/failures_test.cpp: whatever fails on one rank, all throw, none waits for ever, and the next call is right.
// build: -Og
// SPDX-License-Identifier: MIT
#include <cstdlib>
#include <new>

#include "dealt_case.h"

namespace {

/// operator new fails at the call it is set to; MPI itself takes its memory elsewhere.
long failing_new = -1;

}  // namespace

void* operator new(std::size_t bytes) {
  if (failing_new >= 0 && failing_new-- == 0) throw std::bad_alloc();
  if (void* memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

using attn::Index;
using support::DealtCase;
using Matrix = support::DynamicMatrix<float>;
namespace mpi = attn::mpi;

const mpi::Ranks& ranks() {
  static const mpi::Ranks all(MPI_COMM_WORLD);
  return all;
}

struct Refused : std::runtime_error {
  Refused() : std::runtime_error("thrown on purpose") {}
};

/// A call on some rows, of which one operand or the functor may be wrong on one rank.
struct Call {
  DealtCase sizes{90, 4, 2, 8, 8, 7};
  mpi::Dealt dealt = sizes.dealt(ranks());
  Matrix q, k, v, y;
  Index fuse = -1;  ///< the score functor throws at this call, if any

  Call() {
    const support::DealtOperands<float> all(sizes);
    q = dealt.local(all.query), k = dealt.local(all.key), v = dealt.local(all.value);
    y = Matrix::Constant(1, 1, 7);
  }
  void operator()() {
    const auto score = [this](float s, attn::At at) {
      if (fuse >= 0 && fuse-- == 0) throw Refused();
      return s + 0.01f * float(at.key % 3);
    };
    mpi::attention(dealt, attn::heads(q, sizes.heads), attn::heads(k, sizes.kv_heads),
                   attn::heads(v, sizes.kv_heads), attn::causal(), attn::score(score),
                   attn::into(y));
  }
};

/// What a call on all ranks throws here: "mine: " and the text on the rank that fails, "theirs: " on others.
template <class Exception>
std::string thrown_by(Call& call) {
  try {
    call();
  } catch (const mpi::RankFailed& error) {
    return "theirs: " + std::to_string(error.rank) + ", " + error.text;
  } catch (const Exception& error) {
    return std::string("mine: ") + error.what();
  }
  return "nothing";
}
/// Behind a failure: the communicator works, and calls are right.
void expect_right() {
  static const Matrix right = [] {
    Call call;
    call();
    return call.y;
  }();
  Call call;
  call();
  EXPECT_TRUE(support::same_bits(call.y, right));
}
template <class Exception>
void expect_failure(int failing, Call& call, const std::string& text) {
  const bool mine = ranks().rank() == failing;
  EXPECT_EQ(thrown_by<Exception>(call),
            mine ? "mine: " + text : "theirs: " + std::to_string(failing) + ", " + text);
}

TEST(Failures, OfShapesAreHeardByAll) {
  expect_right();
  for (int failing = 0; failing < ranks().size(); ++failing) {
    Call call;
    const bool mine = ranks().rank() == failing;
    // Rows of this rank differ from rank to rank; so the numbers that the text names are its own.
    if (mine) call.k = call.v = Matrix::Zero(3, 16);
    const long long rows_there = [&] {
      long long rows = call.dealt.rows();
      MPI_Bcast(&rows, 1, MPI_LONG_LONG, failing, MPI_COMM_WORLD);
      return rows;
    }();
    expect_failure<std::invalid_argument>(failing, call,
                                          "attn::mpi::attention: key has 3 rows, needs " +
                                              std::to_string(rows_there) + " (those of this rank)");
    EXPECT_EQ(call.y.size(), 1);  // untouched
    expect_right();
  }
}

TEST(Failures, OfFeaturesAndOutputsAreHeardByAll) {
  for (int failing = 0; failing < ranks().size(); ++failing) {
    Call call;
    if (ranks().rank() == failing) call.k.resize(call.k.rows(), 2 * 9);
    expect_failure<std::invalid_argument>(
        failing, call,
        "attn::mpi::attention: key has 9 features, query has 8; both need d_k, for each head");
    expect_right();
  }
}

TEST(Failures, OfAFunctorAreHeardByAllWheneverItThrows) {
  for (int failing = 0; failing < ranks().size(); ++failing) {
    for (const Index calls : {0, 1, 100}) {
      Call call;
      if (call.dealt.rows() == 0) continue;
      if (ranks().rank() == failing) call.fuse = calls;
      expect_failure<Refused>(failing, call, "thrown on purpose");
    }
    expect_right();
  }
}

TEST(Failures, OfAllocationsAreHeardByAll) {
  for (int failing = 0; failing < ranks().size(); ++failing) {
    int failures = 0;
    for (bool failed = true; failed; failures += int(failed)) {
      Call call;
      failing_new = ranks().rank() == failing ? failures : -1;
      const std::string thrown = thrown_by<std::bad_alloc>(call);
      failing_new = -1;
      failed = thrown != "nothing";
      if (failed) {
        EXPECT_EQ(thrown.substr(0, 5), ranks().rank() == failing ? "mine:" : "their");
        EXPECT_EQ(call.y.size(), 1);
      }
      ASSERT_LT(failures, 100);
    }
    EXPECT_GE(failures, 3);
    expect_right();
  }
}

// Each rank finds its own call legal, and would wait for messages that never come.
TEST(Failures, OfCallsThatDifferAreRefusedOnAll) {
  if (ranks().size() == 1) return;
  const bool other = ranks().rank() == 1;
  const auto expect = [&](const std::string& what, Call& call) {
    EXPECT_EQ(thrown_by<std::invalid_argument>(call),
              "mine: attn::mpi::attention: " + what + "; needs the same on all");
    EXPECT_EQ(call.y.size(), 1);  // untouched
    expect_right();
  };
  {
    Call call;
    if (other) call.v = Matrix::Zero(call.v.rows(), 2 * 16);
    expect("features of values: 8 on one rank, 16 on another", call);
  }
  {
    Call call;
    if (other) call.sizes.kv_heads = 1, call.k.conservativeResize(call.k.rows(), 8);
    if (other) call.v.conservativeResize(call.v.rows(), 8);
    expect("key/value heads: 1 on one rank, 2 on another", call);
  }
  {
    Call call;
    call.dealt = ranks().deal(90, mpi::block(other ? 9 : 10));
    const support::DealtOperands<float> all(call.sizes);
    call.q = call.dealt.local(all.query);
    call.k = call.dealt.local(all.key), call.v = call.dealt.local(all.value);
    expect("tokens of a block: 9 on one rank, 10 on another", call);
  }
}

}  // namespace
