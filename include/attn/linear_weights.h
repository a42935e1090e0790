// attn/linear_weights.h: the sizes of a linear layer, and its weights as plain matrices: Y = X·W +
// b.
// SPDX-License-Identifier: MIT
#pragma once

#include "base/sizes.h"
#include "base/weight_matrix.h"
#include "types.h"

namespace attn {
inline namespace ATTN_ABI {

/// The sizes of a linear layer: features of a row of X and of a row of Y.
///
/// Requires   positive sizes                (std::invalid_argument from the layer otherwise)
/// Semantics  no bias unless bias() asks for one
class LinearOptions {
 public:
  constexpr LinearOptions(Index in_features, Index out_features)
      : in_features_(in_features), out_features_(out_features) {}

  /// A bias for each output feature.
  [[nodiscard]] constexpr LinearOptions bias() const {
    LinearOptions changed = *this;
    changed.bias_ = true;
    return changed;
  }

  constexpr Index in_features() const { return in_features_; }
  constexpr Index out_features() const { return out_features_; }
  constexpr bool has_bias() const { return bias_; }

  /// Refuses sizes that make no layer.
  void check(const char* function) const {
    detail::check_size(function, "in_features", in_features_, 1);
    detail::check_size(function, "out_features", out_features_, 1);
    detail::check_product(function, "in_features x out_features", in_features_, out_features_);
  }

 private:
  Index in_features_, out_features_;
  bool bias_ = false;
};

/// The weights of Linear, Y = X·W + b:
///
///   kernel()   W  [in_features, out_features]     PyTorch's [out, in] transposed, Keras' as it is
///   bias()     b  [out_features]                  of size 0 where the layer has none
///
/// \tparam Storage  what the weights are stored in: half and bfloat16 compute in float
/// \tparam In, Out  compile-time sizes, or Eigen::Dynamic
template <class Storage, int In = Eigen::Dynamic, int Out = Eigen::Dynamic>
class LinearWeights {
 public:
  using Scalar = Storage;
  using Kernel = detail::WeightMatrix<
      Eigen::Matrix<Storage, In, Out, In == 1 && Out != 1 ? Eigen::RowMajor : Eigen::ColMajor>>;
  using Bias =
      detail::WeightMatrix<Eigen::Matrix<Storage, 1, Eigen::Dynamic, Eigen::RowMajor, 1, Out>>;

  /// All zero.
  explicit LinearWeights(const LinearOptions& sizes) {
    kernel_.setZero(sizes.in_features(), sizes.out_features());
    bias_.setZero(sizes.has_bias() ? sizes.out_features() : 0);
  }

  Kernel& kernel() { return kernel_; }
  const Kernel& kernel() const { return kernel_; }
  Bias& bias() { return bias_; }
  const Bias& bias() const { return bias_; }

 private:
  Kernel kernel_;
  Bias bias_;
};

namespace detail {

/// Refuses a weight of another shape than the layer's.
inline void check_linear_weight(const char* function, const LinearOptions& sizes, Index rows,
                                Index cols) {
  const Index in = sizes.in_features(), out = sizes.out_features();
  if (rows == in && cols == out) return;
  fail(text(function, ": the weight is ", shape_text(rows, cols), ", needs ", shape_text(in, out),
            rows == out && cols == in ? ", in x out: write W.transpose()" : ""));
}
/// The same of a bias, a vector of either shape; size 0 where the layer has none.
inline void check_linear_bias(const char* function, const LinearOptions& sizes, Index rows,
                              Index cols) {
  const Index has = rows * cols, needs = sizes.has_bias() ? sizes.out_features() : 0;
  if (has == needs && (has == 0 || rows == 1 || cols == 1)) return;
  if (needs == 0) {
    fail(text(function, ": the bias is given, the layer has none; it has where it is made with ",
              "LinearOptions(...).bias()"));
  }
  fail(text(function, ": the bias is ", shape_text(rows, cols), ", needs ", needs, " numbers"));
}

}  // namespace detail

}  // namespace ATTN_ABI
}  // namespace attn
