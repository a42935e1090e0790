// attn/call/saved_outputs.h: what the save_… options of output.h hold.
// SPDX-License-Identifier: MIT
#pragma once

#include "../base/asked.h"
#include "../kernel/pair_target.h"
#include "../kernel/row_outputs.h"
#include "output_memory.h"
#include "overlap.h"

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

/// One number for each query token and head: its kind is the number (kernel/row_outputs.h).
template <class Target, class Number>
struct SaveRow : option_base {
  using Kind = Number;
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
struct WeightsOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: save_weights twice in one call");
  }
};
template <class Target, class Over>
struct SaveWeights : SavePairs<Target> {
  using Kind = WeightsOption;
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
struct ScoresOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: save_scores twice in one call");
  }
};
template <class Target>
struct SaveScores : SavePairs<Target> {
  using Kind = ScoresOption;
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

/// save_state(state): the option is in attention_state.h.
struct StateOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: save_state twice in one call");
  }
};
/// The same of a layer (layer_state.h).
struct LayerStateOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: save_state twice in one call");
  }
};

template <class Kind, class Asked>
void add_if_given(Outputs& outputs, const CallShape& shape, const Asked& asked) {
  if constexpr (Asked::template has<Kind>()) {
    const auto& option = asked.template get<Kind>();
    outputs.add(option.kName, option.check(shape));
  }
}
template <class Asked, class... Numbers>
void add_rows(Outputs& outputs, const CallShape& shape, const Asked& asked, Order<Numbers...>) {
  constexpr int others = 3;  // Y, weights, scores
  static_assert(int(sizeof...(Numbers)) + others <= Outputs::kMost, "room for all outputs");
  (add_if_given<Numbers>(outputs, shape, asked), ...);
}
/// Adds the outputs beside Y to those of a call, in one order whatever that of the options is.
template <class Asked>
void add_saved(Outputs& outputs, const CallShape& shape, const Asked& asked) {
  add_rows(outputs, shape, asked, kernel::RowNumbers{});
  add_if_given<WeightsOption>(outputs, shape, asked);
  add_if_given<ScoresOption>(outputs, shape, asked);
}

/// In place of a PreparedOutput that is not asked for.
struct NotPrepared {
  Absent to;
  void commit() const {}
  void complete() const {}
};
/// An output beside Y, laid out, its new memory taken.
template <class Kind, class Call, class Asked>
auto prepare_if_given(const Call& call, const Asked& asked) {
  if constexpr (Asked::template has<Kind>()) {
    return asked.template get<Kind>().prepare(call);
  } else {
    return NotPrepared{};
  }
}
/// The numbers of rows among them: a tuple of those that are given.
template <class Number, class Output>
struct PreparedRow {
  Output output;
  auto target() const { return kernel::RowOutput<Number, decltype(output.to)>{output.to}; }
  void commit() { output.commit(); }
};
template <class Number, class Output>
std::tuple<PreparedRow<Number, Output>> prepared_row(Output&& output) {
  return {PreparedRow<Number, Output>{std::move(output)}};
}
template <class Number, class Asked>
auto prepare_row(const CallShape& shape, const Asked& asked) {
  if constexpr (Asked::template has<Number>()) {
    return prepared_row<Number>(asked.template get<Number>().prepare(shape));
  } else {
    return std::tuple<>();
  }
}
template <class Asked, class... Numbers>
auto prepare_rows(const CallShape& shape, const Asked& asked, Order<Numbers...>) {
  return std::tuple_cat(prepare_row<Numbers>(shape, asked)...);
}

/// The outputs beside Y, ready to be written.
template <class Weights, class Scores, class State, class... Rows>
struct PreparedOutputs {
  Weights weights;
  Scores scores;
  State state;
  std::tuple<Rows...> rows;

  auto targets() const {
    return std::apply(
        [&](const auto&... row) {
          return kernel::Saved<decltype(weights.to), decltype(scores.to), decltype(state.to),
                               decltype(row.target())...>{
              weights.to, scores.to, state.to, {row.target()...}};
        },
        rows);
  }
  void commit() {
    std::apply([](auto&... row) { (row.commit(), ...); }, rows);
    weights.commit();
    scores.commit();
    state.commit();
  }
  /// All of them are written. (A state is worth nothing before.)
  void complete() { state.complete(); }
};
template <class Weights, class Scores, class State, class... Rows>
PreparedOutputs<Weights, Scores, State, Rows...> prepared_outputs(Weights&& weights,
                                                                  Scores&& scores, State&& state,
                                                                  std::tuple<Rows...>&& rows) {
  return {std::move(weights), std::move(scores), std::move(state), std::move(rows)};
}
/// `bound`: what the call understands of its options (bound_options.h).
template <class Bound, class Asked>
auto prepare_saved(const Bound& bound, const Asked& asked) {
  const CallShape& shape = bound.shape;
  return prepared_outputs(prepare_if_given<WeightsOption>(shape, asked),
                          prepare_if_given<ScoresOption>(shape, asked),
                          prepare_if_given<StateOption>(bound, asked),
                          prepare_rows(shape, asked, kernel::RowNumbers{}));
}

/// Into or SaveRow of a matrix, not of a strided view.
template <class T>
inline constexpr bool writes_matrix_v =
    is_matrix_output_v<std::decay_t<decltype(std::declval<T>().target)>>;
}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
