// attn/mpi/session.h: MPI from main's first line to its last, also where an exception leaves it.
// SPDX-License-Identifier: MIT
#pragma once

#include <exception>

#include "../base/config.h"
#include "c_api.h"  // MPI itself

#if !ATTN_EXCEPTIONS
#error "attn/mpi.h tells other ranks of a failure by exceptions: compile without -fno-exceptions"
#endif

namespace attn {
inline namespace ATTN_ABI {
namespace mpi {

/// Starts MPI, and ends it when it goes out of scope: the first line of main().
///
///   int main() {
///     attn::mpi::Session session;
///     const attn::mpi::Ranks ranks(MPI_COMM_WORLD);
///
/// Semantics  where an exception leaves its scope it ends the whole job (MPI_Abort, status 1):
///            other ranks would wait for this one for ever. MPI that runs already is left alone.
///            Only the thread that made it calls MPI (MPI_THREAD_FUNNELED): parallel(n) and
///            on(pool) work beside it
class Session {
 public:
  Session() : Session(nullptr, nullptr) {}
  Session(int* argc, char*** argv) : exceptions_(std::uncaught_exceptions()) {
    int runs = 0, level = 0;
    MPI_Initialized(&runs);
    owner_ = runs == 0;
    if (owner_) MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &level);
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session() {
    if (std::uncaught_exceptions() > exceptions_) MPI_Abort(MPI_COMM_WORLD, 1);
    if (owner_) MPI_Finalize();
  }

 private:
  int exceptions_;
  bool owner_ = false;
};

}  // namespace mpi
}  // namespace ATTN_ABI
}  // namespace attn
