// SPDX-License-Identifier: MIT
// What mpi::attention() and mpi::attention_backward() cannot do, all in one compilation: each mistake is an instantiation of
// its own.
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
// expect: save_state\(\) keeps this rank's rows, which under exchanged_heads\(\) are other ranks'
// expect: attention_backward: one sequence is dealt: documents packed in it are told apart by segments\(ids\)
// expect: attention_backward: bias\(B\) is a matrix of all pairs, of which each rank would need other rows
// expect: attention_backward: exchanged_heads\(\) is of mpi::attention\(\): leave it out here
// expect: attention_backward: the state has another scalar than the call computes in
// dalibi(), dsink(), dscale(), dscore(), dbias():
// expect: dalibi\(\), dsink\(\), dscale\(\), dscore\(\) and dbias\(\) are sums over the rows of all ranks
// expect: dalibi\(\), dsink\(\), dscale\(\), dscore\(\) and dbias\(\) are sums over the rows of all ranks
// expect: dalibi\(\), dsink\(\), dscale\(\), dscore\(\) and dbias\(\) are sums over the rows of all ranks
// expect: dalibi\(\), dsink\(\), dscale\(\), dscore\(\) and dbias\(\) are sums over the rows of all ranks
// expect: dalibi\(\), dsink\(\), dscale\(\), dscore\(\) and dbias\(\) are sums over the rows of all ranks
#include <attn/attn.h>
#include <attn/mpi.h>

using Eigen::MatrixXf;
namespace mpi = attn::mpi;

MatrixXf call(const mpi::Dealt& dealt, const MatrixXf& Q, MatrixXf& B) {
  attn::AttentionState<float> state;
  attn::AttentionState<double> of_double;
  Eigen::VectorXf numbers;
  float number = 0;
  const auto each_pair = [](float, attn::At) {};
#if SHOULD_FAIL
  attn::detail::check_dealt_options<decltype(attn::sequence_length(3))>();
  attn::detail::check_dealt_options<decltype(attn::bias(B))>();
  attn::detail::check_dealt_options<decltype(attn::save_weights(B))>();
  attn::detail::check_dealt_options<decltype(attn::save_state(state)),
                                    attn::detail::ExchangedHeads>();
  attn::detail::check_dealt_operands<attn::TensorView<float>>();
  attn::detail::check_dealt_gradients<decltype(attn::sequence_length(3))>();
  attn::detail::check_dealt_gradients<decltype(attn::bias(B))>();
  attn::detail::check_dealt_gradients<attn::detail::ExchangedHeads>();
  attn::detail::check_dealt_gradients<decltype(attn::dalibi(numbers))>();
  attn::detail::check_dealt_gradients<decltype(attn::dsink(numbers))>();
  attn::detail::check_dealt_gradients<decltype(attn::dscale(number))>();
  attn::detail::check_dealt_gradients<decltype(attn::dscore(each_pair))>();
  attn::detail::check_dealt_gradients<decltype(attn::dbias(B))>();
  mpi::attention_backward(dealt, Q, Q, Q, Q, of_double, attn::dquery(B));
  attn::detail::check_kinds<attn::detail::ExchangedHeads, attn::detail::ExchangedHeads>();
  attn::detail::check_cache_options<decltype(attn::split_keys(256))>();
  attn::detail::check_cache_options<attn::detail::SavePartial<float>>();
  attn::detail::check_cache_options<decltype(attn::save_entropy(B))>();
  // Not an option of attention() in one process.
  return attn::attention(Q, Q, Q, mpi::exchanged_heads());
#else
  attn::detail::check_dealt_options<decltype(attn::save_logsumexp(B))>();
  attn::detail::check_dealt_options<decltype(attn::save_state(state))>();
  attn::detail::check_dealt_operands<MatrixXf>();
  attn::detail::check_dealt_gradients<decltype(attn::dquery(B)), decltype(attn::dkey(B)),
                                      decltype(attn::dvalue(B)),
                                      decltype(attn::dlogsumexp(numbers))>();
  mpi::attention_backward(dealt, Q, Q, Q, Q, state, attn::dquery(B));
  attn::detail::check_kinds<attn::detail::ExchangedHeads>();
  attn::detail::check_cache_options<decltype(attn::save_logsumexp(B))>();
  return mpi::attention(dealt, Q, Q, Q, mpi::exchanged_heads());
#endif
}
