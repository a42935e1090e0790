// tests/fuzz/safetensors.h: the reader of examples/06_encoder, given any bytes, or any header in
// front of some: a sentence, or tensors that lie within the file.
// SPDX-License-Identifier: MIT
#pragma once

#include "../../examples/06_encoder/safetensors.h"

#include <gtest/gtest.h>

namespace fuzz {

/// The bytes as they are; or all behind the first two as a header, and as many bytes of data as the
/// second says.
inline std::string file_of(const std::uint8_t* bytes, std::size_t size) {
  if (size < 2 || bytes[0] % 8 == 7) return std::string(bytes, bytes + size);
  const std::string header(bytes + 2, bytes + size);
  std::string file;
  for (int i = 0; i < 8; ++i) file += char(std::uint64_t(header.size()) >> 8 * i & 0xff);
  return file + header + std::string(bytes[1], '\x3f');
}

inline void read_all(const ::safetensors::File& file) {
  for (const auto& [name, tensor] : file.tensors()) {
    ASSERT_TRUE(tensor.begin <= tensor.end && tensor.end <= file.bytes()) << name;
    const auto& shape = tensor.shape;
    try {
      if (shape.size() == 1) (void)file.vector(name, shape[0]);
      if (shape.size() == 2) (void)file.matrix(name, shape[0], shape[1]);
    } catch (const std::runtime_error& refused) {
      ASSERT_NE(std::string(refused.what()).find("needs F32, F16 or BF16"), std::string::npos)
          << refused.what();
    }
  }
}

inline void safetensors(const std::uint8_t* bytes, std::size_t size) {
  try {
    read_all(::safetensors::File(file_of(bytes, size)));
  } catch (const std::runtime_error& refused) {
    ASSERT_GT(std::string(refused.what()).size(), 10u);
  }
}

}  // namespace fuzz
