// attn/call/state_store.h: the memory of an AttentionState, how a forward call fills it, and what a
// backward call asks of it.
// SPDX-License-Identifier: MIT
#pragma once

#include "../base/aligned_buffer.h"
#include "call_digest.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// What lies in a state: m and l of each row and head, then O; and the call that they are of. It is
/// filled only once all of it is written: a call that throws in its middle leaves an empty one.
template <class Scalar>
class StateStore {
 public:
  /// Not so once it has been moved from: its memory is another's.
  bool filled() const { return filled_ && memory_.size() >= scalars(queries_, heads_, value_dim_); }
  Index queries() const { return queries_; }
  Index heads() const { return heads_; }
  Index value_dim() const { return value_dim_; }

  static Index scalars(Index queries, Index heads, Index value_dim) {
    return 2 * kernel::whole_lines(queries * heads) + queries * heads * value_dim;
  }
  /// Room for n scalars; a state that does not fit is lost.
  void reserve(Index n) {
    if (n <= memory_.size()) return;
    memory_.grow(n);
    filled_ = false;
  }
  /// New memory for n scalars, where it has less.
  AlignedBuffer<Scalar> fresh(Index n) const {
    return n > memory_.size() ? AlignedBuffer<Scalar>(n) : AlignedBuffer<Scalar>();
  }

  /// Takes sizes, and new memory if there is some. It is empty then, until complete().
  void take(Index queries, Index heads, Index value_dim, AlignedBuffer<Scalar>&& fresh) {
    if (fresh.size() > 0) memory_ = std::move(fresh);
    queries_ = queries;
    heads_ = heads;
    value_dim_ = value_dim;
    filled_ = false;
  }
  void complete(const CallDigest<Scalar>& digest) {
    digest_ = digest;
    has_digest_ = filled_ = true;
  }
  /// The same of a forward pass that nothing is known of.
  void complete() {
    has_digest_ = false;
    filled_ = true;
  }

  /// The rows, in memory of scalars(…) numbers.
  template <class T>
  static kernel::StateRows<T> rows_in(T* memory, Index queries, Index heads, Index value_dim) {
    const Index numbers = kernel::whole_lines(queries * heads);
    return {memory, memory + numbers, memory + 2 * numbers, heads, value_dim};
  }
  Scalar* data() { return memory_.data(); }
  kernel::StateRows<Scalar> rows() { return rows_in(memory_.data(), queries_, heads_, value_dim_); }
  kernel::StateRows<const Scalar> rows() const {
    return rows_in(memory_.data(), queries_, heads_, value_dim_);
  }

  /// Refuses a state that is not of this very call.
  template <class Bound>
  void check(const Bound& bound) const {
    const CallShape& shape = bound.shape;
    const char* const function = shape.function;
    if (!filled())
      fail(text(function, ": the state is empty: give save_state(state) to the forward call"));
    const Index queries = shape.queries.total();
    if (heads_ != shape.heads || queries_ != queries) {
      fail(text(function, ": the state is of ", heads_, " heads and ", queries_,
                " query rows, this call has ", shape.heads, " and ", queries));
    }
    if (value_dim_ != shape.value_dim) {
      fail(text(function, ": the state is of ", value_dim_,
                " output features for each head, this call has ", shape.value_dim));
    }
    if (has_digest_) digest_.check(function, CallDigest<Scalar>::of(bound));
  }

 private:
  AlignedBuffer<Scalar> memory_;
  Index queries_ = 0, heads_ = 0, value_dim_ = 0;
  bool filled_ = false, has_digest_ = false;
  CallDigest<Scalar> digest_;
};

/// A state about to be filled by a call: until commit() it is as it was.
template <class Scalar>
class PreparedState {
 public:
  template <class Bound>
  PreparedState(StateStore<Scalar>& store, const Bound& bound)
      : store_(&store),
        queries_(bound.shape.queries.total()),
        heads_(bound.shape.heads),
        value_dim_(bound.shape.value_dim),
        fresh_(store.fresh(StateStore<Scalar>::scalars(queries_, heads_, value_dim_))),
        digest_(CallDigest<Scalar>::of(bound)),
        to(StateStore<Scalar>::rows_in(fresh_.size() > 0 ? fresh_.data() : store.data(), queries_,
                                       heads_, value_dim_)) {}

  void commit() { store_->take(queries_, heads_, value_dim_, std::move(fresh_)); }
  void complete() { store_->complete(digest_); }

 private:
  StateStore<Scalar>* store_;
  Index queries_, heads_, value_dim_;
  AlignedBuffer<Scalar> fresh_;
  CallDigest<Scalar> digest_;

 public:
  kernel::StateRows<Scalar> to;
};

/// save_state(state).
template <class Scalar>
struct SaveState : option_base {
  using Kind = StateOption;
  StateStore<Scalar>* store;
  explicit SaveState(StateStore<Scalar>& s) : store(&s) {}

  template <class Bound>
  PreparedState<Scalar> prepare(const Bound& bound) const {
    static_assert(std::is_same_v<std::remove_const_t<decltype(bound.scale)>, Scalar>,
                  "attn::save_state: the state has another scalar than the call computes in: "
                  "AttentionState<float> for float, half and bfloat16");
    return {*store, bound};
  }
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
