// attn/kernel/row_outputs.h: what a call saves beside its output: numbers of a row here, numbers of
// each pair in pair_outputs.h.
// SPDX-License-Identifier: MIT
#pragma once

#include <tuple>

#include "../base/asked.h"
#include "online_softmax.h"
#include "problem.h"
#include "register_tile.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

// What is saved of a finished row, which the softmax leaves with its maximum m, its sum l (0: it
// has seen no key) and, where kReadsMoment, its moment t (below): value(m, l, t).
struct LogSumExpOfRow {
  static constexpr const char* kName = "logsumexp";
  static constexpr bool kReadsMoment = false;
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: save_logsumexp twice in one call");
  }
  template <class Scalar>
  static Scalar value(const Scalar& m, const Scalar& l, const Scalar&) {
    using std::log;
    return detail::equal(l, Scalar(0)) ? hidden_score<Scalar>() : Scalar(m + Scalar(log(l)));
  }
};
struct MaxLogitOfRow {
  static constexpr const char* kName = "max_logit";
  static constexpr bool kReadsMoment = false;
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: save_max_logit twice in one call");
  }
  template <class Scalar>
  static Scalar value(const Scalar& m, const Scalar& l, const Scalar&) {
    const Scalar zero_or_nan = (l - l) * Scalar(0);
    return detail::equal(l, Scalar(0)) ? hidden_score<Scalar>() : Scalar(m + zero_or_nan);
  }
};
struct EntropyOfRow {
  static constexpr const char* kName = "entropy";
  static constexpr bool kReadsMoment = true;
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: save_entropy twice in one call");
  }
  template <class Scalar>
  static Scalar value(const Scalar&, const Scalar& l, const Scalar& t) {
    using std::log;
    return detail::equal(l, Scalar(0)) ? Scalar(0) : Scalar(Scalar(log(l)) - Scalar(t / l));
  }
};

/// All of them. Another one is such a type, and its name here.
using RowNumbers = detail::Order<LogSumExpOfRow, MaxLogitOfRow, EntropyOfRow>;

/// A number of each row, and the operand that it is written to.
template <class Number, class To>
struct RowOutput {
  static constexpr bool kReadsMoment = Number::kReadsMoment;
  To to;

  template <class Scalar>
  void write(const QueryRow& row, const Scalar& m, const Scalar& l, const Scalar& t) const {
    *to.row(row.sequence, row.head, row.row) = typename To::Scalar(Number::value(m, l, t));
  }
};

/// The outputs beside the output: of pairs, each a target or Absent, and of rows.
template <class Weights, class Scores, class... Rows>
struct Saved {
  Weights weights;
  Scores scores;
  std::tuple<Rows...> rows;

  static constexpr bool kEntropy = (false || ... || Rows::kReadsMoment);
  static constexpr bool kWeights = detail::is_there_v<Weights>;
  static constexpr bool kScores = detail::is_there_v<Scores>;
  static constexpr bool kOverHeads = [] {
    if constexpr (kWeights) {
      return Weights::kAverages;
    } else {
      return false;
    }
  }();

  /// Saves a finished row: m, l and t as the softmax left them (t only where it is read).
  template <class Scalar>
  void write(const QueryRow& row, const Scalar& m, const Scalar& l, const Scalar& t) const {
    std::apply([&](const auto&... output) { (output.write(row, m, l, t), ...); }, rows);
  }
};

// WHAT     t = Σ_j p_j · (s_j − m) of each row beside l = Σ_j p_j, for the entropy log l − t / l
//          when the maximum moves from m to m':  t' = r · (t + (m − m') · l) + Σ p · (s − m'),  r = exp(m − m')
// EDGES    a hidden pair adds 0, not 0 · −∞; a row that has seen nothing (r = 0) starts from 0
// NUMERICS both terms of the entropy are ≥ 0: nothing cancels. A block that a row does not see adds
//          +0 under r = 1
template <class S, class Saved>
class EntropyStep {
  using Scalar = typename S::Scalar;
  using Size = TileSize<Scalar>;

 public:
  /// Before the maxima advance.
  EntropyStep(int rows, const Scalar* m) {
    if constexpr (Saved::kEntropy) {
      for (int i = 0; i < rows; ++i) before_[i] = m[i];
    }
  }
  /// After that, before the scores become weights and the sums l are rescaled.
  void operator()(int rows, const Scalar* m, const Scalar* r, const Scalar* s,
                  const DepthRange* runs, int run_count, const Scalar* lanes, Scalar* t) const {
    if constexpr (Saved::kEntropy) {
      for (int i = 0; i < rows; ++i, s += Size::score_stride, lanes += Size::panel) {
        auto sum = S::set(Scalar(0));
        for (int n = 0; n < run_count; ++n) {
          for (Index j = runs[n].begin; j < runs[n].end; j += S::width)
            sum = S::add(sum, term(S::sub(S::load(s + j), S::set(m[i]))));
        }
        alignas(64) Scalar carried[S::width] = {};
        if (!detail::equal(r[i], Scalar(0))) {
          const Scalar moved = before_[i] - m[i];
          const auto old = S::fmadd(S::set(moved), S::set(reduce_lanes<S>(lanes)), S::set(t[i]));
          S::store(carried, S::mul(S::set(r[i]), old));
        }
        t[i] = carried[0] + S::reduce_add(sum);
      }
    }
  }

 private:
  static ATTN_INLINE typename S::Packet term(const typename S::Packet& x) {
    const auto p = detail::exp_nonpositive<S>(x), zero = S::set(Scalar(0));
    return S::select(S::less(zero, p), S::mul(p, x), zero);
  }

  struct Nothing {};
  std::conditional_t<Saved::kEntropy, Scalar[Size::rows], Nothing> before_;
};

}  // namespace kernel
}  // namespace ATTN_ABI
}  // namespace attn
