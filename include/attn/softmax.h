// attn/softmax.h: stage 3, softmax kernels over Eigen matrices, and what is mergeable: the state (max, sum).
// SPDX-License-Identifier: MIT
//
//   operation     formula (per row; per column with colwise())      code
//   softmax       exp(s_j − m) / Σ exp(s_k − m),  m = max s         softmax(S), softmax(S, into(P)), softmax(S, into(S)), Softmax
//   log-softmax   (s_j − m) − log Σ exp(s_k − m)                    log_softmax(S), …, LogSoftmax
//   log-sum-exp   m + log Σ exp(s_k − m)                            logsumexp(S), …, LogSumExp
//   merge         see merge(…), and SoftmaxState in softmax_state.h
#pragma once

#include "detail/overlap.h"
#include "kernel/softmax_pass.h"
#include "options.h"
#include "softmax_state.h"

namespace attn {
inline namespace ATTN_ABI {

namespace detail {

/// colwise(): columns instead of rows.
struct ColumnWise : option_base {};

template <class T>
using is_columnwise = std::is_same<T, ColumnWise>;

template <kernel::SoftmaxResult Result>
struct SoftmaxFunctor {
  static constexpr const char* kName = Result == kernel::SoftmaxResult::weights ? "attn::softmax"
                                       : Result == kernel::SoftmaxResult::log_weights
                                           ? "attn::log_softmax"
                                           : "attn::logsumexp";

  template <class Matrix, class... Options,
            std::enable_if_t<count_v<is_into, Options...> == 0, int> = 0>
  [[nodiscard]] auto operator()(Matrix&& S, Options&&... options) const {
    using Bare = bare_t<Matrix>;
    static_assert(is_dense_v<Matrix>, "attn::softmax: expected a dense Eigen matrix of scores");
    if constexpr (Result == kernel::SoftmaxResult::logsumexp) {
      constexpr bool columns = count_v < is_columnwise, Options... >> 0;
      Eigen::Matrix<typename Bare::Scalar, columns ? 1 : Bare::RowsAtCompileTime,
                    columns ? Bare::ColsAtCompileTime : 1,
                    columns && Bare::ColsAtCompileTime != 1 ? Eigen::RowMajor : Eigen::ColMajor>
          l;
      (*this)(std::forward<Matrix>(S), options..., into(l));
      return l;
    } else {
      typename Bare::PlainObject P;
      (*this)(std::forward<Matrix>(S), options..., into(P));
      return P;
    }
  }

  template <class Matrix, class... Options,
            std::enable_if_t<(count_v<is_into, Options...> > 0), int> = 0>
  void operator()(Matrix&& S, Options&&... options) const {
    static_assert(is_dense_v<Matrix>, "attn::softmax: expected a dense Eigen matrix of scores");
    static_assert(((is_mask_v<Options> || is_into<bare_t<Options>>::value ||
                    is_columnwise<bare_t<Options>>::value ||
                    std::is_same_v<bare_t<Options>, QueryOffset>)&&...),
                  "attn::softmax: its options are into(P), colwise(), query_offset(), and masks");
    check_options<Options...>();
    constexpr bool columns = count_v < is_columnwise, Options... >> 0;
    static_assert(!columns || count_v<is_mask, Options...> == 0,
                  "attn::softmax: masks are for rows: without colwise()");
    using Scalar = compute_t<typename bare_t<Matrix>::Scalar>;
    static_assert(!Eigen::NumTraits<Scalar>::IsInteger && !Eigen::NumTraits<Scalar>::IsComplex,
                  "attn::softmax: expected real scores: cast<float>() them first");

    const auto held = hold(std::forward<Matrix>(S));
    const auto scores = held.view();
    CallShape shape;
    shape.function = kName;
    shape.queries.common_length = scores.rows;
    shape.keys.common_length = scores.cols;
    const auto mask = bind_masks(shape, options...);
    const Index offset = query_offset_of(shape, 0, options...);

    const detail::NoOption none{};
    auto& target = pick<is_into>(none, options...).target;
    using Output = typename bare_t<decltype(target)>::Scalar;
    static_assert(std::is_same_v<compute_t<Output>, Scalar>,
                  "attn::softmax: scores and output must compute in one scalar: cast one of them");
    constexpr bool reduced = Result == kernel::SoftmaxResult::logsumexp;
    const Index rows = reduced && columns ? 1 : scores.rows,
                cols = reduced && !columns ? 1 : scores.cols;
    target.check(kName, "output", rows, cols);
    const auto memory = target.memory(rows, cols);
    using In = typename bare_t<decltype(held)>::Scalar;
    check_alias(kName, "output", memory, "the scores",
                as_tensor(MatrixView<const In>{scores.data, scores.rows, scores.cols,
                                               scores.row_stride, scores.col_stride}),
                !reduced);
    (visit_tables(options,
                  [&](const char* name, const auto& input, bool in_place) {
                    check_alias(kName, "output", memory, name, input, in_place);
                  }),
     ...);
    target.resize(rows, cols);
    const auto results = target.view();

    const kernel::Vectors<const In> in =
        columns ? kernel::Vectors<const In>{scores.data, scores.cols, scores.rows,
                                            scores.col_stride, scores.row_stride}
                : kernel::Vectors<const In>{scores.data, scores.rows, scores.cols,
                                            scores.row_stride, scores.col_stride};
    const kernel::Vectors<Output> out =
        columns ? kernel::Vectors<Output>{results.data, in.count, in.length, results.col_stride,
                                          results.row_stride}
                : kernel::Vectors<Output>{results.data, in.count, in.length, results.row_stride,
                                          results.col_stride};
    kernel::SoftmaxPass<Result, Scalar, In, Output, bare_t<decltype(mask)>>(in, out, mask,
                                                                            offset)();
  }
};

}  // namespace detail

/// Option of softmax, log_softmax and logsumexp: columns instead of rows.
inline detail::ColumnWise colwise() { return {}; }

/// Normalises scores so that each row (each column with colwise()) sums to one.
///
/// Shapes     S [L, N]  →  P [L, N]; any Eigen type, storage order, strides; half and bfloat16 are computed in float
/// Options    into(P) (then nothing is returned; P may be S itself: in place), colwise(), and for rows any mask: causal(), keep(B), …
/// Requires   P's shape                                     (std::invalid_argument otherwise)
/// Semantics  stable for any finite scores; a row with nothing visible gives zeros; hidden scores give 0 whatever they hold
/// Cost       one read, one exp and one write a score (two reads and exp beyond 32 KiB a row); scratch: 32 KiB of stack
/// Accuracy   relative error ≤ (8 + √(N / lanes)) ε for scores within ±5 (tests/softmax_test.cpp); beyond, rounding s − m adds
///            at most ½ ulp of it
using Softmax = detail::SoftmaxFunctor<kernel::SoftmaxResult::weights>;
/// The logarithm of softmax, without taking exp back; −∞ for hidden scores. Otherwise as Softmax.
using LogSoftmax = detail::SoftmaxFunctor<kernel::SoftmaxResult::log_weights>;
/// log Σ exp(s) of each row, L × 1 (of each column, 1 × N, with colwise()); −∞ where nothing is visible. Otherwise as Softmax.
using LogSumExp = detail::SoftmaxFunctor<kernel::SoftmaxResult::logsumexp>;

inline constexpr Softmax softmax{};
inline constexpr LogSoftmax log_softmax{};
inline constexpr LogSumExp logsumexp{};

/// Combines two attention results of the same queries over disjoint keys into the result over all of them, to rounding:
/// O = (e_a·O_a + e_b·O_b) / (e_a + e_b) with e = exp(logsumexp − their maximum), row by row and head by head.
///
/// Shapes     O_a, O_b [Lq, H·d_v]  l_a, l_b [Lq, H] (from save_logsumexp)  →  O [Lq, H·d_v]
/// Options    into(O) (O may be O_a or O_b), save_logsumexp(l) (l may be l_a or l_b)
/// Requires   equal shapes, columns of O a multiple of those of l       (std::invalid_argument otherwise)
/// Semantics  a row that saw no key on one side takes the other's; on neither, zeros and −∞
/// Cost       two exp a row and head, two multiplications an element
/// Reference  Dao 2023 (arXiv:2307.08691), §3.1
template <class A, class LA, class B, class LB, class... Options>
auto merge(const Eigen::DenseBase<A>& output_a, const Eigen::DenseBase<LA>& logsumexp_a,
           const Eigen::DenseBase<B>& output_b, const Eigen::DenseBase<LB>& logsumexp_b,
           Options&&... options) {
  using Stored = typename A::Scalar;
  using Scalar = compute_t<Stored>;
  using detail::fail;
  using detail::shape_text;
  using detail::text;
  static_assert(((detail::is_into<detail::bare_t<Options>>::value ||
                  detail::is_save_logsumexp<detail::bare_t<Options>>::value) &&
                 ...),
                "attn::merge: its options are into(O) and save_logsumexp(l)");
  if constexpr (detail::count_v<detail::is_into, Options...> == 0) {
    typename A::PlainObject merged(output_a.rows(), output_a.cols());
    merge(output_a, logsumexp_a, output_b, logsumexp_b, options..., into(merged));
    return merged;
  } else {
    const char* function = "attn::merge";
    const auto refuse = [&](const char* name, Index rows, Index cols, Index needs_rows,
                            Index needs_cols) {
      if (rows != needs_rows || cols != needs_cols) {
        fail(text(function, ": ", name, " is ", shape_text(rows, cols), ", needs ",
                  shape_text(needs_rows, needs_cols)));
      }
    };
    const Index rows = output_a.rows(), cols = output_a.cols(), heads = logsumexp_a.cols();
    refuse("the second output", output_b.rows(), output_b.cols(), rows, cols);
    refuse("the first logsumexp", logsumexp_a.rows(), heads, rows, heads);
    refuse("the second logsumexp", logsumexp_b.rows(), logsumexp_b.cols(), rows, heads);
    if (heads < 1 || cols % heads != 0) {
      fail(text(function, ": the outputs have ", cols, " columns, need a multiple of the ", heads,
                " columns of logsumexp"));
    }
    const detail::NoOption none{};
    auto& target = detail::pick<detail::is_into>(none, options...).target;
    static_assert(detail::is_matrix_output_v<detail::bare_t<decltype(target)>> &&
                      (detail::writes_matrix_v<detail::bare_t<Options>> && ...),
                  "attn::merge: its outputs are matrices, no views");
    target.check(function, "output", rows, cols);
    const auto check_inputs = [&](const char* name, const auto& memory, bool for_output) {
      const auto apart = [&](const char* input, const auto& m, bool in_place) {
        if constexpr (detail::has_memory<detail::bare_t<decltype(m)>>::value) {
          detail::check_alias(function, name, memory, input,
                              detail::as_tensor(detail::view_matrix(m)), in_place);
        }
      };
      apart("the first output", output_a.derived(), for_output);
      apart("the second output", output_b.derived(), for_output);
      apart("the first logsumexp", logsumexp_a.derived(), !for_output);
      apart("the second logsumexp", logsumexp_b.derived(), !for_output);
    };
    check_inputs("output", target.memory(rows, cols), true);
    if constexpr (detail::count_v < detail::is_save_logsumexp, Options... >> 0) {
      const auto& saved = detail::pick<detail::is_save_logsumexp>(none, options...).target;
      saved.check(function, "logsumexp", rows, heads);
      check_inputs("logsumexp", saved.memory(rows, heads), false);
      detail::check_alias(function, "logsumexp", saved.memory(rows, heads), "output",
                          target.memory(rows, cols).view, false);
      saved.resize(rows, heads);
    }
    target.resize(rows, cols);
    const auto merged = target.view();
    const Index features = cols / heads;
    for (Index h = 0; h < heads; ++h) {
      for (Index i = 0; i < rows; ++i) {
        // A log-sum-exp is the state of one score: its maximum, weight 1. Where there is none, the state is empty.
        SoftmaxState<Scalar> a, b;
        a.update(Scalar(logsumexp_a.derived().coeff(i, h)));
        b.update(Scalar(logsumexp_b.derived().coeff(i, h)));
        const detail::Merging<Scalar> both(a.maximum, b.maximum);
        const SoftmaxState<Scalar> whole{both.maximum, both(a.sum, b.sum)};
        const Scalar inverse =
            detail::equal(whole.sum, Scalar(0)) ? Scalar(0) : Scalar(Scalar(1) / whole.sum);
        const Scalar weight_a = Scalar(a.sum * both.factor_a) * inverse,
                     weight_b = Scalar(b.sum * both.factor_b) * inverse;
        for (Index c = h * features; c < (h + 1) * features; ++c) {
          const Scalar x = Scalar(output_a.derived().coeff(i, c)),
                       y = Scalar(output_b.derived().coeff(i, c));
          using Merged = typename detail::bare_t<decltype(target)>::Scalar;
          merged(i, c) = Merged(Scalar(Scalar(weight_a * x) + Scalar(weight_b * y)));
        }
        if constexpr (detail::count_v < detail::is_save_logsumexp, Options... >> 0) {
          const auto saved =
              detail::pick<detail::is_save_logsumexp>(none, options...).target.view();
          using Saved = typename detail::bare_t<decltype(saved)>::Scalar;
          saved(i, h) = Saved(whole.logsumexp());
        }
      }
    }
  }
}

}  // namespace ATTN_ABI
}  // namespace attn
