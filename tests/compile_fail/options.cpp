// SPDX-License-Identifier: MIT
// Options: unknown, doubled, or matrices that do not say what they are (options.h).
//
// expect 1: a matrix of bool among the options: write keep\(B\) \(attend where true\) or hide\(B\)
// expect 2: a matrix among the options: write what it is: into\(Y\) for the output, bias\(B\)
// expect 3: a matrix among the options: write what it is: into\(Y\) for the output, bias\(B\)
// expect 4: unknown option: options are made by causal\(\), window\(\), keep\(\)
// expect 5: unknown option: options are made by causal\(\), window\(\), keep\(\)
// expect 6: two scales in one call
// expect 7: two softcaps in one call
// expect 8: two biases in one call: add the matrices, bias\(A \+ B\)
// expect 9: two residuals in one call: add the matrices, residual\(A \+ B\)
// expect 10: two outputs in one call
// expect 11: save_logsumexp twice in one call
// expect 12: two workspaces in one call
// expect 13: the batch is named twice: one of sequences\(...\) and sequence_length\(...\)
// expect 14: the query offset is named twice: one of causal\(align::...\), causal_from\(...\)
// expect 15: the query offset is named twice: one of causal\(align::...\), causal_from\(...\)
// expect 16: a matrix among the options: write what it is
// expect 17: a matrix among the options: write what it is
// expect 18: two split_keys in one call
// expect 19: expected numbers, one for each head or one for all, not bool
// expect 20: expected numbers, one for each head or one for all, not bool
// expect 21: expected numbers, one for each head or one for all, not bool
// expect 22: two dropouts in one call: write one, dropout\(p, seed, stream\)
#include <attn/attn.h>

#include <vector>

using Eigen::MatrixXf;

void call(const MatrixXf& Q, const MatrixXf& K, const MatrixXf& V, MatrixXf& Y, MatrixXf& l,
          const MatrixXf& B, const Eigen::Matrix<bool, Eigen::Dynamic, Eigen::Dynamic>& M,
          attn::Workspace<float>& ws) {
#if CASE == 1
  Y = attn::attention(Q, K, V, M);
#else
  Y = attn::attention(Q, K, V, attn::keep(M));
#endif
#if CASE == 2
  Y = attn::attention(Q, K, V, B);
#else
  Y = attn::attention(Q, K, V, attn::bias(B));
#endif
#if CASE == 3
  (void)attn::attention(Q, K, V, attn::causal(), Y);
#else
  attn::attention(Q, K, V, attn::causal(), attn::into(Y));
#endif
#if CASE == 4
  Y = attn::attention(Q, K, V, 3);
#else
  Y = attn::attention(Q, K, V, attn::key_lengths(3));
#endif
#if CASE == 5
  Y = attn::attention(Q, K, V, attn::align::lower_right);
#else
  Y = attn::attention(Q, K, V, attn::causal(attn::align::lower_right));
#endif
#if CASE == 6
  Y = attn::attention(Q, K, V, attn::scale(1), attn::scale(2.f));
#else
  Y = attn::attention(Q, K, V, attn::scale(1));
#endif
#if CASE == 7
  Y = attn::attention(Q, K, V, attn::softcap(1), attn::causal(), attn::softcap(2));
#else
  Y = attn::attention(Q, K, V, attn::softcap(1), attn::causal());
#endif
#if CASE == 8
  Y = attn::attention(Q, K, V, attn::bias(B), attn::bias(B));
#else
  Y = attn::attention(Q, K, V, attn::bias(B + B));
#endif
#if CASE == 9
  Y = attn::attention(Q, K, V, attn::residual(B), attn::residual(B));
#else
  Y = attn::attention(Q, K, V, attn::residual(B + B));
#endif
#if CASE == 10
  attn::attention(Q, K, V, attn::into(Y), attn::into(l));
#else
  attn::attention(Q, K, V, attn::into(Y));
#endif
#if CASE == 11
  Y = attn::attention(Q, K, V, attn::save_logsumexp(l), attn::save_logsumexp(l));
#else
  Y = attn::attention(Q, K, V, attn::save_logsumexp(l));
#endif
#if CASE == 12
  Y = attn::attention(Q, K, V, attn::use(ws), attn::use(ws));
#else
  Y = attn::attention(Q, K, V, attn::use(ws));
#endif
#if CASE == 13
  Y = attn::attention(Q, K, V, attn::sequences({0, 2}), attn::sequence_length(2));
#else
  Y = attn::attention(Q, K, V, attn::sequence_length(2));
#endif
#if CASE == 14
  Y = attn::attention(Q, K, V, attn::causal_from(2), attn::query_offset(3));
#else
  Y = attn::attention(Q, K, V, attn::causal(), attn::query_offset(3));
#endif
#if CASE == 15
  Y = attn::attention(Q, K, V, !attn::causal_from(2) || attn::causal(attn::align::lower_right));
#else
  Y = attn::attention(Q, K, V, !attn::causal_from(2) || attn::window(1, 0));
#endif
#if CASE == 16
  Y = attn::attention(Q, K, V, attn::heads(B, 2));
#else
  Y = attn::attention(Q, K, V, attn::bias(attn::heads(B, 2)));
#endif
#if CASE == 17
  Y = attn::attention(Q, K, V, Q + K);
#else
  Y = attn::attention(Q, K, V, attn::residual(Q + K));
#endif
#if CASE == 18
  Y = attn::attention(Q, K, V, attn::split_keys(256), attn::split_keys(512));
#else
  Y = attn::attention(Q, K, V, attn::split_keys(256));
#endif
#if CASE == 19
  Y = attn::attention(Q, K, V, attn::sink(true));
#else
  Y = attn::attention(Q, K, V, attn::sink(1));
#endif
#if CASE == 20
  Y = attn::attention(Q, K, V, attn::alibi(std::vector<bool>{true}));
#else
  Y = attn::attention(Q, K, V, attn::alibi(std::vector<float>{1}));
#endif
#if CASE == 21
  Y = attn::attention(Q, K, V, attn::sink(M.row(0)));
#else
  Y = attn::attention(Q, K, V, attn::sink(Q.row(0)));
#endif
#if CASE == 22
  Y = attn::attention(Q, K, V, attn::dropout(0.1, 1), attn::dropout(0.2, 1));
#else
  Y = attn::attention(Q, K, V, attn::dropout(0.1, 1));
#endif
}
