// attn/call/shape.h: the shape of a call from the sizes of its operands, and what is said where
// they do not fit together.
// SPDX-License-Identifier: MIT
#pragma once

#include "../base/heads.h"
#include "../base/operand.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// What the batch options of a call say: row offsets, or a common length (0: one sequence), of
/// queries and of keys.
struct Batch {
  const IndexList *query_offsets = nullptr, *key_offsets = nullptr;
  Index query_length = 0, key_length = 0;

  Batch() = default;
  Batch(const char*, const Sequences& option)
      : query_offsets(&option.query_offsets),
        key_offsets(option.same ? &option.query_offsets : &option.key_offsets) {}
  Batch(const char* function, const SequenceLength& option)
      : query_length(option.queries), key_length(option.keys) {
    if (query_length < 1 || key_length < 1) {
      fail(text(function, ": sequence_length(", query_length, ", ", key_length,
                "): lengths are at least 1"));
    }
  }
};

/// tokens_of() where the call names its sequences.
inline Tokens batched_tokens(const char* function, const char* name, const TensorExtent& extent,
                             bool stacked, const IndexList* offsets, Index length) {
  if (!stacked) {
    fail(text(function, ": ", name,
              " is a strided view, which holds its sequences itself; sequences() and "
              "sequence_length() are for stacked rows"));
  }
  if (offsets != nullptr) {
    const Index entries = offsets->size();
    if (entries < 1 || (*offsets)[0] != 0) {
      fail(text(function, ": sequences: the row offsets of ", name,
                " must begin with 0: offsets, not lengths; two sequences of 5 and 7 rows are {0, "
                "5, 12}"));
    }
    for (Index b = 0; b + 1 < entries; ++b) {
      if ((*offsets)[b + 1] < (*offsets)[b]) {
        fail(text(function, ": sequences: row offset ", b + 1, " of ", name, " is ",
                  (*offsets)[b + 1], ", below the one before, ", (*offsets)[b]));
      }
    }
    if (offsets->back() != extent.tokens) {
      fail(text(function, ": sequences: the row offsets of ", name, " end at ", offsets->back(),
                ", it has ", extent.tokens, " rows"));
    }
    return {entries - 1, 0, offsets};
  }
  if (extent.tokens % length != 0) {
    fail(text(function, ": sequence_length: ", name, " has ", extent.tokens,
              " rows, needs a multiple of ", length, " (at least 1)"));
  }
  const Index sequences = extent.tokens / length;
  return {sequences, sequences > 0 ? length : 0, nullptr};
}

/// How the tokens of one operand fall into sequences. `stacked`: its rows are the tokens of all of
/// them.
ATTN_INLINE Tokens tokens_of(const char* function, const char* name, const TensorExtent& extent,
                             bool stacked, const IndexList* offsets, Index length) {
  if (offsets != nullptr || length != 0)
    return batched_tokens(function, name, extent, stacked, offsets, length);
  return {stacked ? 1 : extent.sequences, extent.tokens, nullptr};
}

/// An operand's sizes, and whether its rows are stacked sequences.
struct OperandShape {
  TensorExtent extent;
  bool stacked;
};

/// What is likely meant where query and key have other numbers of features, as a sentence.
inline std::string features_hint(const TensorExtent& q, const TensorExtent& k) {
  if (q.heads > 1 && k.heads == 1 && q.features > 0 && k.features % q.features == 0)
    return text(". Heads of keys are named too: heads(K, ", k.features / q.features, ")");
  if (q.heads == 1 && k.heads == 1 && q.tokens == k.tokens)
    return ". A row is a token: where tokens are columns, write Q.transpose(), K.transpose()";
  return {};
}

/// The shape of a call from its operands' sizes; refuses what does not fit together.
inline CallShape call_shape(const char* function, const OperandShape& query,
                            const OperandShape& key, const OperandShape& value,
                            const Batch& batch) {
  const TensorExtent &q = query.extent, &k = key.extent, &v = value.extent;
  if (k.features != q.features) {
    fail(text(function, ": key has ", k.features, " features, query has ", q.features,
              "; both need d_k, for each head", features_hint(q, k)));
  }
  if (q.features < 1) fail(text(function, ": query has 0 features, needs at least 1"));
  if (v.heads != k.heads) {
    fail(text(function, ": value has ", v.heads, " heads, key has ", k.heads,
              "; both need one number"));
  }
  if (k.heads < 1 || (q.heads != k.heads && q.heads % k.heads != 0)) {
    fail(text(function, ": query has ", q.heads, " heads, needs a multiple of the ", k.heads,
              " heads of key and value"));
  }
  if (k.tokens != v.tokens) {
    fail(text(function, ": value has ", v.tokens, " rows, key has ", k.tokens,
              "; both need one row per key"));
  }
  CallShape shape;
  shape.function = function;
  shape.heads = q.heads;
  shape.kv_heads = k.heads;
  shape.key_dim = q.features;
  shape.value_dim = v.features;
  shape.queries =
      tokens_of(function, "query", q, query.stacked, batch.query_offsets, batch.query_length);
  shape.keys = tokens_of(function, "key", k, key.stacked, batch.key_offsets, batch.key_length);
  const Tokens values =
      tokens_of(function, "value", v, value.stacked, batch.key_offsets, batch.key_length);
  if (values.sequences != shape.keys.sequences) {
    fail(text(function, ": value has ", values.sequences, " sequences, key has ",
              shape.keys.sequences, "; both need one number"));
  }
  if (shape.keys.sequences != shape.queries.sequences) {
    if (shape.keys.sequences != 1) {
      fail(text(function, ": key has ", shape.keys.sequences, " sequences, query has ",
                shape.queries.sequences, "; needs as many, or one that serves all"));
    }
    shape.shared_keys = true;
  }
  return shape;
}

/// Refuses what is not shaped like the output, H heads of features for each query token. `columns`
/// and `row_names` say what the features and tokens are, where they are others.
inline void check_like_output(const CallShape& shape, const char* name, const OperandShape& operand,
                              const char* columns = "output features",
                              const char* row_names = "query rows") {
  const Tokens& tokens = shape.queries;
  const TensorExtent& has = operand.extent;
  if (operand.stacked) {
    const Index rows = tokens.total(), cols = shape.heads * shape.value_dim;
    if (has.tokens != rows || has.heads * has.features != cols ||
        (has.heads != 1 && has.heads != shape.heads)) {
      fail(text(shape.function, ": ", name, " is ",
                shape_text(has.tokens, has.heads * has.features), " in ", has.heads,
                " heads, needs ", shape_text(rows, cols), " (", row_names, " x ", columns, ") in ",
                shape.heads, " heads"));
    }
  } else if (tokens.offsets != nullptr || has.sequences != shape.sequences() ||
             has.tokens != tokens.common_length || has.heads != shape.heads ||
             has.features != shape.value_dim) {
    fail(text(shape.function, ": ", name, " is a view of [", has.sequences, ", ", has.heads, ", ",
              has.tokens, ", ", has.features, "], needs [", shape.sequences(), ", ", shape.heads,
              ", ", tokens.longest(), ", ", shape.value_dim, "] (sequences, heads, ", row_names,
              ", ", columns, "), sequences of equal length"));
  }
}

/// The output, or a residual, as an operand. Columns without heads() are the heads side by side.
template <class T>
Operand<T> place_like_output(const CallShape& shape, const char* name, TensorView<T> view,
                             bool stacked, const char* columns = "output features",
                             const char* row_names = "query rows") {
  check_like_output(shape, name, {view.extent(), stacked}, columns, row_names);
  if (stacked && view.heads != shape.heads) {
    view.heads = shape.heads;
    view.features = shape.value_dim;
    view.head_stride = shape.value_dim * view.feature_stride;
  }
  return place(view, stacked, shape.queries);
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
