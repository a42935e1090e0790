// bench/support/reference.h: the largest error among sampled rows of an output.
// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "operands.h"
#include "workloads.h"

namespace bench {

/// Row i of head h in sequence b, by the formula in long double from the operands as stored.
template <class Stored>
std::vector<long double> reference_row(const Workload& w, const Operands<Stored>& x,
                                       const RowMatrix<compute_t<Stored>>& bias, Index b, Index h,
                                       Index i) {
  const auto wide = [](Stored value) {
    return static_cast<long double>(static_cast<compute_t<Stored>>(value));
  };
  const Index key_head = h / (w.query_heads / w.key_heads);
  const auto element = [&](const auto& memory, Strides s, Index head, Index token, Index feature) {
    return wide(memory[b * s.sequence + head * s.head + token * s.token + feature * s.feature]);
  };
  const Index keys = visible_keys(w, b, i);

  std::vector<long double> scores(static_cast<std::size_t>(keys));
  for (Index j = 0; j < keys; ++j) {
    long double dot = 0;
    for (Index c = 0; c < w.head_size; ++c) {
      dot += element(x.q, query_strides(w), h, i, c) * element(x.k, key_strides(w), key_head, j, c);
    }
    dot /= std::sqrt(static_cast<long double>(w.head_size));
    if (w.mask == Mask::kBias) dot += bias(i, j);
    scores[static_cast<std::size_t>(j)] = dot;
  }
  const long double max = *std::max_element(scores.begin(), scores.end());
  long double sum = 0;
  std::vector<long double> row(static_cast<std::size_t>(w.value_size), 0.0L);
  for (Index j = 0; j < keys; ++j) {
    const long double p = std::exp(scores[static_cast<std::size_t>(j)] - max);
    sum += p;
    for (Index c = 0; c < w.value_size; ++c) {
      row[static_cast<std::size_t>(c)] += p * element(x.v, value_strides(w), key_head, j, c);
    }
  }
  for (long double& value : row) value /= sum;
  return row;
}

/// Largest absolute error of 24 rows of y: the first and the last, and others at random. NaN in
/// one of them gives NaN.
template <class Stored>
double max_error(const Workload& w, const Operands<Stored>& x,
                 const RowMatrix<compute_t<Stored>>& bias, const Stored* y) {
  constexpr Index kRows = 24;
  const Index all = w.batch * w.query_heads * w.queries;
  Uniform uniform(7);
  double worst = 0;
  for (Index sample = 0; sample < std::min(kRows, all); ++sample) {
    Index row = static_cast<Index>((uniform() + 1) / 2 * static_cast<double>(all - 1));
    if (sample < 2) row = sample == 0 ? 0 : all - 1;
    const Index b = row / w.queries / w.query_heads, h = row / w.queries % w.query_heads,
                i = row % w.queries;
    const auto expected = reference_row(w, x, bias, b, h, i);
    const Strides s = output_strides(w);
    for (Index c = 0; c < w.value_size; ++c) {
      const auto actual = static_cast<compute_t<Stored>>(
          y[b * s.sequence + h * s.head + i * s.token + c * s.feature]);
      const double error =
          static_cast<double>(std::abs(actual - expected[static_cast<std::size_t>(c)]));
      if (!(error <= worst)) worst = error;
      if (std::isnan(worst)) return worst;
    }
  }
  return worst;
}

}  // namespace bench
