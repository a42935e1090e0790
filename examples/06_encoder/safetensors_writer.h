// examples/06_encoder/safetensors_writer.h: writes safetensors, the format that safetensors.h
// reads.
// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace safetensors {

/// Collects tensors, each behind the other, and makes the bytes of the file.
class Writer {
 public:
  /// The numbers row by row, as `type` ("F32", "F16", "BF16") says that Number is stored.
  template <class Number>
  void add(const std::string& name, const std::string& type, const std::vector<std::int64_t>& shape,
           const std::vector<Number>& numbers) {
    const std::size_t begin = data_.size();
    data_.append(reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(Number));
    header_[name] = {{"dtype", type}, {"shape", shape}, {"data_offsets", {begin, data_.size()}}};
  }
  std::string bytes() const {
    const std::string text = header_.dump();
    std::string bytes;
    for (int i = 0; i < 8; ++i) bytes += char(std::uint64_t(text.size()) >> 8 * i & 0xff);
    return bytes + text + data_;
  }

 private:
  nlohmann::json header_ = {{"__metadata__", {{"format", "pt"}}}};
  std::string data_;
};

}  // namespace safetensors
