// tests/softmax_test.cpp: softmax, log-softmax, log-sum-exp and merge against plain loops in long double.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "support/any_mask.h"
#include "support/error_of.h"
#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/scalar_names.h"
#include "support/special_values.h"

namespace {

using Eigen::Index;
using support::error_of;
using support::kInfinity;
using support::kNaN;
using support::same_bits;
template <class Scalar>
using Matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>;
template <class Scalar>
using RowMajor = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Exact = Matrix<long double>;
using Visible = std::function<bool(Index, Index)>;

const Visible everything = [](Index, Index) { return true; };

/// log Σ exp of each row over its visible scores, −∞ for none: the definition, in plain loops.
template <class Scores>
Exact exact_logsumexp(const Scores& s, const Visible& visible = everything) {
  Exact l(s.rows(), 1);
  for (Index i = 0; i < s.rows(); ++i) {
    long double m = -kInfinity<long double>;
    long double sum = 0, lost = 0;  // Neumaier's sum: long double is tested too
    for (Index j = 0; j < s.cols(); ++j) {
      if (visible(i, j)) m = std::max(m, static_cast<long double>(s(i, j)));
    }
    for (Index j = 0; j < s.cols(); ++j) {
      if (!visible(i, j)) continue;
      const long double p = std::exp(static_cast<long double>(s(i, j)) - m), next = sum + p;
      lost += sum > p ? (sum - next) + p : (p - next) + sum;
      sum = next;
    }
    l(i, 0) = sum == 0 ? -kInfinity<long double> : m + std::log(sum + lost);
  }
  return l;
}
template <class Scores>
Exact exact_softmax(const Scores& s, const Visible& visible = everything) {
  const Exact l = exact_logsumexp(s, visible);
  Exact p(s.rows(), s.cols());
  for (Index i = 0; i < s.rows(); ++i) {
    for (Index j = 0; j < s.cols(); ++j) {
      p(i, j) = visible(i, j) ? std::exp(static_cast<long double>(s(i, j)) - l(i, 0)) : 0.0L;
    }
  }
  return p;
}

/// Largest |got − exact| / exact over the entries whose exact value is a normal number of Scalar.
template <class Got>
long double relative_error(const Got& got, const Exact& exact) {
  long double worst = 0;
  for (Index i = 0; i < exact.rows(); ++i) {
    for (Index j = 0; j < exact.cols(); ++j) {
      if (exact(i, j) < std::numeric_limits<typename Got::Scalar>::min()) continue;
      worst = std::max(worst,
                       std::fabs(static_cast<long double>(got(i, j)) - exact(i, j)) / exact(i, j));
    }
  }
  return worst;
}

template <class Scalar>
Matrix<Scalar> random_scores(Index rows, Index cols, double range) {
  return support::uniform<Scalar>(rows, cols, unsigned(rows * 1000 + cols), range);
}

template <class Scalar>
class SoftmaxOf : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, long double>;
TYPED_TEST_SUITE(SoftmaxOf, Scalars, support::ScalarNames);

// Around the panel, and around the 32 KiB beyond which a row is folded in blocks of 256 (8192 floats).
const Index lengths[] = {1, 2, 7, 31, 32, 33, 255, 256, 257, 700, 4096, 8191, 8192, 8193, 9000};

TYPED_TEST(SoftmaxOf, RowsIsWithinAFewUlpOfTheExactValue) {
  // Scores within ±5, so that s − m rounds by at most a few ulp of the weight. The row sum is kept in `panel` chains, and the
  // rounding errors of a chain grow like the root of its length.
  const int chains = attn::kernel::TileSize<TypeParam>::panel;
  for (const Index n : lengths) {
    const Matrix<TypeParam> s = random_scores<TypeParam>(5, n, 5);
    const long double bar = (8 + std::sqrt(static_cast<long double>(n) / chains)) *
                            std::numeric_limits<TypeParam>::epsilon();
    EXPECT_LE(relative_error(Matrix<TypeParam>(attn::softmax(s)), exact_softmax(s)), bar)
        << n << " columns";
  }
}

TYPED_TEST(SoftmaxOf, ColumnsIsTheRowsOfTheTranspose) {
  for (const Index n : {Index(1), Index(33), Index(300)}) {
    const Matrix<TypeParam> s = random_scores<TypeParam>(n, 14, 8);
    const Matrix<TypeParam> t = s.transpose();
    EXPECT_EQ(attn::softmax(s, attn::colwise()), attn::softmax(t).transpose());
    EXPECT_EQ(attn::log_softmax(s, attn::colwise()), attn::log_softmax(t).transpose());
    EXPECT_EQ(attn::logsumexp(s, attn::colwise()), attn::logsumexp(t).transpose());
  }
}

TYPED_TEST(SoftmaxOf, StorageOrderAndStridesChangeNoBit) {
  const Matrix<TypeParam> s = random_scores<TypeParam>(29, 270, 8);
  const Matrix<TypeParam> p = attn::softmax(s);
  const RowMajor<TypeParam> rows = s;
  EXPECT_EQ(Matrix<TypeParam>(attn::softmax(rows)), p);
  EXPECT_EQ(Matrix<TypeParam>(attn::softmax(s * TypeParam(1))), p);
  Matrix<TypeParam> big = Matrix<TypeParam>::Constant(40, 300, TypeParam(7));
  attn::softmax(s, attn::into(big.block(3, 5, 29, 270)));
  EXPECT_EQ(Matrix<TypeParam>(big.block(3, 5, 29, 270)), p);
  EXPECT_EQ(big(2, 5), TypeParam(7));
  EXPECT_EQ(big(32, 5), TypeParam(7));
  EXPECT_EQ(big(3, 4), TypeParam(7));
  EXPECT_EQ(big(3, 275), TypeParam(7));
}

TYPED_TEST(SoftmaxOf, InPlaceIsTheSameAsOutOfPlace) {
  for (const Index n : {Index(12), Index(256), Index(600)}) {
    const Matrix<TypeParam> s = random_scores<TypeParam>(17, n, 8);
    Matrix<TypeParam> rows = s, columns = s, logs = s;
    attn::softmax(rows, attn::into(rows));
    attn::softmax(columns, attn::colwise(), attn::into(columns));
    attn::log_softmax(logs, attn::into(logs));
    EXPECT_EQ(rows, attn::softmax(s));
    EXPECT_EQ(columns, attn::softmax(s, attn::colwise()));
    EXPECT_EQ(logs, attn::log_softmax(s));
  }
}

TYPED_TEST(SoftmaxOf, LargeScoresAreStable) {
  // The example of the ONNX standard: rows [0 1 2 3] and [10000 10001 10002 10003] have the same softmax.
  Matrix<TypeParam> s(3, 4);
  s << 0, 1, 2, 3, 10000, 10001, 10002, 10003, -10003, -10002, -10001, -10000;
  const Matrix<TypeParam> p = attn::softmax(s);
  // e^{-3} / (1 + e^{-1} + e^{-2} + e^{-3}) = 0.0320586, and e times it from left to right
  EXPECT_NEAR(double(p(0, 0)), 0.032058604, 1e-7);
  EXPECT_NEAR(double(p(0, 3)), 0.643914260, 1e-7);
  EXPECT_EQ(p.row(0), p.row(1));
  EXPECT_EQ(p.row(0), p.row(2).eval());
  const Matrix<TypeParam> l = attn::logsumexp(s);
  EXPECT_NEAR(double(l(1, 0)), 10003.44019, 1e-3);
  EXPECT_NEAR(double(l(2, 0)), -9999.55981, 1e-3);
}

TYPED_TEST(SoftmaxOf, LogSoftmaxAgreesWithTheExactLogarithm) {
  for (const Index n : {Index(3), Index(257), Index(1000)}) {
    const Matrix<TypeParam> s = random_scores<TypeParam>(4, n, 30);
    const Matrix<TypeParam> logs = attn::log_softmax(s);
    const Exact l = exact_logsumexp(s);
    const Matrix<TypeParam> sums = attn::logsumexp(s);
    const auto bar = 8 * 64 * static_cast<long double>(std::numeric_limits<TypeParam>::epsilon());
    for (Index i = 0; i < 4; ++i) {
      EXPECT_NEAR(double(sums(i, 0)), double(l(i, 0)), double(bar));
      for (Index j = 0; j < n; ++j) {
        ASSERT_LE(std::fabs(static_cast<long double>(logs(i, j)) - (s(i, j) - l(i, 0))), bar)
            << i << ", " << j;
      }
    }
  }
}

TYPED_TEST(SoftmaxOf, MasksHideScoresWhateverTheyHold) {
  for (const Index n : {Index(9), Index(300)}) {
    Matrix<TypeParam> s = random_scores<TypeParam>(n, n, 8);
    const Exact exact = exact_softmax(s, [](Index i, Index j) { return j <= i && j + 4 >= i; });
    const auto mask = attn::causal() && attn::window(4, -1);
    const Matrix<TypeParam> clean = attn::softmax(s, mask), logs = attn::log_softmax(s, mask);
    for (Index j = 1; j < n; ++j) s(0, j) = kNaN<TypeParam>;
    const Matrix<TypeParam> p = attn::softmax(s, mask);
    EXPECT_EQ(p, clean);
    const auto bar = 24 * static_cast<long double>(std::numeric_limits<TypeParam>::epsilon());
    EXPECT_LE(relative_error(p, exact), bar);
    EXPECT_EQ(p(0, n - 1), TypeParam(0));
    EXPECT_EQ(logs(0, n - 1), -kInfinity<TypeParam>);
  }
}

TYPED_TEST(SoftmaxOf, ARowWithNothingVisibleGivesZerosAndMinusInfinity) {
  const Matrix<TypeParam> s = random_scores<TypeParam>(4, 40, 3);
  const auto mask = attn::causal() && !attn::window(0, 0) && attn::window(3, 0);
  const Matrix<TypeParam> p = attn::softmax(s, mask, attn::query_offset(0));
  EXPECT_EQ(p.row(0), (Matrix<TypeParam>::Zero(1, 40)));
  EXPECT_EQ(Matrix<TypeParam>(attn::logsumexp(s, mask, attn::query_offset(0)))(0, 0),
            -kInfinity<TypeParam>);
  EXPECT_EQ(Matrix<TypeParam>(attn::log_softmax(s, mask, attn::query_offset(0)))(0, 5),
            -kInfinity<TypeParam>);
  const Matrix<TypeParam> hidden = Matrix<TypeParam>::Constant(2, 3, -kInfinity<TypeParam>);
  EXPECT_EQ(attn::softmax(hidden), (Matrix<TypeParam>::Zero(2, 3)));
}

TYPED_TEST(SoftmaxOf, ANanShowsInItsRowOnly) {
  Matrix<TypeParam> s = random_scores<TypeParam>(20, 50, 3);
  const Matrix<TypeParam> clean = attn::softmax(s);
  s(7, 31) = kNaN<TypeParam>;
  const Matrix<TypeParam> p = attn::softmax(s);
  for (Index i = 0; i < 20; ++i) {
    if (i == 7) {
      for (Index j = 0; j < 50; ++j) EXPECT_TRUE(std::isnan(p(i, j)));
    } else {
      EXPECT_EQ(p.row(i), clean.row(i));
    }
  }
}

TEST(Softmax, StorageTypesAreComputedInFloatAndRoundedOnce) {
  const Matrix<Eigen::half> s = random_scores<float>(6, 77, 4).cast<Eigen::half>();
  const Matrix<float> wide = s.cast<float>();
  const Matrix<Eigen::half> p = attn::softmax(s);
  const Matrix<Eigen::half> expected = attn::softmax(wide).cast<Eigen::half>();
  for (Index i = 0; i < 6; ++i) {
    for (Index j = 0; j < 77; ++j) EXPECT_EQ(float(p(i, j)), float(expected(i, j)));
  }
}

TEST(Softmax, FixedSizesKeepTheirType) {
  const Eigen::Matrix<double, 2, 3> s = Eigen::Matrix<double, 2, 3>::Random();
  const auto p = attn::softmax(s);
  const auto rows = attn::logsumexp(s);
  const auto columns = attn::logsumexp(s, attn::colwise());
  static_assert(std::is_same_v<decltype(p), const Eigen::Matrix<double, 2, 3>>);
  static_assert(std::is_same_v<decltype(rows), const Eigen::Matrix<double, 2, 1>>);
  static_assert(
      std::is_same_v<decltype(columns), const Eigen::Matrix<double, 1, 3, Eigen::RowMajor>>);
  EXPECT_NEAR(p.rowwise().sum()(1), 1, 1e-15);
  EXPECT_NEAR(columns(2), std::log(std::exp(s(0, 2)) + std::exp(s(1, 2))), 1e-15);
}

TEST(Softmax, EmptyMatricesAreValid) {
  const Eigen::MatrixXf none(0, 5), narrow(4, 0);
  EXPECT_EQ(attn::softmax(none).cols(), 5);
  EXPECT_EQ(attn::softmax(narrow).rows(), 4);
  EXPECT_EQ(attn::logsumexp(narrow), Eigen::VectorXf::Constant(4, -kInfinity<float>));
}

TEST(Softmax, WrongShapesAreRefusedAndNothingIsWritten) {
  const Eigen::MatrixXf s = Eigen::MatrixXf::Random(4, 5);
  Eigen::MatrixXf big = Eigen::MatrixXf::Constant(9, 9, 3.0f);
  const Eigen::MatrixXf before = big;
  EXPECT_EQ(error_of([&] { attn::softmax(s, attn::into(big.topLeftCorner(4, 4))); }),
            "attn::softmax: output is 4x4, needs 4x5");
  EXPECT_EQ(error_of([&] { attn::logsumexp(s, attn::into(big.topLeftCorner(1, 4))); }),
            "attn::logsumexp: output is 1x4, needs 4x1");
  EXPECT_EQ(
      error_of([&] { attn::softmax(big.topLeftCorner(4, 5), attn::into(big.block(1, 1, 4, 5))); }),
      "attn::softmax: output overlaps the scores without being the same matrix; write to "
      "memory of its own");
  EXPECT_NE(error_of([&] {
              (void)attn::log_softmax(s, attn::causal());
            }).find("attn::log_softmax: causal() with 4 queries"),
            std::string::npos);
  EXPECT_EQ(big, before);
}

TEST(SoftmaxState, UpdatesAndMergesToTheWhole) {
  const Matrix<double> s = random_scores<double>(1, 100, 20);
  attn::SoftmaxState<double> whole, left, right;
  for (Index j = 0; j < 100; ++j) {
    whole.update(s(0, j));
    (j < 37 ? left : right).update(s(0, j));
  }
  EXPECT_EQ(whole.maximum, s.maxCoeff());
  EXPECT_NEAR(whole.logsumexp(), double(exact_logsumexp(s)(0, 0)), 1e-13);
  const auto merged = attn::merge(left, right), swapped = attn::merge(right, left);
  EXPECT_EQ(merged.maximum, whole.maximum);
  EXPECT_NEAR(merged.sum, whole.sum, 1e-13 * whole.sum);
  EXPECT_EQ(merged.sum, swapped.sum);
  const attn::SoftmaxState<double> none;
  EXPECT_EQ(none.logsumexp(), -kInfinity<double>);
  EXPECT_EQ(attn::merge(none, left).sum, left.sum);
  EXPECT_EQ(attn::merge(none, none).sum, 0.0);
}

TEST(Merge, TwoHalvesOfTheKeysMakeTheWhole) {
  const Eigen::MatrixXd Q = random_scores<double>(11, 24, 1), K = random_scores<double>(50, 24, 1),
                        V = random_scores<double>(50, 15, 1);
  using attn::heads;
  Eigen::MatrixXd la, lb, l, merged_l;
  const Eigen::MatrixXd whole =
      attn::attention(heads(Q, 3), heads(K, 3), heads(V, 3), attn::save_logsumexp(l));
  Eigen::MatrixXd a = attn::attention(heads(Q, 3), heads(K.topRows(20), 3), heads(V.topRows(20), 3),
                                      attn::save_logsumexp(la));
  const Eigen::MatrixXd b = attn::attention(heads(Q, 3), heads(K.bottomRows(30), 3),
                                            heads(V.bottomRows(30), 3), attn::save_logsumexp(lb));
  const Eigen::MatrixXd merged = attn::merge(a, la, b, lb, attn::save_logsumexp(merged_l));
  EXPECT_LE((merged - whole).cwiseAbs().maxCoeff(), 1e-15);
  EXPECT_LE((merged_l - l).cwiseAbs().maxCoeff(), 1e-14);
  attn::merge(a, la, b, lb, attn::into(a), attn::save_logsumexp(la));
  EXPECT_EQ(a, merged);
  EXPECT_EQ(la, merged_l);
}

TEST(Merge, ARowThatSawNoKeyTakesTheOtherSide) {
  const float none = -kInfinity<float>;
  Eigen::MatrixXf a(3, 2), b(3, 2), la(3, 1), lb(3, 1), l;
  a << 1, 2, 0, 0, 0, 0;
  b << 0, 0, 3, 4, 0, 0;
  la << 5, none, none;
  lb << none, 7, none;
  Eigen::MatrixXf expected(3, 2);
  expected << 1, 2, 3, 4, 0, 0;
  EXPECT_EQ(attn::merge(a, la, b, lb, attn::save_logsumexp(l)), expected);
  EXPECT_EQ(l, (Eigen::MatrixXf(3, 1) << 5, 7, none).finished());
}

template <class Scalar>
class MergeOf : public ::testing::Test {};
TYPED_TEST_SUITE(MergeOf, Scalars, support::ScalarNames);

// Some frameworks leave NaN or infinities where a row saw no key; a sign of zero is kept as well.
TYPED_TEST(MergeOf, ASideWithoutKeysWhateverItHolds) {
  using M = Matrix<TypeParam>;
  const auto number = [](double x) { return TypeParam(attn::compute_t<TypeParam>(x)); };
  const double none = -kInfinity<double>;
  for (const double junk : {kNaN<double>, -none, none}) {
    M a(3, 4), b(3, 4), la(3, 2), lb(3, 2), expected(3, 4), expected_l(3, 2), l;
    for (Index i = 0; i < 3; ++i) {
      for (Index c = 0; c < 4; ++c) {  // row 0: a has keys; row 1: b; row 2: neither
        const TypeParam seen = number(c == 3 ? -0.0 : double(c) - 1.5);
        a(i, c) = i == 0 ? seen : number(junk);
        b(i, c) = i == 1 ? seen : number(junk);
        expected(i, c) = i == 2 ? number(0) : seen;
      }
      for (Index h = 0; h < 2; ++h) {
        la(i, h) = number(i == 0 ? 5 : none);
        lb(i, h) = number(i == 1 ? -7 : none);
        expected_l(i, h) = i == 0 ? la(i, h) : lb(i, h);
      }
    }
    EXPECT_TRUE(same_bits(M(attn::merge(a, la, b, lb, attn::save_logsumexp(l))), expected));
    EXPECT_TRUE(same_bits(l, expected_l));
    EXPECT_TRUE(same_bits(M(attn::merge(b, lb, a, la)), expected));
    attn::merge(a, la, b, lb, attn::into(b), attn::save_logsumexp(la));
    EXPECT_TRUE(same_bits(b, expected) && same_bits(la, expected_l));
  }
}

TEST(SoftmaxState, WithoutScoresIsTheOtherHoweverItSaysSo) {
  const double none = -kInfinity<double>;
  attn::SoftmaxState<double> some;
  some.update(-1000);
  for (const double maximum : {attn::SoftmaxState<double>().maximum, none, -none, kNaN<double>}) {
    const attn::SoftmaxState<double> empty{maximum, 0};
    for (const auto& merged : {attn::merge(empty, some), attn::merge(some, empty)}) {
      EXPECT_EQ(merged.maximum, -1000);
      EXPECT_EQ(merged.sum, 1);
    }
    EXPECT_EQ(attn::merge(empty, empty).logsumexp(), none);
  }
}

TEST(Merge, RefusesShapesThatDoNotFit) {
  const Eigen::MatrixXf a = Eigen::MatrixXf::Zero(3, 4), l = Eigen::MatrixXf::Zero(3, 2);
  Eigen::MatrixXf y = a;
  EXPECT_EQ(error_of([&] { (void)attn::merge(a, l, a.topRows(2), l); }),
            "attn::merge: the second output is 2x4, needs 3x4");
  EXPECT_EQ(error_of([&] { (void)attn::merge(a, l.topRows(1), a, l); }),
            "attn::merge: the first logsumexp is 1x2, needs 3x2");
  EXPECT_EQ(error_of([&] { (void)attn::merge(a, l, a, l.leftCols(1)); }),
            "attn::merge: the second logsumexp is 3x1, needs 3x2");
  const Eigen::MatrixXf three = Eigen::MatrixXf::Zero(3, 3);
  EXPECT_EQ(
      error_of([&] { (void)attn::merge(a, three, a, three); }),
      "attn::merge: the outputs have 4 columns, need a multiple of the 3 columns of logsumexp");
  EXPECT_NE(error_of([&] { attn::merge(y, l, a, l, attn::into(y.transpose())); }),
            "nothing was refused");
}

// A row is padded to whole panels; behind its keys a table of blocks has no entries (AnyMask expects keys that are there).
TEST(SoftmaxOption, IsAMaskThatIsAskedForKeysThatAreThere) {
  for (const Index n : {1, 3, 4, 5, 31, 33, 257, 8193}) {
    const RowMajor<float> s = random_scores<float>(2, n, 3);
    const support::AnyMask mask(attn::window(-1, n - 2));
    EXPECT_TRUE(same_bits(attn::softmax(s, mask), attn::softmax(s, attn::window(-1, n - 2))))
        << n << " columns";
  }
}
TEST(SoftmaxOption, AreMasksOfAllKinds) {
  const Matrix<float> s = support::uniform<float>(40, 40, 8, 3);
  const std::vector<int> ids(40, 2), parents = {-1, 0, 0, 1};
  const auto blocks = support::random_bools(4, 4, 9);
  const auto seen = attn::segments(ids) &&
                    (attn::tree(parents) || attn::block_sparse(blocks, 10)) &&
                    attn::mask([](Index query, Index key) { return key != query - 1; });
  const auto sees = [&](Index i, Index j) {
    const Index token = i - 36, key = j - 36;  // the tree's four tokens are the last rows
    const bool ancestor = key < 0 || key == token || key == 0 || (token == 3 && key == 1);
    const bool in_tree = token < 0 ? j <= i : ancestor && key <= token;
    return (in_tree || blocks(i / 10, j / 10)) && j != i - 1;
  };
  Eigen::Matrix<bool, -1, -1> B(40, 40);
  for (Index i = 0; i < 40; ++i) {
    for (Index j = 0; j < 40; ++j) B(i, j) = sees(i, j);
  }
  const Matrix<float> p = attn::softmax(s, seen), expected = attn::softmax(s, attn::keep(B));
  EXPECT_TRUE((p.array() == expected.array()).all());
}

}  // namespace
