// tests/fuzz/call.h: a call drawn from bytes: a batch, a mask, operands that hold no numbers where
// nobody looks; and the part of it that must give the same bits.
// SPDX-License-Identifier: MIT
#pragma once

#include "numbers.h"

namespace fuzz {

/// A few, or as many as a tile, a panel or a block holds, one more or one less.
inline Index count(Draw& draw) {
  static constexpr Index kEdges[] = {15,  16,  17,  23,  24,  25,  31,  32,  33,  47,  48,
                                     49,  63,  64,  65,  66,  95,  96,  97,  127, 128, 129,
                                     130, 191, 192, 193, 255, 256, 257, 258, 300, 513};
  const Index n = draw(0, 255);
  return n < 224 ? n % 14 : kEdges[n - 224];
}
/// Features of a head.
inline Index features(Draw& draw) { return std::min<Index>(std::max<Index>(1, count(draw)), 97); }
/// Of so many keys: to write numbers takes longer than to attend.
inline Index features(Index keys, Draw& draw) {
  return std::min(features(draw), std::max<Index>(8, 6000 / std::max<Index>(1, keys)));
}

/// Up to three sequences of few pairs: thousands of calls a second.
inline Case batch(Draw& draw) {
  constexpr Index most = 1000;  // pairs and heads
  Case c;
  c.queries = c.keys = {0};
  c.kv_heads = draw(1, 2);
  c.heads = c.kv_heads * draw(1, 3);
  const Index sequences = std::max<Index>(1, draw(0, 5) - 2);
  const bool shared = sequences > 1 && draw(0, 3) == 3;
  for (Index b = 0; b < sequences; ++b) {
    if (b == 0 || !shared) c.keys.push_back(c.keys.back() + count(draw));
    const Index pairs = std::max<Index>(1, c.key_length(b)) * c.heads * sequences;
    c.queries.push_back(c.queries.back() + std::min(count(draw), std::max<Index>(1, most / pairs)));
  }
  return c;
}

struct Operands {
  Case c;
  Index offset = 0;
  Matrix<float> Q, K, V;

  Index key_dim() const { return Q.cols() / c.heads; }
  Index value_dim() const { return V.cols() / c.kv_heads; }
  Index first_key(Index b) const { return c.keys[c.keys.size() == 2 ? 0 : at(b)]; }
};

/// Rows [begin, end) of one sequence of a call.
struct Rows {
  Index sequence, begin, end;
  Index size() const { return end - begin; }
};

struct Call : Operands {
  Composition mask;
  Kind kinds[3];

  explicit Call(Draw& draw)
      : Operands{batch(draw), draw(-10, 32), {}, {}, {}}, mask(compose(c, draw, draw(0, 2))) {
    see();
    const Index keys = c.keys.back() * c.kv_heads, d_k = features(keys, draw),
                d_v = features(keys, draw);
    for (Kind& k : kinds) k = kind(draw);
    Q = matrix<float>(c.queries.back(), c.heads * d_k, kinds[0], draw);
    K = matrix<float>(c.keys.back(), c.kv_heads * d_k, kinds[1], draw);
    V = matrix<float>(c.keys.back(), c.kv_heads * d_v, kinds[2], draw);
    static_cast<Operands&>(*this) = again(draw);
  }

  /// The oracle, which has more bits and a larger range, says the same. (The scale is a factor of
  /// the queries: where it rounds one to 0, that times ∞ is NaN.)
  bool ordinary() const {
    const auto none = [this](Kind kind, Index n) {
      return std::find(kinds, kinds + n, kind) == kinds + n;
    };
    return none(Kind::huge, 3) && (none(Kind::tiny, 2) || none(Kind::special, 2));
  }
  bool sees(Index b, Index h, Index i, Index j) const {
    return seen_[at(first_pair_[at(b)] + (h * c.query_length(b) + i) * c.key_length(b) + j)];
  }
  bool seen_by(Index b, Index begin, Index end, Index j) const {
    for (Index h = 0; h < c.heads; ++h) {
      for (Index i = begin; i < end; ++i) {
        if (sees(b, h, i, j)) return true;
      }
    }
    return false;
  }

  ReferenceOptions reference() const {
    ReferenceOptions asked;
    asked.heads = c.heads;
    asked.kv_heads = c.kv_heads;
    asked.query_offsets = c.queries;
    asked.key_offsets = c.keys;
    asked.visible = [this](Index b, Index h, Index i, Index j) { return sees(b, h, i, j); };
    return asked;
  }

  Rows some_rows(Draw& draw) const {
    const Index b = draw(0, c.sequences() - 1), begin = draw(0, c.query_length(b));
    return {b, begin, draw(begin, c.query_length(b))};
  }
  /// These rows as a call of their own, with other numbers wherever they do not look.
  Operands part(const Rows& r, Draw& draw) const {
    const Index b = r.sequence, keys = c.key_length(b);
    Operands x{{{0, r.size()}, {0, keys}, c.heads, c.kv_heads},
               offset + r.begin,
               fuzz::some_rows(Q, c.queries[at(b)] + r.begin, r.size()),
               fuzz::some_rows(K, first_key(b), keys),
               fuzz::some_rows(V, first_key(b), keys)};
    std::vector<bool> seen(at(keys));
    for (Index j = 0; j < keys; ++j) seen[at(j)] = seen_by(b, r.begin, r.end, j);
    scramble(x.K, seen, draw);
    scramble(x.V, seen, draw);
    return x;
  }
  /// The same call, with other numbers in keys that nobody sees.
  Operands again(Draw& draw) const {
    Operands x = *this;
    scramble(x.K, seen_keys(), draw);
    scramble(x.V, seen_keys(), draw);
    return x;
  }
  /// Of every key whether a query of some sequence sees it.
  std::vector<bool> seen_keys() const {
    std::vector<bool> seen(at(c.keys.back()));
    for (Index b = 0; b < c.sequences(); ++b) {
      for (Index j = 0; j < c.key_length(b); ++j)
        if (seen_by(b, 0, c.query_length(b), j)) seen[at(first_key(b) + j)] = true;
    }
    return seen;
  }
  /// No numbers in rows that are not seen.
  static void scramble(Matrix<float>& rows, const std::vector<bool>& seen, Draw& draw) {
    Numbers number(Kind::special, draw.seed());
    for (Index j = 0; j < rows.rows(); ++j)
      if (!seen[at(j)]) rows.row(j).setConstant(float(number()));
  }
  /// The mask of these rows, asked pair by pair.
  AnyMask part_mask(const Rows& r) const {
    return AnyMask(attn::mask(
        [this, r](attn::At a) { return sees(r.sequence, a.head, a.query - offset, a.key); }));
  }

 private:
  void see() {
    Index pairs = 0;
    for (Index b = 0; b < c.sequences(); ++b) {
      first_pair_.push_back(pairs);
      pairs += c.heads * c.query_length(b) * c.key_length(b);
    }
    seen_.reserve(at(pairs));
    for (Index b = 0; b < c.sequences(); ++b) {
      for (Index h = 0; h < c.heads; ++h) {
        for (Index i = 0; i < c.query_length(b); ++i) {
          for (Index j = 0; j < c.key_length(b); ++j)
            seen_.push_back(mask.rule({b, h, i, i + offset, j, c.queries[at(b)] + i}));
        }
      }
    }
  }

  std::vector<bool> seen_;
  std::vector<Index> first_pair_;
};

}  // namespace fuzz
