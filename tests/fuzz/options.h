// tests/fuzz/options.h: calls of which a size, a list or a number is wrong: refused in a sentence,
// with every output as it was; or valid all the same, and then within their memory.
// SPDX-License-Identifier: MIT
#pragma once

#include "../support/error_of.h"
#include "scores.h"

namespace fuzz {

/// A mask option with parameters of any kind, of the wrong size as often as not.
inline AnyMask any_option(const Case& c, Draw& draw) {
  const auto list = [&](Index most) {
    std::vector<Index> numbers(at(draw(0, 3)));
    if (draw(0, 1) == 1) numbers.resize(at(c.sequences()));
    for (Index& n : numbers) n = draw(-2, most + 2);
    return numbers;
  };
  const auto bools = [&] {
    return random_bools(c.longest_query() + draw(0, 2) / 2, c.longest_key() + draw(0, 2) / 2,
                        draw.seed());
  };
  switch (draw(0, 8)) {
    case 0:
      return AnyMask(attn::keep(bools()));
    case 1:
      return AnyMask(attn::keep(attn::heads(bools(), draw(-1, 3))));
    case 2:
      return AnyMask(attn::key_lengths(list(c.longest_key())));
    case 3:
      return AnyMask(attn::key_range(list(c.longest_key()), list(c.longest_key())));
    case 4:
      return AnyMask(attn::prefix_lm(list(c.longest_key())));
    case 5:
      return AnyMask(attn::segments(list(3), list(3)));
    case 6:
      return AnyMask(attn::tree(list(4)));
    case 7:
      return AnyMask(attn::block_sparse(bools(), draw(-1, 40)));
    default:
      return AnyMask(attn::window(draw(-3, 5), draw(-3, 5)));
  }
}

/// A list of row offsets that may be none.
inline void spoil(std::vector<Index>& offsets, Draw& draw) {
  const Index n = draw(0, 3);
  if (n == 0) offsets.clear();
  if (n == 1) offsets.push_back(offsets.back() + draw(-3, 3));
  if (n >= 2) offsets[at(draw(0, Index(offsets.size()) - 1))] += draw(-3, 3);
}

/// A call with something wrong in it, most likely.
struct Spoilt {
  std::vector<Index> queries, keys, rows;
  Index heads, kv_heads, query_cols, key_cols, value_rows, output_rows;
  float scale = 1, cap = 10;

  Spoilt(const Call& x, Draw& draw)
      : queries(x.c.queries),
        keys(x.c.keys),
        heads(x.c.heads),
        kv_heads(x.c.kv_heads),
        query_cols(x.Q.cols()),
        key_cols(x.K.cols()),
        value_rows(x.V.rows()),
        output_rows(x.Q.rows()) {
    for (Index i = 0; i < x.Q.rows(); i += 3) rows.push_back(i);
    Index* const sizes[] = {&heads, &kv_heads, &query_cols, &key_cols, &value_rows, &output_rows};
    static constexpr float kNumbers[] = {0, -1, kNaN_, kEndless, -kEndless, 1e-45f, 3e38f};
    switch (draw(0, 6)) {
      case 0:
        *sizes[draw(0, 5)] += draw(-2, 2);
        break;
      case 1:
        spoil(queries, draw);
        break;
      case 2:
        spoil(keys, draw);
        break;
      case 3:
        rows.push_back(draw(-2, x.Q.rows() + 2));
        break;
      case 4:
        scale = kNumbers[draw(0, 6)];
        break;
      case 5:
        cap = kNumbers[draw(0, 6)];
        break;
      default:
        break;  // the mask alone
    }
    for (Index* n : {&query_cols, &key_cols, &value_rows, &output_rows})
      *n = std::max<Index>(*n, 0);
  }

 private:
  static constexpr float kNaN_ = std::numeric_limits<float>::quiet_NaN(),
                         kEndless = std::numeric_limits<float>::infinity();
};

inline void options(const std::uint8_t* bytes, std::size_t size) {
  Draw draw(bytes, size);
  const Call x(draw);
  Modified m(x, draw);
  const Spoilt wrong(x, draw);
  const AnyMask mask = draw(0, 1) == 1 ? any_option(x.c, draw) : x.mask.mask;
  if (draw(0, 7) == 7) m.bias.resize(m.bias.rows() + 1, m.bias.cols());
  if (draw(0, 7) == 7) m.slopes.conservativeResize(m.slopes.size() + 1);
  if (draw(0, 7) == 7) m.sinks.conservativeResize(m.sinks.size() - 1);
  m.bias.setZero();
  m.slopes.setZero();
  m.sinks.setZero();

  const auto operand = [&](Index rows, Index cols) {
    return Placed<float>(matrix<float>(rows, cols, Kind::uniform, draw), draw);
  };
  const Placed<float> q = operand(x.Q.rows(), wrong.query_cols),
                      k = operand(x.K.rows(), wrong.key_cols),
                      v = operand(wrong.value_rows, x.V.cols()),
                      y = operand(wrong.output_rows, x.c.heads * x.value_dim());
  const Matrix<float> Y = y.numbers(), l_before = matrix<float>(2, 3, Kind::uniform, draw);
  Matrix<float> l = l_before, W = l_before, S = l_before;
  const std::string refusal = support::error_of([&] {
    attn::attention(attn::heads(q.view(), wrong.heads), attn::heads(k.view(), wrong.kv_heads),
                    attn::heads(v.view(), wrong.kv_heads),
                    attn::into(attn::heads(y.view(), wrong.heads)),
                    attn::sequences(wrong.queries, wrong.keys), attn::query_offset(x.offset),
                    attn::save_logsumexp(l), attn::save_weights(W, attn::query_rows(wrong.rows)),
                    attn::save_scores(S, attn::stage::biased), attn::scale(wrong.scale),
                    attn::softcap(wrong.cap), attn::bias(m.bias), attn::alibi(m.slopes),
                    attn::sink(m.sinks), mask);
  });
  EXPECT_TRUE(y.gaps_stand()) << refusal;
  if (refusal == "nothing was refused") return;
  EXPECT_EQ(refusal.rfind("attn::", 0), 0u) << refusal;
  EXPECT_TRUE(same(y.numbers(), Y)) << refusal;
  for (const Matrix<float>* saved : {&l, &W, &S}) EXPECT_TRUE(same(*saved, l_before)) << refusal;
}

}  // namespace fuzz
