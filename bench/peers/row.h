// bench/peers/row.h: what is known of a row of the table when all have been timed in turn.
// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

namespace bench {

struct Timed {
  std::string peer;
  double ms, max_error;
};

struct PeerRow {
  std::string workload, words;  ///< name; sizes, for a reader
  std::vector<Timed> timed;     ///< this library first; those that have nothing for it are missing
  double of_limit;              ///< of the peak of the cores in use, or of their read bandwidth
  std::string limit;            ///< which, "273 GF/s"
};

/// All rows on one number of threads.
struct PeerTable {
  int threads;
  std::vector<std::pair<std::string, std::string>> peers;  ///< names and versions, in order
  std::vector<PeerRow> rows;
};

inline const Timed* find(const PeerRow& row, const std::string& peer) {
  for (const Timed& timed : row.timed) {
    if (timed.peer == peer) return &timed;
  }
  return nullptr;
}
/// The fastest of the others; null where there is none.
inline const Timed* best_peer(const PeerRow& row) {
  const Timed* best = nullptr;
  for (std::size_t n = 1; n < row.timed.size(); ++n) {
    if (best == nullptr || row.timed[n].ms < best->ms) best = &row.timed[n];
  }
  return best;
}

}  // namespace bench
