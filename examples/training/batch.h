// examples/training/batch.h: sequences of any lengths, their tokens stacked in rows, without
// padding.
// SPDX-License-Identifier: MIT
//
//   attn::sequences(batch.offsets)       tells the attention whose tokens are whose
#pragma once

#include <vector>

#include "types.h"

namespace training {

using Sequence = std::vector<int>;  ///< token ids

struct Batch {
  std::vector<int> ids;
  std::vector<Index> offsets{0};  ///< sequence n is rows offsets[n] to offsets[n + 1]

  Batch() = default;
  explicit Batch(const std::vector<Sequence>& sequences) {
    for (const Sequence& sequence : sequences) add(sequence);
  }
  void add(const Sequence& sequence) {
    ids.insert(ids.end(), sequence.begin(), sequence.end());
    offsets.push_back(Index(ids.size()));
  }
  Index sequences() const { return Index(offsets.size()) - 1; }
  Index tokens() const { return Index(ids.size()); }
  Index begin(Index sequence) const { return offsets[std::size_t(sequence)]; }
  Index length(Index sequence) const { return begin(sequence + 1) - begin(sequence); }
};

}  // namespace training
