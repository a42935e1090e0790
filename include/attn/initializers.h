// attn/initializers.h: random weights for a layer by Keras' rule and by PyTorch's, the same numbers
// with every standard library.
// SPDX-License-Identifier: MIT
//
//   std::mt19937 engine(42);
//   mha.edit([&](auto& w) { attn::glorot_uniform(w, engine); });
#pragma once

#include <cmath>
#include <cstdint>

#include "multi_head_weights.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// A multiple of 2⁻⁵³ in [0, 1) from an engine's raw bits, of each draw the highest.
/// (std::uniform_real_distribution gives other numbers with other libraries.) An engine whose range
/// is no power of two draws again where it falls beyond the largest below.
template <class Engine>
double uniform_unit(Engine& engine) {
  constexpr std::uint64_t range = std::uint64_t(Engine::max()) - std::uint64_t(Engine::min());
  constexpr int bits = [] {
    int n = 0;
    while (n < 64 && (range >> n) != 0) ++n;  // range < 2ⁿ
    const std::uint64_t whole = n == 64 ? ~std::uint64_t(0) : (std::uint64_t(1) << n) - 1;
    return range == whole ? n : n - 1;
  }();
  static_assert(bits > 0, "attn: the random engine has fewer than two values");
  std::uint64_t value = 0;
  for (int have = 0; have < 53;) {
    std::uint64_t draw;
    do {
      draw = std::uint64_t(engine()) - std::uint64_t(Engine::min());
    } while (bits < 64 && (draw >> (bits % 64)) != 0);
    const int take = bits < 53 - have ? bits : 53 - have;
    value = value << take | draw >> (bits - take);
    have += take;
  }
  return double(value) * 0x1p-53;
}

/// Fills a matrix row by row with numbers in [−limit, limit).
template <class Matrix, class Engine>
void fill_uniform(Matrix& w, double limit, Engine& engine) {
  using Scalar = typename Matrix::Scalar;
  for (Index i = 0; i < w.rows(); ++i) {
    for (Index j = 0; j < w.cols(); ++j)
      w(i, j) = Scalar(compute_t<Scalar>(limit * (2 * uniform_unit(engine) - 1)));
  }
}

template <class Weights>
void clear_biases(Weights& w) {
  w.query_bias.setZero();
  w.key_bias.setZero();
  w.value_bias.setZero();
  w.output_bias.setZero();
}

}  // namespace detail

/// Glorot's uniform rule as keras.layers.MultiHeadAttention applies it: U(−a, a), a = √(6 / (fan_in
/// + fan_out)), where Keras counts a kernel [m, n, o] as fan_in = m·n, fan_out = m·o; biases zero.
/// The engine is drawn from for query, key, value and output, row by row.
///
/// Reference  Glorot & Bengio 2010; Keras' compute_fans
template <class Storage, int DModel, int Heads, class Engine>
void glorot_uniform(MultiHeadWeights<Storage, DModel, Heads>& w, Engine& engine) {
  const auto fill = [&](auto& weight, Index m, Index n, Index o) {
    detail::fill_uniform(weight, std::sqrt(6.0 / double(m * (n + o))), engine);
  };
  fill(w.query, w.query.rows(), w.heads, w.key_dim());
  fill(w.key, w.key.rows(), w.kv_heads, w.key_dim());
  fill(w.value, w.value.rows(), w.kv_heads, w.value_dim());
  fill(w.output, w.heads, w.value_dim(), w.output.cols());
  detail::clear_biases(w);
}

/// torch.nn.MultiheadAttention's rule: query, key and value Glorot-uniform, as one matrix of 3E
/// rows where their inputs have one width (a = √(6 / (E + 3E))), else each by itself; the output
/// U(−1/√n, 1/√n) of its n inputs; biases zero.
template <class Storage, int DModel, int Heads, class Engine>
void pytorch_uniform(MultiHeadWeights<Storage, DModel, Heads>& w, Engine& engine) {
  const bool joined = w.key.rows() == w.query.rows() && w.value.rows() == w.query.rows();
  const Index all = w.query.cols() + w.key.cols() + w.value.cols();
  for (auto* weight : {&w.query, &w.key, &w.value}) {
    const Index out = joined ? all : weight->cols();
    detail::fill_uniform(*weight, std::sqrt(6.0 / double(weight->rows() + out)), engine);
  }
  detail::fill_uniform(w.output, 1 / std::sqrt(double(w.output.rows())), engine);
  detail::clear_biases(w);
}

}  // namespace ATTN_ABI
}  // namespace attn
