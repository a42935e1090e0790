// SPDX-License-Identifier: MIT
// multi_head_attention.h alone: what its own documentation names.
#include <attn/multi_head_attention.h>

using Eigen::MatrixXf;

void all(const MatrixXf& X, MatrixXf& Y, MatrixXf& W) {
  attn::MultiHeadAttention<float> mha(attn::MultiHeadOptions(8, 2).in_bias().out_bias());
  mha.edit([&](auto& w) { w.query = X; });
  mha(X, attn::into(Y), attn::sequences({0, 1}), attn::rotary(attn::pairing::half_split),
      attn::causal() && attn::window(1, 0), attn::bias(W), attn::alibi(attn::alibi_slopes(2)),
      attn::sink(), attn::softcap(1.f), attn::save_weights(W), attn::residual(),
      attn::key_lengths({1}), attn::parallel(2), attn::split_keys(64));
  attn::KeyValueCache<float> cache(attn::KeyValueCacheOptions(8, 2, 4));
  mha.decode(X, cache, attn::into(Y), attn::rotary(attn::pairing::half_split));
}
