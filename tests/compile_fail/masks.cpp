// SPDX-License-Identifier: MIT
// Masks, biases and index lists of the wrong kind (mask.h, score.h, base/index_list.h).
//
// expect 1: && joins masks: a matrix of bool becomes one by keep\(B\) or hide\(B\)
// expect 2: \|\| joins masks: a matrix of bool becomes one by keep\(B\) or hide\(B\)
// expect 3: && joins masks: a matrix of bool becomes one by keep\(B\) or hide\(B\)
// expect 4: for numbers write keep\(B.array\(\) > 0\), or bias\(B\)
// expect 5: for numbers write hide\(B.array\(\) > 0\), or bias\(B\)
// expect 6: expected a dense Eigen matrix
// expect 7: bias: a matrix of bool says its polarity: keep\(B\) attends where it is true, hide\(B\)
// expect 8: bias: expected a matrix to add to the scores
// expect 9: offsets, lengths and positions are integers
// expect 10: offsets, lengths and positions are integers
// expect 11: && joins masks
// expect 12: expected a dense Eigen matrix
#include <attn/attn.h>

#include <vector>

using Eigen::MatrixXf;
using Bools = Eigen::Matrix<bool, Eigen::Dynamic, Eigen::Dynamic>;

void call(const MatrixXf& Q, const MatrixXf& K, const MatrixXf& V, const MatrixXf& B,
          const Bools& M, const std::vector<float>& floats, const std::vector<int>& ints) {
  MatrixXf Y;
#if CASE == 1
  Y = attn::attention(Q, K, V, attn::causal() && M);
#else
  Y = attn::attention(Q, K, V, attn::causal() && attn::keep(M));
#endif
#if CASE == 2
  Y = attn::attention(Q, K, V, M || attn::causal());
#else
  Y = attn::attention(Q, K, V, attn::keep(M) || attn::causal());
#endif
#if CASE == 3
  Y = attn::attention(Q, K, V, attn::causal() && attn::softcap(2));
#else
  Y = attn::attention(Q, K, V, attn::causal(), attn::softcap(2));
#endif
#if CASE == 4
  Y = attn::attention(Q, K, V, attn::keep(B));
#else
  Y = attn::attention(Q, K, V, attn::keep(B.array() > 0));
#endif
#if CASE == 5
  Y = attn::attention(Q, K, V, attn::hide(attn::heads(B, 2)));
#else
  Y = attn::attention(Q, K, V, attn::hide(attn::heads(M, 2)));
#endif
#if CASE == 6
  Y = attn::attention(Q, K, V, attn::keep(3));
#else
  Y = attn::attention(Q, K, V, attn::key_lengths(3));
#endif
#if CASE == 7
  Y = attn::attention(Q, K, V, attn::bias(M));
#else
  Y = attn::attention(Q, K, V, attn::bias(M.cast<float>()));
#endif
#if CASE == 8
  Y = attn::attention(Q, K, V, attn::bias(3.f));
#else
  Y = attn::attention(Q, K, V, attn::bias(MatrixXf::Constant(6, 6, 3.f)));
#endif
#if CASE == 9
  Y = attn::attention(Q, K, V, attn::key_lengths(floats));
#else
  Y = attn::attention(Q, K, V, attn::key_lengths(ints));
#endif
#if CASE == 10
  Y = attn::attention(Q, K, V, attn::sequences(B.col(0)));
#else
  Y = attn::attention(Q, K, V, attn::sequences(B.col(0).cast<int>().eval()));
#endif
#if CASE == 11
  Y = attn::attention(Q, K, V, attn::causal() && true);
#else
  Y = attn::attention(Q, K, V, attn::causal() && attn::window(3, -1));
#endif
#if CASE == 12
  Y = attn::attention(Q, K, V, attn::hide(ints));
#else
  Y = attn::attention(Q, K, V, attn::hide(M));
#endif
}
