// SPDX-License-Identifier: MIT
// The likeliest mistakes that do not compile (README.md, Mistakes; those that do: tests/mistakes_test.cpp). What to write instead
// stands in the first lines of what compilers say, of which the way to a header is part: each call by its own.
//
// lines: 8
// expect 1: functions of std:: take one number, not lanes: write exp, tanh, abs, min, max without std::
// expect 2: an index differs from lane to lane: write lookup\(table, index\)
// expect 3: an option without its parentheses: write causal\(\), window\(left, right\)
// expect 4: the scalar is that of the matrices: write attention\(Q, K, V\)
// expect 5: a layer without sizes: write MultiHeadAttention<Scalar> mha\(attn::MultiHeadOptions\(d_model, heads\)\)
// expect 6: bare numbers do not say which size is which: write MultiHeadAttention<Scalar> mha\(attn::MultiHeadOptions
// expect 7: masks are joined by &&, not by &
// expect 8: weights\(\) are to read: write them by mha.edit
// expect 9: the output is an expression, which has no memory to write to: write into\(Y\)
// expect 10: a matrix of bool among the options: write keep\(B\) \(attend where true\) or hide\(B\) \(attend where false\)
// expect 11: integer matrices have no softmax: cast<float>\(\) them first
// expect 12: query, key, value and output must compute in one scalar: cast one of them
// expect 13: functions of std:: take one number, not lanes: write exp, tanh, abs, min, max without std::
// expect 14: weights\(\) are to read: write them by mha.edit
// expect 15: weights\(\) are to read: .* by linear.edit\(
#include <attn/attention.h>
#include <attn/linear.h>
#include <attn/multi_head_attention.h>

#include <vector>

using Eigen::MatrixXf;

void call(const MatrixXf& Q, const MatrixXf& K, const MatrixXf& V, MatrixXf& Y,
          const std::vector<float>& table, const Eigen::Matrix<bool, -1, -1>& B,
          const Eigen::MatrixXi& I, const Eigen::MatrixXd& D) {
#if CASE == 1
  Y = attn::attention(Q, K, V, attn::score([](auto s, auto) { return std::exp(s); }));
#else
  Y = attn::attention(Q, K, V, attn::score([](auto s, auto) { return exp(s); }));
#endif
#if CASE == 2
  Y = attn::attention(Q, K, V,
                      attn::score([&](auto s, auto at) { return s + table[at.query - at.key]; }));
#else
  Y = attn::attention(
      Q, K, V, attn::score([&](auto s, auto at) { return s + lookup(table, at.query - at.key); }));
#endif
#if CASE == 3
  Y = attn::attention(Q, K, V, attn::causal);
#else
  Y = attn::attention(Q, K, V, attn::causal());
#endif
#if CASE == 4
  Y = attn::attention<float>(Q, K, V);
#else
  Y = attn::attention(Q, K, V);
#endif
#if CASE == 5
  attn::MultiHeadAttention<float> mha;
#elif CASE == 6
  attn::MultiHeadAttention<float> mha(512, 8);
#else
  attn::MultiHeadAttention<float> mha(attn::MultiHeadOptions(512, 8));
#endif
#if CASE == 7
  Y = attn::attention(Q, K, V, attn::causal() & attn::window(1, 1));
#else
  Y = attn::attention(Q, K, V, attn::causal() && attn::window(1, 1));
#endif
#if CASE == 8
  mha.weights().query = Q;
#elif CASE == 14
  mha.weights().query.setRandom();
#else
  mha.edit([&](auto& w) { w.query = Q; });
#endif
#if CASE == 9
  attn::attention(Q, K, V, attn::into(Y * 2.f));
#else
  attn::attention(Q, K, V, attn::into(Y));
#endif
#if CASE == 10
  Y = attn::attention(Q, K, V, B);
#else
  Y = attn::attention(Q, K, V, attn::keep(B));
#endif
#if CASE == 11
  Y = attn::attention(I, I, I);
#else
  Y = attn::attention(I.cast<float>(), I.cast<float>(), I.cast<float>());
#endif
#if CASE == 12
  Y = attn::attention(Q, D, D);
#else
  Y = attn::attention(Q, D.cast<float>(), D.cast<float>());
#endif
  attn::ScaledDotProductAttention<float> sdpa;
#if CASE == 13
  Y = sdpa(Q, K, V, attn::score([](auto s, auto) { return std::exp(s); }));
#else
  Y = sdpa(Q, K, V, attn::score([](auto s, auto) { return exp(s); }));
#endif
  attn::Linear<float> linear(attn::LinearOptions(8, 8));
#if CASE == 15
  linear.weights().kernel() = Q;
#else
  linear.edit([&](auto& w) { w.kernel() = Q; });
#endif
}
