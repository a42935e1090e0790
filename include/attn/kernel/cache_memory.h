// attn/kernel/cache_memory.h: where the keys and values of a cache lie: the engine's panels, block
// by block, and the newest rows.
// SPDX-License-Identifier: MIT
//
//   of each sequence and head:   keys    blocks × panels × (d_k × panel)         element (c, j) at c·P + j, as pack.h packs them
//                                values  blocks × panels of features × (keys × panel)      (j, c) at j·P + c
//                                tail    the keys behind the last full panel, in rows: one key
//                                        would touch d_k lines of a panel
//   of int8:                     a scale for each token, of its keys and of its values
//   of each block:               whether its values may hold one that is not finite
//   of each sequence:            its length, how far it was ever written, and how its keys were turned
//   scratch:                     angles and turned keys of a piece of an append
//
// In a ring block b takes the slot pinned + (b − pinned) mod ring; what was there before is lost.
// One share of several (a cache over processes) has memory for every shares-th part of a sequence,
// part_blocks blocks each, and passes over the tokens of all others.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "../base/aligned_buffer.h"
#include "../score/rotary_table.h"
#include "../kv_cache_options.h"
#include "tile_size.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// What numbers stored as T in a cache are computed in.
template <class T>
struct cache_compute {
  using type = compute_t<T>;
};
template <>
struct cache_compute<std::int8_t> {
  using type = float;
};
template <class T>
using cache_compute_t = typename cache_compute<T>::type;

/// Stored numbers times the scale of their token.
template <class T>
inline constexpr bool is_scaled_v = std::is_same_v<T, std::int8_t>;

/// One cache line of raw memory.
struct alignas(64) CacheLine {
  unsigned char bytes[64];
};

struct CacheSequence {
  Index length;   ///< tokens: the next one's position
  Index written;  ///< the greatest length since it was empty: tells what a ring has lost
  Index
      turned;  ///< how rotary() turned its keys: 0 not at all, else the features and their pairing
  Index chosen;  ///< a mark while an append is checked; else 0
};

/// The sizes of a cache as they lie in memory.
struct CacheLayout {
  Index sequences, kv_heads, key_dim, value_dim, capacity;
  Index window, pinned;          ///< of a ring; window 0: none
  Index panel, depth, features;  ///< padded d_k and d_v
  Index block, rows;             ///< keys of a block, and those it has memory for
  Index pinned_blocks, ring_blocks;
  Index shares = 1, share = 0, part_blocks = 1;

  /// Tokens that are turned together on their way in. WHY the angles of so many follow from as many
  /// sines.
  static constexpr Index piece = 32;

  template <class Scalar>
  static CacheLayout of(const KeyValueCacheOptions& o) {
    using Size = TileSize<Scalar>;
    CacheLayout x{};
    x.sequences = o.sequences();
    x.kv_heads = o.kv_heads();
    x.key_dim = o.key_dim();
    x.value_dim = o.value_dim();
    x.capacity = o.capacity();
    x.panel = Size::panel;
    x.depth = round_up(x.key_dim, Size::depth);
    x.features = round_up(x.value_dim, Size::panel);
    x.block = x.rows = Size::key_block(x.key_dim, x.value_dim);
    const auto blocks_of = [&](Index tokens) { return (tokens + x.block - 1) / x.block; };
    if (o.is_ring()) {
      x.window = o.window();
      x.pinned = o.pinned();
      x.pinned_blocks = blocks_of(x.pinned);
      // The newest block may hold a single token; those before it hold the rest.
      x.ring_blocks = blocks_of(x.capacity - 1) + 1;
    } else {
      x.pinned_blocks = blocks_of(x.capacity);
      if (x.pinned_blocks == 1) x.rows = round_up(x.capacity, Size::panel);
    }
    return x;
  }

  /// The same cache, part n of each sequence lying with share n mod `of`: this is one of them.
  /// Without a ring, which lies in one piece.
  CacheLayout shared(Index which, Index of, Index part) const {
    CacheLayout x = *this;
    const Index parts = (capacity + part - 1) / part;
    x.shares = of;
    x.share = which;
    x.part_blocks = part / block;
    x.rows = block;
    x.pinned_blocks = (parts - which + of - 1) / of * x.part_blocks;
    return x;
  }
  Index part_of(Index b) const { return b / part_blocks; }
  /// Whether block b is of this share.
  bool is_here(Index b) const { return shares == 1 || part_of(b) % shares == share; }

  Index blocks() const { return pinned_blocks + ring_blocks; }
  Index heads() const { return sequences * kv_heads; }
  /// Where block b lies, which is here.
  Index slot(Index b) const {
    if (shares > 1) return part_of(b) / shares * part_blocks + b % part_blocks;
    return b < pinned_blocks ? b : pinned_blocks + (b - pinned_blocks) % ring_blocks;
  }
  Index of_head(Index sequence, Index head) const { return sequence * kv_heads + head; }

  /// The first token behind the pinned blocks that is still there.
  Index first_held(const CacheSequence& s) const {
    const Index last = (s.written - 1) / block;
    return s.written == 0 || ring_blocks == 0
               ? 0
               : std::max(pinned_blocks, last - ring_blocks + 1) * block;
  }
  /// Whether the tokens [first, end) are still there.
  bool holds(const CacheSequence& s, Index first, Index end) const {
    const Index behind_pinned = pinned_blocks * block, held = first_held(s);
    return held <= behind_pinned || end <= behind_pinned || first >= held;
  }
  /// Whether a sequence cut to n tokens can go on: the next one's window is there, and the block
  /// that it goes on in.
  bool can_end_at(const CacheSequence& s, Index n) const {
    return n == 0 || holds(s, std::min(window_begin(n), n - 1), n);
  }
  /// The sequence cut to n tokens. Within the pinned blocks all that a ring held behind them is
  /// forgotten.
  CacheSequence ended_at(CacheSequence s, Index n) const {
    s.length = n;
    if (ring_blocks == 0 || n <= pinned_blocks * block) s.written = n;
    return s;
  }
  /// The first key that a query at `position` sees behind the pinned ones.
  Index window_begin(Index position) const {
    return window == 0 ? 0 : std::max<Index>(position - window + 1, 0);
  }
  /// Tokens that can be appended now, and attended together.
  Index room(const CacheSequence& s) const {
    return window == 0 ? capacity - s.length : (ring_blocks - 1) * block + 2 - window;
  }
};

/// The parts of a cache's memory, stored as T.
template <class T>
class CacheMemory {
 public:
  using Scalar = cache_compute_t<T>;

  CacheMemory() = default;
  CacheMemory(const CacheLayout& layout, CacheLine* memory) : layout_(layout) {
    take(memory, keys_, layout.heads() * head_keys());
    take(memory, values_, layout.heads() * head_values());
    take(memory, tails_, layout.heads() * tail_size());
    const Index scales = is_scaled_v<T> ? layout.heads() * head_scales() : 0;
    take(memory, key_scales_, scales);
    take(memory, value_scales_, scales);
    take(memory, not_finite_, layout.heads() * layout.blocks());
    take(memory, sequences_, layout.sequences);
    take(memory, scratch_, angles_size(layout) + CacheLayout::piece * layout.depth);
  }
  /// Cache lines that a cache of this layout takes.
  static Index lines(const CacheLayout& layout) {
    CacheMemory counted(layout, nullptr);
    return counted.count_;
  }

  const CacheLayout& layout() const { return layout_; }
  CacheSequence& sequence(Index b) const { return sequences_[b]; }
  Scalar* angles() const { return scratch_; }
  Scalar* turned() const { return scratch_ + angles_size(layout_); }

  Index head_keys() const { return layout_.blocks() * layout_.rows * layout_.depth; }
  Index head_values() const { return layout_.blocks() * layout_.rows * layout_.features; }
  Index head_scales() const { return layout_.blocks() * layout_.rows; }
  Index tail_size() const { return layout_.panel * layout_.key_dim; }

  T* keys(Index head, Index slot = 0) const {
    return keys_ + head * head_keys() + slot * layout_.rows * layout_.depth;
  }
  T* values(Index head, Index slot = 0) const {
    return values_ + head * head_values() + slot * layout_.rows * layout_.features;
  }
  T* tail(Index head) const { return tails_ + head * tail_size(); }
  Scalar* key_scales(Index head, Index slot = 0) const {
    return key_scales_ + head * head_scales() + slot * layout_.rows;
  }
  Scalar* value_scales(Index head, Index slot = 0) const {
    return value_scales_ + head * head_scales() + slot * layout_.rows;
  }
  unsigned char* not_finite(Index head) const { return not_finite_ + head * layout_.blocks(); }

 private:
  static Index angles_size(const CacheLayout& layout) {
    return detail::RotaryTable<Scalar>::size(CacheLayout::piece, layout.key_dim);
  }
  template <class Part>
  void take(CacheLine*& memory, Part*& part, Index count) {
    const Index taken = (count * Index(sizeof(Part)) + 63) / 64;
    part = reinterpret_cast<Part*>(memory);
    if (memory != nullptr) memory += taken;
    count_ += taken;
  }

  CacheLayout layout_{};
  T *keys_ = nullptr, *values_ = nullptr, *tails_ = nullptr;
  Scalar *scratch_ = nullptr, *key_scales_ = nullptr, *value_scales_ = nullptr;
  unsigned char* not_finite_ = nullptr;
  CacheSequence* sequences_ = nullptr;
  Index count_ = 0;
};

/// The lines of a cache: its own, or the caller's. A copy has its own; what was moved from holds
/// nothing.
class CacheStore {
 public:
  CacheStore() = default;
  CacheStore(const CacheLayout& layout, Index lines)
      : layout_(layout), own_(lines), memory_(own_.data()), lines_(lines) {
    std::fill(memory_, memory_ + lines, CacheLine{});
  }
  /// `memory` stays the caller's.
  CacheStore(const CacheLayout& layout, CacheLine* memory, Index lines)
      : layout_(layout), memory_(memory), lines_(lines) {
    std::fill(memory, memory + lines, CacheLine{});
  }
  CacheStore(const CacheStore& other)
      : layout_(other.layout_), own_(other.lines_), memory_(own_.data()), lines_(other.lines_) {
    std::copy(other.memory_, other.memory_ + lines_, memory_);
  }
  CacheStore(CacheStore&& other) noexcept { swap(other); }
  CacheStore& operator=(const CacheStore& other) {
    if (this == &other) return *this;
    if (lines_ == other.lines_ && memory_ == own_.data()) {
      std::copy(other.memory_, other.memory_ + lines_, memory_);
      layout_ = other.layout_;
    } else {
      CacheStore copied(other);
      swap(copied);
    }
    return *this;
  }
  CacheStore& operator=(CacheStore&& other) noexcept {
    CacheStore moved(std::move(other));
    swap(moved);
    return *this;
  }

  const CacheLayout& layout() const { return layout_; }
  CacheLine* memory() const { return memory_; }
  Index lines() const { return lines_; }
  /// All of it as bytes, for checks of what overlaps it.
  TensorView<const unsigned char> view() const {
    TensorView<const unsigned char> bytes;
    bytes.data = reinterpret_cast<const unsigned char*>(memory_);
    bytes.tokens = 1;
    bytes.features = lines_ * Index(sizeof(CacheLine));
    return bytes;
  }

 private:
  void swap(CacheStore& other) noexcept {
    std::swap(layout_, other.layout_);
    std::swap(own_, other.own_);
    std::swap(memory_, other.memory_);
    std::swap(lines_, other.lines_);
  }

  CacheLayout layout_{};
  detail::AlignedBuffer<CacheLine> own_;
  CacheLine* memory_ = nullptr;
  Index lines_ = 0;
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
