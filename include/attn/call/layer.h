// attn/call/layer.h: one call of a layer: everything checked, projected, attended, projected back.
// Plumbing of multi_head_attention.h.
// SPDX-License-Identifier: MIT
#pragma once

#include "../kernel/projection_jobs.h"
#include "../layout.h"
#include "append.h"
#include "layer_panels.h"
#include "layer_scratch.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// What a call brings beside its operands: the layer's name, sizes and panels, and scratch of its
/// own if it has some.
template <class Storage>
struct LayerContext {
  using Scalar = compute_t<Storage>;
  using Panels = kernel::PanelWeights<Scalar, Storage>;
  const char* function;
  const MultiHeadOptions& sizes;
  Panels query, key, value, output;
  Workspace<Scalar>* own;
};

/// An option of the layer as attention gets it: what the layer does itself is not passed on.
template <class Option>
auto& passed_on(Option& option) {
  using Bare = bare_t<Option>;
  if constexpr (is_into<Bare>::value || is_residual<Bare>::value ||
                std::is_same_v<Bare, ResidualOfQuery>) {
    static const option_base nothing{};
    return nothing;
  } else {
    return option;
  }
}

/// The rows of an operand in order, those of all its sequences.
template <class T>
kernel::Rows<T> rows_of(const TensorView<T>& view) {
  return {view.data, std::max<Index>(view.tokens, 1), view.sequence_stride, view.token_stride,
          view.feature_stride};
}
template <class T>
kernel::Rows<T> rows_of(const Operand<T>& operand) {
  return rows_of(operand.view);
}

inline void check_input(const char* function, const char* name, const TensorExtent& input,
                        Index features) {
  if (input.heads != 1) {
    fail(text(function, ": ", name, " has ", input.heads,
              " heads, needs 1: the layer projects whole rows and splits them itself"));
  }
  if (input.features != features) {
    fail(text(function, ": ", name, " has ", input.features, " features, the layer takes ",
              features));
  }
}

/// Whose keys and values a call attends to: those it projects, or those of a cache once they are
/// appended.
struct OwnKeys {
  static constexpr bool kCached = false;
};
template <class Stored>
struct KeysOfCache {
  static constexpr bool kCached = true;
  KeyValueCache<Stored>& cache;

  void check(const char* function, const MultiHeadOptions& layer) const {
    check_holds(function, GivenCache(cache).store.layout());
    if (cache.kv_heads() != layer.kv_heads() || cache.key_dim() != layer.key_dim() ||
        cache.value_dim() != layer.value_dim()) {
      fail(text(function, ": the cache has ", cache.kv_heads(), " heads of ", cache.key_dim(),
                " and ", cache.value_dim(), " features, the layer's keys and values ",
                layer.kv_heads(), " of ", layer.key_dim(), " and ", layer.value_dim()));
    }
  }
};

/// An option of decode() as append() gets it.
template <class Option>
auto& for_append(Option& option) {
  if constexpr (is_append_option<bare_t<Option>>::value) {
    return option;
  } else {
    static const option_base nothing{};
    return nothing;
  }
}

/// Takes back what was appended to a cache, unless the call comes to its end.
template <class Stored>
class AppendedTokens {
 public:
  AppendedTokens(KeyValueCache<Stored>& cache, const Tokens& tokens, const IndexList* chosen)
      : cache_(cache), tokens_(tokens), chosen_(chosen) {}
  AppendedTokens(const AppendedTokens&) = delete;
  ~AppendedTokens() {
    for (Index b = 0; !kept_ && b < tokens_.sequences; ++b) {
      const Index sequence = chosen_ != nullptr ? (*chosen_)[b] : b;
      cache_.truncate(sequence, cache_.length(sequence) - tokens_.length(b));
    }
  }
  void keep() { kept_ = true; }

 private:
  KeyValueCache<Stored>& cache_;
  const Tokens& tokens_;
  const IndexList* chosen_;
  bool kept_ = false;
};

/// The output projection of rows. sink_of(tile): where a worker's tiles go.
template <class Storage, class Executor, class Projector, class Scalar, class SinkOf>
void project_rows(const LayerContext<Storage>& layer, const LayerScratch<Scalar, Storage>& size,
                  const Executor& executor, const Projector& projector,
                  const kernel::Rows<const Scalar>& from, Index rows, const SinkOf& sink_of) {
  using Sink = decltype(sink_of(static_cast<Scalar*>(nullptr)));
  using Target = kernel::Target<typename LayerContext<Storage>::Panels, Sink>;
  std::atomic<Index> drawn{0};
  executor.run(kernel::with_pieces(size.project_back, size.worker.pieces(rows)), [&](int worker) {
    const auto project = projector(worker);
    const Target target{layer.output, sink_of(project.tile())};
    project(drawn, kernel::InputJob(from, rows, target));
  });
}

template <class Storage, class QueryHeld, class KeyHeld, class ValueHeld, class Keys,
          class... Options>
void run_layer(const LayerContext<Storage>& layer, const QueryHeld& query_held,
               const KeyHeld& key_held, const ValueHeld& value_held, const Keys& attended_keys,
               Options&... options) {
  using Scalar = compute_t<Storage>;
  using S = Simd<Scalar>;
  const char* const function = layer.function;
  const MultiHeadOptions& sizes = layer.sizes;
  const NoOption none{};

  // The shape of the call, of its attention and of its output.
  const auto query = read_only(query_held.view(function, "query"));
  const auto key = read_only(key_held.view(function, "key"));
  const auto value = read_only(value_held.view(function, "value"));
  check_input(function, "query", query.extent(), sizes.d_model());
  check_input(function, "key", key.extent(), sizes.key_features());
  check_input(function, "value", value.extent(), sizes.value_features());
  const Batch batch = batch_of(function, options...);
  const auto projected = [](const auto& input, bool stacked, Index heads, Index features) {
    return OperandShape{{input.sequences, heads, input.tokens, features}, stacked};
  };
  const OperandShape projected_query =
      projected(query, query_held.kStacked, sizes.heads(), sizes.key_dim());
  const CallShape shape =
      call_shape(function, projected_query,
                 projected(key, key_held.kStacked, sizes.kv_heads(), sizes.key_dim()),
                 projected(value, value_held.kStacked, sizes.kv_heads(), sizes.value_dim()), batch);
  const Serial serial;
  const auto& executor = pick<is_executor>(serial, options...);
  check_workers(function, executor);
  check_amounts(shape, executor.workers(), count_v<is_split_keys, Options...> == 1);
  CallShape out_shape = shape;
  out_shape.heads = out_shape.kv_heads = 1;
  out_shape.value_dim = sizes.output_features();

  // What the layer does itself: residual and output.
  const auto residual = [&] {
    if constexpr (count_v<is_residual, Options...> == 1) {
      const auto& option = pick<is_residual>(none, options...);
      static_assert(std::is_same_v<compute_t<typename bare_t<decltype(option)>::Scalar>, Scalar>,
                    "attn::residual: the residual must compute in the layer's scalar: cast it");
      return place_like_output(out_shape, "residual",
                               read_only(option.lifted.view(function, "residual")),
                               option.lifted.kStacked)
          .view;
    } else if constexpr (count_v<is_residual_of_query, Options...> == 1) {
      if (sizes.d_model() != sizes.output_features()) {
        fail(text(function, ": residual() adds the query input, ", sizes.d_model(),
                  " features, to the output, ", sizes.output_features(),
                  "; widths must agree, or name another: residual(X)"));
      }
      return query;
    } else {
      return kernel::NoRows{};
    }
  }();
  auto& into_option = pick<is_into>(none, options...);
  static_assert(std::is_same_v<compute_t<typename bare_t<decltype(into_option)>::Scalar>, Scalar>,
                "attn::MultiHeadAttention: inputs, weights and output must compute in one scalar: "
                "cast one of them");
  const auto output_memory = into_option.check(out_shape);
  constexpr bool kResidual = !std::is_same_v<bare_t<decltype(residual)>, kernel::NoRows>;
  const auto check_outputs = [&](const CallShape& attention) {
    Outputs outputs(function);
    outputs.add("output", output_memory);
    add_saved(outputs, attention, options...);
    if constexpr (kResidual) outputs.keep_from("residual", residual, 0);
  };
  if constexpr (Keys::kCached) {
    attended_keys.check(function, sizes);
    // The cache is written first of all; what the call reads behind that, and the output, lie
    // elsewhere.
    Outputs appended(function);
    appended.add("the cache", cache_memory(GivenCache(attended_keys.cache).store));
    const auto keep_apart = [&](const char* name, const auto& input) {
      appended.keep_from(name, input);
    };
    if constexpr (kResidual) keep_apart("residual", residual);
    (visit_tables(options, keep_apart), ...);
    appended.add("output", output_memory);
  } else {
    check_outputs(shape);
  }

  // Scratch.
  const Index query_rows = query.sequences * query.tokens, key_rows = key.sequences * key.tokens;
  check_rows(function, sizes, query_rows, key_rows, executor.workers());
  LayerScratch<Scalar, Storage> size(sizes, query_rows, key_rows, executor.workers());
  constexpr bool kStaged = Keys::kCached && bare_t<decltype(executor)>::kMayFail;
  size.staged = kStaged;
  Workspace<Scalar> brought;
  Scalar* const memory = [&] {
    if constexpr (count_v<is_use, Options...> == 1) {
      return pick<is_use>(none, options...).reserve_rows(size.total());
    } else {
      return (layer.own != nullptr ? *layer.own : brought).reserve_rows(size.total());
    }
  }();
  Scalar* const q = memory;
  Scalar* const k = q + size.query();
  Scalar* const v = k + size.key();
  Scalar* const mixed = size.in_place ? q : v + size.value();
  Scalar* const staged = v + size.value() + size.mixed();
  Scalar* const shares = staged + size.output();
  const auto projector = [&](int worker) {
    return kernel::Projector<S, Storage>(size.worker, shares + worker * size.worker.total());
  };
  auto output = into_option.prepare(out_shape, output_memory);

  // 1  project the inputs: one that serves several projections is packed once for them
  {
    using Sink = kernel::RowsSink<Scalar>;
    using Target = kernel::Target<typename LayerContext<Storage>::Panels, Sink>;
    const Target to_query{layer.query, Sink{q, size.query_stride}},
        to_key{layer.key, Sink{k, size.key_stride}},
        to_value{layer.value, Sink{v, size.value_stride}};
    kernel::InputJob of_query(rows_of(query), query_rows, to_query);
    kernel::InputJob of_key(rows_of(key), key_rows, to_key);
    kernel::InputJob of_value(rows_of(value), key_rows, to_value);
    if (is_same_view(value, key)) of_value.join(of_key);
    if (is_same_view(key, query)) of_key.join(of_query);
    std::atomic<Index> drawn{0};
    const Index pieces = size.worker.pieces(of_query.rows) + size.worker.pieces(of_key.rows) +
                         size.worker.pieces(of_value.rows);
    executor.run(kernel::with_pieces(size.project, pieces),
                 [&](int worker) { projector(worker)(drawn, of_query, of_key, of_value); });
  }

  // 2  attend
  const auto rows = [](Scalar* data, Index count, Index features, Index stride) {
    using Map = Eigen::Map<Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>,
                           0, Eigen::OuterStride<>>;
    return Map(data, count, features, Eigen::OuterStride<>(stride));
  };
  const Index heads = sizes.heads(), kv_heads = sizes.kv_heads();
  const auto keys = [&] {
    return attn::heads(rows(k, key_rows, kv_heads * sizes.key_dim(), size.key_stride), kv_heads);
  };
  const auto values = [&] {
    return attn::heads(rows(v, key_rows, kv_heads * sizes.value_dim(), size.value_stride),
                       kv_heads);
  };
  // f(the batch, where it follows from the inputs and no option says it)
  const auto with_batch = [&](const auto& f) {
    if constexpr (QueryHeld::kStacked) {
      f();
    } else {
      SequenceLength lengths;
      lengths.queries = std::max<Index>(query.tokens, 1);
      lengths.keys = std::max<Index>(key.tokens, 1);
      f(lengths);
    }
  };
  const auto attend_to = [&](const auto& given) {
    auto target = into(
        attn::heads(rows(mixed, query_rows, heads * sizes.value_dim(), size.mixed_stride), heads));
    with_batch([&](auto&... batched) {
      attend(function, layer.own,
             attn::heads(rows(q, query_rows, heads * sizes.key_dim(), size.query_stride), heads),
             given, passed_on(options)..., batched..., target);
    });
  };

  // 3  project back, the residual added on the way out
  const auto project_back = [&] {
    const auto beside = [&] {
      if constexpr (kResidual) {
        return rows_of(residual);
      } else {
        return residual;
      }
    }();
    using Output = decltype(rows_of(output.to));
    const auto to_output = [&](Scalar* tile) {
      return kernel::MatrixSink<Scalar, Output, bare_t<decltype(beside)>>{tile, rows_of(output.to),
                                                                          beside};
    };
    const kernel::Rows<const Scalar> from{mixed, std::max<Index>(query_rows, 1), 0,
                                          size.mixed_stride, 1};
    if constexpr (kStaged) {
      const kernel::RowsSink<Scalar> waiting{staged, size.staged_stride};
      project_rows(layer, size, executor, projector, from, query_rows,
                   [&](Scalar*) { return waiting; });
      output.commit();
      to_output(nullptr).write(staged, size.staged_stride, 0, query_rows, 0,
                               sizes.output_features());
    } else {
      output.commit();
      project_rows(layer, size, executor, projector, from, query_rows, to_output);
    }
  };

  if constexpr (Keys::kCached) {
    auto& cache = attended_keys.cache;
    with_batch([&](auto&... batched) {
      cache.append(keys(), values(), for_append(options)..., batched...);
    });
    AppendedTokens appended(cache, shape.queries, chosen_list(options...));
    const GivenCache given(cache);
    auto source = open_source(function, given, options...);
    check_outputs(source.shape(function, projected_query, batch, options...));
    attend_to(given);
    project_back();
    appended.keep();
  } else {
    attend_to(given_matrices(keys(), values()));
    project_back();
  }
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
