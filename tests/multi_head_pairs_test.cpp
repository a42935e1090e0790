// tests/multi_head_pairs_test.cpp: the layer's options together: every pair of them meets in at least one call.
// SPDX-License-Identifier: MIT
//
// Seven factors, among them mask, residual, grouped heads, cross-attention, batch and rotary positions. All combinations would be
// 3888 calls; the 17 of kRows hold every pair of values of every two factors, which the last test counts.
#include <attn/attn.h>

#include <array>
#include <set>
#include <tuple>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random_layer.h"
#include "support/reference_multi_head.h"

namespace {

using attn::MultiHeadOptions;
using Eigen::Index;
using support::DynamicMatrix;
using support::LayerCall;
using support::uniform;
using support::widened;

enum class Mask { none, causal, keep, window_of_keys };
enum class Score { none, bias, softcap_alibi };
enum class Residual { none, query, other };
enum class Inputs { self, pair, three };
enum class Batch { one, equal, ragged, view };
enum class Rotary { none, half_split, interleaved };
constexpr std::array<int, 7> kLevels = {4, 3, 3, 3, 3, 4, 3};  // grouped heads among them: 4, 2, 1

std::vector<std::array<int, 7>>& rows_run() {
  static std::vector<std::array<int, 7>> rows;
  return rows;
}

constexpr Index kHeads = 4, kModel = 24;

/// Row offsets of queries and keys.
struct Sizes {
  std::vector<Index> queries, keys;
  Index sequences() const { return Index(queries.size()) - 1; }
  Index query_length(Index b) const { return length(queries, b); }
  Index key_length(Index b) const { return length(keys, b); }
  Index longest_key() const {
    Index longest = 0;
    for (Index b = 0; b < sequences(); ++b) longest = std::max(longest, key_length(b));
    return longest;
  }

 private:
  static Index length(const std::vector<Index>& offsets, Index b) {
    return offsets[std::size_t(b) + 1] - offsets[std::size_t(b)];
  }
};
Sizes sizes_of(Batch batch, bool self) {
  switch (batch) {
    case Batch::one:
      return {{0, 9}, self ? std::vector<Index>{0, 9} : std::vector<Index>{0, 14}};
    case Batch::equal:
      return {{0, 5, 10, 15},
              self ? std::vector<Index>{0, 5, 10, 15} : std::vector<Index>{0, 7, 14, 21}};
    case Batch::ragged:
      return {{0, 4, 4, 11},
              self ? std::vector<Index>{0, 4, 4, 11} : std::vector<Index>{0, 3, 8, 20}};
    case Batch::view:
      return {{0, 6, 12}, self ? std::vector<Index>{0, 6, 12} : std::vector<Index>{0, 8, 16}};
  }
  return {};
}

/// Memory [L, B, E] of stacked rows, and back.
std::vector<float> time_major(const DynamicMatrix<float>& x, Index sequences) {
  const Index length = x.rows() / sequences;
  std::vector<float> memory(std::size_t(x.size()));
  for (Index b = 0; b < sequences; ++b)
    for (Index i = 0; i < length; ++i)
      for (Index c = 0; c < x.cols(); ++c)
        memory[std::size_t((i * sequences + b) * x.cols() + c)] = x(b * length + i, c);
  return memory;
}

template <Mask kMask, Score kScore, Residual kResidual, Inputs kInputs, Batch kBatch,
          Rotary kRotary>
void row(Index kv_heads) {
  rows_run().push_back({int(kMask), int(kScore), int(kResidual),
                        kv_heads == 4   ? 0
                        : kv_heads == 2 ? 1
                                        : 2,
                        int(kInputs), int(kBatch), int(kRotary)});
  const Index n = Index(rows_run().size());
  SCOPED_TRACE(testing::Message() << "row " << n);

  constexpr bool kSelf = kInputs == Inputs::self;
  const Sizes sizes = sizes_of(kBatch, kSelf);
  const Index key_features = kSelf ? kModel : 10;
  const Index value_features = kInputs == Inputs::three ? 13 : key_features;
  auto mha = support::random_layer<float>(MultiHeadOptions(kModel, kHeads)
                                              .kv_heads(kv_heads)
                                              .value_dim(7)
                                              .key_features(key_features)
                                              .value_features(value_features)
                                              .in_bias()
                                              .out_bias(),
                                          std::uint32_t(n));
  const auto Xq = uniform<float>(sizes.queries.back(), kModel, 31);
  const auto Xk = kSelf ? Xq : uniform<float>(sizes.keys.back(), key_features, 32);
  const auto Xv =
      kInputs == Inputs::three ? uniform<float>(sizes.keys.back(), value_features, 33) : Xk;
  const auto Other = uniform<float>(sizes.queries.back(), kModel, 34);

  // The same options for the oracle.
  LayerCall call;
  call.attention.heads = kHeads;
  call.attention.kv_heads = kv_heads;
  call.attention.query_offsets = sizes.queries;
  call.attention.key_offsets = sizes.keys;
  const auto offset = [&](Index b) {
    return kMask == Mask::causal ? sizes.key_length(b) - sizes.query_length(b) : 0;
  };
  std::vector<Index> lengths;
  for (Index b = 0; b < sizes.sequences(); ++b) lengths.push_back(sizes.key_length(b) * 3 / 4);
  const Index longest = sizes.longest_key();
  const auto kept = support::random_bools(sizes.queries.back(), kHeads * longest, 35, 0.6);
  const auto B = uniform<float>(sizes.queries.back(), kHeads * longest, 36);
  const std::vector<float> slopes{0.5f, 0.25f, 0.125f, 1.0f};
  const auto token = [&](Index b, Index i) { return sizes.queries[std::size_t(b)] + i; };
  call.attention.visible = [&](Index b, Index h, Index i, Index j) {
    const Index p = i + offset(b);
    if (kMask == Mask::causal) return j <= p;
    if (kMask == Mask::keep) return bool(kept(token(b, i), h * longest + j));
    if (kMask == Mask::window_of_keys)
      return p - 3 <= j && j <= p + 1 && j < lengths[std::size_t(b)];
    return true;
  };
  if (kScore == Score::bias) {
    call.attention.bias = [&](Index b, Index h, Index i, Index j) {
      return static_cast<long double>(B(token(b, i), h * longest + j));
    };
  }
  if (kScore == Score::softcap_alibi) {
    call.attention.softcap = 5;
    call.attention.bias = [&](Index b, Index h, Index i, Index j) {
      return -static_cast<long double>(slopes[std::size_t(h)]) *
             static_cast<long double>(std::abs(i + offset(b) - j));
    };
  }
  if (kResidual != Residual::none)
    call.residual = widened(kResidual == Residual::query ? Xq : Other);
  if (kRotary == Rotary::half_split) call.rotary = support::ReferenceRotary{false, 10000, 0};
  if (kRotary == Rotary::interleaved) call.rotary = support::ReferenceRotary{true, 100, 4};
  for (Index b = 0; b < sizes.sequences(); ++b) {
    for (Index i = 0; i < sizes.query_length(b); ++i) call.query_positions.push_back(i + offset(b));
    for (Index j = 0; j < sizes.key_length(b); ++j) call.key_positions.push_back(j);
  }
  const auto expected = reference_multi_head(support::widened_layer(mha.weights()), widened(Xq),
                                             widened(Xk), widened(Xv), call)
                            .output;

  const auto masks = [&] {
    if constexpr (kMask == Mask::causal) {
      return std::make_tuple(attn::causal(attn::align::lower_right));
    } else if constexpr (kMask == Mask::keep) {
      return std::make_tuple(attn::keep(attn::heads(kept, kHeads)));
    } else if constexpr (kMask == Mask::window_of_keys) {
      return std::make_tuple(attn::window(3, 1) && attn::key_lengths(lengths));
    } else {
      return std::tuple<>();
    }
  }();
  const auto scores = [&] {
    if constexpr (kScore == Score::bias) {
      return std::make_tuple(attn::bias(attn::heads(B, kHeads)));
    } else if constexpr (kScore == Score::softcap_alibi) {
      return std::make_tuple(attn::softcap(5.0f), attn::alibi(slopes));
    } else {
      return std::tuple<>();
    }
  }();
  const auto residuals = [&] {
    if constexpr (kResidual == Residual::query) {
      return std::make_tuple(attn::residual());
    } else if constexpr (kResidual == Residual::other) {
      return std::make_tuple(attn::residual(Other));
    } else {
      return std::tuple<>();
    }
  }();
  const auto turns = [&] {
    if constexpr (kRotary == Rotary::half_split) {
      return std::make_tuple(attn::rotary(attn::pairing::half_split));
    } else if constexpr (kRotary == Rotary::interleaved) {
      return std::make_tuple(attn::rotary(attn::pairing::interleaved, 100).dims(4));
    } else {
      return std::tuple<>();
    }
  }();
  const auto batches = [&] {
    if constexpr (kBatch == Batch::equal) {
      return std::make_tuple(attn::sequence_length(5, kSelf ? 5 : 7));
    } else if constexpr (kBatch == Batch::ragged) {
      return std::make_tuple(attn::sequences(sizes.queries, sizes.keys));
    } else {
      return std::tuple<>();
    }
  }();
  const auto options = std::tuple_cat(masks, scores, residuals, turns, batches);
  const auto attend = [&](const auto& q, const auto& k, const auto& v, const auto& target) {
    std::apply(
        [&](const auto&... option) {
          if constexpr (kInputs == Inputs::self) {
            mha(q, option..., target);
          } else if constexpr (kInputs == Inputs::pair) {
            mha(q, k, option..., target);
          } else {
            mha(q, k, v, option..., target);
          }
        },
        options);
  };
  DynamicMatrix<float> Y(sizes.queries.back(), kModel);
  if constexpr (kBatch == Batch::view) {
    const Index b = sizes.sequences();
    const auto q = time_major(Xq, b), k = time_major(Xk, b), v = time_major(Xv, b);
    const auto view = [b](const std::vector<float>& memory, const auto& x) {
      return attn::lbhd(memory.data(), x.rows() / b, b, 1, x.cols());
    };
    attend(view(q, Xq), view(k, Xk), view(v, Xv),
           attn::into(attn::blhd(Y.data(), b, Y.rows() / b, 1, kModel)));
  } else {
    attend(Xq, Xk, Xv, attn::into(Y));
  }
  EXPECT_TRUE(support::near(Y, expected, 1e-6));
}

using M = Mask;
using S = Score;
using R = Residual;
using I = Inputs;
using B = Batch;
using P = Rotary;
// clang-format off
const std::vector<void (*)()> kRows = {
    [] { row<M::none, S::none, R::none, I::three, B::equal, P::interleaved>(2); },
    [] { row<M::none, S::none, R::other, I::pair, B::view, P::interleaved>(1); },
    [] { row<M::none, S::bias, R::query, I::pair, B::one, P::half_split>(2); },
    [] { row<M::none, S::softcap_alibi, R::other, I::self, B::ragged, P::none>(4); },
    [] { row<M::causal, S::none, R::other, I::self, B::one, P::interleaved>(4); },
    [] { row<M::causal, S::bias, R::other, I::three, B::view, P::none>(2); },
    [] { row<M::causal, S::softcap_alibi, R::none, I::three, B::view, P::interleaved>(4); },
    [] { row<M::causal, S::softcap_alibi, R::none, I::pair, B::ragged, P::half_split>(1); },
    [] { row<M::causal, S::softcap_alibi, R::query, I::self, B::equal, P::half_split>(1); },
    [] { row<M::keep, S::none, R::none, I::three, B::one, P::none>(1); },
    [] { row<M::keep, S::bias, R::none, I::pair, B::equal, P::none>(4); },
    [] { row<M::keep, S::bias, R::query, I::self, B::ragged, P::interleaved>(2); },
    [] { row<M::keep, S::softcap_alibi, R::other, I::self, B::view, P::half_split>(2); },
    [] { row<M::window_of_keys, S::none, R::query, I::pair, B::view, P::none>(4); },
    [] { row<M::window_of_keys, S::none, R::query, I::three, B::ragged, P::half_split>(4); },
    [] { row<M::window_of_keys, S::bias, R::other, I::three, B::equal, P::half_split>(1); },
    [] { row<M::window_of_keys, S::softcap_alibi, R::none, I::self, B::one, P::interleaved>(2); },
};
// clang-format on

TEST(LayerOptions, AgreeWithTheOracleTogether) {
  rows_run().clear();
  for (const auto& run : kRows) run();

  std::set<std::array<int, 4>> met;
  for (const auto& r : rows_run()) {
    for (int a = 0; a < 7; ++a)
      for (int b = a + 1; b < 7; ++b) met.insert({a, r[std::size_t(a)], b, r[std::size_t(b)]});
  }
  std::size_t pairs = 0;
  for (std::size_t a = 0; a < 7; ++a)
    for (std::size_t b = a + 1; b < 7; ++b) pairs += std::size_t(kLevels[a] * kLevels[b]);
  EXPECT_EQ(met.size(), pairs) << "some pair of options is not tested";
}

}  // namespace
