// bench/support/textbook.h: the formula as a good user of Eigen writes it by hand.
// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>
#include <cmath>
#include <type_traits>

#include "operands.h"
#include "workloads.h"

namespace bench {

// WHAT  For each sequence and head: S = scale Q Kᵀ, bias or mask, softmax by rows, Y = P V. S is
//       row-major, so that the passes over one of its rows run along memory; Q, K, V and Y are read
//       and written as they are stored.
// WHY   The baseline is worth beating only if it is written well: both products are Eigen's own
//       (noalias), everything is allocated beforehand, a row of S goes through maximum, exp and
//       sum while it is in cache, and the division is of Y, not of P.
// EDGES It computes both products whole, also where half of the scores are hidden by a causal mask
//       or some by padding. Hidden weights are set to zero behind the exp of the others, not found
//       as exp(−∞): Eigen's packet exp gives a denormal number there, and multiplying by those
//       costs some processors a factor of twenty. Narrow storage is converted to float head by
//       head, and back.

template <class Stored>
class Textbook {
 public:
  using Scalar = compute_t<Stored>;

  explicit Textbook(const Workload& w) : w_(w), scores_(w.queries, w.keys), sums_(w.queries) {
    if constexpr (kConverts) {
      q_.resize(w.queries, w.head_size);
      k_.resize(w.keys, w.head_size);
      v_.resize(w.keys, w.value_size);
      y_.resize(w.queries, w.value_size);
    }
  }

  /// y: as output_strides() tells.
  void operator()(const Operands<Stored>& x, const RowMatrix<Scalar>& bias, Stored* y) {
    for (Index b = 0; b < w_.batch; ++b) {
      for (Index h = 0; h < w_.query_heads; ++h) {
        const Index query_head = b * w_.query_heads + h;
        const Index key_head = b * w_.key_heads + h / (w_.query_heads / w_.key_heads);
        const Stored* q = x.q.data() + query_head * w_.queries * w_.head_size;
        const Stored* k = x.k.data() + key_head * w_.keys * w_.head_size;
        const Stored* v = x.v.data() + key_head * w_.keys * w_.value_size;
        Stored* out = y + query_head * w_.queries * w_.value_size;
        if constexpr (kConverts) {
          q_ = matrix<Eigen::RowMajor>(q, w_.queries, w_.head_size).template cast<Scalar>();
          k_ = matrix<Eigen::RowMajor>(k, w_.keys, w_.head_size).template cast<Scalar>();
          v_ = matrix<Eigen::RowMajor>(v, w_.keys, w_.value_size).template cast<Scalar>();
          attend<Eigen::RowMajor>(b, q_.data(), k_.data(), v_.data(), bias, y_.data());
          matrix<Eigen::RowMajor>(out, w_.queries, w_.value_size) = y_.template cast<Stored>();
        } else if (w_.order == Order::kColumnMajor) {
          if constexpr (kColumnMajor) attend<Eigen::ColMajor>(b, q, k, v, bias, out);
        } else {
          attend<Eigen::RowMajor>(b, q, k, v, bias, out);
        }
      }
    }
  }

 private:
  static constexpr bool kConverts = !std::is_same_v<Stored, Scalar>;
  static constexpr bool kColumnMajor = serves(storage_of<Stored>, Order::kColumnMajor);

  template <int kOrder, class T>
  static auto matrix(T* data, Index rows, Index columns) {
    using Matrix = Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic, Eigen::Dynamic, kOrder>;
    return Eigen::Map<std::conditional_t<std::is_const_v<T>, const Matrix, Matrix>>(data, rows,
                                                                                    columns);
  }

  template <int kOrder>
  void attend(Index b, const Scalar* q_data, const Scalar* k_data, const Scalar* v_data,
              const RowMatrix<Scalar>& bias, Scalar* y_data) {
    const auto q = matrix<kOrder>(q_data, w_.queries, w_.head_size);
    const auto k = matrix<kOrder>(k_data, w_.keys, w_.head_size);
    const auto v = matrix<kOrder>(v_data, w_.keys, w_.value_size);
    auto y = matrix<kOrder>(y_data, w_.queries, w_.value_size);
    const Scalar scale = 1 / std::sqrt(static_cast<Scalar>(w_.head_size));
    scores_.noalias() = scale * q * k.transpose();
    for (Index i = 0; i < w_.queries; ++i) {
      const Index visible = visible_keys(w_, b, i);
      auto row = scores_.row(i).head(visible);
      if (w_.mask == Mask::kBias) row += bias.row(i);
      row = (row.array() - row.maxCoeff()).exp();
      sums_(i) = row.sum();
      scores_.row(i).tail(w_.keys - visible).setZero();
    }
    y.noalias() = scores_ * v;
    if constexpr (kOrder == Eigen::RowMajor) {
      for (Index i = 0; i < w_.queries; ++i) y.row(i) /= sums_(i);
    } else {
      y.array().colwise() /= sums_.array();
    }
  }

  Workload w_;
  RowMatrix<Scalar> scores_;
  Eigen::Matrix<Scalar, Eigen::Dynamic, 1> sums_;
  RowMatrix<Scalar> q_, k_, v_, y_;  // only where storage is narrow
};

}  // namespace bench
