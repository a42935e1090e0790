// SPDX-License-Identifier: MIT
// kv_cache.h alone: what its own documentation names.
#include <attn/kv_cache.h>

using Eigen::MatrixXf;

void all(const MatrixXf& Q, const MatrixXf& K, MatrixXf& Y, MatrixXf& W) {
  attn::KeyValueCache<float> cache(
      attn::KeyValueCacheOptions(16, 2, 4).value_dim(4).sequences(2).ring(8).pinned(1));
  const auto turn = attn::rotary(attn::pairing::half_split);
  cache.append(attn::heads(K, 2), attn::heads(K, 2), attn::sequences({0, 1}), turn,
               attn::cache_sequences({1}));
  cache.append(K, K, attn::sequence_length(1));
  attn::Workspace<float> workspace;
  attn::attention(attn::heads(Q, 4), cache, attn::into(Y), attn::window(4, 0), turn, attn::bias(W),
                  attn::alibi(attn::alibi_slopes(4)), attn::sink(), attn::save_weights(W),
                  attn::split_keys(64), attn::parallel(2), attn::use(workspace),
                  attn::cache_sequences({0}), attn::sequences({0, 1}));
  attn::attention(attn::heads(Q, 4), cache, attn::into(Y), attn::all_keys());
}
