// attn/base/functor.h: a user's functor inside an option: how it is held, and whether it has one
// signature.
// SPDX-License-Identifier: MIT
#pragma once

#include <type_traits>
#include <utility>

#include "traits.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// A functor kept for later: an lvalue is referred to, a temporary owned; a function becomes its
/// address.
template <class Function>
class HeldFunctor {
 public:
  explicit HeldFunctor(Function f) : function_(std::move(f)) {}
  const Function& get() const { return function_; }

 private:
  Function function_;
};
template <class Function>
class HeldFunctor<const Function&> {
 public:
  explicit HeldFunctor(const Function& f) : function_(&f) {}
  const Function& get() const { return *function_; }

 private:
  const Function* function_;
};

template <class F>
struct held_functor {
  using Bare = std::remove_reference_t<F>;
  using type = HeldFunctor<std::conditional_t<
      std::is_function_v<Bare>, std::decay_t<F>,
      std::conditional_t<std::is_lvalue_reference_v<F>, const Bare&, bare_t<F>>>>;
};
template <class F>
using held_functor_t = typename held_functor<F>::type;
template <class Held>
using functor_t = bare_t<decltype(std::declval<const Held&>().get())>;

/// Function or function object with a single call operator that is no template: its signature can
/// be told.
template <class F, class = void>
struct has_one_signature : std::is_function<std::remove_pointer_t<F>> {};
template <class F>
struct has_one_signature<F, std::void_t<decltype(&F::operator())>> : std::true_type {};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
