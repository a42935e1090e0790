// attn/mask/mask_functor.h: the user's own mask, of (attn::At) or (query, key), with ranges where
// it gives them.
// SPDX-License-Identifier: MIT
#pragma once

#include "../base/functor.h"
#include "interval.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

template <class F>
inline constexpr bool is_mask_of_place_v = std::is_invocable_r_v<bool, const F&, At>;
template <class F>
inline constexpr bool is_mask_of_pair_v = std::is_invocable_r_v<bool, const F&, Index, Index>;

template <class F, class = void>
struct names_keys : std::false_type {};
template <class F>
struct names_keys<F, std::void_t<decltype(&F::keys)>> : std::true_type {};
template <class F, class = void>
struct names_full_keys : std::false_type {};
template <class F>
struct names_full_keys<F, std::void_t<decltype(&F::full_keys)>> : std::true_type {};

template <class F, class = void>
struct gives_keys : std::false_type {};
template <class F>
struct gives_keys<
    F, std::enable_if_t<std::is_convertible_v<
           decltype(std::declval<const F&>().keys(std::declval<const QueryRows&>())), KeyRange>>>
    : std::true_type {};
template <class F, class = void>
struct gives_full_keys : std::false_type {};
template <class F>
struct gives_full_keys<
    F,
    std::enable_if_t<std::is_convertible_v<
        decltype(std::declval<const F&>().full_keys(std::declval<const QueryRows&>())), KeyRange>>>
    : std::true_type {};

template <class Function>
struct BoundFunctorMask : mask_base {
  const Function* function = nullptr;

  bool operator()(const QueryRow& row, Index key) const {
    if constexpr (is_mask_of_place_v<Function>) {
      return (*function)(At{row.sequence, row.head, row.position, key});
    } else {
      return (*function)(row.position, key);
    }
  }
  KeyRange keys(const QueryRows& rows) const {
    if constexpr (gives_keys<Function>::value) {
      return intersect(function->keys(rows), {0, rows.keys});
    } else {
      return {0, rows.keys};
    }
  }
  KeyRange full_keys(const QueryRows& rows) const {
    if constexpr (gives_full_keys<Function>::value) {
      return intersect(function->full_keys(rows), {0, rows.keys});
    } else {
      return {0, 0};
    }
  }
  template <class S>
  ATTN_INLINE typename S::Mask lanes(const QueryRow& row, Index key) const {
    return asked_lanes<S>(key, row.keys, [&](Index j) { return (*this)(row, j); });
  }
};
template <class Held>
struct FunctorMask : mask_base {
  using Position = ReadsPositions;
  Held held;
  explicit FunctorMask(Held h) : held(std::move(h)) {
    using Function = functor_t<Held>;
    static_assert(is_mask_of_place_v<Function> || is_mask_of_pair_v<Function>,
                  "attn::mask: the functor is const, takes where a pair stands and returns whether "
                  "it is seen: write [](attn::At at) { return ...; } or "
                  "[](attn::Index query, attn::Index key) { return ...; }");
    static_assert((!names_keys<Function>::value || gives_keys<Function>::value) &&
                      (!names_full_keys<Function>::value || gives_full_keys<Function>::value),
                  "attn::mask: the functor's ranges are written "
                  "attn::KeyRange keys(const attn::QueryRows& rows) const, and full_keys alike");
  }
  BoundFunctorMask<functor_t<Held>> bind(const CallShape&) const {
    BoundFunctorMask<functor_t<Held>> bound;
    bound.function = &held.get();
    return bound;
  }
};

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
