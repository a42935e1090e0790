// tests/accuracy_test.cpp: sums over many keys, on inputs whose rounding errors all point one way. Random inputs never show them.
// SPDX-License-Identifier: MIT
//
// Scores are the keys themselves (one feature, q = 1, scale 1), values are 1: the exact output is 1, whatever the weights.
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/scalar_names.h"
#include "support/special_values.h"
#include "support/textbook.h"

namespace {

using Eigen::Index;
using support::DynamicMatrix;
using support::same_bits;

/// A sum of long doubles that does not drift either.
class ExactSum {
 public:
  void add(long double x) {
    const long double next = sum_ + x;
    lost_ += std::fabs(sum_) > std::fabs(x) ? (sum_ - next) + x : (x - next) + sum_;
    sum_ = next;
  }
  long double operator()() const { return sum_ + lost_; }

 private:
  long double sum_ = 0, lost_ = 0;
};

/// What softmax knows of scores, exactly.
template <class Scalar>
struct Exact {
  long double logsumexp = 0, entropy = 0;

  explicit Exact(const DynamicMatrix<Scalar>& scores) {
    long double m = -support::kInfinity<long double>;
    for (Index j = 0; j < scores.size(); ++j)
      m = std::max(m, static_cast<long double>(scores.data()[j]));
    ExactSum l, t;
    for (Index j = 0; j < scores.size(); ++j) {
      const long double x = static_cast<long double>(scores.data()[j]) - m, p = std::exp(x);
      l.add(p);
      t.add(p * x);
    }
    logsumexp = m + std::log(l());
    entropy = std::log(l()) - t() / l();
  }
};

/// The scores of one row, and what they are called.
template <class Scalar>
struct Scores {
  std::string name;
  DynamicMatrix<Scalar> values;  // keys × 1
};

/// One key at `at` of score `top`, the others `level`.
template <class Scalar>
Scores<Scalar> two_levels(Index keys, double level, Index at = 0, double top = 1) {
  DynamicMatrix<Scalar> s = DynamicMatrix<Scalar>::Constant(keys, 1, static_cast<Scalar>(level));
  s(at, 0) = static_cast<Scalar>(top);
  return {std::to_string(keys) + " keys at " + std::to_string(level) + ", one at " +
              std::to_string(top),
          s};
}
/// Weights that go down, or up, by the same factor from key to key.
template <class Scalar>
Scores<Scalar> geometric(Index keys, double step) {
  DynamicMatrix<Scalar> s(keys, 1);
  for (Index j = 0; j < keys; ++j) s(j, 0) = static_cast<Scalar>(step * static_cast<double>(j));
  return {std::to_string(keys) + " keys, each " + std::to_string(step) + " above the last", s};
}

const double levels[] = {0.9, 0.99, 0.5, 0, -0.3, -0.5, -0.7, -1, -1.3, -1.7, -2};
const Index lengths[] = {1,   2,    3,    17,   31,   33,   50,   63,   64,
                         65,  75,   76,   100,  128,  129,  255,  256,  257,
                         700, 1000, 1023, 1024, 1025, 1665, 2048, 4096, 5000};
const Index long_lengths[] = {131072, 1048576};

template <class Scalar>
std::vector<Scores<Scalar>> structured(Index keys) {
  std::vector<Scores<Scalar>> all;
  for (const double level : levels) all.push_back(two_levels<Scalar>(keys, level));
  for (const Index at : {keys / 2, keys - 1}) all.push_back(two_levels<Scalar>(keys, -0.7, at));
  for (const double step : {-0.1, -1e-3, 1e-3, 1e-5}) all.push_back(geometric<Scalar>(keys, step));
  return all;
}
/// The longest rows: fewer of them.
template <class Scalar>
std::vector<Scores<Scalar>> long_ones(Index keys) {
  return {two_levels<Scalar>(keys, 0),    two_levels<Scalar>(keys, -0.5),
          two_levels<Scalar>(keys, 0.9),  two_levels<Scalar>(keys, -0.7, keys - 1),
          geometric<Scalar>(keys, -1e-4), geometric<Scalar>(keys, 1e-5)};
}

template <class Scalar>
struct Result {
  DynamicMatrix<Scalar> Y, logsumexp, entropy;
};
/// The engine is instantiated once: it knows nothing of storage orders.
template <class Scalar, class Values>
Result<Scalar> attend(const DynamicMatrix<Scalar>& Q, const DynamicMatrix<Scalar>& K,
                      const Values& V) {
  Result<Scalar> result;
  attn::attention(Q, K, V, attn::scale(1), attn::into(result.Y),
                  attn::save_logsumexp(result.logsumexp), attn::save_entropy(result.entropy));
  return result;
}

template <class Scalar>
constexpr double bar() {
  return std::is_same_v<Scalar, float> ? 1e-6 : 1e-14;
}

template <class Scalar>
double error(const DynamicMatrix<Scalar>& Y) {
  return static_cast<double>((Y.array() - Scalar(1)).abs().maxCoeff());
}

template <class Scalar>
class Accuracy : public ::testing::Test {
 protected:
  static constexpr Index kFeatures = 3;

  static DynamicMatrix<Scalar> ones(Index rows, Index columns = 1) {
    return DynamicMatrix<Scalar>::Ones(rows, columns);
  }

  static void check(const Scores<Scalar>& scores) {
    SCOPED_TRACE(scores.name);
    const DynamicMatrix<Scalar>& K = scores.values;
    const DynamicMatrix<Scalar> V = ones(K.rows(), kFeatures);
    const auto one = attend<Scalar>(ones(1), K, V);
    EXPECT_LE(error(one.Y), bar<Scalar>());
    // All rows alike, packed and in place, from rows and from columns.
    const auto many = attend<Scalar>(ones(K.rows() > 10000 ? 6 : 20), K, V);
    EXPECT_TRUE(same_bits(many.Y.topRows(1), one.Y));
    EXPECT_TRUE(same_bits(many.Y.bottomRows(1), one.Y));
    const DynamicMatrix<Scalar, Eigen::ColMajor> columns = V;
    EXPECT_TRUE(same_bits(attend<Scalar>(ones(1), K, columns).Y, one.Y));

    const Exact<Scalar> exact(K);
    const double epsilon = static_cast<double>(std::numeric_limits<Scalar>::epsilon());
    EXPECT_NEAR(static_cast<double>(one.logsumexp(0, 0)), static_cast<double>(exact.logsumexp),
                10 * epsilon + 2 * epsilon * std::fabs(static_cast<double>(exact.logsumexp)));
    EXPECT_NEAR(static_cast<double>(one.entropy(0, 0)), static_cast<double>(exact.entropy),
                16 * epsilon * (1 + static_cast<double>(exact.entropy)));
  }
};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Accuracy, Scalars, support::ScalarNames);

TYPED_TEST(Accuracy, OfStructuredScoresDoesNotDependOnTheirNumber) {
  for (const Index keys : lengths) {
    for (const auto& scores : structured<TypeParam>(keys)) this->check(scores);
  }
}
TYPED_TEST(Accuracy, OfAMillionKeysIsThatOfAThousand) {
  for (const Index keys : long_lengths) {
    for (const auto& scores : long_ones<TypeParam>(keys)) this->check(scores);
  }
}

// Weights so small that each is rounded to what a sum of about 1 can hold are the worst there are: half an ulp for each
// key of a run and for the few additions of runs, blocks and lanes; the formula as written errs by half an ulp for each key.
TYPED_TEST(Accuracy, OfTheWorstScoresIsBoundedByTheRunAndByTheTextbook) {
  using Size = attn::kernel::TileSize<TypeParam>;
  const double ulp = static_cast<double>(std::numeric_limits<TypeParam>::epsilon());
  for (const Index keys : {20, 75, 76, 300, 1665, 4096, 20000}) {
    double worst = 0, textbook = 0;
    for (double level = 0.95; level > -20; level -= 0.07) {
      const auto scores = two_levels<TypeParam>(keys, level);
      const auto Q = this->ones(1), V = this->ones(keys);
      worst = std::max(worst, error(attend<TypeParam>(Q, scores.values, V).Y));
      textbook = std::max(textbook, error<TypeParam>(support::textbook_attention<TypeParam>(
                                        Q, scores.values, V, TypeParam(1))));
    }
    EXPECT_LE(worst, (static_cast<double>(Size::sum_run) / 2 + 8) * ulp) << keys << " keys";
    EXPECT_LE(worst, 2 * textbook + 2 * ulp) << keys << " keys";
  }
}

TYPED_TEST(Accuracy, OfSplitKeysIsThatOfOneCall) {
  using Matrix = DynamicMatrix<TypeParam>;
  for (const Index keys : {Index(75), Index(4096), Index(131072)}) {
    for (const auto& scores : long_ones<TypeParam>(keys)) {
      for (const Index part : {256, 3000}) {
        Matrix l;
        const Matrix Y =
            attn::attention(this->ones(1), scores.values, this->ones(keys), attn::scale(1),
                            attn::split_keys(part), attn::save_logsumexp(l));
        EXPECT_LE(error(Y), bar<TypeParam>()) << scores.name << ", parts of " << part;
        const double exact = static_cast<double>(Exact<TypeParam>(scores.values).logsumexp);
        EXPECT_NEAR(static_cast<double>(l(0, 0)), exact, bar<TypeParam>() * (2 + std::fabs(exact)))
            << scores.name << ", parts of " << part;
      }
    }
  }
}

TYPED_TEST(Accuracy, OfACacheIsThatOfMatrices) {
  using Matrix = DynamicMatrix<TypeParam>;
  for (const Index keys : {Index(75), Index(1665), Index(4096), Index(131072)}) {
    for (const auto& scores : long_ones<TypeParam>(keys)) {
      attn::KeyValueCache<TypeParam> cache(attn::KeyValueCacheOptions(keys, 1, 1));
      const Matrix V = this->ones(keys);
      cache.append(scores.values, V);
      for (const Index rows : {1, 20}) {
        const Matrix Q = this->ones(rows), Y = attn::attention(Q, cache, attn::scale(1));
        const Matrix expected = attn::attention(Q, scores.values, V, attn::scale(1),
                                                attn::causal(attn::align::lower_right));
        EXPECT_LE(error(Y), bar<TypeParam>()) << scores.name;
        EXPECT_TRUE(same_bits(Y, expected)) << scores.name;
      }
    }
  }
}

// A ring whose keys settle at other places than where it begins.
TYPED_TEST(Accuracy, OfARingIsThatOfItsWindow) {
  using Matrix = DynamicMatrix<TypeParam>;
  for (const Index window : {100, 700, 3000}) {
    const Index keys = 5000;
    const auto scores = two_levels<TypeParam>(keys, -0.7, keys - 1);
    attn::KeyValueCache<TypeParam> cache(
        attn::KeyValueCacheOptions(window + 300, 1, 1).ring(window));
    const Matrix V = this->ones(keys);
    for (Index done = 0; done < keys; done += 100)
      cache.append(scores.values.middleRows(done, 100), V.middleRows(done, 100));
    const Matrix Y = attn::attention(this->ones(1), cache, attn::scale(1));
    EXPECT_LE(error(Y), bar<TypeParam>()) << "a window of " << window;
  }
}

// Rows that see less than their mates, on either side of where sums settle: what settles with the others is nothing to them.
TYPED_TEST(Accuracy, OfARowDoesNotKnowWhereOthersSettle) {
  using Matrix = DynamicMatrix<TypeParam>;
  constexpr Index settled = attn::kernel::TileSize<TypeParam>::settled_keys, features = 5;
  const Index keys = 2 * settled + 100, rows = 40;
  const Matrix Q = support::uniform<TypeParam>(rows, features, 1, 2),
               K = support::uniform<TypeParam>(keys, features, 2, 2),
               V = support::uniform<TypeParam>(keys, features, 3);
  for (const Index offset : {settled - 20, 2 * settled - 20, settled + 700}) {
    const auto attend_at = [&](Index first, Index count) {
      Result<TypeParam> result;
      attn::attention(Matrix(Q.middleRows(first, count)), K, V, attn::causal_from(offset + first),
                      attn::into(result.Y), attn::save_logsumexp(result.logsumexp),
                      attn::save_entropy(result.entropy));
      return result;
    };
    const auto plain_at = [&](Index first, Index count) {
      return Matrix(attn::attention(Matrix(Q.middleRows(first, count)), K, V,
                                    attn::causal_from(offset + first)));
    };
    const auto all = attend_at(0, rows);
    const Matrix plain = plain_at(0, rows);
    EXPECT_TRUE(same_bits(plain, all.Y)) << "saving changes nothing";
    for (Index i = 0; i < rows; ++i) {
      const auto alone = attend_at(i, 1);
      EXPECT_TRUE(same_bits(alone.Y, all.Y.middleRows(i, 1))) << "row " << i << " at " << offset;
      EXPECT_TRUE(same_bits(alone.logsumexp, all.logsumexp.middleRows(i, 1)));
      EXPECT_TRUE(same_bits(alone.entropy, all.entropy.middleRows(i, 1)));
      EXPECT_TRUE(same_bits(plain_at(i, 1), alone.Y));
    }
  }
}

// What the sums have lost is nothing where they are not finite: the formula gives the infinity, not NaN.
TYPED_TEST(Accuracy, OfAnInfinityIsTheInfinity) {
  using Matrix = DynamicMatrix<TypeParam>;
  const TypeParam infinity = support::kInfinity<TypeParam>;
  for (const Index keys : {20, 300, 1100, 5000}) {
    for (const Index at : {Index(0), keys / 2, keys - 1}) {
      for (const TypeParam value : {infinity, -infinity}) {
        Matrix V = this->ones(keys, 2);
        V(at, 1) = value;
        for (const Index rows : {1, 6}) {
          const auto Y = attend<TypeParam>(this->ones(rows), this->ones(keys), V).Y;
          EXPECT_LE(error<TypeParam>(Y.leftCols(1)), bar<TypeParam>());
          EXPECT_TRUE((Y.col(1).array() == value).all()) << keys << " keys, at " << at;
        }
      }
    }
  }
}

TYPED_TEST(Accuracy, OfSoftmaxAndLogsumexpDoesNotDependOnTheNumberOfScores) {
  using Matrix = DynamicMatrix<TypeParam>;
  const double epsilon = static_cast<double>(std::numeric_limits<TypeParam>::epsilon());
  const auto check = [&](const Scores<TypeParam>& scores) {
    SCOPED_TRACE(scores.name);
    const Matrix s = scores.values.transpose();
    const long double exact = Exact<TypeParam>(scores.values).logsumexp;
    const Matrix l = attn::logsumexp(s), p = attn::softmax(s);
    EXPECT_NEAR(static_cast<double>(l(0, 0)), static_cast<double>(exact),
                (10 + 2 * std::fabs(static_cast<double>(exact))) * epsilon);
    const double lanes = attn::kernel::TileSize<TypeParam>::panel,
                 documented = 8 + std::sqrt(static_cast<double>(s.size()) / lanes);
    ExactSum sum;
    for (Index j = 0; j < p.size(); ++j) sum.add(static_cast<long double>(p(0, j)));
    EXPECT_NEAR(static_cast<double>(sum()), 1, documented * epsilon);
    EXPECT_TRUE(same_bits(Matrix(attn::softmax(scores.values, attn::colwise())).transpose(), p));
  };
  for (const Index length : lengths) {
    for (const auto& scores : structured<TypeParam>(length)) check(scores);
  }
  for (const Index length : {8191, 8192, 8193, 131072, 1048576}) {
    for (const auto& scores : long_ones<TypeParam>(length)) check(scores);
  }
}

}  // namespace
