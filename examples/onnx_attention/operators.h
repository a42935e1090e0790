// examples/onnx_attention/operators.h: a case file's operator run on the library: Attention, RotaryEmbedding, Softmax, LogSoftmax.
// SPDX-License-Identifier: MIT
#pragma once

#include "attention.h"
#include "case_file.h"

namespace onnx {

/// X [B, H, L, d], or [B, L, H·d] with num_heads. cos, sin: a row for each position with position_ids [B, L], else [B, L, n/2].
inline Tensor rotary_embedding(const Tensor& X, const Tensor& cos_cache, const Tensor& sin_cache,
                               const Tensor* position_ids, bool interleaved, Index dims,
                               Index num_heads) {
  Tensor Y(X.type, X.dims);
  with_real_type(X.type, [&](auto t) {
    using T = decltype(t);
    using Scalar = attn::compute_t<T>;
    using Matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    const auto from = view_of<const T>(X, num_heads);
    const auto table = [](const Tensor& cache) {
      const Index pairs = cache.dim(-1);
      Matrix rows(pairs == 0 ? 0 : cache.size() / pairs, pairs);
      for (Index i = 0; i < rows.size(); ++i) rows.data()[i] = Scalar(cache.at(i));
      return rows;
    };
    const Matrix cosines = table(cos_cache), sines = table(sin_cache);
    // Without ids the caches hold a row for each token.
    std::vector<Index> ids(std::size_t(from.sequences * from.tokens));
    for (std::size_t i = 0; i < ids.size(); ++i)
      ids[i] = position_ids != nullptr ? Index(position_ids->at(Index(i))) : Index(i);
    const auto pairs = interleaved ? attn::pairing::interleaved : attn::pairing::half_split;
    attn::rotate(
        from,
        attn::rotary(pairs, cosines, sines).dims(dims == 0 ? from.features : dims).positions(ids),
        attn::into(view_of<T>(Y, num_heads)));
  });
  return Y;
}

/// Softmax or its logarithm along an axis; before opset 13 over all axes from this one on, as one.
inline Tensor softmax(const Tensor& X, Index axis, bool logarithm, int opset) {
  if (axis < 0) axis += X.rank();
  if (axis < 0 || axis >= X.rank())
    throw std::invalid_argument("onnx: Softmax: the tensor has no such axis");
  Index before = 1, length = 1, behind = 1;
  for (Index n = 0; n < X.rank(); ++n)
    (n < axis ? before : n == axis || opset < 13 ? length : behind) *= X.dim(n);
  Tensor Y(X.type, X.dims);
  with_real_type(X.type, [&](auto t) {
    using T = decltype(t);
    using Stride = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
    using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>;
    // One vector a row: of neighbours in memory all at once, else those that lie side by side.
    const Index matrices = behind == 1 ? 1 : before, rows = behind == 1 ? before : behind;
    const Stride strides(behind, behind == 1 ? length : 1);
    for (Index n = 0; n < matrices; ++n) {
      const Index at = n * length * behind;
      const Eigen::Map<const Matrix, 0, Stride> from(X.data<T>() + at, rows, length, strides);
      Eigen::Map<Matrix, 0, Stride> to(Y.data<T>() + at, rows, length, strides);
      if (logarithm) {
        attn::log_softmax(from, attn::into(to));
      } else {
        attn::softmax(from, attn::into(to));
      }
    }
  });
  return Y;
}

/// TensorProto's numbers of the types.
inline std::optional<Type> type_numbered(Index number) {
  switch (number) {
    case 1:
      return Type::float32;
    case 10:
      return Type::float16;
    case 11:
      return Type::float64;
    case 16:
      return Type::bfloat16;
    default:
      return {};
  }
}

/// Runs the operator of a case on its inputs; one result for each output that the case expects.
inline std::vector<std::optional<Tensor>> run(const Case& c) {
  std::vector<std::optional<Tensor>> results(c.outputs.size());
  for (std::size_t n = 0; n < results.size(); ++n) {
    if (c.wants(n)) results[n].emplace();
  }
  const auto output = [&results](std::size_t n) {
    return n < results.size() && results[n] ? &*results[n] : nullptr;
  };
  const auto needed = [&c](std::size_t n) -> const Tensor& {
    if (c.input(n) == nullptr) throw std::invalid_argument("onnx: an input is missing");
    return *c.input(n);
  };
  if (c.op == "Attention") {
    AttentionAttributes a;
    a.is_causal = c.integer("is_causal", 0) != 0;
    a.q_num_heads = c.integer("q_num_heads", 0);
    a.kv_num_heads = c.integer("kv_num_heads", 0);
    if (c.attributes.count("scale")) a.scale = c.number("scale", 0);
    a.softcap = c.number("softcap", 0);
    a.qk_matmul_output_mode = int(c.integer("qk_matmul_output_mode", 0));
    a.left_window_size = c.integer("left_window_size", -1);
    a.right_window_size = c.integer("right_window_size", -1);
    a.softmax_precision = type_numbered(c.integer("softmax_precision", 0));
    Tensor Y;
    attention(a,
              {&needed(0), &needed(1), &needed(2), c.input(3), c.input(4), c.input(5), c.input(6)},
              {output(0) ? output(0) : &Y, output(1), output(2), output(3)});
  } else if (c.op == "RotaryEmbedding") {
    results.at(0) = rotary_embedding(
        needed(0), needed(1), needed(2), c.input(3), c.integer("interleaved", 0) != 0,
        c.integer("rotary_embedding_dim", 0), c.integer("num_heads", 0));
  } else if (c.op == "Softmax" || c.op == "LogSoftmax") {
    results.at(0) =
        softmax(needed(0), c.integer("axis", c.opset < 13 ? 1 : -1), c.op == "LogSoftmax", c.opset);
  } else {
    throw std::invalid_argument("onnx: no operator " + c.op);
  }
  return results;
}

/// How far results are from what a case expects.
struct Difference {
  double largest = 0;  ///< |result − expected|, NaN where one is a number and the other not
  bool within =
      true;  ///< ≤ absolute + relative · |expected| everywhere; NaN only where NaN is expected
};
inline Difference compare(const Tensor& result, const Tensor& expected, double relative,
                          double absolute) {
  Difference difference;
  if (result.dims != expected.dims || result.type != expected.type) {
    difference.largest = NAN;
    difference.within = false;
    return difference;
  }
  for (Index i = 0; i < expected.size(); ++i) {
    const double r = result.at(i), e = expected.at(i);
    if (r == e || (std::isnan(r) && std::isnan(e))) continue;
    const double apart = std::abs(r - e);
    if (!(apart <= difference.largest)) difference.largest = apart;
    if (!(apart <= absolute + relative * std::abs(e))) difference.within = false;
  }
  return difference;
}

}  // namespace onnx
