// SPDX-License-Identifier: MIT
// A key/value cache: options that are not for it, or only for it; scalars that do not fit (kv_cache.h).
//
// expect 1: all_keys\(\) and cache_sequences\(\) are for calls on a KeyValueCache
// expect 2: all_keys\(\) and cache_sequences\(\) are for calls on a KeyValueCache
// expect 3: all_keys\(\) twice in one call
// expect 4: cache_sequences\(...\) twice in one call
// expect 5: a cache knows the positions of its rows, the last of each sequence: leave out
// expect 6: a cache knows the positions of its rows, the last of each sequence: leave out
// expect 7: all_keys\(\) beside a mask that hides keys by position: causal\(\), prefix_lm\(\) or tree\(\)
// expect 8: all_keys\(\) leaves open where the queries are, which window\(\), alibi\(\) or rotary\(\) asks
// expect 9: all_keys\(\) leaves open where the queries are, which window\(\), alibi\(\) or rotary\(\) asks
// expect 10: the query computes in another scalar than the cache: cast it
// expect 11: the query is an Eigen matrix, heads\(X, n\) of one, or a strided view
// expect 12: append: takes sequences\(\), sequence_length\(\), cache_sequences\(\) and rotary\(\)
// expect 13: append: key and value compute in another scalar than the cache: cast them
// expect 14: append: key and value are Eigen matrices, heads\(X, n\) of them, or strided views
// expect 15: append: an option is given twice
// expect 16: unused-result
// expect 17: a const functor has no scratch of its own: add the option use\(workspace\)
// expect 18: KeyValueCache: stores a real scalar \(float, double, half, bfloat16, ...\) or std::int8_t
// expect 19: dropout\(\) on a KeyValueCache: a cache serves inference, where nothing is dropped
// expect 20: dropout\(\) on a KeyValueCache: a cache serves inference, where nothing is dropped
#include <attn/attn.h>

using Eigen::MatrixXf;

void call(const MatrixXf& Q, const MatrixXf& K, const MatrixXf& V, MatrixXf& Y,
          const Eigen::MatrixXd& D, attn::KeyValueCache<float>& cache, attn::Workspace<float>& ws) {
#if CASE == 1
  Y = attn::attention(Q, K, V, attn::all_keys());
#elif !CASE  // the twins are compiled once, all together
  Y = attn::attention(Q, cache, attn::all_keys());
#endif
#if CASE == 2
  Y = attn::attention(Q, K, V, attn::cache_sequences({0}));
#elif !CASE
  Y = attn::attention(Q, cache, attn::cache_sequences({0}));
#endif
#if CASE == 3
  Y = attn::attention(Q, cache, attn::all_keys(), attn::all_keys());
#endif
#if CASE == 4
  Y = attn::attention(Q, cache, attn::cache_sequences({0}), attn::cache_sequences({1}));
#elif !CASE
  Y = attn::attention(Q, cache, attn::cache_sequences({0, 1}));
#endif
#if CASE == 5
  Y = attn::attention(Q, cache, attn::causal(attn::align::lower_right));
#elif !CASE
  Y = attn::attention(Q, cache, attn::causal());
#endif
#if CASE == 6
  Y = attn::attention(Q, cache, attn::query_offset(3));
#elif !CASE
  Y = attn::attention(Q, cache, attn::all_keys(), attn::query_offset(3));
#endif
#if CASE == 7
  Y = attn::attention(Q, cache, attn::all_keys(), attn::causal());
#endif
#if CASE == 8
  Y = attn::attention(Q, cache, attn::all_keys(), attn::key_lengths(3) && attn::window(2, 2));
#elif !CASE
  Y = attn::attention(Q, cache, attn::all_keys(), attn::key_lengths(3) && attn::window(2, 2),
                      attn::query_offset(0));
#endif
#if CASE == 9
  Y = attn::attention(Q, cache, attn::all_keys(), attn::alibi(0.5f));
#endif
#if CASE == 10
  (void)attn::attention(D, cache);
#elif !CASE
  Y = attn::attention(D.cast<float>(), cache);
#endif
#if CASE == 11
  attn::attention(3, cache, attn::into(Y));
#elif !CASE
  attn::attention(Q, cache, attn::into(Y));
#endif
#if CASE == 12
  cache.append(K, V, attn::causal());
#elif !CASE
  cache.append(K, V);
#endif
#if CASE == 13
  cache.append(K, D);
#elif !CASE
  cache.append(K, D.cast<float>());
#endif
#if CASE == 14
  cache.append(K, 3);
#endif
#if CASE == 15
  cache.append(K, V, attn::cache_sequences({0}), attn::cache_sequences({1}));
#elif !CASE
  cache.append(K, V, attn::cache_sequences({0}), attn::sequence_length(1));
#endif
#if CASE == 16
  attn::attention(Q, cache);
#endif
#if CASE == 18
  attn::KeyValueCache<int> integers;
#elif !CASE
  attn::KeyValueCache<long double> numbers;
#endif
#if CASE == 19
  Y = attn::attention(Q, cache, attn::dropout(0.1, 1));
#elif !CASE
  Y = attn::attention(Q, K, V, attn::dropout(0.1, 1));
#endif
#if CASE == 20
  Y = attn::MultiHeadAttention<float>(attn::MultiHeadOptions(8, 2))
          .decode(Q, cache, attn::dropout(0.1, 1));
#elif !CASE
  Y = attn::MultiHeadAttention<float>(attn::MultiHeadOptions(8, 2))(Q, attn::dropout(0.1, 1));
#endif
  const attn::ScaledDotProductAttention<float> shared;
#if CASE == 17
  Y = shared(Q, cache);
#elif !CASE
  Y = shared(Q, cache, attn::use(ws));
#endif
}
