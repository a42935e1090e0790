// tests/native_bfloat16_operands_test.cpp: attention with native_bfloat16() on other storage than
// bfloat16, on what rotary() turned, and where dropped or hidden values are not finite.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "support/matrix_matchers.h"
#include "support/random.h"

namespace {

using Eigen::Index;
using support::same_bits;
using support::uniform;
using Bfloat = Eigen::bfloat16;
using Wide = support::DynamicMatrix<float>;
template <class T>
using Matrix = support::DynamicMatrix<T>;

/// The option where the build has it. (The tests are skipped where it does not, in words.)
auto native() {
  if constexpr (attn::has_native_bfloat16) {
    return attn::options(attn::native_bfloat16());
  } else {
    return attn::options();
  }
}
class NativeBfloat16Operands : public testing::Test {
 protected:
  void SetUp() override {
    if (!attn::has_native_bfloat16) GTEST_SKIP() << "this build has no products of bfloat16";
  }
};

const float kInfinity = std::numeric_limits<float>::infinity(), kNaN = std::nanf("");

/// What an operand is multiplied as.
template <class Derived>
Matrix<Bfloat> rounded(const Eigen::MatrixBase<Derived>& x) {
  return x.template cast<float>().template cast<Bfloat>();
}
template <class Query, class Key, class Value, class... Options>
Wide attend(const Query& Q, const Key& K, const Value& V, const Options&... options) {
  Wide Y(Q.rows(), V.cols());
  attn::attention(Q, K, V, native(), attn::into(Y), options...);
  return Y;
}

constexpr Index kRows = 19, kKeys = 285, kKeyDim = 38, kValueDim = 21;

TEST_F(NativeBfloat16Operands, OfHalfAreRoundedFirst) {
  const Matrix<Eigen::half> Q = uniform<Eigen::half>(kRows, kKeyDim, 1, 3),
                            K = uniform<Eigen::half>(kKeys, kKeyDim, 2, 3);
  Matrix<Eigen::half> V = uniform<Eigen::half>(kKeys, kValueDim, 3);
  EXPECT_TRUE(same_bits(attend(Q, K, V), attend(rounded(Q), rounded(K), rounded(V))));
  // Few rows, and a value that is not finite where some rows see it.
  V(3, 5) = Eigen::half(kInfinity);
  const Matrix<Eigen::half> few = Q.topRows(4);
  const auto last = attn::causal_from(kKeys - 4);
  EXPECT_TRUE(
      same_bits(attend(few, K, V, last), attend(rounded(few), rounded(K), rounded(V), last)));
  const auto first = attn::causal_from(1);
  const Wide Y = attend(few, K, V, first);
  EXPECT_TRUE(Y.topRows(2).array().isFinite().all());
  EXPECT_FALSE(Y.col(5).tail(2).array().isFinite().any());
}

TEST_F(NativeBfloat16Operands, OfMixedStorageAreRoundedEachFirst) {
  const Wide Q = uniform<float>(kRows, kKeyDim, 1, 3);
  const Matrix<Bfloat> K = rounded(uniform<float>(kKeys, kKeyDim, 2, 3));
  const Matrix<Eigen::half> V = uniform<Eigen::half>(kKeys, kValueDim, 3);
  const auto lengths = attn::key_lengths(200);
  EXPECT_TRUE(same_bits(attend(Q, K, V), attend(rounded(Q), K, rounded(V))));
  EXPECT_TRUE(same_bits(attend(Q, K, V, lengths), attend(rounded(Q), K, rounded(V), lengths)));
}

// Turned in float, then rounded, whatever the storage.
TEST_F(NativeBfloat16Operands, AreRoundedAsTheyAreTurned) {
  const Wide Q = uniform<float>(kRows, kKeyDim, 1, 3), K = uniform<float>(kKeys, kKeyDim, 2, 3),
             V = uniform<float>(kKeys, kValueDim, 3);
  const auto rotary = attn::rotary(attn::pairing::half_split);
  const Wide turned_q = attn::rotate(Q, rotary, attn::query_offset(7)),
             turned_k = attn::rotate(K, rotary);
  const Wide Y = attend(Q, K, V, rotary, attn::causal_from(7));
  EXPECT_TRUE(
      same_bits(Y, attend(rounded(turned_q), rounded(turned_k), rounded(V), attn::causal_from(7))));
  const Matrix<Bfloat> narrow_q = rounded(Q), narrow_k = rounded(K);
  const Wide narrow = attend(narrow_q, narrow_k, rounded(V), rotary, attn::causal_from(7));
  const Wide from_q = narrow_q.cast<float>(), from_k = narrow_k.cast<float>();
  EXPECT_TRUE(same_bits(narrow, attend(from_q, from_k, V, rotary, attn::causal_from(7))));
}

/// Values that hold NaN and ∞ at some keys; finite ones are the same in both.
struct Broken {
  Wide finite = uniform<float>(kKeys, kValueDim, 3), value = finite;
  Broken() {
    for (const Index key : {2, 3, 64, 97, 256, 284}) value(key, key % kValueDim) = kNaN;
    value(31, 0) = kInfinity;
    value(33, 1) = -kInfinity;
  }
};

// Which elements are not finite is the formula's to say: those of a visible pair that stays.
TEST_F(NativeBfloat16Operands, DroppedAndHiddenValuesReachNothing) {
  const Wide Q = uniform<float>(kRows, kKeyDim, 1, 3), K = uniform<float>(kKeys, kKeyDim, 2, 3);
  const Broken x;
  const auto drop = attn::dropout(0.5, 11);
  for (const Index offset : {Index(0), Index(60), kKeys - kRows}) {
    const auto causal = attn::causal_from(offset);
    const Wide Y = attend(Q, K, x.value, drop, causal), Z = attend(Q, K, x.finite, drop, causal);
    for (Index i = 0; i < kRows; ++i) {
      for (Index c = 0; c < kValueDim; ++c) {
        bool meets = false;
        for (Index j = 0; j <= i + offset; ++j)
          meets |= !std::isfinite(x.value(j, c)) && attn::keeps(drop, {0, 0, i + offset, j});
        if (meets) {
          EXPECT_FALSE(std::isfinite(Y(i, c))) << "row " << i << ", feature " << c;
        } else {
          EXPECT_TRUE(same_bits(Y.block(i, c, 1, 1), Z.block(i, c, 1, 1)))
              << "row " << i << ", feature " << c << ", offset " << offset;
        }
      }
    }
  }
}

}  // namespace
