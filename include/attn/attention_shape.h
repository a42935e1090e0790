// attn/attention_shape.h: the sizes of a call, of which scratch follows, and what they have to be.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "detail/call_shape.h"

namespace attn {
inline namespace ATTN_ABI {

/// The sizes that a workspace depends on, for reserve(): of the longest sequence, d_k and d_v for each head.
struct AttentionShape {
  Index queries = 0, keys = 0;
  Index key_dim = 0, value_dim = 0;
  Index heads = 1, kv_heads = 1;
  Index sequences = 1;    ///< matters only with several workers
  int workers = 1;        ///< as in parallel(workers) or on(pool)
  Index rotary_dims = 0;  ///< features of each head that turn, with rotary()
  Index split_keys = 0;   ///< as in split_keys(chunk)
  bool cached = false;    ///< the keys are a cache's, turned already
};

namespace detail {

/// Refuses sizes whose products a call could not count: its rows, its scores' columns, its features, its scratch.
ATTN_NOINLINE inline void check_amounts(const char* function, const AttentionShape& s) {
  const Index rows = (Count(s.queries) * (s.heads / s.kv_heads)).value();
  check_product(function, "sequences x query rows x heads", s.sequences, s.queries, s.heads);
  check_product(function, "keys x heads", s.keys, s.heads);
  check_product(function, "heads x (key_dim + value_dim)", s.heads, Count(s.key_dim) + s.value_dim);
  // At most twice as much as ScratchSize counts: the rows of a chunk and the keys of a block, rounded up to tiles.
  check_product(function, "scratch for workers x (rows + keys) x (key_dim + value_dim)", s.workers,
                std::min<Index>(rows, 1024) + std::min<Index>(s.keys, 256) + 128,
                Count(2) * (Count(s.key_dim) + s.value_dim + 256));
  check_product(function, "sequences x (query rows + keys) x angles of rotary_dims", s.sequences,
                Count(s.queries) + s.keys,
                s.rotary_dims > 0 ? Count(2) * (Count(s.rotary_dims) + 64) : Count(1));
  if (s.split_keys > 0) {
    check_product(function, "parts for workers x keys x value_dim", s.workers,
                  Count(8) * (Count(s.keys) + 512), Count(s.value_dim) + 128);
  }
}
ATTN_INLINE void check_amounts(const CallShape& shape, int workers, bool splits) {
  const Index queries = shape.queries.total(), keys = shape.keys.longest();
  // Sizes far below pass by one test: the smallest calls take no more than some hundred instructions.
  const Index any = queries | keys | shape.key_dim | shape.value_dim | shape.heads;
  if (any < 4096 && workers == 1 && !splits) return;
  AttentionShape s;
  s.queries = queries;
  s.keys = keys;
  s.key_dim = shape.key_dim;
  s.value_dim = shape.value_dim;
  s.heads = shape.heads;
  s.kv_heads = shape.kv_heads;
  s.workers = workers;
  s.split_keys = splits ? 1 : 0;
  check_amounts(shape.function, s);
}
/// The same of sizes that a user names.
inline void check_shape(const char* function, const AttentionShape& s) {
  check_size(function, "queries", s.queries, 0);
  check_size(function, "keys", s.keys, 0);
  check_size(function, "key_dim", s.key_dim, 0);
  check_size(function, "value_dim", s.value_dim, 0);
  check_size(function, "heads", s.heads, 1);
  check_size(function, "kv_heads", s.kv_heads, 1);
  check_size(function, "sequences", s.sequences, 0);
  check_size(function, "workers", s.workers, 1);
  check_size(function, "rotary_dims", s.rotary_dims, 0);
  check_size(function, "split_keys", s.split_keys, 0);
  if (s.heads % s.kv_heads != 0) {
    fail(text(function, ": heads is ", s.heads, ", needs a multiple of kv_heads, ", s.kv_heads));
  }
  check_amounts(function, s);
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
