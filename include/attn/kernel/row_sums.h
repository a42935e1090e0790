// attn/kernel/row_sums.h: how sums over keys are made: short runs from +0, blocks of those, and
// many blocks with compensation.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <utility>

#include "register_tile.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// WHAT     l = Σ p and o = Σ p·v of a row:   run      a chain from +0 over TileSize::sum_run keys, in registers
//                                            block    the sum of its runs, in order, from +0
//                                            row      r·sum + block; after TileSize::settled_keys
//                                                     keys that is settled:
//                                            settled  r·sum + row, with what rounding took from it
//                                                     carried on in `lost`
// WHY      one chain over many keys drifts where its terms are alike: each is rounded to what the
//          sum can hold, the same way every time (one key of score 1, the others 0.9, V = 1: 5e-6
//          beside 1 in float after 4096 keys, 1e-3 after 2²⁰).
//          Compensation makes the error independent of the number of keys; half an ulp for each
//          term of a run and for the few additions behind it is the most that is left, where one
//          weight is 1 and all others are a fraction of an ulp
// EDGES    runs, blocks and what settles together start at absolute multiples. What a row does not
//          see of them adds +0, which changes neither sum nor lost: |lost| ≤ ½ ulp of the sum, that
//          is, sum + lost rounds to the sum
// NUMERICS y = x + lost, then the sum of both and its error by Knuth's six additions, exact
//          whichever is larger (three would do if the sum were; where it is not they leave more
//          than half an ulp, and what is settled next, though unseen, would round it up). r·sum has
//          its error taken by a fused step (without one in hardware: 0). A sum that is not finite
//          has lost nothing

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

/// R rows of C packets to memory, `stride` from one to the next.
template <class S, std::size_t R, std::size_t C>
ATTN_INLINE void store_rows(const typename S::Packet (&rows)[R][C], typename S::Scalar* to,
                            Index stride) {
  ATTN_UNROLL
  for (std::size_t i = 0; i < R; ++i, to += stride) {
    ATTN_UNROLL
    for (std::size_t x = 0; x < C; ++x) S::store(to + Index(x) * S::width, rows[i][x]);
  }
}

/// o = r·o + sum. (Where it starts as the sum alone, a −0 stands where r·0 + −0 would be +0; it
/// ends as +0, see finish().)
template <class S>
ATTN_INLINE void rescale_add(typename S::Scalar* o, const typename S::Packet& r,
                             const typename S::Packet& sum) {
  S::store(o, S::fmadd(S::load(o), r, sum));
}

/// The same for R rows of C packets, `stride` apart in o; without r, o = sum.
template <class S, std::size_t R, std::size_t C>
ATTN_INLINE void rescale_rows(const typename S::Packet (&sum)[R][C], const typename S::Scalar* r,
                              typename S::Scalar* o, Index stride) {
  if (r == nullptr) return store_rows<S>(sum, o, stride);
  ATTN_UNROLL
  for (std::size_t i = 0; i < R; ++i, o += stride) {
    ATTN_UNROLL
    for (std::size_t x = 0; x < C; ++x)
      rescale_add<S>(o + Index(x) * S::width, S::set(r[i]), sum[i][x]);
  }
}

/// Cuts what is visited of a block into runs of `Keys` keys, and gives what is visited of each.
template <class Scalar, Index Keys>
class SumRuns {
 public:
  explicit SumRuns(Runs visited)
      : visited_(visited.first),
        end_(visited.first + visited.count),
        from_(visited.count > 0 ? visited.first->begin : 0) {}

  bool last() const { return visited_ == end_; }
  /// What is visited of the next run; nothing where there is none.
  Runs next() {
    const Index end = (from_ / Keys + 1) * Keys;
    const int left = int(end_ - visited_);
    if (left == 0 || (from_ == visited_->begin && end_[-1].end <= end))
      return {std::exchange(visited_, end_), left};
    int count = 0;
    for (; visited_ != end_ && from_ < end; ++count) {
      cut_[count] = {from_, std::min(visited_->end, end)};
      from_ = end;
      if (visited_->end <= end && ++visited_ != end_) from_ = visited_->begin;
    }
    return {cut_, count};
  }

 private:
  const DepthRange *visited_, *end_;
  Index from_;
  DepthRange cut_[std::max<Index>(Keys / TileSize<Scalar>::panel, 1)];  // gaps are whole panels
};

/// The sums of a block of keys while its runs go by: of R rows of C packets at most, in memory that
/// stays in L1. The last run goes to o, with what came before it: o = r·o + block. Without r, o
/// starts from 0. Element: the factors that are summed.
template <class S, int R, int C, class Element = typename S::Scalar>
class BlockSums {
  using Scalar = typename S::Scalar;

 public:
  BlockSums(const Scalar* r, Scalar* o, Index o_stride) : r_(r), o_(o), o_stride_(o_stride) {}
  BlockSums(const BlockSums&) = delete;
  BlockSums& operator=(const BlockSums&) = delete;

  /// Calls f(what is visited of it, first, last) for each run of the block, one at least.
  template <class F>
  ATTN_INLINE void each_run(Runs visited, const F& f) const {
    SumRuns<Scalar, TileSize<Element>::sum_run> run(visited);
    bool first = true;
    do {
      const Runs pieces = run.next();
      f(pieces, first, run.last());
      first = false;
    } while (!run.last());
  }

  /// Takes the sums of a run.
  /// WHY  each case by itself, with offsets that are constants: g++ brings addresses that are not
  ///      into registers before the loop of the run, and from there to the stack
  template <std::size_t Rows, std::size_t Packets>
  ATTN_INLINE void add(typename S::Packet (&run)[Rows][Packets], bool first, bool last) {
    static_assert(Rows * Packets <= std::size_t(R) * std::size_t(C));
    if (!first) {
      ATTN_UNROLL
      for (int i = 0; i < int(Rows); ++i) {
        ATTN_UNROLL
        for (int x = 0; x < int(Packets); ++x)
          run[i][x] = S::add(S::load(sum_ + (i * int(Packets) + x) * S::width), run[i][x]);
      }
    }
    if (!last) return store_rows<S>(run, sum_, Index(Packets) * S::width);
    rescale_rows<S>(run, r_, o_, o_stride_);
  }

 private:
  alignas(64) Scalar sum_[R * C * S::width];
  const Scalar* r_;
  Scalar* o_;
  Index o_stride_;
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
