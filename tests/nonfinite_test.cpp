// tests/nonfinite_test.cpp: NaN and infinity: without effect where hidden, seen where visible, and
// only there.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/special_values.h"

namespace {

using Eigen::Index;
using Matrix = support::DynamicMatrix<float>;
using Bools = support::DynamicMatrix<bool>;
using support::from_bits;
using support::kInfinity;
using support::same_bits;
using support::uniform;

struct Poison {
  const char* name;
  std::uint32_t bits;
  float value() const { return from_bits(bits); }
  bool is_nan() const { return (bits & 0x007fffffu) != 0; }
};
constexpr Poison kPoisons[] = {{"NaN", 0x7fc00000u},
                               {"NaN with a payload", 0x7fc00001u},
                               {"signalling NaN", 0x7f800001u},
                               {"negative NaN", 0xffffffffu},
                               {"infinity", 0x7f800000u},
                               {"-infinity", 0xff800000u}};

constexpr Index kQueries = 40, kKeys = 300, kDepth = 12, kFeatures = 21;

/// One way to hide pairs: the call, and which pairs it lets through.
struct Hiding {
  const char* name;
  std::function<Matrix(const Matrix&, const Matrix&, const Matrix&)> attend;
  std::function<bool(Index, Index)> visible;
  std::vector<Index> keys;  ///< to poison: each is hidden from some rows
};

class NonFinite : public ::testing::Test {
 protected:
  const Matrix query = uniform<float>(kQueries, kDepth, 1), key = uniform<float>(kKeys, kDepth, 2),
               value = uniform<float>(kKeys, kFeatures, 3);
  Bools keep_ = support::random_bools(kQueries, kKeys, 4), hide_ = !keep_.array();
  Matrix bias_ = keep_.select(uniform<float>(kQueries, kKeys, 5), -kInfinity<float>);

  std::vector<Hiding> ways() const {
    const auto kept = [this](Index i, Index j) { return keep_(i, j); };
    const std::vector<Index> anywhere{0, 5, 130, 255, 256, 299};
    return {
        {"causal_from",
         [](const Matrix& Q, const Matrix& K, const Matrix& V) {
           return Matrix(attn::attention(Q, K, V, attn::causal_from(240)));
         },
         [](Index i, Index j) { return j <= i + 240; },
         {241, 250, 255, 256, 259, 279, 290}},
        {"window",
         [](const Matrix& Q, const Matrix& K, const Matrix& V) {
           return Matrix(attn::attention(Q, K, V, attn::window(5, 9), attn::query_offset(230)));
         },
         [](Index i, Index j) { return i + 225 <= j && j <= i + 239; },
         {0, 224, 225, 231, 250, 255, 256, 277, 299}},
        {"key_lengths",
         [](const Matrix& Q, const Matrix& K, const Matrix& V) {
           return Matrix(attn::attention(Q, K, V, attn::key_lengths(261)));
         },
         [](Index, Index j) { return j < 261; },
         {261, 262, 288, 299}},
        {"key_range",
         [](const Matrix& Q, const Matrix& K, const Matrix& V) {
           return Matrix(attn::attention(Q, K, V, attn::key_range(13, 261)));
         },
         [](Index, Index j) { return 13 <= j && j < 261; },
         {0, 12, 261, 299}},
        {"keep",
         [this](const Matrix& Q, const Matrix& K, const Matrix& V) {
           return Matrix(attn::attention(Q, K, V, attn::keep(keep_)));
         },
         kept, anywhere},
        {"hide",
         [this](const Matrix& Q, const Matrix& K, const Matrix& V) {
           return Matrix(attn::attention(Q, K, V, attn::hide(hide_)));
         },
         kept, anywhere},
        {"not causal",
         [](const Matrix& Q, const Matrix& K, const Matrix& V) {
           return Matrix(attn::attention(Q, K, V, !attn::causal_from(240)));
         },
         [](Index i, Index j) { return j > i + 240; },
         {0, 240, 250, 255, 256, 279}},
        {"bias",
         [this](const Matrix& Q, const Matrix& K, const Matrix& V) {
           return Matrix(attn::attention(Q, K, V, attn::bias(bias_)));
         },
         kept, anywhere},
    };
  }
};

TEST_F(NonFinite, InHiddenKeysChangesNoBit) {
  for (const Hiding& way : ways()) {
    const Matrix clean = way.attend(query, key, value);
    for (const Poison& poison : kPoisons) {
      for (const Index j : way.keys) {
        for (const Index channel : {Index(0), kDepth - 1}) {
          Matrix K = key;
          K(j, channel) = poison.value();
          const Matrix Y = way.attend(query, K, value);
          for (Index i = 0; i < kQueries; ++i) {
            if (!way.visible(i, j)) {
              ASSERT_TRUE(same_bits(Y.row(i), clean.row(i)))
                  << way.name << ", " << poison.name << " in key " << j << ", row " << i;
            } else if (poison.is_nan()) {
              ASSERT_TRUE(Y.row(i).array().isNaN().all())
                  << way.name << ", " << poison.name << " in key " << j << ", row " << i;
            }
          }
        }
      }
    }
  }
}

TEST_F(NonFinite, InHiddenValuesChangesNoBit) {
  for (const Hiding& way : ways()) {
    const Matrix clean = way.attend(query, key, value);
    for (const Poison& poison : kPoisons) {
      for (const Index j : way.keys) {
        const Index channel = j % kFeatures;
        Matrix V = value;
        V(j, channel) = poison.value();
        const Matrix Y = way.attend(query, key, V);
        for (Index i = 0; i < kQueries; ++i) {
          Eigen::RowVectorXf expected = clean.row(i), actual = Y.row(i);
          if (way.visible(i, j)) {  // there, and only there
            ASSERT_FALSE(std::isfinite(actual(channel)))
                << way.name << ", " << poison.name << " in value " << j << ", row " << i;
            ASSERT_EQ(std::isnan(actual(channel)), poison.is_nan());
            actual(channel) = expected(channel);
          }
          ASSERT_TRUE(same_bits(actual, expected))
              << way.name << ", " << poison.name << " in value " << j << ", row " << i;
        }
      }
    }
  }
}

// Alone, and as the only sound row of a tile whose other rows all see the poison.
TEST_F(NonFinite, InHiddenPairsChangesNoBitOfARowAloneOrAmongPoisonedRows) {
  const Bools keep = support::random_bools(1, kKeys, 6);
  const Matrix q = query.row(0);
  const Matrix clean = attn::attention(q, key, value, attn::keep(keep));
  for (const Poison& poison : kPoisons) {
    Matrix K = key, V = value;
    for (Index j = 0; j < kKeys; ++j) {
      if (!keep(0, j)) K.row(j).setConstant(poison.value()), V.row(j).setConstant(poison.value());
    }
    const Matrix alone = attn::attention(q, K, V, attn::keep(keep));
    EXPECT_TRUE(same_bits(alone, clean)) << poison.name;

    for (const Index rows : {2, 5, 13, 30}) {
      for (const Index at : {Index(0), rows / 2, rows - 1}) {
        Matrix Q = query.topRows(rows);
        Q.row(at) = q;
        Bools all = Bools::Constant(rows, kKeys, true);
        all.row(at) = keep;
        const Matrix Y = attn::attention(Q, K, V, attn::keep(all));
        ASSERT_TRUE(same_bits(Y.row(at), clean)) << poison.name << ", row " << at << " of " << rows;
      }
    }
  }
}

TEST_F(NonFinite, InTheQueryGivesNaNInItsRowOnly) {
  const Matrix clean = attn::attention(query, key, value);
  for (const Index row : {0, 5, 6, 12, 39}) {
    for (const Poison& poison : kPoisons) {
      if (!poison.is_nan()) continue;
      Matrix Q = query;
      Q(row, 3) = poison.value();
      Matrix Y = attn::attention(Q, key, value);
      EXPECT_TRUE(Y.row(row).array().isNaN().all()) << poison.name;
      Y.row(row) = clean.row(row);
      EXPECT_TRUE(same_bits(Y, clean)) << poison.name;
    }
  }
}

TEST_F(NonFinite, ScoreOfPlusInfinityGivesNaNAndOfMinusInfinityIsHidden) {
  for (const Index j : {0, 17, 255, 256, 299}) {
    Matrix K = key;
    K(j, 3) = kInfinity<float>;
    const Matrix Y = attn::attention(query, K, value);
    Bools keep = Bools::Constant(kQueries, kKeys, true);
    keep.col(j).setConstant(false);
    const Matrix without = attn::attention(query, key, value, attn::keep(keep));
    for (Index i = 0; i < kQueries; ++i) {
      if (query(i, 3) > 0) {
        EXPECT_TRUE(Y.row(i).array().isNaN().all()) << "key " << j << ", row " << i;
      } else {
        EXPECT_TRUE(same_bits(Y.row(i), without.row(i))) << "key " << j << ", row " << i;
      }
    }
  }
}

TEST_F(NonFinite, ScoreOfMinusInfinityHidesWhatItsValueHolds) {
  Matrix K = key, V = value;
  K(256, 3) = kInfinity<float>;
  const Matrix clean = attn::attention(query, K, V);
  V.row(256).setConstant(from_bits(0x7fc00001u));
  const Matrix Y = attn::attention(query, K, V);
  for (Index i = 0; i < kQueries; ++i) {
    if (query(i, 3) < 0) {
      EXPECT_TRUE(same_bits(Y.row(i), clean.row(i))) << "row " << i;
    }
  }
}

TEST_F(NonFinite, RowWithNoKeyLeftGivesZerosWhateverIsHidden) {
  const Matrix nan_keys = Matrix::Constant(kKeys, kDepth, from_bits(0x7f800001u)),
               nan_values = Matrix::Constant(kKeys, kFeatures, kInfinity<float>);
  Matrix Y, l;
  const Matrix zeros = Matrix::Zero(kQueries, kFeatures);
  const Matrix minus_infinity = Matrix::Constant(kQueries, 1, -kInfinity<float>);
  const Bools none = Bools::Constant(kQueries, kKeys, false);
  for (const bool poisoned : {false, true}) {
    const Matrix& K = poisoned ? nan_keys : key;
    const Matrix& V = poisoned ? nan_values : value;
    attn::attention(query, K, V, attn::into(Y), attn::save_logsumexp(l), attn::keep(none));
    EXPECT_TRUE(same_bits(Y, zeros));
    EXPECT_TRUE(same_bits(l, minus_infinity));
    attn::attention(query, K, V, attn::into(Y), attn::save_logsumexp(l), attn::key_lengths(0));
    EXPECT_TRUE(same_bits(Y, zeros));
    EXPECT_TRUE(same_bits(l, minus_infinity));
  }

  // Empty rows among others: every third one.
  Bools some = Bools::Constant(kQueries, kKeys, true);
  for (Index i = 0; i < kQueries; i += 3) some.row(i).setConstant(false);
  const Matrix clean = attn::attention(query, key, value);
  attn::attention(query, key, value, attn::into(Y), attn::save_logsumexp(l), attn::keep(some));
  for (Index i = 0; i < kQueries; ++i) {
    EXPECT_TRUE(same_bits(Y.row(i), i % 3 == 0 ? zeros.row(i) : clean.row(i))) << "row " << i;
    EXPECT_EQ(std::isinf(l(i)), i % 3 == 0) << "row " << i;
  }
}

TEST_F(NonFinite, RowWithNoKeyLeftGivesTheResidual) {
  const Matrix X = uniform<float>(kQueries, kFeatures, 8);
  const Bools none = Bools::Constant(kQueries, kKeys, false);
  EXPECT_TRUE(
      same_bits(attn::attention(query, key, value, attn::keep(none), attn::residual(X)), X));
}

TEST_F(NonFinite, LogSumExpSeesWhatItsRowSees) {
  Matrix K = key, Y, clean, l;
  attn::attention(query, K, value, attn::into(Y), attn::save_logsumexp(clean), attn::keep(keep_));
  K(256, 3) = from_bits(0x7fc00001u);
  attn::attention(query, K, value, attn::into(Y), attn::save_logsumexp(l), attn::keep(keep_));
  for (Index i = 0; i < kQueries; ++i) {
    if (keep_(i, 256)) {
      EXPECT_TRUE(std::isnan(l(i))) << "row " << i;
    } else {
      EXPECT_TRUE(same_bits(l.row(i), clean.row(i))) << "row " << i;
    }
  }
}

TEST_F(NonFinite, InHiddenValuesOfDoubleChangesNoBit) {
  using MatrixXd = support::DynamicMatrix<double>;
  const MatrixXd Q = query.cast<double>(), K = key.cast<double>();
  MatrixXd V = value.cast<double>();
  const MatrixXd clean = attn::attention(Q, K, V, attn::causal_from(240));
  for (const std::uint64_t bits : {0x7ff8000000000001ull, 0x7ff0000000000001ull,
                                   0xffffffffffffffffull, 0x7ff0000000000000ull}) {
    double poison;
    std::memcpy(&poison, &bits, sizeof poison);
    V.row(256).setConstant(poison);
    MatrixXd poisoned_key = K;
    poisoned_key.row(256).setConstant(poison);
    const MatrixXd Y = attn::attention(Q, poisoned_key, V, attn::causal_from(240));
    EXPECT_TRUE(same_bits(Y.topRows(16), clean.topRows(16)));
    EXPECT_FALSE(Y.bottomRows(24).array().isFinite().any());
  }
}

// ---- What is not read
// -----------------------------------------------------------------------------------------------
#if defined(__linux__)

/// Memory between two pages that may not be touched: `count` scalars end at the second one, or
/// begin at the first.
template <class T>
class GuardedMemory {
 public:
  explicit GuardedMemory(Index count) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    middle_ = (bytes + page - 1) / page * page;
    total_ = middle_ + 2 * page;
    void* memory = mmap(nullptr, total_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<char*>(memory);
    if (middle_ != 0 && mprotect(base_ + page, middle_, PROT_READ | PROT_WRITE) != 0) {
      throw std::bad_alloc();
    }
    first_ = reinterpret_cast<T*>(base_ + page);
    last_ = reinterpret_cast<T*>(base_ + page + middle_) - count;
  }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;
  ~GuardedMemory() { munmap(base_, total_); }

  T* at_start() { return first_; }
  T* at_end() { return last_; }

 private:
  char* base_ = nullptr;
  std::size_t middle_ = 0, total_ = 0;
  T *first_ = nullptr, *last_ = nullptr;
};

template <int Order>
void attend_between_guards(Index Lq, Index Lk, Index d_k, Index d_v) {
  using Ordered = support::DynamicMatrix<float, Order>;
  using OrderedBools = support::DynamicMatrix<bool, Order>;
  using Map = Eigen::Map<Ordered>;
  const Ordered Q = uniform<float, Order>(Lq, d_k, 1), K = uniform<float, Order>(Lk, d_k, 2),
                V = uniform<float, Order>(Lk, d_v, 3), B = uniform<float, Order>(Lq, Lk, 4),
                X = uniform<float, Order>(Lq, d_v, 5);
  const OrderedBools M = support::random_bools(Lq, Lk, 6);
  const Ordered expected =
      attn::attention(Q, K, V, attn::bias(B), attn::keep(M), attn::residual(X));
  GuardedMemory<float> q(Q.size()), k(K.size()), v(V.size()), b(B.size()), x(X.size()), y(X.size());
  GuardedMemory<bool> m(M.size());
  for (const bool at_end : {true, false}) {
    const auto place = [&](GuardedMemory<float>& memory, const Ordered& from) {
      Map map(at_end ? memory.at_end() : memory.at_start(), from.rows(), from.cols());
      map = from;
      return map;
    };
    Eigen::Map<OrderedBools> keep(at_end ? m.at_end() : m.at_start(), Lq, Lk);
    keep = M;
    Map Y = place(y, X);
    attn::attention(place(q, Q), place(k, K), place(v, V), attn::bias(place(b, B)),
                    attn::keep(keep), attn::residual(place(x, X)), attn::into(Y));
    EXPECT_TRUE(same_bits(Y, expected)) << Lq << " x " << Lk << ", d " << d_k << ", " << d_v;
  }
}

TEST(Memory, OutsideTheOperandsIsNotTouched) {
  for (const Index Lk : {1, 7, 8, 9, 15, 17, 31, 33, 255, 257}) {
    attend_between_guards<Eigen::RowMajor>(7, Lk, 13, 11);
    attend_between_guards<Eigen::ColMajor>(7, Lk, 13, 11);
  }
  for (const Index d : {1, 3, 4, 8, 16, 17, 33}) {
    attend_between_guards<Eigen::RowMajor>(5, 40, d, d);
    attend_between_guards<Eigen::ColMajor>(5, 40, d, d);
  }
}

// Keys and values behind the lengths, before the range, or ahead of the last causal row are on a
// page that may not be read.
TEST(Memory, OfKeysOutsideAllRangesIsNotRead) {
  using Map = Eigen::Map<const Matrix>;
  const Index d = 12, held = 37, all = 300;
  const Matrix Q = uniform<float>(held, d, 1), K = uniform<float>(held, d, 2),
               V = uniform<float>(held, d, 3);
  GuardedMemory<float> k(K.size()), v(V.size());

  Eigen::Map<Matrix>(k.at_end(), held, d) = K;
  Eigen::Map<Matrix>(v.at_end(), held, d) = V;
  const Map long_k(k.at_end(), all, d), long_v(v.at_end(), all, d);
  const Matrix padded = attn::attention(Q, long_k, long_v, attn::key_lengths(held));
  EXPECT_TRUE(same_bits(padded, attn::attention(Q, K, V)));
  const Matrix causal = attn::attention(Q, long_k, long_v, attn::causal(attn::align::upper_left));
  EXPECT_TRUE(same_bits(causal, attn::attention(Q, K, V, attn::causal())));
  const Matrix band = attn::attention(Q, long_k, long_v, attn::window(-1, 0));
  EXPECT_TRUE(same_bits(band, causal));

  Eigen::Map<Matrix>(k.at_start(), held, d) = K;
  Eigen::Map<Matrix>(v.at_start(), held, d) = V;
  const Map late_k(k.at_start() - (all - held) * d, all, d),
      late_v(v.at_start() - (all - held) * d, all, d);
  const Matrix left_padded = attn::attention(Q, late_k, late_v, attn::key_range(all - held, all));
  EXPECT_TRUE(support::near(left_padded, attn::attention(Q, K, V), 1e-6));
}

#endif

}  // namespace
