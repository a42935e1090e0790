// attn/detail/saved.h: what the save_… options of output.h hold, and what the engine writes through.
// SPDX-License-Identifier: MIT
#pragma once

#include "output.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// query_rows(…): rows of the call whose pairs are saved.
struct ChosenRows {
  IndexList rows;
};
/// average_heads(), and its absence.
struct AverageHeads {};
struct EachHead {};

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

/// Where one number for each pair goes, and of which rows.
template <class T>
struct PairTarget {
  using Scalar = T;
  Operand<T> to;                      ///< features are keys, as many as the longest sequence has
  const IndexList* chosen = nullptr;  ///< query tokens in increasing order; null: all

  /// The number of the first of the tokens [begin, end) that are wanted, or −1.
  Index first_wanted(Index begin, Index end) const {
    if (chosen == nullptr) return begin < end ? begin : -1;
    Index low = 0, high = chosen->size();
    while (low < high) {
      const Index middle = low + (high - low) / 2;
      if ((*chosen)[middle] < begin) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low < chosen->size() && (*chosen)[low] < end ? low : -1;
  }
  /// Where the numbers of one row begin, under one head; null: the row is not wanted.
  T* row(const QueryRow& row, Index head) const {
    if (chosen == nullptr) return to.row(row.sequence, head, row.row);
    const Index slot = first_wanted(row.token, row.token + 1);
    return slot < 0 ? nullptr : to.row(0, head, slot);
  }
};
/// Weights as the engine writes them; `Over`: EachHead or AverageHeads.
template <class T, class Over>
struct WeightsTarget : PairTarget<T> {
  static constexpr bool kAverages = std::is_same_v<Over, AverageHeads>;
};
template <class T>
struct ScoresTarget : PairTarget<T> {
  stage at = stage::masked;
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
