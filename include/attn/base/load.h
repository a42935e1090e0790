// attn/base/load.h: packets from and to strided storage of any type, converted on the way.
// SPDX-License-Identifier: MIT
#pragma once

#include "simd.h"

namespace attn {
inline namespace ATTN_ABI {
namespace detail {

/// Floats come from this storage in a few instructions (config.h).
template <class T, int Lanes, class = void>
struct widens : std::false_type {};
template <class T, int Lanes>
struct widens<T, Lanes,
              std::void_t<decltype(sizeof(widen(std::declval<const T*>(), lanes_t<Lanes>{})))>>
    : std::true_type {};

/// Part of a packet can be read at once (config.h).
template <class T, int Lanes, class = void>
struct loads_first : std::false_type {};
template <class T, int Lanes>
struct loads_first<
    T, Lanes,
    std::void_t<decltype(sizeof(load_first(std::declval<const T*>(), 0, lanes_t<Lanes>{})))>>
    : std::true_type {};

/// A packet from storage of another type.
template <class S, class T>
ATTN_INLINE typename S::Packet load_converted(const T* from) {
  if constexpr (std::is_same_v<T, typename S::Scalar>) {
    return S::loadu(from);
  } else if constexpr (std::is_same_v<typename S::Scalar, float> && widens<T, S::width>::value) {
    return widen(from, lanes_t<S::width>{});
  } else {
    alignas(64) typename S::Scalar lanes[S::width];
    for (int w = 0; w < S::width; ++w) lanes[w] = typename S::Scalar(from[w]);
    return S::load(lanes);
  }
}

/// The first `lanes` of a packet from strided storage: nothing past them is read. Behind them
/// zeros, or where the stride is 0 the one element again.
template <class S, class T>
ATTN_INLINE typename S::Packet load_strided(const T* from, Eigen::Index stride,
                                            Eigen::Index lanes) {
  if (stride == 1 && lanes >= S::width) return load_converted<S>(from);
  if (stride == 0) return S::set(typename S::Scalar(*from));
  if constexpr (std::is_same_v<T, typename S::Scalar> && loads_first<T, S::width>::value) {
    // Through memory the packet would wait for all of its elements to be stored: 20 to 30 cycles.
    if (stride == 1) return load_first(from, lanes > 0 ? lanes : 0, lanes_t<S::width>{});
  }
  alignas(64) typename S::Scalar values[S::width];
  for (Eigen::Index w = 0; w < S::width; ++w) {
    values[w] = w < lanes ? typename S::Scalar(from[w * stride]) : typename S::Scalar(0);
  }
  return S::load(values);
}

/// The first `lanes` of a packet to strided storage, rounded to its type: nothing past them is
/// written.
template <class S, class T>
ATTN_INLINE void store_strided(T* to, Eigen::Index stride, const typename S::Packet& value,
                               Eigen::Index lanes) {
  if constexpr (std::is_same_v<T, typename S::Scalar>) {
    if (stride == 1 && lanes >= S::width) return S::storeu(to, value);
  }
  alignas(64) typename S::Scalar values[S::width];
  S::store(values, value);
  Eigen::Index w = 0;
  if (stride == 1) {  // four at a time, which the compiler makes a store of
    for (; w + 4 <= S::width && w + 4 <= lanes; w += 4) {
      ATTN_UNROLL
      for (int i = 0; i < 4; ++i) to[w + i] = T(values[w + i]);
    }
  }
  for (; w < S::width && w < lanes; ++w) to[w * stride] = T(values[w]);
}

}  // namespace detail
}  // namespace ATTN_ABI
}  // namespace attn
