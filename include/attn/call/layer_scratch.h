// attn/call/layer_scratch.h: the scratch of a layer's call: how much, for how many workers, and
// that it can be counted.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "../kernel/projection.h"
#include "../kernel/projection_sinks.h"
#include "../multi_head_options.h"
#include "attention_shape.h"
#include "options.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Scratch of a layer, in scalars: projected rows, heads side by side, and each worker's share.
template <class Scalar, class Storage>
struct LayerScratch {
  using Sink = kernel::RowsSink<Scalar>;
  Index query_stride, key_stride, value_stride, mixed_stride;
  Index query_rows, key_rows;
  bool in_place;        ///< the attended rows take the place of the queries, element by element
  Index staged_stride;  ///< of whole output rows, where they wait until nothing can fail
  bool staged = false;
  int project, project_back;  ///< workers of the inputs' projections, and of the output's
  kernel::ProjectionScratch<Scalar, Storage> worker;

  /// By up to `offered` workers, as many as the projections are worth.
  constexpr LayerScratch(const MultiHeadOptions& sizes, Index queries, Index keys, int offered)
      : query_stride(Sink::stride_for(sizes.heads() * sizes.key_dim())),
        key_stride(Sink::stride_for(sizes.kv_heads() * sizes.key_dim())),
        value_stride(Sink::stride_for(sizes.kv_heads() * sizes.value_dim())),
        mixed_stride(Sink::stride_for(sizes.heads() * sizes.value_dim())),
        query_rows(queries),
        key_rows(keys),
        in_place(sizes.key_dim() == sizes.value_dim()),
        staged_stride(Sink::stride_for(sizes.output_features())),
        project(workers_of(offered, queries, sizes.d_model() * sizes.heads() * sizes.key_dim(),
                           keys,
                           sizes.kv_heads() * (sizes.key_features() * sizes.key_dim() +
                                               sizes.value_features() * sizes.value_dim()))),
        project_back(workers_of(offered, queries,
                                sizes.heads() * sizes.value_dim() * sizes.output_features(), 0, 0)),
        worker(kernel::ProjectionScratch<Scalar, Storage>::of(
            std::max(queries, keys),
            std::max({sizes.d_model(), sizes.key_features(), sizes.value_features(),
                      sizes.heads() * sizes.value_dim()}),
            std::min(sizes.heads() * sizes.key_dim(), sizes.output_features()),
            std::max(project, project_back))) {}

  /// The most that calls of up to these sizes take.
  static constexpr Index most(const MultiHeadOptions& sizes, Index queries, Index keys, int offered,
                              bool staged = false) {
    const LayerScratch all(sizes, queries, keys, offered);
    Index most = 0;
    for (int n = 1; n <= std::max({all.project, all.project_back, 1}); ++n) {
      LayerScratch scratch(sizes, queries, keys, n);
      scratch.staged = staged;
      most = std::max(most, scratch.total());
    }
    return most;
  }

  constexpr Index query() const { return query_rows * query_stride; }
  constexpr Index key() const { return key_rows * key_stride; }
  constexpr Index value() const { return key_rows * value_stride; }
  constexpr Index mixed() const { return in_place ? 0 : query_rows * mixed_stride; }
  constexpr Index output() const { return staged ? query_rows * staged_stride : 0; }
  constexpr Index total() const {
    return query() + key() + value() + mixed() + output() +
           std::max(project, project_back) * worker.total();
  }

 private:
  /// Of two projections, each of so many rows by so many weights.
  static constexpr int workers_of(int offered, Index a_rows, Index a_weights, Index b_rows,
                                  Index b_weights) {
    return kernel::TileSize<Scalar>::workers(
        offered, double(a_rows) * double(a_weights) + double(b_rows) * double(b_weights),
        double(a_weights + b_weights) * double(sizeof(Storage)));
  }
};

/// Refuses projected rows whose scratch passes what can be counted.
inline void check_rows(const char* function, const MultiHeadOptions& sizes, Index queries,
                       Index keys, int workers) {
  const Index inputs = std::max({sizes.d_model(), sizes.key_features(), sizes.value_features(),
                                 sizes.heads() * sizes.value_dim()});
  check_product(
      function, "projected rows x heads x (key_dim + value_dim)", Count(queries) + keys,
      Count(2) * (Count(sizes.heads()) * (Count(sizes.key_dim()) + sizes.value_dim()) + 64));
  check_product(function, "scratch for workers x features of a projection", workers,
                Count(160) * (Count(inputs) + 64));
}

/// The shape that a layer's scratch is reserved for, refused where it cannot be.
inline AttentionShape reserved_shape(const char* function, const MultiHeadOptions& sizes,
                                     AttentionShape shape) {
  shape.workers = bounded_workers(shape.workers);
  check_shape(function, shape);
  check_rows(function, sizes, (Count(shape.sequences) * shape.queries).value(),
             (Count(shape.sequences) * shape.keys).value(), shape.workers);
  return shape;
}

/// Scratch of a call of compile-time sizes with these options, on the stack where it fits.
template <class Storage, int DModel, int Heads, int MaxQueries, int MaxKeys, class... Options>
struct LayerStack {
  using Scalar = compute_t<Storage>;
  static constexpr bool kBounded =
      DModel != Eigen::Dynamic && MaxQueries != Eigen::Dynamic && MaxKeys != Eigen::Dynamic;
  static constexpr Index kDim = kBounded ? DModel / Heads : 1;
  static constexpr Index kRows =
      kBounded
          ? LayerScratch<Scalar, Storage>(MultiHeadOptions(DModel, Heads), MaxQueries, MaxKeys, 1)
                .total()
          : 0;
  static constexpr Index kAttention =
      kBounded ? scratch_scalars<Scalar>(
                     {MaxQueries, MaxKeys, kDim, kDim, Heads, Heads, 1, 1,
                      given_v<RotaryOption, Options...> ? kDim : 0,
                      given_v<SplitKeysOption, Options...> ? 1 : 0, false,
                      given_v<WeightsOption, Options...> || given_v<ScoresOption, Options...>},
                     1)
               : 0;
  static constexpr bool kFits = kBounded && !given_v<ExecutorOption, Options...> &&
                                !given_v<UseOption, Options...> &&
                                fits_stack((kRows + kAttention) * std::int64_t(sizeof(Scalar)));
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
