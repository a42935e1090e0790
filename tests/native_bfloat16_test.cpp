// tests/native_bfloat16_test.cpp: attention with native_bfloat16(): its error against the formula in
// long double, and the same bits however a row is computed.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random.h"

namespace {

using Eigen::Index;
using support::same_bits;
using support::uniform;
using Bfloat = Eigen::bfloat16;
using Narrow = support::DynamicMatrix<Bfloat>;
using Wide = support::DynamicMatrix<float>;

/// The option where the build has it. (The tests are skipped where it does not, in words.)
auto native() {
  if constexpr (attn::has_native_bfloat16) {
    return attn::options(attn::native_bfloat16());
  } else {
    return attn::options();
  }
}
class NativeBfloat16 : public testing::Test {
 protected:
  void SetUp() override {
    if (!attn::has_native_bfloat16) GTEST_SKIP() << "this build has no products of bfloat16";
  }
};

struct Operands {
  Narrow Q, K, V;
  Operands(Index queries, Index keys, Index key_dim, Index value_dim, double mean = 0)
      : Q(uniform<Bfloat>(queries, key_dim, 1, 2)),
        K(uniform<Bfloat>(keys, key_dim, 2, 2)),
        V((uniform<float>(keys, value_dim, 3).array() + float(mean))
              .matrix()
              .template cast<Bfloat>()) {}
};

/// Rows of the formula in long double: o, Σ w|v − o|, Σ w|v| and log-sum-exp; and how far float may
/// be off in a score.
struct Exact {
  std::vector<long double> output, spread, size;
  long double logsumexp = 0, score_error = 0;
  Exact(const Operands& x, Index i, Index keys) {
    const auto at = [](const Narrow& m, Index r, Index c) {
      return static_cast<long double>(static_cast<float>(m(r, c)));
    };
    const long double scale = 1 / std::sqrt(static_cast<long double>(x.Q.cols()));
    std::vector<long double> s;
    for (Index j = 0; j < keys; ++j) {
      long double sum = 0, magnitude = 0;
      for (Index c = 0; c < x.Q.cols(); ++c) {
        sum += at(x.Q, i, c) * at(x.K, j, c);
        magnitude += std::abs(at(x.Q, i, c) * at(x.K, j, c));
      }
      s.push_back(scale * sum);
      score_error = std::max(
          score_error, scale * magnitude * 0x1p-24L * static_cast<long double>(x.Q.cols() + 4));
    }
    const long double most = *std::max_element(s.begin(), s.end());
    long double l = 0;
    for (long double& p : s) l += p = std::exp(p - most);
    logsumexp = most + std::log(l);
    for (Index c = 0; c < x.V.cols(); ++c) {
      long double o = 0, around = 0, all = 0;
      for (Index j = 0; j < keys; ++j) o += s[std::size_t(j)] / l * at(x.V, j, c);
      for (Index j = 0; j < keys; ++j) {
        around += s[std::size_t(j)] / l * std::abs(at(x.V, j, c) - o);
        all += s[std::size_t(j)] / l * std::abs(at(x.V, j, c));
      }
      output.push_back(o);
      spread.push_back(around);
      size.push_back(all);
    }
  }
};

Wide attend(const Operands& x) {
  Wide Y(x.Q.rows(), x.V.cols());
  attn::attention(x.Q, x.K, x.V, native(), attn::into(Y));
  return Y;
}
/// The first `length` keys alone, also a log-sum-exp.
Wide attend_first(const Operands& x, Index length, Wide& logsumexp) {
  Wide Y(x.Q.rows(), x.V.cols());
  attn::attention(x.Q, x.K, x.V, native(), attn::key_lengths(length), attn::into(Y),
                  attn::save_logsumexp(logsumexp));
  return Y;
}

// |o' − o| ≤ 2⁻⁸ · Σ w|v − o| for weights p(1 + δ), |δ| ≤ 2⁻⁸ / (1 + 2⁻⁸), that are divided by their
// own sum; beside it what float does: e in a score is 2e of a weight, and the sums.
TEST_F(NativeBfloat16, ErrsByTheRoundingOfWeightsAndAsFloatsDo) {
  for (const double mean : {0., 1.}) {
    for (const Index keys : {1, 2, 7, 31, 32, 33, 113, 257, 600}) {
      for (const Index key_dim : {1, 2, 3, 31, 59, 64, 128}) {
        const Index value_dim = (keys + key_dim) % 2 == 0 ? 33 : 16;
        const Operands x(5, keys, key_dim, value_dim, mean);
        Wide logsumexp;
        const Wide Y = attend_first(x, keys, logsumexp);
        for (Index i = 0; i < Y.rows(); ++i) {
          const Exact exact(x, i, keys);
          const long double of_float = 2 * exact.score_error + 80 * 0x1p-24L;
          EXPECT_LE(std::abs(static_cast<long double>(logsumexp(i, 0)) - exact.logsumexp),
                    0x1p-8L + of_float + std::abs(exact.logsumexp) * 0x1p-23L);
          for (Index c = 0; c < Y.cols(); ++c) {
            const long double error =
                std::abs(static_cast<long double>(Y(i, c)) - exact.output[std::size_t(c)]);
            EXPECT_LE(error, 0x1p-8L * exact.spread[std::size_t(c)] +
                                 of_float * exact.size[std::size_t(c)])
                << keys << " keys of " << key_dim << ", row " << i << ", feature " << c;
          }
        }
      }
    }
  }
}

TEST_F(NativeBfloat16, IsExactWhereARowSeesOneKey) {
  const Operands x(3, 1, 20, 40);
  const Wide Y = attend(x);
  for (Index i = 0; i < 3; ++i) EXPECT_TRUE(same_bits(Y.row(i), x.V.row(0).cast<float>()));
}

TEST_F(NativeBfloat16, LeavesValuesThatAreAlikeAsTheyAre) {
  Operands x(20, 300, 64, 32);
  x.V.setConstant(Bfloat(0.7f));
  const Wide Y = attend(x);
  EXPECT_LE((Y.array() - float(Bfloat(0.7f))).abs().maxCoeff(), 0x1p-20f);
}

TEST_F(NativeBfloat16, RowsHaveTheSameBitsAloneAndAmongOthers) {
  for (const Index value_dim : {16, 50}) {
    const Operands x(1100, 300, 43, value_dim);
    const Wide Y = attend(x);
    for (const Index rows : {1, 2, 3, 4, 5, 12, 13, 30}) {
      Operands few = x;
      few.Q = x.Q.middleRows(17, rows);
      EXPECT_TRUE(same_bits(attend(few), Y.middleRows(17, rows))) << rows << " rows";
    }
  }
}

TEST_F(NativeBfloat16, LayoutsHaveTheSameBits) {
  for (const Index key_dim : {1, 33, 64, 71}) {
    const Operands x(30, 301, key_dim, 37);
    const Wide Y = attend(x);
    using Columns = support::DynamicMatrix<Bfloat, Eigen::ColMajor>;
    const Columns Q = x.Q, K = x.K, V = x.V;
    support::DynamicMatrix<float, Eigen::ColMajor> Z(30, 37);
    attn::attention(Q, K, V, native(), attn::into(Z));
    EXPECT_TRUE(same_bits(Z, Y)) << key_dim;
    // Every third feature of wider rows, an odd number of them apart.
    Narrow wide_q(30, 3 * key_dim + 1), wide_k(301, 3 * key_dim + 2), wide_v(301, 3 * 37 + 2);
    using Thirds = Eigen::Map<const Narrow, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>>;
    const auto thirds = [](Narrow& into, const Narrow& from) {
      into.setConstant(Bfloat(std::numeric_limits<float>::quiet_NaN()));
      for (Index i = 0; i < from.rows(); ++i) {
        for (Index c = 0; c < from.cols(); ++c) into(i, 3 * c) = from(i, c);
      }
      return Thirds(into.data(), from.rows(), from.cols(), {into.cols(), 3});
    };
    Wide U(30, 37);
    attn::attention(thirds(wide_q, x.Q), thirds(wide_k, x.K), thirds(wide_v, x.V), native(),
                    attn::into(U));
    EXPECT_TRUE(same_bits(U, Y)) << key_dim;
  }
}

TEST_F(NativeBfloat16, FixedSizesHaveTheSameBits) {
  const Operands x(16, 16, 16, 16);
  const Eigen::Matrix<Bfloat, 16, 16, Eigen::RowMajor> Q = x.Q, K = x.K, V = x.V;
  Eigen::Matrix<float, 16, 16, Eigen::RowMajor> Y;
  attn::attention(Q, K, V, native(), attn::into(Y));
  EXPECT_TRUE(same_bits(Y, attend(x)));
}

TEST_F(NativeBfloat16, KeysThatAreHiddenLeaveTheBits) {
  const Operands x(15, 300, 64, 40);
  for (const Index length : {1, 2, 15, 16, 17, 33, 64, 255, 257, 299}) {
    Operands first = x, broken = x;
    first.K = x.K.topRows(length);
    first.V = x.V.topRows(length);
    const Wide Y = attend(first);
    Wide logsumexp;
    EXPECT_TRUE(same_bits(attend_first(x, length, logsumexp), Y)) << length;
    broken.K.bottomRows(300 - length).setConstant(Bfloat(std::nanf("")));
    broken.V.bottomRows(300 - length).setConstant(Bfloat(HUGE_VALF));
    EXPECT_TRUE(same_bits(attend_first(broken, length, logsumexp), Y)) << length;
  }
}

TEST_F(NativeBfloat16, ValuesThatAreNotFiniteReachTheRowsThatSeeThem) {
  const Operands x(40, 40, 16, 20);
  const auto causal = [](const Operands& of) {
    Wide Y(40, 20);
    attn::attention(of.Q, of.K, of.V, native(), attn::causal(), attn::into(Y));
    return Y;
  };
  const Wide Y = causal(x);
  for (const Index key : {20, 21}) {
    Operands broken = x;
    broken.V(key, 3) = Bfloat(std::nanf(""));
    const Wide Z = causal(broken);
    EXPECT_TRUE(same_bits(Z.topRows(key), Y.topRows(key)));
    for (Index i = key; i < 40; ++i) {
      EXPECT_TRUE(std::isnan(Z(i, 3)));
      EXPECT_TRUE(same_bits(Z.row(i).tail(16), Y.row(i).tail(16)));
    }
  }
}

TEST_F(NativeBfloat16, ThreadsBatchesAndPartsHaveTheSameBits) {
  const Operands x(600, 700, 32, 32);
  const auto run = [&](const auto&... options) {
    Wide Y(600, 32);
    attn::attention(attn::heads(x.Q, 2), attn::heads(x.K, 2), attn::heads(x.V, 2), native(),
                    attn::sequences({0, 250, 600}, {0, 300, 700}), attn::into(attn::heads(Y, 2)),
                    options...);
    return Y;
  };
  const Wide alone = run();
  EXPECT_TRUE(same_bits(run(attn::parallel(3)), alone));
  const Wide parts = run(attn::split_keys(256));
  EXPECT_TRUE(same_bits(run(attn::split_keys(256), attn::parallel(4)), parts));
  EXPECT_LE((parts - alone).cwiseAbs().maxCoeff(), 1e-2f);
  // Sequence and head alone.
  Operands second(350, 400, 16, 16);
  second.Q = x.Q.block(250, 16, 350, 16);
  second.K = x.K.block(300, 16, 400, 16);
  second.V = x.V.block(300, 16, 400, 16);
  EXPECT_TRUE(same_bits(attend(second), alone.block(250, 16, 350, 16)));
}

TEST_F(NativeBfloat16, OtherOperandsAreRoundedFirst) {
  const Wide Q = uniform<float>(20, 37, 4, 3), K = uniform<float>(70, 37, 5, 3),
             V = uniform<float>(70, 21, 6);
  const Wide Y = attn::attention(Q, K, V, native());
  Operands x(20, 70, 37, 21);
  x.Q = Q.cast<Bfloat>();
  x.K = K.cast<Bfloat>();
  x.V = V.cast<Bfloat>();
  EXPECT_TRUE(same_bits(attend(x), Y));
}

TEST_F(NativeBfloat16, NumbersThatRoundToInfinityReachTheRowsThatSeeThem) {
  const Wide X = uniform<float>(40, 16, 4);
  Wide V = uniform<float>(40, 20, 6), Y(40, 20);
  V(21, 3) = std::numeric_limits<float>::max();
  attn::attention(X, X, V, native(), attn::causal(), attn::into(Y));
  EXPECT_TRUE(Y.topRows(21).array().isFinite().all());
  EXPECT_FALSE(Y.col(3).bottomRows(19).array().isFinite().any());
}

TEST_F(NativeBfloat16, ACacheHasTheSameBits) {
  constexpr Index kTokens = 330, kDim = 36;
  const Operands x(kTokens, kTokens, 2 * kDim, 2 * kDim);
  Wide Y(kTokens, 2 * kDim);
  attn::attention(attn::heads(x.Q, 2), attn::heads(x.K, 2), attn::heads(x.V, 2), native(),
                  attn::causal(), attn::into(attn::heads(Y, 2)));
  attn::KeyValueCache<Bfloat> cache(attn::KeyValueCacheOptions(kTokens, 2, kDim));
  for (Index done = 0, next = 1; done < kTokens; done += next, next = next % 70 + 23) {
    next = std::min(next, kTokens - done);
    cache.append(x.K.middleRows(done, next), x.V.middleRows(done, next));
    Wide Z(next, 2 * kDim);
    attn::attention(x.Q.middleRows(done, next), cache, native(), attn::into(Z));
    EXPECT_TRUE(same_bits(Z, Y.middleRows(done, next))) << "from token " << done;
    const Wide last = Z.bottomRows(1);
    Wide one(1, 2 * kDim);
    attn::attention(x.Q.row(done + next - 1), cache, native(), attn::into(one));
    EXPECT_TRUE(same_bits(one, last)) << "token " << done + next - 1;
  }
}

TEST_F(NativeBfloat16, GoesWithAllThatIsDoneToScoresAndWeights) {
  const Operands x(60, 90, 24, 20);
  const Wide B = uniform<float>(60, 90, 8), R = uniform<float>(60, 20, 9);
  const auto run = [&](Wide& weights, Wide& entropy, const auto& products) {
    Wide Y(60, 20);
    attn::attention(x.Q, x.K, x.V, products, attn::window(30, 40), attn::softcap(5.f),
                    attn::bias(B), attn::sink(0.3f), attn::residual(R), attn::dropout(0.3, 7),
                    attn::save_weights(weights), attn::save_entropy(entropy), attn::into(Y));
    return Y;
  };
  Wide w, e, exact_w, exact_e;
  const Wide Y = run(w, e, native()), Z = run(exact_w, exact_e, attn::options());
  EXPECT_LE((Y - Z).cwiseAbs().maxCoeff(), 2 * 0x1p-8f / 0.7f);
  EXPECT_GT((Y - Z).cwiseAbs().maxCoeff(), 0.f);
  EXPECT_LE((w - exact_w).cwiseAbs().maxCoeff(), 0x1p-8f);
  EXPECT_LE((e - exact_e).cwiseAbs().maxCoeff(), 0x1p-4f);
  EXPECT_TRUE(((w.array() == 0.f) == (exact_w.array() == 0.f)).all());
}

TEST_F(NativeBfloat16, ALayerMultipliesSo) {
  constexpr Index kTokens = 50, kModel = 32;
  attn::MultiHeadAttention<float> layer(attn::MultiHeadOptions(kModel, 4));
  layer.edit([](auto& w) {
    w.query = uniform<float>(kModel, kModel, 1, 0.4);
    w.key = uniform<float>(kModel, kModel, 2, 0.4);
    w.value = uniform<float>(kModel, kModel, 3, 0.4);
    w.output = uniform<float>(kModel, kModel, 4, 0.4);
  });
  const Wide X = uniform<float>(kTokens, kModel, 5);
  Wide Y(kTokens, kModel), Z(kTokens, kModel), first(20, kModel);
  layer(X, attn::causal(), native(), attn::into(Y));
  layer(X, attn::causal(), attn::into(Z));
  EXPECT_LE((Y - Z).cwiseAbs().maxCoeff(), 0.05f);
  EXPECT_GT((Y - Z).cwiseAbs().maxCoeff(), 0.f);
  layer(Wide(X.topRows(20)), attn::causal(), native(), attn::into(first));
  EXPECT_TRUE(same_bits(first, Y.topRows(20)));
  // Keys and values are rounded to what a cache of bfloat16 stores.
  attn::KeyValueCache<Bfloat> cache(attn::KeyValueCacheOptions(kTokens, 4, kModel / 4));
  for (Index t = 0; t < kTokens; t += 5) {
    Wide next(5, kModel);
    layer.decode(X.middleRows(t, 5), cache, native(), attn::into(next));
    EXPECT_TRUE(same_bits(next, Y.middleRows(t, 5))) << "from token " << t;
  }
}

}  // namespace
