// attn/kernel/replay.h: numbers of each pair, weights and scores, saved once a chunk's rows are finished.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../detail/load.h"
#include "../detail/masks.h"
#include "saved.h"
#include "scores.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     stages 1 and 2 of a chunk once more, in the engine's own functions; its rows' m and l are known by now, so that a
//          score is written as it is, or as the weight exp(s − m) / l
// TRAFFIC  packs the keys and computes Q·Kᵀ again; what is saved is written once and never read
// WHY      kept while they pass by, the scores would have to lie in the target until m and l are known: its whole memory written,
//          read and written again, no storage narrower than the scores, no sum over heads; and attend() would carry it. On
//          pre1k (8 heads of 1024 × 1024, d = 64) all weights add 0.7 of the call's time, a quarter of that for the 33 MB alone
// EDGES    pairs that the mask hides, keys of blocks that no row sees, and columns behind the last key are written too, once
// NUMERICS a weight is p · (1 / l), p as the engine summed it; the mean over heads is summed in their order and scaled at the end
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
        hide(count, all.end - block);
        const bool scored = seen && score(at, first, count, block, keys);
        // What is summed over heads is no matter of one of them.
        if (scored || Saved::kOverHeads) {
          write(target, first, count, all);
        } else {
          fill(target, first, count, all);
        }
      }
    }
    fill(target, 0, pass.rows_.count(), {pass.rows_.keys(), target.to.view.features});
  }

  template <class Target>
  static bool wants(const Target& target, const QueryRows& rows) {
    return target.first_wanted(rows.begin + rows.first_token, rows.end + rows.first_token) >= 0;
  }

  /// The strip's scores of a block before anything is visited.
  void hide(int rows, Index keys) const {
    for (int i = 0; i < rows; ++i) {
      Scalar* s = pass.work_.scores + i * Size::score_stride;
      for (Index j = 0; j < keys; j += S::width) S::store(s + j, S::set(hidden_score<Scalar>()));
    }
  }

  /// The scores of a strip and a block at a stage; false if the strip sees none of them.
  bool score(stage at, Index first, int rows, Index block, KeyRange keys) const {
    if (at == stage::masked) {
      const QueryRows strip_rows = pass.rows_.between(first, first + rows);
      const KeyRange seen = pass.seen_keys(strip_rows, keys);
      if (seen.empty()) return false;
      typename Pass::Visit visit;
      pass.score(strip_rows, first, rows, block, seen, visit);
      return true;
    }
    auto& work = pass.work_;
    const Index count = keys.end - block;
    pass.dot_products(first, rows, {0, (count + Size::panel - 1) / Size::panel, count, true},
                      work.unused_max);
    if (at == stage::scaled) return true;
    auto cursor = pass.rows_.from(first);
    for (int i = 0; i < rows; ++i, cursor.next()) {
      Scalar* s = work.scores + i * Size::score_stride;
      const auto modify = pass.problem_.modify.of(cursor.row);
      for (Index j = 0; j < count; j += S::width) {
        const auto score = S::load(s + j);
        if (at == stage::softcapped) {
          S::store(s + j, modify.softcap.template apply<S>(score, cursor.row, block + j));
        } else {
          const auto there =
              S::less(S::iota(), S::set(Scalar(int(std::min<Index>(count - j, S::width)))));
          S::store(s + j, modify.template apply_seen<S>(score, cursor.row, block + j, there));
        }
      }
    }
    return true;
  }

  /// The strip's scores of the keys to the rows of the target that want them.
  template <class Target>
  void write(const Target& target, Index first, int rows, KeyRange keys) const {
    auto cursor = pass.rows_.from(first);
    const Index stride = target.to.view.feature_stride;
    for (int i = 0; i < rows; ++i, cursor.next()) {
      if (auto* to = row_of(target, cursor.row)) {
        write_row(target, first + i, cursor.row.head, to + keys.begin * stride,
                  pass.work_.scores + i * Size::score_stride, keys.end - keys.begin);
      }
    }
  }
  template <class T>
  void write_row(const detail::ScoresTarget<T>& target, Index, Index, T* to, const Scalar* s,
                 Index keys) const {
    const Index stride = target.to.view.feature_stride;
    for (Index j = 0; j < keys; j += S::width)
      detail::store_strided<S>(to + j * stride, stride, S::load(s + j), keys - j);
  }
  template <class T, class Over>
  void write_row(const detail::WeightsTarget<T, Over>& target, Index r, Index head, T* to,
                 const Scalar* s, Index keys) const {
    const Index stride = target.to.view.feature_stride, heads = pass.problem_.shape.heads;
    const Scalar sum = reduce_lanes<S>(pass.work_.lanes + r * Size::panel);
    const auto inverse =
                   S::set(detail::equal(sum, Scalar(0)) ? Scalar(0) : Scalar(Scalar(1) / sum)),
               maximum = S::set(pass.work_.maximum[r]), zero = S::set(Scalar(0));
    for (Index j = 0; j < keys; j += S::width) {
      const auto score = S::load(s + j);
      const auto p = detail::exp_nonpositive<S>(S::sub(score, maximum));
      // Also where the row is NaN, what is hidden weighs nothing.
      const auto hidden = S::less(score, S::set(no_maximum<Scalar>()));
      auto weight = S::select(hidden, zero, S::mul(p, inverse));
      if constexpr (detail::WeightsTarget<T, Over>::kAverages) {
        static_assert(std::is_same_v<T, Scalar>,
                      "attn::save_weights: the mean over heads is summed where it is saved: give "
                      "it a matrix of the scalar that the call computes in");
        if (head > 0)
          weight = S::add(detail::load_strided<S>(to + j * stride, stride, keys - j), weight);
        if (head == heads - 1) weight = S::mul(weight, S::set(Scalar(1) / Scalar(int(heads))));
      }
      detail::store_strided<S>(to + j * stride, stride, weight, keys - j);
    }
  }

  /// Columns that no score goes to: keys that a strip does not see, and those behind the last key of a shorter sequence.
  template <class Target>
  void fill(const Target& target, Index first, Index rows, KeyRange columns) const {
    using T = typename Target::Scalar;
    const T padding = T(is_weights_v<Target> ? Scalar(0) : hidden_score<Scalar>());
    const Index stride = target.to.view.feature_stride;
    auto cursor = pass.rows_.from(first);
    for (Index r = 0; r < rows && !columns.empty(); ++r, cursor.next()) {
      T* to = row_of(target, cursor.row);
      if (to == nullptr) continue;
      if (stride == 1) {
        std::fill(to + columns.begin, to + columns.end, padding);
      } else {
        for (Index j = columns.begin; j < columns.end; ++j) to[j * stride] = padding;
      }
    }
  }

  template <class T, class Over>
  static T* row_of(const detail::WeightsTarget<T, Over>& target, const QueryRow& row) {
    return target.row(row, detail::WeightsTarget<T, Over>::kAverages ? 0 : row.head);
  }
  template <class T>
  static T* row_of(const detail::ScoresTarget<T>& target, const QueryRow& row) {
    return target.row(row, row.head);
  }
  template <class Target>
  static constexpr bool is_weights_v = detail::is_instance_v<detail::WeightsTarget, Target>;
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
