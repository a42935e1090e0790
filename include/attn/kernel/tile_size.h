// attn/kernel/tile_size.h: the single tuning point: every size of the engine, with its measured
// WHY.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>

#include "../base/bfloat_pairs.h"
#include "../types.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// n ≥ 0. (Unsigned, so that a power of two is one mask; the sizes of a call's scratch are some
/// thirty of these.)
constexpr Index round_up(Index n, Index multiple) {
  const auto size = std::size_t(n), step = std::size_t(multiple);
  return Index((size + step - 1) / step * step);
}

template <class Scalar>
struct TileSize {
  static constexpr int width = detail::Simd<Scalar>::width;

  /// Packets across one tile.
  /// WHY  two: with six rows, 12 accumulators + 2 packets + 1 broadcast fill 15 of 16 registers; 4
  ///      × 3 was no better. Width 1 takes four, so that a panel is a whole number of depth steps.
  static constexpr int packets = width == 1 ? 4 : 2;

  /// Rows of one tile.
  /// WHY  16 registers: 6 (0.92–0.95 of the multiply-add peak from L1 on Zen 3); 32 registers: 12
  ///      (0.91–0.95 on Cascade Lake with AVX-512; 8 × 3 and 14 × 2 within noise of it, 8 × 3 would
  ///      make panels of 48 keys). Width 1: 2 × 4 scalars fit 16 registers; custom scalars live in
  ///      memory anyway.
  static constexpr int rows = width == 1 ? 2 : detail::kVectorRegisters >= 32 ? 12 : 6;

  /// Rows of a tile of one packet, in calls that are compiled for their sizes (fixed_pass.h).
  /// WHY  as many accumulators as there are of a whole tile, and not more than ATTN_UNROLL unrolls
  static constexpr int narrow_rows = std::min(rows * packets, 16);

  /// Most rows of a chunk that attends keys and values in place (in_place.h).
  /// WHY  decoding: one row, or a few heads that share keys. More rows are worth packing for.
  static constexpr int in_place_rows = width == 1 ? 1 : 4;

  /// Keys between asking for one and attending it in place.
  /// WHY  two tiles of AVX-512. Of the bandwidth of the best of eight streams (float, d = 128; Zen
  ///      4, g++): dec4k 16 keys 0.72 to 0.77, 32 0.74 to 0.83, 64 0.76 to 0.77: alike within the
  ///      noise, as is gqa4k
  static constexpr Index in_place_ahead = 32;

  /// Keys (in Q·Kᵀ) or features (in P·V) across one tile, and so of one packed panel.
  static constexpr int panel = width * packets;
  static_assert(panel % 4 == 0, "runs of keys are whole panels and whole depth steps");

  /// Depth steps between pointer updates of the register tile; packed depths are padded to it with
  /// zeros.
  /// WHY  the offsets of 4 steps are immediates; unrolling by 8 spilled on g++ (−18 %).
  static constexpr int depth = 4;

  /// Keys of one block: packed once, then used by all rows of a chunk; the online softmax takes one
  /// step for each block.
  /// Part of the bits contract: blocks start at absolute multiples of it, so it depends on the
  /// feature counts alone.
  /// WHY  256 keys of d = 64 are 64 KiB of K and of V; 512 keys brought nothing. Wider rows halve
  ///      it until K and V fit half an L2 of 512 KiB.
  static constexpr Index max_key_block = 256;
  static constexpr Index key_block(Index key_dim, Index value_dim) {
    Index keys = max_key_block;
    while (keys > 64 && keys * (key_dim + value_dim) * Index(sizeof(Scalar)) > 256 * 1024)
      keys /= 2;
    return keys;
  }

  /// Keys of one run of a weighted sum: a chain in registers.
  /// WHY  exactness: half an ulp for each key of a run is what a sum may err by. With V = 1 and one
  ///      score above all others, which are alike and in [−1, 1], 32 stay below 7.8e-7 of 1 in
  ///      float, 64 reach 1.2e-6 and one chain a block 5e-6. Each run ends in 24 additions, loads
  ///      and stores: beside one chain a block 32 take 3 to 5 % of pre1k and long4k, 64 take 1 to
  ///      2 %, 16 take 6 to 7 % (Zen 4, AVX-512, g++ and clang)
  static constexpr Index sum_run = 32;
  /// Keys of one run of a row sum, whose terms are spread over the lanes of a panel: chains of 16
  /// at most.
  static constexpr Index lane_run = panel * 16 < max_key_block ? Index(panel * 16) : max_key_block;

  /// Keys whose blocks are summed plainly, before they are settled with compensation.
  /// WHY  sixteen blocks: compensated with every block, sums took 2.5 to 4 % of long4k (Zen 4,
  ///      AVX-512), and of what they err by sixteen additions are little beside a run. Part of the
  ///      bits contract, as blocks are: absolute multiples.
  static constexpr Index settled_keys = 16 * max_key_block;

  /// Distance between two rows of scores in the strip.
  /// WHY  a multiple of the cache line that is no multiple of 4 KiB apart for any two rows of a
  ///      tile.
  static constexpr Index score_stride = max_key_block + 16;

  /// Rows whose scores are kept until they go to a column-major matrix together: whole strips.
  /// WHY  each line of a column is then fetched and written once, not once for each of its rows.
  ///      Under grouped-query attention the rows of a head are every group-th, so that more must be
  ///      kept. save_weights on 1024 × 1024 pairs, d = 16, over the time of a row-major matrix (Zen
  ///      4, AVX-512), row by row and with 192, 384 and 768 bytes of each column: 4 heads 4.8, 1.1,
  ///      1.1, 1.1; 8 on 2 5.1, 1.40, 1.29, 1.24; averaged 10, 1.73, 1.48, 1.22. 384 bytes of 256
  ///      columns are 100 KiB.
  static constexpr int saved_rows = std::max(rows, int(384 / sizeof(Scalar)) / rows * rows);

  /// Query rows whose weights and score gradients are kept together by the backward pass, before
  /// they are multiplied into the gradients of keys and values: whole strips.
  /// Part of the bits contract: counted from the first row of a sequence, each such sum starts
  /// anew.
  /// WHY  48 take 1 to 2 % longer at d = 64, and 1 to 3 % at d = 128; 192 are within 0.7 % either
  ///      way (Zen 4, g++, AVX-512 and AVX2, with and without a causal mask)
  static constexpr Index gradient_rows = 96;
  static_assert(gradient_rows % rows == 0, "no strip lies in two of them");
  /// Query rows of a chunk of the backward pass: whole ones of these.
  /// WHY  1024 rows are one chunk, whose keys are packed once
  static constexpr Index max_gradient_chunk = 11 * gradient_rows;

  /// Query rows whose outputs are accumulated while the key blocks go by.
  /// WHY  with 1024 rows packing keys and values takes 1.8 % of pre1k, queries 1 % (Cascade Lake,
  ///      AVX2); fewer rows pack more often.
  static constexpr Index max_chunk_rows = 1024;

  /// Most rows, keys and features of a call that is compiled for its sizes (fixed_pass.h).
  static constexpr int most_fixed = 64;

  /// From so many scalars of queries in a chunk on, the rows of the next strip are asked for.
  /// WHY  fewer are 16 KiB at most, in L1 or there soon; asking for them took about 2 % of tiny
  ///      (Zen 5).
  static constexpr Index asked_queries = 4096;

  /// Rows of a piece of a projection: packed at once, kept in L2 while the panels of the weights go
  /// by.
  /// WHY  the four projections of mha512 reach 0.95–0.98 of the peak with pieces of 48 to 192 rows
  ///      and one panel at a time (Zen 5, g++ and clang, AVX-512 and AVX2); 256 or 512 rows, or
  ///      blocks of 4 to 48 panels, were up to 0.02 below. 96 rows of 512 features are 192 KiB.
  ///      Deeper rows are cut so that a piece stays within 2 MiB: every piece reads all weights
  ///      from memory, its own rows a run at a time. 512 rows of 4096 × 4096 in pieces of 24, 48,
  ///      96 and 192: 144, 130, 127, 121 ms (Emerald Rapids)
  static constexpr Index max_piece_rows = 96;
  static constexpr Index piece_rows(Index inputs) {
    Index piece = max_piece_rows;
    while (piece > 12 && piece * inputs * Index(sizeof(Scalar)) > 2048 * 1024) piece /= 2;
    return round_up(piece, TileSize::rows);
  }

  /// From more scalars of weights on, a projection asks for what it reads next.
  /// WHY  fewer than 256 KiB of floats are in L2 before long: 256 × 256, layers in turn from L3, by
  ///      one to twelve rows takes 4 to 19 % longer where it asks (Emerald Rapids)
  static constexpr Index asked_weights = 65536;

  /// Features of a projection that are summed in registers, before they are added to what the tile
  /// holds.
  /// WHY  exactness: a third of the error of one chain of 512. mha512 takes the same time with 64,
  ///      128 or all of K (Zen 5, g++ with AVX-512 and AVX2).
  static constexpr Index projection_run = 64;

  /// Most inputs and outputs of a block of a weight's gradient, whose sums lie in L2 or L3 while
  /// all tokens go by.
  /// WHY  512 tokens and inputs, 512 and 2048 outputs: 0.91 and 0.87 of the peak with 512, 0.89 and
  ///      0.85 with 256, which pack twice as much, 0.86 and 0.81 with 128 (Zen 4, AVX-512, g++)
  static constexpr Index weight_block = 512;

  /// Workers that a call is worth, of those it is offered: one for each `worker_packets` of its
  /// multiply-adds, or for as many bytes as one reads in that time.
  /// WHY  waking a worker and waiting for it takes 0.5 to 1 µs where it spins, 3 to 5 where it
  ///      sleeps, and where there are more of them than cores 10 µs each (Zen 4: OpenMP, Eigen's
  ///      pool). 2¹⁵ packets are 10 µs of a core with AVX-512, 2¹⁸ bytes the same at 25 GB/s. Two
  ///      workers break even at 2¹⁴ packets between them, eight on two cores at 2¹⁸.
  static constexpr double worker_packets = 1 << 15, worker_bytes = 1 << 18;
  static constexpr int workers(int offered, double multiply_adds, double bytes) {
    const double paid = std::max(multiply_adds / width / worker_packets, bytes / worker_bytes);
    return paid < 1 ? std::min(offered, 1) : paid < offered ? int(paid) : offered;
  }
  /// Multiply-adds in the time of the exponential and the softmax of a pair (Zen 4: 30 to 40).
  static constexpr Index softmax_cost = 32;
  /// The same of a gradient through the slope of an activation (Zen 4, gelu: 28).
  static constexpr Index slope_cost = 32;

  /// Rows of a chunk where several workers share `all` rows: eight chunks for each, so that the
  /// last to finish is late by a sixteenth of its work at most, but not so few rows that packing
  /// shows.
  static constexpr Index chunk_rows(Index all, int workers) {
    if (workers <= 1) return max_chunk_rows;
    const Index pieces = 8 * Index(workers),
                share = round_up((all + pieces - 1) / pieces, TileSize::rows);
    return share < 16 * TileSize::rows ? 16 * TileSize::rows
           : share < max_chunk_rows    ? share
                                       : max_chunk_rows;
  }
};

/// Of factors that are pairs of bfloat16, whose sums are floats: panels are as wide, and a depth
/// step is as many numbers.
template <>
struct TileSize<detail::BfloatPair> {
  using Sums = TileSize<float>;
  static constexpr int panel = Sums::panel, depth = Sums::depth / 2;
  static constexpr Index score_stride = Sums::score_stride;

  /// WHY  as of floats: where weights are exact so is all but the sum. 64 and 256 keys take 1 and 2
  ///      % less of bf1k (Zen 4, g++)
  static constexpr Index sum_run = Sums::sum_run;
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
