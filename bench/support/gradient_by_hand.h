// bench/support/gradient_by_hand.h: forward and backward pass of attention as a good user of Eigen writes them.
// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>
#include <cmath>
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
//         G = dY / l, δ = rows of G · Y, dV = (D∘P)ᵀ G, dP = G Vᵀ
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
        scores_(w.queries, w.keys),
        score_gradients_(w.queries, w.keys),
        dropped_(w.queries, w.keys),
        scaled_(w.queries, w.value_size),
        sums_(w.queries) {}

  /// Without `kept.of_head` nothing is dropped. dy: as the output.
  template <class Array>
  void operator()(const Array& q_all, const Array& k_all, const Array& v_all, const Array& dy_all,
                  const RowMatrix<Scalar>& bias, const KeptPairs& kept, bool backward,
                  Gradients<Scalar>& to) {
    to.bias.setZero();
    for (Index n = 0; n < w_.batch * w_.query_heads; ++n) {
      const auto q = head(q_all.data(), n, w_.queries, w_.head_size),
                 k = head(k_all.data(), n, w_.keys, w_.head_size),
                 v = head(v_all.data(), n, w_.keys, w_.value_size),
                 dy = head(dy_all.data(), n, w_.queries, w_.value_size);
      const RowMatrix<float>* const keep =
          kept.of_head.empty() ? nullptr : &kept.of_head[static_cast<std::size_t>(n)];
      auto y = head(to.y.data(), n, w_.queries, w_.value_size);
      const RowMatrix<Scalar>& weights = attend(q, k, v, bias, keep, Scalar(kept.scale), y);
      if (!backward) continue;
      auto dq = head(to.query.data(), n, w_.queries, w_.head_size);
      auto dk = head(to.key.data(), n, w_.keys, w_.head_size);
      auto dv = head(to.value.data(), n, w_.keys, w_.value_size);
      for (Index i = 0; i < w_.queries; ++i) scaled_.row(i) = dy.row(i) / sums_(i);
      dv.noalias() = weights.transpose() * scaled_;
      if (keep != nullptr) dv *= Scalar(kept.scale);
      score_gradients_.noalias() = scaled_ * v.transpose();
      for (Index i = 0; i < w_.queries; ++i) {
        auto ds = score_gradients_.row(i).array();
        const Scalar delta = scaled_.row(i).dot(y.row(i));
        if (keep != nullptr)
          ds *= keep->row(i).array().template cast<Scalar>() * Scalar(kept.scale);
        ds = scores_.row(i).array() * (ds - delta);
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

  /// Y, weights before the division in scores_; returns them as they meet the values.
  template <class In, class Out>
  const RowMatrix<Scalar>& attend(const In& q, const In& k, const In& v,
                                  const RowMatrix<Scalar>& bias, const RowMatrix<float>* keep,
                                  Scalar kept_scale, Out& y) {
    scores_.noalias() = scale() * q * k.transpose();
    for (Index i = 0; i < w_.queries; ++i) {
      const Index visible = visible_keys(w_, 0, i);
      auto row = scores_.row(i).head(visible);
      if (w_.mask == Mask::kBias) row += bias.row(i);
      row = (row.array() - row.maxCoeff()).exp();
      sums_(i) = row.sum();
      scores_.row(i).tail(w_.keys - visible).setZero();
      if (keep != nullptr)
        dropped_.row(i) = scores_.row(i).cwiseProduct(keep->row(i).template cast<Scalar>());
    }
    const RowMatrix<Scalar>& weights = keep == nullptr ? scores_ : dropped_;
    y.noalias() = weights * v;
    for (Index i = 0; i < w_.queries; ++i) y.row(i) *= kept_scale / sums_(i);
    return weights;
  }

  Workload w_;
  RowMatrix<Scalar> scores_, score_gradients_, dropped_, scaled_;
  Eigen::Matrix<Scalar, Eigen::Dynamic, 1> sums_;
};

}  // namespace bench
