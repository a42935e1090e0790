// attn/attention.h: scaled dot-product attention: attention(Q, K, V, options…) and the functor that owns its workspace.
// SPDX-License-Identifier: MIT
//
// Conventions
//   A row is a token, a column a feature:  Q is Lq×d_k, K is Lk×d_k, V is Lk×d_v, the output Lq×d_v; d_v may differ from d_k.
//   Any Eigen type goes in: Matrix, Map, Ref, Block, transpose, expression; either storage order, any strides, fixed or dynamic
//   sizes. Expressions and temporaries are evaluated once; everything else is referred to.
//   Heads lie side by side in columns (layout.h); query head h reads key/value head h / (H / H_kv). A batch is its sequences'
//   tokens stacked in rows.
//   Order: rotary → scale → softcap → bias → alibi → the user's score → mask → softmax (score.h).
//   Positions: key j is at j, query row i at i + offset; the offset is named once in the call (mask.h).
//   A row with no key left gives zeros and log-sum-exp −∞ (the sink's logit where there is one), on every path. A hidden pair
//   contributes nothing, whatever its key and value hold. NaN in a visible query, key or value gives NaN in the rows that see it,
//   and only there. A score of −∞ is hidden.
//   A row that sees one key returns that value row exactly.
//   half and bfloat16 are storage types, for each operand separately, computed in float; every other scalar computes in itself.
//
// The same bits: a row's result depends on its query, the keys it sees and the options; not on Lq, the other rows, what hidden
// keys hold, the batch, the threads, the storage order, or fixed or dynamic sizes. Outside that promise: -ffast-math, x87, other builds.
//
// No allocation: scratch comes from the functor's workspace, the caller's (use(ws)), or the stack where all sizes are fixed; the
// free function without use(ws) allocates its scratch for the call.
#pragma once

#include "detail/overlap.h"
#include "kernel/forward.h"
#include "options.h"

namespace attn {
inline namespace ATTN_ABI {

/// The sizes that a workspace depends on, for reserve(): of the longest sequence, d_k and d_v for each head.
struct AttentionShape {
  Index queries = 0, keys = 0;
  Index key_dim = 0, value_dim = 0;
  Index heads = 1, kv_heads = 1;
  Index sequences = 1;    ///< matters only with several workers
  int workers = 1;        ///< as in parallel(workers) or on(pool)
  Index rotary_dims = 0;  ///< features of each head that turn, with rotary()
};

namespace detail {

/// The result's type: the query's scalar and storage order, fixed sizes where they are known.
template <class Query, class Value>
struct result {
  using q = operand_traits<Query>;
  using v = operand_traits<Value>;
  static constexpr int rows = q::rows;
  static constexpr int cols = q::has_heads || v::has_heads ? Eigen::Dynamic : v::cols;
  // Eigen has no row-major columns and no column-major rows.
  static constexpr int order = rows == 1 && cols != 1   ? Eigen::RowMajor
                               : cols == 1 && rows != 1 ? Eigen::ColMajor
                                                        : q::order;
  using type = Eigen::Matrix<typename q::Scalar, rows, cols, order>;
};

/// Scalars of scratch that a call of these sizes takes with this many workers, rotary()'s table among them.
template <class Scalar>
constexpr Index scratch_scalars(const AttentionShape& s, int workers) {
  using Size = kernel::TileSize<Scalar>;
  const Index chunk_rows = Size::chunk_rows(s.sequences * s.queries * s.heads, workers);
  kernel::ScratchSize<Scalar> size(s.queries * (s.heads / s.kv_heads), s.keys, s.key_dim,
                                   s.value_dim, chunk_rows);
  if (s.rotary_dims > 0) size.rotated_keys = Size::panel;
  const Index angles = RotaryTable<Scalar>::size(s.sequences * (s.queries + s.keys), s.rotary_dims);
  return workers * size.total() + angles;
}

/// Scratch that fits the stack: all sizes are known to the compiler, and few.
template <class Query, class Key, class Value, bool Rotates>
struct stack_scratch {
  using q = operand_traits<Query>;
  using k = operand_traits<Key>;
  using v = operand_traits<Value>;
  using Scalar = compute_t<typename q::Scalar>;
  static constexpr bool known = q::rows != Eigen::Dynamic && q::cols != Eigen::Dynamic &&
                                k::rows != Eigen::Dynamic && v::cols != Eigen::Dynamic;
  static constexpr Index total =
      known
          ? scratch_scalars<Scalar>(
                {q::rows, k::rows, q::cols, v::cols, 1, 1, 1, 1, Rotates ? Index(q::cols) : 0}, 1) +
                16
          : 0;
  static constexpr bool value =
      known && total * Index(sizeof(Scalar)) <= Index(EIGEN_STACK_ALLOCATION_LIMIT);
};

/// In place of BoundRotary in a call without rotary().
struct NoRotary {
  static constexpr Index scalars() { return 0; }
  template <class Scalar>
  static kernel::Absent fill(Scalar*) {
    return {};
  }
};

/// Understands the operands, checks everything, then runs the engine. `own` may be null: then the call brings its scratch.
template <class Query, class Key, class Value, class... Options>
void attend(const char* function,
            Workspace<compute_t<typename operand_traits<bare_t<Query>>::Scalar>>* own, Query&& Q,
            Key&& K, Value&& V, Options&&... options) {
  using Scalar = compute_t<typename operand_traits<bare_t<Query>>::Scalar>;
  const auto query_held = lift(std::forward<Query>(Q));
  const auto key_held = lift(std::forward<Key>(K));
  const auto value_held = lift(std::forward<Value>(V));
  const auto query = read_only(query_held.view(function, "query"));
  const auto key = read_only(key_held.view(function, "key"));
  const auto value = read_only(value_held.view(function, "value"));

  constexpr bool kRotates = count_v<is_rotary, Options...> == 1;
  const NoOption none{};
  const Batch batch = [&] {
    if constexpr (count_v<is_batch, Options...> == 1) {
      return Batch(function, pick<is_batch>(none, options...));
    } else {
      return Batch();
    }
  }();
  const CallShape shape =
      call_shape(function, {query.extent(), query_held.kStacked}, {key.extent(), key_held.kStacked},
                 {value.extent(), value_held.kStacked}, batch);

  const auto mask = bind_masks(shape, options...);
  const auto modify = bind_modifiers<Scalar>(shape, options...);
  const auto offset = [&](Index sequence) { return query_offset_of(shape, sequence, options...); };
  for (Index b = 0; b < shape.sequences(); ++b) offset(b);  // refuses what is left open

  const auto rotary = [&] {
    if constexpr (kRotates) {
      const auto& option = pick<is_rotary>(none, options...);
      return BoundRotary<Scalar, bare_t<decltype(option.angles)>, decltype(offset)>(shape, option,
                                                                                    offset);
    } else {
      return NoRotary{};
    }
  }();

  Scalar scale = Scalar(1);
  if constexpr (count_v<is_scale, Options...> == 1) {
    scale = Scalar(pick<is_scale>(none, options...).value);
  } else {
    using std::sqrt;
    const Scalar root = sqrt(Scalar(int(shape.key_dim)));
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

  const Serial serial;
  const auto& executor = pick<is_executor>(serial, options...);
  check_workers(function, executor);

  auto& into_option = pick<is_into>(none, options...);
  static_assert(std::is_same_v<compute_t<typename bare_t<decltype(into_option)>::Scalar>, Scalar>,
                "attn: query, key, value and output must compute in one scalar: cast one of them");
  // Outputs are refused before anything is written, and sized once nothing can be refused any more.
  const auto output_memory = into_option.check(shape);
  const auto for_saved = [&](const auto& visit) { (visit_saved(options, visit), ...); };
  const auto keep_apart = [&](const char* name, const auto& input, bool in_place) {
    check_alias(function, "output", output_memory, name, input, in_place);
    for_saved([&](const auto& saved) {
      check_alias(function, saved.kName, saved.check(shape), name, input, false);
    });
  };
  for_saved([&](const auto& saved) {
    const auto memory = saved.check(shape);
    check_alias(function, saved.kName, memory, "output", output_memory.view, false);
    for_saved([&](const auto& other) {
      if constexpr (bare_t<decltype(other)>::kOrder < bare_t<decltype(saved)>::kOrder)
        check_alias(function, saved.kName, memory, other.kName, other.check(shape).view, false);
    });
  });
  keep_apart("query", place(query, query_held.kStacked, shape.queries).view, true);
  keep_apart("key", place(key, key_held.kStacked, shape.keys).view, false);
  keep_apart("value", place(value, value_held.kStacked, shape.keys).view, false);
  if constexpr (count_v<is_residual, Options...> == 1) keep_apart("residual", residual.view, true);
  (visit_tables(options, keep_apart), ...);

  const auto output = into_option.prepare(shape);
  using kernel::Absent;
  const kernel::Saved saved{prepare_saved<is_save_logsumexp, Absent>(shape, options...),
                            prepare_saved<is_save_max_logit, Absent>(shape, options...),
                            prepare_saved<is_save_entropy, Absent>(shape, options...),
                            prepare_saved<is_save_weights, Absent>(shape, options...),
                            prepare_saved<is_save_scores, Absent>(shape, options...)};

  using Problem =
      kernel::Problem<kernel::Operand<std::remove_pointer_t<decltype(query.data)>>,
                      kernel::Operand<std::remove_pointer_t<decltype(key.data)>>,
                      kernel::Operand<std::remove_pointer_t<decltype(value.data)>>,
                      bare_t<decltype(output)>, bare_t<decltype(mask)>, bare_t<decltype(modify)>,
                      bare_t<decltype(residual)>, bare_t<decltype(saved)>,
                      decltype(rotary.fill(static_cast<Scalar*>(nullptr)))>;
  Problem problem{shape,
                  place(query, query_held.kStacked, shape.queries),
                  place(key, key_held.kStacked, shape.keys, shape.shared_keys),
                  place(value, value_held.kStacked, shape.keys, shape.shared_keys),
                  output,
                  scale,
                  mask,
                  modify,
                  kernel::OffsetOf(offset),
                  residual,
                  saved};

  const Index group = shape.heads / shape.kv_heads;
  Index chunk_rows =
      kernel::TileSize<Scalar>::chunk_rows(shape.queries.total() * shape.heads, executor.workers());
  if (Problem::kOverHeads) chunk_rows = std::max(group, chunk_rows / group * group);
  kernel::ScratchSize<Scalar> size(shape.queries.longest() * group, shape.keys.longest(),
                                   shape.key_dim, shape.value_dim, chunk_rows);
  if constexpr (kRotates) size.rotated_keys = kernel::TileSize<Scalar>::panel;
  const auto run = [&](auto&& reserve) {
    const Index all = size.total() * executor.workers();
    Scalar* const memory = reserve(all + rotary.scalars());
    problem.rotation = rotary.fill(memory + all);
    kernel::forward(problem, size, memory, executor.workers(), executor);
  };
  using OnStack = stack_scratch<bare_t<Query>, bare_t<Key>, bare_t<Value>, kRotates>;
  constexpr bool on_stack = OnStack::value && count_v<is_executor, Options...> == 0;
  if constexpr (on_stack) {
    alignas(64) Scalar memory[OnStack::total];
    run([&](Index) { return Workspace<Scalar>::aligned(memory); });
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
constexpr void check_operand_types() {
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
template <class Scalar, class Query, class Key, class Value, class... Options>
auto attend_or_return(const char* function, Workspace<Scalar>* own, Query&& Q, Key&& K, Value&& V,
                      Options&&... options) {
  check_options<Options...>();
  static_assert(count_v<is_residual_of_query, Options...> == 0,
                "attn: residual() without a matrix is the layer's, which adds its query input: "
                "write residual(X)");
  check_operand_types<Query, Key, Value>();
  if constexpr (count_v<is_into, Options...> == 1) {
    attend(function, own, std::forward<Query>(Q), std::forward<Key>(K), std::forward<Value>(V),
           options...);
  } else {
    static_assert(!is_tensor_view_v<Query>,
                  "attn: a strided view has no matrix of its own shape to return: write "
                  "into(bhld(...)) or into(Y)");
    typename result<bare_t<Query>, bare_t<Value>>::type Y;
    auto target = into(Y);
    attend(function, own, std::forward<Query>(Q), std::forward<Key>(K), std::forward<Value>(V),
           options..., target);
    return Y;
  }
}

}  // namespace detail

/// Computes softmax(scale · Q Kᵀ, modified and masked) V row by row, without ever holding the Lq × Lk scores.
///
/// Shapes     Q [Lq, d_k]  K [Lk, d_k]  V [Lk, d_v]  →  [Lq, d_v]; with heads [Lq, H·d_k] [Lk, H_kv·d_k] [Lk, H_kv·d_v] → [Lq, H·d_v]
/// Options    masks        causal(), window(), prefix_lm(), tree(), keep(), hide(), key_lengths(), key_range(), segments(),
///                         block_sparse(), mask(f), && || ! of them; query_offset()
///            scores       rotary(), scale() (default 1/√d_k), softcap(), bias(), alibi(), score(f), sink()
///            results      into(Y) (then nothing is returned), residual(), save_logsumexp(), save_max_logit(), save_entropy(),
///                         save_weights(), save_scores()
///            batch        sequences(), sequence_length()
///            means        parallel(n), on(pool), use(); all in any order
/// Requires   matching shapes, d_k > 0, H a multiple of H_kv  (std::invalid_argument that names both numbers, otherwise; outputs
///            are then untouched). Empty inputs are valid
/// Semantics  as in the head of this file. The output may be Q itself (or the residual); overlapping K, V or part of Q is refused
/// Cost       4·pairs·d flops for the pairs inside the mask's ranges; scratch O(L·d), here allocated for the call
/// Accuracy   max |error| ≤ 2 × that of the textbook formula, as a matrix product in the same scalar (tests/attention_test.cpp)
/// Reference  Vaswani et al. 2017 (arXiv:1706.03762); Milakov & Gimelshein 2018 (arXiv:1805.02867); Dao 2023, FlashAttention-2
///            (arXiv:2307.08691).     Example: examples/01_attention.cpp
template <class Query, class Key, class Value, class... Options,
          std::enable_if_t<detail::count_v<detail::is_into, Options...> == 0, int> = 0>
[[nodiscard]] auto attention(Query&& Q, Key&& K, Value&& V, Options&&... options) {
  using Scalar = compute_t<typename detail::operand_traits<detail::bare_t<Query>>::Scalar>;
  return detail::attend_or_return<Scalar>("attn::attention", nullptr, std::forward<Query>(Q),
                                          std::forward<Key>(K), std::forward<Value>(V),
                                          std::forward<Options>(options)...);
}
template <class Query, class Key, class Value, class... Options,
          std::enable_if_t<(detail::count_v<detail::is_into, Options...> > 0), int> = 0>
void attention(Query&& Q, Key&& K, Value&& V, Options&&... options) {
  using Scalar = compute_t<typename detail::operand_traits<detail::bare_t<Query>>::Scalar>;
  detail::attend_or_return<Scalar>("attn::attention", nullptr, std::forward<Query>(Q),
                                   std::forward<Key>(K), std::forward<Value>(V),
                                   std::forward<Options>(options)...);
}

/// attention(…) as a functor that owns its workspace: from the second call of the same sizes on, or after reserve(), a call with
/// into(Y) allocates nothing.
///
/// \tparam Scalar  the scalar it computes in, or a storage type that computes in it (half and bfloat16 compute in float)
/// Shapes     as attention()
/// Requires   as attention()
/// Semantics  a regular value. Calls on one object follow each other; a const object takes its scratch from use(workspace) and may
///            be shared by threads that bring one each
/// Cost       as attention()
template <class Scalar>
class ScaledDotProductAttention {
 public:
  using Compute = compute_t<Scalar>;

  template <class Query, class Key, class Value, class... Options,
            std::enable_if_t<detail::count_v<detail::is_into, Options...> == 0, int> = 0>
  [[nodiscard]] auto operator()(Query&& Q, Key&& K, Value&& V, Options&&... options) {
    return call(&workspace_, std::forward<Query>(Q), std::forward<Key>(K), std::forward<Value>(V),
                std::forward<Options>(options)...);
  }
  template <class Query, class Key, class Value, class... Options,
            std::enable_if_t<(detail::count_v<detail::is_into, Options...> > 0), int> = 0>
  void operator()(Query&& Q, Key&& K, Value&& V, Options&&... options) {
    call(&workspace_, std::forward<Query>(Q), std::forward<Key>(K), std::forward<Value>(V),
         std::forward<Options>(options)...);
  }
  template <class Query, class Key, class Value, class... Options,
            std::enable_if_t<detail::count_v<detail::is_into, Options...> == 0, int> = 0>
  [[nodiscard]] auto operator()(Query&& Q, Key&& K, Value&& V, Options&&... options) const {
    check_lent<Options...>();
    return call(nullptr, std::forward<Query>(Q), std::forward<Key>(K), std::forward<Value>(V),
                std::forward<Options>(options)...);
  }
  template <class Query, class Key, class Value, class... Options,
            std::enable_if_t<(detail::count_v<detail::is_into, Options...> > 0), int> = 0>
  void operator()(Query&& Q, Key&& K, Value&& V, Options&&... options) const {
    check_lent<Options...>();
    call(nullptr, std::forward<Query>(Q), std::forward<Key>(K), std::forward<Value>(V),
         std::forward<Options>(options)...);
  }

  /// Makes room for calls up to these sizes, so that even the first one allocates nothing.
  void reserve(const AttentionShape& shape) { workspace_.reserve(scratch_scalars(shape)); }

  /// Scalars of scratch that a call of these sizes takes, by one worker or by as many as the shape names.
  static Index scratch_scalars(const AttentionShape& s) {
    return std::max(detail::scratch_scalars<Compute>(s, 1),
                    detail::scratch_scalars<Compute>(s, s.workers));
  }

 private:
  static constexpr const char* kName = "attn::ScaledDotProductAttention";

  template <class Query, class Key, class Value, class... Options>
  static auto call(Workspace<Compute>* own, Query&& Q, Key&& K, Value&& V, Options&&... options) {
    using Needed = compute_t<typename detail::operand_traits<detail::bare_t<Query>>::Scalar>;
    static_assert(!detail::is_operand_v<Query> || std::is_same_v<Compute, Needed>,
                  "attn::ScaledDotProductAttention: the operands compute in another scalar than "
                  "this functor's");
    return detail::attend_or_return<Compute>(kName, own, std::forward<Query>(Q),
                                             std::forward<Key>(K), std::forward<Value>(V),
                                             std::forward<Options>(options)...);
  }
  template <class... Options>
  static constexpr void check_lent() {
    static_assert(detail::count_v<detail::is_use, Options...> == 1,
                  "attn::ScaledDotProductAttention: a const functor has no scratch of its own: add "
                  "the option use(workspace)");
  }

  Workspace<Compute> workspace_;
};

}  // namespace ATTN_ABI
}  // namespace attn
