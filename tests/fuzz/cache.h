// tests/fuzz/cache.h: a cache of keys and values through operations of all kinds, against the rows
// that it is said to hold: every attention over it has the bits of one over the whole sequence.
// SPDX-License-Identifier: MIT
#pragma once

#include "../support/error_of.h"
#include "attention.h"

namespace fuzz {

/// The cache and what it should hold, sequence by sequence.
class CacheTrial {
 public:
  explicit CacheTrial(Draw& draw)
      : draw_(draw),
        kv_heads_(draw(1, 2)),
        heads_(kv_heads_ * draw(1, 3)),
        key_dim_(features(draw)),
        value_dim_(draw(0, 15) == 15 ? 250 : features(draw)),
        options_(sizes()),
        cache_(options_),
        held_(at(options_.sequences()),
              Held{numbers(0, kv_heads_ * key_dim_), numbers(0, kv_heads_ * value_dim_)}) {}

  void operator()() {
    for (int n = 0; n < 40; ++n) {
      switch (draw_(0, 9)) {
        case 0:
          return;
        case 1:
        case 2:
        case 3:
          append(count(draw_));
          break;
        case 4:
          append(1);
          break;
        case 5:
          truncate();
          break;
        case 6:
          copy();
          break;
        case 7:
          move();
          break;
        case 8:
          refuse();
          break;
        default:
          attend();
          break;
      }
      for (Index b = 0; b < options_.sequences(); ++b)
        ASSERT_EQ(cache_.length(b), held_[at(b)].K.rows());
    }
  }

 private:
  struct Held {
    Matrix<float> K, V;
    bool cut = false;  ///< while a ring: of its last rows some may have lost their window
  };

  attn::KeyValueCacheOptions sizes() {
    const Index capacity = 1 + count(draw_) * (1 + draw_(0, 1));
    const auto sizes = attn::KeyValueCacheOptions(capacity, kv_heads_, key_dim_)
                           .value_dim(value_dim_)
                           .sequences(draw_(1, 3));
    if (draw_(0, 2) < 2) return sizes;
    const auto ring = sizes.ring(draw_(1, capacity));
    return ring.pinned(draw_(0, 1) * draw_(0, 5));
  }
  Index some_sequence() { return draw_(0, options_.sequences() - 1); }
  Matrix<float> numbers(Index rows, Index cols) {
    return matrix<float>(rows, cols, draw_(0, 7) == 7 ? Kind::special : Kind::uniform, draw_);
  }

  void append(Index tokens) {
    const Index b = some_sequence(), n = std::min(tokens, cache_.room(b));
    Held& held = held_[at(b)];
    if (held.K.rows() > 1500) return;  // of a ring, which never ends
    const auto K = numbers(n, kv_heads_ * key_dim_), V = numbers(n, kv_heads_ * value_dim_);
    const Placed<float> k(K, draw_), v(V, draw_);
    cache_.append(k.view(), v.view(), attn::cache_sequences({b}));
    held.K = joined(held.K, K);
    held.V = joined(held.V, V);
  }
  static Matrix<float> joined(const Matrix<float>& a, const Matrix<float>& b) {
    Matrix<float> both(a.rows() + b.rows(), b.cols());
    both.topRows(a.rows()) = a;
    both.bottomRows(b.rows()) = b;
    return both;
  }
  void truncate() {
    const Index b = some_sequence(), length = cache_.length(b),
                n = draw_(0, 3) == 0 ? 0 : draw_(std::max<Index>(0, length - 9), length);
    const std::string refusal = support::error_of([&] { cache_.truncate(b, n); });
    Held& held = held_[at(b)];
    if (refusal != kAccepted) {
      ASSERT_TRUE(options_.is_ring() && n > 0) << refusal;
      return;
    }
    held.cut = options_.is_ring() && n > 0;
    held.K.conservativeResize(n, Eigen::NoChange);
    held.V.conservativeResize(n, Eigen::NoChange);
  }
  void copy() {
    const Index from = some_sequence(), to = some_sequence();
    cache_.copy(from, to);
    if (from != to) held_[at(to)] = Held(held_[at(from)]);
  }
  /// The cache goes on as its copy; the one before is emptied.
  void move() {
    attn::KeyValueCache<float> copied = cache_, moved = std::move(cache_);
    moved.clear();
    cache_ = std::move(copied);
  }
  /// What is refused leaves all as it was.
  void refuse() {
    const Index b = some_sequence(), wrong = draw_(0, 4);
    const Index rows = wrong == 0 ? cache_.room(b) + 1 : 1;
    const auto K = numbers(rows, kv_heads_ * key_dim_ + (wrong == 1)),
               V = numbers(rows + (wrong == 2), kv_heads_ * value_dim_ + (wrong >= 3));
    const std::string refusal = support::error_of([&] {
      if (wrong == 4) {
        cache_.truncate(b, cache_.length(b) + 1);
      } else {
        cache_.append(K, V, attn::cache_sequences({b}));
      }
    });
    EXPECT_EQ(refusal.rfind("attn::KeyValueCache::", 0), 0u) << refusal;
  }

  void attend() {
    const Index b = some_sequence(), length = cache_.length(b);
    const Held& held = held_[at(b)];
    const Index most = options_.is_ring() ? std::min(length, cache_.room(b)) : length,
                rows = std::min(most, draw_(1, 8));
    Operands x{{{0, rows}, {0, length}, heads_, kv_heads_}, length - rows, {}, held.K, held.V};
    x.Q = numbers(rows, heads_ * key_dim_);

    const Placed<float> q(x.Q, draw_), y(rows, heads_ * value_dim_, draw_);
    Matrix<float> l;
    const std::string refusal = support::error_of([&] {
      attn::attention(attn::heads(q.view(), heads_), cache_,
                      attn::into(attn::heads(y.view(), heads_)), attn::cache_sequences({b}),
                      attn::save_logsumexp(l));
    });
    if (refusal != kAccepted) {
      ASSERT_TRUE(held.cut && refusal.find("the ring has lost") != std::string::npos) << refusal;
      return;
    }
    EXPECT_TRUE(y.gaps_stand());
    const Index window = options_.window(), pinned = options_.pinned();
    const AnyMask mask(attn::mask([=](attn::At a) {
      return a.key <= a.query && (window == 0 || a.key > a.query - window || a.key < pinned);
    }));
    const Attended expected = fuzz::attend(x, draw_, mask);
    EXPECT_TRUE(same(y.numbers(), expected.Y)) << "of " << rows << " rows, " << length << " keys";
    EXPECT_TRUE(same(l, expected.logsumexp)) << "of " << rows << " rows, " << length << " keys";
  }

  static constexpr const char* kAccepted = "nothing was refused";

  Draw& draw_;
  Index kv_heads_, heads_, key_dim_, value_dim_;
  attn::KeyValueCacheOptions options_;
  attn::KeyValueCache<float> cache_;
  std::vector<Held> held_;
};

inline void cache(const std::uint8_t* bytes, std::size_t size) {
  Draw draw(bytes, size);
  CacheTrial trial(draw);
  trial();
}

}  // namespace fuzz
