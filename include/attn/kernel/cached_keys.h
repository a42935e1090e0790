// attn/kernel/cached_keys.h: keys and values of a cache, to the stages of the forward pass: nothing
// is packed but the newest panel.
// SPDX-License-Identifier: MIT
#pragma once

#include "../base/index_list.h"
#include "../mask/interval.h"
#include "cache_memory.h"
#include "chunks.h"
#include "pack.h"
#include "problem.h"
#include "stored_keys.h"
#include "visit.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// The keys and values of a call that come from a cache: both of them; the problem's `value` is
/// Absent.
template <class T>
struct CacheOperand {
  using Stored = T;
  using Scalar = cache_compute_t<T>;

  const CacheMemory<T>* memory;
  const detail::IndexList* chosen;  ///< the cache's sequence of each of the call's; null: the same
  bool shared;                      ///< one sequence for all

  Index sequence(Index b) const {
    if (shared) b = 0;
    return chosen != nullptr ? (*chosen)[b] : b;
  }
};

// WHAT     what PackedKeys answers, from panels that lie there already. A chunk of few rows
//          (decoding) reads them as they are stored, widened in registers; for more rows narrow
//          ones are widened into scratch once a block. The tail's rows are packed: less than a
//          panel
// EDGES    what lies behind the tail's last key is zero in its packed panel; values are zero up to
//          a whole depth step
// NUMERICS stored numbers become the compute scalar exactly, in registers or in scratch. A scale
//          multiplies the finished dot product, and the weight of a value: one rounding each,
//          wherever the row is computed
template <class Problem>
class CachedKeys {
  using Scalar = typename Problem::Scalar;
  using Element = typename Problem::Element;
  using S = detail::Simd<Scalar>;
  using F = Factors<S, Element>;
  using Size = TileSize<Scalar>;
  using Memory = CacheMemory<typename Problem::Key::Stored>;
  using T = typename Problem::Key::Stored;

 public:
  CachedKeys(const Problem& problem, const Scratch<Scalar>& work)
      : problem_(problem), memory_(*problem.key.memory), layout_(memory_.layout()), work_(work) {}

  void enter(const Chunk& chunk, Index rows) {
    const Index sequence = problem_.key.sequence(chunk.sequence);
    state_ = memory_.sequence(sequence);
    head_ = layout_.of_head(sequence, chunk.kv_head);
    few_ = !kPairs && rows <= Size::in_place_rows;
  }
  /// Blocks that a ring has lost are passed over in one step.
  Index next(Index block) const {
    const Index pinned = layout_.pinned_blocks * layout_.block;
    return block < pinned ? block : std::max(block, layout_.first_held(state_));
  }
  bool holds(Index block) const {
    return layout_.is_here(block / layout_.block) &&
           layout_.holds(state_, block, block + layout_.block);
  }

  void open(const QueryRows&, Index block, KeyRange keys, detail::Cover, Pack what) {
    const Index slot = layout_.slot(block / layout_.block);
    keys_ = memory_.keys(head_, slot);
    values_ = memory_.values(head_, slot);
    look_ahead(block);
    finite_ = memory_.not_finite(head_)[slot] == 0;
    if constexpr (kScaled) {
      key_scales_ = memory_.key_scales(head_, slot);
      value_scales_ = memory_.value_scales(head_, slot);
    }
    tail_ = (state_.length - block) / Size::panel;
    const Index first = (keys.begin - block) / Size::panel, end = keys.end - block,
                stored = std::min(tail_, (end + Size::panel - 1) / Size::panel);
    if (end > tail_ * Size::panel) {
      pack_keys<S>(Source<const T>{memory_.tail(head_), layout_.key_dim, 1}, 0,
                   {0, end - tail_ * Size::panel}, layout_.key_dim, layout_.depth,
                   F::in(work_.key) + tail_ * Size::panel * (layout_.depth / F::numbers));
    }
    if constexpr (kNarrow) {
      if (few_) return;
      widen_steps<S>(keys_, {first * layout_.depth, stored * layout_.depth}, F::in(work_.key));
      if (what == Pack::keys) return;
      for (Index c = 0; c < layout_.value_dim; c += Size::panel) {
        widen_steps<S>(values_ + c * layout_.rows,
                       {first * Size::panel, round_up(end, Size::depth)},
                       F::in(work_.value) + c * (work_.size.keys / F::numbers));
      }
    }
  }
  bool packed(Index) const { return true; }
  bool finite(int, const Visit<Scalar>&, const Scalar*) const { return finite_; }

  ATTN_INLINE void scores(const Element* query, const Segment& segment,
                          const ScoreTile<Scalar>& tile) const {
    // The panels that are stored, then the tail. Maxima are those of the scores as they are scaled.
    const Index depth = layout_.depth;
    const Segment stored{segment.first, std::min(segment.last, tail_),
                         std::min(segment.end, tail_ * Size::panel), segment.full},
        newest{std::max(segment.first, tail_), segment.last, segment.end, segment.full};
    Scalar* const lane_max = kScaled ? nullptr : tile.lane_max;
    const auto scale = problem_.scale_of_sums();
    if constexpr (!kPairs) {
      if (few_)
        scores_of_few<S>(tile.strip.rows, query,
                         StoredKeys<S, T>(keys_, next_keys_, depth, layout_.rows),
                         stored.first * Size::panel, stored.end, tile.scores, lane_max);
    }
    if (!few_) {
      kernel::scores<S>(tile.strip.rows, query, wide_keys(), depth, stored, tile.scores, lane_max,
                        scale);
    }
    kernel::scores<S>(tile.strip.rows, query, F::in(work_.key), depth, newest, tile.scores,
                      lane_max, scale);
    if constexpr (kScaled) {
      scale_scores<S>(tile.strip.rows, key_scales_, segment.first * Size::panel, segment.end,
                      tile.scores, tile.lane_max);
    }
  }
  void weighted_sum(int rows, const Visit<Scalar>& visit, Element* p, const Scalar* rescale,
                    Scalar* output) const {
    const Index features = layout_.value_dim;
    if constexpr (kScaled) scale_weights<S>(rows, value_scales_, visit.all(), p);
    if constexpr (!kPairs) {
      if (few_ && finite_)
        return weighted_sum_of_few<S>(
            rows, p,
            StoredValues<S, T>(values_, next_values_, layout_.rows * Size::panel, features),
            visit.all(), rescale, output, work_.size.features);
      if (few_)
        return accumulate_visible<S>(rows, features, p, p,
                                     ValuesInPanels<S, T>{values_, layout_.rows * Size::panel},
                                     visit.all(), rescale, output, work_.size.features);
    }
    kernel::weighted_sum<S>(rows, features, finite_, p, wide_values(), value_stride(), visit.all(),
                            rescale, output, work_.size.features);
  }

 private:
  static constexpr bool kNarrow = !std::is_same_v<T, Scalar>, kScaled = is_scaled_v<T>,
                        kPairs = !std::is_same_v<Element, Scalar>;
  static_assert(!kPairs || (kNarrow && !kScaled));

  /// Which block is likely read next: the one behind, or the first of the next head.
  void look_ahead(Index block) {
    const Index behind = block + layout_.block;
    const bool here = behind < state_.length && layout_.is_here(behind / layout_.block);
    const Index head = here ? head_ : std::min(head_ + 1, layout_.heads() - 1),
                slot = here ? layout_.slot(behind / layout_.block) : 0;
    next_keys_ = memory_.keys(head, slot);
    next_values_ = memory_.values(head, slot);
  }

  const Element* wide_keys() const {
    if constexpr (kNarrow) {
      return F::in(work_.key);
    } else {
      return keys_;
    }
  }
  const Element* wide_values() const {
    if constexpr (kNarrow) {
      return F::in(work_.value);
    } else {
      return values_;
    }
  }
  Index value_stride() const {
    return (kNarrow ? work_.size.keys / F::numbers : layout_.rows) * Size::panel;
  }

  const Problem& problem_;
  const Memory& memory_;
  const CacheLayout& layout_;
  const Scratch<Scalar>& work_;
  CacheSequence state_{};
  Index head_ = 0, tail_ = 0;  ///< the panel of the block whose keys lie in rows
  const T *keys_ = nullptr, *values_ = nullptr;
  const T *next_keys_ = nullptr, *next_values_ = nullptr;  ///< of the block to ask memory for
  const Scalar *key_scales_ = nullptr, *value_scales_ = nullptr;
  bool few_ = false, finite_ = true;
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
