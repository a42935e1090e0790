// attn/kernel/fixed_pass.h: the forward pass where the operands' types tell all sizes, and they are
// small.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../mask/interval.h"
#include "dot_products.h"
#include "finish.h"
#include "modify.h"
#include "pack.h"
#include "problem.h"
#include "weighted_sum.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Sizes of a call that are known to the compiler, else Dynamic: query rows, d_k, key rows, d_v.
template <int Queries, int KeyDim, int Keys, int ValueDim>
struct FixedSizes {
  static constexpr int kQueries = Queries, kKeyDim = KeyDim, kKeys = Keys, kValueDim = ValueDim;
  static constexpr bool kKnown = Queries != Eigen::Dynamic && KeyDim != Eigen::Dynamic &&
                                 Keys != Eigen::Dynamic && ValueDim != Eigen::Dynamic;
  /// All of them lie in [least, most].
  static constexpr bool within(int least, int most) {
    return kKnown && std::min({Queries, KeyDim, Keys, ValueDim}) >= least &&
           std::max({Queries, KeyDim, Keys, ValueDim}) <= most;
  }
};
using DynamicSizes = FixedSizes<Eigen::Dynamic, Eigen::Dynamic, Eigen::Dynamic, Eigen::Dynamic>;

}  // namespace detail

namespace kernel {

/// The pass below serves calls of this kind: every row sees every key, nothing is done to queries
/// and weights, and nothing is saved of pairs.
template <class Problem, class Sizes>
constexpr bool has_fixed_pass() {
  using Scalar = typename Problem::Scalar;
  return Sizes::within(1, TileSize<Scalar>::most_fixed) && detail::Simd<Scalar>::width > 1 &&
         std::is_same_v<typename Problem::Element, Scalar> &&
         std::is_same_v<typename Problem::Mask, detail::SeeAll> && !Problem::kRotates &&
         !Problem::kDrops && !Problem::kInParts && !Problem::kSavesPairs &&
         !Problem::Modify::kSink && !Problem::Saved::kEntropy && !Problem::Saved::kState &&
         !Problem::kPartial;
}
template <class Problem, class Sizes>
inline constexpr bool has_fixed_pass_v = has_fixed_pass<Problem, Sizes>();

// WHAT     forward.h's stages, in its order, on one sequence and head whose keys are one block; all
//          trip counts are constants
// PICTURE  pack k, v;  for each strip:  pack q │ s = q · kᵀ │ s = modify(s) │ p, l │ o = p · v;  y = o / l
// WHY      what a call of few keys takes is hardly its products but getting to them: the general
//          pass walks chunks, blocks, covers, segments and runs, and looks tiles up by their rows.
//          Everything is inlined here into one function without a branch on a size. Tiles of one
//          packet take twice the rows of others: the registers hold them (16 rows of 16 keys are
//          one strip, not two that wait for each other)
// LIMIT    (Zen 4, AVX-512, g++; ns) 16 queries and keys, d = 32: 600, the general pass 850 to 950.
//          Products 290, of which 277 are the multiply-adds; softmax 75, packing 100, finishing 55,
//          the call's shapes and overlaps 60. 8 × 8: 210 to 240 and 490 to 550, a quarter of it the
//          call's. The general pass spends a fifth of 8 × 8 walking, and tiles as functions of
//          their own stay: inlined here, g++ keeps their accumulators in memory (16 × 32: 900)
// EDGES    false, and nothing written, where a value is not finite: the general pass then tells
//          hidden ones from others
// NUMERICS the chains of forward.h, so its bits: strips decide none
template <class Problem, class Sizes>
class FixedPass {
  using Scalar = typename Problem::Scalar;
  using S = detail::Simd<Scalar>;
  using Size = TileSize<Scalar>;
  using Softmax = OnlineSoftmax<S>;

 public:
  explicit FixedPass(const Problem& problem)
      : problem_(problem), rows_(shape_), softmax_({states_, kRows, kFeatures}, settled_) {}
  FixedPass(const FixedPass&) = delete;

  ATTN_FLATTEN bool operator()() {
    if (!pack()) return false;
    rows_.enter({0, 0, 0, kRows}, Strips{}, problem_.offset(0));
    softmax_.clear(kRows);
    each_strip<kRows, most_rows(kKeys)>([&](auto first, auto rows) { attend(first, rows); });
    Finish<Problem>{problem_, softmax_}(rows_);
    return true;
  }

 private:
  static constexpr int kRows = Sizes::kQueries, kKeys = Sizes::kKeys, kKeyDim = Sizes::kKeyDim,
                       kValueDim = Sizes::kValueDim;
  static constexpr Index kDepth = round_up(kKeyDim, Size::depth),
                         kFeatures = round_up(kValueDim, Size::panel),
                         kHeldKeys = round_up(kKeys, Size::panel),
                         kQueryStride = round_up(kDepth, S::width);
  static_assert(kKeys <= Size::key_block(kKeyDim, kValueDim), "one block");

  /// Rows of a tile over so many keys or features.
  static constexpr int most_rows(int across) {
    return across > S::width ? Size::rows : Size::narrow_rows;
  }
  /// Calls f(first, rows), of constants, for strips that share `All` rows evenly.
  template <int All, int Most, int First = 0, class F>
  static ATTN_INLINE void each_strip(const F& f) {
    constexpr int left = All - First, strips = (left + Most - 1) / Most,
                  rows = (left + strips - 1) / strips;
    f(std::integral_constant<int, First>(), std::integral_constant<int, rows>());
    if constexpr (rows < left) each_strip<All, Most, First + rows>(f);
  }
  static detail::CallShape fixed_shape() {
    detail::CallShape shape;
    shape.key_dim = kKeyDim;
    shape.value_dim = kValueDim;
    shape.queries.common_length = kRows;
    shape.keys.common_length = kKeys;
    return shape;
  }

  template <class T>
  static Source<T> source(const Operand<T>& operand) {
    return {operand.view.data, operand.view.token_stride, operand.view.feature_stride};
  }
  bool pack() {
    pack_keys<S>(source(problem_.key), 0, {0, kKeys}, kKeyDim, kDepth, key_);
    return pack_values<S>(source(problem_.value), 0, {0, kKeys}, kValueDim, kHeldKeys, value_);
  }

  /// Stages 1 to 4 of one strip.
  template <class First, class Rows>
  ATTN_INLINE void attend(First first, Rows rows) {
    pack_queries(source(problem_.query).from(first), rows);
    score<Rows::value>(first, scores_, lane_max_);
    const RowStates<Scalar> states = softmax_.states().from(First::value);
    Softmax::advance(Rows::value, lane_max_, states.maximum, nullptr);
    const DepthRange keys{0, round_up(kKeys, Size::depth)};
    Softmax::template weigh_here<Rows::value>(states.maximum, scores_, Size::score_stride,
                                              {&keys, 1}, states.lanes);
    each_strip<Rows::value, most_rows(kValueDim)>([&](auto part, auto height) {
      sum<height>(scores_ + part * Size::score_stride, {&keys, 1}, states.from(part).output);
    });
  }
  /// Row by row as they lie, scaled.
  /// WHY  groups of four features of a row, one strip's rows side by side, are one stream for a
  ///      walk of any depth, but take two shuffles a packet
  template <class T>
  ATTN_INLINE void pack_queries(const Source<T>& queries, int rows) {
    const auto scale = S::set(problem_.scale);
    for (int i = 0; i < rows; ++i) {
      for (Index c = 0; c < kDepth; c += S::width) {
        auto x = detail::load_strided<S>(queries.token(i) + c * queries.feature_stride,
                                         queries.feature_stride, kKeyDim - c);
        // Where the stride is 0 the element stands behind the last as well: ∞ would meet zeros.
        if constexpr (kKeyDim % Size::depth != 0)
          x = S::select(S::first_lanes(kKeyDim - c), x, S::set(Scalar(0)));
        S::store(query_ + i * kQueryStride + c, S::mul(x, scale));
      }
    }
  }
  /// Stages 1 and 2.
  template <int R>
  ATTN_INLINE void score(Index first, Scalar* s, Scalar* lane_max) {
    constexpr Index whole = kKeys / Size::panel, tail = kKeys % Size::panel;
    constexpr bool half = Size::packets == 2 && tail <= S::width;
    constexpr int packets = half ? 1 : Size::packets;
    constexpr bool hides = tail > 0 && !(half && tail == S::width && tail % Size::depth == 0);
    using Queries = Elements<Scalar, kQueryStride, 1, Size::depth>;
    for (int i = 0; i < R; ++i) S::store(lane_max + i * S::width, S::set(no_maximum<Scalar>()));
    Scalar* const raised = Problem::Modify::kIdentity ? lane_max : nullptr;
    if constexpr (whole > 0)
      score_panels<S, R, Size::packets, Queries>(query_, key_, kDepth, 0, whole, s, raised);
    if constexpr (tail > 0)
      score_panels<S, R, packets, Queries>(query_, key_, kDepth, whole, whole + 1, s,
                                           hides ? nullptr : raised);
    if constexpr (hides) hide_beyond<S>(R, kKeys, s, raised);
    if constexpr (!Problem::Modify::kIdentity) {
      ModifyScores<Problem>(problem_, rows_)({Strip{0, first, R}, 0, s, lane_max},
                                             {0, whole + (tail > 0), kKeys, true});
    }
  }
  /// Stage 4 of R of the strip's rows, from feature C on.
  template <int R, Index C = 0>
  ATTN_INLINE void sum(const Scalar* p, Runs runs, Scalar* output) {
    constexpr int packets = kValueDim - C > S::width ? Size::packets : 1;
    TileSums<S> block(nullptr, output + C, kFeatures);
    block.each_run(runs, [&](Runs pieces, bool begins, bool ends) {
      accumulate_run<S, R, packets>(p, value_ + C * kHeldKeys, pieces, begins, ends, block);
    });
    if constexpr (C + Size::panel < kValueDim) sum<R, C + Size::panel>(p, runs, output);
  }

  const Problem& problem_;
  const detail::CallShape shape_ = fixed_shape();
  ChunkRows<Scalar> rows_;
  const SettledRows<Scalar> settled_;
  SoftmaxRows<Scalar> softmax_;
  alignas(64) Scalar key_[std::size_t{kHeldKeys * kDepth}];
  alignas(64) Scalar value_[std::size_t{kHeldKeys * kFeatures}];
  // Of one strip. Here, not in attend(): a frame holds the arrays of all that is inlined into it.
  alignas(64) Scalar query_[std::size_t{most_rows(kKeys) * kQueryStride}];
  alignas(64) Scalar scores_[std::size_t{most_rows(kKeys) * Size::score_stride}];
  alignas(64) Scalar lane_max_[std::size_t{most_rows(kKeys) * S::width}];
  alignas(64) Scalar states_[std::size_t{RowStates<Scalar>::total(kRows, kFeatures)}];
};

/// Attends all rows, or returns false.
/// WHY  not inlined: what it takes of the stack is given back before the general pass takes its own
template <class Sizes, class Problem>
ATTN_NOINLINE bool attend_fixed(const Problem& problem) {
  return FixedPass<Problem, Sizes>(problem)();
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
