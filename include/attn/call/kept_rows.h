// attn/call/kept_rows.h: the memory of a LinearState, how a linear layer's call fills it, and what
// a backward pass asks of it.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <string_view>
#include <utility>

#include "../base/aligned_buffer.h"
#include "../base/asked.h"
#include "../base/check.h"
#include "../kernel/matrix_rows.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// A call of a linear layer as its state remembers it.
struct LinearDigest {
  Index rows = 0, in_features = 0, out_features = 0;
  const char* activation = nullptr;  ///< how messages call it; null where there is none
};

/// What lies in a state: X·W + b, row by row, and the call that it is of. It is filled only once
/// all of it is written: a call that throws in its middle leaves an empty one.
template <class Scalar>
class LinearStateStore {
 public:
  /// Not so once it has been moved from: its memory is another's.
  bool filled() const { return filled_ && memory_.size() >= call_.rows * call_.out_features; }
  const LinearDigest& call() const { return call_; }
  kernel::Rows<const Scalar> rows() const { return rows_in(memory_.data(), call_); }

  /// Refuses a state that is not of this very call.
  void check(const char* function, const LinearDigest& now) const {
    if (!filled())
      fail(text(function, ": the state is empty: give save_state(state) to the forward call"));
    const auto check = [&](const char* name, Index had, Index has) {
      if (had != has)
        fail(text(function, ": the state is of ", had, " ", name, ", this call has ", has));
    };
    check("rows", call_.rows, now.rows);
    check("input features", call_.in_features, now.in_features);
    check("output features", call_.out_features, now.out_features);
    if (std::string_view(name_of(call_)) != name_of(now)) {
      fail(text(function, ": the forward pass had ", name_of(call_), ", this call ",
                now.activation == nullptr ? "none" : now.activation));
    }
  }

 private:
  template <class>
  friend class PreparedLinearState;

  static const char* name_of(const LinearDigest& call) {
    return call.activation == nullptr ? "no activation" : call.activation;
  }
  template <class T>
  static kernel::Rows<T> rows_in(T* memory, const LinearDigest& call) {
    return {memory, call.rows, call.out_features};
  }

  AlignedBuffer<Scalar> memory_;
  LinearDigest call_;
  bool filled_ = false;
};

/// A state about to be filled by a call: until commit() it is as it was.
template <class Scalar>
class PreparedLinearState {
  using Store = LinearStateStore<Scalar>;

 public:
  PreparedLinearState(Store& store, const LinearDigest& call) : store_(&store), call_(call) {
    const Index all = call.rows * call.out_features;
    if (all > store.memory_.size()) fresh_ = AlignedBuffer<Scalar>(all);
    to = Store::rows_in(fresh_.size() > 0 ? fresh_.data() : store.memory_.data(), call);
  }

  void commit() {
    if (fresh_.size() > 0) store_->memory_ = std::move(fresh_);
    store_->call_ = call_;
    store_->filled_ = false;
  }
  void complete() { store_->filled_ = true; }

  kernel::Rows<Scalar> to;

 private:
  Store* store_;
  LinearDigest call_;
  AlignedBuffer<Scalar> fresh_;
};
/// In its place where nothing is kept.
struct NothingKept {
  kernel::NoRows to;
  void commit() const {}
  void complete() const {}
};

struct LinearStateOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: two save_state in one call");
  }
};
/// save_state(state) of a linear layer.
template <class Scalar_>
struct SaveLinearState : option_base {
  using Kind = LinearStateOption;
  using Scalar = Scalar_;
  LinearStateStore<Scalar>* store;
  explicit SaveLinearState(LinearStateStore<Scalar>& s) : store(&s) {}
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
