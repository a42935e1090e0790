// attn/kernel/cache_append.h: tokens into a cache's memory: keys to panels by way of the tail's
// rows, values to panels at once.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "cache_memory.h"
#include "pack.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     tokens behind the last of a sequence and head, and the way back: truncation
// PICTURE  keys     row ─► tail ─(a full panel)─► transposed into its place
//          values   row ─► a line of each panel of features
// TRAFFIC  a token is written once, a full panel of keys once more, from L1
// EDGES    behind the last token the values are zero up to a whole depth step: the pass reads them.
//          What lies further is never read
// NUMERICS a number is rounded once, from the scalar of the call; int8: x / scale to the nearest,
//          scale = max |x| / 127 of the token's keys (or values) of one head, down to subnormal
//          numbers and up to the largest. A token that is not finite has the scale NaN. Nothing
//          depends on how the tokens were cut into calls
template <class T>
class CacheWriter {
  using Scalar = cache_compute_t<T>;
  using S = detail::Simd<Scalar>;
  static constexpr bool kScaled = is_scaled_v<T>;
  static constexpr Index kPanel = TileSize<Scalar>::panel;

 public:
  explicit CacheWriter(const CacheMemory<T>& memory) : memory_(memory), layout_(memory.layout()) {}

  /// Writes tokens [first, first + count) of a sequence's head.
  template <class K, class V>
  void append(Index head, Index first, Index count, Source<K> keys, Source<V> values) const {
    for (Index done = 0; done < count;) {
      const Index position = first + done, block = position / layout_.block,
                  in_block = position - block * layout_.block, panel = in_block / kPanel,
                  in_panel = in_block - panel * kPanel,
                  part = std::min(kPanel - in_panel, count - done);
      if (!layout_.is_here(block)) {
        done += part;
        continue;
      }
      const Index slot = layout_.slot(block);
      if (in_block == 0) memory_.not_finite(head)[slot] = 0;
      T* const tail = memory_.tail(head);
      for (Index n = 0; n < part; ++n) {
        const Scalar scale = store_row(keys.token(done + n), keys.feature_stride, layout_.key_dim,
                                       tail + (in_panel + n) * layout_.key_dim);
        if constexpr (kScaled) memory_.key_scales(head, slot)[in_block + n] = scale;
      }
      if (in_panel + part == kPanel)
        pack_tail(tail, memory_.keys(head, slot) + panel * kPanel * layout_.depth);
      append_values(head, slot, in_block, part,
                    Source<V>{values.token(done), values.token_stride, values.feature_stride});
      done += part;
      if (done == count) clear_step(head, slot, in_block + part);
    }
  }

  /// Makes `length` the end of a head's tokens: the rows of its tail, and zeros behind its values.
  void truncate(Index head, Index length, Index before) const {
    const Index block = length / layout_.block, in_block = length - block * layout_.block,
                panel = in_block / kPanel;
    if (length == before || in_block == 0 || !layout_.is_here(block)) return;
    const Index slot = layout_.slot(block);
    if (before / kPanel != length / kPanel) {
      unpack_tail(memory_.keys(head, slot) + panel * kPanel * layout_.depth,
                  in_block - panel * kPanel, memory_.tail(head));
    }
    clear_step(head, slot, in_block);
  }

  /// Makes a head's tokens those of another, `state` being that one's sequence.
  void copy(Index from, Index to, const CacheSequence& state) const {
    const auto number = [](const T* source, Index count, T* target) {
      std::copy(source, source + count, target);
    };
    for (Index slot = 0; slot < layout_.blocks(); ++slot) {
      const bool in_ring = slot >= layout_.pinned_blocks;
      // In a ring: whole slots, of any block. In a share: of a slot at least what it holds.
      const Index ahead = state.written - slot * layout_.block;
      if (ahead <= 0) break;
      const Index rows = in_ring ? layout_.rows : std::min(layout_.rows, round_up(ahead, kPanel));
      number(memory_.keys(from, slot), rows * layout_.depth, memory_.keys(to, slot));
      for (Index c = 0; c < layout_.features; c += kPanel) {
        const Index panel = c * layout_.rows;
        number(memory_.values(from, slot) + panel, rows * kPanel, memory_.values(to, slot) + panel);
      }
      if constexpr (kScaled) {
        for (Index j = 0; j < rows; ++j) {
          memory_.key_scales(to, slot)[j] = memory_.key_scales(from, slot)[j];
          memory_.value_scales(to, slot)[j] = memory_.value_scales(from, slot)[j];
        }
      }
      memory_.not_finite(to)[slot] = memory_.not_finite(from)[slot];
    }
    number(memory_.tail(from), memory_.tail_size(), memory_.tail(to));
  }

 private:
  /// One row as it is stored; returns its scale.
  template <class From>
  Scalar store_row(const From* from, Index stride, Index features, T* to) const {
    if constexpr (kScaled) {
      return quantize(from, stride, features, [to](Index c) -> T& { return to[c]; });
    } else if constexpr (std::is_same_v<std::remove_const_t<From>, T>) {
      for (Index c = 0; c < features; ++c) to[c] = from[c * stride];
    } else if (stride == 1) {  // apart: what lies side by side is rounded by vectors
      for (Index c = 0; c < features; ++c) to[c] = T(Scalar(from[c]));
    } else {
      for (Index c = 0; c < features; ++c) to[c] = T(Scalar(from[c * stride]));
    }
    return Scalar(1);
  }

  template <class V>
  void append_values(Index head, Index slot, Index in_block, Index count, Source<V> values) const {
    const Index features = layout_.value_dim, panel_stride = layout_.rows * kPanel;
    T* const to = memory_.values(head, slot) + in_block * kPanel;
    bool finite = true;
    for (Index n = 0; n < count; ++n) {
      const V* const from = values.token(n);
      T* const row = to + n * kPanel;
      if constexpr (kScaled) {
        const Scalar scale =
            quantize(from, values.feature_stride, features, [row, panel_stride](Index c) -> T& {
              return row[c / kPanel * panel_stride + c % kPanel];
            });
        memory_.value_scales(head, slot)[in_block + n] = scale;
        finite &= detail::is_finite(scale);
      } else {
        FiniteCheck<S> check;
        for (Index c = 0; c < features; c += kPanel) {
          T* const panel = row + c / kPanel * panel_stride;
          store_row(from + c * values.feature_stride, values.feature_stride,
                    std::min(kPanel, features - c), panel);
          for (Index w = 0; w < kPanel; w += S::width)
            check.see(detail::load_converted<S>(panel + w));
        }
        finite &= check.finite();
      }
    }
    if (!finite) memory_.not_finite(head)[slot] = 1;
  }

  /// How a finite token is quantised: x · lift · inverse to the nearest integer, of at most 127;
  /// its multiple of `scale` is x again.
  struct Quantum {
    Scalar lift, inverse, scale;

    explicit Quantum(const Scalar& largest) : lift(1), inverse(0), scale(0) {
      using Limits = std::numeric_limits<Scalar>;
      if (largest < Scalar(0x1p-90)) {
        // 127 / largest would overflow, and the scale may be subnormal: of what is lifted both are
        // exact. A subnormal scale is rounded up; integers of its own steps, up to 127 of them,
        // then stay what they are.
        lift = Scalar(0x1p96);
        const Scalar lifted = largest * lift / Scalar(127);
        scale = lifted / lift;
        if (scale * lift < lifted) scale += Limits::denorm_min();
        const Scalar step = scale * lift;
        if (step > Scalar(0)) inverse = Scalar(1) / step;
      } else {
        inverse = Scalar(127) / largest;
        scale = largest / Scalar(127);
        if (!detail::is_finite(scale * Scalar(127))) scale *= 1 - Limits::epsilon();
      }
    }
  };

  /// Features to the nearest multiples of the returned scale.
  template <class From, class To>
  static Scalar quantize(const From* from, Index stride, Index features, const To& to) {
    auto lanes = S::set(Scalar(0));
    FiniteCheck<S> check;
    for (Index c = 0; c < features; c += S::width) {
      const auto x = detail::load_strided<S>(from + c * stride, stride, features - c);
      check.see(x);
      lanes = S::max(S::abs(x), lanes);
    }
    const bool finite = check.finite();
    const Quantum quantum(finite ? S::reduce_max(lanes) : Scalar(0));
    const auto inverse = S::set(quantum.inverse);
    for (Index c = 0; c < features; c += S::width) {
      const Index held = std::min<Index>(features - c, S::width);
      alignas(64) Scalar x[S::width] = {};
      if (finite) {
        auto lifted = detail::load_strided<S>(from + c * stride, stride, held);
        if (!detail::equal(quantum.lift, Scalar(1))) lifted = S::mul(lifted, S::set(quantum.lift));
        S::store(x, S::mul(lifted, inverse));
      }
      for (Index w = 0; w < held; ++w)
        to(c + w) = T(int(x[w] + (x[w] < Scalar(0) ? Scalar(-0.5) : Scalar(0.5))));
    }
    return finite ? quantum.scale : std::numeric_limits<Scalar>::quiet_NaN();
  }

  void pack_tail(const T* tail, T* panel) const {
    if constexpr (std::is_same_v<T, Scalar>) {
      pack_keys<S>(Source<const T>{tail, layout_.key_dim, 1}, 0, {0, kPanel}, layout_.key_dim,
                   layout_.depth, panel);
    } else {
      for (Index c = 0; c < layout_.key_dim; ++c) {
        for (Index j = 0; j < kPanel; ++j) panel[c * kPanel + j] = tail[j * layout_.key_dim + c];
      }
    }
  }
  void unpack_tail(const T* panel, Index rows, T* tail) const {
    for (Index j = 0; j < rows; ++j) {
      for (Index c = 0; c < layout_.key_dim; ++c)
        tail[j * layout_.key_dim + c] = panel[c * kPanel + j];
    }
  }

  /// Zeros behind the last token of a block, up to a whole depth step.
  void clear_step(Index head, Index slot, Index end) const {
    T* const values = memory_.values(head, slot);
    for (Index j = end; j < round_up(end, TileSize<Scalar>::depth); ++j) {
      for (Index c = 0; c < layout_.features; c += kPanel) {
        T* const panel = values + c * layout_.rows + j * kPanel;
        std::fill(panel, panel + kPanel, T(0));
      }
      if constexpr (kScaled)
        memory_.key_scales(head, slot)[j] = memory_.value_scales(head, slot)[j] = Scalar(0);
    }
  }

  const CacheMemory<T>& memory_;
  const CacheLayout& layout_;
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
