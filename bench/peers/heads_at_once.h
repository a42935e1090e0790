// bench/peers/heads_at_once.h: how many heads to hand to a library that takes several in one call.
// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <vector>

#include "../support/measure.h"
#include "peer.h"

namespace bench {

// WHAT  One head at a time keeps its scores in cache; those of a sequence, or all, are fewer calls.
//       fastest_attention(): the fastest of these on this machine, tried when a task is prepared.
// EDGES Sequences whose keys differ in number are not taken together.

inline std::vector<Index> heads_at_once(const AttentionTask& task) {
  const ProductShape shape(task.workload);
  std::vector<Index> choices = {1, shape.heads};
  if (task.workload.mask != Mask::kKeyLengths) choices.push_back(shape.heads * shape.sequences);
  return choices;
}

/// The fastest of what make(heads at once) makes, as run(it) runs it.
template <class Make, class Run>
auto fastest(const std::vector<Index>& choices, const Make& make, const Run& run) {
  decltype(make(choices[0])) best;
  double least = 0;
  for (const Index heads : choices) {
    auto made = make(heads);
    Units units([&] { run(*made); });
    for (int n = 0; n < 5; ++n) units.sample();
    if (best == nullptr || units.per_call().min() < least) {
      least = units.per_call().min();
      best = made;
    }
  }
  return best;
}

/// Attention is constructed of a task and a number of heads, and called as Attend is.
template <class Attention, class Stored>
Attend<Stored> fastest_attention(const AttentionTask& task, const std::vector<Index>& choices) {
  const Operands<Stored> x(task.workload, 5);
  Eigen::Array<Stored, Eigen::Dynamic, 1> y(output_size(task.workload));
  const auto best = fastest(
      choices, [&](Index heads) { return std::make_shared<Attention>(task, heads); },
      [&](Attention& made) { made(x, y.data()); });
  return [best](const Operands<Stored>& operands, Stored* to) { (*best)(operands, to); };
}

}  // namespace bench
