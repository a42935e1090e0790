// attn/call/score_gradient_outputs.h: what score_gradient.h makes: where the gradients of biases,
// slopes, logits, scale and score functors go, checked against the options that they belong to.
// SPDX-License-Identifier: MIT
#pragma once

#include "../base/score_source.h"
#include "../kernel/modifier_gradients.h"
#include "../score/modifiers.h"
#include "gradient_outputs.h"
#include "overlap.h"
#include "saved_outputs.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

template <class Stored, class Compute>
constexpr void check_gradient_scalar() {
  static_assert(std::is_same_v<compute_t<Stored>, Compute>,
                "attn::attention_backward: a gradient is written in the scalar that the call "
                "computes in, or in half or bfloat16 of a call in float");
}

// ---- bias -------------------------------------------------------------------------------------

struct BiasGradientOption {
  static constexpr const char* kName = "dbias";
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: dbias twice in one call");
  }
};
/// dbias(M): shaped as the bias is.
template <class Target>
struct BiasGradient : GradientOption {
  using Kind = BiasGradientOption;
  using Scalar = typename Target::Scalar;
  static constexpr const char* kName = Kind::kName;
  Target target;
  explicit BiasGradient(Target t) : target(std::move(t)) {}

  /// `bias`: the option of the call.
  template <class Compute, class Bias>
  OutputMemory<Scalar> check(const CallShape& shape, const Bias& bias, bool accumulates) const {
    check_gradient_scalar<Scalar, Compute>();
    const TensorExtent needs = bias.source.by_head(shape, "bias").extent();
    if constexpr (is_matrix_output_v<Target>) {
      static_assert(!is_instance_v<ViewSource, decltype(bias.source)>,
                    "attn::dbias: the bias is a strided view, so its gradient is one as well: "
                    "write dbias(bhld(...)) with its sizes");
      const Index columns = needs.heads * needs.features;
      target.check(shape.function, kName, needs.tokens, columns);
      const auto now = target.memory(needs.tokens, columns);
      if (accumulates) check_holds_sum(shape, kName, now, needs.tokens, columns);
      return {now.stays ? by_head(now.view, needs) : now.view, now.stays, now.object};
    } else {
      const auto view = target.view(shape.function, kName);
      if (view.sequences != needs.sequences || view.heads != needs.heads ||
          view.tokens != needs.tokens || view.features != needs.features) {
        fail(text(shape.function, ": ", kName, " is ", size_text(view.extent()), ", needs ",
                  size_text(needs), " as the bias (sequences, heads, queries, keys)"));
      }
      return {view, true, target.object()};
    }
  }
  template <class Compute, class Bias>
  auto prepare(const CallShape& shape, const Bias& bias, bool accumulates) const {
    const auto now = check<Compute>(shape, bias, accumulates);
    const TensorExtent needs = bias.source.by_head(shape, "bias").extent();
    const bool stacked = bias.source.table(shape, "bias").stacked;
    const auto gradient = [&](const TensorView<Scalar>& to) {
      return kernel::BiasGradient<Scalar, Compute>(to, stacked, accumulates, shape);
    };
    if constexpr (is_matrix_output_v<Target>) {
      auto size = target.resizing(needs.tokens, needs.heads * needs.features);
      if constexpr (!std::is_same_v<decltype(size), KeepsMemory>) {
        if (!now.stays)
          return prepared(gradient(by_head(as_tensor(size.view()), needs)), std::move(size));
      }
      return prepared(gradient(now.view), std::move(size));
    } else {
      return prepared(gradient(now.view), KeepsMemory{});
    }
  }

 private:
  /// A matrix with the heads side by side.
  static TensorView<Scalar> by_head(TensorView<Scalar> matrix, const TensorExtent& needs) {
    matrix.heads = needs.heads;
    matrix.features = needs.features;
    matrix.head_stride = needs.features * matrix.feature_stride;
    return matrix;
  }
  static std::string size_text(const TensorExtent& e) {
    return text("[", e.sequences, ", ", e.heads, ", ", e.tokens, ", ", e.features, "]");
  }
};

// ---- alibi and sink ---------------------------------------------------------------------------

struct AlibiGradientOption {
  static constexpr const char* kName = "dalibi";
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: dalibi twice in one call");
  }
  template <class Alibi>
  static Index count(const Alibi& alibi) {
    return alibi.slopes.size();
  }
};
struct SinkGradientOption {
  static constexpr const char* kName = "dsink";
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: dsink twice in one call");
  }
  template <class Sink>
  static Index count(const Sink& sink) {
    return sink.logits.size();
  }
};
/// dalibi(v), dsink(v): as many numbers as the option has. `Target`: a MatrixOutput or ViewOutput
/// of a vector.
template <class Target, class Of>
struct HeadGradient : GradientOption {
  using Kind = Of;
  using Scalar = typename Target::Scalar;
  static constexpr const char* kName = Of::kName;
  Target target;
  bool is_row;
  HeadGradient(Target t, bool row) : target(std::move(t)), is_row(row) {}

  template <class Compute, class Option>
  OutputMemory<Scalar> check(const CallShape& shape, const Option& option, bool accumulates) const {
    check_gradient_scalar<Scalar, Compute>();
    const Index rows = rows_of(option), cols = cols_of(option);
    target.check(shape.function, kName, rows, cols);
    const auto now = target.memory(rows, cols);
    if (accumulates) check_holds_sum(shape, kName, now, rows, cols);
    return now;
  }
  template <class Compute, class Option>
  auto prepare(const CallShape&, const Option& option, bool accumulates) const {
    using To = kernel::RowSumGradient<Scalar, Compute>;
    const Index rows = rows_of(option), cols = cols_of(option);
    auto size = target.resizing(rows, cols);
    if constexpr (std::is_same_v<decltype(size), KeepsMemory>) {
      return prepared(To{target.view(), accumulates}, std::move(size));
    } else {
      return prepared(To{size.view(), accumulates}, std::move(size));
    }
  }

 private:
  template <class Option>
  Index rows_of(const Option& option) const {
    return is_row ? 1 : Of::count(option);
  }
  template <class Option>
  Index cols_of(const Option& option) const {
    return is_row ? Of::count(option) : 1;
  }
};

// ---- scale ------------------------------------------------------------------------------------

struct ScaleGradientOption {
  static constexpr const char* kName = "dscale";
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: dscale twice in one call");
  }
};
/// dscale(x).
template <class Scalar_>
struct ScaleGradient : GradientOption {
  using Kind = ScaleGradientOption;
  using Scalar = Scalar_;
  static constexpr const char* kName = Kind::kName;
  Scalar* to;
  explicit ScaleGradient(Scalar& x) : to(&x) {}

  template <class Compute, class Option>
  OutputMemory<Scalar> check(const CallShape&, const Option&, bool) const {
    check_gradient_scalar<Scalar, Compute>();
    return {as_tensor(view()), true, nullptr};
  }
  template <class Compute, class Option>
  auto prepare(const CallShape&, const Option&, bool accumulates) const {
    return prepared(kernel::RowSumGradient<Scalar, Compute>{view(), accumulates}, KeepsMemory{});
  }

 private:
  MatrixView<Scalar> view() const { return {to, 1, 1, 1, 1}; }
};

// ---- score ------------------------------------------------------------------------------------

struct ScoreVisitorOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: dscore twice in one call");
  }
};
/// dscore(f). An lvalue f is referred to and may change; `Held`: F& or F.
template <class Held>
struct ScoreVisitor : GradientOption {
  using Kind = ScoreVisitorOption;
  using Function = std::remove_reference_t<Held>;
  explicit ScoreVisitor(Held&& f) : held_(std::forward<Held>(f)) {}

  template <class Compute>
  auto* function() const {
    using Called = std::remove_reference_t<decltype(get())>;
    static_assert(std::is_invocable_v<Called&, Compute, At>,
                  "attn::dscore: the functor takes the gradient of a score and where it stands: "
                  "write dscore([&](float ds, attn::At at) { ... }) with the scalar that the call "
                  "computes in");
    return &get();
  }

 private:
  auto& get() const {
    if constexpr (std::is_lvalue_reference_v<Held>) {
      return held_.get();
    } else {
      return held_;
    }
  }
  std::conditional_t<std::is_lvalue_reference_v<Held>, std::reference_wrapper<Function>, Function>
      held_;
};

// ---- All of them ------------------------------------------------------------------------------

/// Their kinds.
using ScoreGradientKinds = Order<BiasGradientOption, AlibiGradientOption, SinkGradientOption,
                                 ScaleGradientOption, ScoreVisitorOption>;

/// Refuses, in words, a gradient of what the call does not have.
template <class... Options>
constexpr void check_score_gradients() {
  static_assert(!given_v<BiasGradientOption, Options...> || given_v<BiasOption, Options...>,
                "attn: dbias without a bias: add the bias(B) of the forward call");
  static_assert(!given_v<AlibiGradientOption, Options...> || given_v<AlibiOption, Options...>,
                "attn: dalibi without an alibi: add the alibi(slopes) of the forward call");
  static_assert(!given_v<SinkGradientOption, Options...> || given_v<SinkOption, Options...>,
                "attn: dsink without a sink: add the sink(logits) of the forward call");
  static_assert(!given_v<ScoreVisitorOption, Options...> || given_v<ScoreOption, Options...>,
                "attn: dscore without a score: add the score(f) of the forward call");
}

/// Adds those that go to memory to the outputs of a call, refusing what does not fit.
template <class Compute, class Asked>
void add_score_gradients(Outputs& outputs, const CallShape& shape, const Asked& asked) {
  const auto add = [&](auto kind, auto of) {
    using Kind = decltype(kind);
    if constexpr (Asked::template has<Kind>()) {
      outputs.add(Kind::kName, asked.template get<Kind>().template check<Compute>(
                                   shape, asked.template get<decltype(of)>(),
                                   Asked::template has<Accumulate::Kind>()));
    }
  };
  add(BiasGradientOption{}, BiasOption{});
  add(AlibiGradientOption{}, AlibiOption{});
  add(SinkGradientOption{}, SinkOption{});
  add(ScaleGradientOption{}, ScaleOption{});
}

/// All of them, ready to be written, their new memory taken.
template <class Bias, class Alibi, class Sink, class Scale, class Visitor>
struct PreparedScoreGradients {
  Bias bias;
  Alibi alibi;
  Sink sink;
  Scale scale;
  Visitor* visitor;

  auto targets() const {
    using To = kernel::ScoreGradients<decltype(bias.to), decltype(alibi.to), decltype(sink.to),
                                      decltype(scale.to), Visitor>;
    return To{bias.to, alibi.to, sink.to, scale.to, visitor};
  }
  void commit() { detail::commit(bias, alibi, sink, scale); }
};
template <class Kind, class Of, class Compute, class Asked>
auto prepare_score_gradient(const CallShape& shape, const Asked& asked) {
  if constexpr (Asked::template has<Kind>()) {
    return asked.template get<Kind>().template prepare<Compute>(
        shape, asked.template get<Of>(), Asked::template has<Accumulate::Kind>());
  } else {
    return NotPrepared{};
  }
}
template <class Compute, class Asked>
auto visitor_of(const Asked& asked) {
  if constexpr (Asked::template has<ScoreVisitorOption>()) {
    return asked.template get<ScoreVisitorOption>().template function<Compute>();
  } else {
    return static_cast<Absent*>(nullptr);
  }
}
template <class Bias, class Alibi, class Sink, class Scale, class Visitor>
PreparedScoreGradients<Bias, Alibi, Sink, Scale, Visitor> prepared_score_gradients(
    Bias&& bias, Alibi&& alibi, Sink&& sink, Scale&& scale, Visitor* visitor) {
  return {std::move(bias), std::move(alibi), std::move(sink), std::move(scale), visitor};
}
template <class Compute, class Asked>
auto prepare_score_gradients(const CallShape& shape, const Asked& asked) {
  return prepared_score_gradients(
      prepare_score_gradient<BiasGradientOption, BiasOption, Compute>(shape, asked),
      prepare_score_gradient<AlibiGradientOption, AlibiOption, Compute>(shape, asked),
      prepare_score_gradient<SinkGradientOption, SinkOption, Compute>(shape, asked),
      prepare_score_gradient<ScaleGradientOption, ScaleOption, Compute>(shape, asked),
      visitor_of<Compute>(asked));
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
