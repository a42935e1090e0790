// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <attn/mpi.h>

#include <cstdio>

int main() {
  attn::mpi::Session session;
  const attn::mpi::Ranks ranks(MPI_COMM_WORLD);
  const Eigen::MatrixXf Q = Eigen::MatrixXf::Constant(50, 16, 0.5f), K = Q, V = Q;

  const auto dealt = ranks.deal(Q.rows());
  const Eigen::MatrixXf q = dealt.local(Q), k = dealt.local(K), v = dealt.local(V);
  const Eigen::MatrixXf y = attn::mpi::attention(dealt, attn::heads(q, 2), attn::heads(k, 2),
                                                 attn::heads(v, 2), attn::causal());
  const Eigen::MatrixXf Y = dealt.gather(y, 0);

  if (ranks.rank() != 0) return 0;
  const Eigen::MatrixXf one = attn::attention(attn::heads(Q, 2), attn::heads(K, 2),
                                              attn::heads(V, 2), attn::causal());
  std::printf("%d ranks, %s\n", ranks.size(), Y == one ? "the same bits" : "other bits");
  return Y == one ? 0 : 1;
}
