// attn/call/layer.h: one call of a layer: everything checked, projected, attended, projected back.
// Plumbing of multi_head_attention.h.
// SPDX-License-Identifier: MIT
#pragma once

#include "../kernel/projection_jobs.h"
#include "append.h"
#include "attend.h"
#include "layer_operands.h"
#include "layer_panels.h"
#include "layer_state.h"
#include "matrix_source.h"
#include "projected_rows.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

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
        in_(layer, query, key, value, asked),
        asked_(asked),
        executor_(executor_of(layer.function, asked)),
        out_shape_(shape_of_output()),
        residual_(residual_of<Scalar>(out_shape_, "the query input", in_.query.view, asked)),
        output_memory_(into().check(out_shape_)),
        size_(checked_size()) {}
  LayerCall(const LayerCall&) = delete;

  void run() {
    check_outputs(in_.shape);
    take_scratch();
    auto output = into().prepare(out_shape_, output_memory_);
    auto saved = prepare_state();
    // Once nothing can be refused any more: a state is overwritten.
    const auto project = [&] {
      saved.commit();
      project_inputs();
    };
    const KeyValueViews<const Scalar, const Scalar> source{projected_key(), projected_value()};
    if constexpr (kSaves) {
      SaveState<Scalar> save(asked_.template get<LayerStateOption>().store->attention);
      asked_.all([&](auto&... options) {
        attend_to(in_.shape, source, detail::Asked(options..., save), project);
      });
    } else {
      attend_to(in_.shape, source, asked_, project);
    }
    project_back(output);
  }

  template <class Stored>
  void run(KeyValueCache<Stored>& cache) {
    static_assert(
        !kSaves,
        "attn::save_state: gradients need the keys and values of a call as matrices, which "
        "a KeyValueCache is not: call mha(X, save_state(state))");
    const GivenCache<Stored> given(cache);
    check_cache(cache, given.store);
    check_overlap(given.store);
    size_.staged = kStaged;
    take_scratch();
    auto output = into().prepare(out_shape_, output_memory_);
    project_inputs();

    append_to<Stored>(given.store, projected_key(), projected_value(), in_.batch_of_projected(),
                      asked_);
    AppendedTokens appended(cache, in_.shape.queries, chosen_list(asked_));
    auto source = given.open(layer_.function, asked_);
    const CallShape shape = source.shape(layer_.function, {projected_query().view.extent(), true},
                                         in_.batch_of_projected(), asked_);
    check_outputs(shape);
    attend_to(shape, source, asked_, NothingFirst{});
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
  static constexpr bool kSaves = Asked::template has<LayerStateOption>();

  const Into& into() const { return asked_.template get<IntoOption>(); }

  // What the call is.

  CallShape shape_of_output() const {
    check_amounts(in_.shape, executor_.workers(), Asked::template has<SplitKeysOption>());
    return in_.output_shape(layer_.sizes);
  }
  LayerScratch<Scalar, Storage> checked_size() const {
    check_rows(layer_.function, layer_.sizes, in_.query_rows(), in_.key_rows(),
               executor_.workers());
    return {layer_.sizes, in_.query_rows(), in_.key_rows(), executor_.workers()};
  }

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
    Scalar* const memory = workspace_of(layer_.own != nullptr ? layer_.own : &brought_, asked_)
                               .reserve_rows(size_.total());
    projected_ = ProjectedRows<Scalar>::in(memory, size_);
    Scalar* const behind = memory + ProjectedRows<Scalar>::scalars(size_);
    mixed_ = size_.in_place ? projected_.query : behind;
    staged_ = behind + size_.mixed();
    shares_ = staged_ + size_.output();
  }
  /// With a state, inputs are projected into it; the attended rows stay in scratch.
  auto prepare_state() {
    if constexpr (kSaves) {
      const auto& option = asked_.template get<LayerStateOption>();
      static_assert(std::is_same_v<typename bare_t<decltype(option)>::Scalar, Scalar>,
                    "attn::save_state: the state has another scalar than the layer computes in: "
                    "MultiHeadState<float> for float, half and bfloat16");
      PreparedProjectedRows<Scalar> rows(*option.store, size_);
      projected_ = rows.to;
      return rows;
    } else {
      return KeepsMemory{};
    }
  }
  kernel::Projector<S, Storage> projector(int worker) const {
    return {size_.worker, shares_ + worker * size_.worker.total()};
  }
  GivenRows<const Scalar> projected_query() const {
    return rows_of_heads<const Scalar>(projected_.query, in_.query_rows(), layer_.sizes.heads(),
                                       layer_.sizes.key_dim(), size_.query_stride);
  }
  GivenRows<const Scalar> projected_key() const {
    return rows_of_heads<const Scalar>(projected_.key, in_.key_rows(), layer_.sizes.kv_heads(),
                                       layer_.sizes.key_dim(), size_.key_stride);
  }
  GivenRows<const Scalar> projected_value() const {
    return rows_of_heads<const Scalar>(projected_.value, in_.key_rows(), layer_.sizes.kv_heads(),
                                       layer_.sizes.value_dim(), size_.value_stride);
  }
  // What is computed.

  /// One input that serves several projections is packed once for them.
  void project_inputs() const {
    using Sink = kernel::RowsSink<Scalar>;
    using Target = kernel::Target<typename Layer::Panels, Sink>;
    const Target to_query{layer_.query, Sink{projected_.query, size_.query_stride}},
        to_key{layer_.key, Sink{projected_.key, size_.key_stride}},
        to_value{layer_.value, Sink{projected_.value, size_.value_stride}};
    kernel::InputJob of_query(rows_of(in_.query.view), in_.query_rows(), to_query);
    kernel::InputJob of_key(rows_of(in_.key.view), in_.key_rows(), to_key);
    kernel::InputJob of_value(rows_of(in_.value.view), in_.key_rows(), to_value);
    if (is_same_view(in_.value.view, in_.key.view)) of_value.join(of_key);
    if (is_same_view(in_.key.view, in_.query.view)) of_key.join(of_query);
    std::atomic<Index> drawn{0};
    const Index pieces = size_.worker.pieces(of_query.rows) + size_.worker.pieces(of_key.rows) +
                         size_.worker.pieces(of_value.rows);
    executor_.run(kernel::with_pieces(size_.project, pieces),
                  [&](int worker) { projector(worker)(drawn, of_query, of_key, of_value); });
  }

  /// first(): what is done once nothing can be refused any more.
  template <class Source, class Given, class First>
  void attend_to(const CallShape& shape, const Source& source, const Given& asked,
                 const First& first) const {
    using Rows = LiftedRows<Scalar>;
    const auto mixed = rows_of_heads<Scalar>(mixed_, in_.query_rows(), layer_.sizes.heads(),
                                             layer_.sizes.value_dim(), size_.mixed_stride);
    attend<DynamicSizes>(layer_.own, shape, place(projected_query().view, true, shape.queries),
                         source, asked, detail::Into<Rows>(Rows{mixed.view}), Absent{}, first);
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
        .write(staged_, size_.staged_stride, 0, in_.query_rows(), 0,
               layer_.sizes.output_features());
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
    const kernel::Rows<const Scalar> from(mixed_, in_.query_rows(), size_.mixed_stride);
    std::atomic<Index> drawn{0};
    executor_.run(kernel::with_pieces(size_.project_back, size_.worker.pieces(in_.query_rows())),
                  [&](int worker) {
                    const auto project = projector(worker);
                    const Target target{layer_.output, sink_of(project.tile())};
                    project(drawn, kernel::InputJob(from, in_.query_rows(), target));
                  });
  }

  const Layer& layer_;
  LayerOperands<Query, Key, Value> in_;
  const Asked& asked_;
  decltype(executor_of("", std::declval<const Asked&>())) executor_;
  CallShape out_shape_;
  Residual residual_;
  OutputMemory<typename Into::Scalar> output_memory_;
  LayerScratch<Scalar, Storage> size_;
  Workspace<Scalar> brought_;
  ProjectedRows<Scalar> projected_;
  Scalar *mixed_ = nullptr, *staged_ = nullptr, *shares_ = nullptr;
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
