// attn/framework_weights.h: a layer's weights from and to the memory of PyTorch, Keras, GPT-2 and
// BERT.
// SPDX-License-Identifier: MIT
//
//   ours, Y = X·W + b      PyTorchView, y = x·Wᵀ + b                  KerasView, einsum             JoinedView, y = x·W + b
//   query  [in, H·d_k]     in_proj_weight rows [0, E), or q_proj      query kernel  [in, H, d_k]    columns [0, E) of [in, 3E]
//   key    [in, H·d_k]     in_proj_weight rows [E, 2E), or k_proj     key kernel    [in, H, d_k]    columns [E, 2E)
//   value  [in, H·d_v]     in_proj_weight rows [2E, 3E), or v_proj    value kernel  [in, H, d_v]    columns [2E, 3E)
//   output [H·d_v, out]    out_proj.weight [out, H·d_v]               output kernel [H, d_v, out]   output kernel [H·d_v, out]
//
//   mha.edit([&](auto& w) { attn::load(w, view); });      attn::store(mha.weights(), view);
#pragma once

#include "call/output_memory.h"
#include "call/overlap.h"
#include "multi_head_weights.h"

namespace attn {
inline namespace ATTN_ABI {

/// The parameters of torch.nn.MultiheadAttention where they lie, contiguous; null: the module has
/// none. Give in_proj_weight, or the three separate ones: so the module has them where kdim or vdim
/// differ from embed_dim, and so have three torch.nn.Linear, as BERT's query, key and value (its
/// out_proj is attention.output.dense). The biases alike; where one of the three has none and the
/// others have, give zeros.
/// \tparam T  any real type; const where they are only loaded
template <class T>
struct PyTorchView {
  T* in_proj_weight = nullptr;   ///< [3E, E]: the rows of query, key and value
  T* q_proj_weight = nullptr;    ///< [E, E]
  T* k_proj_weight = nullptr;    ///< [E, kdim]
  T* v_proj_weight = nullptr;    ///< [E, vdim]
  T* in_proj_bias = nullptr;     ///< [3E]
  T* out_proj_weight = nullptr;  ///< [E, E]
  T* out_proj_bias = nullptr;    ///< [E]
  T* q_proj_bias = nullptr;      ///< [E]
  T* k_proj_bias = nullptr;      ///< [E]
  T* v_proj_bias = nullptr;      ///< [E]
};

/// The parameters of keras.layers.MultiHeadAttention (or GroupedQueryAttention) where they lie,
/// contiguous; null: it has none.
template <class T>
struct KerasView {
  T* query_kernel = nullptr;   ///< [d_model, H, d_k]
  T* key_kernel = nullptr;     ///< [key_features, H_kv, d_k]
  T* value_kernel = nullptr;   ///< [value_features, H_kv, d_v]
  T* output_kernel = nullptr;  ///< [H, d_v, output_features]
  T* query_bias = nullptr;     ///< [H, d_k]
  T* key_bias = nullptr;       ///< [H_kv, d_k]
  T* value_bias = nullptr;     ///< [H_kv, d_v]
  T* output_bias = nullptr;    ///< [output_features]
};

/// Kernels that are multiplied from the right, query, key and value side by side in one: GPT-2's
/// c_attn and c_proj, and what TensorFlow exports of layers with one product for all three.
/// Contiguous; null: the layer has none. (A joined kernel whose columns take turns by head, as
/// GPT-NeoX has it, is another.)
template <class T>
struct JoinedView {
  T* joined_kernel = nullptr;  ///< [d_model, H·d_k + H_kv·d_k + H_kv·d_v]
  T* joined_bias = nullptr;    ///< [H·d_k + H_kv·d_k + H_kv·d_v]
  T* output_kernel = nullptr;  ///< [H·d_v, output_features]
  T* output_bias = nullptr;    ///< [output_features]
};

namespace detail {

/// One projection in foreign memory: element (c, n) of W at c·row_stride + n·col_stride, and b.
template <class T>
struct ProjectionMemory {
  T* weight;
  Index row_stride, col_stride;
  T* bias;
};
template <class T>
struct LayerMemory {
  ProjectionMemory<T> query, key, value, output;
};

/// y = x·Wᵀ as it lies, row by row: W of `inputs` columns.
template <class T>
ProjectionMemory<T> transposed_memory(T* weight, Index inputs, T* bias) {
  return {weight, 1, inputs, bias};
}
/// y = x·W as it lies, row by row: columns of a kernel that is `width` wide.
template <class T>
ProjectionMemory<T> kernel_memory(T* weight, Index width, T* bias) {
  return {weight, width, 1, bias};
}

/// A weight and a bias are both there or both not, so that nothing is dropped or left behind in
/// silence.
inline void check_part(const char* function, const std::string& part, bool given, bool held) {
  if (given && !held) {
    fail(text(function, ": ", part,
              " is given, the layer has none; it has where it is made with "
              "MultiHeadOptions(...).in_bias() and .out_bias()"));
  }
  if (held && !given) fail(text(function, ": ", part, " is null, the layer has one"));
}

/// Weights in one array are of inputs of one width.
template <class Weights>
void check_one_width(const char* function, const char* part, const Weights& w,
                     const char* otherwise) {
  if (w.key.rows() == w.query.rows() && w.value.rows() == w.query.rows()) return;
  fail(text(function, ": ", part, " joins inputs of one width, query has ", w.query.rows(),
            " features, key ", w.key.rows(), ", value ", w.value.rows(), ": give ", otherwise));
}

/// PyTorch's weights or biases of query, key and value: all in one array, or each in its own.
template <class T>
struct InProjection {
  T *joined, *query, *key, *value;

  /// Refuses both, neither and a part of three; all of them where the layer has none.
  void check(const char* function, const std::string& kind, bool held) const {
    const bool separate = query != nullptr || key != nullptr || value != nullptr;
    if (held && (joined != nullptr) == separate) {
      fail(text(function, ": needs either in_proj_", kind, " or q_, k_ and v_proj_", kind, ", has ",
                separate ? "both" : "neither"));
    }
    check_part(function, "in_proj_" + kind, joined != nullptr, held && !separate);
    check_part(function, "q_proj_" + kind, query != nullptr, held && separate);
    check_part(function, "k_proj_" + kind, key != nullptr, held && separate);
    check_part(function, "v_proj_" + kind, value != nullptr, held && separate);
  }
  /// Its part of the joined array begins at `offset`.
  T* part(T* own, Index offset) const { return joined != nullptr ? joined + offset : own; }
};

/// Where each part of the weights lies, once all of the view's parts are checked.
template <class Weights, class T>
LayerMemory<T> foreign_memory(const char* function, const Weights& w, const PyTorchView<T>& v) {
  const InProjection<T> weight{v.in_proj_weight, v.q_proj_weight, v.k_proj_weight, v.v_proj_weight};
  const InProjection<T> bias{v.in_proj_bias, v.q_proj_bias, v.k_proj_bias, v.v_proj_bias};
  weight.check(function, "weight", true);
  if (weight.joined != nullptr)
    check_one_width(function, "in_proj_weight", w, "q_, k_ and v_proj_weight");
  bias.check(function, "bias", w.query_bias.size() != 0);
  check_part(function, "out_proj_weight", v.out_proj_weight != nullptr, true);
  check_part(function, "out_proj_bias", v.out_proj_bias != nullptr, w.output_bias.size() != 0);

  const Index inputs = w.query.rows(), key = w.query.cols(), value = key + w.key.cols();
  const auto in = [&](const auto& ours, Index first_row, T* own_weight, T* own_bias) {
    return transposed_memory(weight.part(own_weight, first_row * inputs), ours.rows(),
                             bias.part(own_bias, first_row));
  };
  return {in(w.query, 0, weight.query, bias.query), in(w.key, key, weight.key, bias.key),
          in(w.value, value, weight.value, bias.value),
          transposed_memory(v.out_proj_weight, w.output.rows(), v.out_proj_bias)};
}
template <class Weights, class T>
LayerMemory<T> foreign_memory(const char* function, const Weights& w, const KerasView<T>& v) {
  const auto part = [&](const std::string& name, const auto& weight, const auto& bias, T* kernel,
                        T* offsets) {
    check_part(function, name + "_kernel", kernel != nullptr, true);
    check_part(function, name + "_bias", offsets != nullptr, bias.size() != 0);
    return kernel_memory(kernel, weight.cols(), offsets);
  };
  return {part("query", w.query, w.query_bias, v.query_kernel, v.query_bias),
          part("key", w.key, w.key_bias, v.key_kernel, v.key_bias),
          part("value", w.value, w.value_bias, v.value_kernel, v.value_bias),
          part("output", w.output, w.output_bias, v.output_kernel, v.output_bias)};
}
template <class Weights, class T>
LayerMemory<T> foreign_memory(const char* function, const Weights& w, const JoinedView<T>& v) {
  check_one_width(function, "joined_kernel", w, "a KerasView, a kernel for each");
  check_part(function, "joined_kernel", v.joined_kernel != nullptr, true);
  check_part(function, "joined_bias", v.joined_bias != nullptr, w.query_bias.size() != 0);
  check_part(function, "output_kernel", v.output_kernel != nullptr, true);
  check_part(function, "output_bias", v.output_bias != nullptr, w.output_bias.size() != 0);

  const Index key = w.query.cols(), value = key + w.key.cols(), width = value + w.value.cols();
  const auto in = [&](Index first_column) {
    T* const bias = v.joined_bias != nullptr ? v.joined_bias + first_column : nullptr;
    return kernel_memory(v.joined_kernel + first_column, width, bias);
  };
  return {in(0), in(key), in(value),
          kernel_memory(v.output_kernel, w.output.cols(), v.output_bias)};
}

/// Calls pair(ours, theirs) for each part of the weights, theirs a matrix of ours' shape.
template <class Weights, class T, class Pair>
void visit_parts(Weights& w, const LayerMemory<T>& memory, const Pair& pair) {
  using Plain = Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic, Eigen::Dynamic>;
  using Stride = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
  using Theirs = Eigen::Map<std::conditional_t<std::is_const_v<T>, const Plain, Plain>, 0, Stride>;
  const auto projection = [&](auto& weight, auto& bias, const ProjectionMemory<T>& part) {
    pair(weight, Theirs(part.weight, weight.rows(), weight.cols(),
                        Stride(part.col_stride, part.row_stride)));
    if (bias.size() != 0) pair(bias, Theirs(part.bias, 1, bias.size(), Stride(1, bias.size())));
  };
  projection(w.query, w.query_bias, memory.query);
  projection(w.key, w.key_bias, memory.key);
  projection(w.value, w.value_bias, memory.value);
  projection(w.output, w.output_bias, memory.output);
}

/// Refuses weights that were moved from.
template <class Weights>
void check_held(const char* function, const Weights& w) {
  if (w.query.size() == 0)
    fail(text(function, ": the weights hold nothing (they were moved from)"));
}

/// A weight or bias as memory, read or written.
template <class Part>
auto part_memory(const Part& part) {
  return as_tensor(view_matrix(part));
}
template <class Part>
auto written_part(const Part& part) {
  const auto view = part_memory(part);
  return OutputMemory<std::remove_pointer_t<decltype(view.data)>>{view, true, nullptr};
}

template <class View>
inline constexpr bool is_framework_view_v =
    is_instance_v<PyTorchView, View> || is_instance_v<KerasView, View> ||
    is_instance_v<JoinedView, View>;

}  // namespace detail

/// Fills a layer's weights from another framework's memory.
///
/// Requires   parts there exactly where the layer has them, in memory of their own
///            (std::invalid_argument that names the part)
/// Semantics  numbers are rounded to the layer's storage; the layer copies, nothing refers to the
///            view afterwards
template <class Storage, int DModel, int Heads, class View,
          std::enable_if_t<detail::is_framework_view_v<View>, int> = 0>
void load(MultiHeadWeights<Storage, DModel, Heads>& w, const View& view) {
  constexpr const char* function = "attn::load";
  detail::check_held(function, w);
  const auto memory = detail::foreign_memory(function, w, view);
  detail::Outputs outputs(function);
  detail::visit_parts(w, memory, [&](auto& ours, const auto&) {
    outputs.add("a part of the layer", detail::written_part(ours));
  });
  detail::visit_parts(w, memory, [&](auto&, const auto& theirs) {
    outputs.keep_from("a part of the view", detail::part_memory(theirs));
  });
  detail::visit_parts(
      w, memory, [](auto& ours, const auto& theirs) { ours = theirs.template cast<Storage>(); });
}
/// Writes a layer's weights into another framework's memory.
template <class Storage, int DModel, int Heads, class View,
          std::enable_if_t<detail::is_framework_view_v<View>, int> = 0>
void store(const MultiHeadWeights<Storage, DModel, Heads>& w, const View& view) {
  constexpr const char* function = "attn::store";
  detail::check_held(function, w);
  const auto memory = detail::foreign_memory(function, w, view);
  detail::Outputs outputs(function);
  detail::visit_parts(w, memory, [&](const auto&, const auto& theirs) {
    outputs.add("a part of the view", detail::written_part(theirs));
  });
  detail::visit_parts(w, memory, [&](const auto& ours, const auto&) {
    outputs.keep_from("a part of the layer", detail::part_memory(ours));
  });
  detail::visit_parts(w, memory, [](const auto& ours, auto theirs) {
    using Number = typename detail::bare_t<decltype(theirs)>::Scalar;
    theirs = ours.template cast<Number>();
  });
}

}  // namespace ATTN_ABI
}  // namespace attn
