// attn/call/matrix_source.h: matrices, heads of them or strided views as the source of a call's
// keys and values.
// SPDX-License-Identifier: MIT
#pragma once

#include "options.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Keys and values in memory. What a call asks of its source:
///   shape(function, query, batch, asked)          the call's shape, refused where operands do not fit
///   masks, query_offset, rotation(…)              what its options bind to
///   key(), value()(shape)                         the operands of the engine
///   visit_memory(shape, visit)                    visit(name, view) of what is read
///   scratch_keys(shape)                           keys that a block in scratch may have to hold
template <class Key, class Value>
struct KeyValueViews {
  GivenRows<Key> given_key;
  GivenRows<Value> given_value;

  /// The query as it is given: its heads are named.
  template <class T>
  TensorView<T> query(const TensorView<T>& view, bool) const {
    return view;
  }
  template <class Asked>
  CallShape shape(const char* function, const OperandShape& query, const Batch& batch,
                  const Asked&) const {
    static_assert(
        !Asked::template has<AllKeysOption>() && !Asked::template has<CacheSequencesOption>(),
        "attn: all_keys() and cache_sequences() are for calls on a KeyValueCache");
    return call_shape(function, query, {given_key.view.extent(), given_key.stacked},
                      {given_value.view.extent(), given_value.stacked}, batch);
  }
  template <class Asked>
  auto masks(const CallShape& shape, const Asked& asked) const {
    return bind_masks(shape, asked);
  }
  template <class Asked>
  Index query_offset(const CallShape& shape, Index sequence, const Asked& asked) const {
    return query_offset_of(shape, sequence, asked);
  }
  template <class Scalar, class Angles, class Offset>
  auto rotation(const CallShape& shape, const Rotary<Angles>& option, const Offset& offset) const {
    return FullRotation<Scalar, Angles, Offset>(shape, option, offset);
  }
  auto key(const CallShape& shape) const {
    return place(given_key.view, given_key.stacked, shape.keys, shape.shared_keys);
  }
  auto value(const CallShape& shape) const {
    return place(given_value.view, given_value.stacked, shape.keys, shape.shared_keys);
  }
  template <class Visit>
  void visit_memory(const CallShape& shape, const Visit& visit) const {
    visit("key", place(given_key.view, given_key.stacked, shape.keys).view);
    visit("value", place(given_value.view, given_value.stacked, shape.keys).view);
  }
  Index scratch_keys(const CallShape& shape) const { return shape.keys.longest(); }
};

/// Two operands of a call, held until it returns.
template <class Key, class Value>
struct HeldKeyValue {
  decltype(lift(std::declval<Key>())) held_key;
  decltype(lift(std::declval<Value>())) held_value;
};
template <class T>
using viewed_t = std::remove_pointer_t<
    decltype(given_rows("", "", std::declval<decltype(lift(std::declval<T>()))>()).view.data)>;

/// The same of matrices that a user gave; it holds what would vanish.
template <class Key, class Value>
class KeyValueMatrices : HeldKeyValue<Key, Value>,
                         public KeyValueViews<viewed_t<Key>, viewed_t<Value>> {
  using Held = HeldKeyValue<Key, Value>;
  using Views = KeyValueViews<viewed_t<Key>, viewed_t<Value>>;

 public:
  KeyValueMatrices(const char* function, Key& K, Value& V)
      : Held{lift(std::forward<Key>(K)), lift(std::forward<Value>(V))},
        Views{given_rows(function, "key", Held::held_key),
              given_rows(function, "value", Held::held_value)} {}
  KeyValueMatrices(const KeyValueMatrices&) = delete;  // its views may lie in itself
};

/// Sizes that types tell, or Dynamic.
constexpr bool may_be_equal(int a, int b) {
  return a == Eigen::Dynamic || b == Eigen::Dynamic || a == b;
}

/// Keys and values given as matrices, not understood yet.
template <class Key, class Value>
struct GivenMatrices {
  using k = operand_traits<bare_t<Key>>;
  using v = operand_traits<bare_t<Value>>;
  /// The sizes of a call that are known to the compiler, else Dynamic.
  static constexpr int kKeys = k::rows, kValueDim = v::cols;
  static constexpr int kResultCols = v::has_heads ? Eigen::Dynamic : v::cols;
  Key& K;
  Value& V;

  /// Types that cannot attend together, said in words; a bool as check_words() is one.
  template <class Query>
  static constexpr bool check_types() {
    static_assert(is_operand_v<Query> && is_operand_v<Key> && is_operand_v<Value>,
                  "attn: query, key and value are Eigen matrices, heads(X, n) of them, or strided "
                  "views (bhld, blhd, lbhd)");
    using Scalar = compute_t<typename operand_traits<bare_t<Query>>::Scalar>;
    static_assert(!Eigen::NumTraits<Scalar>::IsInteger,
                  "attn: integer matrices have no softmax: cast<float>() them first");
    static_assert(!Eigen::NumTraits<Scalar>::IsComplex, "attn: complex matrices have no softmax");
    static_assert(
        std::is_same_v<Scalar, compute_t<typename k::Scalar>> &&
            std::is_same_v<Scalar, compute_t<typename v::Scalar>>,
        "attn: query, key, value and output must compute in one scalar: cast one of them");
    static_assert(may_be_equal(operand_traits<bare_t<Query>>::cols, k::cols),
                  "attn: the types of query and key have different numbers of columns: both need "
                  "d_k");
    static_assert(may_be_equal(k::rows, v::rows),
                  "attn: the types of key and value have different numbers of rows: both need one "
                  "row per key");
    return true;
  }
  template <class Asked>
  auto open(const char* function, const Asked&) const {
    return KeyValueMatrices<Key, Value>(function, K, V);
  }
};
template <class Key, class Value>
GivenMatrices<Key, Value> given_matrices(Key&& K, Value&& V) {
  return {K, V};
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
