// attn/call/layer.h: one call of a layer: everything checked, projected, attended, projected back.
// Plumbing of multi_head_attention.h.
// SPDX-License-Identifier: MIT
#pragma once

#include "../kernel/projection_jobs.h"
#include "../layout.h"
#include "append.h"
#include "attend.h"
#include "layer_panels.h"
#include "layer_scratch.h"
#include "projected_rows.h"
#include "matrix_source.h"

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

/// A call of a layer: what it is given is checked when it is made, then it runs, on keys of its own
/// or on those of a cache behind which it appends them.
template <class Storage, class Query, class Key, class Value, class Asked>
class LayerCall {
  using Scalar = compute_t<Storage>;
  using S = Simd<Scalar>;
  using Layer = LayerContext<Storage>;
  using Into = bare_t<decltype(std::declval<const Asked&>().template get<IntoOption>())>;
  using Residual = decltype(residual_of<Scalar>(std::declval<const CallShape&>(), "",
                                                std::declval<const TensorView<Query>&>(),
                                                std::declval<const Asked&>()));
  static_assert(std::is_same_v<compute_t<typename Into::Scalar>, Scalar>,
                "attn::MultiHeadAttention: inputs, weights and output must compute in one scalar: "
                "cast one of them");

 public:
  LayerCall(const Layer& layer, const GivenRows<Query>& query, const GivenRows<Key>& key,
            const GivenRows<Value>& value, const Asked& asked)
      : layer_(layer),
        query_(query),
        key_(key),
        value_(value),
        asked_(asked),
        batch_(batch_of(layer.function, asked)),
        shape_(checked_shape()),
        executor_(executor_of(layer.function, asked)),
        out_shape_(shape_of_output()),
        residual_(residual_of<Scalar>(out_shape_, "the query input", query_.view, asked)),
        output_memory_(into().check(out_shape_)),
        size_(checked_size()) {}
  LayerCall(const LayerCall&) = delete;

  void run() {
    check_outputs(shape_);
    take_scratch();
    auto output = into().prepare(out_shape_, output_memory_);
    project_inputs();
    attend_to(shape_,
              KeyValueViews<const Scalar, const Scalar>{projected_key(), projected_value()});
    project_back(output);
  }

  template <class Stored>
  void run(KeyValueCache<Stored>& cache) {
    const GivenCache<Stored> given(cache);
    check_cache(cache, given.store);
    check_overlap(given.store);
    size_.staged = kStaged;
    take_scratch();
    auto output = into().prepare(out_shape_, output_memory_);
    project_inputs();

    append_to<Stored>(given.store, projected_key(), projected_value(), batch_of_projected(),
                      asked_);
    AppendedTokens appended(cache, shape_.queries, chosen_list(asked_));
    auto source = given.open(layer_.function, asked_);
    const CallShape shape = source.shape(layer_.function, {projected_query().view.extent(), true},
                                         batch_of_projected(), asked_);
    check_outputs(shape);
    attend_to(shape, source);
    if constexpr (kStaged) {
      project_back_staged(output);
    } else {
      project_back(output);
    }
    appended.keep();
  }

 private:
  /// The output waits in scratch until the pool has done its part: it may fail, and then the cache
  /// and the output are as before.
  static constexpr bool kStaged =
      bare_t<decltype(executor_of("", std::declval<const Asked&>()))>::kMayFail;

  const Into& into() const { return asked_.template get<IntoOption>(); }

  // What the call is.

  CallShape checked_shape() const {
    const MultiHeadOptions& sizes = layer_.sizes;
    const char* const function = layer_.function;
    check_input(function, "query", query_.view.extent(), sizes.d_model());
    check_input(function, "key", key_.view.extent(), sizes.key_features());
    check_input(function, "value", value_.view.extent(), sizes.value_features());
    const auto projected = [](const auto& input, Index heads, Index features) {
      return OperandShape{{input.view.sequences, heads, input.view.tokens, features},
                          input.stacked};
    };
    return call_shape(function, projected(query_, sizes.heads(), sizes.key_dim()),
                      projected(key_, sizes.kv_heads(), sizes.key_dim()),
                      projected(value_, sizes.kv_heads(), sizes.value_dim()), batch_);
  }
  CallShape shape_of_output() const {
    check_amounts(shape_, executor_.workers(), Asked::template has<SplitKeysOption>());
    CallShape shape = shape_;
    shape.heads = shape.kv_heads = 1;
    shape.value_dim = layer_.sizes.output_features();
    return shape;
  }
  LayerScratch<Scalar, Storage> checked_size() const {
    check_rows(layer_.function, layer_.sizes, query_rows(), key_rows(), executor_.workers());
    return {layer_.sizes, query_rows(), key_rows(), executor_.workers()};
  }
  Index query_rows() const { return query_.view.sequences * query_.view.tokens; }
  Index key_rows() const { return key_.view.sequences * key_.view.tokens; }

  // What is refused.

  void check_outputs(const CallShape& attention) const {
    Outputs outputs(layer_.function);
    outputs.add("output", output_memory_);
    add_saved(outputs, attention, asked_);
    if constexpr (is_there_v<Residual>) outputs.keep_from("residual", residual_, 0);
  }
  template <class Stored>
  void check_cache(const KeyValueCache<Stored>& cache, const kernel::CacheStore& store) const {
    const MultiHeadOptions& sizes = layer_.sizes;
    check_holds(layer_.function, store.layout());
    if (cache.kv_heads() != sizes.kv_heads() || cache.key_dim() != sizes.key_dim() ||
        cache.value_dim() != sizes.value_dim()) {
      fail(text(layer_.function, ": the cache has ", cache.kv_heads(), " heads of ",
                cache.key_dim(), " and ", cache.value_dim(),
                " features, the layer's keys and values ", sizes.kv_heads(), " of ",
                sizes.key_dim(), " and ", sizes.value_dim()));
    }
  }
  /// The cache is written first of all: what the call reads behind that, and the output, lie
  /// elsewhere.
  void check_overlap(const kernel::CacheStore& store) const {
    Outputs appended(layer_.function);
    appended.add("the cache", cache_memory(store));
    const auto keep_apart = [&](const char* name, const auto& input) {
      appended.keep_from(name, input);
    };
    if constexpr (is_there_v<Residual>) keep_apart("residual", residual_);
    asked_.each([&](const auto& option) { option.visit_memory(keep_apart); });
    appended.add("output", output_memory_);
  }

  // Scratch, and what lies in it.

  void take_scratch() {
    query_scratch_ = workspace_of(layer_.own != nullptr ? layer_.own : &brought_, asked_)
                         .reserve_rows(size_.total());
    key_scratch_ = query_scratch_ + size_.query();
    value_scratch_ = key_scratch_ + size_.key();
    mixed_ = size_.in_place ? query_scratch_ : value_scratch_ + size_.value();
    staged_ = value_scratch_ + size_.value() + size_.mixed();
    shares_ = staged_ + size_.output();
  }
  kernel::Projector<S, Storage> projector(int worker) const {
    return {size_.worker, shares_ + worker * size_.worker.total()};
  }
  /// Rows of heads side by side.
  template <class T>
  static GivenRows<T> rows_in(T* data, Index rows, Index heads, Index features, Index stride) {
    return {{data, 1, heads, rows, features, 0, features, stride, 1}, true};
  }
  GivenRows<const Scalar> projected_query() const {
    return rows_in<const Scalar>(query_scratch_, query_rows(), layer_.sizes.heads(),
                                 layer_.sizes.key_dim(), size_.query_stride);
  }
  GivenRows<const Scalar> projected_key() const {
    return rows_in<const Scalar>(key_scratch_, key_rows(), layer_.sizes.kv_heads(),
                                 layer_.sizes.key_dim(), size_.key_stride);
  }
  GivenRows<const Scalar> projected_value() const {
    return rows_in<const Scalar>(value_scratch_, key_rows(), layer_.sizes.kv_heads(),
                                 layer_.sizes.value_dim(), size_.value_stride);
  }
  /// The batch of the projected rows, which are stacked whatever the inputs are.
  Batch batch_of_projected() const {
    if (query_.stacked) return batch_;
    Batch batch;
    batch.query_length = std::max<Index>(query_.view.tokens, 1);
    batch.key_length = std::max<Index>(key_.view.tokens, 1);
    return batch;
  }

  // What is computed.

  /// One input that serves several projections is packed once for them.
  void project_inputs() const {
    using Sink = kernel::RowsSink<Scalar>;
    using Target = kernel::Target<typename Layer::Panels, Sink>;
    const Target to_query{layer_.query, Sink{query_scratch_, size_.query_stride}},
        to_key{layer_.key, Sink{key_scratch_, size_.key_stride}},
        to_value{layer_.value, Sink{value_scratch_, size_.value_stride}};
    kernel::InputJob of_query(rows_of(query_.view), query_rows(), to_query);
    kernel::InputJob of_key(rows_of(key_.view), key_rows(), to_key);
    kernel::InputJob of_value(rows_of(value_.view), key_rows(), to_value);
    if (is_same_view(value_.view, key_.view)) of_value.join(of_key);
    if (is_same_view(key_.view, query_.view)) of_key.join(of_query);
    std::atomic<Index> drawn{0};
    const Index pieces = size_.worker.pieces(of_query.rows) + size_.worker.pieces(of_key.rows) +
                         size_.worker.pieces(of_value.rows);
    executor_.run(kernel::with_pieces(size_.project, pieces),
                  [&](int worker) { projector(worker)(drawn, of_query, of_key, of_value); });
  }

  template <class Source>
  void attend_to(const CallShape& shape, const Source& source) const {
    using Rows = LiftedRows<Scalar>;
    const auto mixed = rows_in<Scalar>(mixed_, query_rows(), layer_.sizes.heads(),
                                       layer_.sizes.value_dim(), size_.mixed_stride);
    attend<DynamicSizes>(layer_.own, shape, place(projected_query().view, true, shape.queries),
                         source, asked_, detail::Into<Rows>(Rows{mixed.view}), Absent{});
  }

  /// The residual is added on the way out.
  template <class Output>
  void project_back(Output& output) const {
    output.commit();
    project_rows([&](Scalar* tile) { return sink_of(output, tile); });
  }
  template <class Output>
  void project_back_staged(Output& output) const {
    const kernel::RowsSink<Scalar> waiting{staged_, size_.staged_stride};
    project_rows([&](Scalar*) { return waiting; });
    output.commit();
    sink_of(output, nullptr)
        .write(staged_, size_.staged_stride, 0, query_rows(), 0, layer_.sizes.output_features());
  }
  template <class Output>
  auto sink_of(const Output& output, Scalar* tile) const {
    const auto rows = rows_of(output.to.view);
    const auto beside = rows_of(residual_);
    return kernel::MatrixSink<Scalar, bare_t<decltype(rows)>, bare_t<decltype(beside)>>{tile, rows,
                                                                                        beside};
  }
  /// sink_of(tile): where a worker's tiles go.
  template <class SinkOf>
  void project_rows(const SinkOf& sink_of) const {
    using Sink = decltype(sink_of(static_cast<Scalar*>(nullptr)));
    using Target = kernel::Target<typename Layer::Panels, Sink>;
    const kernel::Rows<const Scalar> from{mixed_, std::max<Index>(query_rows(), 1), 0,
                                          size_.mixed_stride, 1};
    std::atomic<Index> drawn{0};
    executor_.run(kernel::with_pieces(size_.project_back, size_.worker.pieces(query_rows())),
                  [&](int worker) {
                    const auto project = projector(worker);
                    const Target target{layer_.output, sink_of(project.tile())};
                    project(drawn, kernel::InputJob(from, query_rows(), target));
                  });
  }

  const Layer& layer_;
  GivenRows<Query> query_;
  GivenRows<Key> key_;
  GivenRows<Value> value_;
  const Asked& asked_;
  Batch batch_;
  CallShape shape_;  ///< of the attention
  decltype(executor_of("", std::declval<const Asked&>())) executor_;
  CallShape out_shape_;
  Residual residual_;
  OutputMemory<typename Into::Scalar> output_memory_;
  LayerScratch<Scalar, Storage> size_;
  Workspace<Scalar> brought_;
  Scalar *query_scratch_ = nullptr, *key_scratch_ = nullptr, *value_scratch_ = nullptr,
         *mixed_ = nullptr, *staged_ = nullptr, *shares_ = nullptr;
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
