// attn/kernel/problem.h: one call of attention as the engine sees it: erased operands, bound
// policies, scratch.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <utility>

#include "../base/operand.h"
#include "../base/asked.h"
#include "../score/rotary_table.h"
#include "factors.h"
#include "softmax_rows.h"

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

template <class Scalar>
struct PartialTarget;  // partial_rows.h

/// Both products multiply bfloat16 by pairs.
struct BfloatProducts {};

/// Everything one call computes from and to.
template <class Query_, class Key_, class Value_, class Output_, class Mask_, class Modify_,
          class Residual_, class Saved_, class Rotation_ = Absent, class Parts_ = Absent,
          class Dropout_ = Absent, class Products_ = Absent>
struct Problem {
  using Query = Query_;
  using Key = Key_;
  using Value = Value_;
  using Output = Output_;
  using Mask = Mask_;
  using Modify = Modify_;
  using Residual = Residual_;
  using Saved = Saved_;
  using Rotation = Rotation_;
  using Parts = Parts_;
  using Dropout = Dropout_;
  using Scalar = compute_t<typename Query::Scalar>;
  /// What is multiplied (factors.h).
  using Element =
      std::conditional_t<std::is_same_v<Products_, BfloatProducts>, detail::BfloatPair, Scalar>;
  /// The heads of a row are summed somewhere: one worker takes them one after the other.
  static constexpr bool kOverHeads = Saved::kOverHeads;
  static constexpr bool kSavesPairs = Saved::kWeights || Saved::kScores;
  static constexpr bool kInParts = !std::is_same_v<Parts, Absent>;
  static constexpr bool kRotates = !std::is_same_v<Rotation, Absent>;
  /// The rows are kept unfinished, as a state that merges with those of other keys.
  static constexpr bool kPartial = detail::is_instance_v<PartialTarget, Output>;
  static constexpr bool kDrops = !std::is_same_v<Dropout, Absent>;

  const detail::CallShape& shape;
  Query query;
  Key key;
  Value value;
  Output output;
  Scalar scale;
  Mask mask;
  Modify modify;
  OffsetOf offset;
  Residual residual;     ///< an operand shaped like the output, or Absent
  Saved saved;           ///< outputs beside the output (row_outputs.h)
  Rotation rotation{};   ///< of queries and keys by their positions, or Absent
  Parts parts{};         ///< of the keys (key_parts.h), or Absent
  Dropout dropout{};     ///< of weights (score/dropped_pairs.h), or Absent
  Products_ products{};  ///< BfloatProducts, or Absent

  /// What finished sums q·k are multiplied by.
  typename Factors<detail::Simd<Scalar>, Element>::Scale scale_of_sums() const {
    if constexpr (std::is_same_v<Element, Scalar>) {
      return Absent{};
    } else {
      return scale;
    }
  }
};

/// (Parts are taken where they are made: copies of fresh stores wait for these.)
template <class Query, class Key, class Value, class Output, class Scalar, class Mask, class Modify,
          class Residual, class Saved, class Rotation, class Parts, class Dropout, class Products>
Problem(const detail::CallShape&, Query, Key, Value, Output, Scalar, Mask, Modify, OffsetOf,
        Residual, Saved, Rotation, Parts, Dropout, Products)
    -> Problem<Query, Key, Value, Output, Mask, Modify, Residual, Saved, Rotation, Parts, Dropout,
               Products>;

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
  constexpr Index state() const { return RowStates<Scalar>::total(rows, features); }
  constexpr Index settled() const {
    return settles || states > 1 ? SettledRows<Scalar>::total(rows, features) : 0;
  }
  constexpr Index rotated() const { return whole_lines(rotated_keys * depth); }
  constexpr Index total() const {
    return rotated() + query() + key() + value() + scores() + lane_max() +
           states * (state() + settled());
  }
};

/// The parts of a worker's scratch.
template <class Scalar>
struct Scratch {
  ScratchSize<Scalar> size;
  Scalar *rotated = nullptr, *query = nullptr, *key = nullptr, *value = nullptr, *scores = nullptr,
         *lane_max = nullptr;
  SoftmaxMemory<Scalar> whole, part;  ///< of the rows; of a part of the keys, where there are some

  /// Without memory.
  explicit Scratch(const ScratchSize<Scalar>& s) : size(s) {}
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
    const auto take_rows = [&](SoftmaxMemory<Scalar>& rows) {
      rows.states = {take(s.state()), s.rows, s.features};
      if (s.settled() > 0) rows.settled = {take(s.settled()), s.rows, s.features};
    };
    take_rows(whole);
    if (s.states > 1) take_rows(part);
  }
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
