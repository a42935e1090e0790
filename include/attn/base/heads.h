// attn/base/heads.h: what layout.h makes: heads of a matrix, the batch of a call, the strides of a
// tensor.
// SPDX-License-Identifier: MIT
#pragma once

#include "../types.h"
#include "index_list.h"
#include "asked.h"
#include "sizes.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// A matrix whose columns are `count` heads side by side.
template <class Held, int Rows, int StorageOrder>
struct Heads {
  Held held;
  Index count;
};
template <class T>
struct is_heads : std::false_type {};
template <class Held, int Rows, int StorageOrder>
struct is_heads<Heads<Held, Rows, StorageOrder>> : std::true_type {};
template <class T>
inline constexpr bool is_heads_v = is_heads<bare_t<T>>::value;

template <class T>
inline constexpr bool is_tensor_view_v = is_instance_v<TensorView, bare_t<T>>;

struct BatchOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1,
                  "attn: the batch is named twice: one of sequences(...) and sequence_length(...)");
  }
};
/// The batch of a call: rows of queries and of keys by sequence.
struct Sequences : option_base {
  using Kind = BatchOption;
  IndexList query_offsets, key_offsets;
  bool same = false;  ///< keys use the queries' offsets
};
struct SequenceLength : option_base {
  using Kind = BatchOption;
  Index queries = 0, keys = 0;
};

template <class T, class = void>
struct owns_tensor : std::false_type {};
template <class T>
struct owns_tensor<
    T, std::void_t<typename T::Dimensions,
                   decltype(std::declval<T&>().resize(std::declval<typename T::Dimensions>()))>>
    : std::true_type {};

/// Pointer and strides of an Eigen::Tensor or TensorMap of rank 4 (or anything with data(),
/// dimensions(), NumIndices, Layout).
template <class Tensor>
auto tensor_strides(Tensor&& tensor, Index (&sizes)[4], Index (&strides)[4]) {
  using Bare = bare_t<Tensor>;
  static_assert(int(Bare::NumIndices) == 4, "attn: a tensor operand has rank 4");
  static_assert(std::is_lvalue_reference_v<Tensor> || !owns_tensor<Bare>::value,
                "attn: the tensor is a temporary and would be gone before the call: pass a "
                "variable or a TensorMap");
  Count stride = 1;
  for (int step = 0; step < 4; ++step) {
    const int i = int(Bare::Layout) == int(Eigen::RowMajor) ? 3 - step : step;
    sizes[i] = Index(tensor.dimensions()[std::size_t(i)]);
    strides[i] = stride.value();
    stride = stride * sizes[i];
  }
  return tensor.data();
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
