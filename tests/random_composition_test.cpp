// tests/random_composition_test.cpp: masks and scores drawn at random and combined, over random batches, against the oracle,
// with what hides nothing less: NaN and infinities wherever nobody looks, and saved weights and scores that know of them.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "support/any_mask.h"
#include "support/mask_cases.h"
#include "support/special_values.h"

namespace {

using Eigen::Index;
using Eigen::MatrixXf;
using namespace support;

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

class Draw {
 public:
  explicit Draw(std::uint32_t seed) : engine_(seed) {}
  Index operator()(Index first, Index last) {
    return first + Index(engine_() % std::uint32_t(last - first + 1));
  }
  bool one_in(Index n) { return (*this)(1, n) == 1; }
  float number(float range) { return range * (float((*this)(0, 2000)) / 1000 - 1); }
  std::uint32_t seed() { return static_cast<std::uint32_t>(engine_()); }

 private:
  std::mt19937 engine_;
};

Case random_case(Draw& draw) {
  Case c;
  const Index sequences = draw.one_in(2) ? 1 : draw(2, 3);
  const bool shared_keys = sequences > 1 && draw.one_in(4);
  c.queries = c.keys = {0};
  for (Index b = 0; b < sequences; ++b) {
    // Every second sequence is of few rows, which are attended where the keys lie.
    c.queries.push_back(c.queries.back() + (draw.one_in(8)   ? draw(0, 1)
                                            : draw.one_in(2) ? draw(1, 5)
                                                             : draw(1, 40)));
    if (b == 0 || !shared_keys)
      c.keys.push_back(c.keys.back() + (draw.one_in(3) ? draw(250, 300) : draw(0, 70)));
  }
  c.kv_heads = draw(1, 2);
  c.heads = c.kv_heads * draw(1, 2);
  return c;
}

/// A mask, its rule, and how it reads.
struct Composition {
  AnyMask mask;
  Rule rule;
  std::string text;
};

std::vector<Index> of_each_sequence(const Case& c, Draw& draw, const std::vector<Index>& most) {
  std::vector<Index> list;
  for (Index b = 0; b < c.sequences(); ++b) list.push_back(draw(0, most[at(b)]));
  return list;
}
std::vector<Index> key_counts(const Case& c) {
  std::vector<Index> counts;
  for (Index b = 0; b < c.sequences(); ++b) counts.push_back(c.key_length(b));
  return counts;
}

Composition documents(const Case& c, Draw& draw) {
  const bool ordered = draw.one_in(2);
  const Index most = draw(1, 80);
  const auto ids = [&](Index count) {
    std::vector<int> list;
    for (int id = int(draw(-2, 2)); Index(list.size()) < count; id += int(draw(1, 2)))
      list.insert(list.end(), at(draw(1, most)), ordered ? id : int(draw(-2, 2)));
    list.resize(at(count));
    return list;
  };
  const std::vector<int> queries = ids(c.queries.back()), keys = ids(c.keys.back());
  // The options own copies: a composition outlives the lists that it was drawn from.
  return {AnyMask(attn::segments(std::vector<int>(queries), std::vector<int>(keys))),
          [=](const Pair& p) {
            const Index first = c.keys.size() == 2 ? 0 : c.keys[at(p.sequence)];
            return queries[at(p.token)] == keys[at(first + p.key)];
          },
          ordered ? "segments" : "unordered segments"};
}

Composition candidates(const Case& c, Draw& draw) {
  Index size = c.longest_query();
  for (Index b = 0; b < c.sequences(); ++b) size = std::min(size, c.query_length(b));
  size = draw(0, size);
  std::vector<Index> parents;
  for (Index t = 0; t < size; ++t) parents.push_back(draw(std::max<Index>(-1, t - 6), t - 1));
  return {AnyMask(attn::tree(std::vector<Index>(parents))),
          [=](const Pair& p) {
            Index token = p.row - (c.query_length(p.sequence) - size);
            const Index key = p.key - (p.position - token);
            if (token < 0 || key < 0) return p.key <= p.position;
            while (token > key) token = parents[at(token)];
            return token == key;
          },
          "tree"};
}

Composition blocks(const Case& c, Draw& draw) {
  const Index block = draw(1, 90), rows = (c.longest_query() + block - 1) / block,
              columns = (c.longest_key() + block - 1) / block;
  const bool by_head = draw.one_in(2);
  const Bools B = random_bools(rows, columns * (by_head ? c.heads : 1), draw.seed(), 0.3);
  const Rule rule = [=](const Pair& p) {
    return B(p.row / block, (by_head ? p.head * columns : 0) + p.key / block);
  };
  if (by_head)
    return {AnyMask(attn::block_sparse(attn::heads(Bools(B), c.heads), block)), rule, "blocks/h"};
  return {AnyMask(attn::block_sparse(Bools(B), block)), rule, "blocks"};
}

struct Dilated {
  Index step, reach;
  bool operator()(attn::At a) const {
    return a.key <= a.query + a.head && a.query - a.key <= reach &&
           (a.query - a.key + a.sequence) % step == 0;
  }
  attn::KeyRange keys(const attn::QueryRows& rows) const {
    return {rows.first().position - reach, rows.last().position + rows.head_end};
  }
};

Composition leaf(const Case& c, Draw& draw) {
  switch (draw(0, 10)) {
    case 0:
      return {AnyMask(attn::causal()), kCausal, "causal"};
    case 1: {
      const Index left = draw(-1, 60), right = draw(-1, 20);
      return {AnyMask(attn::window(left, right)),
              [=](const Pair& p) {
                return (left < 0 || p.key >= p.position - left) &&
                       (right < 0 || p.key <= p.position + right);
              },
              "window"};
    }
    case 2: {
      const auto lengths = of_each_sequence(c, draw, key_counts(c));
      return {AnyMask(attn::key_lengths(std::vector<Index>(lengths))),
              [=](const Pair& p) { return p.key < lengths[at(p.sequence)]; }, "key_lengths"};
    }
    case 3: {
      const auto end = of_each_sequence(c, draw, key_counts(c)),
                 begin = of_each_sequence(c, draw, end);
      return {AnyMask(attn::key_range(std::vector<Index>(begin), std::vector<Index>(end))),
              [=](const Pair& p) {
                return begin[at(p.sequence)] <= p.key && p.key < end[at(p.sequence)];
              },
              "key_range"};
    }
    case 4: {
      const auto lengths = of_each_sequence(c, draw, key_counts(c));
      return {AnyMask(attn::prefix_lm(std::vector<Index>(lengths))),
              [=](const Pair& p) { return p.key < lengths[at(p.sequence)] || p.key <= p.position; },
              "prefix_lm"};
    }
    case 5:
      return candidates(c, draw);
    case 6:
    case 7:
      return documents(c, draw);
    case 8:
      return blocks(c, draw);
    case 9: {
      const Bools B = random_bools(c.longest_query(), c.longest_key(), draw.seed());
      const bool keep = draw.one_in(2);
      const Rule rule = [=](const Pair& p) { return B(p.row, p.key) == keep; };
      return keep ? Composition{AnyMask(attn::keep(Bools(B))), rule, "keep"}
                  : Composition{AnyMask(attn::hide(Bools(B))), rule, "hide"};
    }
    default: {
      const Dilated dilated{draw(1, 5), draw(0, 100)};
      return {AnyMask(attn::mask(Dilated(dilated))),
              [=](const Pair& p) {
                return dilated({p.sequence, p.head, p.position, p.key});
              },
              "dilated"};
    }
  }
}

Composition compose(const Case& c, Draw& draw, Index depth) {
  const Index kind = depth == 0 ? 0 : draw(0, 4);
  if (kind <= 1) return leaf(c, draw);
  const Composition a = compose(c, draw, depth - 1);
  if (kind == 2) return {AnyMask(!a.mask), std::not_fn(a.rule), "!(" + a.text + ")"};
  const Composition b = compose(c, draw, depth - 1);
  if (kind == 3) {
    return {AnyMask(a.mask && b.mask), [=](const Pair& p) { return a.rule(p) && b.rule(p); },
            "(" + a.text + " && " + b.text + ")"};
  }
  return {AnyMask(a.mask || b.mask), [=](const Pair& p) { return a.rule(p) || b.rule(p); },
          "(" + a.text + " || " + b.text + ")"};
}

/// Modifiers with parameters drawn at random; each call takes some of them.
struct Scores {
  float cap, slope, factor;
  float muted;  ///< the functors hide keys at this distance, unless it is too far
  Eigen::VectorXf slopes, sinks;
  MatrixXf bias;  ///< whole, or of one row or column
  bool one_row, one_column;

  Scores(const Case& c, Draw& draw)
      : cap(0.5f + float(draw(0, 40)) / 4),
        slope(draw.number(0.1f)),
        factor(draw.number(1.5f)),
        muted(draw.one_in(2) ? float(draw(-5, 60)) : 1e6f),
        slopes(c.heads),
        sinks(c.heads),
        one_row(draw.one_in(3)),
        one_column(draw.one_in(3)) {
    for (Index h = 0; h < c.heads; ++h) {
      slopes[h] = draw.one_in(3) ? 0 : draw.number(0.2f);
      sinks[h] = draw.one_in(4) ? -kInfinity<float> : draw.number(3);
    }
    bias = uniform<float>(one_row ? 1 : c.longest_query(), one_column ? 1 : c.longest_key(),
                          draw.seed(), 2);
    const Bools hides = random_bools(bias.rows(), bias.cols(), draw.seed(), 0.3);
    if (draw.one_in(2)) bias = hides.select(-kInfinity<float>, bias);
  }
  long double bias_of(Index i, Index j) const {
    return static_cast<long double>(bias(one_row ? 0 : i, one_column ? 0 : j));
  }
};

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
