// attn/rotary.h: rotary positions: queries and keys turned by angles that grow with their position,
// alone and as an option.
// SPDX-License-Identifier: MIT
//
//   pair i of a head at position p:   (x₀, x₁) → (x₀ cos α − x₁ sin α, x₀ sin α + x₁ cos α),   α = p · base^(−2i/n)
//   of n features that turn:          pairing::interleaved: features 2i, 2i + 1;  pairing::half_split: features i, i + n/2
//
// A score then depends on positions by their difference alone. Positions belong to the call: query
// row i is at i + offset (mask.h names it), key j at j. Keys that are turned already (a cache's)
// want only their queries turned: rotate() does that.
#pragma once

#include "call/output_memory.h"
#include "mask/positions.h"
#include "kernel/rotate_row.h"
#include "call/options.h"

namespace attn {
inline namespace ATTN_ABI {

/// Option: turns queries and keys while they are packed. Changed by .dims(n): only the first n
/// features of each head turn (default all); .positions(ids) or .positions(query_ids, key_ids):
/// explicit positions of this rotation, one for each row; masks keep the call's.
///
/// Requires   base > 0 and finite; n even, 2 ≤ n ≤ d_k                            (std::invalid_argument otherwise)
/// Semantics  angles in double (long double for that scalar), rounded once to the scalar of the
///            call
/// Cost       a pass over each packed row; cosines and sines once a call, O((Lq + Lk) · n) scratch
/// Reference  Su et al. 2021, RoFormer (arXiv:2104.09864)
inline detail::Rotary<detail::AnglesOfBase> rotary(pairing pairs, double base = 10000) {
  return {pairs, {base}};
}
/// The same with cosines and sines given: row p for position p, column i for pair i (half as many
/// as features that turn). For scaled or learned frequencies, and ONNX's caches. Row numbers are
/// what .positions() lists.
///
/// Requires   equal shapes, a row for each position that occurs                  (std::invalid_argument otherwise)
template <class Cosines, class Sines>
auto rotary(pairing pairs, Cosines&& cosines, Sines&& sines) {
  static_assert(detail::is_dense_v<Cosines> && detail::is_dense_v<Sines>,
                "attn::rotary: expected two matrices, the cosines and the sines");
  using Given = detail::GivenAngles<detail::held_t<Cosines>, detail::held_t<Sines>>;
  return detail::Rotary<Given>(pairs, Given{detail::hold(std::forward<Cosines>(cosines)),
                                            detail::hold(std::forward<Sines>(sines))});
}

namespace detail {

/// What rotate() turns, and where it writes it.
template <class Scalar, class From, class To>
struct RotateRows {
  const CallShape& shape;
  Operand<From> from;
  Operand<To> to;
  Rotation<Scalar> rotation;

  /// In scratch for a row.
  void operator()(Scalar* scratch) const {
    for (Index b = 0; b < shape.sequences(); ++b) {
      for (Index i = 0; i < shape.queries.length(b); ++i) {
        const Scalar* angles = rotation.query.of(shape.queries.begin(b) + i, i);
        for (Index h = 0; h < shape.heads; ++h)
          turn(angles, from.row(b, h, i), to.row(b, h, i), scratch);
      }
    }
  }

 private:
  void turn(const Scalar* angles, const From* x, To* y, Scalar* row) const {
    const Index features = from.view.features;
    kernel::rotate_row<Simd<Scalar>>(rotation, angles, x, from.view.feature_stride, features, row);
    for (Index c = 0; c < features; ++c) y[c * to.view.feature_stride] = To(row[c]);
  }
};

template <class T, class Angles, class... Options>
void rotate_into(T&& X, const Rotary<Angles>& option, const Asked<Options...>& asked) {
  static constexpr const char* function = "attn::rotate";
  using Scalar = compute_t<typename operand_traits<bare_t<T>>::Scalar>;
  const auto held = lift(std::forward<T>(X));
  const auto from = read_only(held.view(function, "X"));
  CallShape shape;
  shape.function = function;
  shape.heads = shape.kv_heads = from.heads;
  shape.key_dim = shape.value_dim = from.features;
  const Batch batch = batch_of(function, asked);
  shape.queries = tokens_of(function, "X", from.extent(), held.kStacked, batch.query_offsets,
                            batch.query_length);
  const auto offset = [&](Index sequence) { return query_offset_of(shape, sequence, asked); };
  const Index dims = option.checked_dims(function, shape.key_dim);
  const OperandPositions<decltype(offset)> positions(function, "X", option.angles, shape.queries,
                                                     option.has_ids ? &option.query_ids : nullptr,
                                                     offset);
  const auto& into_option = asked.template get<IntoOption>();
  static_assert(std::is_same_v<compute_t<typename bare_t<decltype(into_option)>::Scalar>, Scalar>,
                "attn::rotate: X and the output must compute in one scalar: cast one of them");
  const auto input = place(from, held.kStacked, shape.queries);
  const auto output_memory = into_option.check(shape);
  Outputs outputs(function);
  outputs.add("output", output_memory);
  outputs.keep_from("X", input.view, 0);
  option.visit_memory([&](const char* name, const auto& table) { outputs.keep_from(name, table); });

  auto output = into_option.prepare(shape, output_memory);
  const Index table = RotaryTable<Scalar>::size(positions.rows(), dims);
  Workspace<Scalar> brought;
  Scalar* const memory = workspace_of(&brought, asked).reserve(table + from.features);
  output.commit();
  const Rotation<Scalar> rotation{
      option.pairs, dims, positions.table(option.angles, option.pairs, dims, memory), {}};
  using From = std::remove_pointer_t<decltype(from.data)>;
  using To = typename bare_t<decltype(output.to)>::Scalar;
  RotateRows<Scalar, From, To>{shape, input, output.to, rotation}(memory + table);
}

}  // namespace detail

/// Turns the rows of X, alone: what the option does to queries or keys inside a call, with the same
/// bits.
///
/// Shapes     X [L, d], heads(X, H) [L, H·d] or a strided view  →  the same; half and bfloat16 turn in float, rounded once
/// Options    into(Y) (then nothing is returned; Y may be X), query_offset(n) (row i is at i + n),
///            sequences(), sequence_length(), use()
/// Requires   as rotary()
/// Cost       one pass over X; scratch O(L · n), here allocated for the call unless use(workspace)
///            lends it
template <class T, class Angles, class... Options>
[[nodiscard]] auto rotate(T&& X, const detail::Rotary<Angles>& rotation, Options&&... options) {
  using namespace detail;
  static_assert(is_operand_v<T>, "attn::rotate: expected a matrix, heads(X, n) or a strided view");
  static_assert(
      (is_of_kind_v<Options, IntoOption, UseOption, BatchOption, QueryOffsetOption> && ...),
      "attn::rotate: takes into(), query_offset(), sequences(), sequence_length() and "
      "use()");
  check_given<Options...>();
  if constexpr (given_v<IntoOption, Options...>) {
    rotate_into(std::forward<T>(X), rotation, Asked(rotation, options...));
  } else {
    static_assert(is_dense_v<T> || is_heads_v<T>,
                  "attn::rotate: expected a matrix or heads(X, n); a strided view needs into(...)");
    using Traits = operand_traits<bare_t<T>>;
    Eigen::Matrix<typename Traits::Scalar, Traits::rows, Traits::cols, Traits::order> Y;
    auto target = into(Y);
    rotate_into(std::forward<T>(X), rotation, Asked(rotation, options..., target));
    return Y;
  }
}

}  // namespace ATTN_ABI
}  // namespace attn
