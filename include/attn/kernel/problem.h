// attn/kernel/problem.h: one call of attention as the engine sees it: erased operands, bound
// policies, scratch.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <utility>

#include "../base/operand.h"
#include "../base/asked.h"
#include "../score/rotary_table.h"
#include "row_sums.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

using detail::Operand;

using detail::Absent;

/// The query offset of a sequence, whoever computes it: erased, so that the engine is not
/// instantiated anew for every way to name it.
class OffsetOf {
 public:
  template <class Function>
  explicit OffsetOf(const Function& f)
      : function_(&f), call_([](const void* function, Index sequence) {
          return (*static_cast<const Function*>(function))(sequence);
        }) {}
  Index operator()(Index sequence) const { return call_(function_, sequence); }

 private:
  const void* function_;
  Index (*call_)(const void*, Index);
};

/// Everything one call computes from and to.
template <class Query, class Key, class Value, class Output, class Mask, class Modify,
          class Residual, class Saved, class Rotation = Absent, class Parts = Absent>
struct Problem {
  using Scalar = compute_t<typename Query::Scalar>;
  /// The heads of a row are summed somewhere: one worker takes them one after the other.
  static constexpr bool kOverHeads = Saved::kOverHeads;
  static constexpr bool kSavesPairs = Saved::kWeights || Saved::kScores;
  static constexpr bool kInParts = !std::is_same_v<Parts, Absent>;

  const detail::CallShape& shape;
  Query query;
  Key key;
  Value value;
  Output output;
  Scalar scale;
  Mask mask;
  Modify modify;
  OffsetOf offset;
  Residual residual;    ///< an operand shaped like the output, or Absent
  Saved saved;          ///< outputs beside the output (row_outputs.h)
  Rotation rotation{};  ///< of queries and keys by their positions, or Absent
  Parts parts{};        ///< of the keys (key_parts.h), or Absent
};

/// (Parts are taken where they are made: copies of fresh stores wait for these.)
template <class Query, class Key, class Value, class Output, class Scalar, class Mask, class Modify,
          class Residual, class Saved, class Rotation, class Parts>
Problem(const detail::CallShape&, Query, Key, Value, Output, Scalar, Mask, Modify, OffsetOf,
        Residual, Saved, Rotation, Parts)
    -> Problem<Query, Key, Value, Output, Mask, Modify, Residual, Saved, Rotation, Parts>;

constexpr Index whole_lines(Index n) {
  return round_up(n, 16);
}  // cache lines (of float), so that every part is aligned

/// What rows know of keys that are settled: the same numbers as in RowStates, with compensation
/// (row_sums.h).
template <class Scalar>
struct SettledStates {
  Scalar* maximum = nullptr;
  RowSums<Scalar> moment, lanes, output;

  SettledStates() = default;
  /// In memory of total(rows, features) scalars.
  SettledStates(Scalar* memory, Index rows, Index features) : maximum(memory) {
    memory += whole_lines(rows);
    for (auto [sums, columns] :
         {std::pair(&moment, Index(1)), std::pair(&lanes, Index(TileSize<Scalar>::panel)),
          std::pair(&output, features)}) {
      const Index size = whole_lines(rows * columns);
      *sums = {memory, memory + size, columns};
      memory += 2 * size;
    }
  }
  void clear(Index rows) const {
    std::fill_n(maximum, rows, Scalar(Eigen::NumTraits<Scalar>::lowest()));
    for (const RowSums<Scalar>* sums : {&moment, &lanes, &output}) sums->clear(rows);
  }
  /// Those of the rows from `first` on.
  SettledStates from(Index first) const {
    SettledStates rows = *this;
    rows.maximum += first;
    for (RowSums<Scalar>* sums : {&rows.moment, &rows.lanes, &rows.output})
      *sums = sums->from(first);
    return rows;
  }
  static constexpr Index total(Index rows, Index features) {
    return 3 * whole_lines(rows) + 2 * whole_lines(rows * TileSize<Scalar>::panel) +
           2 * whole_lines(rows * features);
  }
};

/// What the rows of a chunk know of the keys they have seen: m, t and l (by lanes) of the softmax,
/// and o.
template <class Scalar>
struct RowStates {
  Scalar *maximum = nullptr, *moment = nullptr;
  Scalar* fresh = nullptr;  ///< of each strip: not 0 while it has not seen a block
  Scalar *lanes = nullptr, *output = nullptr;
  SettledStates<Scalar>
      settled;  ///< of keys before; only where there may be more than settle at once

  RowStates() = default;
  /// In memory of total(rows, features) scalars.
  RowStates(Scalar* memory, Index rows)
      : maximum(memory),
        moment(maximum + whole_lines(rows)),
        fresh(moment + whole_lines(rows)),
        lanes(fresh + whole_lines(strips(rows))),
        output(lanes + whole_lines(rows * TileSize<Scalar>::panel)) {}
  static constexpr Index total(Index rows, Index features) {
    return 2 * whole_lines(rows) + whole_lines(strips(rows)) +
           whole_lines(rows * TileSize<Scalar>::panel) + whole_lines(rows * features);
  }
  static constexpr Index strips(Index rows) {
    return (rows + TileSize<Scalar>::rows - 1) / TileSize<Scalar>::rows;
  }
};

/// Scratch of one worker, in scalars. Its size follows from the shapes alone: rows and keys of the
/// largest sequence.
template <class Scalar>
struct ScratchSize {
  using Size = TileSize<Scalar>;
  Index rows, keys, depth, features;  ///< chunk rows; keys of a block; padded d_k and d_v
  bool settles;                       ///< sums of several blocks
  Index rotated_keys = 0;          ///< a panel of them where they are turned before they are packed
  Index states = 1;                ///< of the rows: two where keys are attended in parts
  Index scored_rows = Size::rows;  ///< whose scores are kept: more where those of pairs are saved

  /// Room for what is saved of pairs: several strips are written together.
  constexpr void save_pairs() {
    scored_rows = std::min(round_up(std::max<Index>(rows, 1), Size::rows), Index(Size::saved_rows));
  }

  /// query_rows: of one sequence and key/value head; no chunk has more than chunk_rows of them.
  constexpr ScratchSize(Index query_rows, Index all_keys, Index key_dim, Index value_dim,
                        Index chunk_rows = Size::max_chunk_rows)
      : rows(query_rows < chunk_rows ? query_rows : chunk_rows),
        keys(round_up(all_keys < Size::key_block(key_dim, value_dim)
                          ? all_keys
                          : Size::key_block(key_dim, value_dim),
                      Size::panel)),
        depth(round_up(key_dim, Size::depth)),
        features(round_up(value_dim, Size::panel)),
        settles(all_keys > Size::key_block(key_dim, value_dim)) {}

  constexpr Index query() const { return whole_lines(rows * depth); }
  constexpr Index key() const { return whole_lines(keys * depth); }
  constexpr Index value() const { return whole_lines(keys * features); }
  constexpr Index scores() const { return scored_rows * Size::score_stride; }
  constexpr Index lane_max() const { return whole_lines(Size::rows * Size::width); }
  constexpr Index rescale() const { return whole_lines(round_up(Size::rows, Size::width)); }
  constexpr Index state() const { return RowStates<Scalar>::total(rows, features); }
  constexpr Index settled() const {
    return settles || states > 1 ? SettledStates<Scalar>::total(rows, features) : 0;
  }
  constexpr Index rotated() const { return whole_lines(rotated_keys * depth); }
  constexpr Index total() const {
    return rotated() + query() + key() + value() + scores() + 2 * lane_max() + rescale() +
           states * (state() + settled());
  }
};

/// The parts of a worker's scratch.
template <class Scalar>
struct Scratch : RowStates<Scalar> {
  ScratchSize<Scalar> size;
  Scalar *rotated, *query, *key, *value, *scores, *lane_max, *unused_max, *rescale;
  RowStates<Scalar> part;  ///< where there are two states

  Scratch(const ScratchSize<Scalar>& s, Scalar* memory) : size(s) {
    const auto take = [&memory](Index n) {
      Scalar* const taken = memory;
      memory += n;
      return taken;
    };
    rotated = take(s.rotated());
    query = take(s.query());
    key = take(s.key());
    value = take(s.value());
    scores = take(s.scores());
    lane_max = take(s.lane_max());
    unused_max = take(s.lane_max());
    rescale = take(s.rescale());
    const auto take_states = [&](RowStates<Scalar>& states) {
      states = {take(s.state()), s.rows};
      if (s.settled() > 0) states.settled = {take(s.settled()), s.rows, s.features};
    };
    take_states(*this);
    if (s.states > 1) take_states(part);
  }
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
