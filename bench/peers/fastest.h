// bench/peers/fastest.h: the fastest of the ways in which a library can be called, tried when a task
// is prepared.
// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <vector>

#include "../support/measure.h"
#include "peer.h"

namespace bench {

/// How many heads to hand at once to a library that takes several: one at a time keeps its scores
/// in cache; those of a sequence, or all, are fewer calls. Sequences whose keys differ in number are
/// not taken together.
inline std::vector<Index> heads_at_once(const AttentionTask& task) {
  const ProductShape shape(task.workload);
  std::vector<Index> choices = {1, shape.heads};
  if (task.workload.mask != Mask::kKeyLengths) choices.push_back(shape.heads * shape.sequences);
  return choices;
}

/// The fastest of what make(choice) makes, a shared_ptr, as run(it) runs it.
template <class Make, class Run>
auto fastest(const std::vector<Index>& choices, const Make& make, const Run& run) {
  decltype(make(choices[0])) best;
  double least = 0;
  for (const Index choice : choices) {
    auto made = make(choice);
    Units units([&] { run(*made); });
    for (int n = 0; n < 5; ++n) units.sample();
    if (best == nullptr || units.per_call().min() < least) {
      least = units.per_call().min();
      best = made;
    }
  }
  return best;
}

/// The same of attention, which *make(choice) is called as.
template <class Stored, class Make>
Attend<Stored> fastest_attention(const AttentionTask& task, const std::vector<Index>& choices,
                                 const Make& make) {
  const Operands<Stored> x(task.workload, 5);
  Eigen::Array<Stored, Eigen::Dynamic, 1> y(output_size(task.workload));
  const auto best = fastest(choices, make, [&](auto& made) { made(x, y.data()); });
  return [best](const Operands<Stored>& operands, Stored* to) { (*best)(operands, to); };
}

}  // namespace bench
