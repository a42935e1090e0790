// attn/multi_head_attention.h: stage 6, the layer: project → heads → attention → merge → project →
// residual.
// SPDX-License-Identifier: MIT
//
//   MHA(X_q, X_k, X_v) = concat(head_1 … head_H) · W_o + b_o        head_h = attention(Q_h, K_h, V_h)
//   Q = X_q · W_q + b_q    K = X_k · W_k + b_k    V = X_v · W_v + b_v                     heads side by side in columns
//
//   attn::MultiHeadAttention<float> mha(attn::MultiHeadOptions(512, 8));
//   mha.edit([&](auto& w) { w.query = …; });               // or load() from another framework, or an initialiser
//   Y = mha(X, attn::causal(), attn::residual());          // X + MHA(X)
//
// The weights are held once, as the panels that the register tile reads: edit() shows them as plain
// matrices and packs them before it returns.
#pragma once

#include "multi_head_weights.h"
#include "call/kept_weights.h"
#include "call/layer.h"
#include "call/layer_arguments.h"
#include "kv_cache.h"

namespace attn {
inline namespace ATTN_ABI {

/// Multi-head attention as a layer, in place of torch.nn.MultiheadAttention and
/// keras.layers.MultiHeadAttention.
///
/// \tparam Scalar         what the weights are stored in; it computes in it, or in float for half
///                        and bfloat16
/// \tparam DModel, Heads  compile-time sizes: everything lies in the object, and calls whose rows
///                        are bounded by their types use no heap while their scratch is within
///                        EIGEN_STACK_ALLOCATION_LIMIT
/// Shapes     mha(X), mha(Xq, Xkv), mha(Xq, Xk, Xv):  Xq [Lq, d_model]  Xk [Lk, key_features]
///            Xv [Lk, value_features]  →  [Lq, output_features]; any Eigen type and order, or
///            strided views of one head (lbhd(p, L, B, 1, E) is PyTorch's default). Xkv serves as
///            both
/// Options    those of attention(), which see the H heads of the call; residual() adds the query
///            input, residual(X) another matrix like the output; into(Y)
/// Requires   the layer's widths, and what attention() requires (std::invalid_argument that names
///            both numbers; outputs untouched)
/// Semantics  a regular value, all weights zero at first; what was moved from holds nothing, and
///            refuses calls. Where memory runs out, a layer that is assigned to or edited stays as
///            it was. Calls on one object follow each other; a const object takes its scratch from
///            use(workspace) and may be shared by threads that bring one each. Y may be any of the
///            inputs
/// Cost       sizeof(Scalar) bytes a weight, columns padded to panels (32 floats with AVX-512);
///            2·L·in·out flops a projection and attention's; scratch O(L · features); with into(Y),
///            none is allocated from the second call of the same sizes on, or from the first after
///            reserve()
/// Accuracy   on unit-scale weights, biases and inputs float within 1e-6, double within 1e-14 of
///            the exact result for widths up to 512; at most the error of the formula by hand
///            (tests/multi_head_attention_test.cpp)
/// Reference  Vaswani et al. 2017 (arXiv:1706.03762), §3.2.2; grouped queries: Ainslie et al. 2023
///            (arXiv:2305.13245).
///            Example: examples/03_multi_head.cpp
template <class Scalar, int DModel = Eigen::Dynamic, int Heads = Eigen::Dynamic>
class MultiHeadAttention {
  static constexpr bool kFixed = DModel != Eigen::Dynamic;
  static_assert(
      kFixed == (Heads != Eigen::Dynamic),
      "attn::MultiHeadAttention: d_model and heads are both compile-time sizes, or neither");
  static_assert(!kFixed || (DModel > 0 && Heads > 0 && DModel % (Heads > 0 ? Heads : 1) == 0),
                "attn::MultiHeadAttention: d_model is a multiple of the heads");
  static_assert(!kFixed || detail::fits_stack(4 * std::int64_t(DModel) * DModel *
                                              std::int64_t(sizeof(Scalar))),
                "attn::MultiHeadAttention: weights of compile-time size lie in the object, which "
                "these are too large for (EIGEN_STACK_ALLOCATION_LIMIT): write "
                "MultiHeadAttention<Scalar>(MultiHeadOptions(d_model, heads))");

 public:
  using Compute = compute_t<Scalar>;
  using Weights = MultiHeadWeights<Scalar, DModel, Heads>;

  /// A layer of these sizes, its weights zero: so is its output, until edit(), load() or an
  /// initialiser has filled them.
  explicit MultiHeadAttention(const MultiHeadOptions& options) : options_(checked(options)) {
    panels_.pack(Weights(options));
  }
  /// The layer of its compile-time sizes, without biases.
  template <class Size = std::integral_constant<int, DModel>>
  MultiHeadAttention() : MultiHeadAttention(MultiHeadOptions(DModel, Heads)) {
    static_assert(Size::value != Eigen::Dynamic,
                  "attn::MultiHeadAttention: a layer without sizes: write "
                  "MultiHeadAttention<Scalar> mha(attn::MultiHeadOptions(d_model, heads))");
  }
  template <class Integer, class... Integers,
            std::enable_if_t<(std::is_integral_v<Integer> && ... && std::is_integral_v<Integers>),
                             int> = 0>
  explicit MultiHeadAttention(Integer, Integers...) : MultiHeadAttention(MultiHeadOptions(1, 1)) {
    static_assert(detail::always_false_v<Integer>,
                  "attn::MultiHeadAttention: bare numbers do not say which size is which: write "
                  "MultiHeadAttention<Scalar> mha(attn::MultiHeadOptions(d_model, heads))");
  }

  MultiHeadAttention(const MultiHeadAttention&) = default;
  MultiHeadAttention(MultiHeadAttention&&) = default;
  MultiHeadAttention& operator=(const MultiHeadAttention& other) {
    MultiHeadAttention copied(other);  // all of it or nothing
    return *this = std::move(copied);
  }
  MultiHeadAttention& operator=(MultiHeadAttention&&) = default;

  const MultiHeadOptions& options() const { return options_; }
  /// A copy, unpacked: the layer holds its weights once, as the register tile reads them. They are
  /// written by edit(): mha.edit([&](auto& w) { w.query = W; }). Const, so that an assignment to a
  /// part of the copy is refused.
  const Weights weights() const { return unpacked("attn::MultiHeadAttention::weights"); }

  /// Calls change(w) with a copy of the weights, checks their shapes and packs them: where
  /// something is refused or thrown, the layer stays as it was. From the first edit behind a
  /// backward() of dweights() by the object itself on, one of dynamic sizes keeps the copy beside
  /// the panels, so that training allocates nothing.
  template <class Change>
  void edit(Change&& change) {
    static constexpr const char* function = "attn::MultiHeadAttention::edit";
    check_holds(function);
    plain_.edit([&] { return unpacked(function); },
                [&](Weights& changed) {
                  change(changed);
                  detail::check_weights(function, changed, options_);
                  panels_.pack(changed);
                });
  }
  /// One projection's weight, or weight and bias; refused where the shape is another.
  template <class Matrix, class... Bias>
  void set_query(const Matrix& W, const Bias&... b) {
    edit([&](Weights& w) { assign("query", w.query, w.query_bias, W, b...); });
  }
  template <class Matrix, class... Bias>
  void set_key(const Matrix& W, const Bias&... b) {
    edit([&](Weights& w) { assign("key", w.key, w.key_bias, W, b...); });
  }
  template <class Matrix, class... Bias>
  void set_value(const Matrix& W, const Bias&... b) {
    edit([&](Weights& w) { assign("value", w.value, w.value_bias, W, b...); });
  }
  template <class Matrix, class... Bias>
  void set_output(const Matrix& W, const Bias&... b) {
    edit([&](Weights& w) { assign("output", w.output, w.output_bias, W, b...); });
  }

  template <class Query, class... Rest>
  [[nodiscard]] auto operator()(Query&& Xq, Rest&&... rest) {
    return call(&workspace_, std::forward<Query>(Xq), std::forward<Rest>(rest)...);
  }
  template <class Query, class... Rest>
  [[nodiscard]] auto operator()(Query&& Xq, Rest&&... rest) const {
    check_lent<Rest...>();
    return call(nullptr, std::forward<Query>(Xq), std::forward<Rest>(rest)...);
  }

  /// The next tokens of the cache's sequences: projects x, appends its keys and values to the
  /// cache, attends to all of the cache and projects back: mha(X, causal()) over the whole
  /// sequence, row by row, with its bits (of a cache that stores Compute).
  ///
  /// Shapes     x [tokens, d_model], one or many of each sequence  →  [tokens, output_features]
  /// Options    those of attention(Q, cache, …), which see the H heads; sequences(),
  ///            sequence_length(), cache_sequences() say whose tokens they are; rotary() turns keys
  ///            on their way in; residual() as for the layer
  /// Requires   a cache of the layer's kv_heads, key_dim and value_dim, room for the tokens, and
  ///            all that append() and attention() require (std::invalid_argument otherwise)
  /// Semantics  where something is refused or thrown, the cache and the output are as before (of a
  ///            ring: what the window needs is)
  /// Cost       one reading of the weights and the cache; no allocation from the second call of as
  ///            many tokens on, or from the first after reserve_decode(). With split_keys() and
  ///            several workers, scratch grows with the cache
  template <class X, class Stored, class... Options>
  [[nodiscard]] auto decode(X&& x, KeyValueCache<Stored>& cache, Options&&... options) {
    return decode_with(&workspace_, std::forward<X>(x), cache, options...);
  }
  template <class X, class Stored, class... Options>
  [[nodiscard]] auto decode(X&& x, KeyValueCache<Stored>& cache, Options&&... options) const {
    check_lent<Options...>();
    return decode_with(nullptr, std::forward<X>(x), cache, options...);
  }

  /// backward(X, dY, state, options…), (Xq, Xkv, …), (Xq, Xk, Xv, …): the gradients of a loss by
  /// what entered a call of the layer and by its weights. Include multi_head_gradient.h for it.
  template <class Query, class... Rest>
  void backward(Query&& Xq, Rest&&... rest);
  template <class Query, class... Rest>
  void backward(Query&& Xq, Rest&&... rest) const;

  /// Makes room for forward calls up to these sizes, in the layer's own workspace or one lent.
  void reserve(const LayerShape& shape) { reserve(shape, workspace_); }
  void reserve(const LayerShape& shape, Workspace<Compute>& workspace) const {
    const AttentionShape attention = detail::reserved_shape("attn::MultiHeadAttention::reserve",
                                                            options_, attention_shape(shape));
    workspace.reserve(detail::scratch_scalars<Compute>(attention));
    workspace.reserve_rows(Scratch::most(options_, attention.sequences * attention.queries,
                                         attention.sequences * attention.keys, attention.workers));
  }
  /// Makes room for decode() of what cache.shape(tokens, heads) says.
  void reserve_decode(const AttentionShape& shape) { reserve_decode(shape, workspace_); }
  void reserve_decode(const AttentionShape& asked, Workspace<Compute>& workspace) const {
    const AttentionShape shape =
        detail::reserved_shape("attn::MultiHeadAttention::reserve_decode", options_, asked);
    const Index rows = shape.sequences * shape.queries;
    constexpr bool kStaged = true;  // as on a pool
    workspace.reserve(detail::scratch_scalars<Compute>(shape));
    workspace.reserve_rows(Scratch::most(options_, rows, rows, shape.workers, kStaged));
  }

 private:
  static constexpr const char* kName = "attn::MultiHeadAttention";
  using Scratch = detail::LayerScratch<Compute, Scalar>;

  static const MultiHeadOptions& checked(const MultiHeadOptions& options) {
    options.check(kName);
    const MultiHeadOptions& o = options;
    if (kFixed && !(o.d_model() == DModel && o.heads() == Heads && o.kv_heads() == Heads &&
                    o.key_dim() * Heads == DModel && o.value_dim() * Heads == DModel &&
                    o.key_features() == DModel && o.value_features() == DModel &&
                    o.output_features() == DModel)) {
      detail::fail(detail::text(kName, ": its type has d_model ", DModel, " and ", Heads,
                                " heads, and all widths follow from them; other sizes want "
                                "MultiHeadAttention<Scalar>"));
    }
    return options;
  }
  template <class Weight, class Bias, class W, class... B>
  static void assign(const char* name, Weight& weight, Bias& bias, const W& w, const B&... b) {
    static_assert(detail::is_dense_v<W> && (detail::is_dense_v<B> && ...) && sizeof...(b) <= 1,
                  "attn::MultiHeadAttention: a projection is set from a dense Eigen matrix, its "
                  "weight, and maybe a second one, its bias");
    const auto same_shape = [&](const char* part, const auto& has, const auto& needs) {
      detail::check_part_shape(kName, std::string(name) + part, has.rows(), has.cols(),
                               needs.rows(), needs.cols());
    };
    same_shape(" weight", w, weight);
    (same_shape(" bias", b, bias), ...);
    weight = w.template cast<Scalar>();
    ((bias = b.template cast<Scalar>()), ...);
  }

  AttentionShape attention_shape(const LayerShape& s) const {
    return {s.queries,          s.keys,
            options_.key_dim(), options_.value_dim(),
            options_.heads(),   options_.kv_heads(),
            s.sequences,        s.workers,
            s.rotary_dims,      s.split_keys};
  }

  template <class... Rest>
  static constexpr void check_lent() {
    static_assert(detail::given_somewhere_v<detail::UseOption, Rest...>,
                  "attn::MultiHeadAttention: a const layer has no scratch of its own: add the "
                  "option use(workspace)");
  }

  void check_holds(const char* function) const {
    if (!panels_.query.holds_weights()) {
      detail::fail(detail::text(function,
                                ": the layer holds nothing (it was moved from): assign "
                                "another to it"));
    }
  }
  Weights unpacked(const char* function) const {
    check_holds(function);
    Weights plain(options_);
    panels_.unpack(plain);
    return plain;
  }
  detail::LayerContext<Scalar> context(const char* function, Workspace<Compute>* own) const {
    check_holds(function);
    return {function,
            options_,
            panels_.query.view(),
            panels_.key.view(),
            panels_.value.view(),
            panels_.output.view(),
            own};
  }

  /// write(asked) with the options opened and an output among them: the one given, or a matrix,
  /// which is returned.
  template <class Query, class Write, class... Options>
  static auto write_or_return(const Write& write, Options&... options) {
    const auto write_to = [&](auto&... opened) { return write_opened<Query>(write, opened...); };
    return detail::with_opened(write_to, options...);
  }
  template <class Query, class Write, class... Options>
  static auto write_opened(const Write& write, Options&... options) {
    detail::check_options_beside<detail::Order<detail::LayerStateOption>, Options...>();
    static_assert(!detail::given_v<detail::StateOption, Options...>,
                  "attn::MultiHeadAttention: an AttentionState is of attention(Q, K, V), not of a "
                  "layer: save_state() of a MultiHeadState");
    if constexpr (detail::given_v<detail::IntoOption, Options...>) {
      write(detail::Asked(options...));
    } else {
      static_assert(!detail::is_tensor_view_v<Query>,
                    "attn: a strided view has no matrix of its own shape to return: write "
                    "into(bhld(...)) or into(Y)");
      typename detail::layer_result<Query, DModel>::type Y;
      auto target = into(Y);
      write(detail::Asked(options..., target));
      return Y;
    }
  }

  template <class Query, class... Rest>
  void backward_with(Workspace<Compute>* own, Query&& Xq, Rest&&... rest) const;

  template <class X, class Stored, class... Options>
  auto decode_with(Workspace<Compute>* own, X&& x, KeyValueCache<Stored>& cache,
                   Options&... options) const {
    static_assert(std::is_same_v<Compute, kernel::cache_compute_t<Stored>>,
                  "attn::MultiHeadAttention::decode: the cache computes in another scalar than the "
                  "layer");
    static constexpr const char* function = "attn::MultiHeadAttention::decode";
    const auto held = hold_input(std::forward<X>(x));
    return write_or_return<X>(
        [&](const auto& asked) {
          const auto layer = context(function, own);
          const auto input = detail::given_rows(function, "query", held);
          detail::LayerCall(layer, input, input, input, asked).run(cache);
        },
        options...);
  }

  /// Holds the inputs: one that stands for several is held once.
  template <class Query, class... Rest>
  auto call(Workspace<Compute>* own, Query&& Xq, Rest&&... rest) const {
    constexpr int kOperands = 1 + detail::leading_operands<Rest...>();
    static_assert(kOperands <= 3,
                  "attn::MultiHeadAttention: takes X, (Xq, Xkv) or (Xq, Xk, Xv), then options; a "
                  "fourth matrix says what it is: into(Y), bias(B), residual(X)");
    static_assert((!detail::is_cache_v<Rest> && ...),
                  "attn::MultiHeadAttention: a KeyValueCache among the arguments: write "
                  "decode(x, cache)");
    const auto query = hold_input(std::forward<Query>(Xq));
    if constexpr (kOperands == 1) {
      return run<Query, Query>(own, query, query, query, rest...);
    } else if constexpr (kOperands == 2) {
      const auto split = [&](auto&& Xkv, auto&&... options) {
        const auto both = hold_input(std::forward<decltype(Xkv)>(Xkv));
        return run<Query, decltype(Xkv)>(own, query, both, both, options...);
      };
      return split(std::forward<Rest>(rest)...);
    } else {
      const auto split = [&](auto&& Xk, auto&& Xv, auto&&... options) {
        const auto key = hold_input(std::forward<decltype(Xk)>(Xk));
        const auto value = hold_input(std::forward<decltype(Xv)>(Xv));
        return run<Query, decltype(Xk)>(own, query, key, value, options...);
      };
      return split(std::forward<Rest>(rest)...);
    }
  }
  template <class T>
  static auto hold_input(T&& x) {
    static_assert(detail::is_dense_v<T> || detail::is_tensor_view_v<T>,
                  "attn::MultiHeadAttention: the inputs are matrices, tokens x features, or "
                  "strided views of one head; the layer splits them into heads itself");
    static_assert(
        std::is_same_v<Compute,
                       compute_t<typename detail::operand_traits<detail::bare_t<T>>::Scalar>>,
        "attn::MultiHeadAttention: inputs, weights and output must compute in one scalar: cast "
        "one of them");
    return detail::lift(std::forward<T>(x));
  }

  template <class GivenQuery, class GivenKey, class Query, class Key, class Value, class... Options>
  auto run(Workspace<Compute>* own, const Query& query, const Key& key, const Value& value,
           Options&... options) const {
    return write_or_return<GivenQuery>(
        [&](const auto& asked) {
          run_with<GivenQuery, GivenKey>(context(kName, own), query, key, value, asked);
        },
        options...);
  }
  /// On the stack, where the compiler knows that all fits there.
  template <class GivenQuery, class GivenKey, class Query, class Key, class Value, class... Options>
  static void run_with(const detail::LayerContext<Scalar>& layer, const Query& query,
                       const Key& key, const Value& value, const detail::Asked<Options...>& asked) {
    using OnStack = detail::LayerStack<Scalar, DModel, Heads, detail::max_rows<GivenQuery>(),
                                       detail::max_rows<GivenKey>(), Options...>;
    const auto run = [&](const auto& all) {
      detail::LayerCall{layer, detail::given_rows(layer.function, "query", query),
                        detail::given_rows(layer.function, "key", key),
                        detail::given_rows(layer.function, "value", value), all}
          .run();
    };
    if constexpr (OnStack::kFits) {
      alignas(64) Compute rows[OnStack::kRows];
      alignas(64) Compute attention[OnStack::kAttention];
      const detail::UseStack<Compute> stack(attention, rows);
      asked.all([&](auto&... options) { run(detail::Asked(options..., stack)); });
    } else {
      run(asked);
    }
  }

  MultiHeadOptions options_;
  detail::PackedLayer<Scalar, DModel> panels_;
  std::conditional_t<kFixed, detail::UnkeptWeights<Weights>, detail::KeptWeights<Weights>> plain_;
  Workspace<Compute> workspace_;
};

}  // namespace ATTN_ABI
}  // namespace attn
