// attn/softmax.h: stage 3, softmax kernels over Eigen matrices, and what is mergeable: the state
// (max, sum).
// SPDX-License-Identifier: MIT
//
//   operation     formula (per row; per column with colwise())      code
//   softmax       exp(s_j − m) / Σ exp(s_k − m),  m = max s         softmax(S), softmax(S, into(P)), softmax(S, into(S)), Softmax
//   log-softmax   (s_j − m) − log Σ exp(s_k − m)                    log_softmax(S), …, LogSoftmax
//   log-sum-exp   m + log Σ exp(s_k − m)                            logsumexp(S), …, LogSumExp
//   merge         see merge(…), and SoftmaxState in softmax_state.h
#pragma once

#include "kernel/softmax_pass.h"
#include "option_list.h"
#include "call/options.h"
#include "softmax_state.h"

namespace attn {
inline namespace ATTN_ABI {

namespace detail {

struct ColumnWiseOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: colwise() twice in one call");
  }
};
/// colwise(): columns instead of rows.
struct ColumnWise : option_base {
  using Kind = ColumnWiseOption;
};

/// The matrix whose rows are the vectors that a softmax goes over: itself, or its transpose where
/// the options say columns.
template <class Asked, class T>
MatrixView<T> by_vectors(const MatrixView<T>& m) {
  if (Asked::template has<ColumnWiseOption>())
    return {m.data, m.cols, m.rows, m.col_stride, m.row_stride};
  return m;
}

template <kernel::SoftmaxResult Result>
struct SoftmaxFunctor {
  template <class Matrix, class... Options>
  [[nodiscard]] auto operator()(Matrix&& S, Options&&... options) const {
    static_assert(is_dense_v<Matrix>, "attn::softmax: expected a dense Eigen matrix of scores");
    return with_opened(
        [&](auto&... opened) { return write_or_return(std::forward<Matrix>(S), opened...); },
        options...);
  }

 private:
  static constexpr bool kReduced = Result == kernel::SoftmaxResult::logsumexp;
  static constexpr const char* kName = Result == kernel::SoftmaxResult::weights ? "attn::softmax"
                                       : Result == kernel::SoftmaxResult::log_weights
                                           ? "attn::log_softmax"
                                           : "attn::logsumexp";

  template <class Matrix, class... Options>
  static auto write_or_return(Matrix&& S, Options&... options) {
    static_assert(
        (is_of_kind_v<Options, MaskOption, IntoOption, ColumnWiseOption, QueryOffsetOption> && ...),
        "attn::softmax: its options are into(P), colwise(), query_offset(), and masks");
    check_given<Options...>();
    static_assert(!given_v<ColumnWiseOption, Options...> || !given_v<MaskOption, Options...>,
                  "attn::softmax: masks are for rows: without colwise()");
    using Scalar = compute_t<typename bare_t<Matrix>::Scalar>;
    static_assert(!Eigen::NumTraits<Scalar>::IsInteger && !Eigen::NumTraits<Scalar>::IsComplex,
                  "attn::softmax: expected real scores: cast<float>() them first");
    const auto held = hold(std::forward<Matrix>(S));
    if constexpr (given_v<IntoOption, Options...>) {
      write(held.view(), Asked(options...));
    } else {
      result_t<bare_t<Matrix>, given_v<ColumnWiseOption, Options...> ? 1 : 0> P;
      auto target = into(P);
      write(held.view(), Asked(options..., target));
      return P;
    }
  }

  template <class Given, int Columns>
  static auto result() {
    if constexpr (!kReduced) {
      return typename Given::PlainObject();
    } else if constexpr (Columns == 0) {
      return Eigen::Matrix<typename Given::Scalar, Given::RowsAtCompileTime, 1>();
    } else {
      constexpr int cols = Given::ColsAtCompileTime;
      return Eigen::Matrix < typename Given::Scalar, 1, cols,
             cols != 1 ? Eigen::RowMajor : Eigen::ColMajor > ();
    }
  }
  template <class Given, int Columns>
  using result_t = decltype(result<Given, Columns>());

  template <class In, class Asked>
  static void write(const MatrixView<In>& scores, const Asked& asked) {
    using Scalar = compute_t<typename MatrixView<In>::Scalar>;
    constexpr bool columns = Asked::template has<ColumnWiseOption>();
    CallShape shape;
    shape.function = kName;
    shape.queries.common_length = scores.rows;
    shape.keys.common_length = scores.cols;
    const auto mask = bind_masks(shape, asked);
    const Index offset = query_offset_of(shape, 0, asked);

    auto& target = asked.template get<IntoOption>().target;
    using Output = typename bare_t<decltype(target)>::Scalar;
    static_assert(std::is_same_v<compute_t<Output>, Scalar>,
                  "attn::softmax: scores and output must compute in one scalar: cast one of them");
    const Index rows = kReduced && columns ? 1 : scores.rows,
                cols = kReduced && !columns ? 1 : scores.cols;
    target.check(kName, "output", rows, cols);
    Outputs outputs(kName);
    outputs.add("output", target.memory(rows, cols));
    outputs.keep_from("the scores", as_tensor(scores), kReduced ? Outputs::kApart : 0);
    asked.each([&](const auto& option) {
      option.visit_memory(
          [&](const char* name, const auto& input) { outputs.keep_from(name, input); });
    });
    target.resizing(rows, cols).commit();

    const auto in = by_vectors<Asked, const In>(
        {scores.data, scores.rows, scores.cols, scores.row_stride, scores.col_stride});
    const auto out = by_vectors<Asked>(target.view());
    kernel::SoftmaxPass<Result, Scalar, std::remove_const_t<In>, Output, bare_t<decltype(mask)>>(
        in, out, mask, offset)();
  }
};

}  // namespace detail

/// Option of softmax, log_softmax and logsumexp: columns instead of rows.
inline detail::ColumnWise colwise() { return {}; }

/// Normalises scores so that each row (each column with colwise()) sums to one.
///
/// Shapes     S [L, N]  →  P [L, N]; any Eigen type, storage order, strides; half and bfloat16 are
///            computed in float
/// Options    into(P) (then nothing is returned; P may be S itself: in place), colwise(), and for
///            rows any mask: causal(), keep(B), …
/// Requires   P's shape                                     (std::invalid_argument otherwise)
/// Semantics  stable for any finite scores; a row with nothing visible gives zeros; hidden scores
///            give 0 whatever they hold
/// Cost       one read, one exp and one write a score (two reads and exp beyond 32 KiB a row);
///            scratch: 32 KiB of stack
/// Accuracy   relative error ≤ (8 + √(N / lanes)) ε for scores within ±5 (tests/softmax_test.cpp);
///            beyond, rounding s − m adds at most ½ ulp of it; 0 in place of what is below
///            1.8e-35 (double: 1e-304) of the row's largest
/// Reference  Milakov & Gimelshein 2018 (arXiv:1805.02867)
using Softmax = detail::SoftmaxFunctor<kernel::SoftmaxResult::weights>;
/// The logarithm of softmax, without taking exp back; −∞ for hidden scores. Otherwise as Softmax.
using LogSoftmax = detail::SoftmaxFunctor<kernel::SoftmaxResult::log_weights>;
/// log Σ exp(s) of each row, L × 1 (of each column, 1 × N, with colwise()); −∞ where nothing is
/// visible. Otherwise as Softmax.
using LogSumExp = detail::SoftmaxFunctor<kernel::SoftmaxResult::logsumexp>;

inline constexpr Softmax softmax{};
inline constexpr LogSoftmax log_softmax{};
inline constexpr LogSumExp logsumexp{};

namespace detail {

/// Refuses parts of a merge that do not fit together.
template <class A, class LA, class B, class LB>
void check_parts(const char* function, const MatrixView<A>& a, const MatrixView<LA>& l_a,
                 const MatrixView<B>& b, const MatrixView<LB>& l_b) {
  const auto refuse = [&](const char* name, Index rows, Index cols, Index needs_rows,
                          Index needs_cols) {
    if (rows != needs_rows || cols != needs_cols) {
      fail(text(function, ": ", name, " is ", shape_text(rows, cols), ", needs ",
                shape_text(needs_rows, needs_cols)));
    }
  };
  refuse("the second output", b.rows, b.cols, a.rows, a.cols);
  refuse("the first logsumexp", l_a.rows, l_a.cols, a.rows, l_a.cols);
  refuse("the second logsumexp", l_b.rows, l_b.cols, a.rows, l_a.cols);
  if (l_a.cols < 1 || a.cols % l_a.cols != 0) {
    fail(text(function, ": the outputs have ", a.cols, " columns, need a multiple of the ",
              l_a.cols, " columns of logsumexp"));
  }
}

/// A row of two results over disjoint keys: where one saw none it is the other's, whatever the one
/// holds.
template <class Scalar>
class RowBlend {
 public:
  RowBlend(const SoftmaxState<Scalar>& a, const SoftmaxState<Scalar>& b)
      : saw_a_(!equal(a.sum, Scalar(0))), saw_b_(!equal(b.sum, Scalar(0))) {
    if (!saw_a_ || !saw_b_) return;
    const Merging<Scalar> both(a.maximum, b.maximum);
    const Scalar inverse = Scalar(Scalar(1) / both(a.sum, b.sum));
    weight_a_ = Scalar(a.sum * both.factor_a) * inverse;
    weight_b_ = Scalar(b.sum * both.factor_b) * inverse;
  }
  Scalar operator()(const Scalar& x, const Scalar& y) const {
    if (saw_a_ && saw_b_) return Scalar(weight_a_ * x) + Scalar(weight_b_ * y);
    return saw_a_ ? x : saw_b_ ? y : Scalar(0);
  }

 private:
  bool saw_a_, saw_b_;
  Scalar weight_a_ = Scalar(0), weight_b_ = Scalar(0);
};

/// The rows of two results merged. `save(i, h, logsumexp)`: what becomes of the log-sum-exp.
template <class To, class A, class LA, class B, class LB, class Save>
void merge_rows(const MatrixView<To>& to, const MatrixView<A>& a, const MatrixView<LA>& l_a,
                const MatrixView<B>& b, const MatrixView<LB>& l_b, const Save& save) {
  using Scalar = compute_t<typename MatrixView<A>::Scalar>;
  const Index heads = l_a.cols, features = a.cols / heads;
  for (Index h = 0; h < heads; ++h) {
    for (Index i = 0; i < a.rows; ++i) {
      // A log-sum-exp is the state of one score: its maximum, weight 1. Where there is none, the
      // state is empty.
      SoftmaxState<Scalar> of_a, of_b;
      of_a.update(Scalar(l_a(i, h)));
      of_b.update(Scalar(l_b(i, h)));
      const SoftmaxState<Scalar> whole = merge(of_a, of_b);
      const RowBlend<Scalar> blend(of_a, of_b);
      for (Index c = h * features; c < (h + 1) * features; ++c)
        to(i, c) = To(blend(Scalar(a(i, c)), Scalar(b(i, c))));
      save(i, h, whole.logsumexp());
    }
  }
}

/// merge() of matrices in memory.
template <class Asked, class A, class LA, class B, class LB>
void merge_into(const Asked& asked, const MatrixView<A>& a, const MatrixView<LA>& l_a,
                const MatrixView<B>& b, const MatrixView<LB>& l_b) {
  static constexpr const char* function = "attn::merge";
  constexpr bool kSaves = Asked::template has<kernel::LogSumExpOfRow>();
  const Index rows = a.rows, cols = a.cols, heads = l_a.cols;
  check_parts(function, a, l_a, b, l_b);
  const auto& target = asked.template get<IntoOption>().target;
  const auto& saved = asked.template get<kernel::LogSumExpOfRow>();
  target.check(function, "output", rows, cols);
  Outputs outputs(function);
  outputs.add("output", target.memory(rows, cols));
  if constexpr (kSaves) {
    saved.target.check(function, "logsumexp", rows, heads);
    outputs.add("logsumexp", saved.target.memory(rows, heads));
  }
  outputs.keep_from("the first output", as_tensor(a), 0);
  outputs.keep_from("the second output", as_tensor(b), 0);
  outputs.keep_from("the first logsumexp", as_tensor(l_a), 1);
  outputs.keep_from("the second logsumexp", as_tensor(l_b), 1);
  auto output_size = target.resizing(rows, cols);
  if constexpr (kSaves) saved.target.resizing(rows, heads).commit();
  output_size.commit();

  merge_rows(target.view(), a, l_a, b, l_b, [&](Index i, Index h, const auto& logsumexp) {
    if constexpr (kSaves) {
      const auto l = saved.target.view();
      l(i, h) = typename bare_t<decltype(l)>::Scalar(logsumexp);
    }
  });
}

}  // namespace detail

/// Combines two attention results of the same queries over disjoint keys into the result over all
/// of them, to rounding:
/// O = (e_a·O_a + e_b·O_b) / (e_a + e_b) with e = exp(logsumexp − their maximum), row by row and
/// head by head.
///
/// Shapes     O_a, O_b [Lq, H·d_v]  l_a, l_b [Lq, H] (from save_logsumexp)  →  O [Lq, H·d_v]
/// Options    into(O) (O may be O_a or O_b), save_logsumexp(l) (l may be l_a or l_b)
/// Requires   equal shapes, columns of O a multiple of those of l
///            (std::invalid_argument otherwise)
/// Semantics  a row that saw no key on one side takes the other's, whatever it holds itself; on
///            neither, zeros and −∞
/// Cost       two exp a row and head, two multiplications an element
/// Reference  Dao 2023 (arXiv:2307.08691), §3.1
template <class A, class LA, class B, class LB, class... Options>
auto merge(const Eigen::DenseBase<A>& output_a, const Eigen::DenseBase<LA>& logsumexp_a,
           const Eigen::DenseBase<B>& output_b, const Eigen::DenseBase<LB>& logsumexp_b,
           Options&&... options) {
  using namespace detail;
  static_assert((is_of_kind_v<Options, IntoOption, kernel::LogSumExpOfRow> && ...),
                "attn::merge: its options are into(O) and save_logsumexp(l)");
  static_assert((writes_matrix_v<bare_t<Options>> && ...),
                "attn::merge: its outputs are matrices, no views");
  check_given<Options...>();
  // Expressions are evaluated before anything is written that they read.
  const auto held_a = hold(output_a.derived()), held_b = hold(output_b.derived());
  const auto held_la = hold(logsumexp_a.derived()), held_lb = hold(logsumexp_b.derived());
  const auto merge_to = [&](const auto& asked) {
    merge_into(asked, held_a.view(), held_la.view(), held_b.view(), held_lb.view());
  };
  if constexpr (given_v<IntoOption, Options...>) {
    merge_to(Asked(options...));
  } else {
    typename A::PlainObject merged(output_a.rows(), output_a.cols());
    auto target = into(merged);
    merge_to(Asked(options..., target));
    return merged;
  }
}

}  // namespace ATTN_ABI
}  // namespace attn
