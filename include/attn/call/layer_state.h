// attn/call/layer_state.h: the memory of a MultiHeadState, and how a layer's call fills it.
// SPDX-License-Identifier: MIT
#pragma once

#include <utility>

#include "layer_scratch.h"
#include "state_store.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Where projected queries, keys and values lie, rows of heads side by side, with the strides of
/// LayerScratch.
template <class T>
struct ProjectedRows {
  T *query = nullptr, *key = nullptr, *value = nullptr;

  template <class Size>
  static ProjectedRows in(T* memory, const Size& size) {
    return {memory, memory + size.query(), memory + size.query() + size.key()};
  }
  template <class Size>
  static Index scalars(const Size& size) {
    return size.query() + size.key() + size.value();
  }
};

/// What lies in a state: the state of the layer's attention, and the projected rows, which are
/// there whenever that is filled.
template <class Scalar>
struct LayerStateStore {
  StateStore<Scalar> attention;
  AlignedBuffer<Scalar> rows;

  LayerStateStore() = default;
  LayerStateStore(const LayerStateStore&) = default;
  LayerStateStore(LayerStateStore&&) = default;
  LayerStateStore& operator=(const LayerStateStore& other) {
    LayerStateStore copied(other);  // all of it or nothing
    return *this = std::move(copied);
  }
  LayerStateStore& operator=(LayerStateStore&&) = default;

  /// As they lie in a state of a call of these sizes; nowhere in one of a smaller call, which is
  /// refused later.
  template <class Size>
  ProjectedRows<const Scalar> projected(const Size& size) const {
    using Rows = ProjectedRows<const Scalar>;
    return rows.size() < Rows::scalars(size) ? Rows{} : Rows::in(rows.data(), size);
  }
};

/// save_state(state) of a layer.
template <class Scalar_>
struct SaveLayerState : option_base {
  using Kind = LayerStateOption;
  using Scalar = Scalar_;
  LayerStateStore<Scalar>* store;
  explicit SaveLayerState(LayerStateStore<Scalar>& s) : store(&s) {}
};

/// The projected rows of a state about to be filled by a call: until commit() it is as it was.
template <class Scalar>
class PreparedProjectedRows {
 public:
  template <class Size>
  PreparedProjectedRows(LayerStateStore<Scalar>& store, const Size& size) : store_(&store) {
    const Index all = ProjectedRows<Scalar>::scalars(size);
    if (all > store.rows.size()) fresh_ = AlignedBuffer<Scalar>(all);
    to = ProjectedRows<Scalar>::in(fresh_.size() > 0 ? fresh_.data() : store.rows.data(), size);
  }
  void commit() {
    if (fresh_.size() > 0) store_->rows = std::move(fresh_);
  }

  ProjectedRows<Scalar> to;

 private:
  LayerStateStore<Scalar>* store_;
  AlignedBuffer<Scalar> fresh_;
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
