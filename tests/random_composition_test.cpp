// tests/random_composition_test.cpp: masks and scores drawn at random and combined, over random batches, against the oracle,
// with what hides nothing less: NaN and infinities wherever nobody looks, and saved weights and scores that know of them.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "support/random_composition.h"

namespace {

using Eigen::Index;
using Eigen::MatrixXf;
using namespace support;

/// A matrix's numbers in some order: rows in one piece, columns in one piece, or neither.
class Placed {
 public:
  using View =
      Eigen::Map<const MatrixXf, Eigen::Unaligned, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>>;

  Placed(const MatrixXf& x, Draw& draw)
      : rows_(x.rows()),
        cols_(x.cols()),
        feature_stride_(draw.one_in(4) ? 2 : 1),
        token_stride_(feature_stride_ * cols_ + draw(0, 3)) {
    if (draw.one_in(3)) feature_stride_ = rows_ + draw(0, 3), token_stride_ = 1;
    memory_.resize(at(rows_ * token_stride_ + cols_ * feature_stride_ + 1));
    for (Index i = 0; i < rows_; ++i)
      for (Index c = 0; c < cols_; ++c)
        memory_[at(i * token_stride_ + c * feature_stride_)] = x(i, c);
  }
  View operator*() const {
    return {memory_.data(), rows_, cols_, {feature_stride_, token_stride_}};
  }

 private:
  Index rows_, cols_, feature_stride_, token_stride_;
  std::vector<float> memory_;
};

/// NaN, which equals nothing, as a number that nothing else here is.
template <class Derived>
auto told(const Eigen::DenseBase<Derived>& x) {
  using Scalar = typename Derived::Scalar;
  return x.derived().unaryExpr([](Scalar a) { return std::isnan(a) ? Scalar(1e9f) : a; }).eval();
}
double largest_number(const MatrixXf& x) {
  double largest = 0;
  for (const float a : x.reshaped()) {
    if (std::isfinite(a)) largest = std::max<double>(largest, std::abs(a));
  }
  return largest;
}

/// What a call saves of some of its rows.
struct SavedPairs {
  std::vector<Index> rows;
  attn::stage at;
  MatrixXf weights, scores;

  SavedPairs(const Case& c, Draw& draw) : at(attn::stage(draw(0, 3))) {
    const Index every = draw(1, 3);
    for (Index i = draw(0, every - 1); i < c.queries.back(); i += every) rows.push_back(i);
  }
  const Reference& scores_of(const ReferenceResult& expected) const {
    return at == attn::stage::scaled       ? expected.scaled
           : at == attn::stage::softcapped ? expected.softcapped
           : at == attn::stage::biased     ? expected.biased
                                           : expected.masked;
  }
};

/// The call with these options is the oracle's, over operands that hold no number wherever nobody looks.
template <class... Options>
void expect_attends(const Case& c, const Composition& drawn, Index offset, Draw& draw,
                    ReferenceOptions asked, const Options&... options) {
  const Index key_dim = draw(1, 9), value_dim = draw(1, 20);
  const MatrixXf Q = uniform<float>(c.queries.back(), c.heads * key_dim, draw.seed(), 2);
  MatrixXf K = uniform<float>(c.keys.back(), c.kv_heads * key_dim, draw.seed(), 2),
           V = uniform<float>(c.keys.back(), c.kv_heads * value_dim, draw.seed());
  asked.heads = c.heads;
  asked.kv_heads = c.kv_heads;
  asked.query_offsets = c.queries;
  asked.key_offsets = c.keys;
  asked.visible = [&](Index b, Index h, Index i, Index j) {
    return drawn.rule({b, h, i, i + offset, j, c.queries[at(b)] + i});
  };
  std::vector<bool> looked_at(at(c.keys.back()));
  for (Index b = 0; b < c.sequences(); ++b) {
    const Index first = c.keys.size() == 2 ? 0 : c.keys[at(b)];
    for (Index h = 0; h < c.heads; ++h) {
      for (Index i = 0; i < c.query_length(b); ++i) {
        for (Index j = 0; j < c.key_length(b); ++j) {
          const bool hidden = !asked.visible(b, h, i, j) ||
                              (asked.bias && std::isinf(asked.bias(b, h, i, j))) ||
                              (asked.modify && std::isinf(asked.modify(0, b, h, i, j)));
          if (!hidden) looked_at[at(first + j)] = true;
        }
      }
    }
  }
  for (Index j = 0; j < c.keys.back(); ++j) {
    if (looked_at[at(j)]) continue;
    const float poison = draw.one_in(2)   ? kNaN<float>
                         : draw.one_in(2) ? kInfinity<float>
                                          : -kInfinity<float>;
    K.row(j).setConstant(poison);
    V.row(j).setConstant(poison);
  }
  // And one in the open: whoever sees it shows it.
  if (V.rows() > 0 && draw.one_in(3)) V(draw(0, V.rows() - 1), draw(0, V.cols() - 1)) = kNaN<float>;

  const Placed q(Q, draw), k(K, draw), v(V, draw);
  MatrixXf Y, l;
  SavedPairs saved(c, draw);
  attn::attention(attn::heads(*q, c.heads), attn::heads(*k, c.kv_heads),
                  attn::heads(*v, c.kv_heads), attn::into(Y), attn::save_logsumexp(l),
                  attn::save_weights(saved.weights, attn::query_rows(saved.rows)),
                  attn::save_scores(saved.scores, saved.at, attn::query_rows(saved.rows)),
                  attn::sequences(c.queries, c.keys), attn::query_offset(offset), drawn.mask,
                  options...);
  asked.save_weights = asked.save_scores = true;
  const auto expected = reference_attention(Q, K, V, asked);
  EXPECT_TRUE(near(told(Y), told(expected.output), 3e-6));
  EXPECT_TRUE(near(l, expected.logsumexp, 1e-5 + 3e-7 * largest_number(l)));
  const Reference W = expected.weights(saved.rows, Eigen::all),
                  S = saved.scores_of(expected)(saved.rows, Eigen::all);
  EXPECT_TRUE(near(saved.weights, W, 3e-6 + 3e-7 * largest_number(l)));
  EXPECT_TRUE(near(told(saved.scores), told(S), 1e-5 + 3e-7 * largest_number(saved.scores)))
      << "stage " << int(saved.at);

  // The same keys from a cache: the same bits. (Once: each call is an engine to compile.)
  if constexpr (sizeof...(options) == 0) {
    attn::KeyValueCache<float> cache(
        attn::KeyValueCacheOptions(std::max<Index>(c.longest_key(), 1), c.kv_heads, key_dim)
            .value_dim(value_dim)
            .sequences(Index(c.keys.size()) - 1));
    cache.append(K, V, attn::sequences(c.keys));
    MatrixXf Z;
    SavedPairs again = saved;
    attn::attention(attn::heads(*q, c.heads), cache, attn::into(Z), attn::all_keys(),
                    attn::save_weights(again.weights, attn::query_rows(saved.rows)),
                    attn::save_scores(again.scores, saved.at, attn::query_rows(saved.rows)),
                    attn::query_offset(offset), attn::sequences(c.queries), drawn.mask);
    EXPECT_TRUE(same_bits(told(Z), told(Y)));
    EXPECT_TRUE(same_bits(again.weights, saved.weights));
    EXPECT_TRUE(same_bits(told(again.scores), told(saved.scores)));
  }
}

TEST(RandomComposition, OfMasksAndScoresIsTheFormula) {
  for (std::uint32_t seed = 1; seed <= 700; ++seed) {
    Draw draw(seed);
    const Case c = random_case(draw);
    const Composition drawn = compose(c, draw, draw(0, 3));
    const Index offset = draw.one_in(3) ? 0 : draw(-20, 250);
    SCOPED_TRACE(testing::Message()
                 << "seed " << seed << ": " << drawn.text << ", offset " << offset << ", "
                 << c.sequences() << " sequences of up to " << c.longest_query() << " x "
                 << c.longest_key() << ", heads " << c.heads << " on " << c.kv_heads);
    expect_honest(
        c, drawn.rule, [=](Index, Index, Index) { return offset; }, drawn.mask, 4);

    const Scores scores(c, draw);
    ReferenceOptions asked;
    switch (draw(0, 3)) {
      case 0:
        expect_attends(c, drawn, offset, draw, asked);
        break;
      case 1: {
        asked.softcap = static_cast<long double>(scores.cap);
        asked.bias = [&](Index, Index h, Index i, Index j) {
          return scores.bias_of(i, j) - static_cast<long double>(scores.slopes[h]) *
                                            static_cast<long double>(std::abs(i + offset - j));
        };
        asked.modify = [&](long double s, Index, Index h, Index i, Index j) {
          const auto distance = static_cast<long double>(i + offset - j);
          const auto slope = static_cast<long double>(scores.slope);
          if (distance == static_cast<long double>(scores.muted)) return -HUGE_VALL;
          return distance > 3 ? s * 0.5L + slope * static_cast<long double>(h)
                              : s - slope * distance;
        };
        asked.sinks.assign(scores.sinks.begin(), scores.sinks.end());
        expect_attends(
            c, drawn, offset, draw, asked, attn::softcap(scores.cap), attn::alibi(scores.slopes),
            attn::bias(scores.bias), attn::sink(scores.sinks),
            attn::score([slope = scores.slope, muted = scores.muted](auto s, auto a) {
              const auto distance = a.query - a.key;
              return select(distance == muted, -kInfinity<float>,
                            select(distance > 3, s * 0.5f + slope * a.head, s - slope * distance));
            }));
        break;
      }
      case 2:
        asked.modify = [&](long double s, Index b, Index, Index i, Index j) {
          if (float(i + offset - j) == scores.muted) return -HUGE_VALL;
          return b % 2 == 1 ? -s
                            : s + static_cast<long double>(scores.factor) *
                                      static_cast<long double>((i + offset + j) % 3);
        };
        expect_attends(
            c, drawn, offset, draw, asked,
            attn::score([factor = scores.factor, muted = scores.muted](float s, attn::At a) {
              if (float(a.query - a.key) == muted) return -kInfinity<float>;
              return a.sequence % 2 == 1 ? -s
                                         : s + factor * static_cast<float>((a.query + a.key) % 3);
            }));
        break;
      default:
        asked.bias = [&](Index, Index, Index i, Index j) { return scores.bias_of(i, j); };
        asked.scale = static_cast<long double>(scores.factor);
        asked.sinks.assign(at(c.heads), 0);
        expect_attends(c, drawn, offset, draw, asked, attn::scale(scores.factor),
                       attn::bias(scores.bias), attn::sink());
        break;
    }
    if (testing::Test::HasFailure()) break;  // one is enough to read
  }
}

}  // namespace
