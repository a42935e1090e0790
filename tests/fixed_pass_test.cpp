// tests/fixed_pass_test.cpp: which calls of known sizes take the pass that is compiled for them, what
// they take of the stack, and queries of stride 0.
// SPDX-License-Identifier: MIT
#include <attn/attention.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>

#include "support/matrix_matchers.h"
#include "support/random.h"

namespace {

using Eigen::Index;

template <class T>
T& some();
/// The problem that attend() makes of a call's types.
template <class Scalar, class Source, class Asked, class Query, class Into>
auto problem_of(const attn::detail::CallShape& shape, const Source& source, const Asked& asked,
                const attn::detail::Operand<Query>& query, const Into& into) {
  const attn::detail::BoundOptions<Scalar, Source, Asked> bound(shape, source, asked);
  return bound.problem(query, into.prepare(shape, into.check(shape)).to, attn::detail::Absent{},
                       attn::detail::prepare_saved(bound, asked).targets(),
                       attn::detail::parts_of<Scalar>(shape, asked));
}
/// Whether attention(Q, K, V, into(Y), options…) of these types has a pass of its own.
template <class Q, class K, class V, class Y, class... Options>
constexpr bool takes_fixed_pass() {
  using namespace attn::detail;
  using Into = decltype(attn::into(some<Y>()));
  using Asked = attn::detail::Asked<Options..., Into>;
  using Given = GivenMatrices<const K, const V>;
  using Call = GivenCall<const Q&, Given, Asked>;
  using Scalar = attn::compute_t<typename Q::Scalar>;
  using Problem =
      decltype(problem_of<Scalar>(some<CallShape>(), some<const Call>().source, some<const Asked>(),
                                  some<const Call>().query(), some<const Into>()));
  using Sizes = FixedSizes<Q::RowsAtCompileTime, Q::ColsAtCompileTime, K::RowsAtCompileTime,
                           V::ColsAtCompileTime>;
  return attn::kernel::has_fixed_pass_v<Problem, Sizes> &&
         StackScratch<Scalar, Sizes, Asked>::kFits;
}
template <class Scalar, int Rows, int KeyDim, int Keys, int ValueDim, class... Options>
constexpr bool takes_fixed_pass_of() {
  return takes_fixed_pass<Eigen::Matrix<Scalar, Rows, KeyDim>, Eigen::Matrix<Scalar, Keys, KeyDim>,
                          Eigen::Matrix<Scalar, Keys, ValueDim>,
                          Eigen::Matrix<Scalar, Rows, ValueDim>, Options...>();
}

template <class Scalar>
inline constexpr bool has_packets_v = attn::detail::Simd<Scalar>::width > 1;

static_assert(takes_fixed_pass_of<float, 8, 8, 8, 8>() == has_packets_v<float>);
static_assert(takes_fixed_pass_of<float, 16, 32, 16, 32>() == has_packets_v<float>);
static_assert(takes_fixed_pass_of<float, 13, 9, 35, 41>() == has_packets_v<float>);
static_assert(takes_fixed_pass_of<float, 64, 64, 64, 64>() == has_packets_v<float>);
static_assert(takes_fixed_pass_of<double, 17, 6, 11, 12>() == has_packets_v<double>);
static_assert(takes_fixed_pass_of<Eigen::bfloat16, 12, 10, 12, 10>() == has_packets_v<float>);
static_assert(takes_fixed_pass_of<float, 8, 8, 8, 8, decltype(attn::softcap(2.f)),
                                  decltype(attn::bias(some<const Eigen::MatrixXf>()))>() ==
              has_packets_v<float>);
static_assert(!takes_fixed_pass_of<float, Eigen::Dynamic, 8, 8, 8>());
static_assert(!takes_fixed_pass_of<float, 65, 8, 8, 8>());
static_assert(!takes_fixed_pass_of<float, 8, 8, 8, 8, decltype(attn::causal())>());
static_assert(!takes_fixed_pass_of<float, 8, 8, 8, 8, decltype(attn::dropout(0.1, 1))>());

// (The address sanitizer surrounds each variable with memory of its own.)
#if defined(__GNUC__) && !defined(__SANITIZE_ADDRESS__)
std::uintptr_t here() { return reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0)); }

// A functor is called from within either pass, so that it sees how deep that is. Where a value is not
// finite the pass of its own gives up, and what it took is given back before the general one begins.
TEST(FixedPass, TakesTheStackOnceAlsoWhereItGivesUp) {
  using Square = Eigen::Matrix<float, 64, 64>;
  const Square X = support::uniform<float>(64, 64, 1);
  Square V = X, Y;
  std::uintptr_t deepest = 0;
  const auto score = attn::score([&deepest](float s, attn::At) {
    deepest = std::min(deepest, here());
    return s;
  });
  for (const float value : {1.0f, std::numeric_limits<float>::infinity()}) {
    V(3, 5) = value;
    const std::uintptr_t top = deepest = here();
    attn::attention(X, X, V, attn::into(Y), score);
    EXPECT_LT(top - deepest, std::uintptr_t(EIGEN_STACK_ALLOCATION_LIMIT + 16 * 1024)) << value;
    EXPECT_GT(top - deepest, std::uintptr_t(32 * 1024)) << value;
  }
}
#endif

// All features of a row are one number; a depth step of keys is filled up with zeros.
TEST(FixedPass, QueriesOfStrideZeroHaveTheBitsOfDynamicOnes) {
  using Rows = Eigen::Matrix<float, 5, 9, Eigen::RowMajor>;
  using Stride = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
  const Eigen::Matrix<float, 7, 9> K = support::uniform<float>(7, 9, 1).cwiseAbs();
  const Eigen::Matrix<float, 7, 6> V = support::uniform<float>(7, 6, 2);
  for (const float last :
       {0.5f, std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    const float numbers[] = {0.25f, -1, 2, 0, last};
    const Eigen::Map<const Rows, 0, Stride> Q(numbers, Stride(1, 0));
    const Eigen::MatrixXf q = Q, k = K, v = V;
    const Eigen::Matrix<float, 5, 6> Y = attn::attention(Q, K, V);
    const Eigen::MatrixXf expected = attn::attention(q, k, v);
    EXPECT_TRUE(support::same_bits(Y.topRows(4), expected.topRows(4)));
    for (Index c = 0; c < 6; ++c) {
      const bool both = Y(4, c) != Y(4, c) && expected(4, c) != expected(4, c);
      EXPECT_TRUE(both || support::same_bits(Y.block(4, c, 1, 1), expected.block(4, c, 1, 1)))
          << last << ": " << Y(4, c) << ", " << expected(4, c);
    }
  }
}

}  // namespace
