// attn/kernel/softmax_pass.h: softmax, log-softmax and log-sum-exp of vectors in strided memory,
// with the engine's own stage 3.
// SPDX-License-Identifier: MIT
#pragma once

#include "../mask/interval.h"
#include "online_softmax.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

enum class SoftmaxResult { weights, log_weights, logsumexp };

// WHAT     weights p = exp(s − m) / l,  log-weights (s − m) − log l,  or log-sum-exp m + log l     of each vector
// PICTURE  a strip of vectors is brought to rows of scratch (converted, masked), whatever its
//          strides: whole where 32 KiB hold at least one, else in blocks of 256 scores; pass 1
//          folds the blocks into (m, l), pass 2 writes the results
// TRAFFIC  vectors that fit are read and weighed once, longer ones twice
// WHY      32 KiB stay in L2 and hold 7 rows of 1024 floats, so that neighbouring columns of a
//          row-major matrix, which share cache lines, are brought together. (Blocks of 256
//          throughout took two exp a score: 1.4 ms for 1024 × 1024 floats.)
// EDGES    lanes beyond the length and hidden scores are −∞; a vector with nothing visible gives
//          zeros, −∞ and −∞
// NUMERICS the lanes of attention: 256 scores from +0, added with compensation (row_sums.h), and
//          reduced once
template <SoftmaxResult Result, class Scalar, class Input, class Output, class Mask>
class SoftmaxPass {
  using S = detail::Simd<Scalar>;
  using Size = TileSize<Scalar>;
  using Softmax = OnlineSoftmax<S>;

 public:
  /// Vectors are rows.
  SoftmaxPass(detail::MatrixView<const Input> scores, detail::MatrixView<Output> results,
              const Mask& mask, Index offset)
      : scores_(scores), results_(results), mask_(mask), offset_(offset) {
    const Index whole = round_up(std::max<Index>(scores.cols, 1), Size::panel);
    fits_ = whole <= kCapacity;
    block_length_ = fits_ ? whole : Size::max_key_block;
    row_stride_ = fits_ ? whole : Size::score_stride;
    strip_ = std::min<Index>(Size::rows, kCapacity / row_stride_);
  }

  void operator()() {
    for (first_ = 0; first_ < scores_.rows; first_ += strip_) {
      count_ = int(std::min<Index>(strip_, scores_.rows - first_));
      fold();
      write();
    }
  }

 private:
  static constexpr Index kCapacity =
      std::max<Index>(32 * 1024 / Index(sizeof(Scalar)), Size::rows* Size::score_stride);

  /// Pass 1: the state of every vector of the strip.
  void fold() {
    for (int i = 0; i < count_; ++i) maximum_[i] = no_maximum<Scalar>();
    sums().clear(count_);
    for (Index block = 0; block < scores_.cols; block += block_length_) {
      const Index end = load(block);
      Softmax::advance(count_, lane_max_, maximum_, rescale_);
      for (Index part = 0; part < end; part += Size::max_key_block) {
        const DepthRange keys{part, std::min<Index>(part + Size::max_key_block, end)};
        Softmax::template weigh<Hidden::zero>(count_, maximum_, nullptr, block_, row_stride_,
                                              {&keys, 1}, lanes_);
        settle();
        std::fill_n(rescale_, count_, Scalar(1));
      }
    }
  }

  /// Pass 2.
  void write() {
    using std::log;
    Scalar sum[Size::rows];
    for (int i = 0; i < count_; ++i) sum[i] = reduce_lanes<S>(sums_ + i * Size::panel);
    if constexpr (Result == SoftmaxResult::logsumexp) {
      for (int i = 0; i < count_; ++i) {
        results_.data[(first_ + i) * results_.row_stride] = Output(log_sum(maximum_[i], sum[i]));
      }
    } else {
      for (Index block = 0; block < scores_.cols; block += block_length_) {
        const bool weighed =
            Result == SoftmaxResult::weights && fits_;  // pass 1 has left the weights
        const Index end = weighed ? round_up(scores_.cols, Size::panel) : load(block);
        const DepthRange all{0, end};
        for (int i = 0; i < count_; ++i) {
          Scalar* s = block_ + i * row_stride_;
          if constexpr (Result == SoftmaxResult::weights) {
            if (!weighed)
              Softmax::template weigh<Hidden::zero>(1, maximum_ + i, nullptr, s, row_stride_,
                                                    {&all, 1}, lanes_);
            scale(s, end,
                  detail::equal(sum[i], Scalar(0)) ? Scalar(0) : Scalar(Scalar(1) / sum[i]));
          } else {
            shift(s, end, maximum_[i],
                  detail::equal(sum[i], Scalar(0)) ? Scalar(0) : Scalar(log(sum[i])));
          }
        }
        store(block);
      }
    }
  }

  RowSums<Scalar> sums() { return {sums_, lost_, Size::panel}; }
  /// l = r·l + the lanes of a block.
  void settle() {
    const RowSums<Scalar> to = sums();
    for (int i = 0; i < count_; ++i) {
      const auto r = S::set(rescale_[i]);
      for (Index c = 0; c < Size::panel; c += S::width) {
        const auto block = S::load(lanes_ + i * Size::panel + c);
        to.template store<S>(i, c, CompensatedSum<S>::combine(to.template load<S>(i, c), r, block));
      }
    }
  }

  static void scale(Scalar* s, Index end, const Scalar& factor) {
    for (Index j = 0; j < end; j += S::width)
      S::store(s + j, S::mul(S::load(s + j), S::set(factor)));
  }
  static void shift(Scalar* s, Index end, const Scalar& maximum, const Scalar& log_sum) {
    for (Index j = 0; j < end; j += S::width) {
      S::store(s + j, S::sub(S::sub(S::load(s + j), S::set(maximum)), S::set(log_sum)));
    }
  }

  /// Brings a block of the strip to scratch, hides, and finds the lanes' maxima; returns the
  /// block's end in whole panels.
  Index load(Index block) {
    const Index length = std::min(block_length_, scores_.cols - block),
                end = round_up(length, Size::panel);
    const Input* from = scores_.data + first_ * scores_.row_stride + block * scores_.col_stride;
    if (scores_.col_stride == 1) {
      for (int i = 0; i < count_; ++i) {
        for (Index j = 0; j < length; ++j)
          block_[i * row_stride_ + j] = Scalar(from[i * scores_.row_stride + j]);
      }
    } else {
      for (Index j = 0; j < length; ++j) {
        for (int i = 0; i < count_; ++i) {
          block_[i * row_stride_ + j] =
              Scalar(from[i * scores_.row_stride + j * scores_.col_stride]);
        }
      }
    }
    for (int i = 0; i < count_; ++i) {
      Scalar* s = block_ + i * row_stride_;
      for (Index j = length; j < end; ++j) s[j] = hidden_score<Scalar>();
      hide(s, block, length, {0, 0, first_ + i, first_ + i, first_ + i + offset_, scores_.cols});
      auto largest = S::set(no_maximum<Scalar>());
      for (Index j = 0; j < end; j += S::width) largest = S::max(S::load(s + j), largest);
      S::store(lane_max_ + i * S::width, largest);
    }
    return end;
  }

  /// Of the keys that are there: a mask knows no others.
  void hide(Scalar* s, Index block, Index length, const QueryRow& row) const {
    if constexpr (!std::is_same_v<Mask, detail::SeeAll>) {
      for (Index j = 0; j < length; j += S::width) {
        S::store(s + j, S::select(mask_.template lanes<S>(row, block + j), S::load(s + j),
                                  S::set(hidden_score<Scalar>())));
      }
    }
  }

  void store(Index block) {
    const Index length = std::min(block_length_, results_.cols - block);
    Output* to = results_.data + first_ * results_.row_stride + block * results_.col_stride;
    if (results_.col_stride == 1) {
      for (int i = 0; i < count_; ++i) {
        for (Index j = 0; j < length; ++j)
          to[i * results_.row_stride + j] = Output(block_[i * row_stride_ + j]);
      }
    } else {
      for (Index j = 0; j < length; ++j) {
        for (int i = 0; i < count_; ++i) {
          to[i * results_.row_stride + j * results_.col_stride] =
              Output(block_[i * row_stride_ + j]);
        }
      }
    }
  }

  detail::MatrixView<const Input> scores_;
  detail::MatrixView<Output> results_;
  const Mask& mask_;
  Index offset_, first_ = 0;
  Index block_length_, row_stride_, strip_;
  bool fits_;  ///< whole vectors fit the scratch
  int count_ = 0;
  alignas(64) Scalar block_[std::size_t{kCapacity}];
  alignas(64) Scalar lanes_[Size::rows * Size::panel];
  alignas(64) Scalar sums_[Size::rows * Size::panel];
  alignas(64) Scalar lost_[Size::rows * Size::panel];
  alignas(64) Scalar lane_max_[Size::rows * S::width];
  alignas(64) Scalar rescale_[Softmax::kRescaleSlots];
  Scalar maximum_[Softmax::kRescaleSlots];
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
