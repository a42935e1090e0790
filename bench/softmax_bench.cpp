// bench/softmax_bench.cpp: row-wise softmax of a matrix, beside the same by hand in Eigen.
// SPDX-License-Identifier: MIT

#include <attn/attn.h>
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <exception>

#include "support/measure.h"
#include "support/operands.h"

namespace bench {
namespace {

constexpr Index kSize = 1024;

/// Row by row where rows lie along memory; else whole-matrix expressions, as they run along it.
template <class Matrix>
class SoftmaxByHand {
 public:
  void operator()(const Matrix& s, Matrix& p) {
    if constexpr (Matrix::IsRowMajor) {
      for (Index i = 0; i < s.rows(); ++i) {
        auto row = p.row(i);
        row = (s.row(i).array() - s.row(i).maxCoeff()).exp();
        row /= row.sum();
      }
    } else {
      factor_ = s.rowwise().maxCoeff();
      for (Index j = 0; j < s.cols(); ++j) p.col(j) = (s.col(j) - factor_).array().exp();
      factor_ = p.rowwise().sum().cwiseInverse();
      for (Index j = 0; j < s.cols(); ++j) p.col(j).array() *= factor_.array();
    }
  }

 private:
  Eigen::Matrix<typename Matrix::Scalar, Eigen::Dynamic, 1> factor_;
};

/// Largest absolute error of all rows, against long double.
template <class Matrix>
double max_error(const Matrix& s, const Matrix& p) {
  double worst = 0;
  for (Index i = 0; i < s.rows(); ++i) {
    const long double max = s.row(i).maxCoeff();
    long double sum = 0;
    for (Index j = 0; j < s.cols(); ++j) sum += std::exp(s(i, j) - max);
    for (Index j = 0; j < s.cols(); ++j) {
      const auto error = static_cast<double>(std::abs(p(i, j) - std::exp(s(i, j) - max) / sum));
      if (std::isnan(error)) return error;
      worst = std::max(worst, error);
    }
  }
  return worst;
}

template <class Matrix>
void measure(benchmark::State& state) {
  Matrix s(kSize, kSize);
  Matrix p(kSize, kSize);
  Uniform uniform(5);
  fill(s, uniform);
  SoftmaxByHand<Matrix> by_hand;
  Units library_units([&] { attn::softmax(s, attn::into(p)); });
  state.counters["max_err"] = max_error(s, p);
  Units textbook_units([&] { by_hand(s, p); });
  state.counters["textbook_max_err"] = max_error(s, p);
  for (auto _ : state) {
    sample_in_turn(library_units, textbook_units, [&] { library_units.sample(); });
  }
  const Samples& times = library_units.per_call();
  state.counters["ms_min"] = 1e3 * times.min();
  state.counters["ms_median"] = 1e3 * times.median();
  state.counters["samples"] = static_cast<double>(times.size());
  state.counters["textbook_ms"] = 1e3 * textbook_units.per_call().min();
  state.counters["vs_textbook"] = times.min() / textbook_units.per_call().min();
}

template <class Matrix>
void run(benchmark::State& state) {
  try {
    measure<Matrix>(state);
  } catch (const std::exception& error) {
    state.SetLabel(error.what());
    state.SkipWithError(error.what());
  }
}

BENCHMARK_TEMPLATE(run, RowMatrix<float>)->Name("softmax/1k/threads:1");
BENCHMARK_TEMPLATE(run, Eigen::MatrixXf)->Name("softmax/1k_colmajor/threads:1");
BENCHMARK_TEMPLATE(run, RowMatrix<double>)->Name("softmax/1k_double/threads:1");

}  // namespace
}  // namespace bench
