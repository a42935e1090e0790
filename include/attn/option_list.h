// attn/option_list.h: several options as one value, options(a, b, …).
// SPDX-License-Identifier: MIT
#pragma once

#include <tuple>
#include <utility>

#include "base/asked.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// options(…): no option itself, so that a call which does not open it refuses it.
template <class... Options>
struct OptionList {
  std::tuple<Options...> held;
};
template <class T>
inline constexpr bool is_option_list_v = is_instance_v<OptionList, bare_t<T>>;

/// An argument as a tuple of references: itself, or all that a list holds, the lists in it opened
/// as well.
template <class T>
auto opened(T& argument) {
  if constexpr (is_option_list_v<T>) {
    return std::apply([](auto&... held) { return std::tuple_cat(opened(held)...); }, argument.held);
  } else {
    return std::tuple<T&>(argument);
  }
}
/// f(options…) with all lists opened: the first thing that the door of a call does.
template <class F, class... Options>
auto with_opened(const F& f, Options&... options) {
  if constexpr ((is_option_list_v<Options> || ...)) {
    return std::apply(f, std::tuple_cat(opened(options)...));
  } else {
    return f(options...);
  }
}

/// given_v<> of what is not opened yet.
template <class Kind, class Argument>
inline constexpr bool gives_v = std::is_same_v<kind_t<Argument>, Kind>;
template <class Kind, class... Options>
inline constexpr bool gives_v<Kind, OptionList<Options...>> = (gives_v<Kind, Options> || ...);
template <class Kind, class... Arguments>
inline constexpr bool given_somewhere_v = (gives_v<Kind, bare_t<Arguments>> || ...);

}  // namespace detail

/// Several options as one value, which a call takes in place of them: a forward and a backward pass
/// get the same ones that way.
///
///   const auto options = attn::options(attn::causal(), attn::bias(B));
///   attn::attention(Q, K, V, options, attn::into(Y), attn::save_state(state));
///   attn::attention_backward(Q, K, V, dY, state, options, attn::dquery(dQ));
///
/// Semantics  options are copied (temporaries moved) into it; what they refer to has to live as
///            long as it is used. It may hold others of its kind
template <class... Options>
detail::OptionList<detail::bare_t<Options>...> options(Options&&... options) {
  return {{std::forward<Options>(options)...}};
}

}  // namespace ATTN_ABI
}  // namespace attn
