// tests/mpi/main.cpp: runs the tests of a program on all ranks; the first one reports, others what fails on them.
// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <attn/mpi/session.h>

#include <cstdio>

namespace {

/// In place of GoogleTest's own reports.
class Failures : public testing::EmptyTestEventListener {
 public:
  explicit Failures(int rank) : rank_(rank) {}
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (result.failed())
      std::printf("rank %d, %s:%d\n%s\n", rank_, result.file_name(), result.line_number(),
                  result.message());
  }

 private:
  int rank_;
};

}  // namespace

int main(int argc, char** argv) {
  attn::mpi::Session session(&argc, &argv);
  testing::InitGoogleTest(&argc, argv);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (rank != 0) {
    auto& listeners = testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new Failures(rank));
  }
  int failed = RUN_ALL_TESTS(), somewhere = 0;
  MPI_Allreduce(&failed, &somewhere, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  return somewhere;
}
