// attn/multi_head_weights.h: the weights of a layer as plain matrices: Y = X·W + b, heads side by
// side in columns.
// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include "base/weight_matrix.h"
#include "multi_head_options.h"

namespace attn {
inline namespace ATTN_ABI {

namespace detail {

/// Calls part(name, matrix, rows, cols) for each of the weights, with the shape that the sizes give
/// it.
template <class Weights, class Part>
void visit_weight_shapes(Weights& w, const MultiHeadOptions& sizes, const Part& part) {
  const Index queries = sizes.heads() * sizes.key_dim(), keys = sizes.kv_heads() * sizes.key_dim();
  const Index values = sizes.kv_heads() * sizes.value_dim(), output = sizes.output_features();
  const Index in_biases = sizes.has_in_bias() ? 1 : 0, out_biases = sizes.has_out_bias() ? 1 : 0;
  part("query weight", w.query, sizes.d_model(), queries);
  part("key weight", w.key, sizes.key_features(), keys);
  part("value weight", w.value, sizes.value_features(), values);
  part("output weight", w.output, sizes.heads() * sizes.value_dim(), output);
  part("query bias", w.query_bias, 1, in_biases * queries);
  part("key bias", w.key_bias, 1, in_biases * keys);
  part("value bias", w.value_bias, 1, in_biases * values);
  part("output bias", w.output_bias, 1, out_biases * output);
}

}  // namespace detail

/// The weights of MultiHeadAttention. Every projection is Y = X·W + b, a row of X a token:
///
///   query   [d_model,        H·d_k]      query_bias   [H·d_k]       column h·d_k + c is feature c of head h
///   key     [key_features,   H_kv·d_k]   key_bias     [H_kv·d_k]
///   value   [value_features, H_kv·d_v]   value_bias   [H_kv·d_v]
///   output  [H·d_v, output_features]     output_bias  [output_features]
///
/// Biases that the layer does not have are of size 0. All is zero at first; load() and the
/// initialisers fill it.
///
/// \tparam Storage  what the weights are stored in: half and bfloat16 compute in float
/// \tparam DModel, Heads compile-time sizes of a layer without other sizes than these, or
/// Eigen::Dynamic
template <class Storage, int DModel = Eigen::Dynamic, int Heads = Eigen::Dynamic>
struct MultiHeadWeights {
  using Scalar = Storage;
  using Matrix = detail::WeightMatrix<Eigen::Matrix<Storage, DModel, DModel>>;
  using Bias =
      detail::WeightMatrix<Eigen::Matrix<Storage, 1, Eigen::Dynamic, Eigen::RowMajor, 1, DModel>>;

  Matrix query, key, value, output;
  Bias query_bias, key_bias, value_bias, output_bias;
  Index heads = 0, kv_heads = 0;  ///< H and H_kv, into which the columns fall; not to be changed

  explicit MultiHeadWeights(const MultiHeadOptions& sizes)
      : heads(sizes.heads()), kv_heads(sizes.kv_heads()) {
    detail::visit_weight_shapes(*this, sizes, [](const char*, auto& part, Index rows, Index cols) {
      part.setZero(rows, cols);
    });
  }

  Index key_dim() const { return query.cols() / heads; }
  Index value_dim() const { return value.cols() / kv_heads; }
};

namespace detail {

/// Refuses a weight or a bias of another shape than the layer's.
inline void check_part_shape(const char* function, const std::string& name, Index rows, Index cols,
                             Index needs_rows, Index needs_cols) {
  if (rows == needs_rows && cols == needs_cols) return;
  if (needs_rows * needs_cols == 0) {
    fail(text(function, ": the ", name,
              " is given, the layer has none; it has where it is made with ",
              "MultiHeadOptions(...).", name == "output bias" ? "out_bias()" : "in_bias()"));
  }
  fail(text(function, ": the ", name, " is ", shape_text(rows, cols), ", needs ",
            shape_text(needs_rows, needs_cols)));
}

/// Refuses weights that have lost the layer's shapes.
template <class Weights>
void check_weights(const char* function, const Weights& w, const MultiHeadOptions& sizes) {
  visit_weight_shapes(w, sizes, [&](const char* name, const auto& part, Index rows, Index cols) {
    check_part_shape(function, name, part.rows(), part.cols(), rows, cols);
  });
  if (w.heads != sizes.heads() || w.kv_heads != sizes.kv_heads()) {
    fail(text(function, ": the weights have ", w.heads, " heads on ", w.kv_heads, ", the layer ",
              sizes.heads(), " on ", sizes.kv_heads()));
  }
}

}  // namespace detail

}  // namespace ATTN_ABI
}  // namespace attn
