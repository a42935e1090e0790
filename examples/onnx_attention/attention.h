// examples/onnx_attention/attention.h: ONNX's operator Attention (opsets 23 to 25) on attn::attention: what a runtime has to write.
// SPDX-License-Identifier: MIT
//
//   ONNX                                            attn
//   Q, K, V [B, H, L, d] or [B, L, H·d]             strided views bhld, blhd: nothing is copied
//   q_num_heads, kv_num_heads                       heads of the views; grouped-query attention follows from the counts
//   scale, softcap                                  scale(s), softcap(c)
//   is_causal, left_/right_window_size              window(left, right): causal is a window without a right side
//   offset of the query's positions                 query_offset(…), one for each sequence
//   nonpad_kv_seqlen                                key_lengths(…)
//   attn_mask of bool / of numbers                  keep(B) / bias(B), views of rank 4 that broadcast where a size is 1
//   qk_matmul_output_mode 0, 1, 2                   save_scores(S, stage::scaled / softcapped / masked)
//   qk_matmul_output_mode 3                         save_weights(W)
//   past, present                                   concatenated here
//
// The order of operations is the same in both: scale, softcap, bias, mask, softmax, and a row that sees no key gives zeros.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>

#include "tensor.h"

namespace onnx {

struct AttentionAttributes {
  bool is_causal = false;
  Index q_num_heads = 0, kv_num_heads = 0;  ///< where Q, K, V have rank 3
  std::optional<double> scale;              ///< else 1/√d
  double softcap = 0;                       ///< 0: none
  int qk_matmul_output_mode = 0;
  Index left_window_size = -1, right_window_size = -1;
  std::optional<Type> softmax_precision;
};
/// Null where an optional input is not there.
struct AttentionInputs {
  const Tensor *Q = nullptr, *K = nullptr, *V = nullptr, *attn_mask = nullptr;
  const Tensor *past_key = nullptr, *past_value = nullptr, *nonpad_kv_seqlen = nullptr;
};
/// Null where an optional output is not asked for. They are given their sizes here.
struct AttentionOutputs {
  Tensor *Y = nullptr, *present_key = nullptr, *present_value = nullptr;
  Tensor* qk_matmul_output = nullptr;
};

/// The strided view of a tensor [B, H, L, d], or [B, L, H·d] with the heads told. T is const where it is only read.
template <class T, class AnyTensor>
attn::TensorView<T> view_of(AnyTensor& x, Index heads) {
  T* data = x.template data<std::remove_const_t<T>>();
  if (x.rank() == 4) return attn::bhld(data, x.dim(0), x.dim(1), x.dim(2), x.dim(3));
  if (x.rank() != 3 || heads < 1 || x.dim(2) % heads != 0)
    throw std::invalid_argument("onnx: Attention: Q, K, V have rank 4, or rank 3 and heads");
  return attn::blhd(data, x.dim(0), x.dim(1), heads, x.dim(2) / heads);
}

/// past and new tokens behind each other, [B, H, P + L, d]; `past` may be null.
template <class T>
Tensor concatenated(const Tensor* past, const Tensor& x, Index heads) {
  const auto added = view_of<const T>(x, heads);
  const Index old = past == nullptr ? 0 : past->dim(2);
  Tensor all(x.type, {added.sequences, added.heads, old + added.tokens, added.features});
  const auto to = view_of<T>(all, 0);
  const auto copy = [&to](const attn::TensorView<const T>& from, Index at) {
    using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    for (Index b = 0; b < from.sequences; ++b) {
      for (Index h = 0; h < from.heads; ++h) {
        Eigen::Map<Matrix>(to.at(b, h, at), from.tokens, from.features) =
            Eigen::Map<const Matrix, 0, Eigen::OuterStride<>>(
                from.at(b, h, 0), from.tokens, from.features,
                Eigen::OuterStride<>(from.token_stride));
      }
    }
  };
  if (past != nullptr) copy(view_of<const T>(*past, 0), 0);
  copy(added, old);
  return all;
}

/// attn_mask as a view of rank 4, its sizes aligned on the right. Where its rows are shorter than the keys, or it has another type,
/// it is copied to `own`, with `padding` behind it.
template <class T>
attn::TensorView<const T> mask_view(const Tensor& mask, Type type, Index keys, double padding,
                                    Tensor& own) {
  if (mask.rank() < 1 || mask.rank() > 4 || mask.dim(-1) > keys)
    throw std::invalid_argument("onnx: Attention: attn_mask has rank 1 to 4, and a column a key");
  std::vector<Index> dims(std::size_t(4 - mask.rank()), 1);
  dims.insert(dims.end(), mask.dims.begin(), mask.dims.end());
  const Tensor* held = &mask;
  if (mask.type != type || dims.back() != keys) {
    const Index given = dims.back(), rows = dims[0] * dims[1] * dims[2];
    dims.back() = keys;
    own = Tensor(type, dims);
    for (Index i = 0; i < rows; ++i) {
      for (Index j = 0; j < keys; ++j)
        own.set(i * keys + j, j < given ? mask.at(i * given + j) : padding);
    }
    held = &own;
  }
  return attn::bhld(held->data<T>(), dims[0], dims[1], dims[2], dims[3]);
}

/// The operator for operands of one type.
template <class T>
void attention_of(const AttentionAttributes& a, const AttentionInputs& in,
                  const AttentionOutputs& out, Type type) {
  using Scalar = attn::compute_t<T>;
  const auto query = view_of<const T>(*in.Q, a.q_num_heads);
  Tensor present_key, present_value;
  const bool copies = in.past_key != nullptr || out.present_key != nullptr || out.present_value;
  if (copies) {
    present_key = concatenated<T>(in.past_key, *in.K, a.kv_num_heads);
    present_value = concatenated<T>(in.past_value, *in.V, a.kv_num_heads);
  }
  const auto key = view_of<const T>(copies ? present_key : *in.K, a.kv_num_heads);
  const auto value = view_of<const T>(copies ? present_value : *in.V, a.kv_num_heads);
  const Index past = in.past_key == nullptr ? 0 : in.past_key->dim(2);

  // Positions: behind the past, or so that the last query is at the last key that is no padding.
  std::vector<Index> offsets(std::size_t(query.sequences), past),
      lengths(std::size_t(query.sequences), key.tokens);
  if (in.nonpad_kv_seqlen != nullptr) {
    for (std::size_t b = 0; b < lengths.size(); ++b) {
      const Index given = Index(in.nonpad_kv_seqlen->at(Index(b)));
      lengths[b] = std::clamp<Index>(given, 0, key.tokens);
      if (in.past_key == nullptr) offsets[b] = given - query.tokens;
    }
  }

  std::vector<Index> dims = in.Q->dims;
  if (in.Q->rank() == 4) {
    dims.back() = value.features;
  } else {
    dims.back() = query.heads * value.features;
  }
  *out.Y = Tensor(type, dims);
  const auto attend = [&](const auto&... options) {
    attn::attention(query, key, value, attn::into(view_of<T>(*out.Y, query.heads)),
                    attn::scale(Scalar(a.scale.value_or(1 / std::sqrt(double(query.features))))),
                    attn::window(a.left_window_size, a.is_causal ? 0 : a.right_window_size),
                    attn::query_offset(offsets), attn::key_lengths(lengths), options...);
  };

  const bool caps = a.softcap > 0;
  if (in.attn_mask == nullptr && !caps && out.qk_matmul_output == nullptr) {
    attend();
  } else {
    // One mask of each kind, of one element where it is not given: half as many instantiations.
    const bool yes = true;
    const T zero = T(0);
    auto keep = attn::bhld(&yes, 1, 1, 1, 1);
    auto bias = attn::bhld(&zero, 1, 1, 1, 1);
    Tensor own;
    if (in.attn_mask != nullptr && in.attn_mask->type == Type::boolean) {
      keep = mask_view<bool>(*in.attn_mask, Type::boolean, key.tokens, 0, own);
    } else if (in.attn_mask != nullptr) {
      bias = mask_view<T>(*in.attn_mask, type, key.tokens, -INFINITY, own);
    }
    const auto masked = [&](const auto&... options) {
      attend(attn::keep(keep), attn::bias(bias), options...);
    };
    const auto saved = [&](const auto&... options) {
      if (out.qk_matmul_output == nullptr) return masked(options...);
      *out.qk_matmul_output =
          Tensor(type, {query.sequences, query.heads, query.tokens, key.tokens});
      const auto qk = view_of<T>(*out.qk_matmul_output, 0);
      if (a.qk_matmul_output_mode == 3) return masked(attn::save_weights(qk), options...);
      const attn::stage at = a.qk_matmul_output_mode == 0   ? attn::stage::scaled
                             : a.qk_matmul_output_mode == 1 ? attn::stage::softcapped
                                                            : attn::stage::masked;
      masked(attn::save_scores(qk, at), options...);
    };
    if (caps) {
      saved(attn::softcap(Scalar(a.softcap)));
    } else {
      saved();
    }
  }
  if (out.present_key != nullptr) *out.present_key = std::move(present_key);
  if (out.present_value != nullptr) *out.present_value = std::move(present_value);
}

/// The type that holds them all: their own where it is one, else double where one of them is, else float.
inline Type common_type(std::initializer_list<const Tensor*> tensors) {
  std::optional<Type> common;
  for (const Tensor* x : tensors) {
    if (x == nullptr || x->type == Type::boolean) continue;
    if (x->type == Type::float64) return Type::float64;
    common = common.value_or(x->type) == x->type ? x->type : Type::float32;
  }
  return common.value();
}

/// ONNX's Attention. Softmax runs in float or wider whatever is asked for; in double where softmax_precision says so.
inline void attention(const AttentionAttributes& a, const AttentionInputs& in,
                      const AttentionOutputs& out) {
  if ((in.past_key == nullptr) != (in.past_value == nullptr))
    throw std::invalid_argument("onnx: Attention: past_key and past_value come together");
  const Type stored = in.Q->type;
  const Type type = a.softmax_precision == Type::float64
                        ? Type::float64
                        : common_type({in.Q, in.K, in.V, in.attn_mask});
  if (type == stored && in.K->type == type && in.V->type == type) {
    with_real_type(type, [&](auto t) { attention_of<decltype(t)>(a, in, out, type); });
    return;
  }
  // Operands of other types than the one that is computed in: converted on the way in and out.
  const auto converted = [type](const Tensor* x) { return x ? cast(*x, type) : Tensor(); };
  const Tensor Q = cast(*in.Q, type), K = cast(*in.K, type), V = cast(*in.V, type),
               past_key = converted(in.past_key), past_value = converted(in.past_value);
  AttentionInputs inner = in;
  inner.Q = &Q, inner.K = &K, inner.V = &V;
  if (in.past_key) inner.past_key = &past_key;
  if (in.past_value) inner.past_value = &past_value;
  with_real_type(type, [&](auto t) { attention_of<decltype(t)>(a, inner, out, type); });
  const auto back = [](Tensor* x, Type to) {
    if (x != nullptr) *x = cast(*x, to);
  };
  back(out.Y, stored);
  back(out.qk_matmul_output, stored);
  back(out.present_key, in.K->type);
  back(out.present_value, in.V->type);
}

}  // namespace onnx
