// attn/kernel/row_sums.h: how sums over keys are made: short runs from +0, a block's sum of those, blocks with compensation.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include "register_tile.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     l = Σ p and o = Σ p·v of a row:   run      a chain from +0 over TileSize::sum_run keys, in registers
//                                            block    the sum of its runs, in order, from +0
//                                            row      r·sum + block; after TileSize::settled_keys keys that is settled:
//                                            settled  r·sum + row, with what rounding took from it carried on in `lost`
// WHY      one chain over many keys drifts where its terms are alike: each is rounded to what the sum can hold, the same way every
//          time (one key of score 1, the others 0.9, V = 1: 5e-6 beside 1 in float after 4096 keys, 1e-3 after 2²⁰).
//          Compensation makes the error independent of the number of keys; half an ulp for each term of a run and for the few
//          additions behind it is the most that is left, where one weight is 1 and all others are a fraction of an ulp
// EDGES    runs, blocks and what settles together start at absolute multiples. What a row does not see of them adds +0, which
//          changes neither sum nor lost: |lost| ≤ ½ ulp of the sum, that is, sum + lost rounds to the sum
// NUMERICS y = x + lost, then the sum of both and its error by Knuth's six additions, exact whichever is larger (three would do if
//          the sum were; where it is not they leave more than half an ulp, and what is settled next, though unseen, would round it
//          up). r·sum has its error taken by a fused step (without one in hardware: 0). A sum that is not finite has lost nothing

/// A sum, and what rounding has taken from it.
template <class S>
struct CompensatedSum {
  using Scalar = typename S::Scalar;
  using Packet = typename S::Packet;
  Packet sum, lost;

  /// r times the sum, plus another.
  static ATTN_INLINE CompensatedSum combine(const CompensatedSum& a, const Packet& r,
                                            const CompensatedSum& b) {
    return next(a, r, S::add(rest(a, r), b.lost), b.sum);
  }
  /// r times the sum, plus x.
  static ATTN_INLINE CompensatedSum combine(const CompensatedSum& a, const Packet& r,
                                            const Packet& x) {
    return next(a, r, rest(a, r), x);
  }
  /// r times the sum.
  static ATTN_INLINE CompensatedSum product(const CompensatedSum& a, const Packet& r) {
    return {S::mul(a.sum, r), rest(a, r)};
  }

 private:
  static ATTN_INLINE Packet minus_product(const Packet& sum, const Packet& r) {
    return S::mul(sum, S::sub(S::set(Scalar(0)), r));
  }
  static ATTN_INLINE Packet rest(const CompensatedSum& a, const Packet& r) {
    return S::fmadd(a.lost, r, S::fmadd(a.sum, r, minus_product(a.sum, r)));
  }
  static ATTN_INLINE CompensatedSum next(const CompensatedSum& a, const Packet& r,
                                         const Packet& lost, const Packet& x) {
    const Packet minus = minus_product(a.sum, r);
    const Packet carried = S::where_less(lost, S::set(Scalar(Eigen::NumTraits<Scalar>::highest())),
                                         lost, S::set(Scalar(0)));  // also where it is NaN
    const Packet y = S::pinned(S::add(x, carried)), sum = S::pinned(S::sub(y, minus)),
                 of_y = S::pinned(S::add(sum, minus)), minus_of_sum = S::pinned(S::sub(of_y, sum));
    return {sum, S::sub(S::pinned(S::sub(y, of_y)), S::pinned(S::sub(minus, minus_of_sum)))};
  }
};

/// Sums of rows, element (i, c) at i·stride + c, and what they have lost at the same places.
template <class Scalar>
struct RowSums {
  Scalar *sum = nullptr, *lost = nullptr;
  Index stride = 0;

  RowSums from(Index row) const { return {sum + row * stride, lost + row * stride, stride}; }
  void clear(Index rows) const {
    std::fill_n(sum, rows * stride, Scalar(0));
    std::fill_n(lost, rows * stride, Scalar(0));
  }
  template <class S>
  ATTN_INLINE CompensatedSum<S> load(Index i, Index c) const {
    return {S::load(sum + i * stride + c), S::load(lost + i * stride + c)};
  }
  template <class S>
  ATTN_INLINE void store(Index i, Index c, const CompensatedSum<S>& x) const {
    S::store(sum + i * stride + c, x.sum);
    S::store(lost + i * stride + c, x.lost);
  }
};

/// o = r[i]·o + sum; without r, o starts from 0. (A −0 that stands where r·0 + −0 would be +0 ends as +0, see finish().)
template <class S>
ATTN_INLINE void rescale_add(typename S::Scalar* o, const typename S::Scalar* r, int i,
                             const typename S::Packet& sum) {
  S::store(o, r == nullptr ? sum : S::fmadd(S::load(o), S::set(r[i]), sum));
}

/// Cuts what is visited of a block into runs of `Keys` keys. Of each that is visited: its number, and its pieces.
template <class Scalar, Index Keys>
struct SumRuns {
  /// Gaps are whole panels.
  static constexpr int kMost = int(std::max<Index>(Keys / TileSize<Scalar>::panel, 1));
  DepthRange pieces[kMost];
  int count = 0;
  Index number = 0;

  SumRuns(const DepthRange* visited, int visited_count)
      : visited_(visited),
        end_(visited + visited_count),
        from_(visited_count > 0 ? visited->begin : 0) {}

  bool next() {
    if (visited_ == end_) return false;
    number = from_ / Keys;
    const Index end = (number + 1) * Keys;
    for (count = 0; visited_ != end_ && from_ < end; ++count) {
      pieces[count] = {from_, std::min(visited_->end, end)};
      from_ = end;
      if (visited_->end <= end && ++visited_ != end_) from_ = visited_->begin;
    }
    return true;
  }

 private:
  const DepthRange *visited_, *end_;
  Index from_;
};

/// The sums of a block of keys while its runs go by: `Packets` packets, in memory that stays in L1.
template <class S, int Packets>
class BlockSums {
  using Scalar = typename S::Scalar;

 public:
  BlockSums() { S::store(zero_, S::set(Scalar(0))); }
  BlockSums(const BlockSums&) = delete;
  BlockSums& operator=(const BlockSums&) = delete;

  /// Where the sums of a run go: packet n of them is added to the n-th, of the first run to 0.
  struct Place {
    const Scalar* from;
    Scalar* to;
    Index step;
    ATTN_INLINE void add(int n, const typename S::Packet& run) const {
      S::store(to + n * S::width, S::add(S::load(from + n * step), run));
    }
  };
  Place next() {
    const Place place{from_, sum_, step_};
    from_ = sum_;
    step_ = S::width;
    return place;
  }

  /// o = r·o + sums, of R rows of C packets; without r, o starts from 0.
  template <int R, int C>
  ATTN_INLINE void add_to(const Scalar* r, Scalar* o, Index o_stride) const {
    static_assert(R * C == Packets, "all of them");
    const Scalar* const from = from_;
    const Index step = step_;
    for (int i = 0; i < R; ++i) {
      ATTN_UNROLL
      for (int x = 0; x < C; ++x)
        rescale_add<S>(o + i * o_stride + x * S::width, r, i, S::load(from + (i * C + x) * step));
    }
  }

 private:
  alignas(64) Scalar zero_[S::width];
  alignas(64) Scalar sum_[Packets * S::width];
  const Scalar* from_ = zero_;
  Index step_ = 0;
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
