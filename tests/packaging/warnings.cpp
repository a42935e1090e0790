// SPDX-License-Identifier: MIT
// A call of each kind, in every storage type: compiled with the warnings of a strict program, attn's headers being no system headers.

#include <attn/attn.h>

#include <random>

using Eigen::MatrixXf;

template <class T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>;

template <class T>
void project(const Matrix<T>& X, Matrix<T>& Y) {
  attn::Linear<T> linear(attn::LinearOptions(8, 8).bias());
  linear.edit([](auto& w) { w.kernel().setIdentity(); });
  Y = linear(X, attn::gelu(), attn::residual());
  linear(attn::silu(X), attn::into(Y), attn::activation([](auto x) { return abs(x) + 1; }),
         attn::residual(X), attn::parallel(2));
}

template <class T>
void attend(const Matrix<T>& Q, Matrix<T>& Y) {
  Matrix<T> W, S, l;
  Y = attn::attention(Q, Q, Q, attn::causal() && !attn::window(2, 0), attn::bias(Q),
                      attn::alibi(attn::alibi_slopes(1)), attn::softcap(3.f), attn::sink(),
                      attn::rotary(attn::pairing::half_split).dims(4).positions({1, 2}),
                      attn::save_weights(W, attn::query_rows({0})),
                      attn::save_scores(S, attn::stage::scaled), attn::save_logsumexp(l),
                      attn::residual(Q));
  const Matrix<bool> B = Q.array() > T(0);
  Y = attn::attention(attn::heads(Q, 2), attn::heads(Q, 2), attn::heads(Q, 2),
                      attn::keep(attn::heads(B, 2)), attn::block_sparse(B, 4),
                      attn::segments({1, 2}), attn::key_lengths({1, 2}), attn::sequences({0, 3, 5}),
                      attn::split_keys(64), attn::parallel(2), attn::save_entropy(W),
                      attn::save_max_logit(S));
  Y = attn::attention(Q, Q, Q, attn::tree({-1, 0}), attn::score([](auto s, auto at) {
                        return select(at.key > at.query, s, -s * exp(s) + abs(at.key - at.query));
                      }));
  Y = attn::attention(Q, Q, Q, attn::prefix_lm(2),
                      attn::score([](T s, attn::At at) { return s + T(at.key); }),
                      attn::mask([](attn::Index i, attn::Index j) { return i > j; }));
  Y = attn::softmax(Q, attn::colwise());
  Y = attn::softmax(Q, attn::causal());
  Y = attn::log_softmax(Q);
  l = attn::logsumexp(Q);
  Y = attn::residual_add(Q, Y);
  Y = attn::rotate(Q, attn::rotary(attn::pairing::interleaved));
  attn::ScaledDotProductAttention<T> sdpa;
  sdpa.reserve(attn::AttentionShape{});
  sdpa(Q, Q, Q, attn::into(Y));
}

template <class T>
void differentiate(const Matrix<T>& Q, Matrix<T>& dQ) {
  attn::AttentionState<attn::compute_t<T>> state;
  Matrix<T> B = Q, dB, dK, dV;
  Eigen::Matrix<attn::compute_t<T>, Eigen::Dynamic, 1> slopes, logits;
  attn::compute_t<T> scale;
  const auto call =
      attn::options(attn::causal(), attn::bias(B), attn::alibi(attn::alibi_slopes(1)),
                    attn::softcap(3.f), attn::sink(), attn::rotary(attn::pairing::interleaved),
                    attn::dropout(0.1, 1), attn::score([](auto s, auto at) {
                      return select(at.key > at.query, s, -s * exp(s) + abs(at.key - at.query));
                    }));
  const Matrix<T> Y = attn::attention(Q, Q, Q, call, attn::save_state(state));
  attn::attention_backward(Q, Q, Q, Y, state, call, attn::dquery(dQ), attn::dkey(dK),
                           attn::dvalue(dV), attn::dbias(dB), attn::dalibi(slopes),
                           attn::dsink(logits), attn::dscale(scale), attn::dlogsumexp(Q.col(0)),
                           attn::dscore([](auto, attn::At) {}), attn::parallel(2));
  attn::ScaledDotProductAttention<attn::compute_t<T>> sdpa;
  sdpa.backward(Q, Q, Q, Y, state, call, attn::dquery(dQ), attn::accumulate());
}

template <class T>
void decode(const MatrixXf& Q, MatrixXf& Y) {
  attn::KeyValueCache<T> cache(attn::KeyValueCacheOptions(8, 2, 4).ring(4).pinned(1).sequences(2));
  cache.append(Q, Q);
  cache.append(Q, Q, attn::sequences({0, 1}), attn::cache_sequences({1}));
  Y = attn::attention(Q, cache);
  Y = attn::attention(attn::heads(Q, 8), cache, attn::split_keys(64), attn::tree({-1, 0}));
  cache.truncate(2);
  cache.copy(0, 1);
  cache.clear();
}

template <class T>
void layer(const MatrixXf& X, MatrixXf& Y) {
  attn::MultiHeadAttention<T> mha(attn::MultiHeadOptions(8, 2).in_bias());
  Y = mha(X, X, X, attn::residual(), attn::parallel(2), attn::causal());
  attn::KeyValueCache<float> cache(attn::KeyValueCacheOptions(8, 2, 4));
  Y = mha.decode(X, cache, attn::rotary(attn::pairing::half_split));
  std::mt19937 engine;
  mha.edit([&](auto& w) {
    attn::glorot_uniform(w, engine);
    attn::pytorch_uniform(w, engine);
    attn::load(w, attn::PyTorchView<const float>());
    attn::load(w, attn::KerasView<const float>());
  });
  attn::store(mha.weights(), attn::KerasView<float>());
  attn::store(mha.weights(), attn::PyTorchView<float>());
  attn::store(mha.weights(), attn::JoinedView<float>());
}

void every_kind(const MatrixXf& Q, MatrixXf& Y, const Matrix<double>& D, Matrix<double>& E,
                const Matrix<Eigen::half>& H, Matrix<Eigen::half>& narrow) {
  attend<float>(Q, Y);
  attend<double>(D, E);
  differentiate<float>(Q, Y);
  differentiate<double>(D, E);
  differentiate<Eigen::half>(H, narrow);
  attn::attention(H, H, H, attn::into(narrow));
  Y = attn::attention(Q, H, H);
  project<float>(Q, Y);
  project<double>(D, E);
  decode<float>(Q, Y);
  decode<Eigen::bfloat16>(Q, Y);
  decode<std::int8_t>(Q, Y);
  layer<float>(Q, Y);
  layer<Eigen::half>(Q, Y);
  attn::MultiHeadAttention<float, 8, 2> fixed;
  Y = fixed(Q);
  Y = attn::merge(Q, Q, Q, Q);
}
