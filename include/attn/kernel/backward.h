// attn/kernel/backward.h: the backward pass: stages 1 and 2 once more, then the gradients of
// queries, keys and values in the same nest.
// SPDX-License-Identifier: MIT
//
//   for each sequence, key/value head and chunk of query rows:                   // backward_schedule.h
//     g = dY / l, δ = (dY · O − d(log-sum-exp)) / l, dq = 0                      //    gradient_rows.h
//     for each block of keys that the mask lets some row see:                    //    scored_strip.h: each_block
//       open k, v                                                                //    packed_keys.h, gradient_keys.h
//       for each 96 rows, the last first:
//         for each strip of rows that sees some of it:
//           s = modify(scale · q · kᵀ), hidden                                   // 1, 2  scored_strip.h: the forward pass's bits
//           e = exp(s − m)                                                       // 3  online_softmax.h: the same
//           ds = e · (g · vᵀ − δ)                                                // 4  dot_products.h
//           ds = ∂loss/∂(scale · q · kᵀ)                                         // 5  modifier_gradients.h
//           dq += ds · k                                                         // 6  weighted_sum.h
//         dv += eᵀ · g, dk += dsᵀ · (scale · q)                                  // 7  sums_over_rows.h
//     dq = scale · dq, turned back                                               // 8  write_gradient.h
//   dk, dv of a sequence and head, behind its last chunk                         //    the same
//
// LIMIT  (AVX-512; cycles a row and 16 keys at d = 64) 160 for the five products, 5.3 for exp, 6
//        for storing s, e, dp and ds and loading them, 2.5 for sums in and out of registers, 2 for
//        ds: 0.91 of the peak; tiles run at 0.98, packing seven operands takes 3 %, row ends 1 to
//        2 %: 0.85.
// BITS   a row of dq is summed over the blocks upwards; a row of dk and dv over 96 rows at a time,
//        from the last to the first. Chunks are whole ones of these and go the same way, in turns
//        (in_order.h): neither their size nor the workers change an order.
#pragma once

#include "backward_scratch.h"
#include "dot_products.h"
#include "drop_weights.h"
#include "scored_strip.h"
#include "in_order.h"
#include "sums_over_rows.h"
#include "weight_check.h"
#include "weighted_sum.h"
#include "write_gradient.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// The least weight that a pair has; a lesser one counts as 0, so that a hidden pair's 0 meets no
/// infinity.
template <class Scalar>
inline Scalar least_weight() {
  if constexpr (std::numeric_limits<Scalar>::is_specialized) {
    return (std::numeric_limits<Scalar>::min)();
  } else {
    return Scalar(1e-37);
  }
}

template <class Problem, class Check = WeightCheck<Problem>>
class BackwardPass {
  using Scored = typename Problem::Scored;
  using Scalar = typename Problem::Scalar;
  using S = detail::Simd<Scalar>;
  using Size = TileSize<Scalar>;
  static constexpr bool kQuery = detail::is_there_v<typename Problem::QueryGradient>;
  static constexpr bool kKey = detail::is_there_v<typename Problem::KeyGradient>;
  static constexpr bool kValue = detail::is_there_v<typename Problem::ValueGradient>;
  using ScoreGradients = typename Problem::ScoreGradients;
  static constexpr bool kQuerySums = kQuery || ScoreGradients::kScale;
  /// Gradients of scores are needed.
  static constexpr bool kScores = kQuerySums || kKey || ScoreGradients::kOfPairs;

 public:
  BackwardPass(const Problem& problem, const BackwardScratch<Scalar>& scratch)
      : problem_(problem),
        work_(scratch),
        strip_(problem.scored, work_.scored),
        keys_(problem.scored, work_.keys),
        rows_(problem, work_.rows),
        modifiers_(problem, strip_.rows(), work_.slopes, work_.bias_sums),
        check_(problem, work_.weight_sums) {
    std::fill_n(ones_, std::size(ones_), Scalar(1));
  }

  /// Adds what a chunk of rows gives to the sums of its keys, and writes its queries' gradients.
  /// `first`: the first of the chunks that share the sums.
  template <class Turn>
  void operator()(const Chunk& chunk, const KeySums<Scalar>& sums, Turn& turn, Index first) {
    sums_ = sums;
    strip_.enter(chunk, Strips::tall<Scalar>(chunk.end - chunk.begin));
    keys_.enter(chunk);
    const ChunkRows<Scalar>& rows = strip_.rows();
    rows_.enter(rows, strip_.packed(rows.strips()[rows.strips().count - 1]) -
                          rows.strips().begin(rows.strips().count - 1) * work_.rows.query_depth);
    check_.enter(rows.count());
    if constexpr (kQuerySums)
      std::fill_n(work_.query_sums, rows.count() * key_features(), Scalar(0));
    strip_.each_block(strip_.visible(), Pack::keys, [&](const KeyBlock& block) {
      keys_.open(block, [&](Index panel) { return strip_.keys_and_values().packed(panel); });
      if constexpr (kKey || kValue || ScoreGradients::kBias) {
        turn.reach(block.first);
        turn.wait(problem_.scores.shared() ? 0 : first, block.first);
      }
      for (Index n = (rows.count() - 1) / Size::gradient_rows; n >= 0; --n)
        add(n * Size::gradient_rows, block);
    });
    check_.leave(rows);
    if constexpr (kQuerySums)
      WriteGradient<Problem>{problem_}.queries(rows, work_.query_sums, key_features(),
                                               work_.rows.row);
  }

 private:
  using Panels = std::uint64_t;  ///< a set of a block's
  static_assert(Visit<Scalar>::kMost <= 64, "a bit for each panel of a block");
  static constexpr Index kStrips = Size::gradient_rows / Size::rows;

  Index key_features() const { return round_up(problem_.scored.shape.key_dim, Size::panel); }
  Index value_features() const { return round_up(problem_.scored.shape.value_dim, Size::panel); }

  /// Stages 1 to 7 of gradient_rows rows, from one on, and a block.
  void add(Index first, const KeyBlock& block) {
    const ChunkRows<Scalar>& rows = strip_.rows();
    const Index end = std::min<Index>(first + Size::gradient_rows, rows.count()),
                first_strip = first / Size::rows,
                strips = (end - first + Size::rows - 1) / Size::rows;
    const bool finite = keys_.finite() && rows_.finite(first);
    Panels seen[std::size_t{kStrips}], all = 0;
    modifiers_.begin(first);
    for (Index n = 0; n < strips; ++n) {
      const Strip strip = rows.strips()[first_strip + n];
      seen[n] = take(strip, (strip.first - first) * Size::score_stride, block, finite);
      all |= seen[n];
    }
    modifiers_.end(first, block);
    const auto each_panel = [&](const auto& f) {
      DepthRange runs[std::size_t{kStrips}];
      for (Index panel = 0; panel < Visit<Scalar>::kMost && all >> panel != 0; ++panel) {
        if ((all >> panel & 1) == 0) continue;
        const int count = rows_of(panel, seen, strips, end - first, finite, runs);
        f(panel, Runs{runs, count});
      }
    };
    if constexpr (kKey) {
      each_panel([&](Index panel, Runs runs) {
        add_panel(panel, runs, block, work_.score_gradients, rows_.query_rows(first), sums_.key,
                  problem_.scored.shape.key_dim, finite);
      });
    }
    if constexpr (kValue) {
      if constexpr (Scored::kDrops) {
        if (!finite) drop_marked(first, strips, block);
      }
      each_panel([&](Index panel, Runs runs) {
        add_panel(panel, runs, block, work_.scored.scores, rows_.gradient_rows(first), sums_.value,
                  problem_.scored.shape.value_dim, finite);
      });
    }
  }

  /// Stages 1 to 6 of a strip, whose pairs are kept from `at` on. Returns the panels that it
  /// visits.
  Panels take(const Strip& strip, Index at, const KeyBlock& block, bool finite) {
    Scalar *const e = work_.scored.scores + at, *const ds = work_.score_gradients + at;
    const Visit<Scalar> visit = scored(strip, block, e);  // 1, 2
    if (visit.empty()) return 0;
    weigh(strip, visit, e, finite ? Hidden::zero : Hidden::marked);  // 3
    if constexpr (kScores) {
      score_gradients(strip, block, visit, finite, e, ds);  // 4
      modifiers_(strip, block, visit, ds);                  // 5
    } else if constexpr (Scored::kDrops) {
      if (finite) {
        drop_weights<S, Scalar>(problem_.scored.dropout, strip_.rows().from(strip.first),
                                strip.rows, block.first, visit.all(), Hidden::zero, e);
      }
    }
    if constexpr (kQuerySums) add_query(strip, visit, e, ds, finite);  // 6
    return complete(strip, visit, e, ds, finite);
  }
  Visit<Scalar> scored(const Strip& strip, const KeyBlock& block, Scalar* s) {
    if constexpr (kScores) {
      return strip_.score(strip, block, s, modifiers_.kept());
    } else {
      return strip_.score(strip, block, s);
    }
  }
  void weigh(const Strip& strip, const Visit<Scalar>& visit, Scalar* e, Hidden hidden) {
    using Softmax = OnlineSoftmax<S>;
    const auto weigh = hidden == Hidden::zero ? Softmax::template weigh<Hidden::zero>
                                              : Softmax::template weigh<Hidden::marked>;
    weigh(strip.rows, rows_.maximum(strip.first), nullptr, e, Size::score_stride, visit.all(),
          sums_of_weights_);
    check_.add(strip, sums_of_weights_);
  }

  /// ds = e · (g · vᵀ − δ), 0 where a pair is hidden, whatever its value holds.
  void score_gradients(const Strip& strip, const KeyBlock& block, const Visit<Scalar>& visit,
                       bool finite, Scalar* e, Scalar* ds) const {
    for (int n = 0; n < visit.segment_count; ++n) {
      kernel::scores<S>(strip.rows, rows_.gradient_strip(strip), keys_.value_columns(),
                        keys_.value_depth(), visit.segments[n], ds, nullptr);
    }
    auto cursor = strip_.rows().from(strip.first);
    for (int i = 0; i < strip.rows; ++i, cursor.next()) {
      const Index at = i * Size::score_stride;
      const auto delta = S::set(*rows_.delta(strip.first + i));
      for (int n = 0; n < visit.run_count; ++n) {
        const DepthRange& run = visit.runs[n];
        if constexpr (Scored::kDrops) {
          differentiate_kept(cursor.row, block, run, delta, finite, e + at, ds + at);
        } else {
          for (Index j = run.begin; j < run.end; j += S::width)
            S::store(ds + at + j, differentiated(S::load(e + at + j), S::load(ds + at + j), delta));
        }
      }
    }
  }
  static ATTN_INLINE typename S::Packet differentiated(const typename S::Packet& e,
                                                       const typename S::Packet& dp,
                                                       const typename S::Packet& delta) {
    return S::where_less(e, S::set(least_weight<Scalar>()), S::set(Scalar(0)),
                         S::mul(e, S::sub(dp, delta)));
  }
  /// A row under dropout: ds = e · (D · dp − δ), and e = D · e, for dv, where no pair is marked.
  void differentiate_kept(const QueryRow& row, const KeyBlock& block, const DepthRange& run,
                          const typename S::Packet& delta, bool finite, Scalar* e,
                          Scalar* ds) const {
    constexpr Index kKeys = 32, kPackets = kKeys / S::width;
    const auto pairs = problem_.scored.dropout.of(row);
    const auto zero = S::set(Scalar(0));
    for (Index first = run.begin / kKeys * kKeys; first < run.end; first += kKeys) {
      typename S::Mask kept[std::size_t{kPackets}];
      pairs.template keeps<S>(block.first + first, kept);
      for (int v = 0; v < int(kPackets); ++v) {
        const Index j = first + v * S::width;
        if (j < run.begin || j >= run.end) continue;
        const auto weight = S::load(e + j);
        S::store(ds + j, differentiated(weight, S::select(kept[v], S::load(ds + j), zero), delta));
        if (finite) S::store(e + j, S::select(kept[v], weight, zero));
      }
    }
  }

  void add_query(const Strip& strip, const Visit<Scalar>& visit, const Scalar* e, const Scalar* ds,
                 bool finite) const {
    Scalar* const sums = work_.query_sums + strip.first * key_features();
    const Index features = problem_.scored.shape.key_dim;
    if (finite) {
      weighted_sum<S>(strip.rows, features, true, ds, keys_.key_rows(), keys_.panel_stride(),
                      visit.all(), ones_, sums, key_features());
    } else {
      accumulate_visible<S>(strip.rows, features, ds, e,
                            ValuesInPanels<S, Scalar>{keys_.key_rows(), keys_.panel_stride()},
                            visit.all(), ones_, sums, key_features());
    }
  }

  /// What stands for a pair that is not visited.
  static Scalar unseen(bool finite) { return finite ? Scalar(0) : hidden_weight<Scalar>(); }

  /// Fills visited panels behind their last visited key. Returns them.
  Panels complete(const Strip& strip, const Visit<Scalar>& visit, Scalar* e, Scalar* ds,
                  bool finite) const {
    Panels seen = 0;
    for (int n = 0; n < visit.segment_count; ++n) {
      const Segment& segment = visit.segments[n];
      for (Index panel = segment.first; panel < segment.last; ++panel) seen |= Panels(1) << panel;
    }
    for (int n = 0; n < visit.run_count; ++n) {
      const Index begin = visit.runs[n].end, end = round_up(begin, Size::panel);
      if (begin < end) fill(0, strip.rows, {begin, end}, e, ds, finite);
    }
    return seen;
  }
  /// Columns of rows are those of pairs that are not visited.
  static void fill(Index begin, Index end, DepthRange columns, Scalar* e, Scalar* ds, bool finite) {
    for (Index i = begin * Size::score_stride; i < end * Size::score_stride;
         i += Size::score_stride) {
      std::fill(e + i + columns.begin, e + i + columns.end, unseen(finite));
      std::fill(ds + i + columns.begin, ds + i + columns.end, Scalar(0));
    }
  }

  /// Stage 7 of one panel of keys: sums += pᵀ · b, over the rows that visit it.
  void add_panel(Index panel, Runs rows, const KeyBlock& block, const Scalar* p, const Scalar* b,
                 Scalar* sums, Index features, bool finite) const {
    const Index stride = round_up(features, Size::panel), column = panel * Size::panel;
    sum_panel_over_rows<S>({p + column, b, rows, sums + (block.first + column) * stride, stride},
                           finite ? nullptr : work_.scored.scores + column, features,
                           rows_.panel_stride());
  }
  /// Where hidden pairs are marked, those that are dropped are as well: behind their scores'
  /// gradients, before their values'.
  void drop_marked(Index first, Index strips, const KeyBlock& block) const {
    const DepthRange all{0, round_up(block.keys.end - block.first, Size::panel)};
    for (Index n = 0; n < strips; ++n) {
      const Strip strip = strip_.rows().strips()[first / Size::rows + n];
      drop_weights<S, Scalar>(problem_.scored.dropout, strip_.rows().from(strip.first), strip.rows,
                              block.first, Runs{&all, 1}, Hidden::marked,
                              work_.scored.scores + (strip.first - first) * Size::score_stride);
    }
  }
  /// The rows that visit a panel, as runs of whole depth steps; those in between that do not are
  /// filled.
  int rows_of(Index panel, const Panels* seen, Index strips, Index rows, bool finite,
              DepthRange* runs) const {
    const DepthRange columns{panel * Size::panel, (panel + 1) * Size::panel};
    int count = 0;
    Index filled = 0;  // rows before it are visited, or filled, or in no run
    const auto fill_to = [&](Index to) {
      if (filled < to)
        fill(filled, to, columns, work_.scored.scores, work_.score_gradients, finite);
      filled = to;
    };
    for (Index n = 0; n < strips; ++n) {
      if ((seen[n] >> panel & 1) == 0) continue;
      const Index begin = n * Size::rows, end = std::min<Index>(begin + Size::rows, rows),
                  from = begin / Size::depth * Size::depth, to = round_up(end, Size::depth);
      if (count > 0 && from <= runs[count - 1].end) {
        runs[count - 1].end = to;
      } else {
        if (count > 0) fill_to(runs[count - 1].end);
        filled = from;
        runs[count++] = {from, to};
      }
      fill_to(begin);
      filled = end;
    }
    fill_to(runs[count - 1].end);
    return count;
  }

  const Problem& problem_;
  const BackwardScratch<Scalar>& work_;
  ScoredStrip<Scored> strip_;
  GradientKeys<Scored> keys_;
  GradientRows<Problem> rows_;
  AddScoreGradients<Problem> modifiers_;
  Check check_;
  KeySums<Scalar> sums_{};
  Scalar ones_[Size::rows];
  alignas(64) Scalar sums_of_weights_[Size::rows * Size::panel];
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
