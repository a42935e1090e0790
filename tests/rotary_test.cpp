// tests/rotary_test.cpp: rotary positions: by hand, against the oracle, and as an option of attention.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>

#include <cmath>
#include <vector>

#include "support/error_of.h"
#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/reference_rotary.h"
#include "support/scalar_names.h"

namespace {

using attn::pairing;
using attn::rotary;
using attn::rotate;
using Eigen::Index;
using Eigen::MatrixXd;
using Eigen::MatrixXf;
using support::counted;
using support::DynamicMatrix;
using support::error_of;
using support::near;
using support::reference_rotary;
using support::same_bits;
using support::uniform;

template <class Scalar>
class Rotary : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, long double>;
TYPED_TEST_SUITE(Rotary, Scalars, support::ScalarNames);

// Position 1, four features, base 10000: the angles of the two pairs are 10000^0 = 1 and 10000^(−2/4) = 0.01.
//   cos 1 = 0.5403023, sin 1 = 0.8414710, cos 0.01 = 0.9999500, sin 0.01 = 0.0099998
//   interleaved  (1, 2) → (1·0.5403 − 2·0.8415, 1·0.8415 + 2·0.5403) = (−1.1426396, 1.9220756)
//                (3, 4) → (3·0.99995 − 4·0.0099998, 3·0.0099998 + 4·0.99995) = (2.9598507, 4.0297995)
//   half_split   (1, 3) → (1·0.5403 − 3·0.8415, 1·0.8415 + 3·0.5403) = (−1.9841106, 2.4623779)
//                (2, 4) → (2·0.99995 − 4·0.0099998, 2·0.0099998 + 4·0.99995) = (1.9599007, 4.0197997)
TYPED_TEST(Rotary, TurnsPairsByHand) {
  using Row = Eigen::Matrix<TypeParam, 1, 4>;
  const Row x(1, 2, 3, 4);
  const auto one = attn::query_offset(1);
  EXPECT_TRUE(near(rotate(x, rotary(pairing::interleaved), one),
                   Row(TypeParam(-1.1426396638), TypeParam(1.9220755966), TypeParam(2.9598506679),
                       TypeParam(4.0297995017)),
                   1e-6));
  EXPECT_TRUE(near(rotate(x, rotary(pairing::half_split), one),
                   Row(TypeParam(-1.9841106487), TypeParam(1.9599006675), TypeParam(2.4623779024),
                       TypeParam(4.0197996683)),
                   1e-6));
}

// A quarter turn a position: base 1 gives every pair the angle 1, given tables any other.
TYPED_TEST(Rotary, TurnsByGivenCosinesAndSines) {
  using Matrix = Eigen::Matrix<TypeParam, Eigen::Dynamic, Eigen::Dynamic>;
  Matrix x(4, 3), expected(4, 3), cosines(4, 1), sines(4, 1);
  x << 1, 2, 7, 1, 2, 7, 1, 2, 7, 1, 2, 7;
  cosines << 1, 0, -1, 0;
  sines << 0, 1, 0, -1;
  expected << 1, 2, 7, -2, 1, 7, -1, -2, 7, 2, -1, 7;
  EXPECT_EQ(rotate(x, rotary(pairing::interleaved, cosines, sines)), expected);
  EXPECT_EQ(rotate(x, rotary(pairing::half_split, cosines, sines)), expected);
}

TYPED_TEST(Rotary, AgreesWithTheOracleAtEveryWidth) {
  const double tolerance = std::is_same_v<TypeParam, float> ? 4e-7 : 1e-14;
  constexpr Index W = attn::detail::Simd<TypeParam>::width;
  for (const bool interleaved : {false, true}) {
    for (const Index d : {Index(2), Index(4), Index(6), 2 * W - 2, 2 * W, 2 * W + 2, Index(74)}) {
      if (d < 2) continue;
      for (const Index dims : {Index(2), d / 4 * 2, d}) {
        if (dims < 2) continue;
        const auto x = uniform<TypeParam>(70, 3 * d, 1);
        const auto turn =
            rotary(interleaved ? pairing::interleaved : pairing::half_split, 500).dims(dims);
        const auto y = rotate(attn::heads(x, 3), turn, attn::query_offset(-3));
        EXPECT_TRUE(near(
            y, reference_rotary(support::widened(x), 3, counted(70, -3), {interleaved, 500, dims}),
            tolerance))
            << d << " features, " << dims << " turn, interleaved " << interleaved;
      }
    }
  }
}

TEST(RotaryAngles, StayExactAtLargePositions) {
  const MatrixXf x = uniform<float>(3, 64, 2);
  for (const Index first : {Index(4095), Index(131071), Index(1000003)}) {
    EXPECT_TRUE(near(rotate(x, rotary(pairing::half_split), attn::query_offset(first)),
                     reference_rotary(support::widened(x), 1, counted(3, first)), 4e-7));
  }
}

// ---- Positions ----------------------------------------------------------------------------

TEST(RotaryPositions, AreThoseOfEachSequence) {
  const MatrixXf x = uniform<float>(9, 12, 3);
  const auto turn = rotary(pairing::half_split);
  const std::vector<Index> offsets{0, 4, 4, 9};
  EXPECT_TRUE(near(rotate(attn::heads(x, 2), turn, attn::sequences(offsets)),
                   reference_rotary(support::widened(x), 2, {0, 1, 2, 3, 0, 1, 2, 3, 4}), 4e-7));
  EXPECT_TRUE(
      near(rotate(attn::heads(x, 2), turn, attn::sequences(offsets), attn::query_offset({7, 9, 2})),
           reference_rotary(support::widened(x), 2, {7, 8, 9, 10, 2, 3, 4, 5, 6}), 4e-7));
  EXPECT_TRUE(near(rotate(attn::heads(x, 2), turn, attn::sequence_length(3)),
                   reference_rotary(support::widened(x), 2, {0, 1, 2, 0, 1, 2, 0, 1, 2}), 4e-7));
  EXPECT_TRUE(near(rotate(attn::heads(x, 2), turn.positions({5, 1, 8}), attn::sequence_length(3)),
                   reference_rotary(support::widened(x), 2, {5, 1, 8, 5, 1, 8, 5, 1, 8}), 4e-7));
  const std::vector<Index> each{5, 1, 8, 0, 0, 3, 2, 6, 100};
  EXPECT_TRUE(near(rotate(attn::heads(x, 2), turn.positions(each), attn::sequence_length(3)),
                   reference_rotary(support::widened(x), 2, each), 4e-7));
}

TEST(RotaryPositions, ChooseRowsOfGivenTables) {
  const MatrixXf x = uniform<float>(5, 8, 4), cosines = uniform<float>(50, 2, 5),
                 sines = uniform<float>(50, 2, 6);
  const MatrixXf y =
      rotate(x, rotary(pairing::half_split, cosines, sines).positions({49, 0, 7, 7, 21}));
  const Index rows[] = {49, 0, 7, 7, 21};
  MatrixXd expected = x.cast<double>();
  for (Index r = 0; r < 5; ++r) {
    for (Index i = 0; i < 2; ++i) {
      const double a = x(r, i), b = x(r, i + 2), c = cosines(rows[r], i), s = sines(rows[r], i);
      expected(r, i) = a * c - b * s;
      expected(r, i + 2) = a * s + b * c;
    }
  }
  EXPECT_TRUE(near(y, expected, 4e-7));
}

// ---- Operands ----------------------------------------------------------------------------

TEST(RotaryOperands, HaveTheSameBitsInEveryLayout) {
  const Index B = 2, H = 3, L = 5, d = 10;
  const auto turn = rotary(pairing::interleaved).dims(6);
  const DynamicMatrix<float> x = uniform<float>(B * L, H * d, 7);
  const DynamicMatrix<float> y =
      rotate(attn::heads(x, H), turn, attn::sequence_length(L), attn::query_offset(11));

  const MatrixXf columns = x;
  EXPECT_TRUE(
      same_bits(DynamicMatrix<float>(rotate(attn::heads(columns, H), turn, attn::sequence_length(L),
                                            attn::query_offset(11))),
                y));
  DynamicMatrix<float> in_place = x;
  rotate(attn::heads(in_place, H), turn, attn::into(in_place), attn::sequence_length(L),
         attn::query_offset(11));
  EXPECT_TRUE(same_bits(in_place, y));

  std::vector<float> memory(std::size_t(B * H * L * d));  // [B, H, L, d]
  for (Index b = 0; b < B; ++b)
    for (Index h = 0; h < H; ++h)
      for (Index i = 0; i < L; ++i)
        for (Index c = 0; c < d; ++c)
          memory[std::size_t(((b * H + h) * L + i) * d + c)] = x(b * L + i, h * d + c);
  DynamicMatrix<float> z(B * L, H * d);
  attn::Workspace<float> workspace;
  rotate(attn::bhld(memory.data(), B, H, L, d), turn, attn::query_offset(11),
         attn::into(attn::blhd(z.data(), B, L, H, d)), attn::use(workspace));
  EXPECT_TRUE(same_bits(z, y));
}

TEST(RotaryOperands, OfHalfAreTurnedInFloat) {
  using Halves = DynamicMatrix<Eigen::half>;
  const Halves x = uniform<Eigen::half>(6, 16, 8);
  const auto turn = rotary(pairing::half_split);
  const DynamicMatrix<float> wide = rotate(DynamicMatrix<float>(x.cast<float>()), turn);
  EXPECT_TRUE(same_bits(rotate(x, turn), Halves(wide.cast<Eigen::half>())));
}

// ---- As an option of attention -------------------------------------------------------------

/// Attention under the option has the bits of attention over operands turned beforehand.
TEST(RotaryOption, IsRotateBeforehand) {
  struct Sizes {
    Index heads, kv_heads, d;
    std::vector<Index> queries, keys, offsets;
  };
  const std::vector<Sizes> cases = {
      {1, 1, 8, {0, 7}, {0, 7}, {0}},
      {4, 2, 20, {0, 300}, {0, 301}, {1}},
      {2, 1, 66, {0, 3, 3, 40}, {0, 300, 301, 333}, {0, 5, -2}},
      {2, 2, 6, {0, 3, 9}, {0, 33}, {30, 27}},
  };
  for (const Sizes& c : cases) {
    const auto Q = uniform<float>(c.queries.back(), c.heads * c.d, 1, 2),
               K = uniform<float>(c.keys.back(), c.kv_heads * c.d, 2, 2),
               V = uniform<float>(c.keys.back(), c.kv_heads * 5, 3);
    for (const pairing pairs : {pairing::interleaved, pairing::half_split}) {
      const auto turn = rotary(pairs).dims(c.d / 4 * 2 + 2);
      const auto attend = [&](const auto& q, const auto& k, auto... more) {
        return DynamicMatrix<float>(attn::attention(
            attn::heads(q, c.heads), attn::heads(k, c.kv_heads), attn::heads(V, c.kv_heads),
            attn::sequences(c.queries, c.keys), attn::causal_from(c.offsets), more...));
      };
      const DynamicMatrix<float> turned_q = rotate(
          attn::heads(Q, c.heads), turn, attn::sequences(c.queries), attn::query_offset(c.offsets));
      const DynamicMatrix<float> turned_k =
          rotate(attn::heads(K, c.kv_heads), turn, attn::sequences(c.keys));
      EXPECT_TRUE(same_bits(attend(Q, K, turn), attend(turned_q, turned_k)));
      EXPECT_FALSE(same_bits(attend(Q, K, turn), attend(Q, K))) << "nothing turned";
    }
  }
}

TEST(RotaryOption, TakesExplicitPositionsOfQueriesAndKeys) {
  const auto Q = uniform<float>(4, 8, 1), K = uniform<float>(6, 8, 2), V = uniform<float>(6, 3, 3);
  const auto turn = rotary(pairing::half_split);
  const std::vector<int> of_queries{3, 9, 1, 1}, of_keys{0, 0, 5, 40, 2, 7};
  const DynamicMatrix<float> turned_q = rotate(Q, turn.positions(of_queries)),
                             turned_k = rotate(K, turn.positions(of_keys));
  EXPECT_TRUE(same_bits(attn::attention(Q, K, V, turn.positions(of_queries, of_keys)),
                        attn::attention(turned_q, turned_k, V)));
  const DynamicMatrix<float> square_q = rotate(Q, turn.positions(of_queries));
  const auto keys = K.topRows(4), values = V.topRows(4);
  const DynamicMatrix<float> square_k = rotate(keys, turn.positions(of_queries));
  EXPECT_TRUE(same_bits(attn::attention(Q, keys, values, turn.positions(of_queries)),
                        attn::attention(square_q, square_k, values)));
}

TEST(RotaryOption, TakesExplicitPositionsOfEachSequence) {
  const auto Q = uniform<float>(6, 8, 1), K = uniform<float>(7, 8, 2), V = uniform<float>(7, 3, 3);
  const auto turn = rotary(pairing::half_split);
  const std::vector<int> of_queries{3, 9, 1, 1, 0, 2}, of_keys{0, 8, 5, 40, 2, 7, 3};
  const DynamicMatrix<float> turned_q = rotate(Q, turn.positions(of_queries)),
                             turned_k = rotate(K, turn.positions(of_keys));
  const auto batch = attn::sequences({0, 2, 6}, {0, 3, 7});
  EXPECT_TRUE(same_bits(attn::attention(Q, K, V, batch, turn.positions(of_queries, of_keys)),
                        attn::attention(turned_q, turned_k, V, batch)));
}

TEST(RotaryOption, MakesScoresDependOnDistanceAlone) {
  const MatrixXd Q = uniform<double>(9, 16, 1), K = Q, V = uniform<double>(9, 4, 3);
  const auto turn = rotary(pairing::interleaved);
  const MatrixXd near_start = attn::attention(Q, K, V, turn);
  const auto later = counted(9, 1000);
  EXPECT_TRUE(near(attn::attention(Q, K, V, turn.positions(later)), near_start, 1e-12));
}

TEST(RotaryOption, ServesFixedSizesAndSeveralThreads) {
  const Eigen::Matrix<float, 10, 16, Eigen::RowMajor> Q = uniform<float>(10, 16, 1);
  const DynamicMatrix<float> dynamic = Q;
  const auto turn = rotary(pairing::half_split).dims(12);
  const DynamicMatrix<float> expected = attn::attention(dynamic, dynamic, dynamic, turn);
  EXPECT_TRUE(same_bits(DynamicMatrix<float>(attn::attention(Q, Q, Q, turn)), expected));
  EXPECT_TRUE(
      same_bits(attn::attention(dynamic, dynamic, dynamic, turn, attn::parallel(3)), expected));
}

TEST(RotaryOption, DoesNotTouchKeysThatNobodySees) {
  auto K = uniform<float>(70, 8, 2);
  const auto Q = uniform<float>(70, 8, 1), V = uniform<float>(70, 8, 3);
  const auto turn = rotary(pairing::half_split);
  const DynamicMatrix<float> before = attn::attention(Q, K, V, turn, attn::key_lengths(41));
  K.bottomRows(29).setConstant(std::nanf(""));
  EXPECT_TRUE(same_bits(attn::attention(Q, K, V, turn, attn::key_lengths(41)), before));
}

// ---- Errors -------------------------------------------------------------------------------

TEST(RotaryErrors, NameWhatDoesNotFit) {
  const MatrixXf x = uniform<float>(5, 12, 1), cosines = uniform<float>(4, 2, 1),
                 sines = uniform<float>(4, 3, 1);
  const auto refusal = [&](const auto& turn, auto... options) {
    MatrixXf y = MatrixXf::Constant(1, 1, 7);
    const auto message =
        error_of([&] { rotate(attn::heads(x, 2), turn, attn::into(y), options...); });
    EXPECT_EQ(y, MatrixXf::Constant(1, 1, 7));
    return message;
  };
  const auto turn = rotary(pairing::interleaved);
  const auto sizes = [](const std::string& n) {
    return "attn::rotate: rotary: a head has 6 features, " + n +
           " are to turn, two by two: needs an even number from 2 to 6, as .dims(n) says it";
  };
  EXPECT_EQ(refusal(turn.dims(8)), sizes("8"));
  EXPECT_EQ(refusal(turn.dims(3)), sizes("3"));
  EXPECT_EQ(refusal(turn.dims(-2)), sizes("-2"));
  EXPECT_EQ(refusal(turn.dims(0)), sizes("0"));
  EXPECT_EQ(refusal(rotary(pairing::half_split, 0)),
            "attn::rotate: rotary: the base is 0, needs a finite number above zero under which all "
            "angles are finite");
  EXPECT_EQ(refusal(turn.positions({1, 2, 3})),
            "attn::rotate: rotary: 3 positions for the 5 rows of X; needs one for each");
  EXPECT_EQ(refusal(turn.positions({1, 2, 3}), attn::sequences({0, 1, 5})),
            "attn::rotate: rotary: 3 positions for the 5 rows of X; needs one for each, or 4 that "
            "serve every sequence");
  const auto given = rotary(pairing::half_split, cosines, MatrixXf(sines.leftCols(2)));
  EXPECT_EQ(refusal(given),
            "attn::rotate: rotary: X position 4 is not among the 4 rows of cosines and sines");
  EXPECT_EQ(refusal(given.positions({0, 1, -1, 2, 3})),
            "attn::rotate: rotary: X position -1 is not among the 4 rows of cosines and sines");
  EXPECT_EQ(refusal(given.dims(6).positions({0, 1, 1, 2, 3})),
            "attn::rotate: rotary: the cosines have 2 columns, 6 features that turn need 3");
  EXPECT_EQ(refusal(rotary(pairing::half_split, cosines, sines)),
            "attn::rotate: rotary: the cosines are 4x2, the sines 4x3; both need one shape");
  EXPECT_EQ(error_of([&] {
              (void)attn::attention(x, x, x, given.positions({0, 1, 1, 2, 3}, {3}));
            }),
            "attn::attention: rotary: 1 position for the 5 rows of key; needs one for each");
  MatrixXf wide = uniform<float>(5, 13, 1);
  EXPECT_EQ(error_of([&] { rotate(wide.leftCols(12), turn, attn::into(wide.rightCols(12))); }),
            "attn::rotate: output overlaps X without being the same matrix; write to memory of its "
            "own");
}

}  // namespace
