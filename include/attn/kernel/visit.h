// attn/kernel/visit.h: what a strip of rows visits of a block of keys.
// SPDX-License-Identifier: MIT
#pragma once

#include "register_tile.h"
#include "strips.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// What of a block is wanted where its panels are opened.
enum class Pack { keys, keys_and_values };

/// Panels [first, last) of a block, up to its key `end`; `full`: all rows of the strip see all
/// these keys.
struct Segment {
  Index first, last, end;
  bool full;
};

/// A block of keys: from key `first` on, of which `keys` may be seen.
struct KeyBlock {
  Index first;
  KeyRange keys;
};

/// Calls f(keys) for each run of panels of a block for which packed(panel, its keys) holds.
template <class Scalar, class Packed, class F>
void each_packed_run(const KeyBlock& block, const Packed& packed, const F& f) {
  using Size = TileSize<Scalar>;
  KeyRange run{};
  for (Index panel = 0; panel < Size::max_key_block / Size::panel; ++panel) {
    const Index first = block.first + panel * Size::panel;
    const KeyRange part = intersect(block.keys, {first, first + Size::panel});
    if (packed(panel, part)) {
      run = hull(run, part);
    } else if (!run.empty()) {
      f(run);
      run = {};
    }
  }
  if (!run.empty()) f(run);
}

/// The scores of a strip and of keys from `block` on.
template <class Scalar>
struct ScoreTile {
  Strip strip;
  Index block;
  Scalar* scores;    ///< row i at i · TileSize::score_stride
  Scalar* lane_max;  ///< of each row a packet: its largest scores by lanes; null: not asked for

  Scalar* row(int i) const { return scores + i * TileSize<Scalar>::score_stride; }
};

/// What a backward pass keeps of a strip's scores beside them, each laid out as they are.
template <class Scalar>
struct SlopeStrips {
  using Size = TileSize<Scalar>;
  static constexpr Index kStrip = Size::rows * Size::score_stride;

  Scalar*
      slopes;  ///< ∂(score after)/∂(score before) of the modifiers that have one, in their order
  Scalar* seen = nullptr;  ///< 1 where a pair is seen, else 0; null: not asked for

  Scalar* slope(int n, int i) const { return slopes + n * kStrip + i * Size::score_stride; }
  Scalar* seen_of(int i) const { return seen + i * Size::score_stride; }
};

/// Panels to score, and the same as runs of keys without gaps.
template <class Scalar>
struct Visit {
  using Size = TileSize<Scalar>;
  static constexpr int kMost = int(Size::max_key_block / Size::panel);
  Segment segments[std::size_t{kMost}];
  DepthRange runs[std::size_t{kMost}];
  int segment_count = 0, run_count = 0;

  bool empty() const { return segment_count == 0; }
  Runs all() const { return {runs, run_count}; }
  /// Calls f(its first key in the block, end of its segment) for each packet with a visited key.
  template <class F>
  ATTN_INLINE void each_packet(const F& f) const {
    for (int n = 0; n < segment_count; ++n) {
      for (Index j = segments[n].first * Size::panel; j < segments[n].end; j += Size::width)
        f(j, segments[n].end);
    }
  }

  void add(Index first, Index last, Index end, bool full) {
    if (segment_count > 0 && segments[segment_count - 1].last == first &&
        segments[segment_count - 1].full == full) {
      segments[segment_count - 1].last = last;
      segments[segment_count - 1].end = end;
    } else {
      segments[segment_count++] = {first, last, end, full};
    }
    const Index begin = first * Size::panel, padded = round_up(end, Size::depth);
    if (run_count > 0 && runs[run_count - 1].end == begin) {
      runs[run_count - 1].end = padded;
    } else {
      runs[run_count++] = {begin, padded};
    }
  }
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
