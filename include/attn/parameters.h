// attn/parameters.h: the weights of a layer as an optimiser asks for them: one after the other by
// name, as one vector; and their gradients.
// SPDX-License-Identifier: MIT
//
//   attn::LinearGradients<float> g(linear.options());
//   linear.backward(X, dY, attn::dweights(g));
//   linear.edit([&](auto& w) {                                                     // a step of gradient descent
//     attn::for_each_parameter(w, g, [&](const char*, auto& p, const auto& dp) { p -= rate * dp; });
//   });
//
//   Eigen::VectorXd x, dx;                                                         // for optimisers over vectors
//   attn::flatten(linear.weights(), x);
//   attn::flatten(g, dx);
//   linear.edit([&](auto& w) { attn::unflatten(x, w); });
#pragma once

#include "call/overlap.h"
#include "linear_weights.h"
#include "multi_head_weights.h"
#include "output.h"

namespace attn {
inline namespace ATTN_ABI {

/// The gradients of a layer's weights: matrices of the weights' shapes, in the scalar that the
/// layer computes in. Made from the layer's options(), all zero at first.
template <class Storage, int DModel = Eigen::Dynamic, int Heads = Eigen::Dynamic>
using MultiHeadGradients = MultiHeadWeights<compute_t<Storage>, DModel, Heads>;
template <class Storage, int In = Eigen::Dynamic, int Out = Eigen::Dynamic>
using LinearGradients = LinearWeights<compute_t<Storage>, In, Out>;

namespace detail {

// The parts of weights in their fixed order: visit(name, part of each of the weights).
struct MultiHeadParameters {
  template <class Visit, class... Weights>
  static void each(const Visit& visit, Weights&... w) {
    visit("query.weight", w.query...);
    visit("query.bias", w.query_bias...);
    visit("key.weight", w.key...);
    visit("key.bias", w.key_bias...);
    visit("value.weight", w.value...);
    visit("value.bias", w.value_bias...);
    visit("output.weight", w.output...);
    visit("output.bias", w.output_bias...);
  }
};
struct LinearParameters {
  template <class Visit, class... Weights>
  static void each(const Visit& visit, Weights&... w) {
    visit("weight", w.kernel()...);
    visit("bias", w.bias()...);
  }
};
/// Of what parts weights are; Absent where T is none.
template <class T>
struct parameters_of {
  using type = Absent;
};
template <class Storage, int DModel, int Heads>
struct parameters_of<MultiHeadWeights<Storage, DModel, Heads>> {
  using type = MultiHeadParameters;
};
template <class Storage, int In, int Out>
struct parameters_of<LinearWeights<Storage, In, Out>> {
  using type = LinearParameters;
};
template <class T>
using parameters_t = typename parameters_of<bare_t<T>>::type;
template <class T>
inline constexpr bool is_weights_v = is_there_v<parameters_t<T>>;

template <class T>
constexpr void check_weights_type() {
  static_assert(is_weights_v<T>,
                "attn: expected the weights of a layer or their gradients, MultiHeadWeights or "
                "LinearWeights; those of a layer are read by weights() and written by "
                "edit([&](auto& w) { ... })");
}

/// Refuses parts of weights of different shapes, told apart by their place among the arguments.
template <class Part, class... Others>
void check_one_shape(const char* function, const char* name, const Part& part,
                     const Others&... others) {
  const Index rows[] = {part.rows(), others.rows()...}, cols[] = {part.cols(), others.cols()...};
  for (std::size_t n = 1; n <= sizeof...(Others); ++n) {
    if (rows[n] == rows[0] && cols[n] == cols[0]) continue;
    fail(text(function, ": ", name, " is ", shape_text(rows[0], cols[0]),
              " in the first argument, ", shape_text(rows[n], cols[n]), " in argument ",
              Index(n + 1), "; all need one shape"));
  }
}

/// for_each_parameter() with its arguments told apart.
template <class F, class Weights, class... Others>
void visit_parameters(F& f, Weights& w, Others&... others) {
  (check_weights_type<Weights>(), ..., check_weights_type<Others>());
  static_assert(
      (std::is_same_v<parameters_t<Weights>, parameters_t<Others>> && ...),
      "attn::for_each_parameter: the weights of two kinds of layers have no parameters in "
      "common");
  if constexpr ((is_weights_v<Weights> && ... &&
                 std::is_same_v<parameters_t<Weights>, parameters_t<Others>>)) {
    const auto check = [](const char* name, const auto&... parts) {
      check_one_shape("attn::for_each_parameter", name, parts...);
    };
    const auto visit = [&](const char* name, auto& part, auto&... of_others) {
      if (part.size() != 0) f(name, part, of_others...);
    };
    parameters_t<Weights>::each(check, w, others...);
    parameters_t<Weights>::each(visit, w, others...);
  }
}
/// The same where the functor is the last of the arguments.
template <class Arguments, std::size_t... Weights>
void visit_with_last(const Arguments& arguments, std::index_sequence<Weights...>) {
  visit_parameters(std::get<sizeof...(Weights)>(arguments), std::get<Weights>(arguments)...);
}

}  // namespace detail

/// Calls f(name, parameter) for each weight and bias that the layer has: for_each_parameter(w, f).
/// More weights of the layer's shapes may follow the first, gradients or what an optimiser keeps
/// for each number: for_each_parameter(w, g, f) calls f(name, parameter, gradient), and so on.
///
///   MultiHeadWeights   query.weight  query.bias  key.weight     key.bias
///                      value.weight  value.bias  output.weight  output.bias
///   LinearWeights      weight  bias
///
/// Shapes     parameters are Eigen matrices, [in, out], biases [1, out]; const where their weights
///            are
/// Requires   weights of one kind of layer and of equal shapes, of any scalars and compile-time
///            sizes (std::invalid_argument otherwise, before f is called)
/// Semantics  in the order above, without those of size 0
template <class Weights, class... OthersAndFunction>
void for_each_parameter(Weights&& w, OthersAndFunction&&... others_and_f) {
  static_assert(sizeof...(OthersAndFunction) > 0,
                "attn::for_each_parameter: a functor is missing: for_each_parameter(w, f)");
  detail::visit_with_last(std::tie(w, others_and_f...),
                          std::make_index_sequence<sizeof...(OthersAndFunction)>());
}

/// How many numbers the weights have.
template <class Weights>
Index parameter_count(const Weights& w) {
  detail::check_weights_type<Weights>();
  Index count = 0;
  if constexpr (detail::is_weights_v<Weights>)
    detail::parameters_t<Weights>::each(
        [&](const char*, const auto& part) { count += part.size(); }, w);
  return count;
}

namespace detail {

template <class Vector>
constexpr void check_vector_type() {
  static_assert(is_dense_v<Vector>, "attn::flatten, unflatten: expected a vector of Eigen");
  static_assert(!is_dense_v<Vector> || bare_t<Vector>::IsVectorAtCompileTime,
                "attn::flatten, unflatten: expected a vector, not a matrix: one row or column at "
                "compile time");
}
/// Which way a vector runs.
template <class Vector, class T>
Index stride_along(const MatrixView<T>& view) {
  return bare_t<Vector>::ColsAtCompileTime == 1 ? view.row_stride : view.col_stride;
}

/// pair(number of the weights, number of the vector), column by column of each part.
template <class Weights, class T, class Pair>
void pair_numbers(Weights& w, T* numbers, Index stride, const Pair& pair) {
  parameters_t<Weights>::each(
      [&](const char*, auto& part) {
        for (Index n = 0; n < part.cols(); ++n) {
          for (Index c = 0; c < part.rows(); ++c, numbers += stride) pair(part(c, n), *numbers);
        }
      },
      w);
}

/// A part as memory that will be written.
template <class Part>
auto written_parameter(Part& part) {
  const auto view = as_tensor(view_matrix(part));
  return OutputMemory<std::remove_pointer_t<decltype(view.data)>>{view, true, &part};
}

}  // namespace detail

/// All numbers of the weights in one vector, in the order of for_each_parameter(), each matrix
/// column by column.
///
/// Shapes     vector [parameter_count(w)], resized if it is a plain dynamic one; of any scalar
/// Requires   its size, and memory of its own               (std::invalid_argument otherwise)
/// Semantics  numbers are rounded to the vector's scalar. A column of [in, out] is a row of
///            PyTorch's [out, in]: a linear layer has the order of its parameters_to_vector. (Its
///            attention has the three input biases behind the three weights.)
template <class Weights, class Vector>
void flatten(const Weights& w, Vector&& vector) {
  static constexpr const char* function = "attn::flatten";
  detail::check_weights_type<Weights>();
  detail::check_vector_type<Vector>();
  if constexpr (detail::is_weights_v<Weights>) {
    const auto target = detail::matrix_output(std::forward<Vector>(vector));
    const Index count = parameter_count(w);
    const bool column = detail::bare_t<Vector>::ColsAtCompileTime == 1;
    const Index rows = column ? count : 1, cols = column ? 1 : count;
    target.check(function, "vector", rows, cols);
    detail::Outputs outputs(function);
    outputs.add("vector", target.memory(rows, cols));
    detail::parameters_t<Weights>::each(
        [&](const char* name, const auto& part) {
          outputs.keep_from(name, detail::as_tensor(detail::view_matrix(part)));
        },
        w);
    target.resizing(rows, cols).commit();
    const auto view = target.view();
    using Number = typename decltype(view)::Scalar;
    detail::pair_numbers(w, view.data, detail::stride_along<Vector>(view),
                         [](const auto& ours, Number& theirs) { theirs = Number(ours); });
  }
}

/// The weights from such a vector: unflatten(vector, w).
///
/// Shapes     vector [parameter_count(w)], of any scalar
/// Requires   its size, and memory of its own               (std::invalid_argument otherwise)
/// Semantics  numbers are rounded to the weights' storage
template <class Vector, class Weights>
void unflatten(const Vector& vector, Weights&& w) {
  static constexpr const char* function = "attn::unflatten";
  detail::check_weights_type<Weights>();
  detail::check_vector_type<Vector>();
  static_assert(!std::is_const_v<std::remove_reference_t<Weights>>,
                "attn::unflatten: the weights are const: those of a layer are written by "
                "edit([&](auto& w) { attn::unflatten(vector, w); })");
  if constexpr (detail::is_weights_v<Weights> &&
                !std::is_const_v<std::remove_reference_t<Weights>>) {
    const auto held = detail::hold(vector);
    const auto view = held.view();
    const Index has = view.rows * view.cols, count = parameter_count(w);
    if (has != count) {
      detail::fail(
          detail::text(function, ": the vector has ", has, " numbers, the weights ", count));
    }
    detail::Outputs outputs(function);
    const auto add = [&](const char* name, auto& part) {
      if (part.size() != 0) outputs.add(name, detail::written_parameter(part));
    };
    detail::parameters_t<Weights>::each(add, w);
    outputs.keep_from("the vector", detail::as_tensor(view));
    using Stored = typename detail::bare_t<Weights>::Scalar;
    detail::pair_numbers(w, view.data, detail::stride_along<Vector>(view),
                         [](Stored& ours, const auto& theirs) { ours = Stored(theirs); });
  }
}

namespace detail {

struct WeightsGradientOption {
  static constexpr const char* kName = "dweights";
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: dweights twice in one call");
  }
};
/// dweights(g).
template <class Weights>
struct WeightsGradient : GradientOption {
  using Kind = WeightsGradientOption;
  using Scalar = typename Weights::Scalar;
  Weights* weights;
  explicit WeightsGradient(Weights& g) : weights(&g) {}

  /// Those that are there, as outputs of the call.
  void add_to(Outputs& outputs) const {
    const auto add = [&](const char*, auto& part) {
      if (part.size() != 0) outputs.add(Kind::kName, written_parameter(part));
    };
    parameters_t<Weights>::each(add, *weights);
  }
};

/// Refuses the gradient of a weight or bias that has another shape than it. `name`: as in "query
/// weight".
template <class Part>
void check_gradient_shape(const char* function, const char* name, const Part& part, Index rows,
                          Index cols) {
  if (part.rows() == rows && part.cols() == cols) return;
  if (part.size() == 0 && rows * cols == 0) return;  // there is none
  fail(text(function, ": dweights: the gradient of the ", name, " is ",
            shape_text(part.rows(), part.cols()), ", needs ", shape_text(rows, cols),
            ": make it from the layer's options()"));
}

}  // namespace detail

/// Option of both layers' backward passes: writes ∂loss/∂weights to g, MultiHeadGradients or
/// LinearGradients, or adds them to it under accumulate().
///
/// Requires   g of the layer's shapes                       (std::invalid_argument from the call otherwise)
template <class Weights>
auto dweights(Weights&& g) {
  static_assert(detail::is_weights_v<Weights>,
                "attn::dweights: expected the gradients of a layer's weights: write "
                "attn::MultiHeadGradients<Scalar> g(layer.options()), or attn::LinearGradients");
  static_assert(std::is_lvalue_reference_v<Weights>,
                "attn::dweights: the gradients are a temporary: their values would be lost");
  static_assert(!std::is_const_v<std::remove_reference_t<Weights>>,
                "attn::dweights: the gradients are const");
  return detail::WeightsGradient<std::remove_reference_t<Weights>>(g);
}

}  // namespace ATTN_ABI
}  // namespace attn
