// examples/onnx_attention/tensor.h: a tensor as a runtime hands it to a kernel: a type known when it runs, sizes, bytes.
// SPDX-License-Identifier: MIT
#pragma once

#include <attn/attn.h>

#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace onnx {

using attn::Index;

enum class Type {
  float32,
  float64,
  float16,
  bfloat16,
  int8,
  int16,
  int32,
  int64,
  uint8,
  uint16,
  uint32,
  uint64,
  boolean
};

/// Calls f with a value of the C++ type.
template <class F>
void with_type(Type type, const F& f) {
  switch (type) {
    case Type::float32:
      return f(float());
    case Type::float64:
      return f(double());
    case Type::float16:
      return f(Eigen::half());
    case Type::bfloat16:
      return f(Eigen::bfloat16());
    case Type::int8:
      return f(std::int8_t());
    case Type::int16:
      return f(std::int16_t());
    case Type::int32:
      return f(std::int32_t());
    case Type::int64:
      return f(std::int64_t());
    case Type::uint8:
      return f(std::uint8_t());
    case Type::uint16:
      return f(std::uint16_t());
    case Type::uint32:
      return f(std::uint32_t());
    case Type::uint64:
      return f(std::uint64_t());
    case Type::boolean:
      return f(bool());
  }
}
/// The same for the types that attention computes in or stores.
template <class F>
void with_real_type(Type type, const F& f) {
  switch (type) {
    case Type::float32:
      return f(float());
    case Type::float64:
      return f(double());
    case Type::float16:
      return f(Eigen::half());
    case Type::bfloat16:
      return f(Eigen::bfloat16());
    default:
      throw std::invalid_argument("onnx: expected a tensor of floating-point numbers");
  }
}

template <class T>
T from_double(double x) {
  if constexpr (std::is_same_v<T, Eigen::half> || std::is_same_v<T, Eigen::bfloat16>) {
    return T(static_cast<float>(x));
  } else {
    return static_cast<T>(x);
  }
}
template <class T>
double to_double(T x) {
  if constexpr (std::is_same_v<T, Eigen::half> || std::is_same_v<T, Eigen::bfloat16>) {
    return static_cast<double>(static_cast<float>(x));
  } else {
    return static_cast<double>(x);
  }
}

/// Contiguous, the last dimension fastest.
struct Tensor {
  Type type = Type::float32;
  std::vector<Index> dims;
  std::vector<unsigned char> bytes;

  Tensor() = default;
  Tensor(Type of, std::vector<Index> sizes) : type(of), dims(std::move(sizes)) {
    with_type(type, [this](auto t) { bytes.resize(std::size_t(size()) * sizeof t); });
  }

  Index rank() const { return Index(dims.size()); }
  /// A dimension, counted from the end where negative.
  Index dim(Index n) const { return dims.at(std::size_t(n < 0 ? n + rank() : n)); }
  Index size() const {
    return std::accumulate(dims.begin(), dims.end(), Index(1), std::multiplies<Index>());
  }
  template <class T>
  T* data() {
    return reinterpret_cast<T*>(bytes.data());
  }
  template <class T>
  const T* data() const {
    return reinterpret_cast<const T*>(bytes.data());
  }

  double at(Index i) const {
    double value = 0;
    with_type(type, [&](auto t) { value = to_double(data<decltype(t)>()[i]); });
    return value;
  }
  void set(Index i, double value) {
    with_type(type, [&](auto t) { data<decltype(t)>()[i] = from_double<decltype(t)>(value); });
  }
};

/// The same numbers in another type.
inline Tensor cast(const Tensor& x, Type type) {
  if (x.type == type) return x;
  Tensor y(type, x.dims);
  for (Index i = 0; i < x.size(); ++i) y.set(i, x.at(i));
  return y;
}

}  // namespace onnx
