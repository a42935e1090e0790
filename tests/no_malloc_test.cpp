// tests/no_malloc_test.cpp: no allocation after the first call, nor in the first after reserve(), nor with fixed sizes.
// SPDX-License-Identifier: MIT
// build: -Og
#include "support/allocations.h"

#include <attn/attn.h>

#include <cstdint>
#include <cstdlib>
#include <utility>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/scalar_names.h"

namespace {

using Eigen::Index;
using support::allocations_in;
using support::DynamicMatrix;
using support::uniform;

template <class Scalar>
struct Operands {
  DynamicMatrix<Scalar> Q, K, V, Y, X, B, l;
  DynamicMatrix<bool> M;
  Operands(Index queries, Index keys, Index key_dim, Index value_dim)
      : Q(uniform<Scalar>(queries, key_dim, 1)),
        K(uniform<Scalar>(keys, key_dim, 2)),
        V(uniform<Scalar>(keys, value_dim, 3)),
        Y(queries, value_dim),
        X(uniform<Scalar>(queries, value_dim, 4)),
        B(uniform<Scalar>(queries, keys, 5)),
        l(queries, 1),
        M(support::random_bools(queries, keys, 6)) {}
};

template <class Scalar>
class NoMalloc : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, long double, Eigen::half>;
TYPED_TEST_SUITE(NoMalloc, Scalars, support::ScalarNames);

TEST(Witnesses, SeeAllocationsOfEveryKind) {
  EXPECT_GE(allocations_in([] {
              int* volatile number = new int(1);  // volatile: a compiler may leave the pair out
              delete number;
            }),
            1);
  EXPECT_GE(allocations_in([] { Eigen::VectorXf::Zero(100).eval(); }), 1);
  EXPECT_EQ(allocations_in([] { Eigen::Vector4f::Zero().eval(); }), 0);
  if (support::kMallocIsWatched) {
    EXPECT_GE(allocations_in([] {
                void* volatile memory = std::malloc(100);
                std::free(memory);
              }),
              1);
  }
}

TYPED_TEST(NoMalloc, InTheSecondCallOfTheSameSizesNorInSmallerOnes) {
  Operands<TypeParam> x(37, 300, 20, 24), small(5, 299, 7, 3);
  attn::ScaledDotProductAttention<TypeParam> sdpa;
  const auto call = [&](Operands<TypeParam>& o) { sdpa(o.Q, o.K, o.V, attn::into(o.Y)); };
  EXPECT_GE(allocations_in([&] { call(x); }), 1);
  EXPECT_EQ(allocations_in([&] { call(x); }), 0);
  EXPECT_EQ(allocations_in([&] { call(small); }), 0);
  EXPECT_EQ(allocations_in([&] { call(x); }), 0);
}

TYPED_TEST(NoMalloc, InTheFirstCallAfterReserve) {
  const attn::AttentionShape shapes[] = {
      {1, 1, 1, 1}, {37, 300, 20, 24}, {1, 4096, 64, 64}, {1500, 5, 3, 70}, {7, 100, 640, 640}};
  for (const attn::AttentionShape& shape : shapes) {
    Operands<TypeParam> x(shape.queries, shape.keys, shape.key_dim, shape.value_dim);
    attn::ScaledDotProductAttention<TypeParam> sdpa;
    sdpa.reserve(shape);
    EXPECT_EQ(allocations_in([&] { sdpa(x.Q, x.K, x.V, attn::into(x.Y)); }), 0)
        << shape.queries << " queries, " << shape.keys << " keys, d " << shape.key_dim << ", "
        << shape.value_dim;
  }
}

TYPED_TEST(NoMalloc, WithALentWorkspaceThatIsLargeEnough) {
  using Compute = attn::compute_t<TypeParam>;
  Operands<TypeParam> x(37, 300, 20, 24);
  attn::Workspace<Compute> workspace;
  workspace.reserve(attn::ScaledDotProductAttention<TypeParam>::scratch_scalars({37, 300, 20, 24}));
  const attn::ScaledDotProductAttention<TypeParam> sdpa;
  EXPECT_EQ(allocations_in([&] { sdpa(x.Q, x.K, x.V, attn::into(x.Y), attn::use(workspace)); }), 0);
  EXPECT_EQ(allocations_in(
                [&] { attn::attention(x.Q, x.K, x.V, attn::into(x.Y), attn::use(workspace)); }),
            0);
}

template <class Scalar>
class NoMallocFixedSizes : public ::testing::Test {};
using FixedScalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(NoMallocFixedSizes, FixedScalars, support::ScalarNames);

TYPED_TEST(NoMallocFixedSizes, EvenThroughTheFreeFunction) {
  const Eigen::Matrix<TypeParam, 10, 16> Q = uniform<TypeParam>(10, 16, 1);
  const Eigen::Matrix<TypeParam, 33, 16, Eigen::RowMajor> K = uniform<TypeParam>(33, 16, 2);
  const Eigen::Matrix<TypeParam, 33, 7> V = uniform<TypeParam>(33, 7, 3);
  Eigen::Matrix<TypeParam, 10, 7> Y;
  EXPECT_EQ(allocations_in([&] { Y = attn::attention(Q, K, V); }), 0);
  EXPECT_TRUE(support::near(Y, support::reference_attention(Q, K, V).output, 1e-6));
  Y.setZero();
  EXPECT_EQ(allocations_in([&] {
              attn::attention(Q, K, V, attn::into(Y), attn::causal(attn::align::lower_right),
                              attn::residual(Y));
            }),
            0);
}

class NoMallocOptions : public ::testing::Test {
 protected:
  Operands<float> x{24, 300, 20, 24};
  attn::ScaledDotProductAttention<float> sdpa;
  void SetUp() override { sdpa.reserve({24, 300, 20, 24}); }
};

TEST_F(NoMallocOptions, ForMasks) {
  EXPECT_EQ(allocations_in([&] {
              sdpa(x.Q, x.K, x.V, attn::into(x.Y),
                   attn::keep(x.M) && attn::causal(attn::align::lower_right), attn::window(100, 7));
            }),
            0);
  EXPECT_EQ(allocations_in([&] {
              sdpa(x.Q, x.K, x.V, attn::into(x.Y), attn::hide(x.M) || !attn::key_range(3, 20));
            }),
            0);
}

TEST_F(NoMallocOptions, ForBracedAndReferredLists) {
  EXPECT_EQ(allocations_in([&] {
              sdpa(x.Q, x.K, x.V, attn::into(x.Y),
                   attn::sequences({0, 5, 12, 24}, {0, 100, 257, 300}),
                   attn::key_lengths({7, 100, 0}), attn::causal_from({3, 0, 9}));
            }),
            0);
  const std::vector<Index> lengths(24, 9);  // more than a list holds inside itself
  EXPECT_EQ(allocations_in([&] {
              sdpa(x.Q, x.K, x.V, attn::into(x.Y), attn::sequence_length(1, 300),
                   attn::key_lengths(lengths));
            }),
            0);
}

TEST_F(NoMallocOptions, ForScoresResidualAndSavedSums) {
  EXPECT_EQ(allocations_in([&] {
              sdpa(x.Q, x.K, x.V, attn::into(x.Y), attn::scale(0.5f), attn::softcap(20.0f),
                   attn::bias(x.B), attn::residual(x.X), attn::save_logsumexp(x.l));
            }),
            0);
}

TEST_F(NoMallocOptions, ForMasksOfAllKindsAndFunctors) {
  const std::vector<int> ids(24, 3), key_ids(300, 3), parents = {-1, 0, 0, 1, 1, 2};
  const DynamicMatrix<bool> blocks = support::random_bools(3, 30, 7);
  EXPECT_EQ(allocations_in([&] {
              sdpa(x.Q, x.K, x.V, attn::into(x.Y), attn::query_offset(276),
                   attn::segments(ids, key_ids) && attn::tree(parents),
                   !attn::block_sparse(blocks, 10) || attn::prefix_lm(40),
                   attn::mask([](Index query, Index key) { return key % 3 != query % 5; }));
            }),
            0);
  const std::vector<float> table(300, 0.5f);
  EXPECT_EQ(allocations_in([&] {
              sdpa(x.Q, x.K, x.V, attn::into(x.Y), attn::alibi(0.5f), attn::sink({0.25}),
                   attn::score([&](auto s, auto at) { return s + lookup(table, at.key); }));
            }),
            0);
  EXPECT_EQ(allocations_in([&] {
              sdpa(x.Q, x.K, x.V, attn::into(x.Y), attn::score([&](float s, attn::At at) {
                     return s + table[std::size_t(at.key)];
                   }));
            }),
            0);
}

TEST_F(NoMallocOptions, ForRotary) {
  attn::AttentionShape shape{24, 300, 20, 24};
  shape.rotary_dims = 20;
  sdpa.reserve(shape);
  EXPECT_EQ(allocations_in([&] {
              sdpa(x.Q, x.K, x.V, attn::into(x.Y), attn::query_offset(276),
                   attn::rotary(attn::pairing::half_split));
            }),
            0);
}

TEST_F(NoMallocOptions, ForKeysInParts) {
  Operands<float> long_one(24, 900, 20, 24);
  attn::AttentionShape shape{24, 900, 20, 24};
  shape.split_keys = 256;
  sdpa.reserve(shape);
  EXPECT_EQ(allocations_in([&] {
              sdpa(long_one.Q, long_one.K, long_one.V, attn::into(long_one.Y),
                   attn::save_logsumexp(long_one.l), attn::split_keys(256));
            }),
            0);
  const Eigen::Matrix<float, 2, 4> Q = uniform<float>(2, 4, 1);
  const Eigen::Matrix<float, 600, 4> K = uniform<float>(600, 4, 2);
  Eigen::Matrix<float, 2, 4> Y;
  EXPECT_EQ(allocations_in([&] { Y = attn::attention(Q, K, K, attn::split_keys(256)); }), 0);
}

TEST_F(NoMallocOptions, ForEverythingThatIsSaved) {
  DynamicMatrix<float> W(24, 300), mean(3, 300), S(2, 300), m(24, 1), e(24, 1);
  EXPECT_EQ(allocations_in([&] {
              sdpa(x.Q, x.K, x.V, attn::into(x.Y), attn::save_logsumexp(x.l),
                   attn::save_max_logit(m), attn::save_entropy(e), attn::save_weights(W),
                   attn::save_scores(S, attn::stage::scaled, attn::query_rows({0, 23})));
              sdpa(x.Q, x.K, x.V, attn::into(x.Y),
                   attn::save_weights(mean, attn::average_heads(), attn::query_rows({0, 7, 9})));
            }),
            0);
}

TEST_F(NoMallocOptions, ForHeads) {
  Operands<float> wide(24, 300, 4 * 20, 4 * 6);
  sdpa.reserve({24, 300, 20, 6, 4, 2});
  EXPECT_EQ(allocations_in([&] {
              sdpa(attn::heads(wide.Q, 4), attn::heads(wide.K.leftCols(40), 2),
                   attn::heads(wide.V.leftCols(12), 2), attn::into(wide.Y));
            }),
            0);
}

TEST(NoMallocLayer, FromTheSecondCallOrAfterReserve) {
  const auto options = attn::MultiHeadOptions(24, 4).kv_heads(2).in_bias().out_bias();
  const auto X = uniform<float>(37, 24, 1);
  DynamicMatrix<float> Y(37, 24);
  attn::MultiHeadAttention<float> mha(options), reserved(options), shared(options);
  const auto call = [&](auto& layer, auto... more) {
    return allocations_in([&] {
      layer(X, attn::into(Y), attn::residual(), attn::causal(),
            attn::rotary(attn::pairing::half_split), more...);
    });
  };
  EXPECT_GE(call(mha), 1);
  EXPECT_EQ(call(mha), 0);
  EXPECT_EQ(allocations_in([&] { mha(X.topRows(20), attn::into(Y.topRows(20))); }), 0);
  attn::LayerShape shape;
  shape.queries = shape.keys = 37;
  shape.rotary_dims = 6;
  reserved.reserve(shape);
  EXPECT_EQ(call(reserved), 0);
  attn::Workspace<float> workspace;
  shared.reserve(shape, workspace);
  EXPECT_EQ(call(std::as_const(shared), attn::use(workspace)), 0);
}

TEST(NoMallocLinear, FromTheSecondCallOrAfterReserveOrWithFixedSizes) {
  const attn::LinearOptions options = attn::LinearOptions(24, 70).bias();
  const auto X = uniform<float>(37, 24, 1), R = uniform<float>(37, 70, 2);
  DynamicMatrix<float> Y(37, 70);
  attn::Linear<float> linear(options), reserved(options);
  const attn::Linear<Eigen::half> shared(options);
  const auto call = [&](auto& layer, auto... more) {
    return allocations_in(
        [&] { layer(X, attn::into(Y), attn::residual(R), attn::gelu(), more...); });
  };
  EXPECT_GE(call(linear), 1);
  EXPECT_EQ(call(linear), 0);
  EXPECT_EQ(allocations_in([&] { linear(X.topRows(20), attn::into(Y.topRows(20))); }), 0);
  reserved.reserve(37);
  EXPECT_EQ(call(reserved), 0);
  attn::Workspace<float> workspace;
  shared.reserve(37, 1, workspace);
  EXPECT_EQ(call(shared, attn::use(workspace)), 0);
  EXPECT_EQ(allocations_in([&] {
              attn::Linear<float, 8, 16> fixed;
              const Eigen::Matrix<float, 5, 8> x = Eigen::Matrix<float, 5, 8>::Ones();
              const Eigen::Matrix<float, 5, 16> y = attn::silu(fixed(x, attn::relu()));
              fixed.set(y.topRows<1>().colwise().replicate<8>());
            }),
            0);
}

/// A pool of the calling thread.
struct InTurn {
  template <class F>
  void parallel_for(int n, const F& f) {
    for (int i = 0; i < n; ++i) f(i);
  }
};

// Whatever room for many workers was made, fewer rows and workers fit.
TEST(NoMallocLinear, ReserveIsForAllUpToItsSizes) {
  attn::Linear<float> linear(attn::LinearOptions(512, 300));
  linear.reserve(130, 4);
  DynamicMatrix<float> Y(130, 300);
  const auto X = uniform<float>(130, 512, 1);
  InTurn pool;
  for (int workers = 1; workers <= 4; ++workers) {
    for (const Index rows : {1, 11, 12, 13, 60, 96, 97, 130}) {
      EXPECT_EQ(allocations_in([&] {
                  linear(X.topRows(rows), attn::into(Y.topRows(rows)), attn::on(pool, workers));
                }),
                0)
          << rows << " rows, " << workers << " workers";
    }
  }
}

TEST(NoMallocLayer, DecodingFromTheSecondStepOrAfterReserve) {
  const auto options = attn::MultiHeadOptions(24, 4).kv_heads(2).in_bias().out_bias();
  const auto X = uniform<float>(700, 24, 1);
  DynamicMatrix<float> Y(1, 24);
  attn::MultiHeadAttention<float> mha(options), reserved(options);
  attn::KeyValueCache<float> cache(attn::KeyValueCacheOptions(700, 2, 6));
  const auto step = [&](auto& layer) {
    return allocations_in([&] {
      layer.decode(X.row(cache.length()), cache, attn::into(Y), attn::residual(),
                   attn::rotary(attn::pairing::half_split));
    });
  };
  EXPECT_GE(step(mha), 1);
  for (int n = 0; n < 600; ++n) EXPECT_EQ(step(mha), 0) << n;
  attn::AttentionShape shape = cache.shape(1, 4);
  shape.rotary_dims = 6;
  reserved.reserve_decode(shape);
  EXPECT_EQ(step(reserved), 0);
}

TEST(NoMallocLayer, AtAllOfCompileTimeSizes) {
  const Eigen::Matrix<float, 10, 64> X = uniform<float>(10, 64, 1);
  const Eigen::Matrix<float, Eigen::Dynamic, 64, Eigen::RowMajor, 16, 64> bounded = X;
  Eigen::Matrix<float, 10, 64> Y;
  Eigen::Matrix<float, Eigen::Dynamic, 64, Eigen::RowMajor, 16, 64> Z(10, 64);
  EXPECT_EQ(allocations_in([&] {
              attn::MultiHeadAttention<float, 64, 8> mha;
              mha.edit([](auto& w) { w.query.setIdentity(), w.value.setIdentity(); });
              mha.set_output(Eigen::Matrix<float, 64, 64>::Identity());
              Y = mha(X, attn::residual(), attn::rotary(attn::pairing::interleaved));
              Z = mha(bounded, X, attn::causal());
            }),
            0);
}

template <class Storage>
class NoMallocCache : public ::testing::Test {};
using Storages = ::testing::Types<float, Eigen::bfloat16, std::int8_t>;
TYPED_TEST_SUITE(NoMallocCache, Storages, support::ScalarNames);

// A prompt, then token by token across panels and blocks; the functor's scratch is reserved from the cache's sizes.
TYPED_TEST(NoMallocCache, InAppendNorInDecodingAfterReserve) {
  const auto Q = uniform<float>(300, 4 * 20, 1), K = uniform<float>(300, 2 * 20, 2),
             V = uniform<float>(300, 2 * 20, 3);
  DynamicMatrix<float> Y(200, 4 * 20);
  const auto options = attn::KeyValueCacheOptions(300, 2, 20);
  attn::KeyValueCache<TypeParam> cache(options), other(options);
  attn::ScaledDotProductAttention<float> sdpa;
  attn::AttentionShape shape = cache.shape(200, 4);
  shape.rotary_dims = 20;
  sdpa.reserve(shape);
  const auto rotary = attn::rotary(attn::pairing::half_split);
  EXPECT_EQ(allocations_in([&] {
              cache.append(K.topRows(200), V.topRows(200), rotary);
              sdpa(attn::heads(Q.topRows(200), 4), cache, attn::into(Y), rotary);
              for (Index i = 200; i < 300; ++i) {
                cache.append(K.row(i), V.row(i), rotary, attn::cache_sequences({0}));
                sdpa(attn::heads(Q.row(i), 4), cache, attn::into(Y.topRows(1)), rotary,
                     attn::cache_sequences({0}));
              }
              cache.truncate(77);
              other = cache;
              cache.clear();
            }),
            0);
}

// Without reserve(): the first step makes room for all that follow, however long the sequence grows.
TEST(NoMallocCacheOfFloat, FromTheSecondStepOn) {
  const auto X = uniform<float>(300, 20, 1);
  DynamicMatrix<float> Y(1, 20);
  attn::KeyValueCache<float> cache(attn::KeyValueCacheOptions(300, 1, 20));
  attn::ScaledDotProductAttention<float> sdpa;
  const auto step = [&](Index i) {
    cache.append(X.row(i), X.row(i));
    sdpa(X.row(i), cache, attn::into(Y));
  };
  EXPECT_GE(allocations_in([&] { step(0); }), 1);
  EXPECT_EQ(allocations_in([&] {
              for (Index i = 1; i < 300; ++i) step(i);
            }),
            0);
}

TEST(NoMallocResidualAdd, IntoAFittingMatrix) {
  const auto X = uniform<float>(10, 7, 1), Y = uniform<float>(10, 7, 2);
  DynamicMatrix<float> Z(10, 7);
  EXPECT_EQ(allocations_in([&] { attn::residual_add(X, Y, attn::into(Z)); }), 0);
}

}  // namespace
