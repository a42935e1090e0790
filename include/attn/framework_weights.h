// attn/framework_weights.h: a layer's weights from and to the memory of PyTorch and Keras.
// SPDX-License-Identifier: MIT
//
//   ours, Y = X·W + b      PyTorch, y = x·Wᵀ + b                      Keras, einsum
//   query  [in, H·d_k]     in_proj_weight rows [0, E), or q_proj      query kernel  [in, H, d_k]: the same numbers in a row
//   key    [in, H·d_k]     in_proj_weight rows [E, 2E), or k_proj     key kernel    [in, H, d_k]
//   value  [in, H·d_v]     in_proj_weight rows [2E, 3E), or v_proj    value kernel  [in, H, d_v]
//   output [H·d_v, out]    out_proj.weight [out, H·d_v]               output kernel [H, d_v, out]
//
//   mha.edit([&](auto& w) { attn::load(w, view); });      attn::store(mha.weights(), view);
#pragma once

#include "call/output_memory.h"
#include "call/overlap.h"
#include "multi_head_weights.h"

namespace attn {
inline namespace ATTN_ABI {

/// The parameters of torch.nn.MultiheadAttention where they lie, contiguous; null: the module has
/// none.
/// Give in_proj_weight, or the three separate ones (as the module has them where kdim or vdim
/// differ from embed_dim).
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

namespace detail {

/// Foreign memory as a matrix of ours: row-major as it lies, or transposed.
template <class T>
auto row_major(T* data, Index rows, Index cols) {
  using Plain =
      Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  return Eigen::Map<std::conditional_t<std::is_const_v<T>, const Plain, Plain>>(data, rows, cols);
}

/// A weight and a bias are both there or both not, so that nothing is dropped or left behind in
/// silence.
inline void check_part(const char* function, const char* part, bool given, bool held) {
  if (given && !held) {
    fail(text(function, ": ", part,
              " is given, the layer has none; it has where it is made with "
              "MultiHeadOptions(...).in_bias() and .out_bias()"));
  }
  if (held && !given) fail(text(function, ": ", part, " is null, the layer has one"));
}

/// Calls pair(ours, theirs) for each part of the weights, theirs a view of ours' shape.
template <class Weights, class T, class Pair>
void visit_parts(const char* function, Weights& w, const PyTorchView<T>& v, const Pair& pair) {
  const bool joined = v.in_proj_weight != nullptr;
  const bool separate =
      v.q_proj_weight != nullptr || v.k_proj_weight != nullptr || v.v_proj_weight != nullptr;
  if (joined == separate) {
    fail(text(function, ": needs either in_proj_weight or q_, k_ and v_proj_weight, ",
              joined ? "has both" : "has neither"));
  }
  if (joined && (w.key.rows() != w.query.rows() || w.value.rows() != w.query.rows())) {
    fail(text(function, ": in_proj_weight joins inputs of one width, query has ", w.query.rows(),
              " features, key ", w.key.rows(), ", value ", w.value.rows(),
              ": give q_, k_ and v_proj_weight"));
  }
  if (separate) {
    check_part(function, "q_proj_weight", v.q_proj_weight != nullptr, true);
    check_part(function, "k_proj_weight", v.k_proj_weight != nullptr, true);
    check_part(function, "v_proj_weight", v.v_proj_weight != nullptr, true);
  }
  check_part(function, "in_proj_bias", v.in_proj_bias != nullptr, w.query_bias.size() != 0);
  check_part(function, "out_proj_weight", v.out_proj_weight != nullptr, true);
  check_part(function, "out_proj_bias", v.out_proj_bias != nullptr, w.output_bias.size() != 0);

  Index row = 0;
  const auto in = [&](auto& weight, auto& bias, T* own) {
    T* const from = joined ? v.in_proj_weight + row * weight.rows() : own;
    pair(weight, row_major(from, weight.cols(), weight.rows()).transpose());
    if (bias.size() != 0) pair(bias, row_major(v.in_proj_bias + row, 1, bias.size()));
    row += weight.cols();
  };
  in(w.query, w.query_bias, v.q_proj_weight);
  in(w.key, w.key_bias, v.k_proj_weight);
  in(w.value, w.value_bias, v.v_proj_weight);
  pair(w.output, row_major(v.out_proj_weight, w.output.cols(), w.output.rows()).transpose());
  if (w.output_bias.size() != 0)
    pair(w.output_bias, row_major(v.out_proj_bias, 1, w.output_bias.size()));
}
template <class Weights, class T, class Pair>
void visit_parts(const char* function, Weights& w, const KerasView<T>& v, const Pair& pair) {
  check_part(function, "query_kernel", v.query_kernel != nullptr, true);
  check_part(function, "key_kernel", v.key_kernel != nullptr, true);
  check_part(function, "value_kernel", v.value_kernel != nullptr, true);
  check_part(function, "output_kernel", v.output_kernel != nullptr, true);
  check_part(function, "query_bias", v.query_bias != nullptr, w.query_bias.size() != 0);
  check_part(function, "key_bias", v.key_bias != nullptr, w.key_bias.size() != 0);
  check_part(function, "value_bias", v.value_bias != nullptr, w.value_bias.size() != 0);
  check_part(function, "output_bias", v.output_bias != nullptr, w.output_bias.size() != 0);

  const auto part = [&](auto& weight, auto& bias, T* kernel, T* offsets) {
    pair(weight, row_major(kernel, weight.rows(), weight.cols()));
    if (bias.size() != 0) pair(bias, row_major(offsets, 1, bias.size()));
  };
  part(w.query, w.query_bias, v.query_kernel, v.query_bias);
  part(w.key, w.key_bias, v.key_kernel, v.key_bias);
  part(w.value, w.value_bias, v.value_kernel, v.value_bias);
  part(w.output, w.output_bias, v.output_kernel, v.output_bias);
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
    is_instance_v<PyTorchView, View> || is_instance_v<KerasView, View>;

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
  detail::Outputs outputs(function);
  detail::visit_parts(function, w, view, [&](auto& ours, const auto&) {
    outputs.add("a part of the layer", detail::written_part(ours));
  });
  detail::visit_parts(function, w, view, [&](auto&, const auto& theirs) {
    outputs.keep_from("a part of the view", detail::part_memory(theirs));
  });
  detail::visit_parts(function, w, view, [](auto& ours, const auto& theirs) {
    ours = theirs.template cast<Storage>();
  });
}
/// Writes a layer's weights into another framework's memory.
template <class Storage, int DModel, int Heads, class View,
          std::enable_if_t<detail::is_framework_view_v<View>, int> = 0>
void store(const MultiHeadWeights<Storage, DModel, Heads>& w, const View& view) {
  constexpr const char* function = "attn::store";
  detail::check_held(function, w);
  detail::Outputs outputs(function);
  detail::visit_parts(function, w, view, [&](const auto&, const auto& theirs) {
    outputs.add("a part of the view", detail::written_part(theirs));
  });
  detail::visit_parts(function, w, view, [&](const auto& ours, const auto&) {
    outputs.keep_from("a part of the layer", detail::part_memory(ours));
  });
  detail::visit_parts(function, w, view, [](const auto& ours, auto theirs) {
    using Number = typename detail::bare_t<decltype(theirs)>::Scalar;
    theirs = ours.template cast<Number>();
  });
}

}  // namespace ATTN_ABI
}  // namespace attn
