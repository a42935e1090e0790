// attn/kernel/pair_outputs.h: numbers of each pair, weights and scores, saved once a chunk's rows
// are finished.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../mask/interval.h"
#include "pair_rows.h"
#include "row_outputs.h"
#include "visit.h"
#include "dot_products.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     stages 1 and 2 of a chunk once more, in the engine's own functions; its rows' m and l
//          are known by now, so that a score is written as it is, or as the weight exp(s − m) / l
// TRAFFIC  packs the keys and computes Q·Kᵀ again; what is saved is written once and never read
// WHY      kept while they pass by, the scores would have to lie in the target until m and l are
//          known: its whole memory written, read and written again, no storage narrower than the
//          scores, no sum over heads; and attend() would carry it. On pre1k (8 heads of 1024 ×
//          1024, d = 64) all weights add 0.7 of the call's time, a quarter of that for the 33 MB
//          alone
// EDGES    pairs that the mask hides, keys of blocks that no row sees, and columns behind the last
//          key are written too, once
template <class Pass>
struct Replay {
  using Saved = typename Pass::Saved;
  using Scalar = typename Pass::Scalar;
  using S = typename Pass::S;
  using Size = TileSize<Scalar>;

  Pass& pass;

  void operator()() const {
    if constexpr (Saved::kWeights) save(saved().weights, stage::masked);
    if constexpr (Saved::kScores) save(saved().scores, saved().scores.at);
  }

 private:
  const Saved& saved() const { return pass.problem_.saved; }

  template <class Target>
  void save(const Target& target, stage at) const {
    const auto& shape = pass.problem_.shape;
    const QueryRows rows = pass.rows_.all();
    if (!wants(target, rows)) return;
    const bool before_mask = at != stage::masked;
    const KeyRange visible = before_mask
                                 ? KeyRange{0, pass.rows_.keys()}
                                 : intersect(pass.problem_.mask.keys(rows), {0, pass.rows_.keys()});
    const Index block_keys = Size::key_block(shape.key_dim, shape.value_dim);
    PairRows<S, Target> together(target, pass.work_, shape);
    Scalar* const scores = pass.work_.scores;
    for (Index block = 0; block < pass.rows_.keys(); block += block_keys) {
      const KeyRange all{block, std::min(block + block_keys, pass.rows_.keys())};
      const KeyRange keys = intersect(visible, all);
      const detail::Cover covered =
          before_mask ? detail::Cover::all : detail::cover(pass.problem_.mask, rows, keys);
      const bool seen =
          !keys.empty() && covered != detail::Cover::none && pass.keys_and_values_.holds(block);
      if (seen) pass.keys_and_values_.open(rows, block, keys, covered, Pass::Pack::keys);
      for (Index strip = 0; strip < pass.rows_.strips().count; ++strip) {
        const Index first = pass.rows_.strips().begin(strip);
        const int count = pass.rows_.strips().rows(strip);
        if (!wants(target, pass.rows_.between(first, first + count))) continue;
        if (!together.has_room(count)) together.write(all);
        pass.work_.scores = together.scores();
        typename Pass::Visit visit;
        if (seen) score(at, first, count, block, keys, visit);
        hide_others(count, visit, all.end - block);
        together.add(pass.rows_.from(first), first, count, visit.segment_count > 0);
      }
      together.write(all);
    }
    pass.work_.scores = scores;
    fill_behind(together, {pass.rows_.keys(), target.to.view.features});
  }

  /// Columns behind the last key of a shorter sequence.
  template <class Target>
  void fill_behind(PairRows<S, Target>& together, KeyRange columns) const {
    for (Index strip = 0; strip < pass.rows_.strips().count && !columns.empty(); ++strip) {
      const Index first = pass.rows_.strips().begin(strip);
      const int count = pass.rows_.strips().rows(strip);
      if (!together.has_room(count)) together.fill(columns);
      together.add(pass.rows_.from(first), first, count, false);
    }
    if (!columns.empty()) together.fill(columns);
  }

  template <class Target>
  static bool wants(const Target& target, const QueryRows& rows) {
    return target.first_wanted(rows.begin + rows.first_token, rows.end + rows.first_token) >= 0;
  }

  /// −∞ to the scores of the block's first `keys` keys that were not visited, whatever stage 1 left
  /// there.
  void hide_others(int rows, const typename Pass::Visit& visit, Index keys) const {
    Index begin = 0;
    for (int n = 0; n <= visit.segment_count; ++n) {
      const bool last = n == visit.segment_count;
      const Index end = last ? keys : visit.segments[n].first * Size::panel;
      for (int i = 0; i < rows && begin < end; ++i) {
        Scalar* const s = pass.work_.scores + i * Size::score_stride;
        std::fill(s + begin, s + end, hidden_score<Scalar>());
      }
      if (!last) begin = visit.segments[n].end;
    }
  }

  /// The scores of a strip and a block at a stage, and which of them: none where the strip sees
  /// none.
  void score(stage at, Index first, int rows, Index block, KeyRange keys,
             typename Pass::Visit& visit) const {
    if (at == stage::masked) {
      const QueryRows strip_rows = pass.rows_.between(first, first + rows);
      const KeyRange seen = pass.seen_keys(strip_rows, keys);
      if (!seen.empty()) pass.score(strip_rows, first, rows, block, seen, visit);
      return;
    }
    auto& work = pass.work_;
    const Index count = keys.end - block;
    visit.add(0, (count + Size::panel - 1) / Size::panel, count, true);
    const Segment& all = visit.segments[0];
    pass.dot_products(first, rows, all, work.unused_max);
    if (at == stage::scaled) return;
    pass.modify_.with_modifiers(
        first, rows, block, all, false, [&](const Segment& part, const auto& modifiers_of) {
          auto cursor = pass.rows_.from(first);
          for (int i = 0; i < rows; ++i, cursor.next()) {
            Scalar* s = work.scores + i * Size::score_stride;
            const auto modify = modifiers_of(i, cursor.row);
            for (Index j = part.first * Size::panel; j < part.end; j += S::width) {
              const auto score = S::load(s + j);
              if (at == stage::softcapped) {
                S::store(s + j, modify.template apply_until<S, stage::softcapped>(score, cursor.row,
                                                                                  block + j));
              } else {
                const auto there = S::less(
                    S::iota(), S::set(Scalar(int(std::min<Index>(part.end - j, S::width)))));
                S::store(s + j, modify.template apply_seen<S>(score, cursor.row, block + j, there));
              }
            }
          }
        });
  }
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
