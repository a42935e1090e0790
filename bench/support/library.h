// bench/support/library.h: a workload through the library.
// SPDX-License-Identifier: MIT
#pragma once

#include <attn/attn.h>

#include <type_traits>
#include <vector>

#include "operands.h"
#include "threads.h"
#include "workloads.h"

namespace bench {

/// The library on a workload, through its functor and strided views, by one thread without an
/// option, by several with it.
template <class Stored>
class Library {
 public:
  using Scalar = compute_t<Stored>;

  explicit Library(const Workload& w) : w_(w) {
    for (Index b = 0; b < w.batch; ++b) key_lengths_.push_back(static_cast<int>(key_length(w, b)));
  }

  template <class... Options>
  void operator()(const Operands<Stored>& x, const RowMatrix<Scalar>& bias, Stored* y, int n,
                  const Options&... options) {
    constexpr Storage kStorage = storage_of<Stored>;
    switch (w_.mask) {
      case Mask::kNone:
        return attend(x, y, n, options...);
      case Mask::kCausal:
        if constexpr (serves(kStorage, Mask::kCausal)) attend(x, y, n, attn::causal(), options...);
        return;
      case Mask::kBias:
        if constexpr (serves(kStorage, Mask::kBias)) attend(x, y, n, attn::bias(bias), options...);
        return;
      case Mask::kKeyLengths:
        if constexpr (serves(kStorage, Mask::kKeyLengths)) {
          attend(x, y, n, attn::key_lengths(key_lengths_), options...);
        }
        return;
    }
  }

 private:
  template <class... Options>
  void attend(const Operands<Stored>& x, Stored* y, int n, const Options&... options) {
    const auto view = [&](auto* data, Index heads, Index tokens, Index features, Strides s) {
      return attn::TensorView<std::remove_pointer_t<decltype(data)>>{
          data, w_.batch, heads, tokens, features, s.sequence, s.head, s.token, s.feature};
    };
    const auto q = view(x.q.data(), w_.query_heads, w_.queries, w_.head_size, query_strides(w_));
    const auto k = view(x.k.data(), w_.key_heads, w_.keys, w_.head_size, key_strides(w_));
    const auto v = view(x.v.data(), w_.key_heads, w_.keys, w_.value_size, value_strides(w_));
    const auto out = view(y, w_.query_heads, w_.queries, w_.value_size, output_strides(w_));
    if (n == 1) {
      attend_(q, k, v, attn::into(out), options...);
    } else {
      attend_(q, k, v, attn::into(out), options..., threads(n));
    }
  }

  Workload w_;
  std::vector<int> key_lengths_;
  attn::ScaledDotProductAttention<Scalar> attend_;
};

}  // namespace bench
