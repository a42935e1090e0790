// attn/base/asked.h: what an option of a call says of itself, and the options of a call as one
// record.
// SPDX-License-Identifier: MIT
#pragma once

#include <tuple>

#include "../types.h"
#include "traits.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// What is not there: an option that is not given, an operand, an output.
struct Absent {};
inline constexpr Absent kAbsent{};
template <class T>
inline constexpr bool is_there_v = !std::is_same_v<bare_t<T>, Absent>;

/// The kind of an option that does nothing.
struct NoKind {
  template <int Given>
  static constexpr void check() {}
};

/// What an option says of positions; this much by default.
/// `named`: it names the query offset; `asks`: the mask that depends on it without saying from
/// where; `open`, `aligned`: it is causal, without and with an alignment of its own; `relative`: it
/// compares positions; `read`: it takes them as numbers. keys(…): the key length that it gives,
/// where it bounds the keys of the whole call; offset(…): the one it names, else 0.
struct NoPosition {
  static constexpr int named = 0;
  static constexpr const char* asks = nullptr;
  static constexpr bool open = false, aligned = false, relative = false, read = false;
  template <class Option>
  static Index keys(const Option&, Index /*sequence*/, Index all) {
    return all;
  }
  template <class Option, class Shape>
  static Index offset(const Option&, const Shape&, Index /*sequence*/, Index /*queries*/,
                      Index /*keys*/) {
    return 0;
  }
};
/// What an option says of positions that takes them as numbers.
struct ReadsPositions : NoPosition {
  static constexpr bool read = true;
};

}  // namespace detail

/// Base of every option of a call: it tells options from matrices, and holds what an option says
/// where it says nothing itself.
struct option_base {
  /// What it is. A call takes one option of a kind, unless the kind's check<Given>() lets more
  /// pass.
  using Kind = detail::NoKind;
  using Position = detail::NoPosition;
  /// Calls visit(name, view) for every matrix that the call reads through it.
  template <class Visit>
  void visit_memory(const Visit&) const {}
};

namespace detail {

/// Base of the options that only a backward pass takes.
struct GradientOption : option_base {};
template <class T>
inline constexpr bool is_gradient_option_v = std::is_base_of_v<GradientOption, bare_t<T>>;

template <class T>
inline constexpr bool is_option_v = std::is_base_of_v<option_base, bare_t<T>>;

/// What an argument says of itself; what is no option says nothing.
template <class T>
using said_by_t = std::conditional_t<is_option_v<T>, bare_t<T>, option_base>;
template <class T>
using kind_t = typename said_by_t<T>::Kind;
template <class T>
using position_t = typename said_by_t<T>::Position;

/// How many of some arguments are options of a kind, and whether one is.
template <class Kind, class... Arguments>
inline constexpr int count_v = (0 + ... + int(std::is_same_v<kind_t<Arguments>, Kind>));
template <class Kind, class... Arguments>
inline constexpr bool given_v = count_v<Kind, Arguments...> != 0;

/// The argument is of one of these kinds.
template <class Argument, class... Kinds>
inline constexpr bool is_of_kind_v = (std::is_same_v<kind_t<Argument>, Kinds> || ...);

/// The options of a call, found by what they are. It refers to them.
template <class... Options>
class Asked {
 public:
  explicit Asked(Options&... options) : options_(options...) {}

  template <class Kind>
  static constexpr bool has() {
    return given_v<Kind, Options...>;
  }
  /// The option of a kind, the first where there are several, or Absent.
  template <class Kind>
  auto& get() const {
    if constexpr (has<Kind>()) {
      return std::get<first<Kind>()>(options_);
    } else {
      return kAbsent;
    }
  }
  /// f(options…).
  template <class F>
  auto all(const F& f) const {
    return std::apply(f, options_);
  }
  template <class F>
  void each(const F& f) const {
    all([&](const auto&... options) { (f(options), ...); });
  }

 private:
  template <class Kind>
  static constexpr std::size_t first() {
    std::size_t n = 0;
    bool found = false;
    ((found = found || std::is_same_v<kind_t<Options>, Kind>, n += found ? 0u : 1u), ...);
    return n;
  }

  std::tuple<Options&...> options_;
};

/// Kinds in an order of their own, whatever that of the options is.
template <class... Kinds>
struct Order {};
template <class Argument, class Kinds>
inline constexpr bool is_of_order_v = false;
template <class Argument, class... Kinds>
inline constexpr bool is_of_order_v<Argument, Order<Kinds...>> = is_of_kind_v<Argument, Kinds...>;

/// Refuses, in the words of each kind, what is given more often than it may be.
template <class... Options>
constexpr void check_kinds() {
  (kind_t<Options>::template check<count_v<kind_t<Options>, Options...>>(), ...);
}

/// What the option of a kind binds to; Absent where none is given.
template <class Kind, class Scalar, class Shape, class... Options>
auto bind(const Shape& shape, const Asked<Options...>& asked) {
  if constexpr (given_v<Kind, Options...>) {
    return asked.template get<Kind>().template bind<Scalar>(shape);
  } else {
    return Absent{};
  }
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
