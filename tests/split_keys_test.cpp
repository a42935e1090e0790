// tests/split_keys_test.cpp: keys attended in parts: the parts decide the result, the threads that share them do not.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "support/batch_case.h"
#include "support/error_of.h"
#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/reference_attention.h"
#include "support/reference_rotary.h"
#include "support/scalar_names.h"
#include "support/special_values.h"
#include "support/threads.h"

namespace {

using attn::split_keys;
using Eigen::Index;
using Eigen::MatrixXf;
using support::error_of;
using support::kNaN;
using support::near;
using support::same_bits;
using support::Threads;
using support::uniform;
using Case = support::BatchCase;

constexpr Index kBlock = 256;  // keys of a block, for the few features of these tests

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {{0, 3}, {0, 6000}, 4, 2},                           // decoding: parts are shared
      {{0, 3, 3, 40}, {0, 600, 900, 2100}, 2, 1, 0.6, 4},  // ragged; maxima that move
      {{0, 300}, {0, 700}, 1, 1, 0.9},                     // more rows than keys of a part
      {{0, 30}, {0, 900}, 6, 2, 0.005},                    // parts that rows do not see
      {{0, 15, 40}, {0, 800}, 2, 1, 0.8},                  // keys that serve both sequences
      {{0, 2, 7}, {0, 0, 20}, 1, 1, 0.5},                  // one part, and no keys at all
      {{0, 4, 8, 12, 16, 20}, {0, 520}, 6, 3},  // chunks of rows for two workers, not for five
  };
  return all;
}

/// Everything that one call writes.
template <class Scalar>
struct Results {
  support::DynamicMatrix<Scalar> Y, l, m, e, W, S;
};

template <class Scalar>
struct Call {
  Case c;
  support::DynamicMatrix<Scalar> Q, K, V, B;
  support::DynamicMatrix<bool> M;

  explicit Call(const Case& of)
      : c(of),
        Q(uniform<Scalar>(of.queries.back(), of.heads * 5, 1, of.range)),
        K(uniform<Scalar>(of.keys.back(), of.kv_heads * 5, 2, of.range)),
        V(uniform<Scalar>(of.keys.back(), of.kv_heads * 3, 3)),
        B(uniform<Scalar>(of.queries.back(), of.heads * of.longest_key(), 4)),
        M(support::random_bools(of.queries.back(), of.heads * of.longest_key(), 5, of.visible)) {
    if (of.visible < 1) {
      M.row(of.queries.back() / 2).setConstant(false);  // a row that sees nothing
      for (Index j = 0; j < M.cols(); ++j) M(0, j) = j % of.longest_key() == of.longest_key() - 1;
    }
  }

  Results<Scalar> operator()(Index chunk, int workers) const {
    Results<Scalar> r;
    Threads pool;
    attn::attention(attn::heads(Q, c.heads), attn::heads(K, c.kv_heads), attn::heads(V, c.kv_heads),
                    attn::into(r.Y), attn::sequences(c.queries, c.keys), attn::softcap(3),
                    attn::bias(attn::heads(B, c.heads)), attn::keep(attn::heads(M, c.heads)),
                    attn::save_logsumexp(r.l), attn::save_max_logit(r.m), attn::save_entropy(r.e),
                    attn::save_weights(r.W), attn::save_scores(r.S, attn::stage::masked),
                    attn::on(pool, workers), split_keys(chunk));
    return r;
  }

  support::ReferenceResult expected() const {
    support::ReferenceOptions asked;
    asked.heads = c.heads;
    asked.kv_heads = c.kv_heads;
    asked.query_offsets = c.queries;
    asked.key_offsets = c.keys;
    asked.softcap = 3;
    asked.save_weights = asked.save_scores = true;
    const auto column = [this](Index h, Index j) { return h * c.longest_key() + j; };
    const auto token = [this](Index b, Index i) { return c.queries[std::size_t(b)] + i; };
    asked.bias = [=, wide = support::widened(B)](Index b, Index h, Index i, Index j) {
      return wide(token(b, i), column(h, j));
    };
    asked.visible = [=](Index b, Index h, Index i, Index j) {
      return M(token(b, i), column(h, j));
    };
    return support::reference_attention(Q, K, V, asked);
  }
};

template <class Scalar>
class SplitKeys : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(SplitKeys, Scalars, support::ScalarNames);

TYPED_TEST(SplitKeys, AgreesWithTheFormulaInTheSameBitsForAnyNumberOfThreads) {
  for (const Case& c : cases()) {
    const Call<TypeParam> call(c);
    const auto expected = call.expected();
    const long double tolerance =
        32 * static_cast<long double>(std::numeric_limits<TypeParam>::epsilon()) * c.range;
    for (const Index chunk : {Index(1), Index(kBlock + 1), Index(100000)}) {
      SCOPED_TRACE(std::to_string(c.queries.back()) + " queries, " + std::to_string(c.keys.back()) +
                   " keys, chunk " + std::to_string(chunk));
      const auto one = call(chunk, 1);
      EXPECT_TRUE(near(one.Y, expected.output, tolerance));
      EXPECT_TRUE(near(one.l, expected.logsumexp, tolerance));
      EXPECT_TRUE(near(one.m, expected.max_logit, tolerance));
      EXPECT_TRUE(near(one.e, expected.entropy, tolerance));
      EXPECT_TRUE(near(one.W, expected.weights, tolerance));
      EXPECT_TRUE(near(one.S, expected.masked, tolerance));
      for (const int workers : {2, 3, 5}) {
        SCOPED_TRACE(std::to_string(workers) + " workers");
        const auto several = call(chunk, workers);
        EXPECT_TRUE(same_bits(several.Y, one.Y));
        EXPECT_TRUE(same_bits(several.l, one.l));
        EXPECT_TRUE(same_bits(several.m, one.m));
        EXPECT_TRUE(same_bits(several.e, one.e));
        EXPECT_TRUE(same_bits(several.W, one.W));
        EXPECT_TRUE(same_bits(several.S, one.S));
      }
    }
  }
}

/// Rows that see all keys up to their own position, in float.
struct Causal {
  MatrixXf Q, K, V;
  Causal(Index queries, Index keys)
      : Q(uniform<float>(queries, 8, 1)),
        K(uniform<float>(keys, 8, 2)),
        V(uniform<float>(keys, 6, 3)) {}

  template <class... Options>
  MatrixXf operator()(const Options&... options) const {
    return attn::attention(Q, K, V, attn::causal_from(K.rows() - Q.rows()), options...);
  }
};

TEST(SplitKeysOf, ARowAreItsOwnWhateverItsNeighbours) {
  const Causal whole(900, 900);
  Threads pool;
  const MatrixXf Y = whole(split_keys(kBlock));
  EXPECT_FALSE(same_bits(Y, whole()));  // parts do show, so there are some
  for (const Index rows : {1, 7, 100, 300}) {
    Causal last = whole;
    last.Q = whole.Q.bottomRows(rows);
    EXPECT_TRUE(same_bits(last(split_keys(kBlock)), Y.bottomRows(rows)));
    EXPECT_TRUE(same_bits(last(split_keys(kBlock), attn::on(pool, 3)), Y.bottomRows(rows)));
  }
}

TEST(SplitKeysOf, AChunkAreWholeBlocks) {
  const Causal x(3, 900);
  EXPECT_TRUE(same_bits(x(split_keys(1)), x(split_keys(kBlock))));
  EXPECT_TRUE(same_bits(x(split_keys(kBlock + 1)), x(split_keys(2 * kBlock))));
  EXPECT_FALSE(same_bits(x(split_keys(kBlock)), x(split_keys(2 * kBlock))));
  for (const Index all : {Index(769), Index(900), std::numeric_limits<Index>::max()})
    EXPECT_TRUE(same_bits(x(split_keys(all)), x())) << all;  // one part is no split
}

TEST(SplitKeysOf, AreTheMergedResultsOfCallsOverTheParts) {
  const Causal x(40, 900);
  MatrixXf l, merged, merged_l;
  const MatrixXf Y = x(split_keys(kBlock), attn::save_logsumexp(l));
  for (Index first = 0; first < 900; first += kBlock) {
    MatrixXf part_l;
    const MatrixXf part = x(attn::key_range(first, std::min<Index>(first + kBlock, 900)),
                            attn::save_logsumexp(part_l));
    if (first == 0) {
      merged = part;
      merged_l = part_l;
    } else {
      attn::merge(merged, merged_l, part, part_l, attn::into(merged),
                  attn::save_logsumexp(merged_l));
    }
  }
  EXPECT_TRUE(near(Y, merged, 1e-6));
  EXPECT_TRUE(near(l, merged_l, 1e-6));
}

TEST(SplitKeysOf, SinksCountOnce) {
  const MatrixXf Q = uniform<float>(40, 10, 1), K = uniform<float>(800, 10, 2),
                 V = uniform<float>(800, 10, 3);
  Threads pool;
  support::ReferenceOptions asked;
  asked.heads = asked.kv_heads = 2;
  asked.sinks = {0.5L, 9.0L};
  asked.visible = [](Index, Index, Index i, Index j) { return i < 3 && j >= 300 * i; };
  const auto expected = support::reference_attention(Q, K, V, asked);
  const auto attend = [&](const auto&... more) {
    MatrixXf Y, l;
    attn::attention(attn::heads(Q, 2), attn::heads(K, 2), attn::heads(V, 2), attn::into(Y),
                    attn::sink({0.5, 9.0}),
                    attn::mask([](Index i, Index j) { return i < 3 && j >= 300 * i; }),
                    attn::save_logsumexp(l), attn::residual(Q), split_keys(kBlock), more...);
    EXPECT_TRUE(near(Y, expected.output + support::widened(Q), 2e-6));
    EXPECT_TRUE(near(l, expected.logsumexp, 4e-6));
    return Y;
  };
  EXPECT_TRUE(same_bits(attend(attn::on(pool, 3)), attend()));
}

TEST(SplitKeysOf, RotatedKeysAndAveragedHeads) {
  const MatrixXf Q = uniform<float>(60, 16, 1), K = uniform<float>(700, 16, 2),
                 V = uniform<float>(700, 4, 3);
  Threads pool;
  const auto attend = [&](MatrixXf& W, const auto&... more) -> MatrixXf {
    return attn::attention(attn::heads(Q, 2), attn::heads(K, 2), attn::heads(V, 2),
                           attn::query_offset(640), attn::rotary(attn::pairing::half_split),
                           attn::save_weights(W, attn::average_heads()), more...);
  };
  MatrixXf W, split_W, shared_W;
  const MatrixXf Y = attend(W), split = attend(split_W, split_keys(kBlock)),
                 shared = attend(shared_W, split_keys(kBlock), attn::on(pool, 3));
  EXPECT_TRUE(near(split, Y, 1e-6));
  EXPECT_TRUE(near(split_W, W, 1e-7));
  EXPECT_TRUE(same_bits(shared, split));
  EXPECT_TRUE(same_bits(shared_W, split_W));
}

TEST(SplitKeysOf, NanAreSeenByTheirRowsAlone) {
  const float infinity = support::kInfinity<float>;
  Threads pool;
  for (const float poison : {kNaN<float>, infinity, -infinity}) {
    Causal x(600, 600);
    const MatrixXf Y = x(split_keys(kBlock));
    x.V(400, 1) = poison;       // of the second part: hidden from 400 rows, in a column of its own
    x.K(550, 2) = kNaN<float>;  // of the third
    for (const int workers : {1, 3}) {
      const MatrixXf poisoned = x(split_keys(kBlock), attn::on(pool, workers));
      EXPECT_TRUE(same_bits(poisoned.topRows(400), Y.topRows(400)));
      EXPECT_FALSE(poisoned.block(400, 1, 200, 1).array().isFinite().any());
      EXPECT_TRUE(poisoned.bottomRows(50).array().isNaN().all());
      EXPECT_TRUE(same_bits(poisoned.block(400, 2, 150, 4), Y.block(400, 2, 150, 4)));
    }
  }
}

TEST(SplitKeysOf, NarrowKeysAreComputedInFloat) {
  const Causal x(60, 700);
  Threads pool;
  const auto K = x.K.cast<Eigen::bfloat16>().eval();
  const auto V = x.V.cast<Eigen::half>().eval();
  const auto expected = support::reference_attention(x.Q, K, V).output;
  const MatrixXf Y = attn::attention(x.Q, K, V, split_keys(kBlock));
  EXPECT_TRUE(near(Y, expected, 1e-6));
  EXPECT_TRUE(
      same_bits(MatrixXf(attn::attention(x.Q, K, V, split_keys(kBlock), attn::on(pool, 2))), Y));
}

TEST(SplitKeysOf, ACacheHaveTheBitsOfTheMatrices) {
  const Causal x(3, 12000);
  Threads pool;
  attn::KeyValueCacheOptions options(12000, 1, 8);
  attn::KeyValueCache<float> cache(options.value_dim(6));
  cache.append(x.K, x.V);
  const MatrixXf Y = x(split_keys(kBlock));
  EXPECT_TRUE(same_bits(MatrixXf(attn::attention(x.Q, cache, split_keys(kBlock))), Y));
  EXPECT_TRUE(
      same_bits(MatrixXf(attn::attention(x.Q, cache, split_keys(kBlock), attn::on(pool, 3))), Y));
}

TEST(SplitKeysOf, OneRowReachSeveralThreads) {
  const Causal x(1, 16384);
  Threads pool;
  std::mutex mutex;
  std::set<std::thread::id> seen;
  const auto meet = attn::mask([&](Index, Index) {  // whoever comes first waits for somebody else
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    for (bool alone = true; alone && std::chrono::steady_clock::now() < end;
         std::this_thread::yield()) {
      const std::lock_guard<std::mutex> lock(mutex);
      seen.insert(std::this_thread::get_id());
      alone = seen.size() < 2;
    }
    return true;
  });
  const MatrixXf Y = attn::attention(x.Q, x.K, x.V, meet, split_keys(kBlock), attn::on(pool, 2));
  EXPECT_EQ(seen.size(), 2u);
  EXPECT_TRUE(same_bits(Y, MatrixXf(attn::attention(x.Q, x.K, x.V, split_keys(kBlock)))));
}

TEST(SplitKeysOf, AnExceptionInOnePartReachesTheCaller) {
  const Causal x(1, 16384);
  Threads pool;
  MatrixXf Y(1, 6);
  attn::ScaledDotProductAttention<float> sdpa;
  const auto thrower = attn::mask([](Index, Index j) -> bool {
    if (j == 600) throw std::domain_error("thrown by a part");
    return true;
  });
  for (const int workers : {1, 2, 5}) {
    EXPECT_THROW(
        sdpa(x.Q, x.K, x.V, attn::into(Y), thrower, split_keys(1), attn::on(pool, workers)),
        std::domain_error);
  }
  sdpa(x.Q, x.K, x.V, attn::into(Y), split_keys(1), attn::on(pool, 2));
  EXPECT_TRUE(same_bits(Y, x(split_keys(1))));
}

TEST(SplitKeysOf, ReserveCountsThePartsOfSmallerCallsToo) {
  attn::AttentionShape shape{600, 2000, 8, 6};
  shape.workers = 3;
  shape.split_keys = kBlock;
  attn::Workspace<float> workspace;
  workspace.reserve(attn::ScaledDotProductAttention<float>::scratch_scalars(shape));
  const Index capacity = workspace.capacity();
  Threads pool;
  for (const Index rows : {1, 100, 256, 257, 600}) {
    const Causal x(rows, 2000);
    (void)x(split_keys(kBlock), attn::on(pool, 3), attn::use(workspace));
    (void)x(split_keys(2 * kBlock), attn::on(pool, 3), attn::use(workspace));
    (void)x(split_keys(kBlock), attn::use(workspace));
    EXPECT_EQ(workspace.capacity(), capacity) << rows;
  }
}

TEST(SplitKeysOf, NoKeysAreRefused) {
  const Causal x(2, 5);
  MatrixXf Y = MatrixXf::Zero(2, 6);
  for (const Index chunk : {0, -3}) {
    EXPECT_EQ(error_of([&] { attn::attention(x.Q, x.K, x.V, attn::into(Y), split_keys(chunk)); }),
              "attn::attention: split_keys(" + std::to_string(chunk) + "), needs at least 1 key");
  }
  EXPECT_EQ(Y, MatrixXf::Zero(2, 6));
}

}  // namespace
