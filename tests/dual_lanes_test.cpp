// tests/dual_lanes_test.cpp: a score functor called with the score and its slope: the values of lanes, the slopes of
// differences.
// SPDX-License-Identifier: MIT
#include <attn/dual_lanes.h>
#include <attn/score.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "support/scalar_names.h"

namespace {

using attn::Dual;
using attn::Index;

const std::vector<float> kTable = {0.5f, -1, 2, 0.25f, 3};

/// Generic functors: everything that lanes offer, alone and together.
struct Plain {
  template <class Score, class At>
  auto operator()(Score s, const At& at) const {
    return s * 1.5f - 0.3f * abs(at.query - at.key) + at.head * 0.25f;
  }
};
struct Square {
  template <class Score, class At>
  auto operator()(Score s, const At&) const {
    return s * s - 2 * s;
  }
};
struct Quotients {
  template <class Score, class At>
  auto operator()(Score s, const At& at) const {
    return s / (3 + abs(s)) + 1 / (s * s + 2) - at.query / (4 + s) + s / 7;
  }
};
struct Exponentials {
  template <class Score, class At>
  auto operator()(Score s, const At&) const {
    return exp(s / 2) + 3 * tanh(s * 0.25f) - tanh(-s);
  }
};
struct Clamped {
  template <class Score, class At>
  auto operator()(Score s, const At& at) const {
    return min(max(s, -1.25f), 2.f) + max(at.key * 0.5f, s) - min(s, at.query) * 2 + abs(s);
  }
};
struct Selected {
  template <class Score, class At>
  auto operator()(Score s, const At& at) const {
    return select(at.query - at.key <= 2, s * s, -std::numeric_limits<float>::infinity()) +
           select(s > 0.3f || s != s, s, 0.125f) - select(s >= 1 && !(s < 2), 3 - s, at.key);
  }
};
struct Stepwise {
  template <class Score, class At>
  auto operator()(Score s, const At& at) const {
    auto x = s;
    x += at.key;
    x *= s;
    x -= 2;
    x /= 3;
    decltype(s) y = 0.5f;
    y = y + -x;
    return y + lookup(kTable, at.query - at.key) + lookup(kTable, s) * s;
  }
};
struct Shape {
  template <class Score, class At>
  auto operator()(Score s, const At& at) const {
    static_assert(decltype(s)::width >= 1);
    using Scalar = typename Score::Scalar;
    return Scalar(2) * s + kTable[std::size_t(at.head)];
  }
};
/// These have no slope.
struct Distance {
  template <class Score, class At>
  auto operator()(Score, const At& at) const {
    return abs(at.query - at.key);
  }
};
struct Number {
  template <class Score, class At>
  auto operator()(Score, const At& at) const {
    return 1.5 * double(Index(at.head));
  }
};

template <class Scalar>
class DualLanes : public ::testing::Test {
 public:
  using S = attn::detail::Simd<Scalar>;
  using Row = attn::QueryRow;
  static constexpr Row row() { return {1, 2, 3, 8, 5, 40}; }

  struct Result {
    alignas(64) Scalar score[S::width], slope[S::width];
  };
  template <class Rule>
  static Result sloped(const Rule& rule, const Scalar (&s)[S::width], Index key) {
    Result result;
    typename S::Packet slope;
    S::store(result.score, rule.template apply_with_slope<S>(S::load(s), row(), key,
                                                             S::first_lanes(S::width), slope));
    S::store(result.slope, slope);
    return result;
  }
  template <class Rule>
  static Result plain(const Rule& rule, const Scalar (&s)[S::width], Index key) {
    Result result;
    S::store(result.score, rule.template apply<S>(S::load(s), row(), key));
    return result;
  }

  /// Scores have the bits of the forward pass; slopes are those of central differences.
  template <class Rule>
  static void expect_slopes(const Rule& rule) {
    const Scalar step = std::cbrt(std::numeric_limits<Scalar>::epsilon()) / 2,
                 tolerance = 60 * step * step;
    for (int n = 0; n < 40; ++n) {
      alignas(64) Scalar s[S::width], up[S::width], down[S::width];
      for (int w = 0; w < S::width; ++w) {
        s[w] = Scalar(-2.979) + Scalar(3 * n + w) / 20;  // away from all steps and kinks
        up[w] = s[w] + step;
        down[w] = s[w] - step;
      }
      const Result result = sloped(rule, s, n), value = plain(rule, s, n),
                   above = plain(rule, up, n), below = plain(rule, down, n);
      for (int w = 0; w < S::width; ++w) {
        ASSERT_EQ(result.score[w], value.score[w]);
        if (!std::isfinite(value.score[w])) continue;
        const Scalar difference = (above.score[w] - below.score[w]) / (up[w] - down[w]);
        EXPECT_NEAR(double(result.slope[w]), double(difference),
                    double(tolerance * (3 + std::abs(difference))))
            << "at score " << s[w] << ", key " << n + w;
      }
    }
  }
  template <class F>
  static void expect_slopes_of(const F& f) {
    expect_slopes(attn::detail::BoundLanesFunctor<F>(f));
  }
};
using Scalars = ::testing::Types<float, double, long double>;
TYPED_TEST_SUITE(DualLanes, Scalars, support::ScalarNames);

TYPED_TEST(DualLanes, HaveTheValuesOfLanesAndTheSlopesOfDifferences) {
  this->expect_slopes_of(Plain());
  this->expect_slopes_of(Square());
  this->expect_slopes_of(Quotients());
  this->expect_slopes_of(Exponentials());
  this->expect_slopes_of(Clamped());
  this->expect_slopes_of(Selected());
  this->expect_slopes_of(Stepwise());
  this->expect_slopes_of(Shape());
}

TYPED_TEST(DualLanes, ThatAreIgnoredHaveNoSlope) {
  this->expect_slopes_of(Distance());
  this->expect_slopes_of(Number());
}

TYPED_TEST(DualLanes, OfASoftcapHaveItsSlope) {
  this->expect_slopes(attn::detail::BoundSoftcap<TypeParam>(TypeParam(1.5), 1 / TypeParam(1.5)));
}

TYPED_TEST(DualLanes, AtAKinkHaveTheSlopeThatIsSaid) {
  using T = TypeParam;
  using Simd = attn::detail::Simd<T>;
  const auto slope = [](const auto& f, T score) {
    using F = std::decay_t<decltype(f)>;
    alignas(64) T s[Simd::width];
    for (T& lane : s) lane = score;
    return TestFixture::sloped(attn::detail::BoundLanesFunctor<F>(f), s, 3).slope[0];
  };
  EXPECT_EQ(slope([](auto s, auto) { return abs(s); }, 0), 0);
  EXPECT_EQ(slope([](auto s, auto) { return abs(s); }, -2), -1);
  EXPECT_EQ(slope([](auto s, auto) { return max(s, 1); }, 1), 1);
  EXPECT_EQ(slope([](auto s, auto) { return max(1, s); }, 1), 0);
  EXPECT_EQ(slope([](auto s, auto) { return min(s, 1); }, 1), 1);
  EXPECT_EQ(slope([](auto s, auto) { return min(1, s); }, 1), 0);
}

// ---- One key at a time ------------------------------------------------------------------------

struct OneByOne {
  template <class Score>
  auto operator()(Score s, const attn::At& at) const {
    using std::abs, std::exp, std::max, std::min, std::tanh;
    if (s > 1) return s * s - 0.5f * s;
    Score x = float(at.key) / 8;
    x += exp(min(s, Score(0.5f))) - tanh(2 - s) / (1 + abs(s));
    x -= max(s, Score(-2)) * kTable[std::size_t(at.head)];
    x *= s == 0 || s != s ? 0.5f : 2.f;
    return int(s) >= -1 ? x : -x;
  }
};
struct IgnoresTheScore {
  template <class Score>
  float operator()(Score, const attn::At& at) const {
    return float(at.key);
  }
};

/// The rule of score(option…) in this scalar.
template <class Scalar, class Option>
auto bound(const Option& option) {
  return option.template bind<Scalar>(0);
}

TYPED_TEST(DualLanes, OfOneKeyAtATimeAreNumbersWithSlopes) {
  this->expect_slopes(bound<TypeParam>(attn::score(attn::one_by_one(OneByOne()))));
  this->expect_slopes(bound<TypeParam>(attn::score(attn::one_by_one(IgnoresTheScore()))));
}

TYPED_TEST(DualLanes, MayBeGivenAsAFunctorOfTheSlope) {
  using T = TypeParam;
  const auto f = [](T s, attn::At at) { return std::sin(s) * T(at.key + 1); };
  const auto slope = [](T s, attn::At at) { return std::cos(s) * T(at.key + 1); };
  this->expect_slopes(bound<T>(attn::score(f, slope)));
  this->expect_slopes(
      bound<T>(attn::score([](T s, attn::At) { return 3 * s; }, [](T, attn::At) { return T(3); })));
  const auto generic = [](auto s, auto) { return std::log1p(std::exp(s)); };
  this->expect_slopes(bound<T>(attn::score(attn::one_by_one(generic),
                                           [](T s, attn::At) { return 1 / (1 + std::exp(-s)); })));
}

TYPED_TEST(DualLanes, OfOneKeyAtATimeAreAskedForOnlyWhereTheyAreSeen) {
  using T = TypeParam;
  using Simd = attn::detail::Simd<T>;
  int strange = 0;
  const auto slope = [&](T, attn::At at) {
    strange += at.key != 7;
    return T(2);
  };
  const auto option = attn::score([](T s, attn::At) { return 2 * s; }, slope);
  const auto rule = bound<T>(option);
  const auto s = Simd::set(T(1));
  typename Simd::Packet slopes;
  (void)rule.template apply_with_slope<Simd>(s, TestFixture::row(), 7, Simd::first_lanes(1),
                                             slopes);
  EXPECT_EQ(Simd::first(slopes), T(2));
  const auto none =
      rule.template apply_with_slope<Simd>(s, TestFixture::row(), 9, Simd::first_lanes(0), slopes);
  EXPECT_EQ(Simd::first(none), T(1));
  EXPECT_EQ(Simd::first(slopes), T(0));
  EXPECT_EQ(strange, 0);
}

}  // namespace
