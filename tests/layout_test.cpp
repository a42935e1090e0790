// tests/layout_test.cpp: heads, batches and strided views have the bits of plain calls.
// build: -Og
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <unsupported/Eigen/CXX11/Tensor>

#include <array>
#include <numeric>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random.h"

namespace {

using Eigen::Index;
using Eigen::MatrixXf;
using support::same_bits;
using RowMajorXf = support::DynamicMatrix<float>;

/// A batch of heads by its row offsets, 5 features for each key and 3 for each value.
struct Batch {
  std::vector<Index> queries, keys;
  Index heads = 1, kv_heads = 1;
  MatrixXf Q, K, V;

  Batch(std::vector<Index> query_offsets, std::vector<Index> key_offsets, Index h, Index h_kv)
      : queries(std::move(query_offsets)),
        keys(std::move(key_offsets)),
        heads(h),
        kv_heads(h_kv),
        Q(support::uniform<float>(queries.back(), heads * 5, 1, 2)),
        K(support::uniform<float>(keys.back(), kv_heads * 5, 2, 2)),
        V(support::uniform<float>(keys.back(), kv_heads * 3, 3)) {}

  /// One plain call for each sequence and head.
  MatrixXf plain() const {
    MatrixXf Y(Q.rows(), heads * 3);
    for (std::size_t b = 0; b + 1 < queries.size(); ++b) {
      const std::size_t k = keys.size() == 2 ? 0 : b;
      const Index first = queries[b], count = queries[b + 1] - first;
      const Index first_key = keys[k], key_count = keys[k + 1] - first_key;
      for (Index h = 0; h < heads; ++h) {
        const Index from = h / (heads / kv_heads);
        const MatrixXf q = Q.block(first, h * 5, count, 5),
                       kh = K.block(first_key, from * 5, key_count, 5),
                       vh = V.block(first_key, from * 3, key_count, 3);
        Y.block(first, h * 3, count, 3) = attn::attention(q, kh, vh);
      }
    }
    return Y;
  }
  template <class... Options>
  MatrixXf attend(const Options&... options) const {
    return attn::attention(attn::heads(Q, heads), attn::heads(K, kv_heads),
                           attn::heads(V, kv_heads), options...);
  }
};

// ---- Heads ----------------------------------------------------------------------------------

TEST(Heads, AreColumnsSideBySide) {
  for (const auto& [heads, kv_heads] :
       {std::pair<Index, Index>{1, 1}, {3, 3}, {6, 2}, {8, 1}, {40, 8}}) {
    const Batch batch({0, 21}, {0, 70}, heads, kv_heads);
    EXPECT_TRUE(same_bits(batch.attend(), batch.plain())) << heads << " on " << kv_heads;
  }
}

TEST(Heads, OfOneIsThePlainCall) {
  const Batch batch({0, 21}, {0, 70}, 1, 1);
  EXPECT_TRUE(same_bits(attn::attention(attn::heads(batch.Q, 1), batch.K, batch.V),
                        attn::attention(batch.Q, batch.K, batch.V)));
}

TEST(Heads, HaveALogsumexpEach) {
  const Batch batch({0, 21}, {0, 70}, 6, 2);
  MatrixXf l, of_head;
  (void)batch.attend(attn::save_logsumexp(l));
  ASSERT_EQ(l.cols(), 6);
  for (Index h = 0; h < 6; ++h) {
    const MatrixXf q = batch.Q.middleCols(h * 5, 5), k = batch.K.middleCols(h / 3 * 5, 5),
                   v = batch.V.middleCols(h / 3 * 3, 3);
    (void)attn::attention(q, k, v, attn::save_logsumexp(of_head));
    EXPECT_TRUE(same_bits(l.col(h), of_head));
  }
}

TEST(Heads, MayBeTakenOfAnyMatrix) {
  const Batch batch({0, 21}, {0, 70}, 4, 2);
  const MatrixXf expected = batch.plain();
  const auto k = attn::heads(batch.K, 2), v = attn::heads(batch.V, 2);
  const RowMajorXf row_major = batch.Q;
  EXPECT_TRUE(same_bits(attn::attention(attn::heads(row_major, 4), k, v), expected));
  MatrixXf big = MatrixXf::Constant(30, 40, 9);
  big.block(3, 7, 21, 20) = batch.Q;
  EXPECT_TRUE(same_bits(attn::attention(attn::heads(big.block(3, 7, 21, 20), 4), k, v), expected));
  const MatrixXf transposed = batch.Q.transpose();
  EXPECT_TRUE(same_bits(attn::attention(attn::heads(transposed.transpose(), 4), k, v), expected));
  EXPECT_TRUE(same_bits(attn::attention(attn::heads(MatrixXf(batch.Q), 4), k, v), expected));
  const MatrixXf half = 0.5f * batch.Q;
  EXPECT_TRUE(same_bits(attn::attention(attn::heads(2 * half, 4), k, v), expected));
  EXPECT_TRUE(same_bits(
      attn::attention(attn::heads(Eigen::Map<const MatrixXf, 0, Eigen::OuterStride<>>(
                                      big.data() + 7 * 30 + 3, 21, 20, Eigen::OuterStride<>(30)),
                                  4),
                      k, v),
      expected));
}

TEST(Heads, ReversedMemoryIsReadAsItStands) {
  const Batch batch({0, 21}, {0, 70}, 4, 2);
  const MatrixXf backwards = batch.K.colwise().reverse();
  EXPECT_TRUE(same_bits(
      attn::attention(attn::heads(batch.Q, 4), attn::heads(backwards.colwise().reverse(), 2),
                      attn::heads(batch.V, 2)),
      batch.plain()));
}

TEST(Heads, OfTheOutputLieInAnyMatrix) {
  const Batch batch({0, 21}, {0, 70}, 4, 2);
  const MatrixXf expected = batch.plain();
  const auto q = attn::heads(batch.Q, 4), k = attn::heads(batch.K, 2), v = attn::heads(batch.V, 2);
  MatrixXf Y(21, 12), plain_Y;
  attn::attention(q, k, v, attn::into(attn::heads(Y, 4)));
  EXPECT_TRUE(same_bits(Y, expected));
  attn::attention(q, k, v, attn::into(plain_Y));
  EXPECT_TRUE(same_bits(plain_Y, expected));
  RowMajorXf big = RowMajorXf::Constant(25, 30, 9);
  attn::attention(q, k, v, attn::into(attn::heads(big.block(2, 5, 21, 12), 4)));
  EXPECT_TRUE(same_bits(big.block(2, 5, 21, 12), expected));
  EXPECT_EQ((big.array() == 9.f).count(), 25 * 30 - 21 * 12);
}

// ---- Batches --------------------------------------------------------------------------------

TEST(SequenceLength, SplitsRowsEvenly) {
  const Batch batch({0, 7, 14, 21}, {0, 7, 14, 21}, 4, 2);
  EXPECT_TRUE(same_bits(batch.attend(attn::sequence_length(7)), batch.plain()));
}

TEST(SequenceLength, MayDifferForKeys) {
  const Batch batch({0, 7, 14, 21}, {0, 40, 80, 120}, 4, 2);
  EXPECT_TRUE(same_bits(batch.attend(attn::sequence_length(7, 40)), batch.plain()));
}

TEST(SequenceLength, OfAllKeysServesEverySequence) {
  const Batch batch({0, 7, 14, 21}, {0, 40}, 4, 2);
  EXPECT_TRUE(same_bits(batch.attend(attn::sequence_length(7, 40)), batch.plain()));
}

TEST(Sequences, MayBeRagged) {
  const Batch batch({0, 5, 12, 12, 13, 300}, {0, 5, 12, 12, 13, 300}, 4, 2);
  EXPECT_TRUE(same_bits(batch.attend(attn::sequences(batch.queries)), batch.plain()));
}

TEST(Sequences, MayHaveKeysOfTheirOwn) {
  const Batch batch({0, 5, 12, 12, 13}, {0, 33, 34, 90, 400}, 4, 2);
  EXPECT_TRUE(same_bits(batch.attend(attn::sequences(batch.queries, batch.keys)), batch.plain()));
}

TEST(Sequences, OfOneKeySequenceServeEverySequence) {
  const Batch batch({0, 5, 12, 13}, {0, 77}, 4, 2);
  EXPECT_TRUE(same_bits(batch.attend(attn::sequences(batch.queries, batch.keys)), batch.plain()));
}

TEST(Sequences, TakeOffsetsFromAnyContainer) {
  const Batch batch({0, 5, 12}, {0, 5, 12}, 1, 1);
  const MatrixXf expected = batch.plain();
  const std::vector<int> ints = {0, 5, 12};
  const std::vector<Index> indices = {0, 5, 12};
  const std::vector<unsigned char> bytes = {0, 5, 12};
  const std::array<long, 3> array = {0, 5, 12};
  const int raw[] = {0, 5, 12};
  Eigen::VectorXi eigen(3);
  eigen << 0, 5, 12;
  EXPECT_TRUE(same_bits(batch.attend(attn::sequences(ints)), expected));
  EXPECT_TRUE(same_bits(batch.attend(attn::sequences(indices)), expected));
  EXPECT_TRUE(same_bits(batch.attend(attn::sequences(bytes)), expected));
  EXPECT_TRUE(same_bits(batch.attend(attn::sequences(array)), expected));
  EXPECT_TRUE(same_bits(batch.attend(attn::sequences(raw)), expected));
  EXPECT_TRUE(same_bits(batch.attend(attn::sequences(eigen)), expected));
  EXPECT_TRUE(same_bits(batch.attend(attn::sequences({0, 5, 12})), expected));
  EXPECT_TRUE(same_bits(batch.attend(attn::sequences(std::vector<int>(ints))), expected));
  EXPECT_TRUE(same_bits(batch.attend(attn::sequences(eigen.array() + 0)), expected));
  EXPECT_TRUE(same_bits(batch.attend(attn::sequences(eigen.head(3))), expected));
}

TEST(Sequences, ReferToAContainerThatLivesOn) {
  const Batch batch({0, 5, 12}, {0, 5, 12}, 1, 1);
  std::vector<int> offsets = {0, 1, 12};
  const auto referring = attn::sequences(offsets);
  offsets[1] = 5;
  EXPECT_TRUE(same_bits(batch.attend(referring), batch.plain()));
}

TEST(Sequences, OwnALongListThatWouldVanish) {
  std::vector<Index> offsets(41);
  for (std::size_t b = 0; b < offsets.size(); ++b) offsets[b] = Index(b * b);
  const Batch batch(offsets, offsets, 2, 1);
  const auto owned = attn::sequences(std::vector<Index>(offsets));
  const auto copy = owned;
  EXPECT_TRUE(same_bits(batch.attend(copy), batch.plain()));
  EXPECT_TRUE(same_bits(
      Batch({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 20},
            {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 20}, 1, 1)
          .attend(attn::sequences({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 20})),
      Batch({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 20},
            {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 20}, 1, 1)
          .plain()));
}

TEST(Sequences, OfNothingAreValid) {
  const MatrixXf none(0, 5), values(0, 3);
  EXPECT_EQ(attn::attention(none, none, values, attn::sequences({0})).rows(), 0);
  EXPECT_EQ(attn::attention(none, none, values, attn::sequences({0, 0, 0})).cols(), 3);
  EXPECT_EQ(attn::attention(none, none, values, attn::sequence_length(4)).rows(), 0);
}

// ---- Strided views --------------------------------------------------------------------------

/// A batch of equal lengths in the memory orders of other frameworks.
class StridedViews : public ::testing::Test {
 protected:
  static constexpr Index B = 3, H = 4, KH = 2, L = 6, M = 37;
  Batch batch{{0, L, 2 * L, 3 * L}, {0, M, 2 * M, 3 * M}, H, KH};
  MatrixXf expected = batch.plain();

  enum class Order { kBhld, kBlhd, kLbhd };
  static Index address(Order order, Index h_count, Index l_count, Index d, Index b, Index h,
                       Index l, Index c) {
    switch (order) {
      case Order::kBhld:
        return ((b * h_count + h) * l_count + l) * d + c;
      case Order::kBlhd:
        return ((b * l_count + l) * h_count + h) * d + c;
      default:
        return ((l * B + b) * h_count + h) * d + c;
    }
  }
  /// The stacked matrix X of h heads and l rows a sequence, laid out in that order.
  static std::vector<float> memory(const MatrixXf& X, Order order, Index h_count, Index l_count) {
    const Index d = X.cols() / h_count;
    std::vector<float> all(std::size_t(X.size()));
    for (Index b = 0; b < B; ++b) {
      for (Index h = 0; h < h_count; ++h) {
        for (Index l = 0; l < l_count; ++l) {
          for (Index c = 0; c < d; ++c) {
            all[std::size_t(address(order, h_count, l_count, d, b, h, l, c))] =
                X(b * l_count + l, h * d + c);
          }
        }
      }
    }
    return all;
  }
  template <class Read>
  static MatrixXf gathered(Index h_count, Index l_count, Index d, const Read& read) {
    MatrixXf X(B * l_count, h_count * d);
    for (Index b = 0; b < B; ++b) {
      for (Index h = 0; h < h_count; ++h) {
        for (Index l = 0; l < l_count; ++l) {
          for (Index c = 0; c < d; ++c) X(b * l_count + l, h * d + c) = read(b, h, l, c);
        }
      }
    }
    return X;
  }
  template <class View>
  static MatrixXf stacked(const View& view) {
    return gathered(view.heads, view.tokens, view.features, view);
  }
};

TEST_F(StridedViews, OfPointersAreReadAndWritten) {
  for (const Order order : {Order::kBhld, Order::kBlhd, Order::kLbhd}) {
    const auto view = [order](auto* data, Index h, Index l, Index d) {
      switch (order) {
        case Order::kBhld:
          return attn::bhld(data, B, h, l, d);
        case Order::kBlhd:
          return attn::blhd(data, B, l, h, d);
        default:
          return attn::lbhd(data, l, B, h, d);
      }
    };
    const auto q = memory(batch.Q, order, H, L), k = memory(batch.K, order, KH, M),
               v = memory(batch.V, order, KH, M);
    std::vector<float> y(std::size_t(B * H * L * 3));
    attn::attention(view(q.data(), H, L, 5), view(k.data(), KH, M, 5), view(v.data(), KH, M, 3),
                    attn::into(view(y.data(), H, L, 3)));
    EXPECT_EQ(y, memory(expected, order, H, L));
  }
}

TEST_F(StridedViews, MixWithStackedRows) {
  const auto k = memory(batch.K, Order::kBlhd, KH, M), v = memory(batch.V, Order::kLbhd, KH, M);
  const auto keys = attn::blhd(k.data(), B, M, KH, 5);
  const auto values = attn::lbhd(v.data(), M, B, KH, 3);
  MatrixXf Y, l;
  const auto q = memory(batch.Q, Order::kBhld, H, L);
  attn::attention(attn::bhld(q.data(), B, H, L, 5), keys, values, attn::into(Y),
                  attn::save_logsumexp(l));
  EXPECT_TRUE(same_bits(Y, expected));
  EXPECT_EQ(l.rows(), B * L);
  EXPECT_EQ(l.cols(), H);
  MatrixXf heads_Y(B * L, H * 3);
  attn::attention(attn::bhld(q.data(), B, H, L, 5), keys, values,
                  attn::into(attn::heads(heads_Y, H)));
  EXPECT_TRUE(same_bits(heads_Y, expected));
}

TEST_F(StridedViews, OfOneKeySequenceServeEverySequence) {
  const Batch shared({0, L, 2 * L, 3 * L}, {0, M}, H, KH);
  const auto q = memory(shared.Q, Order::kBhld, H, L);
  MatrixXf Y;
  attn::attention(attn::bhld(q.data(), B, H, L, 5), attn::heads(shared.K, KH),
                  attn::heads(shared.V, KH), attn::into(Y));
  EXPECT_TRUE(same_bits(Y, shared.plain()));
}

TEST_F(StridedViews, AreReadThroughTheirStrides) {
  // Every second token and feature of a larger memory, features backwards.
  std::vector<float> memory(std::size_t(M * 2 * 10), 7.f);
  const Batch single({0, L}, {0, M}, 1, 1);
  attn::TensorView<float> keys{memory.data() + 8, 1, 1, M, 5, 0, 0, 20, -2};
  for (Index j = 0; j < M; ++j) {
    for (Index c = 0; c < 5; ++c) keys(0, 0, j, c) = single.K(j, c);
  }
  EXPECT_TRUE(same_bits(attn::attention(single.Q, keys, single.V), single.plain()));
}

template <int Layout, class Make>
void expect_tensors(const Batch& batch, const MatrixXf& expected, const std::array<Index, 4>& q,
                    const std::array<Index, 4>& k, const std::array<Index, 4>& v,
                    const std::array<Index, 4>& y, const Make& make) {
  using Tensor = Eigen::Tensor<float, 4, Layout>;
  Tensor Q(q[0], q[1], q[2], q[3]), K(k[0], k[1], k[2], k[3]), V(v[0], v[1], v[2], v[3]),
      Y(y[0], y[1], y[2], y[3]);
  const auto fill = [&](Tensor& tensor, const MatrixXf& X) {
    const auto view = make(tensor);
    for (Index b = 0; b < view.sequences; ++b) {
      for (Index h = 0; h < view.heads; ++h) {
        for (Index l = 0; l < view.tokens; ++l) {
          for (Index c = 0; c < view.features; ++c) {
            view(b, h, l, c) = X(b * view.tokens + l, h * view.features + c);
          }
        }
      }
    }
  };
  fill(Q, batch.Q);
  fill(K, batch.K);
  fill(V, batch.V);
  Y.setConstant(9);
  const Tensor& const_Q = Q;
  attn::attention(make(const_Q), make(Eigen::TensorMap<Tensor>(K.data(), k[0], k[1], k[2], k[3])),
                  make(V), attn::into(make(Y)));
  const auto view = make(Y);
  MatrixXf result(expected.rows(), expected.cols());
  for (Index b = 0; b < view.sequences; ++b) {
    for (Index h = 0; h < view.heads; ++h) {
      for (Index l = 0; l < view.tokens; ++l) {
        for (Index c = 0; c < view.features; ++c) {
          result(b * view.tokens + l, h * view.features + c) = view(b, h, l, c);
        }
      }
    }
  }
  EXPECT_TRUE(same_bits(result, expected));
}

TEST_F(StridedViews, OfTensorsFollowTheirStorageOrder) {
  const auto of_bhld = [](auto&& tensor) {
    return attn::bhld(std::forward<decltype(tensor)>(tensor));
  };
  const auto of_lbhd = [](auto&& tensor) {
    return attn::lbhd(std::forward<decltype(tensor)>(tensor));
  };
  const auto of_blhd = [](auto&& tensor) {
    return attn::blhd(std::forward<decltype(tensor)>(tensor));
  };
  expect_tensors<Eigen::RowMajor>(batch, expected, {B, H, L, 5}, {B, KH, M, 5}, {B, KH, M, 3},
                                  {B, H, L, 3}, of_bhld);
  expect_tensors<Eigen::ColMajor>(batch, expected, {B, H, L, 5}, {B, KH, M, 5}, {B, KH, M, 3},
                                  {B, H, L, 3}, of_bhld);
  expect_tensors<Eigen::RowMajor>(batch, expected, {B, L, H, 5}, {B, M, KH, 5}, {B, M, KH, 3},
                                  {B, L, H, 3}, of_blhd);
  expect_tensors<Eigen::ColMajor>(batch, expected, {L, B, H, 5}, {M, B, KH, 5}, {M, B, KH, 3},
                                  {L, B, H, 3}, of_lbhd);
}

TEST_F(StridedViews, ElementsLieWhereTheTensorHasThem) {
  Eigen::Tensor<float, 4, Eigen::ColMajor> columns(2, 3, 4, 5);
  Eigen::Tensor<float, 4, Eigen::RowMajor> rows(2, 3, 4, 5);
  EXPECT_EQ(&attn::bhld(columns)(1, 2, 3, 4), &columns(1, 2, 3, 4));
  EXPECT_EQ(&attn::bhld(rows)(1, 2, 3, 4), &rows(1, 2, 3, 4));
  EXPECT_EQ(&attn::blhd(columns)(1, 3, 2, 4), &columns(1, 2, 3, 4));
  EXPECT_EQ(&attn::blhd(rows)(1, 3, 2, 4), &rows(1, 2, 3, 4));
  EXPECT_EQ(&attn::lbhd(columns)(2, 3, 1, 4), &columns(1, 2, 3, 4));
  EXPECT_EQ(&attn::lbhd(rows)(2, 3, 1, 4), &rows(1, 2, 3, 4));
}

// ---- Storage types --------------------------------------------------------------------------

TEST(StorageTypes, MayDifferForEachOperand) {
  const Batch batch({0, 21}, {0, 70}, 4, 2);
  const Eigen::Matrix<Eigen::bfloat16, -1, -1> K = batch.K.cast<Eigen::bfloat16>();
  const Eigen::Matrix<Eigen::half, -1, -1, Eigen::RowMajor> V = batch.V.cast<Eigen::half>();
  Batch rounded = batch;
  rounded.K = K.cast<float>();
  rounded.V = V.cast<float>();
  const MatrixXf expected = rounded.plain();
  EXPECT_TRUE(same_bits(
      attn::attention(attn::heads(batch.Q, 4), attn::heads(K, 2), attn::heads(V, 2)), expected));
  Eigen::Matrix<Eigen::half, -1, -1> Y;
  attn::attention(attn::heads(batch.Q, 4), attn::heads(K, 2), attn::heads(V, 2), attn::into(Y));
  const Eigen::Matrix<Eigen::half, -1, -1> once = expected.cast<Eigen::half>();
  EXPECT_TRUE(same_bits(Y, once));
}

}  // namespace
