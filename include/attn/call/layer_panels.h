// attn/call/layer_panels.h: a layer's weights as the register tile reads them. Plumbing of
// multi_head_attention.h.
// SPDX-License-Identifier: MIT
#pragma once

#include "../base/aligned_buffer.h"
#include "../kernel/panel_weights.h"
#include "../multi_head_weights.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Memory of a packed weight matrix: in the object where its size is known to the compiler.
template <class Scalar, Index Size>
class PanelMemory {
 public:
  void resize(Index) {}
  Scalar* data() { return data_; }
  const Scalar* data() const { return data_; }

 private:
  alignas(64) Scalar data_[std::size_t{Size}] = {};
};
template <class Scalar>
class PanelMemory<Scalar, Eigen::Dynamic> {
 public:
  void resize(Index n) {
    if (data_.size() != n) data_ = AlignedBuffer<Scalar>(n);
  }
  Scalar* data() { return data_.data(); }
  const Scalar* data() const { return data_.data(); }

 private:
  AlignedBuffer<Scalar> data_;
};

/// One projection: W in panels as it is stored, b in the scalar of the computation.
template <class Storage, int Inputs, int Outputs = Inputs>
class PackedProjection {
 public:
  using Scalar = compute_t<Storage>;
  using Panels = kernel::PanelWeights<Scalar, Storage>;

  template <class Weight, class Bias>
  void pack(const Weight& w, const Bias& b) {
    if constexpr (std::is_same_v<Storage, Scalar>) {
      take_sizes(w.rows(), w.cols());
      kernel::pack_weights<Simd<Scalar>>(
          kernel::Source<Scalar>{w.data(), w.rowStride(), w.colStride()}, inputs_, outputs_,
          panels_.data());
    } else {
      pack_weight(w.rows(), w.cols(), [&](Index c, Index n) { return w(c, n); });
    }
    pack_bias(b.size(), [&](Index n) { return b(n); });
  }
  /// Elements by a function.
  template <class Element>
  void pack_weight(Index inputs, Index outputs, const Element& element) {
    take_sizes(inputs, outputs);
    kernel::pack_weights<Scalar>(inputs, outputs, element, panels_.data());
  }
  /// After the weight.
  template <class Element>
  void pack_bias(Index size, const Element& element) {
    const Index columns = Panels::columns(outputs_);
    bias_.resize(columns);
    for (Index n = 0; n < columns; ++n) bias_.data()[n] = n < size ? Scalar(element(n)) : Scalar(0);
  }
  /// Into matrices of the same shapes, bit by bit as they were; a bias of size 0 is none.
  template <class Weight, class Bias>
  void unpack(Weight& w, Bias& b) const {
    const Panels panels = view();
    for (Index n = 0; n < w.cols(); ++n) {
      for (Index c = 0; c < w.rows(); ++c) w(c, n) = panels(c, n);
    }
    for (Index n = 0; n < b.size(); ++n) b(n) = Storage(panels.bias[n]);
  }
  Panels view() const { return {panels_.data(), bias_.data(), inputs_, outputs_}; }
  /// Not so once it has been moved from.
  bool holds_weights() const { return panels_.data() != nullptr; }

 private:
  void take_sizes(Index inputs, Index outputs) {
    inputs_ = inputs;
    outputs_ = outputs;
    panels_.resize(Panels::size(inputs, outputs));
  }

  static constexpr bool kFixed = Inputs != Eigen::Dynamic && Outputs != Eigen::Dynamic;
  PanelMemory<Storage, kFixed ? Panels::size(Inputs, Outputs) : Index(Eigen::Dynamic)> panels_;
  PanelMemory<Scalar, kFixed ? Panels::columns(Outputs) : Index(Eigen::Dynamic)> bias_;
  Index inputs_ = 0, outputs_ = 0;
};

/// All four of a layer.
template <class Storage, int Features>
struct PackedLayer {
  PackedProjection<Storage, Features> query, key, value, output;

  template <class Weights>
  void pack(const Weights& w) {
    query.pack(w.query, w.query_bias);
    key.pack(w.key, w.key_bias);
    value.pack(w.value, w.value_bias);
    output.pack(w.output, w.output_bias);
  }
  template <class Weights>
  void unpack(Weights& w) const {
    query.unpack(w.query, w.query_bias);
    key.unpack(w.key, w.key_bias);
    value.unpack(w.value, w.value_bias);
    output.unpack(w.output, w.output_bias);
  }
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
