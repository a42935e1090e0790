// tests/hidden_test.cpp: what is hidden contributes nothing and reads as hidden, however few the rows are that it is hidden from:
// by a mask, a bias, a score functor, or by q·k itself; in any order of memory, and over a cache of any storage.
// build: -Og
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/random_layer.h"
#include "support/scalar_names.h"
#include "support/special_values.h"

namespace {

using Eigen::Index;
using support::kInfinity;
using support::kNaN;
using support::same_bits;
using support::uniform;
template <class Scalar>
using Matrix = support::DynamicMatrix<Scalar>;

enum class Order { row_major, column_major, strided };
constexpr Order kOrders[] = {Order::row_major, Order::column_major, Order::strided};

/// A matrix's numbers in some order, heads side by side in its columns.
template <class T>
struct Placed {
  std::vector<T> memory;
  attn::TensorView<const T> view;

  Placed(const Matrix<T>& x, Index heads, Order order) {
    const Index feature = order == Order::row_major ? 1
                          : order == Order::strided ? 2
                                                    : x.rows(),
                token = order == Order::column_major ? 1 : x.cols() * feature + 3;
    memory.resize(std::size_t(x.rows() * token + x.cols() * feature + 1));
    for (Index i = 0; i < x.rows(); ++i) {
      for (Index c = 0; c < x.cols(); ++c) memory[std::size_t(i * token + c * feature)] = x(i, c);
    }
    const Index features = x.cols() / heads;
    view = {memory.data(), 1, heads, x.rows(), features, 0, features * feature, token, feature};
  }
};

/// What may hide a pair.
enum class By { mask, bias, functor, dot_product };
constexpr By kWays[] = {By::mask, By::bias, By::functor, By::dot_product};

/// A call of few rows, some pairs of which are hidden.
template <class T>
struct Call {
  using Scalar = attn::compute_t<T>;
  Index heads, kv_heads, rows, keys, key_dim, value_dim;
  By by;
  Matrix<bool> hidden;  ///< [rows, keys], for all heads
  Matrix<T> Q, K, V;
  Matrix<Scalar> B;
  Index visible_end;

  Call(By way, Index n, Index Lk, Index H, Index H_kv, std::uint32_t seed)
      : heads(H),
        kv_heads(H_kv),
        rows(n),
        keys(Lk),
        key_dim(1 + Index(seed % 7) * 5),
        value_dim(1 + Index(seed % 5) * 9),
        by(way),
        hidden(support::random_bools(n, Lk, seed, seed % 4 == 0 ? 1 : 0.4)),
        Q(uniform<T>(n, H * key_dim, seed + 1)),
        K(uniform<T>(Lk, H_kv * key_dim, seed + 2)),
        V(uniform<T>(Lk, H_kv * value_dim, seed + 3)),
        B(uniform<Scalar>(n, Lk, seed + 4)),
        visible_end(Lk) {
    if (by == By::mask) {
      visible_end = (seed % 3) * Lk / 3;
      for (Index j = 0; j < Lk; ++j) hidden.col(j).setConstant(j >= visible_end);
    } else if (by != By::bias) {
      for (Index i = 1; i < n; ++i) hidden.row(i) = hidden.row(0);
    }
    if (by == By::bias) B = hidden.select(-kInfinity<Scalar>, B).eval();
    if (by == By::dot_product) {
      for (Index h = 0; h < H; ++h) Q.col(h * key_dim).setConstant(T(1));
      for (Index j = 0; j < Lk; ++j) {
        for (Index h = 0; h < H_kv && hidden(0, j); ++h) K(j, h * key_dim) = -kInfinity<T>;
      }
    }
  }
  bool hidden_from_all(Index j) const { return hidden.col(j).all(); }

  /// Something in the values that nobody sees, and in the keys.
  void fill_hidden(T in_keys, T in_values) {
    for (Index j = 0; j < keys; ++j) {
      if (!hidden_from_all(j)) continue;
      V.row(j).setConstant(in_values);
      if (by != By::dot_product) K.row(j).setConstant(in_keys);
    }
  }
  /// The first n rows alone.
  Call first(Index n) const {
    Call few = *this;
    few.rows = n;
    few.hidden = hidden.topRows(n);
    few.Q = Q.topRows(n);
    few.B = B.topRows(n);
    return few;
  }
};

/// What a call gives; its weights and scores are of all rows.
template <class T>
struct Given {
  using Scalar = attn::compute_t<T>;
  Matrix<T> Y;
  Matrix<Scalar> W, S;

  explicit Given(const Call<T>& c) : Y(c.rows, c.heads * c.value_dim) {}
  attn::TensorView<T> output(const Call<T>& c) {
    return {Y.data(), 1, c.heads, c.rows, c.value_dim, 0, c.value_dim, c.heads * c.value_dim, 1};
  }
};

template <class T, class Attend>
Given<T> modified(const Call<T>& c, Order order, const Attend& attend) {
  using Scalar = attn::compute_t<T>;
  Given<T> given(c);
  const Placed<T> q(c.Q, c.heads, order);
  attend(q.view, attn::into(given.output(c)), attn::key_range(0, c.visible_end), attn::bias(c.B),
         attn::score([&c](Scalar s, attn::At at) {
           return c.by == By::functor && c.hidden(0, at.key) ? -kInfinity<Scalar> : s;
         }),
         attn::save_weights(given.W), attn::save_scores(given.S, attn::stage::masked));
  return given;
}
/// Over matrices, with modifiers of the scores.
template <class T>
Given<T> over_matrices(const Call<T>& c, Order order) {
  const Placed<T> k(c.K, c.kv_heads, order), v(c.V, c.kv_heads, order);
  return modified(c, order, [&](const auto& q, auto&&... options) {
    attn::attention(q, k.view, v.view, std::forward<decltype(options)>(options)...);
  });
}
/// Over matrices without: bias and functor do not count.
template <class T>
Given<T> over_matrices_as_scored(const Call<T>& c, Order order) {
  Given<T> given(c);
  const Placed<T> q(c.Q, c.heads, order), k(c.K, c.kv_heads, order), v(c.V, c.kv_heads, order);
  attn::attention(q.view, k.view, v.view, attn::into(given.output(c)),
                  attn::key_range(0, c.visible_end), attn::save_weights(given.W),
                  attn::save_scores(given.S, attn::stage::masked));
  return given;
}
/// Over a cache.
template <class T, class Stored>
Given<T> over_a_cache(const Call<T>& c, Order order) {
  attn::KeyValueCache<Stored> cache(
      attn::KeyValueCacheOptions(c.keys + 3, c.kv_heads, c.key_dim).value_dim(c.value_dim));
  cache.append(c.K, c.V);
  return modified(c, order, [&](const auto& q, auto&&... options) {
    attn::attention(q, cache, attn::all_keys(), std::forward<decltype(options)>(options)...);
  });
}

template <class T>
void expect_same(const Given<T>& actual, const Given<T>& expected) {
  EXPECT_TRUE(same_bits(actual.Y, expected.Y));
  EXPECT_TRUE(same_bits(actual.W, expected.W));
  EXPECT_TRUE(same_bits(actual.S, expected.S));
}
template <class T>
void expect_read_as_hidden(const Call<T>& c, const Given<T>& given) {
  using Scalar = attn::compute_t<T>;
  EXPECT_TRUE(given.Y.allFinite());
  EXPECT_TRUE(given.W.allFinite());
  for (Index i = 0; i < c.rows; ++i) {
    for (Index j = 0; j < c.heads * c.keys; ++j) {
      if (!c.hidden(i, j % c.keys)) continue;
      ASSERT_EQ(given.W(i, j), Scalar(0)) << "row " << i << ", key " << j;
      ASSERT_EQ(given.S(i, j), -kInfinity<Scalar>) << "row " << i << ", key " << j;
    }
  }
}

struct Sizes {
  Index heads, kv_heads, keys;
};
constexpr Sizes kSizes[] = {{1, 1, 1},  {1, 1, 3},  {4, 1, 17}, {1, 1, 33},
                            {2, 1, 40}, {4, 2, 64}, {3, 3, 66}, {2, 1, 257}};

/// Whatever nobody sees changes no bit, is saved as hidden, and few rows are those of many.
template <class T, class Attend>
void expect_hidden_means_hidden(std::initializer_list<By> ways, const Attend& attend) {
  const T nan = kNaN<T>, infinity = kInfinity<T>;
  std::uint32_t seed = 0;
  for (const By by : ways) {
    for (const Sizes& size : kSizes) {
      const Call<T> all(by, 17, size.keys, size.heads, size.kv_heads, ++seed);
      const Given<T> many = attend(all, Order::row_major);
      for (const Index rows : {1, 2, 3, 4, 5}) {
        Call<T> c = all.first(rows);
        const Order order = kOrders[seed % 4 < 2 ? 0 : seed % 3];
        SCOPED_TRACE(testing::Message() << "by " << int(by) << ", " << rows << " rows, "
                                        << size.keys << " keys, heads " << size.heads << " on "
                                        << size.kv_heads << ", order " << int(order));
        c.fill_hidden(T(0.25f), T(0.5f));
        const Given<T> clean = attend(c, order);
        expect_read_as_hidden(c, clean);
        EXPECT_TRUE(same_bits(clean.Y, many.Y.topRows(rows)));
        EXPECT_TRUE(same_bits(clean.W, many.W.topRows(rows)));
        c.fill_hidden(nan, nan);
        expect_same(attend(c, order), clean);
        c.fill_hidden(-infinity, infinity);
        expect_same(attend(c, order), clean);
        c.fill_hidden(infinity, -infinity);
        expect_same(attend(c, order), clean);
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

/// A NaN in the values shows in its feature of the rows that see it; the rows that do not keep their bits.
template <class T, class Attend>
void expect_visible_is_shown(const Attend& attend) {
  for (const Sizes& size : kSizes) {
    for (const Index rows : {1, 2, 3, 4, 5}) {
      const std::uint32_t seed = std::uint32_t(size.keys * 4 + rows) | 1;
      Call<T> c(By::bias, rows, size.keys, size.heads, size.kv_heads, seed);
      const Given<T> clean = attend(c, Order::row_major);
      const Index key = size.keys / 2, feature = c.value_dim / 2;
      c.V(key, feature) = kNaN<T>;  // of the first head
      const Given<T> given = attend(c, Order::row_major);
      EXPECT_TRUE(same_bits(given.W, clean.W));
      for (Index i = 0; i < rows; ++i) {
        for (Index n = 0; n < given.Y.cols(); ++n) {
          const bool shown = n / c.value_dim < size.heads / size.kv_heads &&
                             n % c.value_dim == feature && !c.hidden(i, key);
          if (shown) {
            EXPECT_TRUE(std::isnan(float(given.Y(i, n)))) << "row " << i << ", feature " << n;
          } else {
            EXPECT_TRUE(same_bits(given.Y.block(i, n, 1, 1), clean.Y.block(i, n, 1, 1)))
                << "row " << i << ", feature " << n;
          }
        }
      }
    }
  }
}

template <class Scalar>
class Hidden : public testing::Test {};
using Scalars = testing::Types<float, double, Eigen::half, Eigen::bfloat16, long double>;
TYPED_TEST_SUITE(Hidden, Scalars, support::ScalarNames);

TYPED_TEST(Hidden, IsWithoutEffectInMatrices) {
  expect_hidden_means_hidden<TypeParam>({By::mask, By::bias, By::functor, By::dot_product},
                                        over_matrices<TypeParam>);
}
TYPED_TEST(Hidden, IsWithoutEffectWhereNothingModifiesScores) {
  // (Storage types differ in how they are loaded, which the test above sees.)
  if constexpr (std::is_same_v<TypeParam, attn::compute_t<TypeParam>>)
    expect_hidden_means_hidden<TypeParam>({By::mask, By::dot_product},
                                          over_matrices_as_scored<TypeParam>);
}
TYPED_TEST(Hidden, IsNotWhatSomeRowsSee) {
  expect_visible_is_shown<TypeParam>(over_matrices<TypeParam>);
}

/// Storage of a cache, beside the scalar that it computes in.
template <class Stored>
class HiddenInCache : public testing::Test {};
using Storages = testing::Types<float, double, Eigen::half, Eigen::bfloat16, std::int8_t>;
TYPED_TEST_SUITE(HiddenInCache, Storages, support::ScalarNames);
template <class Stored>
using computed_t = attn::kernel::cache_compute_t<Stored>;

TYPED_TEST(HiddenInCache, IsWithoutEffect) {
  using T = computed_t<TypeParam>;
  if constexpr (std::is_same_v<TypeParam, std::int8_t>) {  // no infinity is stored in int8
    expect_hidden_means_hidden<T>({By::mask, By::bias, By::functor}, over_a_cache<T, TypeParam>);
  } else {
    expect_hidden_means_hidden<T>({By::mask, By::bias, By::functor, By::dot_product},
                                  over_a_cache<T, TypeParam>);
  }
}
TYPED_TEST(HiddenInCache, IsNotWhatSomeRowsSee) {
  if constexpr (!std::is_same_v<TypeParam, std::int8_t>)  // where a token's NaN is all its features
    expect_visible_is_shown<computed_t<TypeParam>>(over_a_cache<computed_t<TypeParam>, TypeParam>);
}

// ---- other doors ------------------------------------------------------------------------------------

struct OneRow {
  Matrix<float> Q = uniform<float>(1, 8, 1), K = uniform<float>(40, 8, 2),
                V = uniform<float>(40, 8, 3), B = uniform<float>(1, 40, 4), poisoned = V;
  OneRow() {
    for (const Index j : {0, 5, 17, 39}) {
      B(0, j) = -kInfinity<float>;
      poisoned.row(j).setConstant(NAN);
    }
  }
};

TEST(HiddenValues, AreWithoutEffectInTheFunctor) {
  const OneRow x;
  attn::ScaledDotProductAttention<float> sdpa;
  Matrix<float> Y, Z;
  sdpa(x.Q, x.K, x.V, attn::into(Y), attn::bias(x.B));
  sdpa(x.Q, x.K, x.poisoned, attn::into(Z), attn::bias(x.B));
  EXPECT_TRUE(same_bits(Z, Y));
}

TEST(HiddenValues, AreWithoutEffectWhereKeysAreSplit) {
  const Matrix<float> Q = uniform<float>(2, 8, 1), K = uniform<float>(700, 8, 2),
                      V = uniform<float>(700, 8, 3);
  Matrix<float> B = uniform<float>(2, 700, 4), poisoned = V;
  for (const Index j : {0, 255, 256, 640, 699}) {
    B.col(j).setConstant(-kInfinity<float>);
    poisoned.row(j).setConstant(NAN);
  }
  const auto attend = [&](const Matrix<float>& values) {
    return Matrix<float>(
        attn::attention(Q, K, values, attn::bias(B), attn::split_keys(256), attn::parallel(2)));
  };
  EXPECT_TRUE(same_bits(attend(poisoned), attend(V)));
}

// Tokens 5, 11 and 30 hold NaN, which the layer's projections hand on to their keys and values.
TEST(HiddenTokens, AreWithoutEffectInALayerAndWhenItDecodes) {
  auto mha =
      support::random_layer<float>(attn::MultiHeadOptions(24, 4).kv_heads(2).in_bias().out_bias());
  const Matrix<float> X = uniform<float>(40, 24, 1);
  Matrix<float> poisoned = X, B = Matrix<float>::Zero(1, 40);
  for (const Index j : {5, 11, 30}) {
    B(0, j) = -kInfinity<float>;
    poisoned.row(j).setConstant(NAN);
  }
  const Matrix<float> query = X.row(39);
  const auto attend = [&](const Matrix<float>& tokens) {
    return Matrix<float>(mha(query, tokens, tokens, attn::bias(B)));
  };
  const Matrix<float> Y = attend(X);
  EXPECT_TRUE(same_bits(attend(poisoned), Y));

  const auto decode = [&](const Matrix<float>& tokens, Matrix<float>& W) {
    attn::KeyValueCache<float> cache(attn::KeyValueCacheOptions(64, 2, 6));
    (void)mha.decode(tokens.topRows(39), cache);
    Matrix<float> last;
    mha.decode(query, cache, attn::into(last), attn::bias(B), attn::save_weights(W));
    return last;
  };
  Matrix<float> W, W_poisoned;
  EXPECT_TRUE(same_bits(decode(X, W), Y));
  EXPECT_TRUE(same_bits(decode(poisoned, W_poisoned), Y));
  EXPECT_TRUE(same_bits(W_poisoned, W));
  for (const Index j : {5, 11, 30}) EXPECT_EQ(W_poisoned(0, 40 + j), 0.f);
}

TEST(HiddenKeys, WeighNothingInTheMeanOverHeadsAndInChosenRows) {
  for (const Index rows : {1, 2, 4, 5}) {
    for (const Index end : {0, 1, 15, 17, 31, 40}) {
      const Matrix<float> Q = uniform<float>(rows, 16, 1), K = uniform<float>(70, 8, 2);
      attn::KeyValueCache<float> cache(attn::KeyValueCacheOptions(70, 1, 8));
      cache.append(K, K);
      Matrix<float> W, of_cache;
      (void)attn::attention(attn::heads(Q, 2), attn::heads(K, 1), attn::heads(K, 1),
                            attn::key_lengths(end),
                            attn::save_weights(W, attn::average_heads(), attn::query_rows({0})));
      (void)attn::attention(
          attn::heads(Q, 2), cache, attn::all_keys(), attn::key_lengths(end),
          attn::save_weights(of_cache, attn::average_heads(), attn::query_rows({0})));
      EXPECT_TRUE(W.rightCols(70 - end).isZero(0)) << rows << " rows, " << end << " keys";
      EXPECT_NEAR(W.sum(), end > 0 ? 1 : 0, 1e-6);
      EXPECT_TRUE(same_bits(of_cache, W));
    }
  }
}

}  // namespace
