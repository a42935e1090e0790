// attn/kernel/forward.h: the forward pass: one schedule of the stages for every shape, mask,
// modifier, scalar and output.
// SPDX-License-Identifier: MIT
//
//   for each sequence, key/value head and chunk of query rows:                   // schedule.h
//     state = {max: lowest, sum: 0} and o = 0 for each row                       //    softmax_rows.h: clear
//     for each block of keys that the mask lets some row see:                    //    scored_strip.h: each_block
//       open k, v                                                                //    packed_keys.h, cached_keys.h: once a block, used by all rows
//       for each strip of rows that sees some of it:
//         s = scale · q · kᵀ                                                     // 1  scored_strip.h: dot_products.h
//         s = modify(s), hide(s) where the mask is not known to be full          // 2                  modify.h, score.h, mask.h
//         r = state.advance(s), s = state.weigh(s)                               // 3  softmax_rows.h, online_softmax.h: s becomes exp(s − max)
//         s = 0 where dropout drops the pair                                     //    drop_weights.h
//         o = r · o + s · v                                                      // 4  weighted_sum.h
//     every 4096 keys (and after each part of them) settle state and o           //    settled_rows.h: added with compensation, and 0
//     y = o / sum (+ residual), log-sum-exp = max + log(sum)                     // 5  finish.h, row_outputs.h
//     weights and scores, where they are asked for                               //    pair_outputs.h
//
// LIMIT  (Zen 5, AVX-512; cycles a row and 16 keys at d = 64) 64 for the products on the two
//        multiply-add ports, 3.7 for exp on the same, 2 for storing s and p (a 512-bit store takes
//        the read ports of two multiply-adds), 0.5 for o: 0.91 of the peak.
//        Tiles run at 0.98; packing keys and values is 2 % of pre1k, and 4 % is what a row costs
//        whatever it sees: its query packed, its sums advanced, divided and written. So pre1k
//        reaches 0.85. Where rows see few keys more of that shows: pad512 (288 on average) 0.77,
//        enc128 (128) 0.73 to 0.76; where the mask cuts through tiles their hidden half does:
//        pre1kc 0.80, d128c 0.81 to 0.83.
//        tiny is latency: each stage of a head waits for the one before. Of 2200 ns (Zen 4, g++;
//        the parts estimated from samples) 670 are the products, in tiles of one packet, 240 exp,
//        280 packing, 200 finishing, 90 the call's options, shapes and overlaps; the 700 that are
//        left are schedule and waiting. Where types tell the sizes those go (fixed_pass.h).
//        Without gain: keys in blocks of 128, two strips in turns, row maxima in a pass of their
//        own, asking ahead for the output's lines, the next chunk's operands or the bias, exp of 2,
//        6 or 8 packets at a time.
//
// Rows of a chunk: with several query heads on one key/value head (grouped-query attention) row r
// of the chunk is query row r / group under head r % group, so that all of them share the packed
// block and a strip spans few positions.
#pragma once

#include "chunks.h"
#include "drop_weights.h"
#include "finish.h"
#include "key_parts.h"
#include "pair_outputs.h"
#include "partial_rows.h"
#include "problem.h"
#include "row_outputs.h"
#include "scored_strip.h"
#include "softmax_rows.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

template <class Problem>
class ForwardPass {
  using Scalar = typename Problem::Scalar;
  using Element = typename Problem::Element;
  using S = detail::Simd<Scalar>;
  using Softmax = SoftmaxRows<Scalar>;

 public:
  ForwardPass(const Problem& problem, const Scratch<Scalar>& scratch)
      : problem_(problem), work_(scratch), strip_(problem, work_), softmax_(work_.whole) {}

  void operator()(const Chunk& chunk) {
    enter(chunk);
    if constexpr (Problem::kInParts) {
      Softmax part(work_.part);
      each_part([&](Index n) {
        attend_part(n, part);
        softmax_.settle(part.states());
      });
      see_sinks_last();
    } else {
      attend(strip_.visible(), softmax_);
    }
    finish();
  }

  /// The states of a chunk's rows over one part of the keys alone; none where they see nothing of
  /// it.
  void attend_part(const Chunk& chunk, Index part, const RowStates<Scalar>& states) {
    strip_.enter(chunk, Strips::even<Scalar>(chunk.end - chunk.begin));
    if (intersect(strip_.visible(), problem_.parts[part]).empty()) return;
    Softmax softmax(states, work_.part.settled);
    attend_part(part, softmax);
  }
  /// Finishes a chunk from the states of all parts that it sees: states_of(part).
  template <class StatesOf>
  void merge_parts(const Chunk& chunk, const StatesOf& states_of) {
    enter(chunk);
    each_part([&](Index n) { softmax_.settle(states_of(n)); });
    see_sinks_last();
    finish();
  }

 private:
  using Modify = typename Problem::Modify;
  using Saved = typename Problem::Saved;
  /// Rows have sums before they have seen a key, or are asked for them.
  static constexpr bool kStartsBefore =
      Modify::kSink || Saved::kEntropy || Problem::kInParts || Problem::kPartial;

  void enter(const Chunk& chunk) {
    strip_.enter(chunk, Strips::even<Scalar>(chunk.end - chunk.begin));
    softmax_.clear(strip_.rows().count());
    if constexpr (kStartsBefore) softmax_.start();
    if constexpr (Modify::kSink && !Problem::kInParts)
      softmax_.see_sinks(strip_.rows(), problem_.modify.sink);
  }
  /// A sink is of no part: what is merged of them, here or by merge(), is of keys alone.
  void see_sinks_last() {
    if constexpr (Modify::kSink && Problem::kInParts) {
      Softmax sinks(work_.part);
      sinks.clear(strip_.rows().count());
      sinks.start();
      sinks.see_sinks(strip_.rows(), problem_.modify.sink);
      softmax_.settle(sinks.states());
    }
  }

  /// Calls f with the number of each part of the keys that the chunk sees, in order.
  template <class F>
  void each_part(const F& f) const {
    const KeyRange& visible = strip_.visible();
    if (visible.empty()) return;
    const KeyParts& parts = problem_.parts;
    for (Index n = visible.begin / parts.keys; n < parts.count(visible.end); ++n) f(n);
  }
  void attend_part(Index part, Softmax& softmax) {
    softmax.clear(strip_.rows().count());
    softmax.start();
    const KeyRange keys = problem_.parts[part];
    attend(intersect(strip_.visible(), keys), softmax, keys.begin);
    softmax.complete();
    softmax.states().reduce(strip_.rows().count());
  }

  /// Attends keys that some row of the chunk may see, block by block. `from`: where the part
  /// begins that they are of.
  void attend(const KeyRange& keys, Softmax& softmax, Index from = 0) {
    strip_.each_block(keys, Pack::keys_and_values, [&](const KeyBlock& block) {
      softmax.reach(block.first - from);
      strip_.rows().each_strip([&](const Strip& strip) { attend(strip, block, softmax); });
    });
  }
  /// Stages 1 to 4 of one strip and one block.
  void attend(const Strip& strip, const KeyBlock& block, Softmax& softmax) {
    Scalar* const s = work_.scores;
    const auto visit = strip_.score(strip, block, s);  // 1, 2
    if (visit.empty()) return;
    const Scalar* r = nullptr;
    if constexpr (Saved::kEntropy) {
      r = softmax.advance_with_moments(strip, strip_.lane_max(), s, visit.all());
    } else {
      r = softmax.advance(strip, strip_.lane_max());
    }
    auto& keys_and_values = strip_.keys_and_values();
    const bool finite = keys_and_values.finite(strip.rows, visit, s);
    const Hidden hidden = finite ? Hidden::zero : Hidden::marked;
    softmax.template weigh<Element>(strip, r, s, visit.all(), hidden);  // 3
    if constexpr (Problem::kDrops) {
      drop_weights<S, Element>(problem_.dropout, strip_.rows().from(strip.first), strip.rows,
                               block.first, visit.all(), hidden, s);
    }
    keys_and_values.weighted_sum(strip.rows, visit, Factors<S, Element>::in(s), r,
                                 softmax.output(strip.first));  // 4
  }

  /// Stage 5, then what is saved of pairs; or the rows as they are, for merge().
  void finish() {
    softmax_.complete();
    if constexpr (Problem::kPartial) {
      problem_.output.keep(strip_.rows(), softmax_.states());
    } else {
      Finish<Problem>{problem_, softmax_}(strip_.rows());
      PairOutputs<Problem>{problem_, work_, strip_, softmax_}();
    }
  }

  const Problem& problem_;
  const Scratch<Scalar> work_;
  ScoredStrip<Problem> strip_;
  Softmax softmax_;
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
