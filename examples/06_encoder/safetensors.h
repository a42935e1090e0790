// examples/06_encoder/safetensors.h: reads safetensors, the format in which trained weights are shared.
// SPDX-License-Identifier: MIT
//
//   8 bytes   N, little-endian
//   N bytes   JSON: {"a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ..., "__metadata__": {...}}
//   the rest  the numbers, row by row; offsets count from here, and each byte belongs to one tensor
//
// All that the header says is checked before a number is read: a file that is cut short, damaged or made with ill intent is refused
// in a sentence (std::runtime_error), whatever its bytes are.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace safetensors {

using Eigen::Index;
using Json = nlohmann::json;
using Shape = std::vector<Index>;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

struct Tensor {
  std::string type;  ///< as the file says it: F32, BF16, I64, ...
  Shape shape;
  std::uint64_t begin, end;  ///< bytes, of the data behind the header
};

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

/// Names and shapes as messages show them: a damaged file's may be of any length.
inline std::string quoted(const std::string& name) {
  return '"' + (name.size() <= 100 ? name : name.substr(0, 100) + "...") + '"';
}
inline std::string text(const Shape& shape) {
  std::string list;
  for (std::size_t i = 0; i < shape.size() && i < 8; ++i)
    list += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return '[' + list + (shape.size() <= 8 ? "]" : ", ...]");
}

/// The header as JSON. Of a name that stands twice a parser keeps one in silence; not here.
inline Json parse_header(const char* begin, const char* end) {
  std::vector<std::set<std::string>> names;  // of the objects that are open
  const auto check = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth > 3) refuse("the header nests deeper than lists within tensors within one object");
    if (event == Json::parse_event_t::object_start) names.emplace_back();
    if (event == Json::parse_event_t::object_end) names.pop_back();
    if (event == Json::parse_event_t::key && !names.back().insert(value.get<std::string>()).second)
      refuse("the header has ", quoted(value.get<std::string>()), " twice");
    return true;
  };
  try {
    return Json::parse(begin, end, check);
  } catch (const Json::parse_error& error) {
    refuse("the header is no JSON: it errs or ends at byte ", error.byte, " of ", end - begin);
  } catch (const Json::out_of_range&) {
    refuse("the header has a number that is too large for any");
  }
}

/// One of a tensor's lists of numbers: its shape, or where its bytes begin and end.
inline Shape parse_numbers(const std::string& name, const Json& entry, const char* field) {
  const auto found = entry.find(field);
  if (found == entry.end() || !found->is_array())
    refuse("tensor ", quoted(name), " has no list \"", field, '"');
  Shape numbers;
  for (const Json& number : *found) {
    if (!number.is_number_unsigned() ||
        number.get<std::uint64_t>() > std::uint64_t(std::numeric_limits<Index>::max()))
      refuse("tensor ", quoted(name), " has in \"", field, "\" what is no whole number below 2^63");
    numbers.push_back(number.get<Index>());
  }
  return numbers;
}

/// Bytes of a number of each type; 0 for one that is not known.
inline std::uint64_t bytes_of(const std::string& type) {
  static const std::map<std::string, std::uint64_t> known = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
      {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
      {"U32", 4},  {"F32", 4}, {"I64", 8}, {"U64", 8},     {"F64", 8}};
  const auto found = known.find(type);
  return found == known.end() ? 0 : found->second;
}

inline Tensor parse_tensor(const std::string& name, const Json& entry, std::uint64_t data_bytes) {
  if (!entry.is_object()) refuse("tensor ", quoted(name), " is not described by an object");
  const auto type = entry.find("dtype");
  if (type == entry.end() || !type->is_string())
    refuse("tensor ", quoted(name), " has no string \"dtype\"");
  const Shape shape = parse_numbers(name, entry, "shape");
  const Shape offsets = parse_numbers(name, entry, "data_offsets");
  if (offsets.size() != 2) refuse("tensor ", quoted(name), " has not two \"data_offsets\"");
  const Tensor tensor{type->get<std::string>(), shape, std::uint64_t(offsets[0]),
                      std::uint64_t(offsets[1])};

  std::uint64_t bytes = bytes_of(tensor.type);
  if (bytes == 0) refuse("tensor ", quoted(name), " is of the unknown type ", quoted(tensor.type));
  for (const Index n : shape) {
    if (n != 0 && bytes > std::numeric_limits<std::uint64_t>::max() / std::uint64_t(n))
      refuse("tensor ", quoted(name), " is ", text(shape), ", more than any memory holds");
    bytes *= std::uint64_t(n);
  }
  if (tensor.begin > tensor.end)
    refuse("tensor ", quoted(name), " ends at byte ", tensor.end, ", before it begins");
  if (tensor.end > data_bytes) {
    refuse("tensor ", quoted(name), " ends at byte ", tensor.end, " of the data, the file has ",
           data_bytes, ": it is cut short");
  }
  if (tensor.end - tensor.begin != bytes) {
    refuse("tensor ", quoted(name), " is ", tensor.type, ' ', text(shape), ", which takes ", bytes,
           " bytes, and has ", tensor.end - tensor.begin);
  }
  return tensor;
}

/// A file in memory: what its tensors are, and their numbers as float.
class File {
 public:
  explicit File(std::string bytes) : bytes_(std::move(bytes)) {
    constexpr std::uint64_t most = 100'000'000;  // the format's own limit
    if (bytes_.size() < 8)
      refuse("the file has ", bytes_.size(), " bytes, and needs 8 for the length of its header");
    std::uint64_t length = 0;
    for (std::size_t i = 8; i-- > 0;) length = length << 8 | static_cast<unsigned char>(bytes_[i]);
    if (length > most)
      refuse("the header has ", length, " bytes, more than the ", most, " allowed");
    if (length > bytes_.size() - 8) {
      refuse("the header has ", length, " bytes, the file ", bytes_.size() - 8,
             " after its length: it is cut short");
    }
    data_ = std::size_t(8 + length);
    parse(parse_header(bytes_.data() + 8, bytes_.data() + data_));
  }
  static File read(const std::filesystem::path& path) {
    std::error_code none;
    const auto size = std::filesystem::file_size(path, none);
    std::ifstream file(path, std::ios::binary);
    if (none || !file) refuse("there is no such file, or it may not be read");
    std::string bytes(std::size_t(size), '\0');
    if (!file.read(bytes.data(), std::streamsize(size))) refuse("the file could not be read");
    return File(std::move(bytes));
  }

  std::size_t bytes() const { return bytes_.size(); }
  const std::map<std::string, Tensor>& tensors() const { return tensors_; }
  bool has(const std::string& name) const { return tensors_.count(name) != 0; }
  const Tensor& tensor(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found != tensors_.end()) return found->second;
    refuse("there is no tensor ", quoted(name), " among the ", tensors_.size(), " of the file",
           tensors_.empty() ? "" : ", of which the first is " + quoted(tensors_.begin()->first));
  }

  Matrix matrix(const std::string& name, Index rows, Index cols) const {
    return read<Matrix>(name, rows, cols);
  }
  Eigen::RowVectorXf vector(const std::string& name, Index size) const {
    return read<Eigen::RowVectorXf>(name, size);
  }

 private:
  void parse(const Json& header) {
    if (!header.is_object()) refuse("the header is JSON, but no object of tensors");
    const std::uint64_t data_bytes = bytes_.size() - data_;
    for (const auto& [name, entry] : header.items()) {
      if (name != "__metadata__") tensors_.emplace(name, parse_tensor(name, entry, data_bytes));
    }
    check_each_byte_has_one_tensor(data_bytes);
  }
  void check_each_byte_has_one_tensor(std::uint64_t data_bytes) const {
    std::vector<std::tuple<std::uint64_t, std::uint64_t, std::string>> parts;
    for (const auto& [name, tensor] : tensors_) parts.emplace_back(tensor.begin, tensor.end, name);
    std::sort(parts.begin(), parts.end());
    std::uint64_t at = 0;
    const auto check_no_hole = [&](std::uint64_t next) {
      if (next > at) refuse("bytes ", at, " to ", next, " of the data belong to no tensor");
    };
    for (const auto& [begin, end, name] : parts) {
      check_no_hole(begin);
      if (begin < at) refuse("tensor ", quoted(name), " overlaps another");
      at = end;
    }
    check_no_hole(data_bytes);
  }

  template <class Numbers, class... Sizes>
  Numbers read(const std::string& name, Sizes... sizes) const {
    const Tensor& from = tensor(name);
    const Shape needs{sizes...};
    if (from.shape != needs)
      refuse("tensor ", quoted(name), " is ", text(from.shape), ", needs ", text(needs));
    Numbers numbers(sizes...);
    const auto widen = [&](auto stored) {
      const char* data = bytes_.data() + data_ + from.begin;
      for (Index i = 0; i < numbers.size(); ++i, data += sizeof stored) {
        std::memcpy(&stored, data, sizeof stored);
        numbers.data()[i] = float(stored);
      }
    };
    if (from.type == "F32") {
      widen(float());
    } else if (from.type == "F16") {
      widen(Eigen::half());
    } else if (from.type == "BF16") {
      widen(Eigen::bfloat16());
    } else {
      refuse("tensor ", quoted(name), " is of type ", from.type, ", needs F32, F16 or BF16");
    }
    return numbers;
  }

  std::string bytes_;
  std::size_t data_ = 0;  // where the numbers begin
  std::map<std::string, Tensor> tensors_;
};

}  // namespace safetensors
