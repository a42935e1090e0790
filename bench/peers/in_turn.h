// bench/peers/in_turn.h: times the calls of all peers in turn, so that all see the same machine.
// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "../support/measure.h"
#include "subject.h"

namespace bench {

// WHAT  Seconds of a call of each, the least of all turns; the limit is probed behind the first
//       one's. A turn is a unit of at least a millisecond of each; each begins with another, and
//       every second one goes backwards.
// WHY   All get as many turns, whatever they take: a minimum over more of them is lower. Nobody is
//       always behind the same one, who leaves caches and the core's clock as they are.
// EDGES Workers of one library spin for some milliseconds behind its call, and would take a core
//       from the next one: with more threads than one, a turn begins with a pause in which they
//       fall asleep, and with a call that wakes its own and is not timed.
inline std::vector<double> time_in_turn(const std::vector<Contender>& contenders, int threads,
                                        Limit& limit) {
  constexpr int kTurns = 7;
  constexpr std::chrono::milliseconds kUntilAsleep(40);
  using Call = std::function<void()>;
  std::vector<std::unique_ptr<Units<Call>>> units;
  for (const Contender& contender : contenders) {
    contender.peer->take_turn();
    units.push_back(std::make_unique<Units<Call>>(contender.call));
  }
  const double end = now() + time_budget();
  for (int turn = 0; turn < kTurns || now() < end; ++turn) {
    for (std::size_t place = 0; place < units.size(); ++place) {
      const std::size_t along = turn % 2 == 0 ? place : units.size() - 1 - place,
                        n = (along + static_cast<std::size_t>(turn)) % units.size();
      contenders[n].peer->take_turn();
      if (threads > 1) {
        std::this_thread::sleep_for(kUntilAsleep);
        contenders[n].call();
      }
      const double seconds = units[n]->sample();
      if (n == 0) limit.probe(seconds, units[n]->calls());
    }
  }
  std::vector<double> least;
  for (const auto& each : units) least.push_back(each->per_call().min());
  return least;
}

}  // namespace bench
