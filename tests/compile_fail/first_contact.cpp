// SPDX-License-Identifier: MIT
// What is written at a first try: each is told what to write instead.
//
// expect 1: an option without its parentheses: write causal\(\), window\(left, right\)
// expect 2: an option without its parentheses: write causal\(\), window\(left, right\)
// expect 3: the scalar is that of the matrices: write attention\(Q, K, V\)
// expect 4: a layer without sizes: write MultiHeadAttention<Scalar> mha\(attn::MultiHeadOptions\(d_model, heads\)\)
// expect 5: bare numbers do not say which size is which: write MultiHeadAttention<Scalar> mha\(attn::MultiHeadOptions
// expect 6: masks are joined by &&, not by &
// expect 7: masks are joined by \|\|, not by \|
// expect 8: the output is an expression, which has no memory to write to: write into\(Y\)
// expect 9: an index differs from lane to lane: write lookup\(table, index\)
// expect 10: with unqualified abs, min, max, exp, tanh, with lookup\(table, index\)
// expect 11: (ignoring return value|unused)
// expect 12: (ignoring return value|unused)
// expect 13: (ignoring return value|unused)
// expect 14: weights\(\) are to read: write them by mha.edit
// expect 15: weights\(\) are to read: write them by mha.edit
#include <attn/attn.h>

using Eigen::MatrixXf;

void call(const MatrixXf& Q, const MatrixXf& K, const MatrixXf& V, MatrixXf& Y,
          const std::vector<float>& table) {
#if CASE == 1
  Y = attn::attention(Q, K, V, attn::causal);
#else
  Y = attn::attention(Q, K, V, attn::causal());
#endif
#if CASE == 2
  Y = attn::attention(Q, K, V, attn::window);
#else
  Y = attn::attention(Q, K, V, attn::window(1, 1));
#endif
#if CASE == 3
  attn::attention<float>(Q, K, V);
#else
  Y = attn::attention(Q, K, V);
#endif
#if CASE == 4
  attn::MultiHeadAttention<float> mha;
#else
  attn::MultiHeadAttention<float> mha(attn::MultiHeadOptions(8, 2));
#endif
#if CASE == 5
  attn::MultiHeadAttention<float> other(512, 8);
#else
  attn::MultiHeadAttention<float> other(attn::MultiHeadOptions(512, 8));
#endif
#if CASE == 6
  Y = attn::attention(Q, K, V, attn::causal() & attn::window(1, 1));
#else
  Y = attn::attention(Q, K, V, attn::causal() && attn::window(1, 1));
#endif
#if CASE == 7
  Y = attn::attention(Q, K, V, attn::causal() | attn::window(1, 1));
#else
  Y = attn::attention(Q, K, V, attn::causal() || attn::window(1, 1));
#endif
#if CASE == 8
  attn::attention(Q, K, V, attn::into(Y * 2.f));
#else
  attn::attention(Q, K, V, attn::into(Y));
#endif
#if CASE == 9
  Y = attn::attention(Q, K, V,
                      attn::score([&](auto s, auto at) { return s + table[at.query - at.key]; }));
#else
  Y = attn::attention(
      Q, K, V, attn::score([&](auto s, auto at) { return s + lookup(table, at.query - at.key); }));
#endif
#if CASE == 10
  Y = attn::attention(Q, K, V, attn::score([](auto s, auto) { return std::exp(s); }));
#else
  Y = attn::attention(Q, K, V, attn::score([](auto s, auto) { return exp(s); }));
#endif
  attn::MultiHeadOptions options(512, 8);
#if CASE == 11
  options.in_bias();
#else
  options = options.in_bias();
#endif
  attn::KeyValueCacheOptions sizes(512, 8, 64);
#if CASE == 12
  sizes.ring(128);
#else
  sizes = sizes.ring(128);
#endif
  auto turn = attn::rotary(attn::pairing::half_split);
#if CASE == 13
  turn.dims(16);
#else
  turn = turn.dims(16);
#endif
#if CASE == 14
  other.weights().query = Q;
#elif CASE == 15
  other.weights().output = other.weights().query;
#else
  other.edit([&](auto& w) { w.query = Q; });
  other.edit([&](auto& w) { w.output = w.query; });
#endif
}
