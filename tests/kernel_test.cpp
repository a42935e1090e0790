// tests/kernel_test.cpp: each stage of the engine alone, against plain loops over the same packed data.
// SPDX-License-Identifier: MIT
//
// The numbers are small integers wherever sums are compared: every order of summation gives the same exact result.
#include <attn/attn.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "support/matrix_matchers.h"
#include "support/random.h"
#include "support/scalar_names.h"

namespace {

using Eigen::Index;
namespace kernel = attn::kernel;

/// Memory aligned for packets, filled with small integers.
template <class Scalar>
class Buffer {
 public:
  explicit Buffer(Index size, std::uint32_t seed = 1)
      : data_(workspace_.reserve(size)), size_(size) {
    std::mt19937 engine(seed);
    for (Index n = 0; n < size; ++n)
      data_[n] = static_cast<Scalar>(static_cast<int>(engine() % 9u) - 4);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  Scalar* data() { return data_; }
  Scalar& operator[](Index n) { return data_[n]; }
  void fill(Scalar x) { std::fill(data_, data_ + size_, x); }
  std::vector<Scalar> copy() const { return {data_, data_ + size_}; }

 private:
  attn::Workspace<Scalar> workspace_;
  Scalar* data_;
  Index size_;
};

template <class Scalar>
class Kernel : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, long double>;
TYPED_TEST_SUITE(Kernel, Scalars, support::ScalarNames);

TYPED_TEST(Kernel, TileSizesFitEachOther) {
  using Size = kernel::TileSize<TypeParam>;
  static_assert(Size::panel == Size::width * Size::packets);
  static_assert(Size::max_key_block % Size::panel == 0 && 64 % Size::panel == 0);
  static_assert(Size::panel % Size::depth == 0);
  EXPECT_EQ(Size::key_block(16, 16), Size::max_key_block);
  for (const Index d : {1, 64, 128, 512, 4096}) {
    EXPECT_EQ(Size::key_block(d, d) % Size::panel, 0) << d;
    EXPECT_GE(Size::key_block(d, d), 64) << d;
  }
}

// Element (i, c) of the strip at (c / 4)·4R + 4i + c % 4, times scale, zeros up to the padded depth.
TYPED_TEST(Kernel, PackQueryInterleavesRowsInStepsOfFour) {
  using S = attn::detail::Simd<TypeParam>;
  using Size = kernel::TileSize<TypeParam>;
  for (const Index features : {1, 3, 4, 5, 8, 16, 24, 32, 59}) {
    for (int R = 1; R <= Size::rows; ++R) {
      for (const Index stride : {1, 2}) {
        const Index depth = kernel::round_up(features, Size::depth);
        Buffer<TypeParam> source(R * features * stride, 7), alone(R * depth), together(R * depth);
        alone.fill(99);
        together.fill(99);
        const TypeParam* rows[Size::rows];
        for (int i = 0; i < R; ++i) {
          rows[i] = source.data() + i * features * stride;
          kernel::pack_query<S>(rows[i], stride, features, depth, TypeParam(3), i, R, alone.data());
        }
        kernel::pack_queries<S>(rows, stride, features, depth, TypeParam(3), R, together.data());
        for (int i = 0; i < R; ++i) {
          for (Index c = 0; c < depth; ++c) {
            const Index at = c / 4 * 4 * R + 4 * i + c % 4;
            const TypeParam expected = c < features ? 3 * rows[i][c * stride] : TypeParam(0);
            ASSERT_EQ(alone[at], expected) << "row " << i << " of " << R << ", feature " << c;
            ASSERT_EQ(together[at], expected) << "row " << i << " of " << R << ", feature " << c;
          }
        }
      }
    }
  }
}

template <class Scalar, class Stored>
void check_pack_keys_and_values(Index features, kernel::Source<Stored> source, attn::KeyRange range,
                                Index block) {
  using S = attn::detail::Simd<Scalar>;
  using Size = kernel::TileSize<Scalar>;
  constexpr Index P = Size::panel;
  // Of a last panel of values, a second packet that no feature reaches is not read later.
  const Index keys = 64, depth = kernel::round_up(features, Size::depth),
              padded = kernel::round_up(features, Size::packets > 2 ? P : Index(S::width));
  const auto held = [&](Index j, Index c) {
    return range.begin <= j && j < range.end && c < features
               ? static_cast<Scalar>(source.token(j)[c * source.feature_stride])
               : Scalar(0);
  };
  // Nor is a second packet of keys without a key, nor are values behind the last group of them.
  const Index first = block + (range.begin - block) / P * P,
              last_key = block + kernel::round_up(range.end - block,
                                                  Size::packets > 2 ? P : Index(S::width)),
              last_value = block + kernel::round_up(range.end - block, Size::depth);

  Buffer<Scalar> k(keys * depth), v(keys * kernel::round_up(features, P));
  k.fill(99);
  kernel::pack_keys<S>(source, block, range, features, depth, k.data());
  for (Index j = block; j < block + keys; ++j) {
    for (Index c = 0; c < depth; ++c) {
      const Index at = (j - block) / P * P * depth + c * P + (j - block) % P;
      ASSERT_EQ(k[at], first <= j && j < last_key ? held(j, c) : Scalar(99))
          << "key " << j << ", feature " << c << " of " << features;
    }
  }

  v.fill(99);
  EXPECT_TRUE(kernel::pack_values<S>(source, block, range, features, keys, v.data()));
  for (Index j = block; j < block + keys; ++j) {
    for (Index c = 0; c < padded; ++c) {
      const Index at = c / P * keys * P + (j - block) * P + c % P;
      ASSERT_EQ(v[at], first <= j && j < last_value ? held(j, c) : Scalar(99))
          << "value " << j << ", feature " << c << " of " << features;
    }
  }
}

TYPED_TEST(Kernel, PackKeysAndValuesTransposeConvertAndPadWithZeros) {
  using Stored = std::conditional_t<std::is_same_v<TypeParam, float>, Eigen::bfloat16, TypeParam>;
  constexpr Index P = kernel::TileSize<TypeParam>::panel, all = 192, block = 64;
  const attn::KeyRange ranges[] = {{64, 128},    {64, 65},     {65, 66},  {64, 64 + P},
                                   {64, 63 + P}, {65, 65 + P}, {70, 111}, {127, 128}};
  for (const Index features : {1, 3, 4, 7, 8, 9, 15, 16, 17, 33, 59}) {
    Buffer<TypeParam> memory(all * features * 2, 3);
    std::vector<Stored> narrow(static_cast<std::size_t>(all * features));
    for (std::size_t n = 0; n < narrow.size(); ++n)
      narrow[n] = static_cast<Stored>(memory[static_cast<Index>(n)]);
    for (const attn::KeyRange& range : ranges) {
      const TypeParam* data = memory.data();
      check_pack_keys_and_values<TypeParam>(features, kernel::Source<TypeParam>{data, features, 1},
                                            range, block);
      check_pack_keys_and_values<TypeParam>(features, kernel::Source<TypeParam>{data, 1, all},
                                            range, block);
      check_pack_keys_and_values<TypeParam>(
          features, kernel::Source<TypeParam>{data, 2 * features, 2}, range, block);
      check_pack_keys_and_values<TypeParam>(
          features, kernel::Source<Stored>{narrow.data(), features, 1}, range, block);
      check_pack_keys_and_values<TypeParam>(features, kernel::Source<Stored>{narrow.data(), 1, all},
                                            range, block);
    }
  }
}

TYPED_TEST(Kernel, PackValuesFindsTheOneThatIsNotFinite) {
  using S = attn::detail::Simd<TypeParam>;
  const Index features = 21, keys = 64;
  Buffer<TypeParam> memory(keys * features, 3),
      v(keys * kernel::round_up(features, kernel::TileSize<TypeParam>::panel));
  const auto finite = [&](attn::KeyRange range) {
    return kernel::pack_values<S>(kernel::Source<TypeParam>{memory.data(), features, 1}, 0, range,
                                  features, keys, v.data());
  };
  for (const TypeParam poison :
       {std::numeric_limits<TypeParam>::quiet_NaN(),
        std::numeric_limits<TypeParam>::signaling_NaN(), std::numeric_limits<TypeParam>::infinity(),
        -std::numeric_limits<TypeParam>::infinity()}) {
    for (const Index at : {Index(0), 30 * features, 30 * features + 20, keys * features - 1}) {
      const TypeParam before = memory[at];
      memory[at] = poison;
      EXPECT_FALSE(finite({0, keys})) << at;
      EXPECT_TRUE(finite({1, 30})) << at << ": what lies outside the range is not looked at";
      memory[at] = before;
    }
  }
  memory[0] = std::numeric_limits<TypeParam>::max();
  EXPECT_TRUE(finite({0, keys}));
}

/// The maximum of row i, in whichever lane it lies.
template <class S, class Lanes>
typename S::Scalar largest_lane(Lanes& lane_max, Index i) {
  auto largest = lane_max[i * S::width];
  for (int w = 1; w < S::width; ++w) largest = std::max(largest, lane_max[i * S::width + w]);
  return largest;
}

// Panels 1, 2 and, up to `end`, 3: behind it the lanes of panel 3 are hidden, or not written where no packet holds a key.
TYPED_TEST(Kernel, ScoresAreDotProductsOfEveryRowCount) {
  using S = attn::detail::Simd<TypeParam>;
  using Size = kernel::TileSize<TypeParam>;
  constexpr Index P = Size::panel;
  const Index panels = 5;
  for (const Index depth : {4, 8, 60}) {
    for (int R = 1; R <= Size::rows; ++R) {
      for (Index end = 3 * P + 1; end <= 4 * P; ++end) {
        Buffer<TypeParam> q(R * depth, 1), k(panels * P * depth, 2),
            s(Size::rows * Size::score_stride), lane_max(Size::rows * S::width);
        s.fill(99);
        lane_max.fill(-7);
        kernel::scores<S>(R, q.data(), k.data(), depth, {1, 4, end, true}, s.data(),
                          lane_max.data());
        for (int i = 0; i < Size::rows; ++i) {
          TypeParam largest = -7;
          for (Index j = 0; j < panels * P; ++j) {
            if (i < R &&
                std::max<Index>(kernel::round_up(end, S::width), kernel::round_up(end, 4)) <= j &&
                j < 4 * P)
              continue;
            TypeParam expected = 99;
            if (i < R && P <= j && j < end) {
              expected = 0;
              for (Index c = 0; c < depth; ++c)
                expected += q[c / 4 * 4 * R + 4 * i + c % 4] * k[j / P * P * depth + c * P + j % P];
              largest = std::max(largest, expected);
            } else if (i < R && end <= j && j < 4 * P) {
              expected = kernel::hidden_score<TypeParam>();
            }
            ASSERT_EQ(s[i * Size::score_stride + j], expected)
                << "row " << i << " of " << R << ", key " << j << " of " << end << ", depth "
                << depth;
          }
          ASSERT_EQ(largest_lane<S>(lane_max, i), largest) << "row " << i << " of " << R;
        }
      }
    }
  }
}

TYPED_TEST(Kernel, ScoresOfNoPanelWriteNothing) {
  using S = attn::detail::Simd<TypeParam>;
  using Size = kernel::TileSize<TypeParam>;
  Buffer<TypeParam> q(Size::rows * 4), k(Size::panel * 4), s(Size::rows * Size::score_stride),
      lane_max(Size::rows * S::width);
  const auto before = s.copy();
  kernel::scores<S>(Size::rows, q.data(), k.data(), 4, {1, 1, Size::panel, true}, s.data(),
                    lane_max.data());
  EXPECT_EQ(s.copy(), before);
}

// What sums over rows: the backward pass.
TYPED_TEST(Kernel, ColumnsOfScoresAreALeftOperandToo) {
  using S = attn::detail::Simd<TypeParam>;
  using Size = kernel::TileSize<TypeParam>;
  constexpr Index rows = 12, keys = 3;
  alignas(64) TypeParam p[rows * Size::score_stride], b[rows * Size::panel];
  for (Index n = 0; n < rows * Size::score_stride; ++n) p[n] = static_cast<TypeParam>(n % 7) - 3;
  for (Index n = 0; n < rows * Size::panel; ++n) b[n] = static_cast<TypeParam>(n % 5) - 2;
  const kernel::DepthRange runs[] = {{0, 4}, {8, 12}};
  typename S::Packet acc[keys][1];
  kernel::clear<S>(acc);
  kernel::multiply_accumulate<S>(acc, kernel::ScoreColumns<TypeParam>{p + 5}, b, {runs, 2});
  for (Index j = 0; j < keys; ++j) {
    alignas(64) TypeParam sums[S::width];
    S::store(sums, acc[j][0]);
    for (Index w = 0; w < S::width; ++w) {
      TypeParam want = 0;
      for (Index t = 0; t < rows; ++t)
        want +=
            t / 4 == 1 ? TypeParam(0) : p[t * Size::score_stride + 5 + j] * b[t * Size::panel + w];
      EXPECT_EQ(sums[w], want) << "key " << j << ", lane " << w;
    }
  }
}

TYPED_TEST(Kernel, WeightedSumRescalesAndAddsTheRunsOfEveryRowCount) {
  using S = attn::detail::Simd<TypeParam>;
  using Size = kernel::TileSize<TypeParam>;
  constexpr Index P = Size::panel, keys = 128;
  const kernel::DepthRange runs[] = {{0, P}, {2 * P, 3 * P}};
  for (const Index features :
       {Index(1), Index(S::width), Index(S::width + 1), P - 1, P, P + 1, Index(59)}) {
    const Index stride = kernel::round_up(features, P);
    for (const bool finite : {true, false}) {
      for (int R = 1; R <= Size::rows; ++R) {
        for (const int run_count : {0, 1, 2}) {
          Buffer<TypeParam> p(Size::rows * Size::score_stride, 1), v(keys * stride, 2),
              rescale(Size::rows, 3), o(Size::rows * stride, 4);
          if (!finite) {  // hidden pairs are marked, and their values may hold anything
            for (int i = 0; i < R; ++i)
              p[i * Size::score_stride + 1] = kernel::hidden_weight<TypeParam>();
            for (Index c = 0; c < stride; ++c)
              v[c / P * keys * P + P + c % P] = std::numeric_limits<TypeParam>::quiet_NaN();
          }
          for (Index n = 0; n < Size::rows * Size::score_stride; ++n) {
            if (n % Size::score_stride != 1 || finite) p[n] = std::abs(p[n]);
          }
          const auto before = o.copy();
          kernel::weighted_sum<S>(R, features, finite, p.data(), v.data(), keys * P,
                                  {runs, run_count}, rescale.data(), o.data(), stride);
          for (int i = 0; i < Size::rows; ++i) {
            for (Index c = 0; c < features; ++c) {
              const TypeParam old = before[static_cast<std::size_t>(i * stride + c)];
              TypeParam expected = i < R ? rescale[i] * old : old;
              for (int n = 0; i < R && n < run_count; ++n) {
                for (Index j = runs[n].begin; j < runs[n].end; ++j) {
                  if (!finite && j == 1) continue;
                  expected += p[i * Size::score_stride + j] * v[c / P * keys * P + j * P + c % P];
                }
              }
              ASSERT_EQ(o[i * stride + c], expected)
                  << "row " << i << " of " << R << ", feature " << c << " of " << features
                  << ", runs " << run_count;
            }
          }
        }
      }
    }
  }
}

TYPED_TEST(Kernel, AdvanceRaisesMaximaAndGivesTheFactorOfWhatCameBefore) {
  using S = attn::detail::Simd<TypeParam>;
  using Size = kernel::TileSize<TypeParam>;
  using Softmax = kernel::OnlineSoftmax<S>;
  const TypeParam lowest = kernel::no_maximum<TypeParam>();
  for (int R = 1; R <= Size::rows; ++R) {
    Buffer<TypeParam> lane_max(Size::rows * S::width), m(Softmax::kRescaleSlots),
        rescale(Softmax::kRescaleSlots);
    m.fill(77);
    lane_max.fill(-50);
    for (int i = 0; i < R; ++i) lane_max[i * S::width + i % S::width] = static_cast<TypeParam>(i);
    for (int i = 0; i < R; ++i)
      m[i] = i % 3 == 0   ? lowest
             : i % 3 == 1 ? static_cast<TypeParam>(i + 5)
                          : static_cast<TypeParam>(i - 2);
    Softmax::advance(R, lane_max.data(), m.data(), rescale.data());
    for (int i = 0; i < R; ++i) {
      EXPECT_EQ(m[i], static_cast<TypeParam>(i % 3 == 1 ? i + 5 : i)) << "row " << i << " of " << R;
      const TypeParam expected = i % 3 == 0   ? TypeParam(0)
                                 : i % 3 == 1 ? TypeParam(1)
                                              : std::exp(TypeParam(-2));
      if (i % 3 == 2) {
        EXPECT_NEAR(static_cast<double>(rescale[i]), static_cast<double>(expected), 1e-7);
      } else {
        EXPECT_EQ(rescale[i], expected) << "row " << i << " of " << R;
      }
    }
    for (int i = R; i < Softmax::kRescaleSlots; ++i) EXPECT_EQ(m[i], TypeParam(77)) << "not theirs";
  }
}

TYPED_TEST(Kernel, AdvanceOfARowThatSeesNothingKeepsItsState) {
  using S = attn::detail::Simd<TypeParam>;
  using Softmax = kernel::OnlineSoftmax<S>;
  const TypeParam lowest = kernel::no_maximum<TypeParam>();
  for (const TypeParam before : {lowest, TypeParam(3)}) {
    Buffer<TypeParam> lane_max(kernel::TileSize<TypeParam>::rows * S::width),
        m(Softmax::kRescaleSlots), rescale(Softmax::kRescaleSlots);
    lane_max.fill(lowest);
    m[0] = before;
    Softmax::advance(1, lane_max.data(), m.data(), rescale.data());
    EXPECT_EQ(m[0], before);
    EXPECT_EQ(rescale[0], TypeParam(1));
  }
}

// Two runs, the second of every length that a tail can have; lanes of a last packet beyond the run are hidden ones.
TYPED_TEST(Kernel, WeighTurnsScoresIntoWeightsAndSumsThemByLane) {
  using S = attn::detail::Simd<TypeParam>;
  using Size = kernel::TileSize<TypeParam>;
  using Softmax = kernel::OnlineSoftmax<S>;
  constexpr Index P = Size::panel, all = Size::score_stride;
  const TypeParam hidden = kernel::hidden_score<TypeParam>();
  const int rows = 5;  // those that go together, and one more; each has its own maximum
  for (Index last = 2 * P; last <= 7 * P; last += Size::depth) {
    for (const bool mark : {false, true}) {
      Buffer<TypeParam> s(rows * all, 5), lanes(rows * P, 6), m(rows), rescale(rows);
      for (int i = 0; i < rows; ++i) m[i] = TypeParam(4) + TypeParam(i) / 4;
      rescale.fill(TypeParam(0.25));
      const kernel::DepthRange runs[] = {{0, P}, {2 * P, last}};
      const Index end = kernel::round_up(last, S::width);
      for (int i = 0; i < rows; ++i) {
        for (Index j = i; j < all; j += 3) s[i * all + j] = hidden;
        for (Index j = last; j < end; ++j) s[i * all + j] = hidden;
      }
      const auto scores = s.copy(), before = lanes.copy();
      const auto weigh = mark ? Softmax::template weigh<kernel::Hidden::marked>
                              : Softmax::template weigh<kernel::Hidden::zero>;
      weigh(rows, m.data(), rescale.data(), s.data(), all, {runs, 2}, lanes.data());
      for (int i = 0; i < rows; ++i) {
        std::vector<double> sums;
        for (Index lane = 0; lane < P; ++lane)
          sums.push_back(static_cast<double>(before[static_cast<std::size_t>(i * P + lane)]) / 4);
        for (Index j = 0; j < all; ++j) {
          const TypeParam score = scores[static_cast<std::size_t>(i * all + j)],
                          weight = s[i * all + j];
          const bool visited = j < P || (2 * P <= j && j < end);
          if (!visited) {
            ASSERT_EQ(weight, score) << "key " << j;
          } else if (score == hidden) {
            ASSERT_EQ(weight, mark ? kernel::hidden_weight<TypeParam>() : TypeParam(0))
                << "key " << j;
          } else {
            const double p = std::exp(static_cast<double>(score - m[i]));
            ASSERT_NEAR(static_cast<double>(weight), p, 2e-7 * p) << "key " << j;
            sums[static_cast<std::size_t>(j % P)] += p;
          }
          if (score == m[i] && visited) {
            ASSERT_EQ(weight, TypeParam(1)) << "the maximum weighs exactly 1";
          }
        }
        for (Index lane = 0; lane < P; ++lane) {
          ASSERT_NEAR(static_cast<double>(lanes[i * P + lane]),
                      sums[static_cast<std::size_t>(lane)], 2e-6)
              << "lane " << lane;
        }
      }
    }
  }
}

TYPED_TEST(Kernel, ReduceLanesAddsThemAll) {
  using S = attn::detail::Simd<TypeParam>;
  constexpr Index P = kernel::TileSize<TypeParam>::panel;
  Buffer<TypeParam> lanes(P, 8);
  TypeParam sum = 0;
  for (Index lane = 0; lane < P; ++lane) sum += lanes[lane];
  EXPECT_EQ(kernel::reduce_lanes<S>(lanes.data()), sum);
}

// Real-valued data: the chains have to be the same, not only the sums.
TYPED_TEST(Kernel, InPlaceGivesTheBitsOfPanels) {
  using S = attn::detail::Simd<TypeParam>;
  using Size = kernel::TileSize<TypeParam>;
  constexpr Index P = Size::panel, keys = Size::max_key_block;
  std::mt19937 engine(5);
  for (const Index features : {1, 4, 15, 16, 17, 40, 59, 100, 128, 160}) {
    const Index depth = kernel::round_up(features, Size::depth),
                padded = kernel::round_up(features, P), stride = features + 3;
    Buffer<TypeParam> memory(keys * stride), q(Size::rows * depth);
    for (Index n = 0; n < keys * stride; ++n)
      memory[n] = static_cast<TypeParam>(engine() % 1000u) / TypeParam(317) - TypeParam(1.5);
    const kernel::Source<TypeParam> source{memory.data(), stride, 1};
    const auto ahead = kernel::RowsAhead<S>::in_streams(source, features, keys);
    for (int R = 1; R <= Size::in_place_rows; ++R) {
      for (Index i = 0; i < R; ++i)
        kernel::pack_query<S>(source.token(i), 1, features, depth, TypeParam(0.3), i, R, q.data());
      for (Index end = 1; end <= keys; end += end < 2 * P ? 1 : 37) {
        Buffer<TypeParam> k(keys * depth), v(keys * padded);
        kernel::pack_keys<S>(source, 0, {0, end}, features, depth, k.data());
        kernel::pack_values<S>(source, 0, {0, end}, features, keys, v.data());
        const Index last = (end + P - 1) / P;
        Buffer<TypeParam> s(R * Size::score_stride), lane_max(R * S::width), rescale(Size::rows, 3),
            o(R * padded, 4);
        lane_max.fill(-100);
        Buffer<TypeParam> s2(R * Size::score_stride), lane_max2(R * S::width), o2(R * padded, 4);
        lane_max2.fill(-100);
        kernel::scores<S>(R, q.data(), k.data(), depth, {0, last, end, true}, s.data(),
                          lane_max.data());
        kernel::scores_in_place<S>(R, q.data(), source, 0, end, features, ahead, s2.data(),
                                   lane_max2.data());
        const Index written = kernel::round_up(end, std::max<Index>(S::width, Size::depth));
        for (int i = 0; i < R; ++i) {
          for (Index j = 0; j < written; ++j)
            ASSERT_EQ(s2[i * Size::score_stride + j], s[i * Size::score_stride + j])
                << "row " << i << " of " << R << ", key " << j << " of " << end << ", features "
                << features;
          ASSERT_EQ(largest_lane<S>(lane_max2, i), largest_lane<S>(lane_max, i)) << "row " << i;
        }

        for (Index n = 0; n < R * Size::score_stride; ++n)  // weights: 0 where no key is
          s[n] = n % Size::score_stride < end ? std::abs(s[n]) : TypeParam(0);
        const kernel::DepthRange run{0, kernel::round_up(end, Size::depth)};
        kernel::weighted_sum<S>(R, features, true, s.data(), v.data(), keys * P, {&run, 1},
                                rescale.data(), o.data(), padded);
        const kernel::DepthRange there{0, end};
        kernel::weighted_sum_of_few<S>(
            R, s.data(), kernel::ValuesInPlace<S, TypeParam>{source, features, ahead, end},
            {&there, 1}, rescale.data(), o2.data(), padded);
        for (int i = 0; i < R; ++i) {
          for (Index c = 0; c < features; ++c)
            ASSERT_EQ(o2[i * padded + c], o[i * padded + c])
                << "row " << i << " of " << R << ", feature " << c << " of " << features
                << ", keys " << end;
        }
      }
    }
  }
}

}  // namespace
