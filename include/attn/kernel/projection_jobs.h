// attn/kernel/projection_jobs.h: the rows of inputs and the columns of their weights, cut into
// pieces that workers project one after the other.
// SPDX-License-Identifier: MIT
#pragma once

#include "drawn_pieces.h"
#include "projection.h"
#include "projection_sinks.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// One projection of an input: its weights and where the tiles go.
template <class Weights, class Sink>
struct Target {
  Weights weights;
  Sink sink;
};

/// All projections of one input, which is packed once for them.
template <class Input, class Target>
struct InputJob {
  Input input;
  Index rows;
  Target targets[3];
  int count = 1;

  InputJob(const Input& x, Index n, const Target& first)
      : input(x), rows(n), targets{first, first, first} {}
  /// Leaves its projections to a job of the same input.
  template <class Job>
  void join(Job& other) {
    for (int n = 0; n < count; ++n) other.targets[other.count++] = targets[n];
    rows = 0;
  }
};

/// One worker's part of some jobs: pieces as it draws them. `memory`: ProjectionScratch::total()
/// scalars.
template <class S, class Stored>
class Projector {
  using Scalar = typename S::Scalar;

 public:
  Projector(const ProjectionScratch<Scalar, Stored>& size, Scalar* memory)
      : size_(size),
        strips_(memory),
        tile_(strips_ + size.strips()),
        widened_(tile_ + size.tile()) {}

  /// Where tiles that do not go straight to their place are kept.
  Scalar* tile() const { return tile_; }

  template <class... Jobs>
  void operator()(std::atomic<Index>& drawn, const Jobs&... jobs) const {
    draw_pieces(
        drawn, [&](const auto& job) { return size_.pieces(job.rows); },
        [&](Index number, const auto& job) {
          const Index first = number / size_.column_parts * size_.piece_rows;
          project(job, first, std::min(size_.piece_rows, job.rows - first),
                  number % size_.column_parts);
        },
        jobs...);
  }

 private:
  /// One part of the columns, those of all targets side by side, for some rows.
  template <class Job>
  void project(const Job& job, Index first, Index rows, Index part) const {
    Index panels = 0;
    for (int n = 0; n < job.count; ++n) panels += job.targets[n].weights.panel_count();
    const Index begin = part * panels / size_.column_parts;
    const Index end = (part + 1) * panels / size_.column_parts;
    if (begin == end) return;
    const auto& shape = job.targets[0].weights;
    pack_strips<S>([&](Index i) { return job.input.row(first + i); }, job.input.feature_stride(),
                   rows, shape.inputs, shape.depth(), strips_);
    Index before = 0;  // panels of the targets before
    for (int n = 0; n < job.count; ++n) {
      const auto& target = job.targets[n];
      const Index count = target.weights.panel_count();
      const Index from = std::max<Index>(begin - before, 0), to = std::min(end - before, count);
      if (from < to) {
        project_piece<S>(strips_, first, rows, target.weights.part(from, to), widened_,
                         target.sink);
      }
      before += count;
    }
  }

  ProjectionScratch<Scalar, Stored> size_;
  Scalar *strips_, *tile_, *widened_;
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
