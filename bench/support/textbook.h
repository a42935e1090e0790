// bench/support/textbook.h: the formula as a good user of Eigen writes it by hand.
// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>
#include <cmath>
#include <type_traits>

#include "operands.h"
#include "workloads.h"

namespace bench {

// WHAT  For each sequence and head: S = scale Q Kᵀ, bias or mask, softmax by rows, Y = P V. All
//       row-major, so that the passes over a row of S run along memory.
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

  explicit Textbook(const Workload& w)
      : w_(w), scores_(w.queries, w.keys), sums_(w.queries), y_(w.queries, w.head_size) {
    if constexpr (kConverts) {
      q_.resize(w.queries, w.head_size);
      k_.resize(w.keys, w.head_size);
      v_.resize(w.keys, w.head_size);
    }
  }

  /// y: [batch, head, token, feature], as the operands.
  void operator()(const Operands<Stored>& x, const RowMatrix<Scalar>& bias, Stored* y) {
    const Index d = w_.head_size;
    const Index group = w_.query_heads / w_.key_heads;
    for (Index b = 0; b < w_.batch; ++b) {
      for (Index h = 0; h < w_.query_heads; ++h) {
        const Index query_head = b * w_.query_heads + h;
        const Index key_head = b * w_.key_heads + h / group;
        const auto q = load(x.q.data() + query_head * w_.queries * d, w_.queries, q_);
        const auto k = load(x.k.data() + key_head * w_.keys * d, w_.keys, k_);
        const auto v = load(x.v.data() + key_head * w_.keys * d, w_.keys, v_);
        Eigen::Map<RowMatrix<Stored>> out(y + query_head * w_.queries * d, w_.queries, d);
        if constexpr (kConverts) {
          attend(b, q, k, v, bias, y_);
          out = y_.template cast<Stored>();
        } else {
          attend(b, q, k, v, bias, out);
        }
      }
    }
  }

 private:
  static constexpr bool kConverts = !std::is_same_v<Stored, Scalar>;
  using Input = Eigen::Map<const RowMatrix<Scalar>>;

  Input load(const Stored* from, Index rows, RowMatrix<Scalar>& converted) const {
    if constexpr (kConverts) {
      using From = Eigen::Map<const RowMatrix<Stored>>;
      converted = From(from, rows, w_.head_size).template cast<Scalar>();
      return Input(converted.data(), rows, w_.head_size);
    } else {
      return Input(from, rows, w_.head_size);
    }
  }

  template <class Output>
  void attend(Index b, const Input& q, const Input& k, const Input& v,
              const RowMatrix<Scalar>& bias, Output& y) {
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
    for (Index i = 0; i < w_.queries; ++i) y.row(i) /= sums_(i);
  }

  Workload w_;
  RowMatrix<Scalar> scores_;
  Eigen::Matrix<Scalar, Eigen::Dynamic, 1> sums_;
  RowMatrix<Scalar> q_, k_, v_, y_;  // q_, k_, v_ only where storage is narrow
};

}  // namespace bench
