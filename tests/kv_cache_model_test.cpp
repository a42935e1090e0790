// tests/kv_cache_model_test.cpp: a cache against a model of it, vectors of rows and attention in plain loops, through thousands of
// random operations: whatever was done before, both hold the same tokens and see the same keys.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "support/error_of.h"
#include "support/matrix_matchers.h"

namespace {

using Index = std::ptrdiff_t;
template <class Scalar>
using Matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

struct Sizes {
  Index capacity, sequences, heads, kv_heads, key_dim, value_dim;
  Index window = 0, pinned = 0;  ///< of a ring
};

/// What a cache is said to be: for each sequence its tokens, a row of keys and one of values each, kept for ever.
class Model {
 public:
  struct Token {
    std::vector<double> keys, values;  // H_kv · d_k and H_kv · d_v
  };
  using Sequence = std::vector<Token>;

  explicit Model(const Sizes& sizes) : sizes_(sizes), sequences_(std::size_t(sizes.sequences)) {}

  Sequence& sequence(Index b) { return sequences_[std::size_t(b)]; }
  Index length(Index b) const { return Index(sequences_[std::size_t(b)].size()); }

  /// The output of the last `rows` rows of sequence b, causal by position, or of rows that see all; `row` i of Q is read at `from` + i.
  template <class Scalar>
  std::vector<double> attend(Index b, Index position, const Matrix<Scalar>& Q, Index row,
                             bool all_keys, std::optional<Index> left) const {
    const Sequence& tokens = sequences_[std::size_t(b)];
    std::vector<double> out(std::size_t(sizes_.heads * sizes_.value_dim), 0.0);
    for (Index h = 0; h < sizes_.heads; ++h) {
      const Index g = h / (sizes_.heads / sizes_.kv_heads);
      std::vector<double> scores, kept;
      std::vector<Index> seen;
      for (Index j = 0; j < Index(tokens.size()); ++j) {
        if (!all_keys && j > position) continue;
        if (left && j < position - *left) continue;
        if (sizes_.window > 0 && j <= position - sizes_.window && j >= sizes_.pinned) continue;
        double dot = 0;
        for (Index c = 0; c < sizes_.key_dim; ++c) {
          dot += double(Q(row, h * sizes_.key_dim + c)) *
                 tokens[std::size_t(j)].keys[std::size_t(g * sizes_.key_dim + c)];
        }
        scores.push_back(dot / std::sqrt(double(sizes_.key_dim)));
        seen.push_back(j);
      }
      if (seen.empty()) continue;
      const double largest = *std::max_element(scores.begin(), scores.end());
      double sum = 0;
      for (double& s : scores) sum += s = std::exp(s - largest);
      for (std::size_t n = 0; n < seen.size(); ++n) {
        const Token& token = tokens[std::size_t(seen[n])];
        for (Index c = 0; c < sizes_.value_dim; ++c) {
          out[std::size_t(h * sizes_.value_dim + c)] +=
              scores[n] / sum * token.values[std::size_t(g * sizes_.value_dim + c)];
        }
      }
    }
    return out;
  }

 private:
  Sizes sizes_;
  std::vector<Sequence> sequences_;
};

/// Both side by side, and the operations drawn for them.
template <class Storage, class Scalar>
class Trial {
 public:
  Trial(const Sizes& sizes, std::uint32_t seed, double tolerance)
      : sizes_(sizes),
        tolerance_(tolerance),
        options_(options_of(sizes)),
        cache_(options_),
        model_(sizes),
        engine_(seed) {}

  void operator()(int operations) {
    for (int n = 0; n < operations && !::testing::Test::HasFailure(); ++n) {
      switch (draw(16)) {
        case 0:
          truncate();
          break;
        case 1:
          copy();
          break;
        case 2:
          clear();
          break;
        case 3:
          refuse();
          break;
        case 4:
          copy_all();
          break;
        case 5:
        case 6:
        case 7:
        case 8:
          append();
          break;
        case 9:
          attend(true, false);
          break;
        case 10:
        case 11:
          attend(false, true);
          break;
        default:
          step();
          break;
      }
      ++done_;
      check_lengths();
    }
    EXPECT_GT(rows_, operations / 4);
  }

 private:
  static attn::KeyValueCacheOptions options_of(const Sizes& s) {
    const auto o = attn::KeyValueCacheOptions(s.capacity, s.kv_heads, s.key_dim)
                       .value_dim(s.value_dim)
                       .sequences(s.sequences);
    return s.window > 0 ? o.ring(s.window).pinned(s.pinned) : o;
  }
  Index draw(Index n) { return Index(engine_() % std::uint64_t(n)); }
  double number() { return double(engine_() >> 40) * 0x1p-23 - 1; }
  Matrix<Scalar> random(Index rows, Index cols) {
    Matrix<Scalar> m(rows, cols);
    for (Index i = 0; i < rows; ++i) {
      for (Index j = 0; j < cols; ++j) m(i, j) = Scalar(2 * number());
    }
    return m;
  }
  /// Few tokens mostly, sometimes as many as fit.
  Index some(Index room) {
    if (room <= 0) return 0;
    const Index n = draw(8) == 0 ? draw(room + 1) : draw(6);
    return std::min(n, room);
  }
  std::vector<Index> some_sequences() {
    std::vector<Index> all;
    for (Index b = 0; b < sizes_.sequences; ++b) all.push_back(b);
    std::shuffle(all.begin(), all.end(), engine_);
    all.resize(std::size_t(1 + draw(sizes_.sequences)));
    return all;
  }

  /// How a number comes back from the cache.
  static double stored(Scalar x) {
    if constexpr (std::is_same_v<Storage, std::int8_t>) {
      return double(x);
    } else {
      return double(Scalar(Storage(x)));
    }
  }
  void remember(Index b, const Matrix<Scalar>& K, const Matrix<Scalar>& V, Index row) {
    Model::Token token;
    for (Index c = 0; c < K.cols(); ++c) token.keys.push_back(stored(K(row, c)));
    for (Index c = 0; c < V.cols(); ++c) token.values.push_back(stored(V(row, c)));
    model_.sequence(b).push_back(token);
  }

  void append() { append(some_sequences(), false); }
  void append(const std::vector<Index>& chosen, bool one_each) {
    std::vector<Index> offsets{0};
    for (Index b : chosen)
      offsets.push_back(offsets.back() +
                        (one_each ? std::min<Index>(1, cache_.room(b)) : some(cache_.room(b))));
    const auto K = random(offsets.back(), sizes_.kv_heads * sizes_.key_dim);
    const auto V = random(offsets.back(), sizes_.kv_heads * sizes_.value_dim);
    if (chosen.size() == 1 && draw(2) == 0) {
      cache_.append(K, V, attn::cache_sequences(chosen));
    } else {
      cache_.append(K, V, attn::cache_sequences(chosen), attn::sequences(offsets));
    }
    for (std::size_t n = 0; n < chosen.size(); ++n) {
      for (Index i = offsets[n]; i < offsets[n + 1]; ++i) remember(chosen[n], K, V, i);
    }
  }
  /// One token for some sequences, and their rows: what a decoder does.
  void step() {
    const auto chosen = some_sequences();
    append(chosen, true);
    attend_rows(chosen, std::vector<Index>(chosen.size(), 1), false, false);
  }

  /// The most rows of a sequence whose keys are all there: in a ring those of its last append, whatever was before.
  Index attendable(Index b) {
    if (sizes_.window == 0) return cache_.length(b);
    return std::min(cache_.length(b), cache_.room(b));
  }
  void attend(bool all_keys, bool windowed) {
    if (all_keys && sizes_.window > 0) return;
    const auto chosen = some_sequences();
    std::vector<Index> counts;
    for (Index b : chosen) counts.push_back(all_keys ? draw(5) : std::min(draw(9), attendable(b)));
    attend_rows(chosen, counts, all_keys, windowed);
  }
  void attend_rows(const std::vector<Index>& chosen, const std::vector<Index>& counts,
                   bool all_keys, bool windowed) {
    std::vector<Index> offsets{0};
    for (std::size_t n = 0; n < chosen.size(); ++n)
      offsets.push_back(offsets.back() +
                        std::min(counts[n], all_keys ? counts[n] : cache_.length(chosen[n])));
    const auto Q = random(offsets.back(), sizes_.heads * sizes_.key_dim);
    const Index left = draw(40);
    Matrix<Scalar> Y;
    const auto call = [&](const auto&... options) {
      sdpa_(attn::heads(Q, sizes_.heads), cache_, attn::into(Y), attn::cache_sequences(chosen),
            attn::sequences(offsets), options...);
    };
    const std::string refusal = support::error_of([&] {
      if (all_keys) {
        call(attn::all_keys());
      } else if (windowed) {
        call(attn::window(left, 0));
      } else {
        call();
      }
    });
    if (refusal != kAccepted) {
      const bool may_be_lost =
          std::any_of(chosen.begin(), chosen.end(), [&](Index b) { return cut_[std::size_t(b)]; });
      ASSERT_TRUE(may_be_lost && refusal.find("the ring has lost") != std::string::npos) << refusal;
      return;
    }
    for (std::size_t n = 0; n < chosen.size(); ++n) {
      const Index b = chosen[n], first = offsets[n], count = offsets[n + 1] - first;
      for (Index i = 0; i < count; ++i) {
        const Index position = model_.length(b) - count + i;
        const auto expected = model_.attend(b, position, Q, first + i, all_keys,
                                            windowed ? std::optional<Index>(left) : std::nullopt);
        double error = 0, size = 0;
        for (std::size_t c = 0; c < expected.size(); ++c) {
          error += std::pow(double(Y(first + i, Index(c))) - expected[c], 2);
          size += std::pow(expected[c], 2);
        }
        ASSERT_LE(std::sqrt(error), tolerance_ * std::sqrt(size) + 1e-30)
            << "operation " << done_ << ", sequence " << b << ", position " << position << " of "
            << model_.length(b);
        ++rows_;
      }
    }
  }

  void truncate() {
    const Index b = draw(sizes_.sequences), length = cache_.length(b);
    const Index n = draw(3) == 0 ? draw(length + 1) : std::max<Index>(0, length - draw(8));
    if (sizes_.window > 0 && n > 0) {  // may be refused: then nothing has changed
      if (support::error_of([&] { cache_.truncate(b, n); }) != kAccepted) return;
      cut_[std::size_t(b)] = true;
    } else {
      cache_.truncate(b, n);
    }
    model_.sequence(b).resize(std::size_t(n));
  }
  void copy() {
    const Index from = draw(sizes_.sequences), to = draw(sizes_.sequences);
    cache_.copy(from, to);
    model_.sequence(to) = Model::Sequence(model_.sequence(from));
    cut_[std::size_t(to)] = cut_[std::size_t(from)];
  }
  void clear() {
    if (draw(4) != 0) return;
    const Index b = draw(sizes_.sequences);
    cache_.clear(b);
    model_.sequence(b).clear();
    cut_[std::size_t(b)] = false;
  }
  /// The cache goes on as its copy; the one before is filled with other tokens and dropped.
  void copy_all() {
    attn::KeyValueCache<Storage> copied = cache_, moved = std::move(cache_);
    moved.clear();
    cache_ = std::move(copied);
  }
  /// Calls that are refused leave all as it was.
  void refuse() {
    const Index b = draw(sizes_.sequences), width = sizes_.kv_heads * sizes_.key_dim,
                value_width = sizes_.kv_heads * sizes_.value_dim, room = cache_.room(b);
    const auto only = attn::cache_sequences({b});
    const auto refused = [&](auto&& f) { EXPECT_NE(support::error_of(f), kAccepted); };
    refused([&] { cache_.append(random(room + 1, width), random(room + 1, value_width), only); });
    refused([&] { cache_.append(random(1, width + 1), random(1, value_width), only); });
    refused([&] { cache_.append(random(2, width), random(1, value_width), only); });
    refused([&] {
      cache_.append(random(2, width), random(2, value_width), attn::sequence_length(1),
                    attn::cache_sequences({b, sizes_.sequences}));
    });
    refused([&] { cache_.truncate(b, cache_.length(b) + 1); });
    refused([&] { cache_.copy(b, sizes_.sequences); });
  }
  void check_lengths() {
    for (Index b = 0; b < sizes_.sequences; ++b) ASSERT_EQ(cache_.length(b), model_.length(b));
  }

  static constexpr const char* kAccepted = "nothing was refused";

  Sizes sizes_;
  double tolerance_;
  attn::KeyValueCacheOptions options_;
  attn::KeyValueCache<Storage> cache_;
  attn::ScaledDotProductAttention<Scalar> sdpa_;
  Model model_;
  std::mt19937_64 engine_;
  /// Cut while a ring: of its last rows some may have lost their window.
  std::vector<bool> cut_ = std::vector<bool>(std::size_t(sizes_.sequences));
  int done_ = 0, rows_ = 0;
};

TEST(KvCacheModel, OfFloat) { Trial<float, float>({300, 3, 4, 2, 10, 18}, 1, 2e-6)(3000); }
TEST(KvCacheModel, OfFloatInABlock) { Trial<float, float>({41, 2, 3, 3, 5, 3}, 2, 2e-6)(3000); }
// Wide rows: blocks of 64 keys.
TEST(KvCacheModel, OfDoubleInManyBlocks) {
  Trial<double, double>({200, 2, 2, 1, 9, 260}, 3, 4e-15)(2000);
}
TEST(KvCacheModel, OfBfloat16) {
  Trial<Eigen::bfloat16, float>({300, 3, 4, 2, 10, 18}, 4, 2e-6)(2000);
}
TEST(KvCacheModel, OfInt8) { Trial<std::int8_t, float>({300, 3, 4, 2, 10, 18}, 5, 0.05)(2000); }
TEST(KvCacheModel, OfARing) {
  Trial<double, double>({150, 2, 2, 1, 9, 260, 70, 0}, 6, 4e-15)(2500);
}
TEST(KvCacheModel, OfARingWithPinnedTokens) {
  Trial<double, double>({150, 2, 2, 1, 9, 260, 37, 5}, 7, 4e-15)(2500);
}
TEST(KvCacheModel, OfARingOfInt8) {
  Trial<std::int8_t, float>({300, 2, 2, 1, 10, 18, 100, 3}, 8, 0.05)(2000);
}

}  // namespace
