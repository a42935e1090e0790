// attn/kv_cache_options.h: the sizes of a key/value cache, and what it keeps.
// SPDX-License-Identifier: MIT
#pragma once

#include "base/sizes.h"
#include "types.h"

namespace attn {
inline namespace ATTN_ABI {

/// The sizes of a cache: tokens of each sequence, key/value heads, features of a head's keys.
///
/// Requires   positive sizes; with ring(window), capacity ≥ window ≥ 1; pinned only with a ring
///            (std::invalid_argument otherwise)
/// Semantics  value_dim follows key_dim, one sequence, unless set. Without a ring, capacity is the
///            most tokens of a sequence
class KeyValueCacheOptions {
  template <class T>
  constexpr KeyValueCacheOptions with(T KeyValueCacheOptions::*member, Index value) const {
    KeyValueCacheOptions changed = *this;
    changed.*member = value;
    return changed;
  }

 public:
  constexpr KeyValueCacheOptions(Index capacity, Index kv_heads, Index key_dim)
      : capacity_(capacity), kv_heads_(kv_heads), key_dim_(key_dim) {}

  /// Features of each head's values, d_v.
  [[nodiscard]] constexpr KeyValueCacheOptions value_dim(Index n) const {
    return with(&KeyValueCacheOptions::value_dim_, n);
  }
  [[nodiscard]] constexpr KeyValueCacheOptions sequences(Index n) const {
    return with(&KeyValueCacheOptions::sequences_, n);
  }
  /// Sequences without an end: a query at position p sees the keys j > p − window, however it came
  /// to be there. The capacity counts what is kept: capacity − window + 1 rows can be appended and
  /// attended at a time, rounded up to whole blocks of keys.
  [[nodiscard]] constexpr KeyValueCacheOptions ring(Index window) const {
    return with(&KeyValueCacheOptions::window_, window);
  }
  /// The first n tokens stay in the ring and are always seen (attention sinks; Xiao et al. 2023,
  /// arXiv:2309.17453).
  [[nodiscard]] constexpr KeyValueCacheOptions pinned(Index n) const {
    return with(&KeyValueCacheOptions::pinned_, n);
  }

  constexpr Index capacity() const { return capacity_; }
  constexpr Index kv_heads() const { return kv_heads_; }
  constexpr Index key_dim() const { return key_dim_; }
  constexpr Index value_dim() const { return value_dim_.value_or(key_dim_); }
  constexpr Index sequences() const { return sequences_; }
  constexpr bool is_ring() const { return window_.given(); }
  /// Of a ring; 0 without one.
  constexpr Index window() const { return window_.value_or(0); }
  constexpr Index pinned() const { return pinned_; }

  /// Refuses sizes that make no cache.
  void check(const char* function) const {
    const auto positive = [&](const char* name, Index n) {
      detail::check_size(function, name, n, 1);
    };
    positive("capacity", capacity_);
    positive("kv_heads", kv_heads_);
    positive("key_dim", key_dim_);
    positive("value_dim", value_dim());
    positive("sequences", sequences_);
    if (is_ring()) {
      positive("the ring's window", window());
      if (capacity_ < window()) {
        detail::fail(detail::text(function, ": capacity is ", capacity_,
                                  ", needs at least the ring's window of ", window()));
      }
    }
    if (pinned_ < 0 || (pinned_ > 0 && !is_ring())) {
      detail::fail(detail::text(function, ": ", pinned_,
                                " tokens are pinned; pinned(n) needs n >= 0 and a ring(window)"));
    }
    using detail::Count;
    detail::check_product(
        function, "sequences x kv_heads x (capacity + pinned) x (key_dim + value_dim)", sequences_,
        kv_heads_, Count(capacity_) + pinned_, Count(key_dim_) + value_dim());
  }

 private:
  Index capacity_, kv_heads_, key_dim_;
  Index sequences_ = 1, pinned_ = 0;
  detail::OptionalSize value_dim_, window_;
};

}  // namespace ATTN_ABI
}  // namespace attn
