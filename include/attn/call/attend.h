// attn/call/attend.h: one call of attention: everything checked, then handed to the engine.
// Plumbing of attention.h.
// SPDX-License-Identifier: MIT
#pragma once

#include "attention_shape.h"
#include "../kernel/schedule.h"
#include "options.h"
#include "../workspace.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Which overload of a call on matrices is meant: the one that returns, or the one that writes
/// into(Y).
template <class Key, class... Options>
inline constexpr bool returns_v = !is_cache_v<Key> && count_v<is_into, Options...> == 0;
template <class Key, class... Options>
inline constexpr bool writes_v = !is_cache_v<Key> && count_v<is_into, Options...> != 0;

/// The result's type: the query's scalar and storage order, fixed sizes where they are known.
template <class Query, class Given>
struct result {
  using q = operand_traits<Query>;
  static constexpr int rows = q::rows;
  static constexpr int cols = q::has_heads ? Eigen::Dynamic : Given::kResultCols;
  // Eigen has no row-major columns and no column-major rows.
  static constexpr int order = rows == 1 && cols != 1   ? Eigen::RowMajor
                               : cols == 1 && rows != 1 ? Eigen::ColMajor
                                                        : q::order;
  using type = Eigen::Matrix<typename q::Scalar, rows, cols, order>;
};

/// In place of BoundRotary in a call without rotary().
struct NoRotary {
  static constexpr Index scalars() { return 0; }
  template <class Scalar>
  static kernel::Absent fill(Scalar*) {
    return {};
  }
};

/// Keys and values given as matrices, not understood yet.
template <class Key, class Value>
struct GivenMatrices {
  using v = operand_traits<bare_t<Value>>;
  static constexpr bool kFromCache = false;
  static constexpr int kResultCols = v::has_heads ? Eigen::Dynamic : v::cols;
  Key& K;
  Value& V;
};
template <class Key, class Value>
GivenMatrices<Key, Value> given_matrices(Key&& K, Value&& V) {
  return {K, V};
}

/// Keys and values given as matrices, heads of them or strided views, as attend() asks for them.
template <class Key, class Value>
class KeyValueMatrices {
 public:
  /// The sizes of a call that are known to the compiler, else Dynamic.
  static constexpr int kKeys = operand_traits<bare_t<Key>>::rows,
                       kValueDim = operand_traits<bare_t<Value>>::cols;

  KeyValueMatrices(const char* function, const GivenMatrices<Key, Value>& given)
      : key_held_(lift(std::forward<Key>(given.K))),
        value_held_(lift(std::forward<Value>(given.V))),
        key_(read_only(key_held_.view(function, "key"))),
        value_(read_only(value_held_.view(function, "value"))) {}

  KeyValueMatrices(const KeyValueMatrices&) = delete;  // its views may lie in itself

  template <class T>
  TensorView<T> query(const TensorView<T>& view, bool) const {
    return view;
  }
  template <class... Options>
  CallShape shape(const char* function, const OperandShape& query, const Batch& batch,
                  const Options&...) const {
    return call_shape(function, query, {key_.extent(), kKeyStacked},
                      {value_.extent(), kValueStacked}, batch);
  }
  template <class... Options>
  auto masks(const CallShape& shape, const Options&... options) const {
    return bind_masks(shape, options...);
  }
  template <class... Options>
  Index query_offset(const CallShape& shape, Index sequence, const Options&... options) const {
    return query_offset_of(shape, sequence, options...);
  }
  template <class Scalar, class Angles, class Offset>
  auto rotary(const CallShape& shape, const Rotary<Angles>& option, const Offset& offset) const {
    return BoundRotary<Scalar, Angles, Offset>(shape, option, offset);
  }
  auto key(const CallShape& shape) const {
    return place(key_, kKeyStacked, shape.keys, shape.shared_keys);
  }
  auto value(const CallShape& shape) const {
    return place(value_, kValueStacked, shape.keys, shape.shared_keys);
  }
  /// Calls visit(name, memory) for what is read.
  template <class Visit>
  void visit(const CallShape& shape, const Visit& visit) const {
    visit("key", place(key_, kKeyStacked, shape.keys).view);
    visit("value", place(value_, kValueStacked, shape.keys).view);
  }
  /// Keys that a block in scratch may have to hold.
  Index scratch_keys(const CallShape& shape) const { return shape.keys.longest(); }

 private:
  using KeyHeld = decltype(lift(std::declval<Key>()));
  using ValueHeld = decltype(lift(std::declval<Value>()));
  static constexpr bool kKeyStacked = KeyHeld::kStacked, kValueStacked = ValueHeld::kStacked;

  KeyHeld key_held_;
  ValueHeld value_held_;
  decltype(read_only(std::declval<const KeyHeld&>().view("", ""))) key_;
  decltype(read_only(std::declval<const ValueHeld&>().view("", ""))) value_;
};
template <class Key, class Value, class... Options>
auto open_source(const char* function, const GivenMatrices<Key, Value>& given, const Options&...) {
  return KeyValueMatrices<Key, Value>(function, given);
}

/// Understands the operands, checks everything, then runs the engine. `own` may be null: then the
/// call brings its scratch.
/// `given`: where keys and values come from, GivenMatrices or another with an open_source().
template <class Query, class Given, class... Options>
void attend(const char* function,
            Workspace<compute_t<typename operand_traits<bare_t<Query>>::Scalar>>* own, Query&& Q,
            const Given& given, Options&&... options) {
  using Scalar = compute_t<typename operand_traits<bare_t<Query>>::Scalar>;
  const auto query_held = lift(std::forward<Query>(Q));
  const auto given_query = read_only(query_held.view(function, "query"));
  auto source = open_source(function, given, options...);
  const auto query = source.query(given_query, query_held.kStacked);

  constexpr bool kRotates = count_v<is_rotary, Options...> == 1,
                 kSplits = count_v<is_split_keys, Options...> == 1;
  const NoOption none{};
  const Batch batch = batch_of(function, options...);
  const CallShape shape =
      source.shape(function, OperandShape{query.extent(), query_held.kStacked}, batch, options...);

  const Serial serial;
  const auto& executor = pick<is_executor>(serial, options...);
  check_workers(function, executor);
  check_amounts(shape, executor.workers(), kSplits);

  static_assert(Given::kFromCache ||
                    count_v<is_all_keys, Options...> + count_v<is_cache_sequences, Options...> == 0,
                "attn: all_keys() and cache_sequences() are for calls on a KeyValueCache");
  const auto mask = source.masks(shape, options...);
  const auto modify = bind_modifiers<Scalar>(shape, options...);
  const auto offset = [&](Index sequence) {
    return source.query_offset(shape, sequence, options...);
  };
  for (Index b = 0; b < shape.sequences(); ++b) offset(b);  // refuses what is left open

  const auto rotary = [&] {
    if constexpr (kRotates) {
      const auto& option = pick<is_rotary>(none, options...);
      return source.template rotary<Scalar>(shape, option, offset);
    } else {
      return NoRotary{};
    }
  }();

  Scalar scale = Scalar(1);
  if constexpr (count_v<is_scale, Options...> == 1) {
    scale = pick<is_scale>(none, options...).template bind<Scalar>(shape);
  } else {
    using std::sqrt;
    const Scalar root = sqrt(from_index<Scalar>(shape.key_dim));
    scale = Scalar(1) / root;
  }

  const auto residual = [&] {
    if constexpr (count_v<is_residual, Options...> == 1) {
      const auto& option = pick<is_residual>(none, options...);
      static_assert(std::is_same_v<compute_t<typename bare_t<decltype(option)>::Scalar>, Scalar>,
                    "attn::residual: the residual must compute in the query's scalar: cast it");
      return place_like_output(shape, "residual",
                               read_only(option.lifted.view(function, "residual")),
                               option.lifted.kStacked);
    } else {
      return kernel::Absent{};
    }
  }();

  const auto parts = [&] {
    if constexpr (kSplits) {
      const SplitKeys& option = pick<is_split_keys>(none, options...);
      option.check(function);
      return kernel::KeyParts::of<Scalar>(option.chunk, shape.keys.longest(), shape.key_dim,
                                          shape.value_dim);
    } else {
      return kernel::Absent{};
    }
  }();

  auto& into_option = pick<is_into>(none, options...);
  static_assert(std::is_same_v<compute_t<typename bare_t<decltype(into_option)>::Scalar>, Scalar>,
                "attn: query, key, value and output must compute in one scalar: cast one of them");
  // Outputs are refused before anything is written, and sized once nothing can be refused any more.
  const auto output_memory = into_option.check(shape);
  Outputs outputs(function);
  outputs.add("output", output_memory);
  add_saved(outputs, shape, options...);
  const auto keep_apart = [&](const char* name, const auto& input) {
    outputs.keep_from(name, input);
  };
  outputs.keep_from("query", place(query, query_held.kStacked, shape.queries).view, 0);
  source.visit(shape, keep_apart);
  if constexpr (count_v<is_residual, Options...> == 1)
    outputs.keep_from("residual", residual.view, 0);
  (visit_tables(options, keep_apart), ...);

  using kernel::Absent;
  auto output = into_option.prepare(shape, output_memory);
  auto logsumexp = prepare_saved<is_save_logsumexp, Absent>(shape, options...);
  auto max_logit = prepare_saved<is_save_max_logit, Absent>(shape, options...);
  auto entropy = prepare_saved<is_save_entropy, Absent>(shape, options...);
  auto weights = prepare_saved<is_save_weights, Absent>(shape, options...);
  auto scores = prepare_saved<is_save_scores, Absent>(shape, options...);
  const kernel::Saved saved{logsumexp.to, max_logit.to, entropy.to, weights.to, scores.to};

  using Problem = kernel::Problem<
      kernel::Operand<std::remove_pointer_t<decltype(query.data)>>, decltype(source.key(shape)),
      decltype(source.value(shape)), bare_t<decltype(output.to)>, bare_t<decltype(mask)>,
      bare_t<decltype(modify)>, bare_t<decltype(residual)>, bare_t<decltype(saved)>,
      decltype(rotary.fill(static_cast<Scalar*>(nullptr))), bare_t<decltype(parts)>>;
  Problem problem{shape,
                  place(query, query_held.kStacked, shape.queries),
                  source.key(shape),
                  source.value(shape),
                  output.to,
                  scale,
                  mask,
                  modify,
                  kernel::OffsetOf(offset),
                  residual,
                  saved,
                  {},
                  parts};

  const Index group = shape.heads / shape.kv_heads;
  const int workers =
      bare_t<decltype(executor)>::kAlone ? 1 : useful_workers<Scalar>(executor.workers(), shape);
  Index chunk_rows =
      kernel::TileSize<Scalar>::chunk_rows(shape.queries.total() * shape.heads, workers);
  if (Problem::kOverHeads) chunk_rows = std::max(group, chunk_rows / group * group);
  kernel::ScratchSize<Scalar> size(shape.queries.longest() * group, source.scratch_keys(shape),
                                   shape.key_dim, shape.value_dim, chunk_rows);
  if constexpr (kRotates) size.rotated_keys = kernel::TileSize<Scalar>::panel;
  if constexpr (kSplits) size.states = 2;
  if constexpr (Problem::kSavesPairs) size.save_pairs();
  const auto run = [&](auto&& reserve) {
    const Index all =
        size.total() * workers + kernel::shared_parts(problem, size, workers).total(size.features);
    Scalar* const memory = reserve(all + rotary.scalars());
    // All memory is there: the outputs take theirs, and from here on only what the user gave can
    // throw.
    commit(output, logsumexp, max_logit, entropy, weights, scores);
    problem.rotation = rotary.fill(memory + all);
    kernel::forward(problem, size, memory, workers, executor);
  };
  using OnStack = stack_scratch<bare_t<Query>, bare_t<decltype(source)>, kRotates, kSplits,
                                Problem::kSavesPairs>;
  constexpr bool on_stack = OnStack::value && count_v<is_executor, Options...> == 0;
  if constexpr (on_stack) {
    alignas(64) Scalar memory[OnStack::total];
    run([&](Index) { return memory; });
  } else if constexpr (count_v<is_use, Options...> == 1) {
    const auto& lent = pick<is_use>(none, options...);
    static_assert(std::is_same_v<typename bare_t<decltype(lent)>::Scalar, Scalar>,
                  "attn::use: the workspace has another scalar than the call computes in");
    run([&](Index n) { return lent.reserve(n); });
  } else {
    Workspace<Scalar> brought;
    run([&](Index n) { return (own != nullptr ? *own : brought).reserve(n); });
  }
}

/// Types that cannot attend together, said in words.
template <class Query, class Key, class Value>
constexpr void check_operand_types(const GivenMatrices<Key, Value>*) {
  static_assert(is_operand_v<Query> && is_operand_v<Key> && is_operand_v<Value>,
                "attn: query, key and value are Eigen matrices, heads(X, n) of them, or strided "
                "views (bhld, blhd, lbhd)");
  using Scalar = compute_t<typename operand_traits<bare_t<Query>>::Scalar>;
  static_assert(!Eigen::NumTraits<Scalar>::IsInteger,
                "attn: integer matrices have no softmax: cast<float>() them first");
  static_assert(!Eigen::NumTraits<Scalar>::IsComplex, "attn: complex matrices have no softmax");
  static_assert(
      std::is_same_v<Scalar, compute_t<typename operand_traits<bare_t<Key>>::Scalar>> &&
          std::is_same_v<Scalar, compute_t<typename operand_traits<bare_t<Value>>::Scalar>>,
      "attn: query, key, value and output must compute in one scalar: cast one of them");
}

/// With into(Y): writes there and returns nothing; else returns the matrix.
template <class Scalar, class Query, class Given, class... Options>
auto attend_or_return(const char* function, Workspace<Scalar>* own, Query&& Q, const Given& given,
                      Options&&... options) {
  check_options<Options...>();
  static_assert(count_v<is_residual_of_query, Options...> == 0,
                "attn: residual() without a matrix is the layer's, which adds its query input: "
                "write residual(X)");
  check_operand_types<Query>(&given);
  if constexpr (count_v<is_into, Options...> == 1) {
    attend(function, own, std::forward<Query>(Q), given, options...);
  } else {
    static_assert(!is_tensor_view_v<Query>,
                  "attn: a strided view has no matrix of its own shape to return: write "
                  "into(bhld(...)) or into(Y)");
    typename result<bare_t<Query>, Given>::type Y;
    auto target = into(Y);
    attend(function, own, std::forward<Query>(Q), given, options..., target);
    return Y;
  }
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
