// SPDX-License-Identifier: MIT
// What mpi::attention() cannot do, all in one compilation: each mistake is an instantiation of its own.
//
// expect: one sequence is dealt: documents packed in it are told apart by segments\(ids\)
// expect: bias\(B\) is a matrix of all pairs, of which each rank would need other rows: write score\(f\)
// expect: save_weights\(\) and save_scores\(\) are matrices of all pairs: over ranks save_logsumexp\(\)
// expect: query, key, value and output gradient are this rank's rows: Eigen matrices or heads\(X, n\) of them
// expect: exchanged_heads twice in one call
// expect: the parts of the keys are the cache's own: leave out split_keys\(\)
// expect: a call on a mpi::KeyValueCache finishes its rows: leave out save_partial\(\)
// expect: save_weights\(\), save_scores\(\) and save_entropy\(\) need all keys on one rank
// expect: unknown option: options are made by causal\(\)
#include <attn/attn.h>
#include <attn/mpi.h>

using Eigen::MatrixXf;
namespace mpi = attn::mpi;

MatrixXf call(const mpi::Dealt& dealt, const MatrixXf& Q, MatrixXf& B) {
#if SHOULD_FAIL
  attn::detail::check_dealt_options<decltype(attn::sequence_length(3))>();
  attn::detail::check_dealt_options<decltype(attn::bias(B))>();
  attn::detail::check_dealt_options<decltype(attn::save_weights(B))>();
  attn::detail::check_dealt_operands<attn::TensorView<float>>();
  attn::detail::check_kinds<attn::detail::ExchangedHeads, attn::detail::ExchangedHeads>();
  attn::detail::check_cache_options<decltype(attn::split_keys(256))>();
  attn::detail::check_cache_options<attn::detail::SavePartial<float>>();
  attn::detail::check_cache_options<decltype(attn::save_entropy(B))>();
  // Not an option of attention() in one process.
  return attn::attention(Q, Q, Q, mpi::exchanged_heads());
#else
  attn::detail::check_dealt_options<decltype(attn::save_logsumexp(B))>();
  attn::detail::check_dealt_operands<MatrixXf>();
  attn::detail::check_kinds<attn::detail::ExchangedHeads>();
  attn::detail::check_cache_options<decltype(attn::save_logsumexp(B))>();
  return mpi::attention(dealt, Q, Q, Q, mpi::exchanged_heads());
#endif
}
