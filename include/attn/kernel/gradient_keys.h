// attn/kernel/gradient_keys.h: keys and values of a block as the backward pass multiplies with
// them: values as columns, keys as rows.
// SPDX-License-Identifier: MIT
#pragma once

#include "chunks.h"
#include "pack.h"
#include "problem.h"
#include "rotate_row.h"
#include "visit.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// Where they lie in scratch.
template <class Scalar>
struct GradientKeysMemory {
  Scalar *value_columns, *key_rows, *rotated;
  Index value_depth;  ///< d_v in whole depth steps, one at least
  Index block_keys;   ///< room for so many keys
};

// WHAT     v as panels of keys (for dp = g · vᵀ, as keys are for scores), k as panels of features
//          (for dq += ds · k, as values are for the output), of the panels that the scores' keys
//          packed as well
// EDGES    finite(): no key and no value of the open block is NaN or infinite, so that a hidden
//          pair may be multiplied by its zero
template <class Problem>
class GradientKeys {
  using Scalar = typename Problem::Scalar;
  using S = detail::Simd<Scalar>;
  using Size = TileSize<Scalar>;

 public:
  using Memory = GradientKeysMemory<Scalar>;

  GradientKeys(const Problem& problem, const Memory& memory) : problem_(problem), memory_(memory) {}

  void enter(const Chunk& chunk) { chunk_ = chunk; }
  /// Packs what is wanted of the panels for which packed(panel) holds, run by run.
  template <class Packed>
  void open(const KeyBlock& block, const Packed& packed) {
    finite_ = true;
    each_packed_run<Scalar>(
        block, [&](Index panel, KeyRange keys) { return !keys.empty() && packed(panel); },
        [&](KeyRange run) { pack(block.first, run); });
  }
  bool finite() const { return finite_; }
  /// Panels of keys, value_depth() deep.
  const Scalar* value_columns() const { return memory_.value_columns; }
  Index value_depth() const { return memory_.value_depth; }
  /// Panels of features, panel_stride() apart.
  const Scalar* key_rows() const { return memory_.key_rows; }
  Index panel_stride() const { return memory_.block_keys * Size::panel; }

 private:
  void pack(Index block, KeyRange keys) {
    const detail::CallShape& shape = problem_.shape;
    pack_keys<S>(source(problem_.value), block, keys, shape.value_dim, memory_.value_depth,
                 memory_.value_columns);
    finite_ &= columns_finite({keys.begin - block, keys.end - block});
    if constexpr (Problem::kRotates) {
      pack_rotated(block, keys);
    } else {
      finite_ &= pack_values<S>(source(problem_.key), block, keys, shape.key_dim,
                                memory_.block_keys, memory_.key_rows);
    }
  }
  bool columns_finite(KeyRange keys) const {
    FiniteCheck<S> check;
    for (Index j = keys.begin / S::width * S::width; j < keys.end; j += S::width) {
      const Scalar* column = memory_.value_columns +
                             j / Size::panel * Size::panel * memory_.value_depth + j % Size::panel;
      for (Index c = 0; c < problem_.shape.value_dim; ++c, column += Size::panel)
        check.see(S::load(column));
    }
    return check.finite();
  }
  /// Keys turned first, a panel at a time.
  void pack_rotated(Index block, KeyRange keys) {
    const detail::CallShape& shape = problem_.shape;
    const Index features = shape.key_dim, depth = round_up(features, Size::depth),
                first_token = shape.keys.begin(shape.shared_keys ? 0 : chunk_.sequence);
    const auto from = source(problem_.key);
    for (Index panel = block + (keys.begin - block) / Size::panel * Size::panel; panel < keys.end;
         panel += Size::panel) {
      const KeyRange held = intersect(keys, {panel, panel + Size::panel});
      for (Index j = held.begin; j < held.end; ++j) {
        rotate_row<S>(problem_.rotation, problem_.rotation.key.of(first_token + j, j),
                      from.token(j), from.feature_stride, features,
                      memory_.rotated + (j - panel) * depth);
      }
      finite_ &=
          pack_values<S>(Source<const Scalar>{memory_.rotated, depth, 1}, 0,
                         {held.begin - panel, held.end - panel}, features, memory_.block_keys,
                         memory_.key_rows + (panel - block) * Size::panel);
    }
  }
  template <class T>
  Source<T> source(const Operand<T>& operand) const {
    return {operand.row(chunk_.sequence, chunk_.kv_head, 0), operand.view.token_stride,
            operand.view.feature_stride};
  }

  const Problem& problem_;
  const Memory memory_;
  Chunk chunk_{};
  bool finite_ = true;
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
