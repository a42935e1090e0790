// attn/kernel/pair_outputs.h: numbers of each pair, weights and scores, saved once a chunk's rows
// are finished.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "pair_rows.h"
#include "problem.h"
#include "scored_strip.h"
#include "softmax_rows.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     stages 1 and 2 of a chunk once more, in the engine's own functions; its rows' m and l
//          are known by now, so that a score is written as it is, or as the weight exp(s − m) / l
// TRAFFIC  packs the keys and computes Q·Kᵀ again; what is saved is written once and never read
// WHY      kept while they pass by, the scores would have to lie in the target until m and l are
//          known: its whole memory written, read and written again, no storage narrower than the
//          scores, no sum over heads; and the forward pass would carry it. On pre1k (8 heads of
//          1024 × 1024, d = 64) all weights add 0.7 of the call's time, a quarter of that for the
//          33 MB alone
// EDGES    pairs that the mask hides, keys of blocks that no row sees, and columns behind the last
//          key are written too, once
template <class Problem>
struct PairOutputs {
  using Scalar = typename Problem::Scalar;
  using S = detail::Simd<Scalar>;
  using Size = TileSize<Scalar>;
  using Saved = typename Problem::Saved;

  const Problem& problem;
  const Scratch<Scalar>& work;
  ScoredStrip<Problem>& strip;         ///< in the chunk whose pairs are saved
  const SoftmaxRows<Scalar>& softmax;  ///< complete

  void operator()() const {
    if constexpr (Saved::kWeights) save(problem.saved.weights, stage::masked);
    if constexpr (Saved::kScores) save(problem.saved.scores, problem.saved.scores.at);
  }

 private:
  template <class Target>
  void save(const Target& target, stage at) const {
    const auto& rows = strip.rows();
    if (!wants(target, rows.all())) return;
    PairRows<S, Target> together(target, problem.shape, softmax, work.scores,
                                 work.size.scored_rows);
    const Index length = strip.block_keys();
    for (Index first = 0; first < rows.keys(); first += length) {
      const KeyRange all{first, std::min(first + length, rows.keys())};
      const bool masked = at == stage::masked;
      const KeyBlock block{first, masked ? intersect(strip.visible(), all) : all};
      const bool seen =
          masked ? strip.open(block, Pack::keys) : strip.open_unmasked(block, Pack::keys);
      rows.each_strip([&](const Strip& of) {
        if (!wants(target, rows.of(of))) return;
        if (!together.has_room(of.rows)) together.write(all);
        Scalar* const s = together.scores();
        Visit<Scalar> visit;
        if (seen) visit = masked ? strip.score(of, block, s) : strip.score_until(at, of, block, s);
        hide_others(of.rows, visit, all.end - first, s);
        together.add(rows.from(of.first), of, !visit.empty());
      });
      together.write(all);
    }
    fill_behind(together, {rows.keys(), target.to.view.features});
  }

  /// Columns behind the last key of a shorter sequence.
  template <class Target>
  void fill_behind(PairRows<S, Target>& together, KeyRange columns) const {
    if (columns.empty()) return;
    const auto& rows = strip.rows();
    rows.each_strip([&](const Strip& of) {
      if (!together.has_room(of.rows)) together.fill(columns);
      together.add(rows.from(of.first), of, false);
    });
    together.fill(columns);
  }

  template <class Target>
  static bool wants(const Target& target, const QueryRows& rows) {
    return target.first_wanted(rows.begin + rows.first_token, rows.end + rows.first_token) >= 0;
  }

  /// −∞ to the scores of the block's first `keys` keys that were not visited, whatever stage 1 left
  /// there.
  static void hide_others(int rows, const Visit<Scalar>& visit, Index keys, Scalar* s) {
    Index begin = 0;
    for (int n = 0; n <= visit.segment_count; ++n) {
      const bool last = n == visit.segment_count;
      const Index end = last ? keys : visit.segments[n].first * Size::panel;
      for (int i = 0; i < rows && begin < end; ++i) {
        Scalar* const row = s + i * Size::score_stride;
        std::fill(row + begin, row + end, hidden_score<Scalar>());
      }
      if (!last) begin = visit.segments[n].end;
    }
  }
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
