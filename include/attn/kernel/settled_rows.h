// attn/kernel/settled_rows.h: what rows know of keys that went by, and how that is settled in the
// order of the keys.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <utility>

#include "online_softmax.h"
#include "row_sums.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

constexpr Index whole_lines(Index n) {
  return round_up(n, 16);
}  // cache lines (of float), so that every part is aligned

/// What rows know of keys they have seen, row after row in memory: m, t and l (by lanes) of the
/// softmax, and o.
template <class Scalar>
struct RowStates {
  Scalar *maximum = nullptr, *moment = nullptr, *lanes = nullptr, *output = nullptr;
  Index features = 0;  ///< of a row of o

  RowStates() = default;
  /// In memory of total(rows, features) scalars.
  RowStates(Scalar* memory, Index rows, Index padded_features)
      : maximum(memory),
        moment(maximum + whole_lines(rows)),
        lanes(moment + whole_lines(rows)),
        output(lanes + whole_lines(rows * TileSize<Scalar>::panel)),
        features(padded_features) {}
  static constexpr Index total(Index rows, Index features) {
    return 2 * whole_lines(rows) + whole_lines(rows * TileSize<Scalar>::panel) +
           whole_lines(rows * features);
  }

  /// Those of the rows from `first` on.
  RowStates from(Index first) const {
    RowStates rows = *this;
    rows.maximum += first;
    rows.moment += first;
    rows.lanes += first * TileSize<Scalar>::panel;
    rows.output += first * features;
    return rows;
  }
  /// Of rows that have seen nothing; their sums are not even zeros.
  /// WHY  whole packets, for which there is room: two calls of the C library took 2 % of tiny
  void clear(Index rows) const {
    using S = detail::Simd<Scalar>;
    for (Index r = 0; r < rows; r += S::width) {
      S::store(maximum + r, S::set(no_maximum<Scalar>()));
      S::store(moment + r, S::set(Scalar(0)));
    }
  }
  /// l of each row in its first lane, zeros in the others: what is handed on of a part of the keys
  /// is m, l and o, whatever the lanes of a panel are.
  void reduce(Index rows) const {
    using S = detail::Simd<Scalar>;
    for (Index r = 0; r < rows; ++r) {
      Scalar* const row = lanes + r * TileSize<Scalar>::panel;
      row[0] = reduce_lanes<S>(row);
      std::fill_n(row + 1, TileSize<Scalar>::panel - 1, Scalar(0));
    }
  }
  /// Zeros in place of the sums.
  void clear_sums(Index rows) const {
    std::fill_n(moment, rows, Scalar(0));
    std::fill_n(lanes, rows * TileSize<Scalar>::panel, Scalar(0));
    std::fill_n(output, rows * features, Scalar(0));
  }
};

/// The same of keys that are settled, with compensation (row_sums.h).
template <class Scalar>
class SettledRows {
  using S = detail::Simd<Scalar>;
  using Size = TileSize<Scalar>;
  using Sum = CompensatedSum<S>;

 public:
  SettledRows() = default;
  /// In memory of total(rows, features) scalars.
  SettledRows(Scalar* memory, Index rows, Index features) : maximum_(memory) {
    memory += whole_lines(rows);
    for (auto [sums, columns] :
         {std::pair(&moment_, Index(1)), std::pair(&lanes_, Index(Size::panel)),
          std::pair(&output_, features)}) {
      const Index size = whole_lines(rows * columns);
      *sums = {memory, memory + size, columns};
      memory += 2 * size;
    }
  }
  static constexpr Index total(Index rows, Index features) {
    return 3 * whole_lines(rows) + 2 * whole_lines(rows * Size::panel) +
           2 * whole_lines(rows * features);
  }

  void clear(Index rows) const {
    std::fill_n(maximum_, rows, no_maximum<Scalar>());
    for (const RowSums<Scalar>* sums : {&moment_, &lanes_, &output_}) sums->clear(rows);
  }
  /// Adds what the first `rows` rows have seen since.
  ATTN_NOINLINE void add(Index rows, const RowStates<Scalar>& states) const;
  /// The rows as they are settled, and (but for the maxima) what rounding has taken from them.
  RowStates<Scalar> sums() const { return states(maximum_, &RowSums<Scalar>::sum); }
  RowStates<Scalar> lost() const { return states(nullptr, &RowSums<Scalar>::lost); }
  /// Leaves the first `rows` rows as they are settled.
  void copy_to(const RowStates<Scalar>& to, Index rows) const {
    std::copy_n(maximum_, rows, to.maximum);
    std::copy_n(moment_.sum, rows, to.moment);
    std::copy_n(lanes_.sum, rows * lanes_.stride, to.lanes);
    std::copy_n(output_.sum, rows * output_.stride, to.output);
  }

 private:
  RowStates<Scalar> states(Scalar* maximum, Scalar* RowSums<Scalar>::*of) const {
    RowStates<Scalar> rows;
    rows.maximum = maximum;
    rows.moment = moment_.*of;
    rows.lanes = lanes_.*of;
    rows.output = output_.*of;
    rows.features = output_.stride;
    return rows;
  }

  Scalar* maximum_ = nullptr;
  RowSums<Scalar> moment_, lanes_, output_;
};

// WHAT     settled = settled ⊕ states for each row: m = max(m_a, m_b), and every sum (l by lanes,
//          o, the entropy's t) is x_a · exp(m_a − m) + x_b · exp(m_b − m): the merge of
//          softmax_state.h
// WHY      of the keys that settle together while blocks go by, m_b never being less; and of parts
//          of the keys, whose l is reduced first. Once in several blocks, since a compensated addition is 14 operations where
//          a plain one is one
// EDGES    a part that a row does not see is the identity: m_b is the lowest number and all sums
//          are +0
// NUMERICS with compensation (row_sums.h). t is relative to m, which moves: t + (m_a − m) · l_a as
//          in softmax_rows.h
template <class Scalar>
void SettledRows<Scalar>::add(Index rows, const RowStates<Scalar>& states) const {
  alignas(64) Scalar maxima[S::width], factors[2][S::width];
  for (Index r = 0; r < rows; ++r) {
    const Index lane = r % S::width;
    if (lane == 0) {
      const auto a = S::load(maximum_ + r), b = S::load(states.maximum + r), largest = S::max(b, a);
      S::store(maxima, largest);
      S::store(factors[0], detail::exp_weight<S>(S::sub(a, largest)));
      S::store(factors[1], detail::exp_weight<S>(S::sub(b, largest)));
    }
    const Scalar &factor_a = factors[0][lane], &factor_b = factors[1][lane];
    const auto a = S::set(factor_a), b = S::set(factor_b), zero = S::set(Scalar(0));
    const auto add = [&](const RowSums<Scalar>& to, const Scalar* from) {
      for (Index c = 0; c < to.stride; c += S::width) {
        const auto part = Sum::product({S::load(from + c), zero}, b);
        to.template store<S>(r, c, Sum::combine(to.template load<S>(r, c), a, part));
      }
    };
    const auto moved = [&](const Scalar& moment, const Scalar& own, const Scalar& factor,
                           const Scalar* lanes) {
      if (detail::equal(factor, Scalar(0))) return Scalar(0);
      if (detail::equal(own, maxima[lane])) return moment;
      const Scalar distance = own - maxima[lane];
      return Scalar(moment + Scalar(distance * reduce_lanes<S>(lanes)));
    };
    const Scalar before =
                     moved(moment_.sum[r], maximum_[r], factor_a, lanes_.sum + r * Size::panel),
                 now = moved(states.moment[r], states.maximum[r], factor_b,
                             states.lanes + r * Size::panel);
    const Sum moment = Sum::combine({S::set(before), S::set(moment_.lost[r])}, a,
                                    Sum::product({S::set(now), zero}, b));
    moment_.sum[r] = S::first(moment.sum);
    moment_.lost[r] = S::first(moment.lost);
    add(lanes_, states.lanes + r * Size::panel);
    add(output_, states.output + r * states.features);
    maximum_[r] = maxima[lane];
  }
}

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
