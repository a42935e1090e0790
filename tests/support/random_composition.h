// tests/support/random_composition.h: batches, masks over them and parameters of scores, drawn at
// random.
// SPDX-License-Identifier: MIT
#pragma once

#include <attn/attn.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "any_mask.h"
#include "mask_cases.h"
#include "special_values.h"

namespace support {

inline std::size_t at(Index i) { return static_cast<std::size_t>(i); }

/// Choices: of a seeded engine, or of bytes that are given, behind whose end each is the first one.
class Draw {
 public:
  explicit Draw(std::uint32_t seed) : engine_(std::in_place, seed) {}
  Draw(const std::uint8_t* bytes, std::size_t size) : bytes_(bytes), left_(size) {}
  Index operator()(Index first, Index last) {
    const auto most = std::uint32_t(last - first);
    return first + Index(next(most) % (most + 1));
  }
  bool one_in(Index n) { return (*this)(1, n) == 1; }
  float number(float range) { return range * (float((*this)(0, 2000)) / 1000 - 1); }
  std::uint32_t seed() { return next(0xffff); }

 private:
  /// Of the engine 32 bits, of the bytes as many as a number up to `most` has.
  std::uint32_t next(std::uint32_t most) {
    if (engine_) return static_cast<std::uint32_t>((*engine_)());
    std::uint32_t number = 0;
    for (; most > 0 && left_ > 0; most >>= 8, --left_) number = number << 8 | *bytes_++;
    return number;
  }

  std::optional<std::mt19937> engine_;
  const std::uint8_t* bytes_ = nullptr;
  std::size_t left_ = 0;
};

inline Case random_case(Draw& draw) {
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

inline std::vector<Index> of_each_sequence(const Case& c, Draw& draw,
                                           const std::vector<Index>& most) {
  std::vector<Index> list;
  for (Index b = 0; b < c.sequences(); ++b) list.push_back(draw(0, most[at(b)]));
  return list;
}
inline std::vector<Index> key_counts(const Case& c) {
  std::vector<Index> counts;
  for (Index b = 0; b < c.sequences(); ++b) counts.push_back(c.key_length(b));
  return counts;
}

inline Composition documents(const Case& c, Draw& draw) {
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

inline Composition candidates(const Case& c, Draw& draw) {
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

inline Composition blocks(const Case& c, Draw& draw) {
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

inline Composition leaf(const Case& c, Draw& draw) {
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

inline Composition compose(const Case& c, Draw& draw, Index depth) {
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

}  // namespace support
