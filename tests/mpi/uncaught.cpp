// tests/mpi/uncaught.cpp: a program whose last rank throws outside a call while the others wait for it: the job must end.
// SPDX-License-Identifier: MIT
#include <attn/mpi.h>

#include <cstring>

int main(int argc, char** argv) {
  const bool caught_by_main = argc > 1 && std::strcmp(argv[1], "caught_by_main") == 0;
  const auto program = [] {
    attn::mpi::Session session;
    const attn::mpi::Ranks ranks(MPI_COMM_WORLD);
    if (ranks.rank() == ranks.size() - 1) throw std::runtime_error("thrown on purpose");
    MPI_Barrier(ranks.comm());
  };
  if (!caught_by_main) {
    program();
    return 0;
  }
  try {
    program();
  } catch (const std::exception&) {
  }
  return 0;
}
