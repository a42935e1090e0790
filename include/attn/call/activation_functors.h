// attn/call/activation_functors.h: what activation.h makes: functions over packets and their
// slopes, the library's and the user's.
// SPDX-License-Identifier: MIT
#pragma once

#include "../base/asked.h"
#include "../base/functor.h"
#include "../base/sigmoids.h"
#include "../dual_lanes.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

struct ActivationOption {
  template <int Given>
  static constexpr void check() {
    static_assert(Given <= 1,
                  "attn::Linear: two activations in one call: write one functor that does both, "
                  "activation([](auto x) { return ...; })");
  }
};
/// Base of what a linear layer takes for an activation. Its function and its slope are bound apart,
/// both called as apply<S>(x, count) for the first `count` numbers of a packet.
struct activation_base : option_base {
  using Kind = ActivationOption;
};

struct Relu {
  static constexpr const char* kName = "relu()";
  template <class S>
  ATTN_INLINE typename S::Packet apply(const typename S::Packet& x, Index) const {
    return S::max(x, S::set(typename S::Scalar(0)));
  }
  /// 0 at 0.
  struct Slope {
    template <class S>
    ATTN_INLINE typename S::Packet apply(const typename S::Packet& x, Index) const {
      using Scalar = typename S::Scalar;
      const auto zero = S::set(Scalar(0));
      const typename S::Packet y = S::max(x, zero);  // 0 or NaN where it is not above 0
      return S::where_less(zero, y, S::set(Scalar(1)), y);
    }
  };
};
struct Gelu {
  static constexpr const char* kName = "gelu()";
  template <class S>
  ATTN_INLINE typename S::Packet apply(const typename S::Packet& x, Index) const {
    return gelu_lanes<S>(x);
  }
  struct Slope {
    template <class S>
    ATTN_INLINE typename S::Packet apply(const typename S::Packet& x, Index) const {
      return gelu_slope_lanes<S>(x);
    }
  };
};
struct GeluTanh {
  static constexpr const char* kName = "gelu_tanh()";
  template <class S>
  ATTN_INLINE typename S::Packet apply(const typename S::Packet& x, Index) const {
    return gelu_tanh_lanes<S>(x);
  }
  struct Slope {
    template <class S>
    ATTN_INLINE typename S::Packet apply(const typename S::Packet& x, Index) const {
      return gelu_tanh_slope_lanes<S>(x);
    }
  };
};
struct Silu {
  static constexpr const char* kName = "silu()";
  template <class S>
  ATTN_INLINE typename S::Packet apply(const typename S::Packet& x, Index) const {
    return silu_lanes<S>(x);
  }
  struct Slope {
    template <class S>
    ATTN_INLINE typename S::Packet apply(const typename S::Packet& x, Index) const {
      return silu_slope_lanes<S>(x);
    }
  };
};

/// relu(), gelu(), gelu_tanh(), silu().
template <class Function>
struct KnownActivation : activation_base {
  static constexpr const char* kName = Function::kName;
  template <class Scalar>
  Function bind() const {
    return {};
  }
  template <class Scalar>
  typename Function::Slope bind_slope() const {
    return {};
  }
};

/// The user's own, called with lanes.
template <class Function>
struct BoundLanesActivation {
  const Function* function;
  template <class S>
  ATTN_INLINE typename S::Packet apply(const typename S::Packet& x, Index) const {
    return Lanes<S>((*function)(Lanes<S>::of(x))).packet();
  }
};
/// Its slope, by lanes that carry theirs (dual_lanes.h).
template <class Function>
struct SlopeOfLanesActivation {
  const Function* function;
  template <class S>
  ATTN_INLINE typename S::Packet apply(const typename S::Packet& x, Index) const {
    using Number = Dual<Lanes<S>>;
    return Number((*function)(Number::of(Lanes<S>::of(x), Lanes<S>(1)))).slope().packet();
  }
};
/// Called with the first `count` numbers, one at a time: what pads a tile is none of them.
template <class Function>
struct BoundNumberActivation {
  const Function* function;
  /// WHY  never inlined: the compiler may fuse the functor's own products and sums, and would
  ///      otherwise choose anew in every place.
  template <class S>
  ATTN_NOINLINE typename S::Packet apply(const typename S::Packet& x, Index count) const {
    using Scalar = typename S::Scalar;
    alignas(64) Scalar numbers[S::width];
    S::store(numbers, x);
    for (Index w = 0; w < S::width && w < count; ++w)
      numbers[w] = Scalar((*function)(Scalar(numbers[w])));
    return S::load(numbers);
  }
};

template <class Function, class S>
constexpr bool maps_lanes() {
  if constexpr (std::is_invocable_v<const Function&, Lanes<S>>) {
    return std::is_convertible_v<std::invoke_result_t<const Function&, Lanes<S>>, Lanes<S>>;
  } else {
    return false;
  }
}

/// A functor of the user's, bound: with lanes if it is generic, else with one number at a time.
template <class Scalar, class Function>
auto bind_activation(const Function& function) {
  if constexpr (has_one_signature<Function>::value) {
    static_assert(std::is_invocable_r_v<Scalar, const Function&, Scalar>,
                  "attn::activation: a functor with a signature takes one number and returns "
                  "another: write [](float x) { return ...; }, or [](auto x) { return ...; } to be "
                  "called with lanes of numbers");
    return BoundNumberActivation<Function>{&function};
  } else {
    static_assert(
        maps_lanes<Function, Simd<Scalar>>(),
        "attn::activation: a functor without a signature of its own is called with lanes "
        "of numbers: write [](auto x) { return ...; } with unqualified abs, min, max, "
        "exp, tanh, and select(condition, a, b) for an if; or [](float x) { return ...; } "
        "to have it called with one number at a time");
    return BoundLanesActivation<Function>{&function};
  }
}

/// activation(f), activation(f, slope).
template <class Held, class HeldSlope = Absent>
struct UserActivation : activation_base {
  static constexpr const char* kName = "activation()";
  Held held;
  HeldSlope slope;
  explicit UserActivation(Held h, HeldSlope s = {}) : held(std::move(h)), slope(std::move(s)) {}

  template <class Scalar>
  auto bind() const {
    return bind_activation<Scalar>(held.get());
  }
  template <class Scalar>
  auto bind_slope() const {
    using Function = functor_t<Held>;
    if constexpr (is_there_v<HeldSlope>) {
      return bind_activation<Scalar>(slope.get());
    } else {
      static_assert(
          !has_one_signature<Function>::value,
          "attn::activation: a backward pass needs the slope of the activation, and one "
          "that takes a plain number has none: give it, activation(f, slope) with "
          "[](float x) { return ...; } that returns how much f changes with x, or write f "
          "generic, [](auto x) { return ...; }");
      return SlopeOfLanesActivation<Function>{&held.get()};
    }
  }
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
