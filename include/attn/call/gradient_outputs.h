// attn/call/gradient_outputs.h: what gradient.h makes: where gradients of operands go, and the
// gradient of the log-sum-exp that comes in.
// SPDX-License-Identifier: MIT
#pragma once

#include "output_memory.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// accumulate().
struct Accumulate : GradientOption {
  struct Kind {
    template <int Given>
    static constexpr void check() {
      static_assert(Given <= 1, "attn: accumulate() twice in one call");
    }
  };
};

/// Refuses a matrix that would have to be resized: there is nothing in it to add to.
template <class Scalar>
void check_holds_sum(const CallShape& shape, const char* name, const OutputMemory<Scalar>& now,
                     Index rows, Index cols) {
  if (now.stays) return;
  fail(text(shape.function, ": ", name, " is ", shape_text(now.view.tokens, now.view.features),
            ", needs ", shape_text(rows, cols), ": accumulate() adds to what it holds"));
}

// The operands that have gradients: their name in messages, and what they are.
struct QueryGradientOption {
  static constexpr const char* kName = "dquery";
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: dquery twice in one call");
  }
  static OutputShape needs(const CallShape& call) {
    OutputShape needs{call, kName, "query features"};
    needs.shape.value_dim = call.key_dim;
    return needs;
  }
};
/// What belongs to keys: their tokens and heads in place of the queries'.
inline OutputShape like_keys(const CallShape& call, const char* name, const char* columns,
                             Index features) {
  OutputShape needs{call, name, columns, "key rows"};
  needs.shape.queries = call.keys;
  needs.shape.heads = call.kv_heads;
  needs.shape.value_dim = features;
  return needs;
}
struct KeyGradientOption {
  static constexpr const char* kName = "dkey";
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: dkey twice in one call");
  }
  static OutputShape needs(const CallShape& call) {
    return like_keys(call, kName, "key features", call.key_dim);
  }
};
struct ValueGradientOption {
  static constexpr const char* kName = "dvalue";
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: dvalue twice in one call");
  }
  static OutputShape needs(const CallShape& call) {
    return like_keys(call, kName, "value features", call.value_dim);
  }
};
/// The input of a linear layer.
struct InputGradientOption {
  static constexpr const char* kName = "dinput";
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: dinput twice in one call");
  }
  static OutputShape needs(const CallShape& call) {
    OutputShape needs{call, kName, "input features"};
    needs.shape.value_dim = call.key_dim;
    return needs;
  }
};

/// dquery(M), dkey(M), dvalue(M), dinput(M): `Of` is one of the four.
template <class Target, class Of>
struct Gradient : GradientOption {
  using Kind = Of;
  using Scalar = typename Target::Scalar;
  static constexpr const char* kName = Of::kName;
  Target target;
  explicit Gradient(Target t) : target(std::move(t)) {}

  template <class Compute>
  OutputMemory<Scalar> check(const CallShape& call, bool accumulates) const {
    static_assert(std::is_same_v<compute_t<Scalar>, Compute>,
                  "attn: a gradient is written in the scalar that the call computes in, or in half "
                  "or bfloat16 of a call in float");
    const OutputShape needs = Of::needs(call);
    const auto now = check_output(target, needs);
    if (accumulates) {
      check_holds_sum(call, kName, now, needs.shape.queries.total(),
                      needs.shape.heads * needs.shape.value_dim);
    }
    return now;
  }
  auto prepare(const CallShape& call) const {
    auto output = prepare_output(target, Of::needs(call));
    output.to.shared = call.shared_keys && !std::is_same_v<Of, QueryGradientOption>;
    return output;
  }
};

struct LogSumExpGradientOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1, "attn: dlogsumexp twice in one call");
  }
};
/// dlogsumexp(l): one number for each row and head, which is read.
template <class Lifted>
struct LogSumExpGradient : GradientOption {
  using Kind = LogSumExpGradientOption;
  static constexpr const char* kName = "dlogsumexp";
  Lifted lifted;
  explicit LogSumExpGradient(Lifted l) : lifted(std::move(l)) {}

  template <class Compute>
  auto bind(CallShape call) const {
    call.value_dim = 1;
    return place_like_output(call, kName, read_only(lifted.view(call.function, kName)),
                             Lifted::kStacked, "one number");
  }
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
