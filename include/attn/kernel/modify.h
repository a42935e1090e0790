// attn/kernel/modify.h: stage 2, modifiers and mask on the scores of a strip and a block.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "chunk_rows.h"
#include "online_softmax.h"
#include "problem.h"
#include "strip_tables.h"
#include "visit.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     s = modify(s), then −∞ where the mask hides; lane_max is raised to the maxima of that
// PICTURE  row after row; where biases or bools lie by columns, panel after panel and then row
//          after row, so that all rows of the strip go through a line of a column before the next
//          (strip_tables.h)
// EDGES    whole panels of keys that all rows see are not asked for; the last packets are hidden
//          beyond the keys that are there
template <class Problem>
class ModifyScores {
  using Scalar = typename Problem::Scalar;
  using S = detail::Simd<Scalar>;
  using Size = TileSize<Scalar>;
  using Mask = typename Problem::Mask;
  using Modify = typename Problem::Modify;
  using Tile = ScoreTile<Scalar>;

 public:
  ModifyScores(const Problem& problem, const ChunkRows<Scalar>& rows)
      : problem_(problem), rows_(rows) {}

  /// Stage 2 on the scores of a segment: modifiers, then −∞ where the mask hides; lane_max follows.
  void operator()(const Tile& tile, const Segment& segment) const {
    masked(tile, segment, [&](const Segment& part, const auto& modifiers_of, const auto& mask) {
      modify_part(tile, part, modifiers_of, mask);
    });
  }
  /// The same to the bit, with slopes; lane_max is left out. Hidden pairs have slopes 0.
  void operator()(const Tile& tile, const Segment& segment,
                  const SlopeStrips<Scalar>& slopes) const {
    masked(tile, segment, [&](const Segment& part, const auto& modifiers_of, const auto& mask) {
      modify_part(tile, part, modifiers_of, mask, slopes);
    });
  }

  /// Modifiers alone, up to a stage before the mask; the maxima are left out.
  void until(stage last, const Tile& tile, const Segment& segment) const {
    with_modifiers(tile, segment, false, [&](const Segment& part, const auto& modifiers_of) {
      auto cursor = rows_.from(tile.strip.first);
      for (int i = 0; i < tile.strip.rows; ++i, cursor.next()) {
        Scalar* const s = tile.row(i);
        const auto modify = modifiers_of(i, cursor.row);
        for (Index j = part.first * Size::panel; j < part.end; j += S::width) {
          const auto score = S::load(s + j);
          if (last == stage::softcapped) {
            S::store(s + j, modify.template apply_until<S, stage::softcapped>(score, cursor.row,
                                                                              tile.block + j));
          } else {
            S::store(s + j, modify.template apply_seen<S>(score, cursor.row, tile.block + j,
                                                          S::first_lanes(part.end - j)));
          }
        }
      }
    });
  }

 private:
  /// Calls f(part of the segment, modifiers_of, mask) with the modifiers and the mask of the
  /// strip's rows.
  template <class F>
  void masked(const Tile& tile, const Segment& segment, const F& f) const {
    if constexpr (detail::asks_bools_v<Mask>) {
      if (!segment.full && problem_.mask.by_columns()) {
        const auto cursor = rows_.from(tile.strip.first);
        StripMask<S, Mask> mask(problem_.mask, cursor, tile.strip.rows, length_of(cursor.row));
        with_modifiers(tile, segment, true, [&](const Segment& part, const auto& modifiers_of) {
          mask.load(tile.block + part.first * Size::panel);
          f(part, modifiers_of, mask);
        });
        return;
      }
    }
    with_modifiers(tile, segment, false, [&](const Segment& part, const auto& modifiers_of) {
      f(part, modifiers_of, AnyRow{problem_.mask});
    });
  }

  /// Calls f(part of the segment, modifiers_of(i, row i)) for all of it at once, or panel by panel
  /// where biases or masks lie by columns:
  /// a line of a column is then gone through by all rows of the strip before the next.
  template <class F>
  void with_modifiers(const Tile& tile, const Segment& segment, bool by_panels, const F& f) const {
    const auto each_panel = [&](const auto& g) {
      for (Index n = segment.first; n < segment.last; ++n)
        g(Segment{n, n + 1, std::min(segment.end, (n + 1) * Size::panel), segment.full});
    };
    if constexpr (Modify::kReadsTable) {
      const auto& table = problem_.modify.table();
      if (table.by_columns()) {
        const auto cursor = rows_.from(tile.strip.first);
        StripTable<S, typename std::decay_t<decltype(table)>::Scalar> biases(
            table, cursor, tile.strip.rows, length_of(cursor.row));
        each_panel([&](const Segment& part) {
          biases.load(tile.block + part.first * Size::panel);
          f(part, [&](int i, const QueryRow&) {
            return problem_.modify.with(
                detail::BiasesInScratch<Scalar>{biases.row(i), biases.first()});
          });
        });
        return;
      }
    }
    const auto modifiers_of = [&](int, const QueryRow& row) { return problem_.modify.of(row); };
    if (by_panels) {
      each_panel([&](const Segment& part) { f(part, modifiers_of); });
    } else {
      f(segment, modifiers_of);
    }
  }

  /// The mask as it is asked row by row.
  struct AnyRow {
    const Mask& mask;
    ATTN_INLINE typename S::Mask lanes(int, const QueryRow& row, Index key) const {
      return mask.template lanes<S>(row, key);
    }
  };

  /// Stage 2 by the modifiers_of(i, row) and mask.lanes(i, row, key) of the strip's row i.
  template <class ModifiersOf, class MaskOfStrip>
  void modify_part(const Tile& tile, const Segment& segment, const ModifiersOf& modifiers_of,
                   const MaskOfStrip& mask) const {
    const Index block = tile.block;
    auto cursor = rows_.from(tile.strip.first);
    for (int i = 0; i < tile.strip.rows; ++i, cursor.next()) {
      const QueryRow row = cursor.row;
      const auto modifiers = modifiers_of(i, row);
      Scalar *const s = tile.row(i), *const lane_max = tile.lane_max + i * S::width;
      typename S::Packet
          largest[Size::packets];  // apart, so that one maximum need not wait for another
      ATTN_UNROLL
      for (auto& lane : largest) lane = S::load(lane_max);
      Index j = segment.first * Size::panel;
      for (; segment.full && j + Size::panel <= segment.end; j += Size::panel) {
        ATTN_UNROLL
        for (int v = 0; v < Size::packets; ++v) {
          Scalar* at = s + j + v * S::width;
          const auto score =
              modifiers.template apply<S>(S::load(at), row, block + j + v * S::width);
          S::store(at, score);
          largest[v] = S::max(score, largest[v]);
        }
      }
      for (; j < segment.end; j += S::width) {  // packets behind it, of the depth step, are hidden
        auto visible = S::first_lanes(segment.end - j);
        if (!segment.full) visible = S::mask_and(visible, mask.lanes(i, row, block + j));
        auto score = modifiers.template apply_seen<S>(S::load(s + j), row, block + j, visible);
        score = S::select(visible, score, S::set(hidden_score<Scalar>()));
        S::store(s + j, score);
        largest[0] = S::max(score, largest[0]);
      }
      ATTN_UNROLL
      for (int v = 1; v < Size::packets; ++v) largest[0] = S::max(largest[0], largest[v]);
      S::store(lane_max, largest[0]);
    }
  }

  /// The same with slopes, all packets as at the ragged end.
  template <class ModifiersOf, class MaskOfStrip>
  void modify_part(const Tile& tile, const Segment& segment, const ModifiersOf& modifiers_of,
                   const MaskOfStrip& mask, const SlopeStrips<Scalar>& kept) const {
    constexpr int count = Modify::kSlopes;
    const auto zero = S::set(Scalar(0)),
               lowest = S::set(Scalar(Eigen::NumTraits<Scalar>::lowest()));
    auto cursor = rows_.from(tile.strip.first);
    for (int i = 0; i < tile.strip.rows; ++i, cursor.next()) {
      const QueryRow row = cursor.row;
      const auto modifiers = modifiers_of(i, row);
      Scalar* const s = tile.row(i);
      for (Index j = segment.first * Size::panel; j < segment.end; j += S::width) {
        auto visible = S::first_lanes(segment.end - j);
        if (!segment.full) visible = S::mask_and(visible, mask.lanes(i, row, tile.block + j));
        typename S::Packet slopes[std::size_t{count > 0 ? count : 1}];
        auto score = modifiers.template apply_with_slopes<S>(S::load(s + j), row, tile.block + j,
                                                             visible, slopes);
        score = S::select(visible, score, S::set(hidden_score<Scalar>()));
        S::store(s + j, score);
        ATTN_UNROLL
        for (int n = 0; n < count; ++n)
          S::store(kept.slope(n, i) + j, S::select(visible, slopes[n], zero));
        if (kept.seen != nullptr)
          S::store(kept.seen_of(i) + j, S::where_less(score, lowest, zero, S::set(Scalar(1))));
      }
    }
  }

  /// Rows of the row's sequence.
  Index length_of(const QueryRow& row) const { return problem_.shape.queries.length(row.sequence); }

  const Problem& problem_;
  const ChunkRows<Scalar>& rows_;
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
