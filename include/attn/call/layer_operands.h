// attn/call/layer_operands.h: what a call of a layer is given, checked against the layer's sizes:
// its inputs, how their rows fall into sequences, and the attention that they make. For both
// passes.
// SPDX-License-Identifier: MIT
#pragma once

#include "../layout.h"
#include "../multi_head_options.h"
#include "layer_scratch.h"
#include "options.h"

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
  check_features(function, name, input, features);
}

/// Rows of heads side by side, in scratch or a state.
template <class T>
GivenRows<T> rows_of_heads(T* data, Index rows, Index heads, Index features, Index stride) {
  return {{data, 1, heads, rows, features, 0, features, stride, 1}, true};
}

template <class Query, class Key, class Value>
struct LayerOperands {
  GivenRows<Query> query;
  GivenRows<Key> key;
  GivenRows<Value> value;
  Batch batch;
  CallShape shape;  ///< of the attention

  template <class Storage, class Asked>
  LayerOperands(const LayerContext<Storage>& layer, const GivenRows<Query>& q,
                const GivenRows<Key>& k, const GivenRows<Value>& v, const Asked& asked)
      : query(q),
        key(k),
        value(v),
        batch(batch_of(layer.function, asked)),
        shape(checked_shape(layer.function, layer.sizes)) {}
  LayerOperands(const LayerOperands&) = delete;

  Index query_rows() const { return query.view.sequences * query.view.tokens; }
  Index key_rows() const { return key.view.sequences * key.view.tokens; }
  /// Of the output, one head of all its features.
  CallShape output_shape(const MultiHeadOptions& sizes) const {
    CallShape output = shape;
    output.heads = output.kv_heads = 1;
    output.value_dim = sizes.output_features();
    return output;
  }
  /// The batch of the projected rows, which are stacked whatever the inputs are.
  Batch batch_of_projected() const {
    if (query.stacked) return batch;
    Batch projected;
    projected.query_length = std::max<Index>(query.view.tokens, 1);
    projected.key_length = std::max<Index>(key.view.tokens, 1);
    return projected;
  }

 private:
  CallShape checked_shape(const char* function, const MultiHeadOptions& sizes) const {
    check_input(function, "query", query.view.extent(), sizes.d_model());
    check_input(function, "key", key.view.extent(), sizes.key_features());
    check_input(function, "value", value.view.extent(), sizes.value_features());
    const auto projected = [](const auto& input, Index heads, Index features) {
      return OperandShape{{input.view.sequences, heads, input.view.tokens, features},
                          input.stacked};
    };
    return call_shape(function, projected(query, sizes.heads(), sizes.key_dim()),
                      projected(key, sizes.kv_heads(), sizes.key_dim()),
                      projected(value, sizes.kv_heads(), sizes.value_dim()), batch);
  }
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
