// attn/call/saved_outputs.h: what the save_… options of output.h hold.
// SPDX-License-Identifier: MIT
#pragma once

#include "../kernel/pair_target.h"
#include "output_memory.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// query_rows(…): rows of the call whose pairs are saved.
struct ChosenRows {
  IndexList rows;
};
template <class Target>
constexpr void check_saved_type() {
  using Stored = typename Target::Scalar;
  static_assert(!Eigen::NumTraits<Stored>::IsInteger && !Eigen::NumTraits<Stored>::IsComplex,
                "attn: saved weights, scores and logarithms are real numbers: save them to a "
                "matrix of float or double");
}

// What is saved of a row: its name in messages.
struct LogSumExpOfRow {
  static constexpr const char* kName = "logsumexp";
};
struct MaxLogitOfRow {
  static constexpr const char* kName = "max_logit";
};
struct EntropyOfRow {
  static constexpr const char* kName = "entropy";
};

/// One number for each query token and head.
template <class Target, class Number>
struct SaveRow : option_base {
  Target target;
  static constexpr const char* kName = Number::kName;
  explicit SaveRow(Target t) : target(std::move(t)) { check_saved_type<Target>(); }

  auto check(const CallShape& call) const { return check_output(target, needs(call)); }
  auto prepare(const CallShape& call) const { return prepare_output(target, needs(call)); }

 private:
  static OutputShape needs(const CallShape& call) {
    OutputShape needs{call, kName, "one number"};
    needs.shape.value_dim = 1;
    return needs;
  }
};

/// One number for each pair of query and key.
template <class Target>
struct SavePairs : option_base {
  Target target;
  ChosenRows chosen;
  bool some = false;  ///< only the chosen rows

  explicit SavePairs(Target t) : target(std::move(t)) { check_saved_type<Target>(); }
  void select(ChosenRows rows) {
    chosen = std::move(rows);
    some = true;
  }
  void select(AverageHeads) {}  // says its type

 protected:
  OutputShape needs(const CallShape& call, const char* name, Index heads) const {
    OutputShape needs{call, name, "keys"};
    needs.shape.heads = heads;
    needs.shape.value_dim = call.keys.longest();
    if (some) needs.shape.queries = {1, chosen.rows.size(), nullptr};
    return needs;
  }
  void check_rows(const CallShape& call) const {
    if (!some) return;
    for (Index n = 0; n < chosen.rows.size(); ++n) {
      const Index row = chosen.rows[n], rows = call.queries.total();
      if (row < 0 || row >= rows) {
        fail(text(call.function, ": query_rows: entry ", n, " is ", row, ", the call has ", rows,
                  " query rows"));
      }
      if (n > 0 && row <= chosen.rows[n - 1]) {
        fail(text(call.function, ": query_rows: entry ", n, " is ", row, ", needs more than the ",
                  chosen.rows[n - 1], " before it"));
      }
    }
  }
  const IndexList* chosen_rows() const { return some ? &chosen.rows : nullptr; }
};
template <class Target, class Over>
struct SaveWeights : SavePairs<Target> {
  static constexpr const char* kName = "weights";
  using Scalar = typename Target::Scalar;
  using SavePairs<Target>::SavePairs;

  auto check(const CallShape& call) const {
    this->check_rows(call);
    return check_output(this->target, this->needs(call, kName, heads(call)));
  }
  auto prepare(const CallShape& call) const {
    auto output = prepare_output(this->target, this->needs(call, kName, heads(call)));
    return prepared(WeightsTarget<Scalar, Over>{{output.to, this->chosen_rows()}},
                    std::move(output.size));
  }

 private:
  static Index heads(const CallShape& call) {
    return std::is_same_v<Over, AverageHeads> ? 1 : call.heads;
  }
};
template <class Target>
struct SaveScores : SavePairs<Target> {
  static constexpr const char* kName = "scores";
  using Scalar = typename Target::Scalar;
  using SavePairs<Target>::SavePairs;
  stage at = stage::masked;

  auto check(const CallShape& call) const {
    this->check_rows(call);
    return check_output(this->target, this->needs(call, kName, call.heads));
  }
  auto prepare(const CallShape& call) const {
    auto output = prepare_output(this->target, this->needs(call, kName, call.heads));
    return prepared(ScoresTarget<Scalar>{{output.to, this->chosen_rows()}, at},
                    std::move(output.size));
  }
};

template <class T, class Number>
struct is_save_row : std::false_type {};
template <class Target, class Number>
struct is_save_row<SaveRow<Target, Number>, Number> : std::true_type {};
template <class T>
using is_save_logsumexp = is_save_row<T, LogSumExpOfRow>;
template <class T>
using is_save_max_logit = is_save_row<T, MaxLogitOfRow>;
template <class T>
using is_save_entropy = is_save_row<T, EntropyOfRow>;
/// Into or SaveRow of a matrix, not of a strided view.
template <class T>
inline constexpr bool writes_matrix_v =
    is_matrix_output_v<std::decay_t<decltype(std::declval<T>().target)>>;
template <class T>
using is_save_weights = is_instance<SaveWeights, T>;
template <class T>
using is_save_scores = is_instance<SaveScores, T>;

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
