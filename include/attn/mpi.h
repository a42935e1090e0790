// attn/mpi.h: attention over the ranks of an MPI job, with the bits of one process. Included by
// itself: attn.h asks for Eigen alone, this for libmpi as well (CMake: attn::mpi).
// SPDX-License-Identifier: MIT
//
//   #include <attn/attn.h>
//   #include <attn/mpi.h>
//
//   int main() {
//     attn::mpi::Session session;                          // MPI, from here to the end of main
//     const attn::mpi::Ranks ranks(MPI_COMM_WORLD);
//     const auto dealt = ranks.deal(Q.rows());             // which rows are whose
//     const Eigen::MatrixXf q = dealt.local(Q), k = dealt.local(K), v = dealt.local(V);
//     const Eigen::MatrixXf y = attn::mpi::attention(dealt, attn::heads(q, 8), attn::heads(k, 2),
//                                                    attn::heads(v, 2), attn::causal());
//     const Eigen::MatrixXf Y = dealt.gather(y, 0);        // all rows, on rank 0
//   }
//
// Each rank has its rows of queries, keys and values, and computes its rows of the output. Keys and
// values of all ranks come a key/value head at a time, the next one while one is computed. Rows are
// shared, sums are not: nothing is merged between ranks, so that results are those of
// attention(Q, K, V, options…) in one process to the bit, on any number of ranks.
#pragma once

#include "gradient.h"
#include "mpi/deal.h"
#include "mpi/dealt_backward.h"
#include "mpi/dealt_call.h"
#include "mpi/key_value_cache.h"
#include "mpi/ranks.h"
#include "mpi/session.h"  // for those who include this

namespace attn {
inline namespace ATTN_ABI {
namespace mpi {

/// Option of mpi::attention(): each rank attends all rows under its share of the key/value heads,
/// for which the ranks exchange what they have (all to all), and the output back.
///
/// Requires   a number of ranks that divides the key/value heads   (std::invalid_argument
///            otherwise)
/// Semantics  the same bits
/// Cost       a rank receives (P − 1)/P of rows · (H·(d_k + d_v) + H_kv·(d_k + d_v)) scalars, where
///            gathering takes P times as many rows of H_kv·(d_k + d_v): worth it where the query
///            heads are few beside ranks · key/value heads. Memory: the operands and outputs of its
///            rows and of its heads once more; addresses, not memory, of those of all heads
/// Reference  Jacobs et al. 2023, DeepSpeed Ulysses (arXiv:2309.14509)
inline detail::ExchangedHeads exchanged_heads() { return {}; }

/// attention(Q, K, V, options…) of a sequence whose rows are dealt to ranks: called by all of them,
/// each with its own rows.
///
/// Shapes     Q [rows(), H·d_k]  K [rows(), H_kv·d_k]  V [rows(), H_kv·d_v]  →  [rows(), H·d_v]:
///            this rank's rows of each
/// Options    those of attention(), of the whole sequence: what is a list by token or a matrix of
///            pairs (segments(), keep(), hide(), block_sparse()) is that of all its tokens. Rows
///            that are read or written beside Y are this rank's: residual(X), save_logsumexp(l),
///            save_state(state), … Beside them exchanged_heads(), which keeps no state. Not bias(),
///            sequences(), sequence_length(), save_weights() and save_scores()
/// Requires   the same options on all ranks; shapes as attention()'s (std::invalid_argument on a
///            rank where they are not, RankFailed with its text on the others; outputs are then
///            untouched)
/// Semantics  as attention(): the same bits, whatever the number of ranks and the length of blocks.
///            Where a functor throws or memory runs out on one rank, it throws that, and the others
///            RankFailed, when all have done their part; the ranks may go on then
/// Cost       4·pairs·d flops of this rank's rows; it receives the rows of K and V that its own
///            see, at most (P − 1)/P · L · H_kv·(d_k + d_v) scalars. Memory 2 · L · (d_k + d_v)
///            scalars beside attention()'s scratch, one byte a block and rank
/// Accuracy   as attention()
/// Reference  the rows of a sequence as context-parallel training deals them (Llama 3,
///            arXiv:2407.21783, §3.3.2). Example: examples/13_mpi
template <class Query, class Key, class Value, class... Options>
[[nodiscard]] auto attention(const Dealt& dealt, Query&& Q, Key&& K, Value&& V,
                             Options&&... options) {
  detail::GivenMatrices<Key, Value>::template check_types<Query>();
  detail::check_dealt_operands<Query, Key, Value>();
  using Scalar = compute_t<typename detail::operand_traits<detail::bare_t<Query>>::Scalar>;
  return detail::with_opened(
      [&](auto&... opened) {
        return detail::attend_dealt_opened<Scalar, Query, Key, Value>(dealt, Q, K, V, opened...);
      },
      options...);
}

/// attention_backward(Q, K, V, dY, state, options…) of a sequence whose rows are dealt to ranks:
/// called by all of them, each with its own rows.
///
/// Shapes     Q, K, V and dY [rows(), …] as of mpi::attention(), and each gradient as what it
///            belongs to: this rank's rows of each. `state`: of this rank's forward call
/// Options    those of the forward call, and dquery(dQ), dkey(dK), dvalue(dV), dlogsumexp(l) of
///            this rank's rows; accumulate(). Not the gradients that are sums over the rows of all
///            ranks: dalibi(), dsink(), dscale(), dscore(), dbias(); not exchanged_heads()
/// Requires   as attention_backward(), and the same options on all ranks: also which gradients are
///            asked for (std::invalid_argument on a rank where something does not fit, RankFailed
///            with its text on the others; outputs are then untouched)
/// Semantics  as attention_backward(): the same bits, whatever the number of ranks and the length
///            of blocks. Two passes: dq of this rank's queries over all keys; dk and dv of its keys
///            over all rows. No rank adds to what another has. A failure is heard by all, as in
///            mpi::attention(); dQ may be written where the second pass fails
/// Cost       14 flops · pairs · d of its rows where one process takes 10 (dQ alone 6, dK and dV
///            alone 8); it receives what its own rows see of K and V, and of Q, dY and three
///            numbers a row and head what sees its keys, a key/value head and the query heads on it
///            at a time. Memory 2 · L · (d_k + d_v) scalars for the first pass, then 2 · L · H /
///            H_kv · (d_k + d_v + 3), and attention_backward()'s scratch for a sequence of L tokens
/// Reference  MPI over rows as in mpi::attention(). No ring: the order of its sums depends on P
template <class Query, class Key, class Value, class OutputGradient, class Scalar, class... Options>
void attention_backward(const Dealt& dealt, Query&& Q, Key&& K, Value&& V, OutputGradient&& dY,
                        const AttentionState<Scalar>& state, Options&&... options) {
  detail::GivenMatrices<Key, Value>::template check_types<Query>();
  detail::check_dealt_operands<Query, Key, Value, OutputGradient>();
  static_assert(
      std::is_same_v<Scalar,
                     compute_t<typename detail::operand_traits<detail::bare_t<Query>>::Scalar>>,
      "attn::mpi::attention_backward: the state has another scalar than the call computes in: "
      "AttentionState<float> for float, half and bfloat16");
  detail::with_opened(
      [&](auto&... opened) {
        detail::differentiate_dealt<Scalar, Query, Key, Value, OutputGradient>(
            dealt, Q, K, V, dY, detail::StateOf::store(state), opened...);
      },
      options...);
}

}  // namespace mpi
}  // namespace ATTN_ABI
}  // namespace attn
