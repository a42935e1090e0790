// tests/pair_layout_test.cpp: what has a number for each pair (weights, scores, biases, bools) has the same bits in every layout.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/threads.h"

namespace {

using Eigen::Index;
using support::same_bits;
using Matrix = support::DynamicMatrix<float>;
using Bools = support::DynamicMatrix<bool>;

/// Rows × columns at these strides: of one type, so that a call of every layout is compiled once.
struct Layout {
  const char* name;
  /// Of the strides: numbers from one to the next; 0: as many as the other dimension takes, and `gap` more.
  Index row, column, gap;

  Index row_stride(Index columns) const { return row != 0 ? row : columns * column + gap; }
  Index column_stride(Index rows) const { return column != 0 ? column : rows * row + gap; }
};
constexpr Layout kLayouts[] = {
    {"rows", 0, 1, 0},
    {"columns", 1, 0, 0},
    {"columns of more rows", 1, 0, 3},
    {"every other row", 2, 0, 1},
    {"every third column", 0, 3, 2},
};

/// A matrix in memory of a layout, all else of which is `between`.
template <class T>
class Laid {
 public:
  using Plain = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>;
  using Map = Eigen::Map<Plain, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>>;

  Laid(const Layout& layout, Index rows, Index columns, T between)
      : between_(between),
        row_(layout.row_stride(columns)),
        column_(layout.column_stride(rows)),
        rows_(rows),
        columns_(columns),
        memory_(std::size_t(std::max<Index>(1 + (rows - 1) * row_ + (columns - 1) * column_, 1)),
                between) {}
  Laid(const Layout& layout, const support::DynamicMatrix<T>& values, T between)
      : Laid(layout, values.rows(), values.cols(), between) {
    map() = values;
  }

  Map map() { return {memory_.data(), rows_, columns_, {column_, row_}}; }
  /// Nothing beside the matrix has been written.
  bool is_whole() {
    std::vector<char> own(memory_.count, 0);
    for (Index i = 0; i < rows_; ++i) {
      for (Index j = 0; j < columns_; ++j) own[std::size_t(i * row_ + j * column_)] = 1;
    }
    for (std::size_t n = 0; n < own.size(); ++n) {
      if (own[n] == 0 && !(memory_.begin()[n] == between_)) return false;
    }
    return true;
  }

 private:
  T between_;
  Index row_, column_, rows_, columns_;
  struct Memory {
    std::unique_ptr<T[]> numbers;
    std::size_t count;
    Memory(std::size_t n, T value) : numbers(new T[n]), count(n) {
      std::fill(begin(), end(), value);
    }
    Memory(const Memory& other) : numbers(new T[other.count]), count(other.count) {
      std::copy(other.begin(), other.end(), begin());
    }
    T* data() { return numbers.get(); }
    T* begin() const { return numbers.get(); }
    T* end() const { return numbers.get() + count; }
  } memory_;
};

struct Case {
  std::vector<Index> queries, keys;
  Index heads = 1, kv_heads = 1;

  Index longest_query() const { return longest(queries); }
  Index longest_key() const { return longest(keys); }
  static Index longest(const std::vector<Index>& offsets) {
    Index most = 0;
    for (std::size_t b = 0; b + 1 < offsets.size(); ++b)
      most = std::max(most, offsets[b + 1] - offsets[b]);
    return most;
  }
};
/// Rows and keys around packets, strips, what is written at once, panels and blocks; grouped heads; ragged batches.
std::vector<Case> cases() {
  std::vector<Case> all = {
      {{0, 200}, {0, 530}, 2, 2},
      {{0, 61}, {0, 40}, 4, 2},
      {{0, 50}, {0, 290}, 6, 2},
      {{0, 40}, {0, 33}, 8, 1},
      {{0, 5, 5, 70, 71}, {0, 9, 12, 12, 300}, 4, 2},
      {{0, 30, 47}, {0, 70}, 2, 1},
  };
  for (const Index rows : {1, 2, 5, 6, 7, 8, 9, 11, 12, 13, 15, 16, 17, 24, 25, 47, 48, 49})
    all.push_back({{0, rows}, {0, rows % 2 == 0 ? 37 : 17}});
  for (const Index rows : {95, 96, 97, 191, 192, 193}) all.push_back({{0, rows}, {0, 20}});
  for (const Index keys : {1, 8, 15, 16, 31, 32, 33, 64, 255, 256, 257})
    all.push_back({{0, 14}, {0, keys}});
  return all;
}

struct Outputs {
  Matrix Y, W, S;
};

struct Call {
  Case c;
  Matrix Q, K, V, B;
  Bools M;

  explicit Call(const Case& of)
      : c(of),
        Q(support::uniform<float>(of.queries.back(), of.heads * 4, 1, 2)),
        K(support::uniform<float>(of.keys.back(), of.kv_heads * 4, 2, 2)),
        V(support::uniform<float>(of.keys.back(), of.kv_heads * 3, 3)),
        B(support::uniform<float>(of.queries.back(), of.heads * of.longest_key(), 4)),
        M(support::random_bools(of.queries.back(), of.heads * of.longest_key(), 5, 0.8)) {
    M.row(of.queries.back() / 2).setConstant(false);  // a row that sees nothing
  }

  Outputs operator()(Laid<float>& W, Laid<float>& S, attn::stage at,
                     const std::vector<Index>& rows) {
    return with_tables(W, S, at, rows, B, c.heads, M, c.heads, kLayouts[0]);
  }
  /// Biases and bools in a layout of theirs.
  Outputs with_tables(Laid<float>& W, Laid<float>& S, attn::stage at,
                      const std::vector<Index>& rows, const Matrix& biases, Index bias_heads,
                      const Bools& bools, Index bool_heads, const Layout& layout) {
    Laid<float> laid_biases(layout, biases, NAN);
    Laid<bool> laid_bools(layout, bools, false);
    auto weights = W.map(), scores = S.map(), bias = laid_biases.map();
    auto keep = laid_bools.map();
    Outputs to;
    attn::attention(attn::heads(Q, c.heads), attn::heads(K, c.kv_heads), attn::heads(V, c.kv_heads),
                    attn::into(to.Y), attn::sequences(c.queries, c.keys),
                    attn::bias(attn::heads(bias, bias_heads)),
                    attn::keep(attn::heads(keep, bool_heads)) || attn::key_range(0, 0),
                    attn::save_weights(weights, attn::query_rows(rows)),
                    attn::save_scores(scores, at, attn::query_rows(rows)));
    to.W = weights;
    to.S = scores;
    return to;
  }
};

std::vector<Index> every_row(const Case& c, Index step) {
  std::vector<Index> rows;
  for (Index i = step - 1; i < c.queries.back(); i += step) rows.push_back(i);
  return rows;
}

TEST(PairLayouts, OfOutputsHaveTheSameBitsAndLeaveTheirSurroundingsAlone) {
  for (const Case& c : cases()) {
    Call call(c);
    const Index columns = c.heads * c.longest_key();
    for (const Index step : {1, 3}) {
      const std::vector<Index> rows = every_row(c, step);
      for (const attn::stage at : {attn::stage::scaled, attn::stage::biased, attn::stage::masked}) {
        Laid<float> plain_W(kLayouts[0], Index(rows.size()), columns, 7), plain_S = plain_W;
        const Outputs plain = call(plain_W, plain_S, at, rows);
        for (const Layout& layout : kLayouts) {
          SCOPED_TRACE(testing::Message()
                       << layout.name << ", " << c.queries.back() << " queries, " << c.keys.back()
                       << " keys, " << c.heads << " heads, step " << step);
          Laid<float> W(layout, Index(rows.size()), columns, 7), S = W;
          const Outputs laid = call(W, S, at, rows);
          ASSERT_TRUE(same_bits(laid.Y, plain.Y));
          ASSERT_TRUE(same_bits(laid.W, plain.W));
          ASSERT_TRUE(same_bits(laid.S, plain.S));
          ASSERT_TRUE(W.is_whole() && S.is_whole());
        }
      }
    }
  }
}

TEST(PairLayouts, OfTheMeanOverHeadsHaveTheSameBitsForAnyNumberOfThreads) {
  support::Threads pool;
  std::vector<Case> all = cases();
  all.push_back({{0, 700}, {0, 90}, 6, 2});  // several chunks for each worker
  for (const Case& c : all) {
    const Call call(c);
    const auto mean = [&](Laid<float>& to, int workers) {
      auto W = to.map();
      (void)Matrix(
          attn::attention(attn::heads(call.Q, c.heads), attn::heads(call.K, c.kv_heads),
                          attn::heads(call.V, c.kv_heads), attn::sequences(c.queries, c.keys),
                          attn::save_weights(W, attn::average_heads()), attn::on(pool, workers)));
      return Matrix(W);
    };
    Laid<float> rows(kLayouts[0], c.queries.back(), c.longest_key(), 7);
    const Matrix plain = mean(rows, 1);
    for (const Layout& layout : kLayouts) {
      for (const int workers : {1, 3}) {
        Laid<float> W(layout, c.queries.back(), c.longest_key(), 7);
        ASSERT_TRUE(same_bits(mean(W, workers), plain)) << layout.name << ", " << c.heads;
        ASSERT_TRUE(W.is_whole());
      }
    }
  }
}

TEST(PairLayouts, OfBiasesAndBoolsHaveTheSameBits) {
  for (const Case& c : cases()) {
    Call call(c);
    const std::vector<Index> rows = every_row(c, 1);
    const Index all = c.queries.back(), keys = c.longest_key(), columns = c.heads * keys;
    const auto attend = [&](Index table_rows, Index heads, bool one_column, const Layout& layout) {
      Laid<float> W(kLayouts[0], all, columns, 7), S = W;
      const Index wide = one_column ? heads : heads * keys;
      const Matrix B = call.B.topLeftCorner(table_rows, wide);
      const Bools M = call.M.topLeftCorner(table_rows, wide);
      const attn::stage at = heads == 1 ? attn::stage::masked : attn::stage::biased;
      return call.with_tables(W, S, at, rows, B, heads, M, heads, layout);
    };
    // A row for each token, of the longest sequence for all of them, one for all; one for each head or for all.
    for (const Index table_rows : {all, c.longest_query(), Index(1)}) {
      for (const Index heads : {c.heads, Index(1)}) {
        for (const bool one_column : {false, true}) {
          const Outputs plain = attend(table_rows, heads, one_column, kLayouts[0]);
          for (const Layout& layout : kLayouts) {
            SCOPED_TRACE(testing::Message()
                         << layout.name << ", " << table_rows << " of " << all << " rows, " << heads
                         << " of " << c.heads << " heads, " << keys << " keys");
            const Outputs laid = attend(table_rows, heads, one_column, layout);
            ASSERT_TRUE(same_bits(laid.Y, plain.Y));
            ASSERT_TRUE(same_bits(laid.W, plain.W));
            ASSERT_TRUE(same_bits(laid.S, plain.S));
          }
        }
      }
    }
  }
}

TEST(PairLayouts, OfMasksJoinedHaveTheSameBits) {
  const Index L = 75;
  const Matrix X = support::uniform<float>(L, 8, 1, 2);
  const Bools A = support::random_bools(L, L, 2, 0.7), B = support::random_bools(L, L, 3, 0.3);
  const auto attend = [&](const Layout& of_a, const Layout& of_b) {
    Laid<bool> laid_a(of_a, A, false), laid_b(of_b, B, true);
    auto a = laid_a.map(), b = laid_b.map();
    return Matrix(attn::attention(X, X, X,
                                  attn::keep(a) && (!attn::keep(b) || attn::causal()) &&
                                      attn::hide(b) && attn::window(60, 3)));
  };
  const Matrix plain = attend(kLayouts[0], kLayouts[0]);
  for (const Layout& of_a : kLayouts) {
    for (const Layout& of_b : kLayouts)
      EXPECT_TRUE(same_bits(attend(of_a, of_b), plain)) << of_a.name << ", " << of_b.name;
  }
}

}  // namespace
