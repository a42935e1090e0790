// bench/mpi/main.cpp: attention over ranks: strong scaling, the balance of a causal mask, and, by the rate of one rank, a model
// of many machines. Started by `bench/run mpi`.
// SPDX-License-Identifier: MIT
//
// MPI's profiling interface tells where a rank's time goes: the calls that the library makes are defined here, count their time,
// and call MPI's own by their second names, PMPI_….
#include <attn/attn.h>
#include <attn/mpi.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <vector>

using attn::Index;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

namespace {

double seconds_of(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

/// Seconds of this rank inside MPI: of the clock, of them in calls that wait for others, and of its processor.
struct Spent {
  double wall = 0, waiting = 0, cpu = 0;
} in_mpi;

enum class Call { moves, waits };

template <class F>
int counted(Call call, const F& f) {
  const double wall = seconds_of(CLOCK_MONOTONIC), cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
  const int result = f();
  const double took = seconds_of(CLOCK_MONOTONIC) - wall;
  in_mpi.wall += took;
  in_mpi.cpu += seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu;
  if (call == Call::waits) in_mpi.waiting += took;
  return result;
}

}  // namespace

int MPI_Isend(const void* from, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm,
              MPI_Request* request) {
  return counted(Call::moves,
                 [&] { return PMPI_Isend(from, count, type, to, tag, comm, request); });
}
int MPI_Irecv(void* to, int count, MPI_Datatype type, int from, int tag, MPI_Comm comm,
              MPI_Request* request) {
  return counted(Call::moves,
                 [&] { return PMPI_Irecv(to, count, type, from, tag, comm, request); });
}
int MPI_Waitall(int count, MPI_Request* requests, MPI_Status* statuses) {
  return counted(Call::waits, [&] { return PMPI_Waitall(count, requests, statuses); });
}
int MPI_Allreduce(const void* from, void* to, int count, MPI_Datatype type, MPI_Op op,
                  MPI_Comm comm) {
  return counted(Call::waits, [&] { return PMPI_Allreduce(from, to, count, type, op, comm); });
}
int MPI_Allgather(const void* from, int sent, MPI_Datatype sent_type, void* to, int received,
                  MPI_Datatype received_type, MPI_Comm comm) {
  return counted(Call::waits, [&] {
    return PMPI_Allgather(from, sent, sent_type, to, received, received_type, comm);
  });
}

namespace {

constexpr Index kHeads = 8, kKeyHeads = 2, kFeatures = 64, kTokens = 4096;
constexpr int kRepetitions = 5;

/// The fastest of some calls of one rank, in milliseconds.
struct Row {
  double wall = 1e30, computing = 0, in_mpi = 0, waiting = 0;
};

template <class... Options>
Row measure(const attn::mpi::Dealt& dealt, const Options&... options) {
  std::srand(1 + unsigned(dealt.ranks().rank()));
  const Matrix q = Matrix::Random(dealt.rows(), kHeads * kFeatures);
  const Matrix k = Matrix::Random(dealt.rows(), kKeyHeads * kFeatures), v = k;
  Matrix y(dealt.rows(), kHeads * kFeatures);
  Row best;
  for (int n = 0; n <= kRepetitions; ++n) {  // the first one warms up
    PMPI_Barrier(dealt.ranks().comm());
    in_mpi = Spent();
    const double wall = seconds_of(CLOCK_MONOTONIC), cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
    attn::mpi::attention(dealt, attn::heads(q, kHeads), attn::heads(k, kKeyHeads),
                         attn::heads(v, kKeyHeads), attn::into(y), options...);
    const double took = seconds_of(CLOCK_MONOTONIC) - wall;
    const double computing = seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu - in_mpi.cpu;
    double slowest = 0;
    PMPI_Allreduce(&took, &slowest, 1, MPI_DOUBLE, MPI_MAX, dealt.ranks().comm());
    if (n > 0 && slowest * 1e3 < best.wall)
      best = {slowest * 1e3, computing * 1e3, in_mpi.wall * 1e3, in_mpi.waiting * 1e3};
  }
  return best;
}

/// A row of the table; its pairs' rate on one rank, in GF/s.
double print(const attn::mpi::Ranks& ranks, const char* name, const Row& mine, double pairs) {
  const auto over = [&](double x, MPI_Op op) {
    double all = 0;
    PMPI_Allreduce(&x, &all, 1, MPI_DOUBLE, op, ranks.comm());
    return all;
  };
  const double least = over(mine.computing, MPI_MIN), most = over(mine.computing, MPI_MAX),
               in_all = over(mine.computing, MPI_SUM);
  const double inside = over(mine.in_mpi, MPI_MAX), waiting = over(mine.waiting, MPI_MAX);
  const double rate = 4e-6 * pairs * double(kHeads * kFeatures) / in_all;
  if (ranks.rank() == 0) {
    std::printf("%-26s %5d %9.1f   %7.1f to %-7.1f %8.2f %9.2f %9.0f\n", name, ranks.size(),
                mine.wall, least, most, inside, waiting, rate);
  }
  return rate;
}

void measure_all(const attn::mpi::Ranks& ranks) {
  const double square = double(kTokens) * double(kTokens);
  const auto to_and_fro = ranks.deal(kTokens);
  const auto contiguous =
      ranks.deal(kTokens, attn::mpi::block((kTokens + ranks.size() - 1) / ranks.size()));
  if (ranks.rank() == 0 && ranks.size() == 1) {
    std::printf(
        "%ld tokens, %ld heads on %ld, %ld features, float; ms, the fastest of %d; on one thread a "
        "rank\n",
        long(kTokens), long(kHeads), long(kKeyHeads), long(kFeatures), kRepetitions);
    std::printf("%-26s %5s %9s   %18s %8s %9s %9s\n", "", "ranks", "wall", "computing (CPU)",
                "in MPI", "waiting", "GF/s");
  }
  print(ranks, "full", measure(to_and_fro), square);
  const double causal =
      print(ranks, "causal, to and fro", measure(to_and_fro, attn::causal()), square / 2);
  print(ranks, "causal, in one piece each", measure(contiguous, attn::causal()), square / 2);
  print(ranks, "causal, window of 512", measure(to_and_fro, attn::causal(), attn::window(512, 0)),
        512. * double(kTokens));
  if (ranks.rank() == 0) std::printf("rate %.1f\n", causal);
}

/// MODEL: a rank is a node of 16 cores at the measured rate, with 12.5 GB/s and 5 us a message; 32 heads on 8 key/value heads of
/// 128 features, causal, float. A head's keys and values come while the one before is computed.
void print_model(double rate_of_a_core) {
  constexpr double kCores = 16, kBytesASecond = 12.5e9, kMessage = 5e-6, kModelHeads = 32,
                   kGathered = 8, kWide = 128;
  std::printf(
      "A model, not a measurement: nodes of %.0f cores at the %.0f GF/s measured here, %.1f GB/s, "
      "%.0f us a message;\n"
      "%.0f heads on %.0f, %.0f features, causal, float\n",
      kCores, rate_of_a_core, kBytesASecond / 1e9, kMessage * 1e6, kModelHeads, kGathered, kWide);
  std::printf("%8s %6s %12s %11s %19s %19s\n", "tokens", "ranks", "computing s", "gathering s",
              "efficiency exposed", "by head, overlapped");
  for (const double tokens : {131072., 1048576.}) {
    for (const double ranks : {64., 256., 1024.}) {
      const double computing =
          2 * tokens * tokens * kModelHeads * kWide / (ranks * kCores * rate_of_a_core * 1e9);
      const double bytes = (ranks - 1) / ranks * tokens * kGathered * 2 * kWide * 4;
      const double gathering = bytes / kBytesASecond + kMessage * (ranks - 1) * kGathered;
      const double head = computing / kGathered, its_keys = gathering / kGathered;
      const double overlapped = its_keys + (kGathered - 1) * std::max(head, its_keys) + head;
      std::printf("%7.0fK %6.0f %12.3f %11.3f %19.3f %19.3f\n", tokens / 1024, ranks, computing,
                  gathering, computing / (computing + gathering), computing / overlapped);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 2 && std::strcmp(argv[1], "model") == 0) {
    print_model(std::atof(argv[2]));
    return 0;
  }
  attn::mpi::Session session(&argc, &argv);
  measure_all(attn::mpi::Ranks(MPI_COMM_WORLD));
  return 0;
}
