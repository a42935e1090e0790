// SPDX-License-Identifier: MIT
// What is written at a first try: each is told what to write instead. The likeliest of all: mistakes.cpp.
//
// expect 1: an option without its parentheses: write causal\(\), window\(left, right\)
// expect 2: masks are joined by \|\|, not by \|
// expect 3: (ignoring return value|unused)
// expect 4: (ignoring return value|unused)
// expect 5: (ignoring return value|unused)
// expect 6: weights\(\) are to read: write them by mha.edit
#include <attn/attn.h>

using Eigen::MatrixXf;

void call(const MatrixXf& Q, const MatrixXf& K, const MatrixXf& V, MatrixXf& Y) {
#if CASE == 1
  Y = attn::attention(Q, K, V, attn::window);
#else
  Y = attn::attention(Q, K, V, attn::window(1, 1));
#endif
  attn::MultiHeadAttention<float> other(attn::MultiHeadOptions(512, 8));
#if CASE == 2
  Y = attn::attention(Q, K, V, attn::causal() | attn::window(1, 1));
#else
  Y = attn::attention(Q, K, V, attn::causal() || attn::window(1, 1));
#endif
  attn::MultiHeadOptions options(512, 8);
#if CASE == 3
  options.in_bias();
#else
  options = options.in_bias();
#endif
  attn::KeyValueCacheOptions sizes(512, 8, 64);
#if CASE == 4
  sizes.ring(128);
#else
  sizes = sizes.ring(128);
#endif
  auto turn = attn::rotary(attn::pairing::half_split);
#if CASE == 5
  turn.dims(16);
#else
  turn = turn.dims(16);
#endif
#if CASE == 6
  other.weights().output = other.weights().query;
#else
  other.edit([&](auto& w) { w.output = w.query; });
#endif
}
