// attn/multi_head_weights.h: the weights of a layer as plain matrices: Y = X·W + b, heads side by
// side in columns.
// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include "base/traits.h"
#include "multi_head_options.h"

namespace attn {
inline namespace ATTN_ABI {

namespace detail {

/// A matrix of a layer's weights. Where it is const, as the layer shows it, an assignment is told
/// how weights are written.
template <class Base>
struct WeightMatrix : Base {
  using Base::Base;
  template <class Other>
  WeightMatrix& operator=(const Other& other) {
    Base::operator=(other);
    return *this;
  }
  template <class Other>
  void operator=(const Other&) const {
    static_assert(always_false_v<Other>,
                  "attn::MultiHeadAttention: weights() are to read: write them by "
                  "mha.edit([&](auto& w) { w.query = W; }), which packs them anew");
  }
};

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
    const Index queries = heads * sizes.key_dim(), keys = kv_heads * sizes.key_dim();
    const Index values = kv_heads * sizes.value_dim(), mixed = heads * sizes.value_dim();
    query.setZero(sizes.d_model(), queries);
    key.setZero(sizes.key_features(), keys);
    value.setZero(sizes.value_features(), values);
    output.setZero(mixed, sizes.output_features());
    query_bias.setZero(sizes.has_in_bias() ? queries : 0);
    key_bias.setZero(sizes.has_in_bias() ? keys : 0);
    value_bias.setZero(sizes.has_in_bias() ? values : 0);
    output_bias.setZero(sizes.has_out_bias() ? sizes.output_features() : 0);
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

/// Refuses weights that have lost the shapes of `model`.
template <class Weights>
void check_weights(const char* function, const Weights& w, const Weights& model) {
  const auto same = [&](const char* name, const auto& has, const auto& needs) {
    check_part_shape(function, name, has.rows(), has.cols(), needs.rows(), needs.cols());
  };
  same("query weight", w.query, model.query);
  same("key weight", w.key, model.key);
  same("value weight", w.value, model.value);
  same("output weight", w.output, model.output);
  same("query bias", w.query_bias, model.query_bias);
  same("key bias", w.key_bias, model.key_bias);
  same("value bias", w.value_bias, model.value_bias);
  same("output bias", w.output_bias, model.output_bias);
  if (w.heads != model.heads || w.kv_heads != model.kv_heads) {
    fail(text(function, ": the weights have ", w.heads, " heads on ", w.kv_heads, ", the layer ",
              model.heads, " on ", model.kv_heads));
  }
}

}  // namespace detail

}  // namespace ATTN_ABI
}  // namespace attn
