// attn/kernel/modifier_gradients.h: from ∂loss/∂score as the softmax sees it back to
// ∂loss/∂(scale · q · k), and what the modifiers of scores get on the way.
// SPDX-License-Identifier: MIT
#pragma once

#include "../lanes.h"
#include "bias_gradient.h"
#include "chunk_rows.h"
#include "numbers_by_row.h"
#include "visit.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// A gradient that is the sum of a number of each row, for each head or over all.
template <class T, class Scalar>
struct RowSumGradient {
  detail::MatrixView<T> to;  ///< a row or a column
  bool accumulates;
  NumbersByRow<Scalar> numbers{};

  void finish(const detail::CallShape& shape) const {
    const Index count = to.rows * to.cols, tokens = shape.queries.total();
    for (Index n = 0; n < count; ++n) {
      RowTotal<Scalar> total;
      for (Index h = count == 1 ? 0 : n, end = count == 1 ? shape.heads : n + 1; h < end; ++h)
        total.add(numbers.at(0, h), shape.heads, tokens);
      T& gradient = to.data[n * (to.cols == 1 ? to.row_stride : to.col_stride)];
      const Scalar sum = total.value();
      gradient = accumulates ? T(Scalar(Scalar(gradient) + sum)) : T(sum);
    }
  }
};

/// Where the gradients of what modifies scores go; each Absent where it is not asked for. `Bias`: a
/// BiasGradient; `Alibi`, `Sink`, `Scale`: a RowSumGradient; `Visitor`: a functor f(ds, At).
template <class Bias_, class Alibi_, class Sink_, class Scale_, class Visitor_>
struct ScoreGradients {
  using Bias = Bias_;
  using Alibi = Alibi_;
  using Sink = Sink_;
  using Scale = Scale_;
  using Visitor = Visitor_;
  static constexpr bool kBias = detail::is_there_v<Bias>, kAlibi = detail::is_there_v<Alibi>,
                        kSink = detail::is_there_v<Sink>, kScale = detail::is_there_v<Scale>,
                        kVisits = detail::is_there_v<Visitor>;
  /// The ds of pairs are asked for.
  static constexpr bool kOfPairs = kBias || kAlibi || kVisits;

  Bias bias{};
  Alibi alibi{};
  Sink sink{};
  Scale scale{};
  Visitor* visitor = nullptr;

  /// Chunks that share no keys add to the same elements.
  bool shared() const {
    if constexpr (kBias) {
      return bias.shared();
    } else {
      return false;
    }
  }
  /// Rows of partial sums that a worker keeps, each TileSize::score_stride long.
  Index partial_rows(Index group) const {
    if constexpr (kBias) {
      return bias.partial_rows(group);
    } else {
      return 0;
    }
  }

  /// Scalars of the call's scratch, and what lies where in it, all of it 0.
  Index scratch(const detail::CallShape& shape) const {
    const Index rows = (int(kAlibi) + int(kSink) + int(kScale)) * all_rows(shape);
    if constexpr (kBias) {
      return rows + bias.scratch();
    } else {
      return rows;
    }
  }
  template <class Scalar>
  void place(const detail::CallShape& shape, Scalar* memory) {
    place_rows(alibi, shape, memory);
    place_rows(sink, shape, memory);
    place_rows(scale, shape, memory);
    if constexpr (kBias) bias.place(memory);
  }

  /// Of a row: δ · l, with the m and l that the softmax left.
  template <class Modify, class Scalar>
  void see_row(const Modify& modify, const QueryRow& row, const Scalar& m, const Scalar& l,
               const Scalar& delta_times_sum) const {
    if constexpr (kSink) {
      using std::exp;
      const Scalar logit = modify.sink.logit(row),
                   lowest = Scalar(Eigen::NumTraits<Scalar>::lowest());
      if (detail::equal(l, Scalar(0)) || logit < lowest) return;
      const Scalar weight(Scalar(exp(Scalar(logit - m))) / l);
      sink.numbers[row] = Scalar(-Scalar(weight * delta_times_sum));
    }
  }
  /// Of a row: its query times its gradient before the scale.
  template <class Scalar>
  void see_query(const QueryRow& row, const Scalar& product) const {
    if constexpr (kScale) scale.numbers[row] = product;
  }

  /// After all rows: what they left, to where it belongs.
  void finish(const detail::CallShape& shape) const {
    if constexpr (kBias) bias.finish();
    finish_rows(alibi, shape);
    finish_rows(sink, shape);
    finish_rows(scale, shape);
  }

 private:
  static Index all_rows(const detail::CallShape& shape) {
    return shape.queries.total() * shape.heads;
  }
  template <class Scalar>
  static void place_rows(Absent, const detail::CallShape&, Scalar*&) {}
  template <class T, class Scalar>
  static void place_rows(RowSumGradient<T, Scalar>& gradient, const detail::CallShape& shape,
                         Scalar*& memory) {
    gradient.numbers = {memory, shape.heads};
    std::fill_n(memory, all_rows(shape), Scalar(0));
    memory += all_rows(shape);
  }
  static void finish_rows(Absent, const detail::CallShape&) {}
  template <class Gradient>
  static void finish_rows(const Gradient& gradient, const detail::CallShape& shape) {
    gradient.finish(shape);
  }
};
using NoScoreGradients = ScoreGradients<Absent, Absent, Absent, Absent, Absent>;

// WHAT     ds = ∂loss/∂s of a strip's rows and what they visit of a block, back through the chain
//          of modifiers, in place:     dscore(f) sees ds        of each visible pair, row by row
//                                      ds *= score's slope
//                                      dalibi −= |p − j| · ds   a number of each row
//                                      dbias += ds              bias_gradient.h
//                                      ds *= softcap's slope
// PICTURE  begin, then each strip of some 96 rows, then end
// EDGES    a hidden pair has ds = 0 and slopes 0: it adds nothing and stays 0
template <class Problem>
class AddScoreGradients {
  using Scalar = typename Problem::Scalar;
  using S = detail::Simd<Scalar>;
  using Size = TileSize<Scalar>;
  using Modify = typename Problem::Scored::Modify;
  using To = typename Problem::ScoreGradients;

 public:
  /// Strips that are kept beside the scores of one.
  static constexpr int kKept = Modify::kSlopes + int(To::kVisits);

  /// `kept`: kKept strips; `partial`: To::partial_rows() rows.
  AddScoreGradients(const Problem& problem, const ChunkRows<Scalar>& rows, Scalar* kept,
                    Scalar* partial)
      : problem_(problem), rows_(rows), kept_(kept), partial_(partial) {}

  /// What stages 1 and 2 keep of a strip's pairs, or Absent.
  auto kept() const {
    if constexpr (kKept == 0) {
      return Absent{};
    } else {
      return slopes();
    }
  }

  /// Sets the partial sums of rows from `first` on to 0.
  void begin(Index first) const {
    if constexpr (To::kBias) {
      const Index group = rows_.from(first).group;
      std::fill_n(partial_, to().partial_rows(group) * Size::score_stride, Scalar(0));
    }
  }
  void operator()(const Strip& strip, const KeyBlock& block, const Visit<Scalar>& visit,
                  Scalar* ds) const {
    if constexpr (To::kVisits) show(strip, block, visit, ds);
    multiply(strip, visit, ds, Modify::kSlopesBeforeBias, Modify::kSlopes);
    if constexpr (To::kAlibi) add_alibi(strip, block, visit, ds);
    if constexpr (To::kBias)
      to().bias.add(strip, block, visit, ds, rows_.from(strip.first), partial_);
    multiply(strip, visit, ds, 0, Modify::kSlopesBeforeBias);
  }
  /// Adds the partial sums of rows from `first` on.
  void end(Index first, const KeyBlock& block) const {
    if constexpr (To::kBias) to().bias.add_partial(block, partial_, rows_.from(first));
  }

 private:
  const To& to() const { return problem_.scores; }
  SlopeStrips<Scalar> slopes() const {
    return {kept_, To::kVisits ? kept_ + Modify::kSlopes * SlopeStrips<Scalar>::kStrip : nullptr};
  }

  /// ds *= slopes [first, last).
  void multiply(const Strip& strip, const Visit<Scalar>& visit, Scalar* ds, int first,
                int last) const {
    for (int n = first; n < last; ++n) {
      for (int i = 0; i < strip.rows; ++i) {
        Scalar* const row = ds + i * Size::score_stride;
        const Scalar* const slope = slopes().slope(n, i);
        visit.each_packet([&](Index j, Index) {
          S::store(row + j, S::mul(S::load(row + j), S::load(slope + j)));
        });
      }
    }
  }

  void add_alibi(const Strip& strip, const KeyBlock& block, const Visit<Scalar>& visit,
                 const Scalar* ds) const {
    auto cursor = rows_.from(strip.first);
    for (int i = 0; i < strip.rows; ++i, cursor.next(), ds += Size::score_stride) {
      auto sum = S::set(Scalar(0));
      visit.each_packet([&](Index j, Index) {
        const Index ahead = block.first + j - cursor.row.position;
        const auto distance = S::abs(S::add(S::set(detail::from_index<Scalar>(ahead)), S::iota()));
        sum = S::fmadd(distance, S::load(ds + j), sum);
      });
      Scalar& number = to().alibi.numbers[cursor.row];
      number = Scalar(number - S::reduce_add(sum));
    }
  }

  void show(const Strip& strip, const KeyBlock& block, const Visit<Scalar>& visit,
            const Scalar* ds) const {
    auto cursor = rows_.from(strip.first);
    for (int i = 0; i < strip.rows; ++i, cursor.next(), ds += Size::score_stride) {
      const Scalar* const seen = slopes().seen_of(i);
      const QueryRow& row = cursor.row;
      for (int n = 0; n < visit.segment_count; ++n) {
        const Segment& segment = visit.segments[n];
        for (Index j = segment.first * Size::panel; j < segment.end; ++j) {
          if (detail::equal(seen[j], Scalar(0))) continue;
          (*to().visitor)(ds[j], At{row.sequence, row.head, row.position, block.first + j});
        }
      }
    }
  }

  const Problem& problem_;
  const ChunkRows<Scalar>& rows_;
  Scalar *const kept_, *const partial_;
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
