// tests/partial_test.cpp: states of attention over parts of the keys: merged and finished they have the bits of split_keys().
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/error_of.h"
#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/scalar_names.h"
#include "support/special_values.h"
#include "support/threads.h"

namespace {

using attn::Partial;
using attn::save_partial;
using attn::split_keys;
using Eigen::Index;
using Eigen::MatrixXf;
using support::error_of;
using support::same_bits;
using support::uniform;

/// Attention that is causal from an offset, in one call and in parts by hand.
template <class Scalar>
struct Call {
  using Matrix = support::DynamicMatrix<Scalar>;
  Index heads, kv_heads, offset;
  Matrix Q, K, V;

  Call(Index queries, Index keys, Index d_k, Index d_v, Index h, Index h_kv, Index from)
      : heads(h),
        kv_heads(h_kv),
        offset(from),
        Q(uniform<Scalar>(queries, h * d_k, 1, 4)),
        K(uniform<Scalar>(keys, h_kv * d_k, 2, 4)),
        V(uniform<Scalar>(keys, h_kv * d_v, 3)) {}

  template <class... More>
  void attend(Index first, Index keys, const More&... more) const {
    const Matrix k = K.middleRows(first, keys), v = V.middleRows(first, keys);
    attn::attention(attn::heads(Q, heads), attn::heads(k, kv_heads), attn::heads(v, kv_heads),
                    attn::causal_from(offset - first), attn::softcap(Scalar(3)), more...);
  }
  /// In one call: Y and its log-sum-exp.
  Matrix whole(Index chunk, Matrix& l) const {
    Matrix Y;
    attend(0, K.rows(), split_keys(chunk), attn::into(Y), attn::save_logsumexp(l));
    return Y;
  }
  std::vector<Partial<Scalar>> parts(Index chunk) const {
    std::vector<Partial<Scalar>> parts;
    for (Index first = 0; first < K.rows() || first == 0; first += chunk) {
      parts.emplace_back();
      attend(first, std::min(chunk, K.rows() - first), save_partial(parts.back()));
    }
    return parts;
  }
  Partial<Scalar> merged(Index chunk) const {
    Partial<Scalar> merged;
    for (const Partial<Scalar>& part : parts(chunk)) merged.merge(part);
    return merged;
  }
};

template <class Scalar>
class PartialState : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(PartialState, Scalars, support::ScalarNames);

TYPED_TEST(PartialState, HasTheBitsOfSplitKeysOverSizesOffsetsAndHeads) {
  using Matrix = support::DynamicMatrix<TypeParam>;
  const std::vector<Call<TypeParam>> calls = {
      {1, 2100, 5, 3, 1, 1, 2099},    // decoding
      {3, 6000, 8, 70, 6, 2, 5990},   // what settles within a part, counted from its beginning
      {37, 1000, 16, 10, 4, 2, 700},  // parts that some rows do not see
      {40, 900, 4, 33, 2, 1, -7},     // rows that see nothing, parts that nobody sees
      {20, 256, 3, 1, 3, 3, 240},     // one part
      {5, 0, 3, 4, 2, 2, 0},          // no keys
      {0, 600, 3, 4, 2, 2, 0},        // no rows
  };
  for (const Call<TypeParam>& call : calls) {
    for (const Index chunk : {Index(256), Index(768), Index(4096)}) {
      SCOPED_TRACE(std::to_string(call.Q.rows()) + " queries, " + std::to_string(call.K.rows()) +
                   " keys, chunk " + std::to_string(chunk));
      Matrix l, merged_l, m;
      const Matrix Y = call.whole(chunk, l);
      const Partial<TypeParam> merged = call.merged(chunk);
      const Matrix O =
          attn::finish(merged, attn::save_logsumexp(merged_l), attn::save_max_logit(m));
      EXPECT_TRUE(same_bits(O, Y));
      EXPECT_TRUE(same_bits(merged_l, l));
      EXPECT_EQ(m.rows(), l.rows());
      EXPECT_EQ(m.cols(), l.cols());
    }
  }
}

TYPED_TEST(PartialState, MergesKeysThatAreNotFiniteAsSplitKeysDoes) {
  using Matrix = support::DynamicMatrix<TypeParam>;
  const TypeParam infinity = support::kInfinity<TypeParam>, nan = support::kNaN<TypeParam>;
  for (const TypeParam poison : {nan, infinity, -infinity}) {
    for (const bool in_keys : {false, true}) {
      Call<TypeParam> call(60, 900, 4, 6, 2, 1, 840);
      (in_keys ? call.K : call.V)(870, 1) = poison;  // hidden from 30 rows
      (in_keys ? call.K : call.V)(300, 2) = poison;
      call.V(5, 0) = poison;
      Matrix l, merged_l;
      const Matrix Y = call.whole(256, l);
      const Matrix O = attn::finish(call.merged(256), attn::save_logsumexp(merged_l));
      // (NaN by any bits: which of two a sum keeps is the processor's.)
      EXPECT_TRUE(O.array().isNaN().eval().isApprox(Y.array().isNaN().eval()));
      const auto numbers = [](const Matrix& x) {
        return Matrix(x.array().isNaN().select(Matrix::Zero(x.rows(), x.cols()), x));
      };
      EXPECT_TRUE(same_bits(numbers(O), numbers(Y)));
      EXPECT_TRUE(same_bits(numbers(merged_l), numbers(l)));
      EXPECT_FALSE(Y.array().isFinite().all());
    }
  }
}

TEST(Partial, MergesAsManyAtOnceAsOneByOne) {
  const Call<float> call(9, 2000, 8, 20, 2, 1, 1991);
  const auto parts = call.parts(512);
  ASSERT_EQ(parts.size(), 4u);
  const MatrixXf one_by_one = attn::finish(call.merged(512));
  EXPECT_TRUE(same_bits(MatrixXf(attn::finish(attn::merge(parts[0], parts[1], parts[2], parts[3]))),
                        one_by_one));
  EXPECT_TRUE(same_bits(
      MatrixXf(attn::finish(attn::merge(attn::merge(parts[0], parts[1], parts[2]), parts[3]))),
      one_by_one));
  // Another order, or a state that has been rounded, is the same to rounding alone.
  const MatrixXf backwards = attn::finish(attn::merge(parts[3], parts[2], parts[1], parts[0])),
                 pairs = attn::finish(
                     attn::merge(attn::merge(parts[0], parts[1]), attn::merge(parts[2], parts[3])));
  EXPECT_TRUE(support::near(backwards, one_by_one, 1e-6));
  EXPECT_TRUE(support::near(pairs, one_by_one, 1e-6));
  EXPECT_FALSE(same_bits(backwards, one_by_one));
}

/// Every option that reads positions, on keys in one matrix: key_range() with split_keys() selects
/// a part.
TEST(Partial, SelectsPartsOfKeysInOneMatrix) {
  const std::vector<Index> queries{0, 30, 41}, keys{0, 900, 1600};
  const MatrixXf Q = uniform<float>(41, 4 * 6, 1), K = uniform<float>(1600, 2 * 6, 2),
                 V = uniform<float>(1600, 2 * 5, 3), B = uniform<float>(41, 900, 4),
                 X = uniform<float>(41, 4 * 5, 5);
  const auto M = support::random_bools(41, 900, 6, 0.6);
  const auto attend = [&](const auto&... more) {
    attn::attention(
        attn::heads(Q, 4), attn::heads(K, 2), attn::heads(V, 2), attn::sequences(queries, keys),
        attn::causal_from({850, 100}), attn::window(700, 0), attn::keep(M), attn::bias(B),
        attn::alibi({0.5, 0.25, 0.125, 0.1}), attn::rotary(attn::pairing::half_split),
        attn::score([](auto s, auto at) { return s + 0.001f * at.key - 0.1f * at.head; }),
        split_keys(256), more...);
  };
  MatrixXf Y, l, m, merged_l, merged_m;
  attend(attn::into(Y), attn::save_logsumexp(l), attn::save_max_logit(m), attn::residual(X),
         attn::sink({0.5, 1.0, -2.0, 5.0}));
  Partial<float> merged, part;
  for (Index first = 0; first < 900; first += 256) {
    const Index last = first + 256;
    attend(attn::key_range({first, std::min<Index>(first, 700)},
                           {std::min<Index>(last, 900), std::min<Index>(last, 700)}),
           save_partial(part));
    merged.merge(part);
  }
  const MatrixXf O = attn::finish(merged, attn::residual(X), attn::sink({0.5, 1.0, -2.0, 5.0}),
                                  attn::save_logsumexp(merged_l), attn::save_max_logit(merged_m));
  EXPECT_TRUE(same_bits(O, Y));
  EXPECT_TRUE(same_bits(merged_l, l));
  EXPECT_TRUE(same_bits(merged_m, m));

  // The same into memory of other orders, with the residual in place, and through a list.
  Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> in_place = X;
  const auto sinks = attn::options(attn::sink({0.5, 1.0, -2.0, 5.0}));
  attn::finish(merged, attn::into(in_place), attn::residual(in_place), sinks);
  EXPECT_TRUE(same_bits(in_place, Y));
  MatrixXf wide = X;
  attn::finish(merged, attn::into(attn::heads(wide, 4)), attn::residual(X), sinks);
  EXPECT_TRUE(same_bits(wide, Y));
}

TEST(Partial, IsKeptByAnyNumberOfThreads) {
  support::Threads pool;
  for (const Index rows : {1, 300}) {
    const MatrixXf Q = uniform<float>(rows, 4 * 8, 1), K = uniform<float>(3000, 2 * 8, 2),
                   V = uniform<float>(3000, 2 * 5, 3);
    const auto finished = [&](int workers) -> MatrixXf {
      Partial<float> p;
      attn::attention(attn::heads(Q, 4), attn::heads(K, 2), attn::heads(V, 2),
                      attn::on(pool, workers), split_keys(256), save_partial(p));
      return attn::finish(p);
    };
    const MatrixXf Y =
        attn::attention(attn::heads(Q, 4), attn::heads(K, 2), attn::heads(V, 2), split_keys(256));
    for (const int workers : {1, 3, 5}) EXPECT_TRUE(same_bits(finished(workers), Y)) << workers;
  }
}

TEST(Partial, IsComputedInFloatOfNarrowKeys) {
  using Narrow = Eigen::Matrix<Eigen::bfloat16, Eigen::Dynamic, Eigen::Dynamic>;
  const Narrow Q = uniform<float>(7, 8, 1).cast<Eigen::bfloat16>(),
               K = uniform<float>(700, 8, 2).cast<Eigen::bfloat16>(),
               V = uniform<float>(700, 12, 3).cast<Eigen::bfloat16>();
  const Narrow Y = attn::attention(Q, K, V, split_keys(256));
  Partial<float> merged, part;
  for (const Index first : {0, 256, 512}) {
    const Index keys = std::min<Index>(256, 700 - first);
    attn::attention(Q, K.middleRows(first, keys), V.middleRows(first, keys), save_partial(part));
    merged.merge(part);
  }
  Narrow O;
  attn::finish(merged, attn::into(O));
  EXPECT_TRUE(same_bits(O.cast<float>(), Y.cast<float>()));
}

TEST(Partial, TravelsAsNumbers) {
  const Call<float> call(9, 700, 8, 5, 4, 2, 691);
  Partial<float> merged;
  for (const Partial<float>& part : call.parts(256)) {
    const Eigen::VectorXf numbers = part.numbers();
    EXPECT_EQ(numbers.size(), 9 * 4 * (5 + 2));
    merged.merge(Partial<float>::from(9, 4, 2, 5, numbers));
  }
  EXPECT_TRUE(same_bits(MatrixXf(attn::finish(merged)), MatrixXf(attn::finish(call.merged(256)))));
  // Under the second key/value head: m of its rows first.
  MatrixXf m;
  const Partial<float> part = call.parts(256).front();
  (void)attn::finish(part, attn::save_max_logit(m));
  EXPECT_EQ(part.numbers()(9 * 2 * (5 + 2) + 3), m(1, 3));

  EXPECT_EQ(error_of([&] { (void)Partial<float>::from(9, 4, 2, 5, Eigen::VectorXf(7)); }),
            "attn::Partial::from: 7 numbers, needs 252, query rows x heads x (value_dim + 2)");
  EXPECT_EQ(error_of([&] { (void)Partial<float>::from(9, 4, 3, 5, Eigen::VectorXf(7)); }),
            "attn::Partial::from: heads is 4, needs a multiple of kv_heads, 3");
  // A product that comes to 0 where it overflows.
  const Index many = Index(1) << (sizeof(Index) * 8 - 14);
  const std::string refusal =
      error_of([&] { (void)Partial<float>::from(many, 1, 1, (1 << 14) - 2, Eigen::VectorXf()); });
  EXPECT_EQ(refusal.find("attn::Partial::from: query rows x heads x (value_dim + 2)"), 0u)
      << refusal;
}

TEST(Partial, IsARegularValue) {
  const Call<float> call(9, 700, 8, 5, 4, 2, 691);
  Partial<float> p;
  EXPECT_TRUE(p.empty());
  EXPECT_EQ(p.numbers().size(), 0);
  p = call.merged(256);
  EXPECT_EQ(p.queries(), 9);
  EXPECT_EQ(p.heads(), 4);
  EXPECT_EQ(p.kv_heads(), 2);
  EXPECT_EQ(p.value_dim(), 5);
  const MatrixXf Y = attn::finish(p);
  Partial<float> copy = p, moved = std::move(p);
  EXPECT_TRUE(p.empty());  // NOLINT: what a moved-from state is
  EXPECT_TRUE(same_bits(MatrixXf(attn::finish(copy)), Y));
  EXPECT_TRUE(same_bits(MatrixXf(attn::finish(moved)), Y));
  p = copy;
  p.clear();
  EXPECT_TRUE(p.empty());
  EXPECT_EQ(p.queries(), 0);
  p.merge(copy);
  EXPECT_TRUE(same_bits(MatrixXf(attn::finish(p)), Y));
  EXPECT_TRUE(
      same_bits(MatrixXf(attn::finish(p.merge(copy))), MatrixXf(attn::finish(moved.merge(copy)))));
}

TEST(Partial, IsRefusedInWords) {
  const Call<float> call(9, 300, 8, 5, 4, 2, 291), other(9, 300, 8, 6, 4, 2, 291);
  const std::string empty =
      "the state to merge is empty: give save_partial(p) to the call over "
      "its keys";
  Partial<float> p = call.merged(256);
  const MatrixXf Y = attn::finish(p);
  EXPECT_EQ(error_of([&] { p.merge(Partial<float>()); }), "attn::Partial::merge: " + empty);
  EXPECT_EQ(error_of([&] { p.merge(other.merged(256)); }),
            "attn::Partial::merge: the state to merge is of 9 query rows, 4 heads on 2 key/value "
            "heads and 6 features, this one of 9 query rows, 4 heads on 2 key/value heads and 5 "
            "features");
  EXPECT_TRUE(same_bits(MatrixXf(attn::finish(p)), Y));

  MatrixXf O = MatrixXf::Zero(2, 2), l = O;
  const auto untouched = [&](const std::string& message, const auto& refused) {
    EXPECT_EQ(error_of(refused), message);
    EXPECT_EQ(O, MatrixXf::Zero(2, 2));
    EXPECT_EQ(l, MatrixXf::Zero(2, 2));
  };
  untouched("attn::finish: the state is empty: give save_partial(p) to the call over its keys",
            [&] { attn::finish(Partial<float>(), attn::into(O)); });
  untouched(
      "attn::finish: residual is 2x2 in 1 head, needs 9x20 (query rows x output features) in 4 "
      "heads",
      [&] { attn::finish(p, attn::into(O), attn::residual(l)); });
  untouched(
      "attn::finish: sink has 3 numbers, query has 4 heads; needs one for each (or one for all)",
      [&] {
        attn::finish(p, attn::into(O), attn::sink({1., 2., 3.}));
      });
  untouched("attn::finish: logsumexp overlaps output; write to memory of its own",
            [&] { attn::finish(p, attn::into(O), attn::save_logsumexp(O)); });
  untouched("attn::finish: output is 2x2, needs 9x20",
            [&] { attn::finish(p, attn::into(O.block(0, 0, 2, 2)), attn::save_logsumexp(l)); });

  // The state as a matrix of its own is no input of the call that fills it.
  const Eigen::Map<const MatrixXf> inside(p.numbers().data(), 9, 8);
  EXPECT_EQ(error_of([&] {
              attn::attention(inside, call.K.leftCols(8), call.V.leftCols(5), save_partial(p));
            }),
            "attn::attention: output overlaps query without being the same matrix; write to memory "
            "of its own");
  EXPECT_TRUE(same_bits(MatrixXf(attn::finish(p)), Y));

  // A call that is refused leaves the state, one that throws later empties it.
  const MatrixXf Q = call.Q.leftCols(8), K = call.K.leftCols(8);
  const auto attend = [&](const MatrixXf& V, bool throws) {
    attn::attention(Q, K, V, save_partial(p), attn::mask([throws](Index, Index) -> bool {
                      if (throws) throw std::domain_error("thrown by a mask");
                      return true;
                    }));
  };
  EXPECT_THROW(attend(MatrixXf::Zero(7, 5), false), std::invalid_argument);
  EXPECT_TRUE(same_bits(MatrixXf(attn::finish(p)), Y));
  EXPECT_THROW(attend(MatrixXf::Zero(300, 5), true), std::domain_error);
  EXPECT_TRUE(p.empty());
}

}  // namespace
