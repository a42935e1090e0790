// attn/call/partial_store.h: the memory of a Partial, how a call fills it, how others are merged
// into it.
// SPDX-License-Identifier: MIT
#pragma once

#include "../base/aligned_buffer.h"
#include "../base/sizes.h"
#include "../kernel/partial_rows.h"
#include "output_memory.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// m, l and o of all rows, one key/value head after the other; once it is merged, also what
/// rounding has taken from l and o, so that a state merged with one part after the other has the
/// bits of all of them merged at once.
template <class Scalar>
class PartialStore {
 public:
  struct Sizes {
    Index queries = 0, heads = 0, kv_heads = 1, value_dim = 0;

    Index rows() const { return queries * (heads / kv_heads); }  ///< under each key/value head
    Index total() const { return queries * heads * (value_dim + 2); }
    bool operator==(const Sizes& other) const {
      return queries == other.queries && heads == other.heads && kv_heads == other.kv_heads &&
             value_dim == other.value_dim;
    }
  };

  /// Not so once it has been moved from: its memory is another's.
  bool filled() const { return filled_ && memory_.size() >= sizes_.total(); }
  const Sizes& sizes() const { return sizes_; }
  Scalar* data() { return memory_.data(); }
  const Scalar* data() const { return memory_.data(); }

  /// New memory for these sizes, where it has less.
  AlignedBuffer<Scalar> fresh(const Sizes& sizes) const {
    return sizes.total() > memory_.size() ? AlignedBuffer<Scalar>(sizes.total())
                                          : AlignedBuffer<Scalar>();
  }
  /// Takes sizes, and new memory if there is some. It is empty then, until complete().
  void take(const Sizes& sizes, AlignedBuffer<Scalar>&& fresh) {
    if (fresh.size() > 0) memory_ = std::move(fresh);
    sizes_ = sizes;
    filled_ = merged_ = false;
  }
  void complete() { filled_ = true; }

  /// Becomes another one, in its own memory where that is enough.
  void assign(const PartialStore& other) {
    take(other.sizes_, fresh(other.sizes_));
    if (other.merged_) open();
    std::copy_n(other.data(), sizes_.total(), data());
    if (other.merged_) std::copy_n(other.lost_.data(), sizes_.total(), lost_.data());
    complete();
  }
  /// Merges the state of keys behind its own.
  void merge(const PartialStore& next) {
    open();
    for (Index h = 0; h < sizes_.kv_heads; ++h) merge_head(h, next.data() + h * head_size());
  }
  /// The state of no key, to merge others into, head by head. It is empty until complete().
  void start(const Sizes& sizes) {
    take(sizes, fresh(sizes));
    for (Index h = 0; h < sizes.kv_heads; ++h) {
      const auto nothing = rows(data() + h * head_size());
      std::fill_n(nothing.maximum, sizes.rows(), kernel::no_maximum<Scalar>());
      std::fill_n(nothing.sum, head_size() - sizes.rows(), Scalar(0));
    }
    open();
  }
  /// Merges the rows under one key/value head with `next`, head_size() numbers, once open().
  void merge_head(Index h, const Scalar* next) {
    const kernel::PartialMerge<Scalar> merging(scratch_.data(), sizes_.value_dim);
    const auto sums = rows(data() + h * head_size()), lost = rows(lost_.data() + h * head_size());
    const auto of_next = rows(next);
    merging.each(sizes_.rows(), [&](Index first, Index count) {
      const auto sums_here = sums.from(first), lost_here = lost.from(first);
      merging.open(count, sums_here, &lost_here);
      merging.add(count, of_next.from(first));
      merging.close(count, sums_here, lost_here);
    });
  }
  /// Numbers under a key/value head, and what those have lost since open(), which are as many.
  Index head_size() const {
    return kernel::PartialRows<Scalar>::total(sizes_.rows(), sizes_.value_dim);
  }
  Scalar* lost_data() { return lost_.data(); }
  /// Calls f(head, first, count) for some rows under a key/value head after the other, which
  /// `merging` has opened by then.
  template <class F>
  void each_opened(const kernel::PartialMerge<Scalar>& merging, const F& f) const {
    for (Index h = 0; h < sizes_.kv_heads; ++h) {
      const auto sums = rows(data() + h * head_size()),
                 lost = rows((merged_ ? lost_.data() : data()) + h * head_size());
      merging.each(sizes_.rows(), [&](Index first, Index count) {
        const auto lost_here = lost.from(first);
        merging.open(count, sums.from(first), merged_ ? &lost_here : nullptr);
        f(h, first, count);
      });
    }
  }

 private:
  /// Room for what is lost, which is nothing yet; where memory runs out all is as it was.
  void open() {
    scratch_.grow(kernel::PartialMerge<Scalar>::total(sizes_.value_dim));
    if (merged_) return;
    lost_.grow(sizes_.total());
    std::fill_n(lost_.data(), sizes_.total(), Scalar(0));
    merged_ = true;
  }
  template <class T>
  kernel::PartialRows<T> rows(T* memory) const {
    return {memory, sizes_.rows(), sizes_.value_dim};
  }

  AlignedBuffer<Scalar> memory_, lost_, scratch_;
  Sizes sizes_;
  bool filled_ = false, merged_ = false;
};

/// A partial state about to be filled by a call: until commit() it is as it was.
template <class Scalar>
class PreparedPartial {
 public:
  PreparedPartial(PartialStore<Scalar>& store, const CallShape& shape)
      : store_(&store),
        sizes_{shape.queries.total(), shape.heads, shape.kv_heads, shape.value_dim},
        fresh_(store.fresh(sizes_)),
        to{fresh_.size() > 0 ? fresh_.data() : store.data(), sizes_.rows(), sizes_.value_dim} {}

  void commit() { store_->take(sizes_, std::move(fresh_)); }
  void complete() { store_->complete(); }

 private:
  PartialStore<Scalar>* store_;
  typename PartialStore<Scalar>::Sizes sizes_;
  AlignedBuffer<Scalar> fresh_;

 public:
  kernel::PartialTarget<Scalar> to;
};

/// save_partial(p). It stands where into(Y) does: no other output shares its memory.
template <class Scalar_>
struct SavePartial : option_base {
  using Kind = PartialOption;
  using Scalar = Scalar_;
  PartialStore<Scalar>* store;
  explicit SavePartial(PartialStore<Scalar>& s) : store(&s) {}

  /// What it holds is all that an input could be a view of: numbers().
  OutputMemory<Scalar> check(const CallShape& shape) const {
    check_product(shape.function, "query rows x heads x (value_dim + 2)", shape.queries.total(),
                  shape.heads, Count(shape.value_dim) + 2);
    const Index held = store->filled() ? store->sizes().total() : 0;
    return {{store->data(), 1, 1, held, 1, 0, 0, 1, 1}, true, store};
  }
  PreparedPartial<Scalar> prepare(const CallShape& shape, const OutputMemory<Scalar>&) const {
    return {*store, shape};
  }
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
