// tests/support/batch_case.h: a batch, and what its calls have beside it, as data: so that every test of a scalar shares one
// instantiation of the engine.
// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <vector>

namespace support {

/// Row offsets of a batch, and its heads. One sequence of keys serves all sequences of queries.
struct BatchCase {
  using Index = Eigen::Index;

  std::vector<Index> queries, keys;
  Index heads = 1, kv_heads = 1;
  double visible = 1;  ///< the part of all pairs
  double range = 1;    ///< of queries and keys

  Index sequences() const { return Index(queries.size()) - 1; }
  Index query_length(Index b) const { return length(queries, b); }
  Index key_length(Index b) const { return length(keys, keys.size() == 2 ? 0 : b); }
  Index longest_query() const { return longest(queries); }
  Index longest_key() const { return longest(keys); }

 private:
  static Index length(const std::vector<Index>& offsets, Index b) {
    return offsets[std::size_t(b) + 1] - offsets[std::size_t(b)];
  }
  static Index longest(const std::vector<Index>& offsets) {
    Index most = 0;
    for (Index b = 0; b + 1 < Index(offsets.size()); ++b) most = std::max(most, length(offsets, b));
    return most;
  }
};

}  // namespace support
