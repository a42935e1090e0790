// attn/linear.h: a linear layer, Y = act(X·W + b) + residual, through the projection of the
// multi-head layer.
// SPDX-License-Identifier: MIT
//
//   attn::Linear<float> up(attn::LinearOptions(512, 2048).bias()), down(attn::LinearOptions(2048, 512).bias());
//   up.edit([&](auto& w) { w.kernel() = W; w.bias() = b; });       // packed before it returns; or up.set(W, b)
//   down(up(X, attn::gelu()), attn::into(Y), attn::residual(X));   // feed-forward: Y = X + W₂·gelu(W₁·X + b₁) + b₂
//
//   gate(X, attn::silu(), attn::into(G));                          // gated (SwiGLU): silu(X·W_g) ∘ (X·W_u)
//   G.array() *= up(X).array();
//   down(G, attn::into(Y), attn::residual(X));
//
// Rows are rows: a ragged batch is its tokens' rows stacked, and costs what they cost. The weights
// are held once, as the panels that the register tile reads (kernel/projection.h).
#pragma once

#include "linear_weights.h"
#include "call/kept_weights.h"
#include "call/layer_arguments.h"
#include "call/layer_panels.h"
#include "call/linear_call.h"
#include "option_list.h"

namespace attn {
inline namespace ATTN_ABI {

/// A linear (dense, fully connected) layer, in place of torch.nn.Linear and keras.layers.Dense,
/// with an activation and a residual in the same pass. Its backward pass: linear_gradient.h.
///
/// \tparam Scalar   what the weights are stored in; it computes in it, or in float for half and
///                  bfloat16
/// \tparam In, Out  compile-time sizes: everything lies in the object, and calls whose rows are
///                  bounded by their types use no heap while their scratch is within
///                  EIGEN_STACK_ALLOCATION_LIMIT
/// Shapes     linear(X):  X [L, in_features]  →  Y [L, out_features];  any Eigen type, order and
///            stride, or a strided view of one head (lbhd(p, L, B, 1, E) is PyTorch's default)
/// Options    into(Y); an activation: relu(), gelu(), gelu_tanh(), silu(), activation(f);
///            residual(R), R like Y, added behind the activation, or residual() for X itself;
///            save_state(state), for backward(); parallel(n) or on(pool); use(workspace)
/// Requires   the layer's widths                           (std::invalid_argument that names both
///            numbers; outputs untouched)
/// Semantics  a row of Y depends on its row of X, of R, and the weights: the same bits whatever the
///            batch, the threads, the storage order, fixed or dynamic sizes. A regular value, all
///            weights zero at first; what was moved from holds nothing, and refuses calls. Where
///            memory runs out, a layer that is assigned to or edited stays as it was. Calls on one
///            object follow each other; a const object takes its scratch from use(workspace) and
///            may be shared by threads that bring one each. Y may be R, not X
/// Cost       2·L·in·out flops; sizeof(Scalar) bytes a weight, columns padded to whole panels (32
///            with AVX-512, less elsewhere); scratch of up to 96 rows of X for each worker, none
///            allocated with into(Y) from the second call of the same sizes on, or from the first
///            after reserve(). One row reads the weights once, at the speed of memory
/// Accuracy   sums over runs of 64 features, and those one after the other: X·W + b errs by at most
///            (65 + in / 64) · ε/2 of |X|·|W| + |b|. On inputs in [−1, 1] and unit-scale weights
///            float stays within 1e-6 up to 512 features, 2e-6 up to 4096, 4e-6 up to 16384
///            (tests/linear_test.cpp); the activations' own: activation.h
///            Example: examples/06_encoder
template <class Scalar, int In = Eigen::Dynamic, int Out = Eigen::Dynamic>
class Linear {
  static constexpr bool kFixed = In != Eigen::Dynamic;
  static_assert(
      kFixed == (Out != Eigen::Dynamic),
      "attn::Linear: in_features and out_features are both compile-time sizes, or neither");
  static_assert(!kFixed || (In > 0 && Out > 0), "attn::Linear: sizes are at least 1");
  static_assert(!kFixed ||
                    detail::fits_stack(std::int64_t(In) * Out * std::int64_t(sizeof(Scalar))),
                "attn::Linear: weights of compile-time size lie in the object, which these are too "
                "large for (EIGEN_STACK_ALLOCATION_LIMIT): write "
                "Linear<Scalar>(LinearOptions(in_features, out_features))");

 public:
  using Compute = compute_t<Scalar>;
  using Weights = LinearWeights<Scalar, In, Out>;

  /// A layer of these sizes, its weights zero: so is its output, until edit() or set() has filled
  /// them.
  explicit Linear(const LinearOptions& options) : options_(checked(options)) {
    const Weights zero(options);
    panels_.pack(zero.kernel(), zero.bias());
  }
  /// The layer of its compile-time sizes, without a bias.
  template <class Size = std::integral_constant<int, In>>
  Linear() : Linear(LinearOptions(In, Out)) {
    static_assert(Size::value != Eigen::Dynamic,
                  "attn::Linear: a layer without sizes: write "
                  "Linear<Scalar> linear(attn::LinearOptions(in_features, out_features))");
  }
  template <class Integer, class... Integers,
            std::enable_if_t<(std::is_integral_v<Integer> && ... && std::is_integral_v<Integers>),
                             int> = 0>
  explicit Linear(Integer, Integers...) : Linear(LinearOptions(1, 1)) {
    static_assert(detail::always_false_v<Integer>,
                  "attn::Linear: bare numbers do not say which size is which: write "
                  "Linear<Scalar> linear(attn::LinearOptions(in_features, out_features))");
  }

  Linear(const Linear&) = default;
  Linear(Linear&&) = default;
  Linear& operator=(const Linear& other) {
    Linear copied(other);  // all of it or nothing
    return *this = std::move(copied);
  }
  Linear& operator=(Linear&&) = default;

  const LinearOptions& options() const { return options_; }
  /// A copy, unpacked, and const: they are written by edit() or set().
  const Weights weights() const {
    check_holds("attn::Linear::weights");
    Weights plain(options_);
    panels_.unpack(plain.kernel(), plain.bias());
    return plain;
  }

  /// Calls change(w) with a copy of the weights, checks their shapes and packs them: where
  /// something is refused or thrown, the layer stays as it was. From the first edit behind a
  /// backward() of dweights() by the object itself on, one of dynamic sizes keeps the copy beside
  /// the panels, so that training allocates nothing.
  template <class Change>
  void edit(Change&& change) {
    static constexpr const char* function = "attn::Linear::edit";
    check_holds(function);
    plain_.edit([&] { return weights(); },
                [&](Weights& changed) {
                  change(changed);
                  const auto& W = changed.kernel();
                  const auto& b = changed.bias();
                  detail::check_linear_weight(function, options_, W.rows(), W.cols());
                  detail::check_linear_bias(function, options_, b.rows(), b.cols());
                  panels_.pack(W, b);
                });
  }
  /// The weight, or weight and bias, read where they lie: matrices, transposes, maps of another
  /// framework's memory, of any scalar. Refused where a shape is another.
  template <class Matrix, class... Bias>
  void set(const Matrix& W, const Bias&... b) {
    static_assert(
        detail::is_dense_v<Matrix> && (detail::is_dense_v<Bias> && ...) && sizeof...(b) <= 1,
        "attn::Linear::set: takes dense Eigen matrices, the weight and maybe the bias");
    static constexpr const char* function = "attn::Linear::set";
    check_holds(function);
    const auto held = detail::hold(W);
    const auto w = held.view();
    detail::check_linear_weight(function, options_, w.rows, w.cols);
    const auto pack = [&](const auto&... bias) {
      (detail::check_linear_bias(function, options_, bias.rows, bias.cols), ...);
      plain_.forget();
      panels_.pack_weight(w.rows, w.cols, [&](Index c, Index n) { return Scalar(w(c, n)); });
      (panels_.pack_bias(
           bias.rows * bias.cols,
           [&](Index n) { return Compute(Scalar(bias.rows == 1 ? bias(0, n) : bias(n, 0))); }),
       ...);
    };
    if constexpr (sizeof...(b) == 0) {
      pack();
    } else {
      const auto held_bias = detail::hold(b...);
      pack(held_bias.view());
    }
  }

  template <class X, class... Options>
  [[nodiscard]] auto operator()(X&& x, Options&&... options) {
    return call(&workspace_, std::forward<X>(x), options...);
  }
  template <class X, class... Options>
  [[nodiscard]] auto operator()(X&& x, Options&&... options) const {
    check_lent<Options...>();
    return call(nullptr, std::forward<X>(x), options...);
  }

  /// backward(X, dY[, state], options…): the gradients of a loss by what entered a call of the
  /// layer and by its weights, linear_gradient.h.
  template <class X, class OutputGradient, class... Rest>
  void backward(X&& x, OutputGradient&& dY, Rest&&... rest);
  template <class X, class OutputGradient, class... Rest>
  void backward(X&& x, OutputGradient&& dY, Rest&&... rest) const;

  /// Makes room for calls (not of backward()) of up to so many rows by up to so many workers, in
  /// the layer's own workspace or in one that will be lent.
  void reserve(Index rows, int workers = 1) { reserve(rows, workers, workspace_); }
  void reserve(Index rows, int workers, Workspace<Compute>& workspace) const {
    static constexpr const char* function = "attn::Linear::reserve";
    detail::check_size(function, "rows", rows, 0);
    detail::check_size(function, "workers", workers, 1);
    workers = detail::bounded_workers(workers);
    detail::check_product(function, "rows x out_features", rows, options_.out_features());
    detail::check_linear_scratch(function, options_, workers);
    workspace.reserve_rows(detail::LinearScratch<Scalar>::most(options_, rows, workers));
  }

 private:
  static constexpr const char* kName = "attn::Linear";

  static const LinearOptions& checked(const LinearOptions& options) {
    options.check(kName);
    if (kFixed && !(options.in_features() == In && options.out_features() == Out)) {
      detail::fail(detail::text(kName, ": its type has ", In, " input and ", Out,
                                " output features, the options ", options.in_features(), " and ",
                                options.out_features(),
                                "; other sizes want Linear<Scalar>(options)"));
    }
    return options;
  }

  void check_holds(const char* function) const {
    if (!panels_.holds_weights()) {
      detail::fail(detail::text(
          function, ": the layer holds nothing (it was moved from): assign another to it"));
    }
  }

  detail::LinearContext<Scalar> context(Workspace<Compute>* own) const {
    check_holds(kName);
    return {options_, panels_.view(), own};
  }

  template <class... Options>
  static constexpr void check_lent() {
    static_assert(detail::given_somewhere_v<detail::UseOption, Options...>,
                  "attn::Linear: a const layer has no scratch of its own: add the option "
                  "use(workspace)");
  }
  template <class X>
  static constexpr void check_input() {
    static_assert(detail::is_dense_v<X> || detail::is_tensor_view_v<X>,
                  "attn::Linear: the input is a matrix, rows x features, or a strided view of one "
                  "head");
    static_assert(
        std::is_same_v<Compute,
                       compute_t<typename detail::operand_traits<detail::bare_t<X>>::Scalar>>,
        "attn::Linear: input, weights and output must compute in one scalar: cast one of them");
  }

  template <class X, class OutputGradient>
  void backward_with(Workspace<Compute>* own, X&& x, OutputGradient&& dY) const;
  template <class X, class OutputGradient, class First, class... Options>
  void backward_with(Workspace<Compute>* own, X&& x, OutputGradient&& dY, First& first,
                     Options&... options) const;
  template <class X, class OutputGradient, class State, class... Options>
  void differentiate(Workspace<Compute>* own, X&& x, OutputGradient&& dY, const State& state,
                     Options&... options) const;

  template <class X, class... Options>
  auto call(Workspace<Compute>* own, X&& x, const Options&... options) const {
    return detail::with_opened(
        [&](const auto&... opened) { return call_opened(own, std::forward<X>(x), opened...); },
        options...);
  }
  template <class X, class... Options>
  auto call_opened(Workspace<Compute>* own, X&& x, const Options&... options) const {
    detail::check_linear_options<Options...>();
    check_input<X>();
    const auto input = detail::lift(std::forward<X>(x));
    const auto layer = context(own);
    if constexpr (detail::given_v<detail::IntoOption, Options...>) {
      run<X>(layer, input, detail::Asked(options...));
    } else {
      static_assert(!detail::is_tensor_view_v<X>,
                    "attn: a strided view has no matrix of its own shape to return: write "
                    "into(bhld(...)) or into(Y)");
      typename detail::layer_result<X, Out>::type Y;
      const auto target = into(Y);
      run<X>(layer, input, detail::Asked(options..., target));
      return Y;
    }
  }
  /// On the stack, where the compiler knows that all fits there.
  template <class X, class Held, class... Options>
  static void run(const detail::LinearContext<Scalar>& layer, const Held& held,
                  const detail::Asked<Options...>& asked) {
    const auto input = detail::given_rows(kName, "the input", held);
    using OnStack =
        detail::LinearStack<Scalar, In, Out, detail::max_rows<X>(), detail::bare_t<Options>...>;
    if constexpr (OnStack::kFits) {
      alignas(64) Compute scratch[std::size_t{OnStack::kScalars}];
      const detail::UseStack<Compute> stack(nullptr, scratch);
      asked.all([&](const auto&... options) {
        detail::run_linear(layer, input, detail::Asked(options..., stack));
      });
    } else {
      detail::run_linear(layer, input, asked);
    }
  }

  LinearOptions options_;
  detail::PackedProjection<Scalar, In, Out> panels_;
  std::conditional_t<kFixed, detail::UnkeptWeights<Weights>, detail::KeptWeights<Weights>> plain_;
  Workspace<Compute> workspace_;
};

}  // namespace ATTN_ABI
}  // namespace attn
