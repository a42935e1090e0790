// attn/kernel/row_outputs.h: what a call saves beside its output: numbers of a row here, numbers of
// each pair in pair_outputs.h.
// SPDX-License-Identifier: MIT
#pragma once

#include "online_softmax.h"
#include "problem.h"
#include "register_tile.h"

namespace attn {
inline namespace ATTN_ABI {
namespace kernel {

/// Which outputs there are beside the output; each an operand or Absent.
template <class LogSumExp, class MaxLogit, class Entropy, class Weights, class Scores>
struct Saved {
  LogSumExp logsumexp;
  MaxLogit max_logit;
  Entropy entropy;
  Weights weights;
  Scores scores;

  static constexpr bool kLogSumExp = !std::is_same_v<LogSumExp, Absent>;
  static constexpr bool kMaxLogit = !std::is_same_v<MaxLogit, Absent>;
  static constexpr bool kEntropy = !std::is_same_v<Entropy, Absent>;
  static constexpr bool kWeights = !std::is_same_v<Weights, Absent>;
  static constexpr bool kScores = !std::is_same_v<Scores, Absent>;
  static constexpr bool kOverHeads = [] {
    if constexpr (kWeights) {
      return Weights::kAverages;
    } else {
      return false;
    }
  }();

  Saved(LogSumExp l, MaxLogit m, Entropy e, Weights w, Scores s)
      : logsumexp(l), max_logit(m), entropy(e), weights(w), scores(s) {}

  /// Saves a finished row: m, l and t as the softmax left them (t only with an entropy).
  template <class Scalar>
  void write(const QueryRow& row, const Scalar& m, const Scalar& l, const Scalar& t) const {
    using std::log;
    const bool empty = detail::equal(l, Scalar(0));
    const auto put = [&row](const auto& to, const Scalar& value) {
      using Stored = typename std::decay_t<decltype(to)>::Scalar;
      *to.row(row.sequence, row.head, row.row) = Stored(value);
    };
    if constexpr (kLogSumExp)
      put(logsumexp, empty ? hidden_score<Scalar>() : Scalar(m + Scalar(log(l))));
    if constexpr (kMaxLogit) {
      const Scalar zero_or_nan = (l - l) * Scalar(0);
      put(max_logit, empty ? hidden_score<Scalar>() : Scalar(m + zero_or_nan));
    }
    if constexpr (kEntropy)
      put(entropy, empty ? Scalar(0) : Scalar(Scalar(log(l)) - Scalar(t / l)));
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
