// tests/bfloat_pairs_test.cpp: the processor's products of bfloat16 by pairs against their steps,
// one by one (base/bfloat_pairs.h).
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>

namespace {

#if ATTN_BFLOAT_PAIRS

std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
float from_bits(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
bool is_nan(std::uint32_t bits) { return (bits & 0x7fffffffu) > 0x7f800000u; }
/// Denormal numbers are zeros.
float flushed(float x) {
  return (bits_of(x) & 0x7f800000u) == 0 ? from_bits(bits_of(x) & 0x80000000u) : x;
}
/// To bfloat16, to the nearest, ties to even.
float rounded(float x) {
  const std::uint32_t bits = bits_of(flushed(x));
  if (is_nan(bits)) return x;
  return from_bits((bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u);
}
testing::AssertionResult same(float a, float b) {
  if (bits_of(a) == bits_of(b) || (is_nan(bits_of(a)) && is_nan(bits_of(b))))
    return testing::AssertionSuccess();
  return testing::AssertionFailure() << std::hexfloat << a << " is not " << b;
}

/// Random bits: of any numbers, or of such as meet near 1.
class Bits {
 public:
  std::uint32_t any() { return static_cast<std::uint32_t>(engine_()); }
  std::uint32_t near_one() { return (any() & 0x83ffffffu) | 0x3c000000u; }
  /// A pair.
  std::uint32_t pair(int round) {
    return round % 2 == 0 ? any() : (near_one() >> 16) | (near_one() & 0xffff0000u);
  }
  std::uint32_t number(int round) { return round % 2 == 0 ? any() : near_one(); }

 private:
  std::mt19937 engine_{1};
};

constexpr int kRounds = 200000;

TEST(BfloatPairs, AreMultipliedInTwoFusedStepsTheOddFirst) {
  using Pairs = attn::detail::BfloatPairs;
  using S = attn::detail::Simd<float>;
  Bits random;
  for (int n = 0; n < kRounds; ++n) {
    const std::uint32_t a = random.pair(n), b = random.pair(n), c = random.number(n);
    const auto pair_of = [](std::uint32_t bits) {
      return attn::detail::BfloatPair{Eigen::bfloat16(from_bits(bits << 16)),
                                      Eigen::bfloat16(from_bits(bits & 0xffff0000u))};
    };
    const attn::detail::BfloatPair x = pair_of(a), y = pair_of(b);
    auto sum = S::set(from_bits(c));
    Pairs::accumulate(Pairs::set(x), Pairs::set(y), sum);
    const auto odd = [](std::uint32_t pair) { return flushed(from_bits(pair & 0xffff0000u)); };
    const auto even = [](std::uint32_t pair) { return flushed(from_bits(pair << 16)); };
    const float first = flushed(std::fma(odd(a), odd(b), flushed(from_bits(c))));
    const float second = flushed(std::fma(even(a), even(b), first));
    ASSERT_TRUE(same(S::first(sum), second)) << std::hex << a << " " << b << " " << c;
  }
}

TEST(BfloatPairs, AreRoundedToTheNearestTiesToEven) {
  using Pairs = attn::detail::BfloatPairs;
  using S = attn::detail::Simd<float>;
  Bits random;
  for (int n = 0; n < kRounds; ++n) {
    // Every other one in the middle between two bfloat16.
    const std::uint32_t bits = random.any();
    const float x = from_bits(n % 2 == 0 ? bits : (bits & 0xffff0000u) | 0x8000u);
    ASSERT_TRUE(same(S::first(Pairs::round(S::set(x))), rounded(x))) << std::hexfloat << x;
    ASSERT_TRUE(same(static_cast<float>(Pairs::number(x)), rounded(x))) << std::hexfloat << x;
  }
}

TEST(BfloatPairs, HoldNeighbours) {
  using Pairs = attn::detail::BfloatPairs;
  float numbers[32];
  Eigen::bfloat16 narrow[32], back[32];
  for (int i = 0; i < 32; ++i) {
    numbers[i] = static_cast<float>(i + 1);
    narrow[i] = Eigen::bfloat16(numbers[i]);
  }
  const auto expect = [&](const auto& packet, const char* what) {
    alignas(64) attn::detail::BfloatPair pairs[16];
    Pairs::store(pairs, packet);
    std::memcpy(back, pairs, sizeof back);
    for (int i = 0; i < 32; ++i) EXPECT_EQ(static_cast<int>(float(back[i])), i + 1) << what;
  };
  expect(Pairs::load_numbers(numbers), "of floats");
  expect(Pairs::load_numbers(narrow), "of bfloat16");
  alignas(64) float even[16], odd[16];
  for (int i = 0; i < 16; ++i) {
    even[i] = numbers[2 * i];
    odd[i] = numbers[2 * i + 1];
  }
  using S = attn::detail::Simd<float>;
  expect(Pairs::pair(S::load(even), S::load(odd)), "interleaved");
}

#else

TEST(BfloatPairs, AreNotOfThisBuild) { GTEST_SKIP() << "this build has no products of bfloat16"; }

#endif

}  // namespace
