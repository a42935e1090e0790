// SPDX-License-Identifier: MIT
// Weights, scores and numbers of rows that cannot be saved as asked (output.h, call/saved_outputs.h, options.h, kernel/pair_outputs.h).
//
// expect 1: the output is const
// expect 2: the output is a temporary matrix: its result would be lost
// expect 3: the output is an expression, which has no memory to write to
// expect 4: the output is const \(heads\(\) of a const matrix, of an expression or of a temporary\)
// expect 5: save_max_logit, save_entropy: expected a matrix to write to, query rows x heads
// expect 6: saved weights, scores and logarithms are real numbers: save them to a matrix of float or double
// expect 7: save_weights: after the matrix it takes query_rows\(...\) and average_heads\(\), each once
// expect 8: save_weights: after the matrix it takes query_rows\(...\) and average_heads\(\), each once
// expect 9: save_scores: after the matrix and the stage it takes query_rows\(...\)
// expect 10: save_weights: the mean over heads is summed where it is saved
// expect 11: save_weights twice in one call
// expect 12: save_scores twice in one call
// expect 13: save_max_logit twice in one call
// expect 14: save_entropy twice in one call
// expect 15: save_logsumexp twice in one call
// expect 16: offsets, lengths and positions are integers
// expect 17: the output is an Eigen matrix, heads\(Y, n\) of one, or a strided view
#include <attn/attn.h>

#include <vector>

using Eigen::MatrixXf;

template <class... Options>
void attend(const MatrixXf& Q, const Options&... options) {
  MatrixXf Y;
  attn::attention(Q, Q, Q, attn::into(Y), options...);
}

void call(const MatrixXf& Q, const MatrixXf& const_W, MatrixXf& W, MatrixXf& S,
          const std::vector<int>& rows, const std::vector<float>& numbers, float* memory) {
  using attn::save_entropy;
  using attn::save_logsumexp;
  using attn::save_max_logit;
  using attn::save_scores;
  using attn::save_weights;
  using attn::stage;
  Eigen::MatrixXi integers;
  Eigen::Matrix<Eigen::half, -1, -1> narrow;
#if CASE == 1
  attend(Q, save_weights(const_W));
#endif
#if CASE == 2
  attend(Q, save_scores(MatrixXf(6, 6), stage::scaled));
#endif
#if CASE == 3
  attend(Q, save_entropy(2 * W));
#endif
#if CASE == 4
  attend(Q, save_weights(attn::heads(const_W, 2)));
#endif
#if CASE == 5
  attend(Q, save_entropy(attn::heads(W, 2)));
#endif
#if CASE == 6
  attend(Q, save_weights(integers));
#endif
#if CASE == 7
  attend(Q, save_weights(W, rows));
#endif
#if CASE == 8
  attend(Q, save_weights(W, attn::average_heads(), attn::average_heads()));
#endif
#if CASE == 9
  attend(Q, save_scores(S, stage::scaled, attn::average_heads()));
#endif
#if CASE == 10
  attend(Q, save_weights(narrow, attn::average_heads()));
#endif
#if CASE == 11
  attend(Q, save_weights(W), save_weights(W, attn::average_heads()));
#endif
#if CASE == 12
  attend(Q, save_scores(W, stage::scaled), save_scores(S, stage::masked));
#endif
#if CASE == 13
  attend(Q, save_max_logit(W), save_max_logit(S));
#endif
#if CASE == 14
  attend(Q, save_entropy(W), save_entropy(S));
#endif
#if CASE == 15
  attend(Q, save_logsumexp(W), save_logsumexp(S));
#endif
#if CASE == 16
  attend(Q, save_weights(W, attn::query_rows(numbers)));
#endif
#if CASE == 17
  attend(Q, save_weights(memory));
#endif
#if !CASE  // the twins are compiled once, all together
  attend(Q, save_weights(W, attn::average_heads(), attn::query_rows(rows)),
         save_scores(S.leftCols(6), stage::scaled, attn::query_rows({1, 2})));
  attend(Q, save_weights(narrow), save_scores(attn::heads(S, 2), stage::masked),
         save_entropy(attn::bhld(memory, 1, 1, 6, 1)), save_max_logit(W.col(0)));
#endif
}
