// examples/13_mpi/main.cpp: a causal prompt whose rows are shared by the ranks of an MPI job: mpiexec -n 4 13_mpi [tokens].
// Each rank makes its own rows; the sum over all bits of the output is that of one process, whatever the number of ranks.
// SPDX-License-Identifier: MIT
#include <attn/attn.h>
#include <attn/mpi.h>

#include <sys/resource.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

using attn::Index;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr Index kHeads = 8, kKeyHeads = 2, kFeatures = 64;

namespace {

/// Numbers in [-1, 1) that depend on their place alone: no rank needs another one's.
float number(std::uint64_t matrix, Index token, Index column) {
  std::uint64_t x = matrix << 56 ^ std::uint64_t(token) << 16 ^ std::uint64_t(column);
  for (int round = 0; round < 3; ++round) x = (x ^ x >> 29) * 0xbf58476d1ce4e5b9u;
  return float(x >> 40) * 0x1p-23f - 1.f;
}

/// A rank's rows of a matrix: block by block.
Matrix rows_of(const attn::mpi::Dealt& dealt, std::uint64_t matrix, Index columns) {
  Matrix rows(dealt.rows(), columns);
  Index row = 0;
  for (const Index block : dealt.own())
    for (Index n = 0; n < dealt.length(block); ++n, ++row)
      for (Index c = 0; c < columns; ++c) rows(row, c) = number(matrix, dealt.begin(block) + n, c);
  return rows;
}

/// A sum over the bits of all rows, each with its token: the same in whatever order they come.
std::uint64_t checksum(const attn::mpi::Dealt& dealt, const Matrix& rows) {
  std::uint64_t sum = 0;
  Index row = 0;
  for (const Index block : dealt.own()) {
    for (Index n = 0; n < dealt.length(block); ++n, ++row) {
      std::uint64_t hash = std::uint64_t(dealt.begin(block) + n);
      for (Index c = 0; c < rows.cols(); ++c) {
        std::uint32_t bits = 0;
        std::memcpy(&bits, &rows(row, c), sizeof bits);
        hash = (hash ^ bits) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 32;
      }
      sum += hash;
    }
  }
  return sum;
}

double megabytes(Index numbers) { return double(numbers) * double(sizeof(float)) / 1e6; }

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// The most memory that the process has had, in MB.
double peak_megabytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return double(usage.ru_maxrss) / 1e3;
}

/// A line of each rank, printed by the first in their order.
void report(const attn::mpi::Ranks& ranks, const attn::mpi::Dealt& dealt, double seconds) {
  double mine[3] = {double(dealt.rows()), seconds, peak_megabytes()};
  std::vector<double> all(3 * std::size_t(ranks.size()));
  MPI_Gather(mine, 3, MPI_DOUBLE, all.data(), 3, MPI_DOUBLE, 0, ranks.comm());
  if (ranks.rank() != 0) return;
  for (std::size_t r = 0; r < std::size_t(ranks.size()); ++r)
    std::printf("  rank %zu: %.0f rows, %.2f s, at most %.0f MB\n", r, all[3 * r], all[3 * r + 1],
                all[3 * r + 2]);
}

}  // namespace

int main(int argc, char** argv) {
  attn::mpi::Session session(&argc, &argv);
  const attn::mpi::Ranks ranks(MPI_COMM_WORLD);
  const Index tokens = argc > 1 ? std::atol(argv[1]) : 8192;

  const auto dealt = ranks.deal(tokens);
  const Matrix q = rows_of(dealt, 1, kHeads * kFeatures);
  const Matrix k = rows_of(dealt, 2, kKeyHeads * kFeatures);
  const Matrix v = rows_of(dealt, 3, kKeyHeads * kFeatures);

  MPI_Barrier(ranks.comm());
  const double start = seconds_now();
  const Matrix y = attn::mpi::attention(dealt, attn::heads(q, kHeads), attn::heads(k, kKeyHeads),
                                        attn::heads(v, kKeyHeads), attn::causal());
  const double seconds = seconds_now() - start;

  if (ranks.rank() == 0) {
    std::printf(
        "%ld tokens, %ld heads of %ld features on %ld key heads, causal, on %d ranks\n"
        "  queries, keys, values and output: %.0f MB in all; keys and values gathered by each "
        "rank: %.0f MB\n",
        long(tokens), long(kHeads), long(kFeatures), long(kKeyHeads), ranks.size(),
        megabytes(tokens * 2 * (kHeads + kKeyHeads) * kFeatures),
        megabytes(tokens * 4 * kFeatures));
  }
  report(ranks, dealt, seconds);

  std::uint64_t mine = checksum(dealt, y), all = 0;
  MPI_Allreduce(&mine, &all, 1, MPI_UINT64_T, MPI_SUM, ranks.comm());
  // The same on the first rank by itself: a communicator of one.
  if (ranks.rank() != 0) return 0;
  const auto alone = attn::mpi::Ranks(MPI_COMM_SELF).deal(tokens);
  const Matrix Q = rows_of(alone, 1, kHeads * kFeatures);
  const Matrix K = rows_of(alone, 2, kKeyHeads * kFeatures);
  const Matrix V = rows_of(alone, 3, kKeyHeads * kFeatures);
  const double begin = seconds_now();
  const Matrix Y = attn::attention(attn::heads(Q, kHeads), attn::heads(K, kKeyHeads),
                                   attn::heads(V, kKeyHeads), attn::causal());
  std::printf("  one process: %.2f s, at most %.0f MB\n", seconds_now() - begin, peak_megabytes());
  const std::uint64_t one = checksum(alone, Y);
  std::printf("  checksum %016llx, of one process %016llx: %s\n",
              static_cast<unsigned long long>(all), static_cast<unsigned long long>(one),
              all == one ? "the same bits" : "OTHER BITS");
  return all == one ? 0 : 1;
}
