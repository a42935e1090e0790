// bench/support/gradient_by_hand.h: forward and backward pass of attention as a good user of Eigen writes them.
// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>
#include <cmath>
#include <type_traits>
#include <utility>
#include <vector>

#include "operands.h"
#include "workloads.h"

namespace bench {

/// What a pass gives, each of [batch, head, token, feature]; dbias is summed over heads.
template <class Scalar>
struct Gradients {
  using Array = Eigen::Array<Scalar, Eigen::Dynamic, 1>;
  explicit Gradients(const Workload& w)
      : y(output_size(w)),
        query(w.batch * w.query_heads * w.queries * w.head_size),
        key(w.batch * w.key_heads * w.keys * w.head_size),
        value(w.batch * w.key_heads * w.keys * w.value_size),
        bias(w.mask == Mask::kBias ? w.queries : 0, w.keys) {}

  Array y, query, key, value;
  RowMatrix<Scalar> bias;
};

/// Which pairs stay, and what those are multiplied by; empty: all.
struct KeptPairs {
  std::vector<RowMatrix<float>> of_head;  ///< 1 or 0 of each pair
  double scale = 1;
};

// WHAT  For each sequence and head (row-major, as many keys' heads as queries'):
//         S = scale Q Kᵀ + bias, P = exp(S − max) and l by rows, Y = (D∘P) V / l
//       then, when all of Y is known, as a loss would need it,
//         G = dY / l, δ = rows of dY · Y / l, dV = (D∘P)ᵀ G, dP = G Vᵀ
//         dS = P ∘ (D∘dP − δ), dQ = scale dS K, dK = scale dSᵀ Q
// WHY   The baseline is worth beating only if it is written well: all products are Eigen's own
//       (noalias), everything is allocated beforehand, P is kept instead of computed again, the
//       divisions are of rows of features, and what is done by rows happens while they are in
//       cache. In double it is the reference of the library's gradients.
// EDGES Products are whole also under a causal mask; hidden weights are set to 0, not found as
//       exp(−∞). Which pairs dropout keeps is not drawn here, but given.
template <class Scalar>
class GradientByHand {
  template <class T>
  using Map = Eigen::Map<std::conditional_t<std::is_const_v<T>,
                                            const RowMatrix<std::remove_const_t<T>>, RowMatrix<T>>>;

 public:
  explicit GradientByHand(const Workload& w)
      : w_(w),
        weights_(static_cast<std::size_t>(w.batch * w.query_heads),
                 RowMatrix<Scalar>(w.queries, w.keys)),
        score_gradients_(w.queries, w.keys),
        dropped_(w.queries, w.keys),
        scaled_(w.queries, w.value_size),
        sums_(w.queries, w.batch * w.query_heads) {}

  /// Y of all heads. Where `kept` holds no head nothing is dropped.
  template <class Array>
  void forward(const Array& q_all, const Array& k_all, const Array& v_all,
               const RowMatrix<Scalar>& bias, const KeptPairs& kept, Gradients<Scalar>& to) {
    for (Index n = 0; n < w_.batch * w_.query_heads; ++n) {
      const auto q = head(q_all.data(), n, w_.queries, w_.head_size),
                 k = head(k_all.data(), n, w_.keys, w_.head_size),
                 v = head(v_all.data(), n, w_.keys, w_.value_size);
      auto y = head(to.y.data(), n, w_.queries, w_.value_size);
      RowMatrix<Scalar>& p = weights_[static_cast<std::size_t>(n)];
      p.noalias() = scale() * q * k.transpose();
      for (Index i = 0; i < w_.queries; ++i) {
        const Index visible = visible_keys(w_, 0, i);
        auto row = p.row(i).head(visible);
        if (w_.mask == Mask::kBias) row += bias.row(i);
        row = (row.array() - row.maxCoeff()).exp();
        sums_(i, n) = row.sum();
        p.row(i).tail(w_.keys - visible).setZero();
      }
      y.noalias() = dropped(p, kept, n) * v;
      for (Index i = 0; i < w_.queries; ++i) y.row(i) *= Scalar(kept.scale) / sums_(i, n);
    }
  }

  /// All gradients, behind forward() of the same.
  template <class Array>
  void backward(const Array& q_all, const Array& k_all, const Array& v_all, const Array& dy_all,
                const KeptPairs& kept, Gradients<Scalar>& to) {
    to.bias.setZero();
    for (Index n = 0; n < w_.batch * w_.query_heads; ++n) {
      const auto q = head(q_all.data(), n, w_.queries, w_.head_size),
                 k = head(k_all.data(), n, w_.keys, w_.head_size),
                 v = head(v_all.data(), n, w_.keys, w_.value_size),
                 dy = head(dy_all.data(), n, w_.queries, w_.value_size),
                 y = head(std::as_const(to.y).data(), n, w_.queries, w_.value_size);
      auto dq = head(to.query.data(), n, w_.queries, w_.head_size);
      auto dk = head(to.key.data(), n, w_.keys, w_.head_size);
      auto dv = head(to.value.data(), n, w_.keys, w_.value_size);
      const RowMatrix<Scalar>& p = weights_[static_cast<std::size_t>(n)];
      for (Index i = 0; i < w_.queries; ++i)
        scaled_.row(i) = dy.row(i) * (Scalar(kept.scale) / sums_(i, n));
      dv.noalias() = dropped(p, kept, n).transpose() * scaled_;
      score_gradients_.noalias() = scaled_ * v.transpose();
      for (Index i = 0; i < w_.queries; ++i) {
        auto ds = score_gradients_.row(i).array();
        if (!kept.of_head.empty()) ds *= keep(kept, n).row(i).array().template cast<Scalar>();
        ds = p.row(i).array() * (ds - dy.row(i).dot(y.row(i)) / sums_(i, n));
      }
      if (w_.mask == Mask::kBias) to.bias += score_gradients_;
      dq.noalias() = scale() * score_gradients_ * k;
      dk.noalias() = scale() * score_gradients_.transpose() * q;
    }
  }

 private:
  Scalar scale() const { return 1 / std::sqrt(static_cast<Scalar>(w_.head_size)); }
  template <class T>
  static Map<T> head(T* all, Index n, Index tokens, Index features) {
    return Map<T>(all + n * tokens * features, tokens, features);
  }
  static const RowMatrix<float>& keep(const KeptPairs& kept, Index n) {
    return kept.of_head[static_cast<std::size_t>(n)];
  }
  /// Weights of head n as they meet the values.
  const RowMatrix<Scalar>& dropped(const RowMatrix<Scalar>& p, const KeptPairs& kept, Index n) {
    if (kept.of_head.empty()) return p;
    dropped_ = p.cwiseProduct(keep(kept, n).template cast<Scalar>());
    return dropped_;
  }

  Workload w_;
  std::vector<RowMatrix<Scalar>> weights_;  ///< of each head, before the division
  RowMatrix<Scalar> score_gradients_, dropped_, scaled_;
  Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic> sums_;
};

}  // namespace bench
