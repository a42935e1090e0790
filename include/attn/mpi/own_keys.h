// attn/mpi/own_keys.h: the pass over ranks that writes the gradients of keys and values: all rows
// of the sequence, and of its keys this rank's.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "../call/backward_call.h"
#include "gathered_rounds.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// The keys of this rank's blocks, as a mask beside the call's.
struct OwnKeys : mask_base {
  const mpi::Dealt* dealt;
  explicit OwnKeys(const mpi::Dealt& d) : dealt(&d) {}

  bool operator()(const QueryRow&, Index key) const { return owns(dealt->block_of(key)); }
  KeyRange keys(const QueryRows&) const {
    if (dealt->own().empty()) return {0, 0};
    return {block(dealt->own().front()).begin, block(dealt->own().back()).end};
  }
  KeyRange full_keys(const QueryRows&) const {
    return dealt->own().empty() ? KeyRange{0, 0} : block(dealt->own().front());
  }
  Cover cover(const QueryRows&, KeyRange range) const {
    const Index first = dealt->block_of(range.begin), last = dealt->block_of(range.end - 1);
    for (Index k = first + 1; k <= last; ++k)
      if (owns(k) != owns(first)) return Cover::some;
    return owns(first) ? Cover::all : Cover::none;
  }
  template <class S>
  ATTN_INLINE typename S::Mask lanes(const QueryRow& row, Index key) const {
    const Index k = dealt->block_of(key);
    if (block(k).end >= std::min<Index>(key + S::width, row.keys))
      return interval_lanes<S>({0, owns(k) ? row.keys : 0}, key);
    return asked_lanes<S>(key, row.keys, [&](Index j) { return owns(dealt->block_of(j)); });
  }

 private:
  bool owns(Index k) const { return dealt->owner(k) == dealt->ranks().rank(); }
  KeyRange block(Index k) const { return {dealt->begin(k), dealt->begin(k) + dealt->length(k)}; }
};

/// This rank's keys and values at their place among all, under one head at a time, as the source of
/// a call on the whole sequence (matrix_source.h).
template <class Key, class Value>
class OwnKeysSource {
 public:
  OwnKeysSource(const mpi::Dealt& dealt, Index rounds, const TensorView<const Key>& key,
                const TensorView<const Value>& value)
      : dealt_(dealt), key_(key, dealt.tokens(), rounds), value_(value, dealt.tokens(), rounds) {}

  template <class Asked>
  auto masks(const CallShape& whole, const Asked& asked) const {
    auto all = bind_masks(whole, asked);
    return And<decltype(all), OwnKeys>(std::move(all), OwnKeys(dealt_));
  }
  template <class Asked>
  Index query_offset(const CallShape& whole, Index sequence, const Asked& asked) const {
    return query_offset_of(whole, sequence, asked);
  }
  template <class Scalar, class Angles, class Offset>
  auto rotation(const CallShape& whole, const Rotary<Angles>& option, const Offset& offset) const {
    return FullRotation<Scalar, Angles, Offset>(whole, option, offset);
  }
  auto key(const CallShape&) const { return key_.nothing(); }
  auto value(const CallShape&) const { return value_.nothing(); }
  /// (The pass over this rank's queries has looked at what both read.)
  template <class Visit>
  void visit_memory(const CallShape&, const Visit&) const {}

  template <class Problem>
  void enter(Problem& problem, Index round) const {
    key_.place_own(dealt_, round);
    value_.place_own(dealt_, round);
    problem.key = key_.gathered(round, dealt_.tokens());
    problem.value = value_.gathered(round, dealt_.tokens());
  }

 private:
  const mpi::Dealt& dealt_;
  ExchangedOperand<Key> key_;
  ExchangedOperand<Value> value_;
};

/// What a row's δ is made of, in place of the two that it comes from: −(dY · O − d(log-sum-exp)),
/// which the engine takes for the gradient of the log-sum-exp of a row whose output is 0. To the
/// bit, and a number a row travels instead of an output.
template <class Scalar>
class RowChanges {
 public:
  explicit RowChanges(const CallShape& rows) : heads_(rows.heads) {
    numbers_.resize(std::size_t(rows.queries.total() * heads_));
  }
  TensorView<const Scalar> view() const { return by_row(numbers_.data()); }
  /// A number of each of this rank's rows and heads, as a state holds them.
  TensorView<const Scalar> by_row(const Scalar* numbers) const {
    return {numbers, 1, heads_, Index(numbers_.size()) / heads_, 1, 0, 1, heads_, 1};
  }
  template <class OutputGradient, class LogSumExp>
  void fill(const Operand<OutputGradient>& gradient, const LogSumExp& logsumexp,
            const kernel::StateRows<const Scalar>& state) {
    const TensorView<OutputGradient>& view = gradient.view;
    Index n = 0;
    for (Index row = 0; n < Index(numbers_.size()); ++row) {
      for (Index head = 0; head < heads_; ++head, ++n) {
        const Scalar product = kernel::product_with_output<Simd<Scalar>>(
            view.at(0, head, row), view.feature_stride, state.output + n * state.value_dim,
            state.value_dim);
        Scalar of_logsumexp(0);
        if constexpr (is_there_v<LogSumExp>)
          of_logsumexp = Scalar(*logsumexp.view.at(0, head, row));
        numbers_[std::size_t(n)] = Scalar(-Scalar(product - of_logsumexp));
      }
    }
  }

 private:
  Index heads_;
  std::vector<Scalar> numbers_;
};
/// The option that has the engine read them.
template <class Scalar_>
struct ReadRowChanges : GradientOption {
  using Kind = LogSumExpGradientOption;
  Operand<const Scalar_> nothing;
  explicit ReadRowChanges(const Operand<const Scalar_>& n) : nothing(n) {}
  template <class>
  auto bind(const CallShape&) const {
    return nothing;
  }
};
/// What a state holds of all rows comes a head at a time; the state itself has been checked.
template <class Scalar>
struct GatheredState {
  template <class Bound>
  void check(const Bound&) const {}
  kernel::StateRows<const Scalar> rows() const { return {}; }
};

/// A gradient of this rank's rows, whatever the shape of the pass that writes it; and one that
/// another pass writes, which is looked at together with those of this one.
template <class Gradient>
struct OfOwnRows {
  using Scalar = typename Gradient::Scalar;
  static constexpr const char* kName = Gradient::kName;
  const Gradient& gradient;
  const CallShape& own;
  OfOwnRows(const Gradient& g, const CallShape& o) : gradient(g), own(o) {}

  template <class Compute>
  auto check(const CallShape&, bool accumulates) const {
    return gradient.template check<Compute>(own, accumulates);
  }
  auto prepare(const CallShape&) const { return gradient.prepare(own); }
};
template <class Gradient>
struct OnlyChecked : OfOwnRows<Gradient> {
  using OfOwnRows<Gradient>::OfOwnRows;
  NotPrepared prepare(const CallShape&) const { return {}; }
};
template <template <class> class As, class Gradient>
auto of_own_rows(const Gradient& gradient, const CallShape& own) {
  if constexpr (is_there_v<Gradient>) {
    return As<Gradient>(gradient, own);
  } else {
    return Absent{};
  }
}

/// An option as this pass takes it: what is told of rows comes as RowChanges.
struct NothingAsked : option_base {};
template <class Option>
decltype(auto) of_all_rows(Option& option) {
  if constexpr (is_of_kind_v<Option, LogSumExpGradientOption>) {
    return NothingAsked{};
  } else {
    return (option);
  }
}

/// This rank's keys among all, as the engine writes their gradients.
inline std::vector<kernel::KeyRun> own_key_runs(const mpi::Dealt& dealt) {
  std::vector<kernel::KeyRun> runs;
  runs.reserve(dealt.own().size() + 1);  // never null: no run is not all keys
  for (std::size_t n = 0; n < dealt.own().size(); ++n) {
    const Index k = dealt.own()[n];
    runs.push_back({dealt.begin(k), dealt.begin(k) + dealt.length(k), dealt.offsets()[n]});
  }
  return runs;
}

/// Notes which rows see some key of this rank.
template <class Exchange, class Mask>
void see_rows(Exchange& exchange, const CallShape& whole, const Mask& mask, Index offset) {
  const mpi::Dealt& dealt = exchange.dealt();
  for (Index k = 0; k < dealt.blocks(); ++k) {
    const QueryRows rows = rows_of_block(dealt, whole, k, offset);
    for (const Index own : dealt.own())
      if (sees_block(dealt, mask, rows, own)) exchange.see(k);
  }
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
